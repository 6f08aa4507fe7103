"""What came out of a comparison: the figures of every arm, and the differences between arms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from convexlift.problems import Problem
from convexlift.study.cells import Cell
from convexlift.study.outcomes import Outcomes, mean
from convexlift.study.protocol import FIXED_RATE
from convexlift.study.statistics import (
    common_difference,
    finite_or_none,
    residual_deviation,
    rows_interval,
    selection_variance,
    summary,
    verdict,
)

FIGURES = ("emission_noise", "step_amplification", "shoulder", "at_zero", "fan_in_weight", "relative_speed")


def described(chosen: Problem) -> dict[str, Any]:
    """What a result says of its problem."""
    return {
        "problem": chosen.name,
        "task": chosen.task,
        "metric": chosen.metric,
        "description": chosen.description,
        "source": chosen.source,
        "licence": chosen.licence,
    }


def arm_figures(outcomes: Outcomes, cells: Sequence[Cell], ms_per_step: float | None) -> dict[str, Any]:
    """The figures of one arm over its evaluation cells."""
    finished = outcomes.finished(cells)
    found: dict[str, Any] = {
        "test": summary(outcomes.losses(cells)),
        "metrics": {
            key: summary([outcome["metrics"][key] for outcome in finished])
            for key in (finished[0]["metrics"] if finished else ())
        },
        "ms_per_step": ms_per_step,
        "parameters": finished[0]["parameters"] if finished else None,
    }
    for key in FIGURES:
        seen = [outcome[key] for outcome in finished if outcome.get(key)]
        found[key] = {at: median([entry[at] for entry in seen]) for at in seen[0]} if seen else None
    histograms = [outcome["weights"] for outcome in finished if outcome.get("weights")]
    found["weights"] = {
        at: [mean(shares) for shares in zip(*(entry[at] for entry in histograms), strict=True)]
        for at in (histograms[0] if histograms else ())
    }
    found["picture"] = next((outcome["picture"] for outcome in finished if outcome.get("picture")), None)
    steps = finished[0]["steps"] if finished else []
    found["curves"] = {
        "steps": steps,
        "seconds": [step * (ms_per_step or 0.0) / 1000 for step in steps],
        "validation": [outcome["curve"] for outcome in finished],
    }
    return found


def rate_figures(outcomes: Outcomes, name: str, validation: Mapping[float, float]) -> list[dict[str, Any]]:
    """An arm's mean validation loss at every rate, and the test loss there, which plays no part in the
    choice."""
    return [
        {
            "lr": rate,
            "validation": finite_or_none(loss),
            "test": finite_or_none(mean(outcomes.losses(outcomes.selection(name, rate)))),
        }
        for rate, loss in validation.items()
    ]


def equal_seconds(
    outcomes: Outcomes, full: Mapping[str, Sequence[Cell]], speed: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Each arm's test loss when the fastest arm ends: of its model that was best on validation until then, in
    the run of the full budget. Seconds are steps times the arm's milliseconds a step."""
    totals = [outcomes.budget.steps * speed[name] / 1000 for name in full if name in speed]
    limit = min(totals)

    def loss(cell: Cell) -> float | None:
        outcome = outcomes.by_cell[cell]
        if outcome["status"] != "finished":
            return outcomes.loss(cell)
        ms = speed[cell.arm]
        reached = [k for k, step in enumerate(outcome["steps"]) if step * ms / 1000 <= limit * (1 + 1e-9)]
        return float(outcome["test_curve"][reached[-1]]) if reached else math.inf

    return {
        name: {**summary([loss(cell) for cell in cells]), "seconds": limit} for name, cells in full.items()
    }


def selection_variances(
    outcomes: Outcomes, full: Mapping[str, Sequence[Cell]], validation: Mapping[str, Mapping[float, float]]
) -> dict[str, float]:
    """What the choice of each arm's rate adds to the variance of its score; 0 where it cannot be told."""
    seeds = outcomes.budget.selection_seeds
    losses = [outcomes.losses(cells, "validation") for cells in full.values() if cells]
    noise = residual_deviation([[math.inf if loss is None else loss for loss in row] for row in losses])
    error = 0.0 if noise is None else noise / math.sqrt(seeds)
    return {name: selection_variance(list(by_rate.values()), error) for name, by_rate in validation.items()}


def pairs(
    outcomes: Outcomes,
    full: Mapping[str, Sequence[Cell]],
    half: Mapping[str, Sequence[Cell]] | None,
    variances: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """The lift (or the first arm, where no lift was trained) minus every other arm."""
    first = "lift" if "lift" in full else next(iter(full))
    pairs = {}
    for other in full:
        variance = variances.get(first, 0) + variances.get(other, 0)
        found = _difference(outcomes, full[first], full[other], variance)
        if other == first or found is None:
            continue
        found["rows_ci95"] = _rows(outcomes, full[first], full[other])
        if half is not None:
            found["half_budget"] = _difference(outcomes, half[first], half[other], 0.0)
            found["verdict"] = verdict(found, found["half_budget"])
        pairs[f"{first}-{other}"] = found
    return pairs


def _difference(
    outcomes: Outcomes, first: Sequence[Cell], second: Sequence[Cell], variance: float
) -> dict[str, Any] | None:
    """The paired difference over the seeds that did not fail in either arm; None where there are none."""
    one, two = outcomes.losses(first), outcomes.losses(second)
    found, plain = (common_difference(one, two, selection_variance=v) for v in (variance, 0.0))
    return found and plain and {**found, "seeds_ci95": plain["ci95"]}


def _rows(outcomes: Outcomes, first: Sequence[Cell], second: Sequence[Cell]) -> list[float] | None:
    both = [
        torch.tensor(outcomes.by_cell[a]["rows"], dtype=torch.float32)
        - torch.tensor(outcomes.by_cell[b]["rows"], dtype=torch.float32)
        for a, b in zip(first, second, strict=False)
        if outcomes.by_cell[a]["status"] == outcomes.by_cell[b]["status"] == "finished"
    ]
    return rows_interval(torch.stack(both).double().mean(0)) if both else None


def fixed_rate_table(
    outcomes: Outcomes, cells: Mapping[str, Sequence[Cell]], speed: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of every arm at the common rate."""
    arms = {
        name: {
            "lr": FIXED_RATE,
            **arm_figures(outcomes, cells[name], speed.get(name)),
            "source_factor": median([outcome["source_factor"] for outcome in outcomes.finished(cells[name])]),
            "failed": outcomes.messages(cells[name]),
        }
        for name in cells
    }
    return {"lr": FIXED_RATE, "arms": arms, "pairs": pairs(outcomes, cells, None, {})}


def median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
