"""Whether the emitted weights fluctuate together with the gradient: the cross-covariance of the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.mechanism.observing import (
    Loss,
    binding,
    centred,
    flat,
    gradients,
    observing,
    probe_calls,
    recording,
    weight_sources,
)
from convexlift.seeds import generator_on, reseed
from convexlift.sources import Lift, WeightSource


@final
@dataclass(frozen=True)
class CrossCovariance:
    """What ``coupling`` says of one cross-covariance Sigma = Cov(theta, g), a d x d matrix never formed.

    Attributes:
        trace: tr Sigma with its sign; negative where weights rise as their gradient falls.
        trace_error: standard error of the trace, over probes.
        norm: the Frobenius norm |Sigma|. It is biased upward: also without coupling it is not zero.
        asymmetry: |(Sigma - Sigma') / 2| / |Sigma|, between 0 (symmetric) and 1; 0 where Sigma is zero.
        p_value: of the permutation test of Sigma = 0, which pairs each theta with the g of another probe and
            asks how often |Sigma| is at least as large.
    """

    trace: float
    trace_error: float
    norm: float
    asymmetry: float
    p_value: float


@final
@dataclass(frozen=True)
class Coupling:
    """Sigma, split as Sigma = Sigma_batch + Sigma_curv; see ``coupling``.

    Attributes:
        total: Sigma, of theta(X) and g(X; theta(X)).
        batch: Sigma_batch, of theta(X) and g(X; theta_bar).
        curvature: Sigma_curv, the rest: noise of theta times curvature of the loss.
    """

    total: CrossCovariance
    batch: CrossCovariance
    curvature: CrossCovariance


@guarded(training=True)
def coupling(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    emit_from: Iterable[Any] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Coupling:
    """The cross-covariance of the emitted latents and the loss gradient over probe batches, split in two.

        Sigma       = Cov_X(theta(X), g(X; theta(X))),    g(X; theta) = d loss(X) / d theta,
        Sigma_batch = Cov_X(theta(X), g(X; theta_bar)),   Sigma_curv = Sigma - Sigma_batch,

    centred, with divisor n - 1, theta_bar the mean of theta(X) over the probes. Traces and norms are exact,
    from n x n matrices of inner products. theta holds every emitted latent of every source, as the model
    emits it in train mode; a source that does not read the batch gives zeros. The gradient is taken in eval
    mode with the latents held. Model, ``.grad`` and random state are left as they were, to the bit.

    Args:
        model: a weight source, or a module that holds some, such as a task.
        loss: a scalar function of a batch that evaluates the model, such as ``task.loss``.
        batches: n >= 3 probe batches, each of its own memory.
        emit_from: n batches to emit theta from instead, passed as ``loss(batch, emit_from=...)``.
        permutations: re-pairings in each permutation test.
        seed: of the permutations, and of a lift's noise.

    Shapes: n probes and d latents take about 4 n d numbers in float64.

    Raises:
        ValueError: fewer than three probes; entries, a loss or a gradient that are not finite; probes that
            share memory; no weight source; a loss that is no scalar or does not read the model; another
            number of batches in ``emit_from``, or none for a lift with ``coupling="independent"``.

    Source: "The lift" (arXiv 2605.24274); the test is that of Gretton et al., "A kernel statistical test of
        independence", NeurIPS 2007, with linear kernels.

    Example:
        >>> import convexlift as cl
        >>> net, x = cl.ICNN(1, hidden=(8, 8), seed=0), torch.randn(640, 1).exp()
        >>> task = cl.ConvexRegression(cl.Lift(net, seed=0))
        >>> batches = [(part, part[:, 0] ** 2) for part in x.split(64)]
        >>> task.initialise((x, x[:, 0] ** 2))
        >>> found = coupling(task, task.loss, batches)
        >>> abs(found.total.trace - found.batch.trace - found.curvature.trace) < 1e-9
        True
        >>> coupling(cl.Softplus(net), lambda x: cl.Softplus(net)(x).mean(), x.split(64))
        Traceback (most recent call last):
        ...
        ValueError: loss does not depend on the weights of the model
    """
    calls = probe_calls("coupling", model, batches, emit_from)
    sources = weight_sources(model, "coupling")
    with observing(model):
        reseed(next(model.parameters()).device, seed)
        model.train()
        emitted = [_latents(sources, loss, batch, options) for batch, options in calls]
    thetas = torch.stack([flat(latents) for latents in emitted])
    fluctuation = centred(thetas)
    mean = (thetas[0].double() - fluctuation[0]).to(thetas)
    held = [part.view_as(like) for part, like in zip(_split(mean, emitted[0]), emitted[0], strict=True)]
    with observing(model):
        model.eval()
        at_mean = [_gradient(sources, loss, batch, held) for batch, _ in calls]
        pairs = zip(calls, emitted, strict=True)
        at_own = [_gradient(sources, loss, batch, own) for (batch, _), own in pairs]
    batch, total = centred(torch.stack(at_mean)), centred(torch.stack(at_own))
    generator = generator_on(seed=seed)
    orders = [torch.randperm(len(calls), generator=generator, device="cpu") for _ in range(permutations)]
    return Coupling(*(_cross_covariance(fluctuation, g, orders) for g in (total, batch, total - batch)))


def _cross_covariance(theta: Tensor, g: Tensor, orders: Sequence[Tensor]) -> CrossCovariance:
    """Of centred rows theta (n, d) and g (n, d), in float64."""
    n = len(theta)
    inner, of_theta, of_g = (theta @ g.T).cpu(), (theta @ theta.T).cpu(), (g @ g.T).cpu()
    # |Sigma|^2 = sum K_theta K_g and tr Sigma^2 = sum C C' with C = theta g', all times 1 / (n - 1)^2.
    squared = float((of_theta * of_g).sum().clamp_min(0))
    skew = max((squared - float((inner * inner.T).sum())) / 2, 0.0)
    permuted = [float((of_theta[order][:, order] * of_g).sum()) for order in orders]
    at_least = sum(value >= squared * (1 - 1e-9) for value in permuted)
    return CrossCovariance(
        trace=float(inner.trace()) / (n - 1),
        trace_error=float(inner.diagonal().std()) * n**0.5 / (n - 1),
        norm=squared**0.5 / (n - 1),
        asymmetry=(skew / squared) ** 0.5 if squared else 0.0,
        p_value=(1 + at_least) / (1 + len(orders)),
    )


@torch.no_grad()
def _latents(sources: Sequence[WeightSource], loss: Loss, batch: Any, options: Any) -> list[Tensor]:
    """The latents of every source, in order, as the model emits them for this call of the loss."""
    with recording([source for source in sources if isinstance(source, Lift)], "latents") as seen:
        loss(batch, **options)
    latents: list[Tensor] = []
    for source in sources:
        if not isinstance(source, Lift):
            latents += [latent.detach() for latent in source.latents]  # type: ignore[union-attr]
        elif source in seen:
            latents += seen[source]
        else:
            raise ValueError("loss does not depend on the weights of the model")
    return latents


def _gradient(sources: Sequence[WeightSource], loss: Loss, batch: Any, latents: Sequence[Tensor]) -> Tensor:
    """d loss / d theta at these latents, as one vector (d,)."""
    leaves = [latent.detach().clone().requires_grad_() for latent in latents]
    remaining = iter(leaves)
    weights = {
        source: {name: _weight(source, name, next(remaining)) for name in _emitted(source)}
        for source in sources
    }
    with binding(weights):
        return flat(gradients(loss, batch, leaves))


def _emitted(source: WeightSource) -> tuple[str, ...]:
    return source.emitted if isinstance(source, Lift) else source.names


def _weight(source: WeightSource, name: str, latent: Tensor) -> Tensor:
    if source.psi is None or name not in source.names:
        return latent
    return source.scale(name) * source.psi.value(latent)


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(vector.split([tensor.numel() for tensor in like]))
