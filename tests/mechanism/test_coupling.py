"""The cross-covariance of latents and gradients, against cases whose Sigma is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

from convexlift import (
    ICNN,
    ConvexPotentialFlow,
    ConvexRegression,
    Lift,
    LogConcaveDensity,
    Projected,
    Softplus,
)
from convexlift.mechanism import coupling


def linear_lift(net, slack, matrix, **options):
    """A lift of theta = slack + matrix mean(X), in float64."""
    usual = {"summary": "moments", "standardise": None, "readout": "dense", "readout_scale": 1.0}
    lift = Lift(net, weight_gain=1.0, **usual, **options)
    with torch.no_grad():
        lift.slack[0].fill_(slack)
        lift.readout.maps[0].zero_()
        lift.readout.maps[0][:, : lift.dim] = torch.as_tensor(matrix, dtype=torch.float64)
    return lift


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape[1:], generator=generator, dtype=torch.float64) for _ in range(shape[0])]


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_two_point_law_has_its_known_coupling_with_either_sign(linear, sign):
    """X = m in {-1, 1}: theta = b + r m and g = k m psi'(theta)."""
    b, r, k, n = -1.0, 0.8, 2.5 * sign, 10
    lift = linear_lift(linear(1), b, [[r]])
    batches = [torch.full((4, 1), m, dtype=torch.float64) for m in (-1.0, 1.0) for _ in range(n // 2)]
    found = coupling(lift, lambda x: k * lift(x).mean(), batches)
    total = n / (n - 1) * k * r * (sigmoid(b + r) + sigmoid(b - r)) / 2
    batch = n / (n - 1) * k * r * sigmoid(b)
    for part, exact in ((found.total, total), (found.batch, batch), (found.curvature, total - batch)):
        assert part.trace == pytest.approx(exact, rel=1e-12)
        assert part.norm == pytest.approx(abs(exact), rel=1e-12)
        assert part.asymmetry < 1e-6
    # Of the 252 ways to pair the signs, two give this norm.
    assert 1 / 1000 <= found.batch.p_value < 0.02
    assert found.batch.trace_error < 1e-12  # every probe says the same


def test_a_linear_lift_has_sigma_batch_in_closed_form(linear):
    """loss = |W - mean(X)|^2 / 2 with theta = b + R mean(X): Sigma_batch = -R C psi'(theta_bar), C = Cov."""
    matrix = torch.tensor([[1.0, 0.5, 0.0], [-0.7, 0.2, 0.1], [0.0, 0.3, -0.4]], dtype=torch.float64)
    lift = linear_lift(linear(3), -0.5, matrix)
    batches = normal(20, 5, 3)

    def loss(x):
        w = lift.emit(x).tensors["weight"]
        return (w - x.mean(0)).square().sum() / 2

    means = torch.stack([x.mean(0) for x in batches])
    slope = torch.sigmoid(-0.5 + means.mean(0) @ matrix.T)
    exact = -matrix @ torch.cov(means.T) @ torch.diag(slope)
    found = coupling(lift, loss, batches).batch
    assert found.trace == pytest.approx(float(exact.trace()), rel=1e-10)
    assert found.norm == pytest.approx(float(exact.norm()), rel=1e-10)
    skew = (exact - exact.T) / 2
    assert found.asymmetry == pytest.approx(float(skew.norm() / exact.norm()), rel=1e-8)


def test_an_independent_emission_has_no_sigma_batch_but_a_sigma_curv(linear):
    lift = linear_lift(linear(2), -1.0, torch.eye(2), coupling="independent")

    def loss(x, emit_from=None):
        return (lift(x, emit_from) - 1).square().mean()

    found = coupling(lift, loss, normal(300, 16, 2), emit_from=normal(300, 16, 2, seed=1))
    assert abs(found.batch.trace) < 3 * found.batch.trace_error
    assert found.batch.p_value > 0.05
    assert found.curvature.trace > 8 * found.curvature.trace_error
    assert found.curvature.p_value == 1 / 1000


def test_matched_noise_has_no_sigma_batch_and_its_seed_decides(linear):
    lift = linear_lift(linear(2), -1.0, torch.eye(2), coupling="noise")
    lift.running_covariance.copy_(torch.eye(4) / 16)

    def loss(x):
        return (lift(x) - 1).square().mean()

    found = coupling(lift, loss, normal(200, 16, 2))
    assert abs(found.batch.trace) < 3 * found.batch.trace_error and found.batch.p_value > 0.05
    assert found.curvature.trace > 8 * found.curvature.trace_error
    assert coupling(lift, loss, normal(200, 16, 2)) == found
    assert coupling(lift, loss, normal(200, 16, 2), seed=1) != found


def test_permutation_p_values_are_uniform_under_the_null(linear):
    lift = linear_lift(linear(2), -1.0, torch.eye(2), coupling="independent")

    def loss(x, emit_from=None):
        return (lift(x, emit_from) - 1).square().mean()

    values = []
    for seed in range(150):
        drawn = normal(16, 3, 2, seed=seed)
        found = coupling(lift, loss, drawn[:8], emit_from=drawn[8:], permutations=99, seed=seed)
        values.append(found.batch.p_value)
    # A p-value is k / 100: a uniform part of a hundredth less makes the law continuous.
    spread = torch.rand(len(values), generator=torch.Generator().manual_seed(0)) / 100
    assert kstest(torch.tensor(values) - spread, "uniform").pvalue > 0.01


@pytest.mark.parametrize("source", [Softplus, Projected, lambda net: Lift(net, body="constant", seed=0)])
def test_a_source_that_does_not_read_the_batch_gives_zeros(source):
    task = ConvexRegression(source(ICNN(2, hidden=(8, 8), seed=0)))
    batches = [(x.float(), x.float().square().sum(1)) for x in normal(5, 16, 2)]
    found = coupling(task, task.loss, batches, permutations=9)
    for part in (found.total, found.batch, found.curvature):
        assert (part.trace, part.trace_error, part.norm, part.asymmetry, part.p_value) == (0, 0, 0, 0, 1)


def flow():
    return ConvexPotentialFlow([Lift(ICNN(2, hidden=(8, 8), seed=k), seed=k) for k in range(2)])


def density():
    return LogConcaveDensity(Lift(ICNN(1, hidden=(8, 8), seed=0), targets="all", seed=0))


def regression():
    return ConvexRegression(Lift(ICNN(2, hidden=(8, 8), seed=0), standardise="centred", seed=0))


def rows_of(task, x):
    if isinstance(task, ConvexRegression):
        return x, x.square().sum(1)
    return x[:, : task.dim].contiguous()


@pytest.mark.parametrize("make", [flow, density, regression])
def test_of_a_task_the_parts_add_up_to_a_sigma_formed_in_full(make):
    task = make().double()
    batches = [rows_of(task, x.exp()) for x in normal(6, 32, 2)]
    task.initialise(rows_of(task, torch.cat(normal(20, 32, 2, seed=1)).exp()))
    found = coupling(task, task.loss, batches, permutations=19)
    lifts = [part for part in task.modules() if isinstance(part, Lift)]

    def latents_and_gradient(batch):
        kept = []
        for lift in lifts:

            def latents(summary, lift=lift):
                kept.extend(x.detach().requires_grad_() for x in Lift.latents(lift, summary))
                return kept[-len(lift.emitted) :]

            lift.latents = latents
        task.eval()
        g = torch.autograd.grad(task.loss(batch), kept)
        for lift in lifts:
            del lift.latents
        return torch.cat([x.detach().flatten() for x in kept]), torch.cat([x.flatten() for x in g])

    theta, g = (torch.stack(rows) for rows in zip(*map(latents_and_gradient, batches), strict=True))
    sigma = (theta - theta.mean(0)).T @ (g - g.mean(0)) / 5
    assert found.total.trace == pytest.approx(float(sigma.trace()), rel=1e-7)
    assert found.total.norm == pytest.approx(float(sigma.norm()), rel=1e-7)
    skew = (sigma - sigma.T).norm() / 2
    assert found.total.asymmetry == pytest.approx(float(skew / sigma.norm()), rel=1e-6)
    assert found.total.trace == pytest.approx(found.batch.trace + found.curvature.trace, rel=1e-9)
    assert found.batch.norm > 0


def test_errors(linear):
    lift = linear_lift(linear(2), -1.0, torch.eye(2))

    def loss(x, emit_from=None):
        return lift(x, emit_from).mean()

    x = normal(4, 8, 2)

    def refused(message, batches, loss=loss, model=lift, **options):
        with pytest.raises(ValueError, match=message):
            coupling(model, loss, batches, **options)

    refused("coupling needs at least 3 probe batches; got 2", x[:2])
    refused("coupling needs a model with a weight source", x, model=linear(2))
    refused("expected 4 batches in emit_from; got 3", x, emit_from=normal(3, 8, 2, seed=1))
    bad = torch.ones(8, 2, dtype=torch.float64)
    bad[3, 1] = torch.nan
    refused("samples of probe batch 2 have NaN at row 3, column 1", [*x[:2], bad])
    refused(
        "samples of emit_from batch 0 have NaN at row 3", x[:3], emit_from=[bad, *normal(2, 8, 2, seed=1)]
    )
    refused(
        "probe batch 0 and probe batch 2 share memory: each must be a tensor of its own", [x[0], x[1], x[0]]
    )
    together = torch.cat(x)
    refused("share memory", [together[:8], together[4:12], together[16:]])
    refused("probe batch 1 and probe batch 2 share memory", [x[0], x[1], x[1].T.T[:, :1]])
    refused("probe batch 0 and emit_from batch 2 share memory", x[:3], emit_from=[x[3].clone(), x[3], x[0]])
    refused("loss does not depend on the weights", x, loss=lambda x: x.mean())
    refused(r"loss must return a scalar tensor; got shape \(8,\)", x, loss=lambda x: lift(x))
    refused("loss must return a scalar tensor; got float", x, loss=lambda x: lift(x).mean().item())
    unused = torch.nn.ModuleList([lift, linear_lift(linear(2), -1.0, torch.eye(2))])
    refused("loss does not depend on the weights", x, model=unused)
    refused(
        "loss does not depend on the weights", x, model=Softplus(linear(2)), loss=lambda x: lift(x).mean()
    )
    refused("the loss or its gradient is not finite", x, loss=lambda x: lift(x).mean() * torch.inf)
    independent = linear_lift(linear(2), -1.0, torch.eye(2), coupling="independent")
    refused("reads independent batches in training: pass emit_from", x, model=independent)


def test_parts_of_one_tensor_are_batches_of_their_own(linear):
    lift = linear_lift(linear(2), -1.0, torch.eye(2))
    assert (
        coupling(lift, lambda x: lift(x).square().mean(), torch.cat(normal(4, 8, 2)).split(8)).total.norm > 0
    )
