"""Draws from exp(-f) by the Metropolis-adjusted Langevin algorithm (MALA), many chains at once.

Convexity helps three times. exp(-f) has one mode, so chains started around it meet. Its tails fall at least
exponentially, so the mean and covariance that precondition the moves exist. And with m the lowest value of f,
E f(X) <= m + d and Var f(X) <= d (Fradelizi, Madiman and Wang 2016), so a chain that f tells to be far out
can be moved towards the lowest point, before sampling, along a line on which f only falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.integration.chain_diagnostics import effective_sample_size, r_hat
from convexlift.integration.gaussian import Gaussian, refitted

Function = Callable[[Tensor], Tensor]
ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]

TARGET = 0.57  # the acceptance rate at which MALA moves furthest a step in high dimension
CONVERGED = 1.01  # R-hat below which chains are said to agree
_CLIP = 3.0  # a drift of at most 1.5 standard deviations of the noise, in each whitened direction
_SPREAD = 2.0  # chains start this many times as widely as the Gaussian they are given
_EXCESS = 10.0  # the bulk: f less than d + 10 sqrt(d) above its lowest value
_WINDOW = 60  # steps between two estimates of the covariance, at first; each window is half as long again
_LONGEST = 400
_MAX_WINDOWS = 16
_STABLE = 0.7  # the warm-up ends when no direction's log variance moves by more than this between windows
_THINNEST = 100  # steps between kept draws, at most
_ROUNDS = 5  # how often chains that disagree are run on


@final
@dataclass(frozen=True, eq=False)
class ChainState:
    """Where chains are, with f and its gradient there, and what became of the last proposals.

    Attributes:
        x: (C, d).
        value: f(x), (C,).
        gradient: (C, d).
        log_accept: log of the last acceptance probabilities, (C,); zero at the start.
        accepted: which of the last proposals were taken, (C,).

    Example:
        >>> state = start_state(together(lambda x: x.square().sum(1) / 2, lambda x: x), torch.ones(3, 2))
        >>> state.value
        tensor([1., 1., 1.])
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    log_accept: Tensor
    accepted: Tensor

    @property
    def acceptance(self) -> float:
        """The mean acceptance probability of the last step, over chains."""
        return float(self.log_accept.exp().mean())


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """Draws from exp(-f) / Z, with the evidence that the chains had mixed.

    Attributes:
        x: (n, d) in float64; neighbouring rows come from different chains.
        r_hat: (d,), of the chains that the draws were taken from.
        ess: (d,), how many independent draws these are worth for each coordinate; at most n.
        acceptance: mean acceptance probability after the warm-up.
        chains: number of chains.
        steps: steps of each chain, warm-up included.

    Example:
        >>> start = Gaussian(torch.zeros(1), torch.eye(1))
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = draw(lambda x: x[:, 0] ** 2 / 2, lambda x: x, start, 500, generator=generator)
        >>> found.converged, found.x.shape
        (True, torch.Size([500, 1]))
    """

    x: Tensor
    r_hat: Tensor
    ess: Tensor
    acceptance: float
    chains: int
    steps: int

    @property
    def converged(self) -> bool:
        """Whether R-hat is below 1.01 in every coordinate."""
        return bool((self.r_hat < CONVERGED).all())


def first_step(dim: int) -> float:
    """The step at which to start, optimal for a standard normal of high dimension d: 1.65 d^(-1/6).

    Source: Roberts and Rosenthal (1998), "Optimal scaling of discrete approximations to Langevin diffusions".

    >>> first_step(64)
    0.825
    """
    return 1.65 * dim ** (-1 / 6)


def together(value: Function, gradient: Function) -> ValueAndGradient:
    """One function that gives f (N,) and its gradient (N, d), from two.

    Example:
        >>> together(lambda x: x.square().sum(1) / 2, lambda x: x)(torch.ones(1, 2))
        (tensor([1.]), tensor([[1., 1.]]))
    """
    return lambda x: (value(x), gradient(x))


def start_state(function: ValueAndGradient, x: Tensor) -> ChainState:
    """The state of chains that begin at x (C, d); see ``ChainState``."""
    value, gradient = function(x)
    return ChainState(x, value, gradient, torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool))


