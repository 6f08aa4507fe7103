"""Checks of a network of your own, integrals, and instruments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

import convexlift as cl
from convexlift import mechanism, plots, testing
from convexlift.integration import annealing, chain_diagnostics, gaussian, langevin, line, log_concave_mle

from .case import Case, answered, refused
from .given import FLOAT64, density, fit, net, rows


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1)


def convex(f: Any, **options: Any) -> Any:
    return testing.check_convex(f, dim=2, **options)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """A convex function in float32, large where the search looks."""
    a = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    return torch.logsumexp(x.float() @ a.T, -1)


def gauss(dim: int = 2) -> Any:
    return gaussian.Gaussian(torch.zeros(dim, dtype=FLOAT64), torch.eye(dim, dtype=FLOAT64))


TESTING: list[Case] = [
    refused(
        "`check_convex` of a function that is not convex",
        lambda: convex(lambda x: -square(x)),
        testing.CheckFailed,
        "f is not convex: curvature ...",
    ),
    refused(
        "`check_convex` with `scales=(0,)`",
        lambda: convex(square, scales=(0.0,)),
        ValueError,
        "scales must be positive; got (0.0,)",
    ),
    refused(
        "`check_convex` of a function without finite values",
        lambda: convex(lambda x: square(x) * math.inf),
        ValueError,
        "f has no finite values where the search looks; pass points= or smaller scales=",
    ),
    refused(
        "`check_convex` of a function that returns a float",
        lambda: convex(lambda x: 1.0),
        TypeError,
        "f must return a tensor; got float",
    ),
    refused(
        "`check_convex` of a function that returns float16",
        lambda: convex(lambda x: square(x).half()),
        TypeError,
        "f must return float32 or float64 values; got torch.float16",
    ),
    refused(
        "`check_convex` of a function that returns (N, 1)",
        lambda: convex(lambda x: x.square().sum(1, keepdim=True)),
        ValueError,
        "expected (N,) values of f; got (N, 1)",
    ),
    refused(
        "`check_convex` of a function that looks at the batch",
        lambda: convex(lambda x: square(x - x.mean(0))),
        ValueError,
        "f gives a point another value alone than in a batch: freeze it first",
    ),
    refused(
        "`check_derivatives` of a wrong gradient",
        lambda: testing.check_derivatives(square, dim=2, gradient=lambda x: x),
        testing.CheckFailed,
        "gradient is off by 0.5 of its largest entry at x = ...",
    ),
    refused(
        "`check_derivatives` at no points",
        lambda: testing.check_derivatives(square, dim=2, points=rows()[:0], gradient=lambda x: 2 * x),
        ValueError,
        "points are empty",
    ),
    refused(
        "`check_derivatives` without a derivative",
        lambda: testing.check_derivatives(square, dim=2),
        ValueError,
        "nothing to check: pass one of gradient, hessian, laplacian, hvp, logdet",
    ),
    refused(
        "`check_derivatives` of an unknown method",
        lambda: testing.check_derivatives(net().emit(), dim=2, names=["slope"]),
        ValueError,
        "f has no method 'slope'; known derivatives: gradient, hessian, laplacian, hvp, logdet",
    ),
    refused(
        "`check_derivatives` of closed forms and names",
        lambda: testing.check_derivatives(net().emit(), dim=2, names=["gradient"], gradient=lambda x: x),
        ValueError,
        "names= chooses among the methods of f; it does not go with closed forms passed",
    ),
    refused(
        "`check_derivatives` of a gradient of another shape",
        lambda: testing.check_derivatives(square, dim=2, gradient=square),
        ValueError,
        "expected (7, 2) from gradient; got (7,)",
    ),
    refused(
        "`check_nonnegative` of a negative weight",
        lambda: testing.check_nonnegative({"w": torch.tensor([1.0, -2.0])}),
        testing.CheckFailed,
        "'w' must be non-negative; it is -2 at (1,)",
    ),
    refused(
        "`check_nonnegative` of a module that declares nothing",
        lambda: testing.check_nonnegative(nn.Linear(2, 2)),
        ValueError,
        "found no weights that are declared non-negative; pass names=",
    ),
    refused(
        "`check_nonnegative` of a number",
        lambda: testing.check_nonnegative(3),
        TypeError,
        "expected a module, a potential or a dict of tensors; got int",
    ),
    refused(
        "`check_nonnegative` of a name that is not there",
        lambda: testing.check_nonnegative(nn.Linear(2, 2), names=["w"]),
        ValueError,
        "no tensor is named 'w'; there are: weight, bias",
    ),
    answered(
        "`check_convex` of log-sum-exp in float32, 1,600 away",
        lambda: testing.check_convex(rounded, dim=5).convex,
        True,
        "it is convex: what rounding explains is no curvature",
        "convexlift.testing.convexity._Search._exceeds_rounding",
        lambda self, x, v, length: torch.ones(len(x), dtype=torch.bool),
    ),
]


def normaliser(f: Any, slope: Any) -> Any:
    return line.normaliser(lambda x: f(x[:, 0]), slope)


INTEGRALS: list[Case] = [
    refused(
        "the integral of exp(-x)",
        lambda: normaliser(lambda x: x, torch.ones_like),
        ValueError,
        "exp(-f) has no finite integral: on the left, f is still only 0 above its lowest value at x = ...",
    ),
    refused(
        "the integral of exp(-f), f not a number somewhere",
        lambda: normaliser(lambda x: x.sqrt() + x**2, lambda x: 2 * x),
        FloatingPointError,
        "cannot integrate exp(-f): f is not a number at x = -8",
    ),
    refused(
        "the integral of exp(-f), f too narrow for its dtype",
        lambda: normaliser(lambda x: 1e40 * (x - 1).square(), lambda x: 2 * x),
        FloatingPointError,
        "cannot integrate exp(-f): it is too narrow for float64 at x = 1",
    ),
    refused(
        "the log-concave estimate of five equal samples",
        lambda: log_concave_mle.log_concave_mle(torch.zeros(5, 1)),
        ValueError,
        "need at least 2 distinct samples; every sample is 0",
    ),
    refused(
        "the log-concave estimate with a negative weight",
        lambda: log_concave_mle.log_concave_mle(rows(dim=1), -torch.ones(60)),
        ValueError,
        "weights must not be negative; row 0 has -1",
    ),
    refused(
        "the log-concave estimate with weights for other samples",
        lambda: log_concave_mle.log_concave_mle(rows(dim=1), torch.ones(59)),
        ValueError,
        "expected (60,) weights; got (59,)",
    ),
    refused(
        "the log-concave estimate with whole weights",
        lambda: log_concave_mle.log_concave_mle(rows(dim=1), torch.ones(60).long()),
        TypeError,
        "expected a floating-point tensor of weights; got int64",
    ),
    refused(
        "chains of three draws",
        lambda: chain_diagnostics.r_hat(torch.zeros(2, 3, 1)),
        ValueError,
        "expected (C, T, d) chains with at least 4 draws each; got (2, 3, 1)",
    ),
    refused(
        "chains with a NaN",
        lambda: chain_diagnostics.r_hat(torch.full((2, 8, 1), torch.nan)),
        ValueError,
        "chain 0 is not finite at draw 0",
    ),
    refused(
        "importance weights that are all zero",
        lambda: chain_diagnostics.importance_ess(torch.full((5,), -torch.inf)),
        ValueError,
        "all 5 weights are zero: no draw hit the target",
    ),
    refused(
        "importance weights with a NaN",
        lambda: chain_diagnostics.importance_ess(torch.full((5,), torch.nan)),
        ValueError,
        "the log weights have NaN or +inf entries",
    ),
    refused(
        "a Gaussian with a singular factor",
        lambda: gaussian.Gaussian(torch.zeros(2), torch.zeros(2, 2)),
        ValueError,
        "the factor must be lower-triangular with a positive diagonal",
    ),
    refused(
        "a Gaussian with a factor of another dimension",
        lambda: gaussian.Gaussian(torch.zeros(2), torch.eye(3)),
        ValueError,
        "expected mean (d,) and factor (d, d); got (2,) and (3, 3)",
    ),
    refused(
        "annealing with ten particles",
        lambda: annealing.annealed_normaliser(square, lambda x: 2 * x, gauss(), particles=10),
        ValueError,
        "expected at least 256 particles; got 10",
    ),
    refused(
        "one Langevin chain",
        lambda: langevin.draw(square, lambda x: 2 * x, gauss(), 10, chains=1),
        ValueError,
        "draw needs n >= 1 and at least 2 chains; got n = 10, chains = 1",
    ),
]


def backwards(trace: Any) -> None:
    for step in (5, 4):
        trace.record(step, cl.Softplus(net()))


INSTRUMENTS: list[Case] = [
    refused(
        "an instrument for a model without a weight source",
        lambda: mechanism.shoulder(nn.Linear(2, 2)),
        TypeError,
        "expected a weight source or a task of weight sources; got Linear",
    ),
    refused(
        "`update_diffusion` with `lr=0`",
        lambda: mechanism.update_diffusion(cl.Softplus(net()), square, rows().split(20), lr=0.0),
        ValueError,
        "lr must be positive; got 0.0",
    ),
    refused(
        "an instrument with two probe batches",
        lambda: mechanism.update_diffusion(cl.Softplus(net()), square, rows().split(30), lr=0.1),
        ValueError,
        "update_diffusion needs at least 3 probe batches; got 2",
    ),
    refused(
        "an instrument whose loss looks at no weight",
        lambda: mechanism.update_diffusion(cl.Softplus(net()), square, rows().split(20), lr=0.1),
        ValueError,
        "loss does not depend on the weights of the model",
    ),
    refused(
        "probe batches that are one",
        lambda: mechanism.update_diffusion(cl.Softplus(net()), square, [rows()] * 3, lr=0.1),
        ValueError,
        "probe batch 0 and probe batch 1 share memory: each must be a tensor of its own",
    ),
    refused(
        "the noise of a lift's weights, of one batch",
        lambda: mechanism.emission_noise(cl.Lift(net()), [rows()]),
        ValueError,
        "emission_noise needs at least 2 batches; got 1",
    ),
    refused(
        "a `ShoulderTrace` that goes back",
        lambda: backwards(mechanism.ShoulderTrace(rows())),
        ValueError,
        "records must go forward; got step 4 after step 5",
    ),
    refused(
        "the dwell of a layer that is not there",
        lambda: mechanism.ShoulderTrace(rows()).dwell("3.outer"),
        ValueError,
        "unknown layer '3.outer'; known: none yet",
    ),
    refused(
        "plateaus without validation",
        lambda: mechanism.plateaus(fit()),
        ValueError,
        "plateaus needs a history with validation losses",
    ),
    refused(
        "plateaus with `share=2`",
        lambda: mechanism.plateaus(fit(validation=rows()), share=2.0),
        ValueError,
        "share must lie between 0 and 1; got 2.0",
    ),
    refused(
        "a landscape of a trajectory of two points",
        lambda: mechanism.landscape(net().freeze(), square, rows(), rows()),
        ValueError,
        "expected a (T, 19) trajectory, T >= 3; got (60, 2)",
    ),
]

PLOTS: list[Case] = [
    refused(
        "the loss curve of a run without evaluations",
        lambda: plots.plot_history(cl.History()),
        ValueError,
        "the history holds no evaluation that could be drawn",
    ),
    refused(
        "a potential drawn over three sides",
        lambda: plots.plot_potential(net().emit(), [(0, 1)] * 3),
        ValueError,
        "expected one or two (low, high) with low below high; got [(0, 1), (0, 1), (0, 1)]",
    ),
    refused(
        "a potential that returns one value",
        lambda: plots.plot_potential(lambda x: x.sum(), [(0, 1)]),
        ValueError,
        "expected 121 values, one for each row; got ()",
    ),
    refused(
        "a density drawn with a name too many",
        lambda: plots.plot_density(density(2).freeze(), rows(), names=["a"]),
        ValueError,
        "expected 2 names of columns; got 1",
    ),
    refused(
        "images drawn in no column",
        lambda: plots.draw_images(
            torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), "a.svg", columns=0
        ),
        ValueError,
        "a figure needs at least one column; got 0",
    ),
    refused(
        "images of other sizes side by side",
        lambda: plots.draw_images(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), torch.zeros(2, 5, 5), "a.svg"),
        ValueError,
        "expected (N, 4, 4) sampled images, N > 0; got (2, 5, 5)",
    ),
    refused(
        "images without their reconstructions",
        lambda: plots.draw_images(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), "a.svg"),
        ValueError,
        "every real image needs its reconstruction; got 2 and 1 images",
    ),
]

CASES = [*TESTING, *INTEGRALS, *INSTRUMENTS, *PLOTS]
