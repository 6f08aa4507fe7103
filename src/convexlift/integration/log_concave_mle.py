"""The maximum-likelihood log-concave density on the line: a finite convex program, solved exactly.

Among all log-concave densities the likelihood is largest at one whose logarithm is piecewise linear, with
knots at data points, and which is zero outside the sample. An active-set method finds the knots: Newton's
method for the values at the knots in hand, whose integrals are in closed form; a knot whose bend would turn
convex goes; a data point where a bend would raise the likelihood comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from torch import Tensor

from convexlift.ambient import guard_methods, guarded
from convexlift.checks import check_finite, check_samples
from convexlift.seeds import generator_on

Array = NDArray[np.float64]
Index = NDArray[np.intp]

TOLERANCE = 1e-10  # of the directional derivatives, which are differences of probabilities
_ROUNDS = 500
_NEWTON_STEPS = 500
_SERIES_TERMS = 19  # r^19 / 19! < 1e-17 for r < 1
_STRAIGHT = 1e-6  # rise within a piece below which its quantiles are those of a straight line


@guard_methods
@final
@dataclass(frozen=True, eq=False)
class LogConcaveMLE:
    """The log-concave density of largest likelihood: log p is linear between knots, -inf outside them.

    `knots` (K,) are data points in increasing order, `log_values` (K,) is log p there, both float64.
    `log_likelihood` is the weighted mean of log p over the sample, in nats. `iterations` counts how often
    knots were added. `optimality` is the certificate: the largest derivative of sum_i w_i phi(x_i) - integral
    exp(phi), the weights summing to 1, when phi moves in a direction that leaves it concave: up or down by a
    hat of height one at any knot, and towards a new knot at any data point, by the tent of height one between
    the knots beside it. It is 0 at the optimum, and only there.

    Shapes: samples (N, 1); log-densities and probabilities (N,).

    Raises:
        ValueError: from the methods, samples of another width or with NaN.

    >>> found = log_concave_mle(torch.tensor([[0.0], [2.0]]))
    >>> found.knots.tolist(), found.log_prob(torch.tensor([[1.0], [3.0]])).exp().tolist()
    ([0.0, 2.0], [0.5, 0.0])
    """

    knots: Tensor
    log_values: Tensor
    log_likelihood: float
    iterations: int
    optimality: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,) in float64; -inf outside the sample."""
        at = self._points(x)
        piece = self._piece(at)
        left, right = self.knots[piece], self.knots[piece + 1]
        share = (at - left) / (right - left)
        value = torch.lerp(self.log_values[piece], self.log_values[piece + 1], share.clamp(0, 1))
        inside = (at >= self.knots[0]) & (at <= self.knots[-1])
        return torch.where(inside, value, -torch.inf)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), (N,) in float64, in closed form."""
        at = self._points(x).clamp(self.knots[0], self.knots[-1])
        piece = self._piece(at)
        left, width = self.knots[piece], self.knots.diff()[piece]
        share = (at - left) / width
        start = self.log_values[piece]
        rise = self.log_values.diff()[piece] * share
        part = (at - left) * (start + rise.clamp_min(0)).exp() * _mean_decay(rise.abs())
        masses = self._masses()
        before = torch.cat([masses.new_zeros(1), masses.cumsum(0)])[piece]
        return (before + part).clamp(max=1.0)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """n independent draws, (n, 1) in float64, by inverting the distribution function."""
        if n < 0:
            raise ValueError(f"cannot draw {n} samples")
        device = self.knots.device
        generator = generator_on(device, seed)
        u, share = torch.rand(2, n, generator=generator, dtype=torch.float64, device=device)
        piece = torch.searchsorted(self._masses().cumsum(0), u).clamp(max=len(self.knots) - 2)
        rise = self.log_values.diff()[piece]
        # Within the piece the density falls like exp(-size s), s in [0, 1] from its higher end.
        size = rise.abs().clamp_min(_STRAIGHT)
        falling = -torch.log1p(share * torch.expm1(-size)) / size
        s = torch.where(rise.abs() < _STRAIGHT, share, falling).clamp(0, 1)
        s = torch.where(rise > 0, 1 - s, s)
        return torch.lerp(self.knots[piece], self.knots[piece + 1], s)[:, None]

    def _points(self, x: Tensor) -> Tensor:
        at = check_samples(x, 1)[:, 0].to(self.knots)
        if bool(at.isnan().any()):
            check_finite(x)
        return at

    def _piece(self, at: Tensor) -> Tensor:
        return (torch.searchsorted(self.knots, at, right=True) - 1).clamp(0, len(self.knots) - 2)

    def _masses(self) -> Tensor:
        rise = self.log_values.diff()
        top = torch.maximum(self.log_values[:-1], self.log_values[1:])
        return (self.knots.diff().log() + top).exp() * _mean_decay(rise.abs())


@guarded
def log_concave_mle(x: Tensor, weights: Tensor | None = None) -> LogConcaveMLE:
    """The log-concave density on the line under which a sample is most likely.

        maximise  sum_i w_i phi(x_i) - integral of exp(phi)   over concave phi,   sum_i w_i = 1.

    The second term makes exp(phi) a density at the optimum, which exists and is unique. Its mean is that of
    the sample, and its distribution function F satisfies integral_{-inf}^t (F - F_sample) <= 0 for all t,
    with equality at the knots. Nothing is random, and nothing is to be tuned.

    Args:
        x: samples (N, 1), of any floating dtype; computed in float64.
        weights: non-negative weights (N,), for instance counts; equal when omitted. Rows of weight 0 are
            left out, equal rows are taken together.

    Raises:
        TypeError: x or the weights are no floating-point tensor.
        ValueError: samples of another width, NaN or infinite entries, a negative weight, or fewer than two
            distinct samples (then the likelihood has no upper bound).
        RuntimeError: the tolerance was not reached; the message says what was.

    Source: Walther, "Inference and modeling with log-concave distributions", Statistical Science 2009 (the
    problem); Duembgen and Rufibach, "Maximum likelihood estimation of a log-concave density and its
    distribution function", Bernoulli 2009 (the characterisation), and "logcondens", Journal of Statistical
    Software 2011 (the active set).

    >>> x = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None] ** 2
    >>> found = log_concave_mle(x)
    >>> found.optimality < 1e-9, round(float(found.cdf(x[-1:])), 9)
    (True, 1.0)
    >>> log_concave_mle(torch.tensor([[1.0], [1.0]]))
    Traceback (most recent call last):
    ...
    ValueError: need at least 2 distinct samples; every sample is 1
    """
    points, share = _distinct(x, weights)
    # On [0, 1] no scale or offset matters; halves, so that no difference overflows.
    half = points / 2 - points[0] / 2
    unit, first, share = _merge(half / half[-1], share)
    knots, phi, iterations = _active_set(unit, share)
    optimality = _optimality(unit, share, knots, phi)
    if not optimality <= 1e3 * TOLERANCE:
        raise RuntimeError(
            f"the log-concave estimator stopped at optimality {optimality:.1e} after {iterations} iterations"
        )
    log_range = float(np.log(half[-1]) + np.log(2))
    phi = phi - np.log(_integral(unit[knots], phi)) - log_range
    likelihood = float(share @ np.interp(unit, unit[knots], phi))
    places, values = (torch.from_numpy(a).to(x.device) for a in (points[first[knots]], phi))
    return LogConcaveMLE(places, values, likelihood, iterations, optimality)


def _distinct(x: Tensor, weights: Tensor | None) -> tuple[Array, Array]:
    """Distinct samples (M,) in increasing order, and their shares of the weight (M,)."""
    samples = check_finite(check_samples(x, 1))[:, 0].detach().double().cpu().numpy()
    if weights is None:
        each = np.ones_like(samples)
    else:
        each = _weights(weights, len(samples))
    points, share = _merge(samples[each > 0], each[each > 0])[::2]
    if len(points) < 2:
        what = f"every sample is {points[0] + 0.0:g}" if len(points) else "there is none"
        raise ValueError(f"need at least 2 distinct samples; {what}")
    return points, share / share.sum()


def _weights(weights: Tensor, n: int) -> Array:
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        kind = str(weights.dtype) if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"expected a floating-point tensor of weights; got {kind.removeprefix('torch.')}")
    if weights.shape != (n,):
        raise ValueError(f"expected ({n},) weights; got {tuple(weights.shape)}")
    each: Array = check_finite(weights, name="weights").detach().double().cpu().numpy()
    if (each < 0).any():
        first = int(np.argmax(each < 0))
        raise ValueError(f"weights must not be negative; row {first} has {each[first]:g}")
    return each / max(float(each.max(initial=0.0)), np.finfo(np.float64).tiny)


def _merge(values: Array, weights: Array) -> tuple[Array, Index, Array]:
    """Distinct values in increasing order, where each first occurs, and its total weight."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return distinct, first, _totals(inverse, weights, len(distinct))


