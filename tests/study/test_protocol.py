"""Budgets, the grid's growth, the choice of a rate."""

from __future__ import annotations

import dataclasses
import math

import pytest

from convexlift.study.protocol import BUDGETS, Budget, best_rate, budget_for, extension, on_edge

TINY = Budget("tiny", 4, 8, (0.01,), 1, 1, extensions=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": ()}, r"^learning rates must lie in \(0, 1\]; got $"),
        ({"rates": (0.1, -0.1)}, r"^learning rates must lie in \(0, 1\]; got 0.1, -0.1$"),
        ({"rates": (2.0,)}, r"^learning rates must lie in \(0, 1\]; got 2$"),
        ({"steps": 1}, "^steps must be at least 2; got 1$"),
        ({"batch_size": 0}, "^batch size must be at least 1; got 0$"),
        ({"selection_seeds": 0}, "^selection seeds must be at least 1; got 0$"),
        ({"evaluation_seeds": 0}, "^evaluation seeds must be at least 1; got 0$"),
    ],
)
def test_budget_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_unknown_budget():
    with pytest.raises(
        ValueError, match="^unknown budget 'paper' for a flow problem; known: quick, standard, full$"
    ):
        budget_for("flow", "paper")
    assert budget_for("own", "quick") == budget_for("flow", "quick")


def test_densities_of_several_dimensions_have_budgets_of_their_own():
    assert budget_for("density", "quick", 1) == budget_for("density", "quick")
    assert budget_for("density", "standard", 2).steps == 400
    assert budget_for("flow", "quick", 2) == budget_for("flow", "quick")
    with pytest.raises(ValueError, match="^unknown budget 'paper' for a multivariate density problem; "):
        budget_for("density", "paper", 3)


def test_grids_are_of_factor_two_and_standard_has_the_stated_seeds():
    for task, budgets in BUDGETS.items():
        for budget in budgets.values():
            ratios = [b / a for a, b in zip(budget.rates, budget.rates[1:], strict=False)]
            assert all(ratio == pytest.approx(2.0) for ratio in ratios)
        for name in ("standard", "full"):
            assert budgets[name].selection_seeds == 2
            assert budgets[name].evaluation_seeds == (10 if task == "density" else 5)
            assert budgets[name].fixed_rate is (task != "multivariate density" or name == "full")


def test_best_rate():
    assert best_rate({0.04: 1.0, 0.02: 1.0, 0.01: 2.0}) == 0.02
    assert best_rate({0.01: math.inf, 0.02: math.nan}) is None


def test_grid_grows_for_all_arms_until_no_best_is_on_an_edge():
    optima = {"a": 0.003, "b": 0.05, "c": 0.4}
    grid = [0.008, 0.016, 0.032]
    while True:
        losses = {arm: {r: math.log(r / best) ** 2 for r in grid} for arm, best in optima.items()}
        grown = extension(grid, on_edge(losses))
        if not grown:
            break
        grid = sorted([*grid, *grown])
    assert [round(rate, 4) for rate in grid] == [
        0.002,
        0.004,
        0.008,
        0.016,
        0.032,
        0.064,
        0.128,
        0.256,
        0.512,
        1.024,
    ][:9]
    assert on_edge(losses) == {"c": "highest"}  # 1.024 would lie beyond 1


def test_divergence_at_every_rate_asks_for_lower_ones():
    assert on_edge({"a": {0.01: math.inf, 0.02: math.inf}}) == {"a": "lowest"}
    assert extension([0.01, 0.02], {"a": "lowest"}) == [0.005]
    assert extension([0.00015, 0.0003], {"a": "lowest"}) == []
