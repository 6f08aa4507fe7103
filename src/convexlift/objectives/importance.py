"""Maximum likelihood with log Z by importance sampling from a proposal that is trained alongside."""

from __future__ import annotations

import math
from typing import cast, final

import torch
from torch import Tensor

from convexlift.architectures import ICNN, Potential
from convexlift.integration.gaussian import fitted
from convexlift.objectives.chains import Chains
from convexlift.objectives.objective import Objective, mean, share
from convexlift.objectives.score import noise_like
from convexlift.sources import Squared

# The proposal's covariance is this many times what it follows, so that it covers the tails.
_SPREAD = 1.2
# How far the proposal's moments go towards those of the weighted draws in a step.
_PACE = 0.05
# Below this share of effective draws for long, chains take over.
_LEAST_SHARE = 0.02
_VALIDATION_DRAWS = 8192


@final
class ImportanceSampling(Objective):
    """The negative log-likelihood with Z = E_q[ exp(-f(y)) / q(y) ] over fresh draws y of a proposal q.

    q is a Gaussian that follows the weighted moments of its own draws; with ``proposal="flow"`` a
    convex-potential flow that is trained alongside to lessen E_q[ log q(y) + f(y) ]. The effective sample
    size of the weights is kept; where it stays below 2 % of the draws (a Gaussian far from exp(-f), as in
    high dimension), persistent chains take over for the rest of the training: see ``Chains``.

    Args:
        dim: d.
        proposal: "gaussian" or "flow".
        draws: of the proposal, in a step.

    Raises:
        ValueError: another proposal, or fewer than two draws.

    Source: Huang, Chen, Tsirigotis and Courville, "Convex potential flows", ICLR 2021 (the flow).

    Example:
        >>> import convexlift as cl
        >>> f, t = cl.ICNN(3, hidden=(8,), seed=0).emit(), torch.randn(100, 3)
        >>> objective = ImportanceSampling(3)
        >>> objective.initialise(f, t)
        >>> objective(f, t).shape, objective.effective_share > 0.02
        (torch.Size([]), True)
    """

    likelihood = True
    mean: Tensor
    covariance: Tensor
    effective: Tensor
    fallen: Tensor

    def __init__(self, dim: int, proposal: str = "gaussian", draws: int = 1024) -> None:
        super().__init__()
        if proposal not in ("gaussian", "flow"):
            raise ValueError(f"unknown proposal {proposal!r}; known: gaussian, flow")
        if draws < 2:
            raise ValueError(f"importance sampling needs at least 2 draws; got {draws}")
        self.dim, self.proposal, self.draws = dim, proposal, draws
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        # The effective share of the draws, averaged over recent steps, and whether chains took over.
        self.register_buffer("effective", torch.tensor(1.0))
        self.register_buffer("fallen", torch.tensor(False))
        self.flow = Squared(ICNN(dim, hidden=(32, 32), strong_convexity=1.0)) if proposal == "flow" else None
        self.chains = Chains(dim)

    @property
    def effective_share(self) -> float:
        return self.chains.effective_share if bool(self.fallen) else float(self.effective)

    def initialise(self, potential: Potential, t: Tensor) -> None:
        start = fitted(t)
        self.mean.copy_(start.mean)
        self.covariance.copy_(start.factor @ start.factor.T)
        self.chains.initialise(potential, t)

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        if bool(self.fallen):
            return self.chains(potential, t, weights)
        y, log_q, extra = self._propose(potential)
        log_weights = -potential.value(y) - log_q
        log_z = torch.logsumexp(log_weights, 0) - math.log(len(y))
        if self.training and self._follow(y, log_weights.detach()):
            self.fallen.fill_(True)
            self.chains.restart(potential)  # they are where the potential was at the start
        return mean(potential.value(t), weights) + share(weights) * log_z + extra

    @torch.no_grad()
    def estimate(self, potential: Potential) -> Tensor:
        if bool(self.fallen):
            return self.chains.estimate(potential)
        y, log_q = self._push(noise_like(self.mean.expand(_VALIDATION_DRAWS, -1), training=False))
        return torch.logsumexp(-potential.value(y) - log_q, 0) - math.log(len(y))

    def _propose(self, potential: Potential) -> tuple[Tensor, Tensor, Tensor | float]:
        """Draws without gradient, their log q, and a term of value zero whose gradient trains the flow."""
        y, log_q = self._push(noise_like(self.mean.expand(self.draws, -1), self.training))
        if self.flow is None or not torch.is_grad_enabled():
            return y.detach(), log_q.detach(), 0.0
        fixed = Potential(potential.architecture, {name: x.detach() for name, x in potential.tensors.items()})
        divergence = (fixed.value(y) + log_q).mean()
        return y.detach(), log_q.detach(), divergence - divergence.detach()

    def _push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The proposal's draws from standard normal noise, and their log q."""
        factor = torch.linalg.cholesky(_SPREAD * self.covariance)
        moved, stretch = noise, noise.new_zeros(())
        if self.flow is not None:
            flow = cast(Potential, self.flow.emit())
            moved, stretch = flow.gradient_and_logdet(noise, seed=None if self.training else 0)
        log_noise = -noise.square().sum(1) / 2 - self.dim * math.log(2 * math.pi) / 2
        return self.mean + moved @ factor.T, log_noise - stretch - factor.diagonal().log().sum()

    @torch.no_grad()
    def _follow(self, y: Tensor, log_weights: Tensor) -> bool:
        """Move the Gaussian towards the weighted draws; whether they are too few in effect to go on."""
        w = torch.softmax(log_weights, 0)
        effective = 1 / (len(w) * w.square().sum())
        self.effective.lerp_(effective.to(self.effective), _PACE)
        if self.flow is None and float(effective) > _LEAST_SHARE:
            centre = w @ y
            spread = y - centre
            self.mean.lerp_(centre, _PACE)
            self.covariance.lerp_((spread * w[:, None]).T @ spread, _PACE)
        return float(self.effective) < _LEAST_SHARE

    def extra_repr(self) -> str:
        return f"proposal={self.proposal!r}, draws={self.draws}"