def _active_set(x: Array, w: Array) -> tuple[Index, Array, int]:
    """Knots (K,), as positions in x, the optimal phi there (K,), and the number of rounds."""
    knots: Index = np.array([0, len(x) - 1])
    phi = _newton(x[knots], _hat_weights(x, w, knots), np.zeros(2))
    for done in range(_ROUNDS):
        new = _candidates(x, _gains(x, w, knots, phi), knots)
        if len(new) == 0:
            return knots, phi, done
        joined = np.sort(np.concatenate([knots, new]))
        before = knots
        knots, phi = _best_concave(x, w, joined, np.interp(x[joined], x[knots], phi))
        if np.array_equal(knots, before):  # the bends that would help are below rounding
            return knots, phi, done + 1
    return knots, phi, _ROUNDS


def _candidates(x: Array, gain: Array, knots: Index) -> Index:
    """Between every two neighbouring knots one new one, where some point gains more than the tolerance.

    It is where integral_{-inf}^t (F - F_sample) is largest, which is the gain times the height of a tent of
    unit bend: that choice needs few rounds.
    """
    area = np.zeros_like(x)
    piece = np.searchsorted(knots, np.arange(1, len(x) - 1), side="right") - 1
    area[1:-1] = (x[1:-1] - x[knots[piece]]) * (x[knots[piece + 1]] - x[1:-1])
    area = np.where(gain > TOLERANCE, gain * area, 0.0)
    best = [a + int(area[a:b].argmax()) for a, b in zip(knots, knots[1:], strict=False)]
    return np.array([i for i in best if area[i] > 0], dtype=np.intp)


