"""The logarithm of the integral of exp(-f) in any dimension, by annealed importance sampling.

The dangerous failure is silent. Draws from a Gaussian that is too narrow, or beside the mass, may carry
nearly equal weights as long as none of them has seen what they miss. So annealing is also run backwards, from
MALA draws of exp(-f) that owe nothing to the forward particles: when particles miss mass, forward weights err
low and backward weights err high, and an estimate is given only when the two agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.integration import langevin
from convexlift.integration.chain_diagnostics import importance_ess
from convexlift.integration.gaussian import Gaussian, refitted
from convexlift.integration.langevin import ChainState, Function, ValueAndGradient

SHARE = 0.1  # effective sample size over particles below which an estimate is refused
_CONDITIONAL = 0.995  # conditional effective sample size that two neighbouring temperatures keep
_MOVES = 2  # MALA moves at each temperature
_TUNING = 5  # moves of the pilot at each temperature, in which the step settles
_TARGET = 0.65  # acceptance asked for in the pilot
_LEAST_ACCEPTANCE = 0.15
_PARTICLES, _TEMPERATURES = 1024, 24  # of the short annealing
_GAP = 5.0  # standard errors between forward and backward estimate that are still called agreement


@final
class UnreliableEstimate(RuntimeError):
    """Raised instead of a normaliser that the evidence does not support.

    Example:
        >>> raise UnreliableEstimate("the annealed weights collapsed")
        Traceback (most recent call last):
        ...
        convexlift.integration.annealing.UnreliableEstimate: the annealed weights collapsed
    """


@final
@dataclass(frozen=True, eq=False)
class AnnealedNormaliser:
    """log Z = log of the integral of exp(-f), with a standard error and what supports it.

    Attributes:
        log_z: scalar, float64; exp(log_z) is an unbiased estimate of Z.
        error: the standard error of log_z.
        ess: effective sample size of the forward weights.
        backward: log Z as annealing backwards from draws of exp(-f) estimates it.
        particles: number of independent forward particles.
        temperatures: (K + 1,), from 0 (the proposal) to 1 (the target).
        acceptance: mean acceptance probability of the forward moves.
    """

    log_z: Tensor
    error: float
    ess: float
    backward: float
    particles: int
    temperatures: Tensor
    acceptance: float

    @property
    def method(self) -> str:
        """One line that says how log Z was estimated."""
        return (
            f"annealed importance sampling, {self.particles:,} particles over {len(self.temperatures) - 1} "
            f"temperatures; effective sample size {self.ess:,.0f}"
        )


@final
@dataclass(frozen=True, eq=False)
class _Path:
    """Frozen by the pilot: temperatures (K + 1,), and a step and a factor for each of the K - 1 inside."""

    temperatures: list[float]
    steps: list[float]
    factors: list[Tensor]
    end: Gaussian


@guarded
@torch.no_grad()
def annealed_normaliser(
    value: Function,
    gradient: Function,
    proposal: Gaussian,
    *,
    particles: int = 2048,
    generator: torch.Generator | None = None,
    max_temperatures: int = 200,
) -> AnnealedNormaliser:
    """log Z of exp(-f) by annealed importance sampling from a Gaussian q, or a refusal.

    Particles x_0 drawn from q pass densities proportional to q^(1 - b) exp(-b f), 0 = b_0 < ... < b_K = 1,
    with two MALA moves at each; their weights

        log w = sum_k (b_k+1 - b_k) (-f(x_k) - log q(x_k)),    Z = E w,

    are independent. A pilot run of other particles chooses the temperatures (so that neighbours keep a
    conditional effective sample size of 99.5 %), steps and factors; then all are frozen, so w is unbiased.
    The standard error is that of a mean, sd(w) / (sqrt(N) mean(w)). The estimate is refused when

    - more than ``max_temperatures`` are needed: the proposal is too far from the target;
    - the effective sample size is below a tenth of the particles, or the moves are hardly ever accepted;
    - annealing back from MALA draws of exp(-f), E 1/w = 1/Z, gives a log Z more than five standard errors
      away (differences up to 0.05 are let pass, differences above 0.5 are not), its own weights collapse, or
      those chains do not agree.

    A good proposal is ``adapted(value, gradient, laplace(mode, hessian))``.

    Args:
        value: f, maps (N, d) to (N,) in float64.
        gradient: maps (N, d) to (N, d) in float64.
        proposal: q, of the dimension of f.
        particles: forward particles, at least 256.
        generator: makes the result repeatable.
        max_temperatures: how many temperatures the pilot may use.

    Raises:
        UnreliableEstimate: as above; the message holds the numbers.
        ValueError: too few particles; f is NaN or -inf at a draw of q.

    Source: Neal (2001), "Annealed importance sampling"; Zhou, Johansen and Aston (2016), "Toward automatic
    model comparison", for the conditional effective sample size; Grosse, Ancha and Roy (2016), "Measuring the
    reliability of MCMC inference with bidirectional Monte Carlo", for annealing back.

    Example:
        >>> f = lambda x: (x + 2 * torch.nn.functional.softplus(-x)).sum(1)  # two logistics: Z = 1
        >>> score = lambda x: 1 - 2 * torch.sigmoid(-x)
        >>> q = Gaussian(torch.zeros(2), 1.5 * torch.eye(2))
        >>> found = annealed_normaliser(f, score, q, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(found.log_z) < 4 * found.error), found.error < 0.02
        (True, True)
    """
    if particles < 256:
        raise ValueError(f"expected at least 256 particles; got {particles}")
    proposal = Gaussian(proposal.mean.double(), proposal.factor.double())
    function = _whitened(langevin.together(value, gradient), proposal)
    # In whitened coordinates q is standard normal; its constant and the Jacobian are added at the end.
    constant = _constant(proposal)
    path = _pilot(function, proposal, max(particles // 2, 8 * proposal.dim), max_temperatures, generator)

    noise = _noise(proposal, particles, generator)
    weights, acceptance = _forward(function, path, noise, generator)
    ess = importance_ess(weights)
    if ess < SHARE * particles:
        raise UnreliableEstimate(
            f"the annealed weights collapsed: effective sample size {ess:.1f} of {particles:,}, less than "
            f"{SHARE:.0%}; give a proposal nearer to the target"
        )
    log_z = torch.logsumexp(weights, 0) - math.log(particles) + constant
    error = _standard_error(weights)
    back, back_error = _checked_backward(value, gradient, function, proposal, path, particles, generator)
    # No path back reaches where f is infinite: what comes back is q on the rest.
    backward = float(constant - back + weights.isfinite().double().mean().log())
    gap = backward - float(log_z)
    if not abs(gap) <= min(0.5, max(0.05, _GAP * math.hypot(error, back_error))):
        raise UnreliableEstimate(
            f"annealing forwards and backwards disagree: log Z = {float(log_z):.4g} +- {error:.2g} from the "
            f"proposal, {backward:.4g} +- {back_error:.2g} from draws of the target; the proposal misses "
            "mass, give a wider one"
        )
    temperatures = torch.tensor(path.temperatures, dtype=torch.float64, device="cpu")
    return AnnealedNormaliser(log_z, error, ess, backward, particles, temperatures, acceptance)


@torch.no_grad()
def short_annealing(function: ValueAndGradient, proposal: Gaussian, seed: int) -> Tensor:
    """log Z of exp(-f) to about a tenth of a nat, in a fraction of a second, the same for the same seed.

    Sequential Monte Carlo: 1,024 particles drawn from q pass the densities proportional to
    q^(1 - b) exp(-b f), b = (k / 24)^3, with one MALA move at each and a new draw from among themselves where
    their effective sample size falls below a half. For watching a training run; results take
    ``annealed_normaliser``.

    Args:
        function: maps (N, d) to f (N,) and its gradient (N, d), in the dtype of ``proposal``.
        proposal: q.
        seed: of the particles.

    Source: Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers".

    Example:
        >>> q = Gaussian(torch.zeros(2), torch.eye(2))
        >>> log_z = short_annealing(lambda x: (2 * x.square().sum(1), 4 * x), q, seed=0)
        >>> bool(abs(log_z - math.log(math.pi / 2)) < 0.1)
        True
    """
    generator = torch.Generator(proposal.mean.device).manual_seed(seed)
    whitened = _whitened(function, proposal)
    state = langevin.start_state(whitened, _noise(proposal, _PARTICLES, generator))
    log_weights, log_z = torch.zeros_like(state.value), _constant(proposal)
    b, step = 0.0, langevin.first_step(proposal.dim)
    for k in range(1, _TEMPERATURES + 1):
        rise = (k / _TEMPERATURES) ** 3 - b
        b += rise
        log_weights = log_weights + rise * _tilt(state)
        weights = log_weights.softmax(0)
        if not float(1 / weights.square().sum()) >= _PARTICLES / 2:
            log_z = log_z + torch.logsumexp(log_weights, 0) - math.log(_PARTICLES)
            log_weights = torch.zeros_like(log_weights)
            state = _resampled(state, weights, generator)
        state = _moved(whitened, state, b, step, None, generator)
        step *= math.exp(0.3 * (state.acceptance - _TARGET))
    return log_z + torch.logsumexp(log_weights, 0) - math.log(_PARTICLES)


def _whitened(function: ValueAndGradient, proposal: Gaussian) -> ValueAndGradient:
    """f and its gradient in coordinates y with x = mean + L y."""

    def whitened(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = function(proposal.mean + y @ proposal.factor.T)
        return value, gradient @ proposal.factor

    return whitened


def _constant(proposal: Gaussian) -> Tensor:
    """The log-density of q at its mean, negative."""
    return proposal.factor.diagonal().log().sum() + proposal.dim / 2 * math.log(2 * math.pi)


def _noise(proposal: Gaussian, n: int, generator: torch.Generator | None) -> Tensor:
    like = proposal.mean
    return torch.randn(n, proposal.dim, generator=generator, dtype=like.dtype, device=like.device)


def _tilt(state: ChainState) -> Tensor:
    """-f - log q without the constant of q: what a rise of the temperature by one adds to log w."""
    return state.x.square().sum(1) / 2 - state.value


def _moved(
    function: ValueAndGradient,
    state: ChainState,
    temperature: float,
    step: float,
    factor: Tensor | None,
    generator: torch.Generator | None,
) -> ChainState:
    """One MALA move for q^(1 - b) exp(-b f); the state holds f itself, before and after."""
    seen: list[tuple[Tensor, Tensor]] = []

    def tempered(y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(function(y))
        return _mixed(y, *seen[-1], temperature)

    value, gradient = _mixed(state.x, state.value, state.gradient, temperature)
    mixed = replace(state, value=value, gradient=gradient)
    new = langevin.langevin_step(tempered, mixed, step, factor, generator)
    value, gradient = seen[-1]
    value = torch.where(new.accepted, value, state.value)
    return replace(new, value=value, gradient=torch.where(new.accepted[:, None], gradient, state.gradient))


def _mixed(y: Tensor, value: Tensor, gradient: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    rest = 1 - temperature
    return temperature * value + rest * y.square().sum(1) / 2, temperature * gradient + rest * y


def _started(function: ValueAndGradient, y: Tensor) -> ChainState:
    state = langevin.start_state(function, y)
    bad = state.value.isnan() | (state.value == -torch.inf)
    if bool(bad.any()):
        raise ValueError(f"f is NaN or -inf at {int(bad.sum())} of {len(y)} points")
    return state


def _pilot(
    function: ValueAndGradient,
    proposal: Gaussian,
    particles: int,
    max_temperatures: int,
    generator: torch.Generator | None,
) -> _Path:
    """Sequential Monte Carlo that chooses the temperatures, and at each a factor and a step for the moves."""
    state = _started(function, _noise(proposal, particles, generator))
    if not bool(state.value.isfinite().any()):
        raise UnreliableEstimate(f"f is infinite at all {particles} draws of the proposal")
    gaussian = Gaussian(torch.zeros_like(proposal.mean), torch.diag(torch.ones_like(proposal.mean)))
    temperatures: list[float] = [0.0]
    steps: list[float] = []
    factors: list[Tensor] = []
    step = 1.4 * proposal.dim ** (-1 / 6)
    while True:
        tilt = _tilt(state)
        rise = _rise(tilt, 1 - temperatures[-1])
        temperatures.append(min(1.0, temperatures[-1] + rise))
        weights = (rise * tilt).softmax(0)
        gaussian = refitted(gaussian, state.x, weights, count=len(weights))
        if temperatures[-1] == 1.0:
            end = Gaussian(proposal.mean + proposal.factor @ gaussian.mean, proposal.factor @ gaussian.factor)
            return _Path(temperatures, steps, factors, end)
        if len(temperatures) > max_temperatures:
            raise UnreliableEstimate(
                f"the proposal is too far from the target: {max_temperatures} temperatures do not bridge "
                f"them, 1 - b is still {1 - temperatures[-1]:.2g}; give a nearer one, for instance "
                "adapted(value, gradient, proposal)"
            )
        state = _resampled(state, weights, generator)
        for move in range(1, _TUNING + 1):
            state = _moved(function, state, temperatures[-1], step, gaussian.factor, generator)
            step *= math.exp(2 * (state.acceptance - _TARGET) / math.sqrt(move))
        steps.append(step)
        factors.append(gaussian.factor)


def _rise(tilt: Tensor, most: float) -> float:
    """The largest rise of the temperature, up to ``most``, that keeps the conditional sample size."""

    def share(rise: float) -> float:
        return importance_ess(rise * tilt) / len(tilt)

    # What is zero already, f = inf, is zero at any temperature.
    wanted = _CONDITIONAL * float(tilt.isfinite().double().mean())
    if share(most) >= wanted:
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = math.sqrt(low * high) if low else high / 10
        low, high = (middle, high) if share(middle) >= wanted else (low, middle)
        if high < 1e-300 or high <= low * 1.001:
            break
    return low or high


def _resampled(state: ChainState, weights: Tensor, generator: torch.Generator | None) -> ChainState:
    """Chains drawn by systematic resampling."""
    n = len(weights)
    offset = torch.rand((), generator=generator, dtype=weights.dtype, device=weights.device)
    ladder = (torch.arange(n, dtype=weights.dtype, device=weights.device) + offset) / n
    chosen = torch.searchsorted(weights.cumsum(0), ladder).clamp_max(n - 1)
    return ChainState(*(t[chosen] for t in vars(state).values()))


def _forward(
    function: ValueAndGradient, path: _Path, y: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """log w without the constant, (N,), and the mean acceptance of the moves."""
    state = _started(function, y)
    weights = path.temperatures[1] * _tilt(state)
    acceptance = []
    for k, (step, factor) in enumerate(zip(path.steps, path.factors, strict=True), start=1):
        for _ in range(_MOVES):
            state = _moved(function, state, path.temperatures[k], step, factor, generator)
            acceptance.append(state.acceptance)
        weights = weights + (path.temperatures[k + 1] - path.temperatures[k]) * _tilt(state)
    if acceptance and min(acceptance) < _LEAST_ACCEPTANCE:
        raise UnreliableEstimate(
            f"the annealing moves hardly move: at one temperature only {min(acceptance):.2g} of the "
            "proposals were accepted; check that gradient is the gradient of value"
        )
    if not bool((weights > -torch.inf).any()):
        raise UnreliableEstimate(f"all {len(weights)} annealed weights are zero")
    return weights, sum(acceptance) / len(acceptance) if acceptance else 1.0


def _checked_backward(
    value: Function,
    gradient: Function,
    function: ValueAndGradient,
    proposal: Gaussian,
    path: _Path,
    particles: int,
    generator: torch.Generator | None,
) -> tuple[float, float]:
    """log of the mean of 1 / w over draws of the target annealed backwards, and its standard error."""
    n = max(256, particles // 4)
    try:
        drawn = langevin.draw(value, gradient, path.end, n, generator=generator)
    except RuntimeError as failure:
        raise UnreliableEstimate(
            f"the target could not be sampled to check the estimate: {failure}"
        ) from failure
    if not drawn.converged:
        raise UnreliableEstimate(
            "the chains that check the estimate did not converge: R-hat is "
            f"{float(drawn.r_hat.max()):.3f} after {drawn.steps:,} steps"
        )
    state = _started(function, proposal.whiten(drawn.x))
    weights = torch.zeros_like(state.value)
    inner = len(path.steps)
    for k in range(inner, -1, -1):
        weights = weights - (path.temperatures[k + 1] - path.temperatures[k]) * _tilt(state)
        for _ in range(_MOVES if k else 0):
            state = _moved(
                function, state, path.temperatures[k], path.steps[k - 1], path.factors[k - 1], generator
            )
    ess = importance_ess(weights)
    if ess < SHARE * n:
        raise UnreliableEstimate(
            f"draws of the target do not lead back to the proposal: effective sample size {ess:.1f} of {n}, "
            f"less than {SHARE:.0%}; the proposal is too narrow or beside the mass, give a wider one"
        )
    return float(torch.logsumexp(weights, 0) - math.log(n)), _standard_error(weights)


def _standard_error(log_weights: Tensor) -> float:
    """The standard error of the log of the mean weight, by the delta method."""
    w = (log_weights - log_weights.max()).exp()
    return float(w.std() / (math.sqrt(len(w)) * w.mean()))
