"""Whether chains have mixed, and how many independent draws they are worth.

Formulas of Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16(2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexlift.ambient import guarded


@guarded
def r_hat(chains: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each coordinate, (d,): near 1 when the chains agree.

    Every chain is cut in two. Ranks over all draws become normal scores; with B the variance between the
    halves' means (times their length T) and W the mean variance within them,

        R-hat = sqrt(((T - 1) / T W + B / T) / W),

    and the larger of two such numbers is returned: one of the draws (location), one of their distances from
    the median (scale). It is infinite for a coordinate in which no chain moved.

    Args:
        chains: (C, T, d), C chains of T draws, T >= 4.

    Raises:
        ValueError: another shape, fewer than 4 draws a chain, or an entry that is not finite.

    Source: Vehtari et al. (2021).

    Example:
        >>> draws = torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((r_hat(draws) < 1.01).all())
        True
        >>> draws[0, :, 1] += 3.0
        >>> (r_hat(draws) > 1.1).tolist()
        [False, True]
    """
    halves = _halves(chains)
    ordered = halves.flatten(0, 1).sort(0).values
    middle = len(ordered) // 2
    folded = (halves - ordered[middle - 1 : middle + 1].mean(0)).abs()  # halves hold an even number of draws
    return torch.maximum(_plain_r_hat(_normal_scores(halves)), _plain_r_hat(_normal_scores(folded)))


@guarded
def effective_sample_size(chains: Tensor) -> Tensor:
    """Bulk effective sample size of each coordinate, (d,): how many independent draws the chains are worth.

        ESS = C T / tau,    tau = 1 + 2 sum_t rho_t,

    rho_t the autocorrelation of the normal scores of the split chains, with what separates the chains counted
    as correlation. The sum is Geyer's: pairs rho_2t + rho_2t+1 as long as they are positive, made
    non-increasing. At most C T log10(C T); zero for a coordinate in which no chain moved.

    Args:
        chains: (C, T, d), C chains of T draws, T >= 4.

    Raises:
        ValueError: as ``r_hat``.

    Source: Vehtari et al. (2021); Geyer (1992), "Practical Markov chain Monte Carlo".

    Example:
        >>> draws = torch.randn(4, 500, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(effective_sample_size(draws) > 1500)
        True
    """
    scores = _normal_scores(_halves(chains))
    count, length, _ = scores.shape
    total = count * length
    centred = scores - scores.mean(1, keepdim=True)
    size = 2 ** math.ceil(math.log2(2 * length))
    spectrum = torch.fft.rfft(centred, size, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), size, dim=1)[:, :length].mean(0) / length
    within = covariance[0] * length / (length - 1)
    over = within * (length - 1) / length + scores.mean(1).var(0)
    moved = within > 1e-20  # a half that repeats one value leaves rounding, not variance
    correlation = 1 - (within - covariance) / over.where(moved, torch.ones_like(over))
    correlation[0] = 1
    pairs = correlation[: length - length % 2].unflatten(0, (-1, 2)).sum(1)
    pairs = pairs.cummin(0).values
    tau = -1 + 2 * pairs.clamp_min(0).sum(0)
    ess = total / tau.clamp_min(1 / math.log10(total))
    return ess.where(moved, torch.zeros_like(ess))


@guarded
def importance_ess(log_weights: Tensor) -> float:
    """Effective sample size of importance weights, (sum w)^2 / sum w^2, from their logarithms (N,).

    Raises:
        ValueError: there are none, one is NaN or +inf, or all weights are zero.

    Source: Kong (1992), "A note on importance sampling using standardized weights".

    Example:
        >>> importance_ess(torch.tensor([0.0, 0.0, -torch.inf]))
        2.0
    """
    if log_weights.ndim != 1 or len(log_weights) == 0:
        raise ValueError(f"expected (N,) log weights; got {tuple(log_weights.shape)}")
    w = log_weights.double()
    if bool((w.isnan() | (w == torch.inf)).any()):
        raise ValueError("the log weights have NaN or +inf entries")
    top = w.max()
    if float(top) == -math.inf:
        raise ValueError(f"all {len(w)} weights are zero: no draw hit the target")
    w = (w - top).exp()
    return float(w.sum().square() / w.square().sum())


def _halves(chains: Tensor) -> Tensor:
    if chains.ndim != 3 or chains.shape[0] < 1 or chains.shape[1] < 4:
        raise ValueError(f"expected (C, T, d) chains with at least 4 draws each; got {tuple(chains.shape)}")
    chains = chains.detach().double()
    if not bool(chains.isfinite().all()):
        chain, draw, _ = (~chains.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"chain {chain} is not finite at draw {draw}")
    half = chains.shape[1] // 2
    return torch.cat([chains[:, :half], chains[:, -half:]])


def _normal_scores(chains: Tensor) -> Tensor:
    """Every coordinate's draws replaced by normal quantiles of their ranks, ties sharing the mean rank."""
    flat = chains.flatten(0, 1)
    scores = torch.empty_like(flat)
    for column in range(flat.shape[1]):
        _, place, count = flat[:, column].unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        rank = last - (count - 1) / 2
        scores[:, column] = torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25))[place]
    return scores.view_as(chains)


def _plain_r_hat(chains: Tensor) -> Tensor:
    length = chains.shape[1]
    within = chains.var(1).mean(0)
    over = within * (length - 1) / length + chains.mean(1).var(0)
    moved = within > 1e-20  # as above
    return (over / within.where(moved, torch.ones_like(within))).sqrt().where(moved, torch.inf)
