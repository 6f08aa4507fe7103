"""How one optimiser step moves the effective weights: on average, and at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.mechanism.observing import (
    Loss,
    centred,
    flat,
    gradients,
    observing,
    probe_calls,
    recording,
    weight_sources,
)
from convexlift.seeds import reseed
from convexlift.sources import Projected, WeightSource


@final
@dataclass(frozen=True)
class UpdateDiffusion:
    """Drift and diffusion of the effective weights over one step; see ``update_diffusion``.

    Attributes:
        drift: length of the mean change of W.
        drift_error: root mean square error of that mean, over probes; a drift below it is not told from zero.
        diffusion: trace of the covariance of W after the step.
        emission: the part of it that is there without a step, trace of the covariance of W before; zero for
            a source that does not read the batch.
    """

    drift: float
    drift_error: float
    diffusion: float
    emission: float


@guarded(training=True)
def update_diffusion(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    lr: float,
    emit_from: Iterable[Any] | None = None,
    seed: int = 0,
) -> UpdateDiffusion:
    """Mean and covariance, over probe batches, of the effective weights after one step of plain SGD.

        W_k = W(p - lr d loss(X_k) / d p; X_{k+1}),    drift = |mean_k (W_k - W(p; X_{k+1}))|,
        diffusion = tr Cov_k(W_k),    emission = tr Cov_k(W(p; X_k)),

    each from the same parameters p; X_{k+1}, the next probe, stands for the batch that emits after the step
    (the last is followed by the first). W holds every constrained weight, so direct and lifted sources of one
    architecture are compared in one space. Projection follows the step. Model, ``.grad`` and random state are
    left as they were, to the bit.

    Args:
        model: a weight source, or a module that holds some, such as a task.
        loss: a scalar function of a batch that evaluates the model, such as ``task.loss``.
        batches: at least three probe batches, each of its own memory.
        lr: the learning rate of the step, of all parameters.
        emit_from: as many batches to emit from instead, passed as ``loss(batch, emit_from=...)``.
        seed: of a lift's noise.

    Raises:
        ValueError: see ``coupling``; lr is not positive.

    Source: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference", JMLR
        2017 (drift and diffusion of SGD).

    Example:
        >>> import convexlift as cl
        >>> net = cl.ICNN(2, hidden=(8, 8), seed=0)
        >>> batches = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)).split(64)
        >>> direct, lifted = cl.Softplus(net), cl.Lift(net, seed=0)
        >>> found = [update_diffusion(s, lambda x: s(x).square().mean(), batches, lr=0.01)
        ...          for s in (direct, lifted)]
        >>> found[0].emission, found[1].emission > 0
        (0.0, True)
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive; got {lr}")
    calls = probe_calls("update_diffusion", model, batches, emit_from)
    sources = weight_sources(model, "update_diffusion")
    parameters = [p for p in model.parameters() if p.requires_grad]
    before, change = [], []
    for k, (batch, options) in enumerate(calls):
        following = calls[(k + 1) % len(calls)]
        with observing(model):
            model.train()
            reseed(parameters[0].device, seed, k)
            before.append(_weights(sources, loss, *following))
            step = gradients(loss, batch, parameters, **options)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, step, strict=True):
                    parameter.sub_(gradient, alpha=lr)
            for source in sources:
                if isinstance(source, Projected):
                    source.project()
            # The noise of a lift is that of the emission before the step.
            reseed(parameters[0].device, seed, k)
            change.append(_weights(sources, loss, *following) - before[-1])
    moved, emitted = torch.stack(change).double(), torch.stack(before)
    return UpdateDiffusion(
        drift=float(moved.mean(0).norm()),
        drift_error=(_spread(moved) / len(moved)) ** 0.5,
        diffusion=_spread(emitted.double() + moved),
        emission=_spread(emitted),
    )


@torch.no_grad()
def _weights(sources: Sequence[WeightSource], loss: Loss, batch: Any, options: Any) -> Tensor:
    """The constrained weights that the model emits for this call of the loss, as one vector."""
    with recording(sources, "weights") as seen:
        loss(batch, **options)
    if len(seen) < len(sources):
        raise ValueError("loss does not depend on the weights of the model")
    return flat(seen[source][name] for source in sources for name in source.names)


def _spread(rows: Tensor) -> float:
    """The trace of the rows' covariance."""
    return float(centred(rows).square().sum()) / (len(rows) - 1)
