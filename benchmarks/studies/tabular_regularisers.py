"""Ways to keep a density from overfitting a small table, as wrappers that `convexlift.fit` trains."""

from __future__ import annotations

import copy
from typing import Any, Self, cast

import torch
from tabular_marginals import Marginals
from torch import Tensor, nn

from convexlift.architectures import ICNN, Potential
from convexlift.sources import WeightSource
from convexlift.tasks.standardise import Standardiser, Whitener

FRONTS: dict[str, Any] = {"columns": Standardiser, "covariance": Whitener, "marginals": Marginals}


class DroppedUnits(nn.Module):
    """A weight source that leaves hidden units out while it trains: one mask a step, for the whole batch.

    A unit k of layer l stays with probability 1 - p, and then counts 1 / (1 - p) times: column k of W_{l+1}
    is multiplied by m_k / (1 - p) >= 0, so that every step trains a convex function. The frozen network has
    all units.
    """

    def __init__(self, source: WeightSource, probability: float) -> None:
        super().__init__()
        self.source = source
        self.architecture = cast(ICNN, source.architecture)
        self.probability = probability

    @property
    def dim(self) -> int:
        return self.architecture.dim

    def initialise(self, x: Tensor) -> None:
        self.source.initialise(x)

    def emit(self, batch: Tensor | None = None) -> Potential:
        potential = cast(Potential, self.source.emit(batch))
        if not (self.training and torch.is_grad_enabled()):
            return potential
        tensors = dict(potential.tensors)
        for name in self.architecture.nonnegative:
            kept = torch.rand(tensors[name].shape[-1], device=tensors[name].device) >= self.probability
            tensors[name] = tensors[name] * kept / (1 - self.probability)
        return Potential(potential.architecture, tensors)

    def freeze(self, data: Tensor | None = None) -> nn.Module:
        return self.source.freeze(data)

    def settle(self, data: Tensor) -> None:
        self.source.settle(data)

    def set_progress(self, t: float) -> None:
        self.source.set_progress(t)


class Prepared(nn.Module):
    """A density of rows that a fixed map prepares, trained with noise on them; frozen, it has none.

    log p(x) = log q(t) + log |dt/dx| with q the density within and t what ``front`` makes of x: "columns"
    (standardised), "covariance" (whitened) or "marginals" (each column nearly normal). A
    training step sees t + ``jitter`` times a standard normal, which fades linearly to nothing over training
    where ``fading``. With ``averaging`` the frozen model has weights averaged over about the last
    1 / (1 - averaging) steps.
    """

    def __init__(
        self,
        density: nn.Module,
        dim: int,
        *,
        front: str = "columns",
        jitter: float = 0.0,
        fading: bool = False,
        averaging: float = 0.0,
    ) -> None:
        super().__init__()
        self.density: Any = density
        self.average: Any = copy.deepcopy(density).requires_grad_(False) if averaging else None
        self.front: Any = FRONTS[front](dim)
        self.jitter, self.fading, self.progress = jitter, fading, 0.0
        self.averaging, self.updates = averaging, 0

    def initialise(self, rows: Tensor) -> None:
        if not bool(self.front.fitted):
            self.front.fit(rows)
            self.density.initialise(self.map(rows)[0])
            if self.average is not None:
                self.average.load_state_dict(self.density.state_dict())

    def loss(self, batch: Tensor) -> Tensor:
        """The mean of -log p over the batch, in nats."""
        t, jacobian = self.map(batch)
        if self.training and torch.is_grad_enabled():
            self._follow()
            if self.jitter:
                left = 1 - self.progress if self.fading else 1.0
                t = t + self.jitter * left * torch.randn_like(t)
        found: Tensor = self.density.loss(t) - jacobian.mean()
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        t, jacobian = self.map(x)
        found: Tensor = self.density.log_prob(t) + jacobian
        return found

    def map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t, (N, d), and log |dt/dx|, (N,) or a scalar."""
        if isinstance(self.front, Marginals):
            t, jacobian = self.front(x)
            return t, jacobian
        return self.front(x), self.front.log_scale_jacobian

    def set_progress(self, t: float) -> None:
        self.progress = t

    def freeze(self, rows: Tensor | None = None) -> Self:
        trained = self.density if self.average is None else self.average
        frozen = copy.copy(self)
        parts = {"density": trained.freeze(None), "front": copy.deepcopy(self.front), "average": None}
        frozen._modules = parts
        return frozen.eval()

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is None:
            return
        self.updates += 1
        weight = max(1 - self.averaging, 9 / (self.updates + 9))
        for mine, theirs in zip(self.average.parameters(), self.density.parameters(), strict=True):
            mine.lerp_(theirs, weight)
        for mine, theirs in zip(self.average.buffers(), self.density.buffers(), strict=True):
            mine.copy_(theirs)