def _best_concave(x: Array, w: Array, knots: Index, phi: Array) -> tuple[Index, Array]:
    """The best phi with bends at the knots only, starting from a concave one; bends that would go convex go.

    When the unconstrained best is not concave, phi moves towards it as far as it stays concave. A knot whose
    bend is used up is dropped, and the rest is solved again.
    """
    while True:
        best = _newton(x[knots], _hat_weights(x, w, knots), phi)
        bend = _bends(x[knots], best)
        bad = bend <= 0
        if not bad.any():
            return knots, best
        had = np.maximum(_bends(x[knots], phi), 0)
        reach = np.where(bad, had / np.where(bad, had - bend, 1.0).clip(np.finfo(np.float64).tiny), np.inf)
        phi = phi + reach.min() * (best - phi)
        keep = np.concatenate([[True], reach > reach.min(), [True]])
        knots, phi = knots[keep], phi[keep]


def _bends(x: Array, phi: Array) -> Array:
    """How much the slope falls at each inner knot, (K - 2,)."""
    return -np.diff(np.diff(phi) / np.diff(x))


def _newton(x: Array, w: Array, phi: Array) -> Array:
    """The values at the knots x that maximise w . phi - integral of exp(phi), without constraints."""
    last = np.inf
    for _ in range(_NEWTON_STEPS):
        gradient, bands = _derivatives(x, w, phi)
        step = _solve(bands, gradient)
        decrement = float(gradient @ step)
        # Below 1e-16 only rounding is left, which no longer falls.
        if decrement <= 1e-28 or (decrement < 1e-16 and decrement > last / 4):
            break
        last = decrement
        size = 1.0
        if decrement > 1e-10:
            value = w @ phi - _integral(x, phi)
            while (
                not w @ (phi + size * step) - _integral(x, phi + size * step)
                >= value + 0.1 * size * decrement
            ):
                size /= 2
                if size < 1e-12:
                    return phi
        phi = phi + size * step
    return phi


def _derivatives(x: Array, w: Array, phi: Array) -> tuple[Array, Array]:
    """The gradient (K,), and minus the Hessian in the upper banded form of SciPy, (2, K)."""
    width = np.diff(x)
    _, left, right, left_left, left_right, right_right = _moments(phi[:-1], phi[1:])
    mass, bands = np.zeros_like(phi), np.zeros((2, len(phi)))
    mass[:-1] += width * left
    mass[1:] += width * right
    bands[1, :-1] += width * left_left
    bands[1, 1:] += width * right_right
    bands[0, 1:] = width * left_right
    return w - mass, bands


