from __future__ import annotations

import math

import pytest
import torch
from arviz_stats.base import array_stats
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convexlift.integration.chain_diagnostics import effective_sample_size, importance_ess, r_hat


def autoregressive(rho: float, chains: int, length: int, dim: int = 1, seed: int = 0) -> Tensor:
    """Stationary AR(1) chains with unit variance, (chains, length, dim)."""
    noise = torch.randn(length, chains, dim, generator=torch.Generator().manual_seed(seed)).double()
    x = [noise[0]]
    for fresh in noise[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * fresh)
    return torch.stack(x, 1)


def test_independent_draws_agree_and_count_fully() -> None:
    draws = autoregressive(0.0, 4, 1000, dim=5)
    assert float(r_hat(draws).max()) < 1.01
    ess = effective_sample_size(draws)
    assert ess.shape == (5,)
    assert float((ess / 4000 - 1).abs().max()) < 0.15


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9, -0.4])
def test_the_sample_size_of_an_autoregressive_chain(rho: float) -> None:
    draws = autoregressive(rho, 8, 5000, dim=4)
    expected = 40_000 * (1 - rho) / (1 + rho)
    assert float((effective_sample_size(draws) / expected - 1).abs().mean()) < 0.1


def test_it_follows_the_published_formulas_literally() -> None:
    """The same numbers from loops over chains, lags and pairs."""
    draws = autoregressive(0.5, 3, 40, seed=3)
    halves = torch.cat([draws[:, :20, 0], draws[:, 20:, 0]])
    flat = halves.flatten()
    rank = torch.tensor([1 + float((flat < v).sum()) for v in flat]).double()
    z = torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25)).view_as(halves)
    within = z.var(1).mean()
    over = within * 19 / 20 + z.mean(1).var()
    scores = z - z.mean(1, keepdim=True)
    rho = [1.0]
    for lag in range(1, 20):
        covariance = torch.stack([(c[: 20 - lag] * c[lag:]).sum() / 20 for c in scores]).mean()
        rho.append(float(1 - (within - covariance) / over))
    tau, previous = -1.0, math.inf
    for t in range(0, 20, 2):
        pair = min(previous, rho[t] + rho[t + 1])
        if pair < 0:
            break
        tau, previous = tau + 2 * pair, pair
    assert float(effective_sample_size(draws)) == pytest.approx(120 / tau, rel=1e-9)
    folded = (draws - draws.flatten().median()).abs()
    assert float(r_hat(draws)) >= float((over / within).sqrt()) - 1e-12
    assert float(r_hat(draws)) == pytest.approx(
        max(float((over / within).sqrt()), float(r_hat(folded))), rel=0.02
    )


ORACLE = {
    "independent": autoregressive(0.0, 4, 500),
    "dependent": autoregressive(0.9, 4, 1000),
    "weakly dependent": autoregressive(0.5, 4, 500),
    "antithetic": autoregressive(-0.5, 4, 500),
    "an odd number": autoregressive(0.3, 3, 101),
    "hardly moving": autoregressive(0.999, 4, 200),
    "in other places": autoregressive(0.5, 4, 300) + torch.arange(4.0)[:, None, None],
    "of other widths": autoregressive(0.5, 4, 300) * torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None, None],
    "drifting": autoregressive(0.0, 4, 300) + torch.linspace(-2, 2, 300)[:, None],
    "heavy-tailed": autoregressive(0.2, 4, 500).pow(5),
    "rounded": autoregressive(0.2, 4, 200).round(),
    "one still": torch.cat([autoregressive(0.0, 3, 100), torch.zeros(1, 100, 1)]),
    "of four draws": autoregressive(0.0, 4, 4),
    "of six draws": autoregressive(0.5, 4, 6),
}


@pytest.mark.parametrize("kind", ORACLE)
def test_r_hat_is_arvizs(kind: str) -> None:
    draws = ORACLE[kind]
    oracle = array_stats.rhat(draws[..., 0].numpy(), method="rank", chain_axis=0, draw_axis=1)
    assert float(r_hat(draws)) == pytest.approx(float(oracle), rel=1e-9)


@pytest.mark.parametrize("kind", [kind for kind, draws in ORACLE.items() if draws.shape[1] >= 100])
def test_the_sample_size_is_arvizs(kind: str) -> None:
    """To rounding, where the pair of coefficients that ends the sum starts negative. Elsewhere ArviZ adds its
    first coefficient too, and it stops short of the longest lags: the article says neither."""
    draws = ORACLE[kind]
    oracle = array_stats.ess(draws[..., 0].numpy(), method="bulk", chain_axis=0, draw_axis=1)
    same = kind in ("independent", "dependent", "of other widths", "one still")
    assert float(effective_sample_size(draws)) == pytest.approx(float(oracle), rel=1e-9 if same else 0.05)


