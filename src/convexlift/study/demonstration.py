"""The demonstration: a toy density and real data, each way of training at the usual rate and at the library's."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import nn

from convexlift.files import write_json
from convexlift.mechanism.observing import parts
from convexlift.problems import Problem, gaussian_baseline
from convexlift.study import summaries
from convexlift.study.cells import Cell, Named, Setting, Subject, load, subject
from convexlift.study.outcomes import Event, Outcomes
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
    "laplace": Budget("demo", 600, 256, (FIXED_RATE,), 1, 3, extensions=0),
    "digits21": Budget("demo", 300, 128, (FIXED_RATE,), 1, 3, extensions=0),
}

# A run takes longer than its steps: it is validated on the way, then checked, scored and drawn.
_BESIDE_STEPS, _CHECKING = 1.5, 0.7
_START = 4.0  # seconds until worker processes have loaded torch
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
    """How long what is left will take: from timed steps at first, corrected by the models that are trained."""

    jobs: int
    expected: dict[tuple[str, Cell], float]
    began: float = field(default_factory=time.perf_counter)
    spent: float = 0.0  # expected seconds of trained models
    starts: int = 0

    def finished(self, cells: Iterable[tuple[str, Cell]]) -> None:
        for cell in cells:
            self.spent += self.expected.pop(cell, 0.0)

    def left(self) -> float:
        rest = sum(self.expected.values())
        known = self.spent / (self.spent + rest) if rest else 1.0
        actual = (time.perf_counter() - self.began) * self.jobs
        slower = actual / self.spent if self.spent else 1.0
        factor = (1 - known) + known * slower if known < 0.2 else slower
        return rest / self.jobs * factor


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
    speeds, cells = {}, {}
    for name, setting in settings.items():
        chosen, _ = load(setting.make)
        speeds[name] = step_times(setting, WAYS)
        cells[name] = {
            key: {way: [Cell(way, rate, k, setting.budget.steps) for k in setting.budget.evaluation] for way, rate in rates.items()}
            for key, rates in (("usual", dict.fromkeys(WAYS, FIXED_RATE)), ("own", RATES[chosen.task]))
        }
    expected = {
        (name, cell): _BESIDE_STEPS * cell.steps * speeds[name][cell.arm] / 1000 + _CHECKING
        for name, groups in cells.items()
        for group in groups.values()
        for of_way in group.values()
        for cell in of_way
    }
    told = progress or (lambda _: None)
    results, pace, total = [], None, len(expected)
    for name, setting in settings.items():
        with Workers(setting, folder / "cells" / name, jobs=jobs, resume=resume) as workers:
            pace = pace or _Pace(workers.jobs, expected)
            results.append(_part(name, workers, cells[name], speeds[name], pace, total, told))
    result = {
        "schema": 1,
        "kind": KIND,
        "parts": results,
        "command": command,
        "environment": {**environment(), "threads_per_run": 1, "jobs": pace.jobs if pace else None, "seed": seed},
        "seconds": time.perf_counter() - began,
    }
    write_json(folder / "result.json", result)
    return result


def _part(
    name: str,
    workers: Workers,
    cells: Mapping[str, Mapping[str, Sequence[Cell]]],
    speed: Mapping[str, float],
    pace: _Pace,
    total: int,
    told: Callable[[Progress], object],
) -> dict[str, Any]:
    """Train on one problem, and sum up as a comparison does."""

    def show(event: Event | None = None) -> None:
        if event is not None:
            pace.finished([(name, Cell(event.arm, event.lr, event.seed, workers.setting.budget.steps))])
        message = f"{name}: {event.message}" if event else f"{name}: starting"
        told(Progress(total - len(pace.expected), total, message, pace.left()))

    show()
    outcomes, budget = Outcomes(workers, show), workers.setting.budget
    outcomes.run("evaluation", [c for group in cells.values() for of_way in group.values() for c in of_way])
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
            "architecture": {**_architecture(chosen, budget), "blocks": chosen.blocks},
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
            "seconds": _mean_seconds(outcomes, of_way),
            "failed": outcomes.messages(of_way),
        }
        for way, of_way in cells.items()
    }
    return {"arms": arms, "pairs": summaries.pairs(outcomes, cells, None, {})}


def _mean_seconds(outcomes: Outcomes, cells: Sequence[Cell]) -> float | None:
    seconds = [float(outcome["seconds"]) for outcome in outcomes.finished(cells)]
    return math.fsum(seconds) / len(seconds) if seconds else None


def _architecture(chosen: Problem, budget: Budget) -> dict[str, Any]:
    return dict(budget.architecture) if budget.architecture else dict(chosen.architecture)
