"""The demonstration: a toy and real data, every way of training at the usual and at the library's rates."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from convexlift.defaults import ANY, DENSITY, FLOW
from convexlift.files import remove_torn, write_json
from convexlift.locks import owned
from convexlift.mechanism.observing import parts
from convexlift.problems import gaussian_baseline
from convexlift.study import summaries
from convexlift.study.cells import Cell, Named, Setting, Subject, load, subject
from convexlift.study.outcomes import Event, Outcomes, Pace
from convexlift.study.protocol import FIXED_RATE, Budget
from convexlift.study.snapshots import picture_of_data
from convexlift.study.speed import step_times
from convexlift.study.workers import Workers
from convexlift.testing import check_convex, check_nonnegative
from convexlift.training.environment import environment

KIND = "demonstration"
WAYS = ("projected", "softplus", "squared", "lift", "lift-reference")

# The rates of `convexlift train`; the lift's has its gain in it. But projection on flows has the one at which
# it did best over several problems, and the published lift its published one: see docs/mechanism.md.
_OF_LIFTS = dict.fromkeys(("lift", "lift-reference"), ANY.lr)
RATES: Mapping[str, Mapping[str, float]] = {
    "flow": {**dict.fromkeys(WAYS, FLOW.lr), "projected": 0.016, **_OF_LIFTS},
    "density": {**dict.fromkeys(WAYS, DENSITY.lr), **_OF_LIFTS},
}
BUDGETS: Mapping[str, Budget] = {
    "laplace": Budget("demo", 400, 256, (FIXED_RATE,), 1, 3, extensions=0),
    "digits21": Budget("demo", 200, 128, (FIXED_RATE,), 1, 3, extensions=0),
}

_WARM_UP, _ROUNDS = 2, 11  # timed steps of every way
_STARTS, _SCALES = 64, (1.0, 10.0)  # of the search for curvature, which every model gets


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


def demonstrate(
    out: str | os.PathLike[str],
    *,
    seeds: int = 3,
    seed: int = 0,
    jobs: int | None = None,
    resume: bool = True,
    budgets: Mapping[str, Budget] = BUDGETS,
    command: str | None = None,
    progress: Callable[[Event], object] | None = None,
    forecast: Callable[[float], object] | None = None,
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
        progress: called with an `Event` after every run.
        forecast: called before the first run with the seconds that all may take, by a few timed steps.

    Returns:
        The result, as in `result.json`: under "parts" a comparison of each problem at the library's rates,
        with the one at 0.001 under its "fixed_rate".

    Raises:
        ValueError: no seeds, or seeds beyond 999.
        BlockingIOError: another demonstration is in progress in the folder.
        OSError: the folder cannot be written.
        RuntimeError: a worker process died, or every run of a problem failed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    began, folder = time.perf_counter(), Path(out)
    settings = {
        name: Setting(Checked(name), dataclasses.replace(budget, evaluation_seeds=seeds, first_seed=seed))
        for name, budget in budgets.items()
    }
    with owned(folder), ExitStack() as stack:
        pace, going = Pace(), list[tuple[Outcomes, Groups]]()
        for name, setting in settings.items():
            workers = stack.enter_context(Workers(setting, folder / "cells" / name, jobs=jobs, resume=resume))
            remove_torn(workers.folder)
            cells = _cells(setting.budget, RATES[load(setting.make)[0].task])
            times = step_times(setting, WAYS, warm_up=_WARM_UP, rounds=_ROUNDS)
            seconds = {way: milliseconds / 1000 for way, milliseconds in times.items()}
            outcomes = Outcomes(workers, None, step_seconds=seconds, ahead=_each(cells), pace=pace)
            going.append((outcomes, cells))
        every = [outcomes for outcomes, _ in going]
        if forecast is not None:
            forecast(_left(every))
        if progress is not None:
            _tell(every, progress)
        result = {
            "schema": 1,
            "kind": KIND,
            "parts": [_part(outcomes, cells) for outcomes, cells in going],
            "command": command,
            "environment": {**environment(), "threads_per_run": 1, "jobs": workers.jobs, "seed": seed},
            "seconds": time.perf_counter() - began,
        }
        write_json(folder / "result.json", result)
    return result


Groups = Mapping[str, Mapping[str, Sequence[Cell]]]


def _left(every: Sequence[Outcomes]) -> float:
    """Seconds that the problems to come may take."""
    return math.fsum(outcomes.left(()) or 0.0 for outcomes in every)


def _tell(every: Sequence[Outcomes], progress: Callable[[Event], object]) -> None:
    """Let each tell of its runs as runs of them all."""
    total = sum(len(outcomes.ahead) for outcomes in every)

    def tell(event: Event) -> None:
        done, left = sum(len(outcomes.by_cell) for outcomes in every), (event.left or 0.0) + _left(every)
        way = f"{event.phase}: {event.arm}"
        progress(dataclasses.replace(event, arm=way, done=done, total=total, left=left))

    for outcomes in every:
        outcomes.progress = tell


def _cells(budget: Budget, rates: Mapping[str, float]) -> Groups:
    """The runs of every way at the usual rate and at the library's."""

    def of(way: str, rate: float) -> list[Cell]:
        return [Cell(way, rate, seed, budget.steps) for seed in budget.evaluation]

    usual = {way: of(way, FIXED_RATE) for way in WAYS}
    return {"usual": usual, "own": {way: of(way, rates[way]) for way in WAYS}}


def _each(groups: Groups) -> list[Cell]:
    """Every run once, seed by seed, so that an interrupted demonstration has some of each."""
    runs = dict.fromkeys(cell for group in groups.values() for of_way in group.values() for cell in of_way)
    return sorted(runs, key=lambda cell: cell.seed)


def _part(outcomes: Outcomes, cells: Groups) -> dict[str, Any]:
    """Train on one problem, and sum up as a comparison does."""
    workers, budget = outcomes.workers, outcomes.budget
    chosen = subject(workers.setting)[0]
    runs, outcomes.ahead = outcomes.ahead, []
    outcomes.run(chosen.name, runs)
    workers.close()
    if not any(outcomes.finished(runs)):
        first = outcomes.messages(runs)[0]
        raise RuntimeError(f"{chosen.name}: every run failed; the first: {first}")
    return {
        **summaries.described(chosen),
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
        **_section(outcomes, cells["own"]),
        "fixed_rate": {"lr": FIXED_RATE, **_section(outcomes, cells["usual"])},
    }


def _section(outcomes: Outcomes, cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """The figures of every way at one choice of rates."""
    seconds = outcomes.step_seconds
    arms = {
        way: {
            "lr": of_way[0].lr,
            **summaries.arm_figures(outcomes, of_way, 1000 * seconds[way]),
            "seconds": of_way[0].steps * seconds[way],
            "failed": outcomes.messages(of_way),
        }
        for way, of_way in cells.items()
    }
    return {"arms": arms, "pairs": summaries.pairs(outcomes, cells, None, {})}
