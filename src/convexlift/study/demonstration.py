"""The demonstration: a toy and real data, every way of training at the usual and at the library's rates."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from convexlift.files import write_json
from convexlift.mechanism.observing import parts
from convexlift.problems import gaussian_baseline
from convexlift.study import summaries
from convexlift.study.cells import Cell, Named, Setting, Subject, load, subject
from convexlift.study.outcomes import EVALUATION, Event, Outcomes
from convexlift.study.protocol import FIXED_RATE, Budget
from convexlift.study.snapshots import picture_of_data
from convexlift.study.speed import step_times
from convexlift.study.workers import Workers
from convexlift.testing import check_convex, check_nonnegative
from convexlift.training.environment import environment

KIND = "demonstration"
WAYS = ("projected", "softplus", "squared", "lift", "lift-reference")

# The rates of `convexlift train`, whichever the way. But projection on flows has the one at which it did best
# over several problems, and the published configuration of the lift its published one: see docs/mechanism.md.
RATES: Mapping[str, Mapping[str, float]] = {
    "flow": {**dict.fromkeys(WAYS, 0.032), "projected": 0.016, "lift-reference": FIXED_RATE},
    "density": {**dict.fromkeys(WAYS, 0.064), "lift-reference": FIXED_RATE},
}
BUDGETS: Mapping[str, Budget] = {
    "laplace": Budget("demo", 500, 256, (FIXED_RATE,), 1, 3, extensions=0),
    "digits21": Budget("demo", 250, 128, (FIXED_RATE,), 1, 3, extensions=0),
}

# A run takes longer than its steps: it is validated on the way, then checked, scored and drawn.
_BESIDE_STEPS, _CHECKING = 1.3, 0.8
_START = 4.0  # seconds until the worker processes of a problem have loaded torch
_STARTS, _SCALES = 64, (1.0, 10.0)  # of the search for curvature, which every model gets


@final
@dataclass(frozen=True)
class Progress:
    """So many of the models are trained; about so many seconds are left."""

    done: int
    total: int
    message: str
    seconds_left: float


@final
@dataclass(frozen=True)
class Checked:
    """Makes the problem of that name; what is measured of a frozen model says too whether it is convex."""

    name: str

    def __call__(self) -> Subject:
        chosen, arms = Named(self.name)()

        def metrics(frozen: nn.Module) -> dict[str, float]:
            known = {} if chosen.metrics is None else chosen.metrics(frozen)
            return {**known, **convexity(frozen)}

        return dataclasses.replace(chosen, metrics=metrics), arms


def convexity(frozen: nn.Module) -> dict[str, float]:
    """The smallest constrained weight of a frozen model, and the smallest curvature that a search met.

    Example:
        >>> import convexlift as cl
        >>> found = convexity(cl.LogConcaveDensity(cl.ICNN(1, hidden=(4,), seed=0)))
        >>> min(found.values()) >= 0
        True
    """
    weights, curvatures = [], []
    for potential in parts(frozen):
        net: Any = potential
        weights.append(check_nonnegative(net).smallest)
        curvatures.append(check_convex(net, dim=net.dim, scales=_SCALES, starts=_STARTS, raises=False).worst)
    return {"smallest_weight": min(weights), "smallest_curvature": min(curvatures)}


@final
@dataclass
class _Pace:
    """How long what is left will take: from timed steps at first, corrected by the runs that are finished."""

    expected: dict[tuple[str, Cell], float]
    jobs: int = 1
    starts: int = 0
    done: float = 0.0  # seconds that finished runs were expected to take
    took: float = 0.0

    def __post_init__(self) -> None:
        self.total = len(self.expected)
        # The expectation weighs as much as a few runs.
        self._weight = 3 * sum(self.expected.values()) / max(self.total, 1)

    def finished(self, problem: str, cell: Cell, seconds: float) -> None:
        self.done += self.expected.pop((problem, cell), 0.0)
        self.took += seconds

    def left(self) -> float:
        slower = (self._weight + self.took) / (self._weight + self.done) if self._weight else 1.0
        return slower * (sum(self.expected.values()) / self.jobs + self.starts * _START)


def demonstrate(
    out: str | os.PathLike[str],
    *,
    seeds: int = 3,
    seed: int = 0,
    jobs: int | None = None,
    resume: bool = True,
    budgets: Mapping[str, Budget] = BUDGETS,
    command: str | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> dict[str, Any]:
    """Train one network in several ways, at 0.001 and at the library's rates, and write `result.json`.

    For each problem and seed every way has the same data, batches and start ("lift-reference" starts from
    scattered weights of its own). Each frozen model is checked for convexity, scored on test rows and, for
    the first seed, drawn.

    Args:
        out: folder for `result.json` and `cells/`.
        seeds: how many, at least 3 for intervals worth having.
        seed: the first of them.
        jobs: models trained at a time, by default one for each core.
        resume: use the finished runs in `out`, or train them all again.
        budgets: the problems by name, and what is spent on each.
        command: the shell command that gives the result again; kept in it.
        progress: called at the start, and after every model.

    Returns:
        The result, as in `result.json`: under "parts" a comparison of each problem at the library's rates,
        with the one at 0.001 under its "fixed_rate".

    Raises:
        ValueError: no seeds, or seeds beyond 999.
        OSError: the folder cannot be written.
        RuntimeError: a worker process died.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    began, folder = time.perf_counter(), Path(out)
    settings = {
        name: Setting(Checked(name), dataclasses.replace(budget, evaluation_seeds=seeds, first_seed=seed))
        for name, budget in budgets.items()
    }
    speeds, groups = {}, {}
    for name, setting in settings.items():
        groups[name] = _cells(setting, RATES[load(setting.make)[0].task])
        speeds[name] = step_times(setting, WAYS)
    pace = _Pace(
        {
            (name, cell): _BESIDE_STEPS * cell.steps * speeds[name][cell.arm] / 1000 + _CHECKING
            for name, both in groups.items()
            for cell in _each(both)
        },
        starts=len(settings),
    )
    results = []
    for name, setting in settings.items():
        with Workers(setting, folder / "cells" / name, jobs=jobs, resume=resume) as workers:
            pace.jobs = workers.jobs
            results.append(_part(name, workers, groups[name], speeds[name], pace, progress))
    result = {
        "schema": 1,
        "kind": KIND,
        "parts": results,
        "command": command,
        "environment": {**environment(), "threads_per_run": 1, "jobs": pace.jobs, "seed": seed},
        "seconds": time.perf_counter() - began,
    }
    write_json(folder / "result.json", result)
    return result


