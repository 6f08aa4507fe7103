"""Maximum likelihood with persistent Langevin chains: the gradient of log Z is an average over them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import final

import torch
from torch import Tensor

from convexlift.architectures import Potential
from convexlift.integration.annealing import short_annealing
from convexlift.integration.gaussian import Gaussian, fitted, refitted
from convexlift.integration.langevin import TARGET, first_step, langevin_step, start_state, together
from convexlift.objectives.objective import EVALUATION_SEED, Objective, mean, share
from convexlift.seeds import generator_on

# Below this share of effective chains they are drawn anew from among themselves.
_LEAST_SHARE = 0.5
_BURN_IN = 30
# The annealing of a validation starts from a Gaussian this many times as wide as the chains.
_SPREAD = 1.2
# How fast log h follows the acceptance.
_PACE = 0.1


@final
class Chains(Objective):
    """The negative log-likelihood, its gradient mean grad f(t) - E_p[grad f] from persistent MALA chains.

    Between steps f moves, by the optimiser and, with a lift, by the batch: the chains are reweighted by
    exp(f_old - f_new), drawn anew from among themselves where their effective sample size falls below a
    half, and moved by Metropolis-adjusted Langevin steps, which leave exp(-f) / Z alone. exp(-f) is
    log-concave, so they mix. The value of the loss is mean f(t) - E_p f + H, where the entropy
    H = E_p f + log Z is brought up to date whenever a frozen model is validated; the gradient does not depend
    on H. Without ``initialise`` the chains start from the rows of the first training step.

    Args:
        dim: d.
        chains: how many.
        moves: Langevin steps at each training step.

    Raises:
        ValueError: fewer than two chains, or no moves; in eval mode, chains that were never started.
        FloatingPointError: f is no number where the chains are.

    Source: Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient", ICML 2008; Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers", JRSS B 2006.

    Example:
        >>> import convexlift as cl
        >>> f, t = cl.ICNN(3, hidden=(8,), seed=0).emit(), torch.randn(100, 3)
        >>> objective = Chains(3)
        >>> objective.initialise(f, t)
        >>> objective(f, t).shape
        torch.Size([])
    """

    likelihood = True
    x: Tensor
    value: Tensor
    log_weights: Tensor
    factor: Tensor
    step: Tensor
    entropy: Tensor
    effective: Tensor
    centre: Tensor

    def __init__(self, dim: int, chains: int = 256, moves: int = 4) -> None:
        super().__init__()
        if chains < 2 or moves < 1:
            raise ValueError(f"needs at least 2 chains and 1 move; got {chains} and {moves}")
        self.dim, self.chains, self.moves = dim, chains, moves
        self.register_buffer("x", torch.zeros(chains, dim))
        self.register_buffer("value", torch.full((chains,), torch.nan))  # f at x when it was last moved
        self.register_buffer("log_weights", torch.zeros(chains))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))
        self.register_buffer("step", torch.tensor(0.5))
        self.register_buffer("entropy", torch.tensor(0.0))  # E_p f + log Z at the last validation
        self.register_buffer("effective", torch.tensor(1.0))

    @property
    def effective_share(self) -> float:
        return float(self.effective)

    @torch.no_grad()
    def initialise(self, potential: Potential, t: Tensor) -> None:
        start = fitted(t)
        self.centre.copy_(start.mean)
        self.factor.copy_(start.factor)
        self.step.fill_(first_step(self.dim))
        chosen = torch.randint(len(t), (self.chains,), generator=generator_on(t.device), device=t.device)
        self.x.copy_(t[chosen])
        self.restart(potential)

    @torch.no_grad()
    def restart(self, potential: Potential) -> None:
        """Let the chains settle under a potential that has little to do with the last one."""
        self.log_weights.zero_()
        self._move(potential, _BURN_IN)
        self.estimate(potential)

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        if not self._started():
            if not self.training:
                raise ValueError("the chains have not been started: call initialise with training rows")
            self.initialise(potential, t)
        if self.training:
            self._advance(potential)
        pull = self._mean(potential)
        return mean(potential.value(t), weights) + share(weights) * (self.entropy.clone() - pull)

    @torch.no_grad()
    def estimate(self, potential: Potential) -> Tensor:
        near = Gaussian(self.centre.double(), self.factor.double())
        if self._started():
            w = torch.softmax(self.log_weights.double(), 0)
            # Fewer chains than dimensions, or chains on top of one another, say nothing of the covariance.
            with suppress(ValueError):
                near = refitted(near, self.x.double(), w, count=self.chains / 4)
        proposal = Gaussian(near.mean.to(self.x), _SPREAD * near.factor.to(self.x))
        function = together(potential.value, potential.gradient)
        log_z = short_annealing(function, proposal, EVALUATION_SEED)
        if self._started():
            self.entropy.copy_(log_z + self._mean(potential))
        return log_z

    def _started(self) -> bool:
        return bool(self.x.any())

    def _mean(self, potential: Potential) -> Tensor:
        """E_p f, over the chains where they are, reweighted when they last moved under another f."""
        f = potential.value(self.x.clone())
        return torch.softmax(self.log_weights + self.value - f.detach(), 0) @ f

    @torch.no_grad()
    def _advance(self, potential: Potential) -> None:
        """Reweight the chains for a potential that has moved, and move them under it."""
        value = potential.value(self.x)
        self.log_weights += self.value - value
        w = torch.softmax(self.log_weights, 0)
        self.effective.copy_(1 / (len(w) * w.square().sum()))
        if not float(self.effective) >= _LEAST_SHARE:  # or not a number
            if not bool(w.isfinite().all()):
                raise FloatingPointError("the chains left the numbers: f changed too much in one step")
            chosen = torch.multinomial(w, self.chains, replacement=True, generator=generator_on(w.device))
            self.x.copy_(self.x[chosen])
            self.log_weights.zero_()
        self._move(potential, self.moves)

    def _move(self, potential: Potential, moves: int) -> None:
        """Langevin steps of every chain; their length follows the acceptance."""
        function = together(potential.value, potential.gradient)
        state = start_state(function, self.x)
        for _ in range(moves):
            state = langevin_step(
                function, state, float(self.step), self.factor, generator=generator_on(self.x.device)
            )
            self.step *= math.exp(_PACE * (state.acceptance - TARGET))
        self.x.copy_(state.x)
        self.value.copy_(state.value)

    def extra_repr(self) -> str:
        return f"chains={self.chains}, moves={self.moves}"
