"""Architectures, activations, weight sources, and tasks made of them."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import torch
from torch import nn

import convexlift as cl
from convexlift.calculus.activations import Activation
from convexlift.objectives import Chains, Denoising, ImportanceSampling, Quadrature
from convexlift.tasks.region import region_outlines

from .case import Case, answered, refused
from .given import conditional, density, fit, flow, net, picnn, rows


def lift(**options: Any) -> Any:
    return cl.Lift(net(), **options)


def steep(**options: Any) -> Any:
    """A flow of two potentials that grow like the fourth power."""
    nets = [cl.ICNN(2, hidden=(16, 16), activation="smooth_squared_relu", seed=k) for k in range(2)]
    made = cl.ConvexPotentialFlow(nets, **options)
    made.initialise(rows())
    return made.freeze()


def mapped_rows(far: int) -> Any:
    """Rows of which one is far out, mapped eight at a time."""
    x = rows()
    x[far] = 1e30
    return steep(chunk=8)(x)


def reloaded() -> Any:
    cl.save(density().freeze(), "model.safetensors")
    found = cl.load("model.safetensors")
    found.block.requires_grad_(True)
    return found


def settled() -> Any:
    made = lifted()
    made.initialise(rows())
    made.settle(rows())
    return made


def lifted() -> Any:
    return cl.ConvexPotentialFlow([lift()])


def negative(source: Any) -> Any:
    with torch.no_grad():
        source.latents[0].fill_(-1.0)
    return source


def latents() -> nn.Module:
    """A layer whose weights are latents."""
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, -4.0)
    return layer


def positive(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    return module


def transport() -> Any:
    """A transport map to be trained."""
    return cl.TransportMap.of(2, hidden=(4,), seed=0)


def apart() -> Any:
    made = transport()
    made.initialise((rows(), rows() + 1e6))
    return made


ARCHITECTURES: list[Case] = [
    refused(
        "a network of no columns",
        lambda: cl.ICNN(0),
        ValueError,
        "dim must be at least 1; got 0",
        kin="another count",
    ),
    refused(
        "a hidden layer of width 0",
        lambda: cl.ICNN(2, hidden=(8, 0)),
        ValueError,
        "hidden must be a non-empty sequence of positive widths; got (8, 0)",
    ),
    refused(
        "`strong_convexity=-1`",
        lambda: cl.ICNN(2, strong_convexity=-1.0),
        ValueError,
        "strong_convexity must be >= 0; got -1.0",
    ),
    refused(
        "`quadratic_rank=-1`",
        lambda: cl.ICNN(2, quadratic_rank=-1),
        ValueError,
        "quadratic_rank must be >= 0; got -1",
    ),
    refused(
        '`init="zeros"`',
        lambda: cl.ICNN(2, init="zeros"),
        ValueError,
        "unknown init 'zeros'; known: fan_in, folded_normal, principled, identity",
    ),
    refused(
        '`init="identity"` without its alpha of 1',
        lambda: cl.ICNN(2, init="identity"),
        ValueError,
        'init="identity" needs strong_convexity=1 and learn_strong_convexity=True',
    ),
    refused(
        '`activation="gelu"`',
        lambda: cl.ICNN(2, activation="gelu"),
        ValueError,
        "unknown activation 'gelu'; known: softplus, squareplus, smooth_squared_relu, relu, or an Activation",
    ),
    refused(
        "a sharpness of ReLU",
        lambda: cl.ICNN(2, activation="relu", sharpness=2.0),
        ValueError,
        "relu has no sharpness",
    ),
    refused(
        "`sharpness=0`", lambda: cl.ICNN(2, sharpness=0.0), ValueError, "sharpness must be positive; got 0.0"
    ),
    refused(
        "an activation that is not convex",
        lambda: Activation(
            "tanh", torch.tanh, lambda u: 1 - u.tanh() ** 2, lambda u: -2 * u.tanh() * (1 - u.tanh() ** 2)
        ),
        ValueError,
        "activation 'tanh' is not convex: curvature -0.77 at u = 0.66",
    ),
    refused(
        "an activation with a wrong slope",
        lambda: Activation("mine", torch.relu, lambda u: torch.ones_like(u)),
        ValueError,
        "activation 'mine': its slope at u = -20 is 1, automatic differentiation gives 0",
    ),
    refused(
        "an activation that sums its inputs",
        lambda: Activation("mine", torch.sum, torch.ones_like),
        ValueError,
        "activation 'mine': value is not elementwise and finite",
    ),
    refused(
        "an activation of lambdas, pickled",
        lambda: pickle.dumps(Activation("mine", lambda u: 2 * u, lambda u: torch.full_like(u, 2.0))),
        pickle.PicklingError,
        "activation 'mine' cannot be pickled: define its functions at the top of a module",
    ),
    refused(
        "a flow of ReLU networks",
        lambda: cl.ConvexPotentialFlow([net(activation="relu")]).log_prob(rows()),
        ValueError,
        "relu has no second derivative: ask for value or gradient only, or use activation='softplus'",
    ),
    refused(
        "a `PICNN` without contexts",
        lambda: cl.PICNN(2, context_dim=0),
        ValueError,
        "context_dim must be at least 1; got 0",
    ),
    refused(
        "a `PICNN` with `context_hidden=(0,)`",
        lambda: cl.PICNN(2, context_dim=1, context_hidden=(0,)),
        ValueError,
        "context_hidden must be positive widths; got (0,)",
    ),
    refused(
        "60 points and 59 contexts for a `PICNN`",
        lambda: picnn()(rows(), rows(59, 3)),
        ValueError,
        "expected 59 samples, one for each context; got 60",
    ),
    refused(
        "a `ConvICNN` with a kernel of 4",
        lambda: cl.ConvICNN((1, 8, 8), kernel=4),
        ValueError,
        "kernel must be odd and positive; got 4",
    ),
    refused(
        'a `ConvICNN` with `pooling="max"`',
        lambda: cl.ConvICNN((1, 8, 8), pooling="max"),
        ValueError,
        "unknown pooling 'max'; known: mean, none",
    ),
    refused(
        "a `ConvICNN` of a shape without channels",
        lambda: cl.ConvICNN((8, 8)),
        ValueError,
        "shape must be (channels, height, width); got (8, 8)",
    ),
    refused(
        "a `ConvICNN` with strides for other layers",
        lambda: cl.ConvICNN((1, 8, 8), channels=(2, 2), strides=(1, 1, 1)),
        ValueError,
        "expected 2 strides, one for each hidden layer; got 3",
    ),
    refused(
        "the conjugate of a network with alpha 0",
        lambda: net(strong_convexity=0.0).emit().conjugate(rows()),
        ValueError,
        "conjugate needs strong_convexity > 0: with alpha = 0 it need not exist",
    ),
    refused(
        "the log-determinant of a network with alpha 0",
        lambda: net(strong_convexity=0.0).emit().logdet(rows()),
        ValueError,
        "logdet needs strong_convexity > 0: with alpha = 0 the Hessian may be singular",
    ),
    refused(
        '`method="fast"` of a log-determinant',
        lambda: net().emit().logdet(rows(), method="fast"),
        ValueError,
        'method must be "exact", "estimated" or None; got \'fast\'',
    ),
    refused(
        "an estimated log-determinant of 0 probes",
        lambda: net().emit().logdet(rows(), method="estimated", probes=0),
        ValueError,
        "an estimate needs at least 1 probe; got 0",
    ),
    refused(
        "`calibrate` on one row",
        lambda: net().calibrate(rows(1)),
        ValueError,
        "calibrate needs at least 2 rows; got 1",
    ),
]

SOURCES: list[Case] = [
    refused(
        "a weight source of a module that declares nothing",
        lambda: cl.Softplus(nn.Linear(2, 2)),
        ValueError,
        "Linear does not declare which parameters must be non-negative: pass names=[...]",
    ),
    refused(
        "a weight source with `names=[]`",
        lambda: cl.Softplus(nn.Linear(2, 2), names=[]),
        ValueError,
        "names is empty: nothing to keep non-negative",
    ),
    refused(
        "a weight source of a name that is not there",
        lambda: cl.Softplus(nn.Linear(2, 2), names=["w"]),
        ValueError,
        "'w' is not a parameter of Linear; it has: weight, bias",
    ),
    refused(
        "a weight source of a parameter of which the module takes softplus itself",
        lambda: cl.Softplus(latents(), names=["weight"]),
        ValueError,
        "'weight' must be non-negative; its smallest entry is -4: a source gives the module the weight "
        "itself, so a module that takes softplus of a parameter must use it as it is and start it at a "
        "weight",
        kin="a weight below zero",
    ),
    refused(
        "a projected weight below zero",
        lambda: negative(cl.Projected(net())).weights(),
        ValueError,
        "'outer' must be non-negative; its smallest entry is -1: attach(optimizer) before training, "
        "or call project()",
    ),
    refused(
        'a lift of `summary="mean"`',
        lambda: lift(summary="mean"),
        ValueError,
        "unknown summary 'mean'; known: 'deepsets', 'moments'",
    ),
    refused(
        "a lift with `settle_window=(0.9, 0.1)`",
        lambda: lift(settle_window=(0.9, 0.1)),
        ValueError,
        "settle_window must be two increasing fractions of training; got (0.9, 0.1)",
    ),
    refused(
        "a lift with `free_gain=0`",
        lambda: lift(free_gain=0.0),
        ValueError,
        "free_gain must be positive and finite; got 0.0",
    ),
    refused(
        "a lift with `readout_scale=0`",
        lambda: lift(readout_scale=0.0),
        ValueError,
        'readout_scale must be positive or "fan_in"; got 0.0',
    ),
    refused(
        'a lift with `psi="exp"`',
        lambda: lift(psi="exp"),
        ValueError,
        "unknown psi 'exp'; known: softplus, square",
    ),
    refused(
        "a lift frozen without training rows",
        lambda: lift().freeze(),
        ValueError,
        "an unfrozen lift has no weights of its own: freeze on training data or pass batch=",
    ),
    refused(
        "the weights of a lift without a batch",
        lambda: lift().weights(),
        ValueError,
        "an unfrozen lift has no weights of its own: freeze on training data or pass batch=",
        kin="its weights, not a frozen network",
    ),
    refused(
        "the weights of a lift of an empty batch",
        lambda: lift().weights(rows()[:0]),
        ValueError,
        "cannot compute weights from an empty batch",
    ),
    refused(
        "the weights of a lift of rows of another width",
        lambda: lift().weights(rows(dim=3)),
        ValueError,
        "expected a batch of 2 columns; got (60, 3)",
    ),
    refused(
        "a lift of a module that tells no number of inputs",
        lambda: cl.Lift(positive(nn.Linear(2, 2)), names=["weight"]),
        ValueError,
        "Linear does not declare its number of inputs: pass dim=",
    ),
    refused(
        "`Centred` of a network without a weight source",
        lambda: cl.Centred(net()),
        TypeError,
        "expected a weight source of an ICNN; got ICNN of ICNN",
    ),
    refused(
        "`Centred` with `momentum=0`",
        lambda: cl.Centred(cl.Softplus(net()), momentum=0.0),
        ValueError,
        "momentum must lie in (0, 1]; got 0.0",
    ),
    refused(
        "`freeze` of a linear layer",
        lambda: cl.freeze(nn.Linear(2, 2)),
        TypeError,
        "expected an architecture, a weight source or a task; got Linear",
    ),
]

TASKS: list[Case] = [
    refused(
        "a flow without blocks",
        lambda: cl.ConvexPotentialFlow([]),
        ValueError,
        "a flow needs at least one block",
    ),
    refused(
        "a flow of blocks of other dimensions",
        lambda: cl.ConvexPotentialFlow([net(2), net(3)]),
        ValueError,
        "the blocks of a flow must have one dimension; got 2, 3",
    ),
    refused(
        "a flow of a block with alpha 0",
        lambda: cl.ConvexPotentialFlow([net(strong_convexity=0.0)]),
        ValueError,
        "the blocks of a flow need strong_convexity > 0: their gradients must be invertible",
    ),
    refused(
        "a flow of a linear layer",
        lambda: cl.ConvexPotentialFlow([nn.Linear(2, 2)]),
        TypeError,
        "expected an ICNN or a weight source of one; got Linear",
        kin="not a PICNN, but no network at all",
    ),
    refused(
        "a flow with `chunk=0`",
        lambda: cl.ConvexPotentialFlow([net()], chunk=0),
        ValueError,
        "chunk must be at least 1 row, or None; got 0",
    ),
    refused(
        "the log-density of a flow whose lift has settled and is not frozen",
        lambda: settled().log_prob(rows()),
        ValueError,
        "an unfrozen lift has no weights of its own: freeze on training data or pass batch=",
    ),
    refused("-1 samples", lambda: flow().freeze().sample(-1), ValueError, "cannot draw -1 samples"),
    refused(
        "2.5 samples",
        lambda: flow().freeze().sample(2.5),
        TypeError,
        "expected a whole number of samples; got 2.5",
    ),
    refused(
        "the log-density of points a million deviations out, of a steep flow",
        lambda: steep().log_prob(1e6 * rows()),
        FloatingPointError,
        "the log-density is below the range of the flow's dtype at 60 of 60 rows (0, 1, 2, 3, 4, "
        "...): remove them, or use flow.double()",
    ),
    refused(
        "the map of points at 1e30, of a steep flow",
        lambda: steep()(1e30 * rows()),
        FloatingPointError,
        "the Hessian is not positive definite in float64 at 60 of 60 rows (0, 1, 2, 3, 4, ...): "
        "raise strong_convexity or look for non-finite inputs",
    ),
    refused(
        "the density of rows of three columns, drawn as regions",
        lambda: region_outlines(density(3).freeze()),
        ValueError,
        "outlines are drawn in two dimensions; the density has 3",
    ),
    refused(
        "a density read from a file, trained on",
        lambda: reloaded().loss(rows(dim=1)),
        RuntimeError,
        "a density from a file has no objective: set its `objective` to train it, for instance to "
        "objective_named('mle', dim)",
    ),
    refused(
        "an ensemble without members",
        lambda: cl.Ensemble([]),
        ValueError,
        "an ensemble needs at least one member",
    ),
    refused(
        "an ensemble of other dimensions",
        lambda: cl.Ensemble([flow().freeze(), flow(3).freeze()]),
        ValueError,
        "the members of an ensemble must have one dimension; got 2, 3",
    ),
    refused(
        "an ensemble of other dtypes",
        lambda: cl.Ensemble([flow().freeze(), flow().double().freeze()]),
        ValueError,
        "the members of an ensemble must have one dtype; got float32, float64",
    ),
    refused(
        "an ensemble of linear layers",
        lambda: cl.Ensemble([nn.Linear(2, 2)]),
        TypeError,
        "expected frozen convex-potential flows; got Linear",
    ),
    refused(
        "an ensemble of a flow in training",
        lambda: cl.Ensemble([flow()]),
        ValueError,
        "a member of the ensemble is still in training: freeze it first",
    ),
    refused(
        "`normalise` of a density in training",
        lambda: density().normalise(),
        ValueError,
        "only a frozen density keeps its log Z: call freeze first",
    ),
    refused(
        "a credible region of level 1.5",
        lambda: density().freeze().credible_region(1.5),
        ValueError,
        "the level must lie between 0 and 1; got 1.5",
    ),
    refused(
        "a conditional density of an unknown objective",
        lambda: conditional(objective="map"),
        ValueError,
        "unknown objective 'map'; known: score, mle",
    ),
    refused(
        "a conditional density in three columns with `mle`",
        lambda: cl.ConditionalDensity(picnn(3), objective="mle"),
        ValueError,
        "objective 'mle' needs dim 1 or 2; got dim 3: use objective='score'",
    ),
    refused(
        "a conditional density with alpha 0",
        lambda: cl.ConditionalDensity(picnn(strong_convexity=0.0)),
        ValueError,
        "a conditional density needs strong_convexity > 0: exp(-f) must have a finite integral for "
        "every context",
    ),
    refused(
        "a `FlowTransform` of a density",
        lambda: cl.FlowTransform(density().freeze()),
        TypeError,
        "expected a ConvexPotentialFlow; got LogConcaveDensity",
    ),
    refused(
        "a `FlowTransform` of unfrozen lifts",
        lambda: cl.FlowTransform(lifted()),
        ValueError,
        "an unfrozen lift has no density of its own: pass flow.freeze(data)",
    ),
    refused(
        "a `FlowTransform` of points of another width",
        lambda: cl.FlowTransform(flow().freeze())(rows(dim=3)),
        ValueError,
        "expected (..., 2) points; got (60, 3)",
    ),
    refused(
        "a density to be exported as a flow",
        lambda: cl.export.log_prob_program(density().freeze()),
        TypeError,
        "expected a ConvexPotentialFlow; got LogConcaveDensity",
    ),
    refused(
        "a flow in training to be exported",
        lambda: cl.export.log_prob_program(flow()),
        ValueError,
        "this flow is still in training: export flow.freeze(data)",
    ),
    refused(
        "one row of 60 that a flow cannot map, of rows taken 8 at a time",
        lambda: mapped_rows(59),
        FloatingPointError,
        "the Hessian is not positive definite in float64 at 1 of 4 rows (59): raise strong_convexity "
        "or look for non-finite inputs",
        owed_to="convexlift.checks.rows_from",
        instead=lambda start: contextlib.nullcontext(),
    ),
]

OBJECTIVES: list[Case] = [
    refused(
        '`objective="map"` of a density',
        lambda: density(objective="map"),
        ValueError,
        "unknown objective 'map'; known: mle, importance, importance-flow, chains, score, denoising, nce",
        kin="another choice",
    ),
    refused(
        "quadrature in three columns",
        lambda: Quadrature(3),
        ValueError,
        "exact quadrature needs dim 1 or 2; got dim 3",
    ),
    refused(
        "an unknown proposal of importance sampling",
        lambda: ImportanceSampling(2, proposal="cauchy"),
        ValueError,
        "unknown proposal 'cauchy'; known: gaussian, flow",
    ),
    refused(
        "denoising without noise", lambda: Denoising(0.0), ValueError, "the noise must be positive; got 0.0"
    ),
    refused(
        "chains that nobody started",
        lambda: Chains(2).eval()(net().emit(), rows()),
        ValueError,
        "the chains have not been started: call initialise with training rows",
    ),
    refused(
        "chains of one chain",
        lambda: Chains(2, chains=1),
        ValueError,
        "needs at least 2 chains and 1 move; got 1 and 4",
    ),
    refused(
        "importance sampling with one draw",
        lambda: ImportanceSampling(2, draws=1),
        ValueError,
        "importance sampling needs at least 2 draws; got 1",
    ),
]

CASES = [*ARCHITECTURES, *SOURCES, *TASKS, *OBJECTIVES]

TRANSPORT: list[Case] = [
    answered(
        "a transport map between samples a million apart",
        lambda: round(apart().distance(rows(), rows() + 1e6).w2 / 1e6, 3),
        1.414,
        "a map onto the far sample, and the distance to it",
        "convexlift.tasks.linear.Linear.forward",
        lambda self, x, dtype=None: (x.double() @ self.matrix).to(dtype or x.dtype),
    ),
    refused(
        "a transport map to fewer rows than columns",
        lambda: fit(transport(), cl.Unpaired(rows(), rows(2))),
        ValueError,
        "2 columns need at least 3 target samples; got 2",
    ),
    refused(
        "a transport map onto a plane",
        lambda: fit(transport(), cl.Unpaired(rows(), rows()[:, :1].expand(60, 2))),
        ValueError,
        "target samples: column ... is a linear combination of the others: remove it",
        kin="of two samples",
    ),
    refused(
        "a transport map of rows that are no pair of samples",
        lambda: fit(transport(), rows()),
        TypeError,
        "expected two samples, Unpaired(xs, xt); got Tensor",
    ),
    refused(
        "a transport map of a network without strong convexity",
        lambda: cl.TransportMap(net(strong_convexity=0.0)),
        ValueError,
        "a transport map needs strong_convexity > 0: without it conjugates may be infinite",
    ),
    refused(
        "where the rows are at time 2 of a transport",
        lambda: transport().interpolate(rows(), 2.0),
        ValueError,
        "t must be a number in [0, 1]; got 2.0",
    ),
]