def _solve(bands: Array, gradient: Array) -> Array:
    """The Newton step, with the diagonal scaled to 1: densities of very different size meet in one matrix."""
    scale = 1 / np.sqrt(bands[1])
    scaled = np.ones_like(bands)
    scaled[0, 1:] = bands[0, 1:] * scale[:-1] * scale[1:]
    return scale * solveh_banded(scaled, scale * gradient, check_finite=False)


def _integral(x: Array, phi: Array) -> float:
    """The integral of exp(phi), phi linear between the points x."""
    return float(np.diff(x) @ _moments(phi[:-1], phi[1:])[0])


def _hat_weights(x: Array, w: Array, knots: Index) -> Array:
    """The share of each knot in the sample, (K,): sum_i w_i hat_k(x_i)."""
    piece = (np.searchsorted(knots, np.arange(len(x)), side="right") - 1).clip(0, len(knots) - 2)
    share = (x - x[knots[piece]]) / (x[knots[piece + 1]] - x[knots[piece]])
    return _totals(piece, w * (1 - share), len(knots)) + _totals(piece + 1, w * share, len(knots))


def _totals(index: Index, weights: Array, n: int) -> Array:
    return np.bincount(index, weights, minlength=n).astype(np.float64)


def _gains(x: Array, w: Array, knots: Index, phi: Array) -> Array:
    """The derivative towards a new knot at each data point, (M,); 0 at knots.

    The direction is the tent of height one over the piece the point lies in. Sums run from each end of the
    piece, over positive terms, so that nothing cancels beside a wide piece.
    """
    gain = np.zeros_like(x)
    for k, (a, b) in enumerate(zip(knots, knots[1:], strict=False)):
        if b == a + 1:
            continue
        left, right = x[a + 1 : b] - x[a], x[b] - x[a + 1 : b]
        weight = w[a + 1 : b]
        up = np.cumsum(weight * left) / left
        down = np.cumsum((weight * right)[::-1])[::-1] / right - weight
        middle = phi[k] + (phi[k + 1] - phi[k]) * left / (x[b] - x[a])
        rising = left * _moments(np.full_like(middle, phi[k]), middle)[2]
        falling = right * _moments(middle, np.full_like(middle, phi[k + 1]))[1]
        gain[a + 1 : b] = up + down - rising - falling
    return gain


def _optimality(x: Array, w: Array, knots: Index, phi: Array) -> float:
    gradient, _ = _derivatives(x[knots], _hat_weights(x, w, knots), phi)
    return float(max(np.abs(gradient).max(), _gains(x, w, knots, phi).max()))


def _moments(start: Array, end: Array) -> tuple[Array, ...]:
    """Integrals over s in [0, 1] of exp(l(s)), l the straight line from `start` to `end`, times
    1, 1 - s, s, (1 - s)^2, s (1 - s) and s^2.
    """
    # A trial step of Newton's may overflow: it is then refused.
    with np.errstate(over="ignore", invalid="ignore"):
        top = np.exp(np.maximum(start, end))
        zero, one, two = (top * m for m in _decay_moments(np.abs(end - start)))
        high, both, high_high = zero - one, one - two, zero - 2 * one + two
    falls = start >= end
    return (
        zero,
        np.where(falls, high, one),
        np.where(falls, one, high),
        np.where(falls, high_high, two),
        both,
        np.where(falls, two, high_high),
    )


def _decay_moments(r: Array) -> tuple[Array, Array, Array]:
    """Integrals over s in [0, 1] of exp(-r s) times 1, s and s^2, for r >= 0; a series for r < 1."""
    small = r < 1
    safe = np.where(small, 1.0, r)
    decay = np.exp(-safe)
    closed = (
        -np.expm1(-safe) / safe,
        (1 - decay * (1 + safe)) / safe**2,
        (2 - decay * (2 + safe * (2 + safe))) / safe**3,
    )
    term = np.ones_like(r)
    series = [term / 1, term / 2, term / 3]
    near = np.where(small, r, 0.0)
    for j in range(1, _SERIES_TERMS):
        term = term * (-near / j)
        for k in range(3):
            series[k] = series[k] + term / (j + k + 1)
    zero, one, two = (np.where(small, s, c) for s, c in zip(series, closed, strict=True))
    return zero, one, two


def _mean_decay(r: Tensor) -> Tensor:
    """The integral over s in [0, 1] of exp(-r s), for r >= 0."""
    safe = torch.where(r < 1e-5, torch.ones_like(r), r)
    return torch.where(r < 1e-5, 1 - r / 2, -torch.expm1(-safe) / safe)