def test_chains_that_differ_in_place_or_width_are_seen() -> None:
    shifted = autoregressive(0.0, 4, 500)
    shifted[0] += 2.0
    assert float(r_hat(shifted)) > 1.1
    wide = autoregressive(0.0, 4, 500)
    wide[0] *= 4.0
    assert float(r_hat(wide)) > 1.1
    trend = autoregressive(0.0, 4, 500) + torch.linspace(-2, 2, 500)[:, None]
    assert float(r_hat(trend)) > 1.1
    assert float(effective_sample_size(shifted)) < 200


@given(
    seed=st.integers(0, 1000),
    rho=st.floats(-0.8, 0.95),
    length=st.integers(4, 60),
    order=st.permutations(range(3)),
)
def test_neither_units_nor_the_order_of_the_chains_count(
    seed: int, rho: float, length: int, order: list[int]
) -> None:
    draws = autoregressive(rho, 3, length, dim=2, seed=seed)
    mapped = torch.stack([draws[..., 0].sinh(), -4 * draws[..., 1]], -1)[order]
    torch.testing.assert_close(effective_sample_size(mapped), effective_sample_size(draws))
    torch.testing.assert_close(r_hat(mapped)[1], r_hat(draws)[1])
    total = 3 * (length - length % 2)
    assert float(effective_sample_size(draws).max()) <= total * math.log10(total) + 1e-9


def test_they_do_not_change_under_monotone_maps() -> None:
    draws = autoregressive(0.5, 4, 200)
    torch.testing.assert_close(effective_sample_size(draws), effective_sample_size(draws.exp()))


def test_heavy_tails_are_no_trouble() -> None:
    uniform = torch.rand(4, 1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cauchy = torch.tan(math.pi * (uniform - 0.5))
    assert float(r_hat(cauchy)) < 1.01
    assert float(effective_sample_size(cauchy)) > 3000


def test_repeated_draws_share_their_rank() -> None:
    draws = autoregressive(0.0, 4, 400).repeat_interleave(5, 1)
    assert float(effective_sample_size(draws)) == pytest.approx(1600, rel=0.15)


def test_chains_that_never_move() -> None:
    still = torch.zeros(4, 100, 2)
    assert r_hat(still).tolist() == [math.inf, math.inf]
    assert effective_sample_size(still).tolist() == [0.0, 0.0]
    apart = torch.arange(4.0)[:, None, None].expand(4, 100, 1)
    assert r_hat(apart).tolist() == [math.inf]


@pytest.mark.parametrize("function", [r_hat, effective_sample_size])
def test_bad_chains_have_one_sentence(function) -> None:
    with pytest.raises(
        ValueError, match=r"expected \(C, T, d\) chains with at least 4 draws each; got \(4, 3, 1\)"
    ):
        function(torch.zeros(4, 3, 1))
    broken = torch.randn(4, 10, 2)
    broken[2, 7, 1] = torch.nan
    with pytest.raises(ValueError, match="chain 2 is not finite at draw 7"):
        function(broken)


@given(logs=st.lists(st.floats(-50, 50), min_size=1, max_size=20), shift=st.floats(-500, 500))
def test_importance_weights_count_for_one_to_all_in_any_unit(logs: list[float], shift: float) -> None:
    ess = importance_ess(torch.tensor(logs, dtype=torch.float64))
    assert 1 - 1e-12 <= ess <= len(logs) + 1e-9
    moved = importance_ess(torch.tensor(logs, dtype=torch.float64) + shift)
    assert moved == pytest.approx(ess, rel=1e-9)


def test_importance_weights() -> None:
    assert importance_ess(torch.zeros(10)) == pytest.approx(10)
    assert importance_ess(torch.tensor([0.0, -torch.inf, -torch.inf])) == 1.0
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert importance_ess(weights.log() + 1e4) == pytest.approx(36 / 14, rel=1e-3)
    with pytest.raises(ValueError, match="all 3 weights are zero"):
        importance_ess(torch.full((3,), -torch.inf))
    with pytest.raises(ValueError, match="NaN or"):
        importance_ess(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"expected \(N,\) log weights; got \(0,\)"):
        importance_ess(torch.zeros(0))