Groups = Mapping[str, Mapping[str, Sequence[Cell]]]


def _cells(setting: Setting, rates: Mapping[str, float]) -> Groups:
    """The runs of every way at the usual rate and at the library's."""
    budget = setting.budget

    def of(way: str, rate: float) -> list[Cell]:
        return [Cell(way, rate, seed, budget.steps) for seed in budget.evaluation]

    usual = {way: of(way, FIXED_RATE) for way in WAYS}
    return {"usual": usual, "own": {way: of(way, rates[way]) for way in WAYS}}


def _each(groups: Groups) -> list[Cell]:
    """Every run once, seed by seed, so that an interrupted demonstration has some of each."""
    runs = dict.fromkeys(cell for group in groups.values() for of_way in group.values() for cell in of_way)
    return sorted(runs, key=lambda cell: cell.seed)


def _part(
    name: str,
    workers: Workers,
    cells: Groups,
    speed: Mapping[str, float],
    pace: _Pace,
    progress: Callable[[Progress], object] | None,
) -> dict[str, Any]:
    """Train on one problem, and sum up as a comparison does."""

    def tell(message: str) -> None:
        if progress is not None:
            done = pace.total - len(pace.expected)
            progress(Progress(done, pace.total, f"{name}: {message}", pace.left()))

    def show(event: Event) -> None:
        cell = next(reversed(outcomes.by_cell))
        pace.finished(name, cell, outcomes.by_cell[cell].get("seconds", 0.0))
        tell(event.message)

    tell("starting")
    pace.starts -= 1
    outcomes, budget = Outcomes(workers, show), workers.setting.budget
    outcomes.run(EVALUATION, _each(cells))
    if not any(outcomes.finished(of_way) for group in cells.values() for of_way in group.values()):
        raise RuntimeError(f"{name}: every run failed; the first: {outcomes.messages(outcomes.by_cell)[0]}")
    chosen = subject(workers.setting)[0]
    return {
        "problem": chosen.name,
        "task": chosen.task,
        "metric": chosen.metric,
        "description": chosen.description,
        "source": chosen.source,
        "licence": chosen.licence,
        "facts": {"gaussian": gaussian_baseline(chosen), **chosen.facts},
        "picture": picture_of_data(chosen),
        "protocol": {
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "seeds": list(budget.evaluation),
            "architecture": {**chosen.architecture, "blocks": chosen.blocks},
            "optimizer": budget.optimizer,
            "schedule": "cosine, to 0",
        },
        **_section(outcomes, cells["own"], speed),
        "fixed_rate": {"lr": FIXED_RATE, **_section(outcomes, cells["usual"], speed)},
    }


def _section(
    outcomes: Outcomes, cells: Mapping[str, Sequence[Cell]], speed: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of every way at one choice of rates."""
    arms = {
        way: {
            "lr": of_way[0].lr,
            **summaries.arm_figures(outcomes, of_way, speed.get(way)),
            "seconds": of_way[0].steps * speed[way] / 1000,
            "failed": outcomes.messages(of_way),
        }
        for way, of_way in cells.items()
    }
    return {"arms": arms, "pairs": summaries.pairs(outcomes, cells, None, {})}