@guarded
def langevin_step(
    function: ValueAndGradient,
    state: ChainState,
    step: float,
    factor: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> ChainState:
    """One MALA step of every chain, with one evaluation of f and its gradient.

        x' = x - (h^2 / 2) L g(x) + h L z,    z ~ N(0, I),    g = L' grad f, entries clipped to +-3 / h,

    taken with probability min(1, exp(f(x) - f(x') + (|z|^2 - |z'|^2) / 2)), where z' = (h / 2) (g(x) + g(x'))
    - z is the noise of the way back. The step leaves exp(-f) unchanged whatever h and L are. Clipping keeps
    chains from freezing where f is steep. A proposal at which f or its gradient is not finite is rejected.

    Args:
        function: maps (C, d) to f (C,) and its gradient (C, d).
        state: where the chains are; everything is done in the dtype of ``state.x``.
        step: h.
        factor: L, (d, d) lower-triangular, best with L L' near the covariance; the identity when omitted.
        generator: of the device of ``state.x``.

    Source: Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and their discrete
    approximations", also for clipping; for the factor, Roberts and Stramer (2002), "Langevin diffusions and
    Metropolis-Hastings algorithms".

    Example:
        >>> f = together(lambda x: x.square().sum(1) / 2, lambda x: x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> state = start_state(f, torch.zeros(1000, 1))
        >>> for _ in range(20):
        ...     state = langevin_step(f, state, 1.0, generator=generator)
        >>> round(float(state.x.std()), 1)
        1.0
    """
    x = state.x
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
    whitened = _clipped(state.gradient, factor, step)
    move = noise * step - whitened * (step**2 / 2)
    proposal = x + (move if factor is None else move @ factor.T)
    value, gradient = function(proposal)
    back = (whitened + _clipped(gradient, factor, step)) * (step / 2) - noise
    log_accept = state.value - value + (noise.square().sum(1) - back.square().sum(1)) / 2
    usable = value.isfinite() & gradient.isfinite().all(1) & ~log_accept.isnan()
    log_accept = log_accept.clamp_max(0).where(usable, -torch.inf)
    accepted = uniform.log() < log_accept
    taken = accepted[:, None]
    value, gradient = torch.where(accepted, value, state.value), torch.where(taken, gradient, state.gradient)
    return ChainState(torch.where(taken, proposal, x), value, gradient, log_accept, accepted)


def _clipped(gradient: Tensor, factor: Tensor | None, step: float) -> Tensor:
    return (gradient if factor is None else gradient @ factor).clamp(-_CLIP / step, _CLIP / step)


@guarded
@torch.no_grad()
def draw(
    value: Function,
    gradient: Function,
    start: Gaussian,
    n: int,
    *,
    chains: int = 64,
    generator: torch.Generator | None = None,
) -> Draws:
    """n draws from exp(-f) / Z for convex f, by tuned MALA chains.

    The chains start twice as widely as ``start``. In a warm-up, dual averaging brings the step to an
    acceptance of 0.57, and the covariance of all chains preconditions the next window, until it is stable.
    Then both stay fixed, the chains are thinned by their measured autocorrelation, and they are run on, up to
    five times, while R-hat is 1.01 or more in a coordinate. Look at ``converged`` before using the draws.

    Args:
        value: f, maps (N, d) to (N,) in float64.
        gradient: maps (N, d) to (N, d) in float64.
        start: a rough idea of where the mass is.
        n: how many draws.
        chains: how many chains, at least 2.
        generator: makes the draws repeatable.

    Raises:
        ValueError: n or ``chains`` is too small.
        RuntimeError: f is not finite around ``start``, or (almost) every proposal is rejected.

    Source: Hoffman and Gelman (2014), "The No-U-Turn Sampler", for dual averaging.

    Example:
        >>> f = lambda x: (x[:, 0] + 2 * torch.nn.functional.softplus(-x[:, 0]))  # logistic
        >>> score = lambda x: 1 - 2 * torch.sigmoid(-x)
        >>> start = Gaussian(torch.tensor([3.0]), torch.eye(1))
        >>> found = draw(f, score, start, 2000, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(found.x.mean()) < 0.2), bool(abs(found.x.std() - 1.814) < 0.2)
        (True, True)
    """
    if n < 1 or chains < 2:
        raise ValueError(f"draw needs n >= 1 and at least 2 chains; got n = {n}, chains = {chains}")
    function = together(value, gradient)
    state, step, gaussian, steps = _warm_up(function, start, chains, generator)
    state, trial, acceptance = _run(function, state, step, gaussian.factor, 150, 1, generator)
    _check_acceptance(acceptance, 150, step)
    # One and a half steps of autocorrelation are left between kept draws: thinner chains would waste work.
    worth = float(effective_sample_size(trial.transpose(0, 1)).min())
    thin = math.ceil(min(len(trial) * chains / max(worth, 1.0) / 1.5, _THINNEST))
    length = max(math.ceil(n / chains), 100)
    history, acceptance, steps = [], 0.0, steps + 150
    for rounds in range(1, _ROUNDS + 1):
        state, seen, accepted = _run(function, state, step, gaussian.factor, length, thin, generator)
        steps += length * thin
        history.append(seen)
        acceptance += (accepted - acceptance) / rounds
        paths = torch.cat(history)  # (T, C, d)
        agreement = r_hat(paths.transpose(0, 1))
        if bool((agreement < CONVERGED).all()):
            break
    _check_acceptance(acceptance, steps, step)
    kept = (
        torch.linspace(0, len(paths) - 1, math.ceil(n / chains), dtype=torch.float64, device="cpu")
        .round()
        .long()
    )
    ess = effective_sample_size(paths.transpose(0, 1)).clamp_max(n)
    return Draws(paths[kept].flatten(0, 1)[:n], agreement, ess, acceptance, chains, steps)


@guarded
@torch.no_grad()
def adapted(
    value: Function,
    gradient: Function,
    start: Gaussian,
    *,
    chains: int = 64,
    generator: torch.Generator | None = None,
) -> Gaussian:
    """A Gaussian with about the mean and covariance of exp(-f) / Z, found by the warm-up of ``draw``.

    The remedy for a Laplace fit that a kink or a flat spot has fooled. Arguments and errors are those of
    ``draw``.

    Example:
        >>> narrow = Gaussian(torch.zeros(1), 0.01 * torch.eye(1))
        >>> generator = torch.Generator().manual_seed(0)
        >>> wide = adapted(lambda x: x[:, 0].abs(), torch.sign, narrow, generator=generator)
        >>> bool(1.2 < wide.factor < 1.6)  # the standard deviation of Laplace's law is 1.41
        True
    """
    if chains < 2:
        raise ValueError(f"adapted needs at least 2 chains; got {chains}")
    return _warm_up(together(value, gradient), start, chains, generator)[2]


def _run(
    function: ValueAndGradient,
    state: ChainState,
    step: float,
    factor: Tensor,
    length: int,
    thin: int,
    generator: torch.Generator | None,
) -> tuple[ChainState, Tensor, float]:
    """Run chains for length x thin steps: where they end, every thin-th (length, C, d), the acceptance."""
    history, acceptance = [], 0.0
    for _ in range(length):
        for _ in range(thin):
            state = langevin_step(function, state, step, factor, generator)
            acceptance += state.acceptance
        history.append(state.x)
    return state, torch.stack(history), acceptance / (length * thin)


def _warm_up(
    function: ValueAndGradient, start: Gaussian, chains: int, generator: torch.Generator | None
) -> tuple[ChainState, float, Gaussian, int]:
    """Windows of steps, each preconditioned by the covariance of the one before, until it is stable.

    What it returns: the chains, the step size and the Gaussian settled on, and the number of steps.
    """
    gaussian = Gaussian(start.mean.double(), start.factor.double())
    lowest = _descended(function, gaussian)
    offset = _SPREAD * (gaussian.sample(chains, generator) - gaussian.mean)
    state, lowest = _gathered(function, start_state(function, lowest.x + offset), lowest)
    first = first_step(gaussian.dim)
    step, length, steps = first, _WINDOW, 0
    for _ in range(_MAX_WINDOWS):
        averaging, history = _DualAveraging(step), []
        for _ in range(length):
            state = langevin_step(function, state, averaging.step, gaussian.factor, generator)
            averaging.update(state.acceptance)
            history.append(state.x)
        steps += length
        _check_acceptance(averaging.recent, length, averaging.settled)
        state, lowest = _gathered(function, state, lowest)
        late = torch.stack(history[length // 3 :]).flatten(0, 1)
        moments = refitted(gaussian, late, count=len(late) / 10)  # about ten steps of autocorrelation
        drift = _distance(gaussian, moments)
        gaussian, step = moments, first
        length = min(_LONGEST, length * 3 // 2)
        if drift < _STABLE and length > 2 * _WINDOW:
            break
    averaging = _DualAveraging(step)
    for _ in range(100):
        state = langevin_step(function, state, averaging.step, gaussian.factor, generator)
        averaging.update(state.acceptance)
    _check_acceptance(averaging.recent, 100, averaging.settled)
    return state, averaging.settled, gaussian, steps + 100


def _descended(function: ValueAndGradient, gaussian: Gaussian) -> ChainState:
    """A point (1, d) near the mode, by L-BFGS from the mean in coordinates that the Gaussian whitens."""
    whitened = torch.zeros_like(gaussian.mean).requires_grad_(True)
    optimiser = torch.optim.LBFGS([whitened], max_iter=200, history_size=20, line_search_fn="strong_wolfe")
    lowest = start_state(function, gaussian.mean[None])
    if not _is_usable(lowest).item():
        raise RuntimeError("f or its gradient is not finite at the mean of the Gaussian to start from")

    def closure() -> Tensor:
        nonlocal lowest
        state = start_state(function, (gaussian.mean + gaussian.factor @ whitened.detach())[None])
        if bool(_is_usable(state)) and bool(state.value < lowest.value):
            lowest = state
        whitened.grad = (state.gradient @ gaussian.factor)[0]
        return state.value[0]

    optimiser.step(closure)
    return lowest


def _gathered(
    function: ValueAndGradient, state: ChainState, lowest: ChainState
) -> tuple[ChainState, ChainState]:
    """The chains, those far out moved towards the lowest point until f is as low as in the bulk of exp(-f).

    Halving the way to the lowest point at least halves how much higher f is.
    """
    lowest = _lowest(state, lowest)
    dim = state.x.shape[1]
    for _ in range(200):
        outside = ~(_is_usable(state) & (state.value - lowest.value <= dim + _EXCESS * math.sqrt(dim)))
        if not bool(outside.any()):
            return state, lowest
        x = torch.where(outside[:, None], (state.x + lowest.x) / 2, state.x)
        state = start_state(function, x)
        lowest = _lowest(state, lowest)
    raise RuntimeError(
        f"f is not finite, or not convex: {int(outside.sum())} of {len(state.x)} chains found it no lower on "
        "the way to its lowest point"
    )


def _lowest(state: ChainState, lowest: ChainState) -> ChainState:
    """The lowest usable state of all, with one row."""
    best = int(torch.where(_is_usable(state), state.value, torch.inf).argmin())
    if not bool(state.value[best] < lowest.value):
        return lowest
    return ChainState(*(t[best : best + 1] for t in vars(state).values()))


def _is_usable(state: ChainState) -> Tensor:
    return state.value.isfinite() & state.gradient.isfinite().all(1)


def _distance(old: Gaussian, new: Gaussian) -> float:
    """The largest |log variance ratio| over directions, or the shift of the mean if that is larger."""
    relative = torch.linalg.solve_triangular(old.factor, new.factor, upper=False)
    shift = new.whiten(old.mean[None]).norm() / math.sqrt(new.dim)
    return max(float(torch.linalg.svdvals(relative).log().abs().max()) * 2, float(shift))


def _check_acceptance(acceptance: float, steps: int, step: float) -> None:
    if not acceptance > 0.01:
        raise RuntimeError(
            f"the chains do not move: {acceptance:.2g} of the proposals in {steps} steps were accepted at "
            f"step size {step:.2g}; check that gradient is the gradient of value, or give a better start"
        )


@final
class _DualAveraging:
    """The step size that brings the acceptance rate to TARGET (Nesterov's dual averaging on log h)."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.recent = 0.0  # acceptance, averaged over about the last 20 steps
        self._centre = math.log(2 * step)
        self._error = 0.0
        self._average = math.log(step)
        self._count = 0

    def update(self, acceptance: float) -> None:
        self._count += 1
        k = self._count
        self.recent += (acceptance - self.recent) / min(k, 20)
        self._error += (TARGET - acceptance - self._error) / (k + 10)
        log_step = self._centre - math.sqrt(k) / 0.1 * self._error
        self._average += k**-0.75 * (log_step - self._average)
        self.step = math.exp(min(max(log_step, -60.0), 60.0))

    @property
    def settled(self) -> float:
        """The averaged step size."""
        return math.exp(self._average)
