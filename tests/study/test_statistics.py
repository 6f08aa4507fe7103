"""Intervals and verdicts: against scipy, and their own check on simulated comparisons."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats

from convexlift.study.protocol import best_rate
from convexlift.study.statistics import (
    paired_difference,
    residual_deviation,
    rows_interval,
    selection_variance,
    summary,
    verdict,
)


def test_paired_difference_is_the_t_interval():
    first, second = [1.0, 2.5, 3.0, 2.2], [2.0, 2.0, 4.0, 3.1]
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = paired_difference(first, second)
    assert found["ci95"] == pytest.approx([interval.low, interval.high])
    wider = paired_difference(first, second, selection_variance=0.3)
    half = (interval.high - interval.low) / 2
    assert (wider["ci95"][1] - wider["ci95"][0]) / 2 == pytest.approx(math.hypot(half, 1.96 * math.sqrt(0.3)))


def test_paired_difference_of_one_seed_and_of_a_diverged_seed():
    assert paired_difference([1.0], [2.0]) == {"mean": -1.0, "ci95": None, "n": 1}
    assert paired_difference([1.0, math.inf], [2.0, 3.0]) == {"mean": None, "ci95": None, "n": 2}


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0])])
def test_paired_difference_refuses(first, second):
    with pytest.raises(ValueError, match="^expected as many losses on both sides, at least one; got "):
        paired_difference(first, second)


def test_summary_keeps_what_is_missing_apart_from_what_diverged():
    assert summary([1.0, None, 3.0]) == {"mean": 2.0, "sem": 1.0, "per_seed": [1.0, None, 3.0]}
    assert summary([1.0, math.inf])["mean"] is None
    assert summary([]) == {"mean": None, "sem": None, "per_seed": []}
    assert summary([2.0])["sem"] is None


def test_rows_interval_covers_like_a_normal_interval():
    rows = torch.randn(500, generator=torch.Generator().manual_seed(1)) + 0.2
    low, high = rows_interval(rows)
    expected = 1.96 * float(rows.std()) / math.sqrt(500)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert rows_interval(rows) == [low, high]


def test_residual_deviation_takes_out_arms_and_seeds():
    draws = torch.Generator().manual_seed(2)
    table = 0.3 * torch.randn(20, 30, generator=draws) + torch.randn(20, 1, generator=draws)
    table = table + torch.randn(1, 30, generator=draws)
    assert residual_deviation(table.tolist()) == pytest.approx(0.3, rel=0.05)
    assert residual_deviation([[1.0, 2.0]]) is None
    assert residual_deviation([[1.0, 2.0], [math.inf, 1.0]]) is None


def test_selection_variance_is_zero_where_the_choice_is_clear():
    assert selection_variance([1.0, 50.0, math.inf], 0.1) == 0.0
    assert selection_variance([1.0], 0.1) == 0.0
    assert selection_variance([math.inf, math.inf], 0.1) == 0.0
    assert selection_variance([1.0, 1.2], 1.0) > 0.0


@pytest.mark.parametrize(
    ("full", "half", "said"),
    [
        ({"mean": -1.0, "ci95": [-2, -0.1], "rows_ci95": [-2, -0.1]}, {"mean": -0.1}, "lower"),
        ({"mean": 1.0, "ci95": [0.1, 2], "rows_ci95": None}, {"mean": 0.1}, "higher"),
        ({"mean": -1.0, "ci95": [-2, -0.1], "rows_ci95": [-2, 0.1]}, {"mean": -0.1}, "undecided"),
        ({"mean": -1.0, "ci95": [-2, 0.1]}, {"mean": -0.1}, "undecided"),
        ({"mean": -1.0, "ci95": [-2, -0.1]}, {"mean": 0.1}, "undecided"),
        ({"mean": -1.0, "ci95": [-2, -0.1]}, None, "undecided"),
        ({"mean": -1.0, "ci95": [-2, -0.1]}, {"mean": None}, "undecided"),
        ({"mean": -1.0, "ci95": None}, {"mean": -0.1}, "undecided"),
    ],
)
def test_verdict_asks_for_both_budgets_and_both_intervals(full, half, said):
    assert verdict(full, half) == said


# --- the protocol on simulated comparisons: 8 rates, 2 selection and 5 evaluation seeds ---

RATES = tuple(0.001 * 2**k for k in range(8))
SIMULATIONS = 200


def simulate(draws: random.Random, *, curvature: float, handicap: float = 0.0, arms: int = 5) -> list[bool]:
    """Whether the interval of each of the pairs (0, 1), ..., (0, arms - 1) leaves out zero.

    Toy loss of an arm at a rate: curvature (log2(rate) - optimum)^2 + seed effect + unit noise; the last arm
    is worse by the handicap.
    """
    seeds = [draws.gauss(0, 1) for _ in range(7)]

    def loss(arm: int, rate: float, seed: int) -> float:
        miss = math.log2(rate / 0.001) - 3.3
        return curvature * miss**2 + seeds[seed] + draws.gauss(0, 1) + (handicap if arm == arms - 1 else 0.0)

    selection = [{rate: (loss(a, rate, 5) + loss(a, rate, 6)) / 2 for rate in RATES} for a in range(arms)]
    best = [best_rate(by_rate) for by_rate in selection]
    test = [[loss(a, best[a], seed) for seed in range(5)] for a in range(arms)]
    validation = [[loss(a, best[a], seed) for seed in range(5)] for a in range(arms)]
    error = residual_deviation(validation) / math.sqrt(2)
    variances = [selection_variance(list(by_rate.values()), error) for by_rate in selection]
    found = [
        paired_difference(test[0], test[a], selection_variance=variances[0] + variances[a])["ci95"]
        for a in range(1, arms)
    ]
    return [low > 0 or high < 0 for low, high in found]


def test_identical_arms_at_one_rate_differ_at_the_stated_rate():
    """Plain t-interval: the number of false positives lies in the central 99.8 % of binomial(200, 0.05)."""
    draws = random.Random(0)
    false = 0
    for _ in range(SIMULATIONS):
        seeds = [draws.gauss(0, 1) for _ in range(5)]
        first, second = ([s + draws.gauss(0, 1) for s in seeds] for _ in range(2))
        low, high = paired_difference(first, second)["ci95"]
        false += low > 0 or high < 0
    least, most = stats.binom.ppf([0.001, 0.999], SIMULATIONS, 0.05)
    assert least <= false <= most


@pytest.mark.parametrize("curvature", [0.0, 0.1, 0.3, 1.0, 3.0])
def test_identical_arms_with_selected_rates_differ_at_most_at_the_stated_rate(curvature):
    draws = random.Random(1)
    false = sum(simulate(draws, curvature=curvature)[-1] for _ in range(SIMULATIONS))
    assert false <= stats.binom.ppf(0.999, SIMULATIONS, 0.05)


@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_a_handicapped_arm_is_found(curvature):
    draws = random.Random(2)
    found = [simulate(draws, curvature=curvature, handicap=5.0) for _ in range(SIMULATIONS)]
    assert sum(pairs[-1] for pairs in found) > 0.9 * SIMULATIONS
    assert sum(pairs[0] for pairs in found) <= stats.binom.ppf(0.999, SIMULATIONS, 0.05)
