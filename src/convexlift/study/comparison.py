"""A comparison from end to end: selection, evaluation, the table at the common rate, and `result.json`."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from convexlift.files import remove_torn, write_json
from convexlift.locks import owned
from convexlift.names import DEFAULT_ARMS
from convexlift.objectives import objective_named
from convexlift.problems import Problem, gaussian_baseline, kernel_baseline
from convexlift.study import summaries
from convexlift.study.arms import FIXED_RATE_ARMS, check_arms, rate_scale
from convexlift.study.cells import Cell, Named, Outcome, Setting, Subject, load, subject
from convexlift.study.outcomes import COMMON_RATE, EVALUATION, SELECTION, Event, Outcomes, mean
from convexlift.study.protocol import FIXED_RATE, Budget, best_rate, budget_for, extension, on_edge
from convexlift.study.scoring import is_multivariate
from convexlift.study.snapshots import picture_of_data
from convexlift.study.speed import first_guess, step_times
from convexlift.study.statistics import summary
from convexlift.study.workers import Workers
from convexlift.training.environment import environment
from convexlift.training.optimisation import check_optimizer

_LOG_Z = (
    "test scores of evaluation runs: quadrature in two dimensions, annealed importance sampling above; rates "
    "are chosen, and losses along a run and at equal seconds given, by a cheap estimate, good to "
    "about a tenth of a nat"
)


@final
@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        result: the figures, as in `result.json`.
        outcomes: what came out of every cell.
    """

    result: dict[str, Any]
    outcomes: Mapping[Cell, Outcome]


def compare(
    problem: str | None = None,
    *,
    arms: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    budget: str | Budget = "quick",
    data: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    device: str = "cpu",
    out: str | os.PathLike[str],
    resume: bool = True,
    fixed_rate: bool | None = None,
    own: str | Callable[[], Subject] | None = None,
    task: str | None = None,
    objective: str = "mle",
    optimizer: str | None = None,
    command: str | None = None,
    progress: Callable[[Event], object] | None = None,
    forecast: Callable[[float], object] | None = None,
) -> Comparison:
    """Compare ways of training one network under equal tuning, and write `result.json` into the folder `out`.

    Every arm starts as the same network and trains at every rate of one grid; the rate is chosen on
    validation with seeds that are not used again; the frozen model is scored on test with the evaluation
    seeds, after the full budget, in separate runs of half of it, and at equal training time. See `Budget` for
    the grid and its growth.

    Args:
        problem: a name known to `convexlift.problems.problem`; "digits21" when omitted.
        arms: names of arms; all of the library's but "lift-reference" when omitted, or all of `own`.
        rates: the grid, used as it is: it does not grow.
        seeds: number of evaluation seeds, in place of the budget's.
        budget: "quick", "standard", "full", for one-dimensional densities "paper", or a `Budget`.
        data: the file that the problem reads.
        jobs: cells at a time, each with one thread; by default one for each core, one on an accelerator. More
            than one starts processes, so a script must call this under `if __name__ == "__main__":`.
        device: where cells run.
        out: folder for `result.json` and `cells/`.
        resume: use the finished cells in `out`, or run them all again.
        fixed_rate: whether to add the table at the common rate 0.001; by default as the budget says.
        own: a function, or "module:function", that returns (problem, {name: arm}) in place of the library's.
            It is called once in every process; an arm is a function from the network to a weight source.
        task: "density" fits one log-concave density to the rows of a problem of flows; by default the
            problem's own.
        objective: what densities are trained by, one of `convexlift.objectives.OBJECTIVES`; rates are then
            chosen by that loss on validation rows.
        optimizer: "adam", "sgd" (momentum 0.9) or "soap"; by default the budget's, "adam".
        command: the shell command that gives the result again; kept in it.
        progress: called with an `Event` after every cell.
        forecast: called before the first cell with the seconds that all may take, by a few timed steps.

    Returns:
        The result, as in `result.json`, and the outcome of every cell.

    Raises:
        ValueError: an unknown name, or a setting that makes no sense.
        BlockingIOError: another comparison is in progress in the folder.
        OSError: the folder cannot be written.
        RuntimeError: a worker process died, or every cell of the evaluation failed.
        KeyboardInterrupt: Ctrl-C; the finished cells are kept, and a later call goes on from them.

    Example:
        >>> import tempfile
        >>> tiny = Budget("tiny", 4, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = compare("logistic", arms=["lift", "softplus"], budget=tiny, out=folder, jobs=1)
        >>> sorted(found.result["arms"]), len(found.outcomes)
        (['lift', 'softplus'], 4)
    """
    if own is not None and (problem is not None or data is not None):
        raise ValueError("own brings its own problem and data: leave out the problem's name and data")
    if own is not None and (task is not None or objective != "mle"):
        raise ValueError("own brings its own task: leave out task and objective")
    make: Callable[[], Subject]
    if own is None:
        make = Named(problem or "digits21", None if data is None else os.fspath(data), task, objective)
    else:
        make = _load(own) if isinstance(own, str) else own
    chosen, known = load(make)
    if chosen.kind.objectives:
        objective_named(objective, chosen.dim)  # refuses what it does not know
    elif objective != "mle":
        raise ValueError(
            f"an objective is for densities; problem '{chosen.name}' has task '{chosen.task}': "
            "add the task density"
        )
    names = check_arms(arms if arms is not None else (DEFAULT_ARMS if own is None else known), known)
    changes = {"rates": rates, "evaluation_seeds": seeds, "fixed_rate": fixed_rate, "optimizer": optimizer}
    spend = budget_for(chosen.task, budget, chosen.dim, **changes)
    check_optimizer(spend.optimizer)
    setting = Setting(make, spend, device)
    with Workers(setting, Path(out) / "cells", jobs=jobs, resume=resume) as workers, owned(out):
        at_fixed_rate = FIXED_RATE_ARMS if own is None else names
        found = run(
            workers,
            names,
            at_fixed_rate,
            may_grow=rates is None,
            command=command,
            progress=progress,
            forecast=forecast,
        )
        write_json(Path(out) / "result.json", found.result)
    return found


def run(
    workers: Workers,
    names: Sequence[str],
    at_fixed_rate: Sequence[str],
    *,
    may_grow: bool,
    command: str | None,
    progress: Callable[[Event], object] | None,
    forecast: Callable[[float], object] | None = None,
) -> Comparison:
    """What `compare` does once all is named: the arms `names`, and those of the table at the common rate,
    where the budget has one. The caller owns the folder. Workers are closed; the result is not written."""
    remove_torn(workers.folder)
    setting, spend = workers.setting, workers.setting.budget
    chosen, known, _ = subject(setting)
    outcomes = Outcomes(workers, progress)
    to_come = _to_come(spend, names, at_fixed_rate)
    outcomes.ahead = [cell for cells in to_come.values() for cell in cells]
    if forecast is not None:
        outcomes.step_seconds = first_guess(setting, names)
        chosen_from = spend.rates if len(spend.rates) > 1 or (may_grow and spend.extensions) else ()
        seconds = outcomes.left(_selecting(dict.fromkeys(names, 1.0), chosen_from, spend))
        if seconds is not None:
            forecast(seconds)
    # Rates that the user names are taken as they are.
    scales = {name: rate_scale(chosen, name, known) if may_grow else 1.0 for name in names}
    grid, validation = _select(outcomes, scales, may_grow)
    best = {name: best_rate(validation[name]) if len(grid) > 1 else grid[0] * scales[name] for name in names}
    full = {name: _scored(spend, name, best[name]) for name in names}
    half = {
        name: [dataclasses.replace(cell, steps=spend.steps // 2, scored=False) for cell in cells]
        for name, cells in full.items()
    }
    outcomes.ahead = to_come[COMMON_RATE]
    outcomes.run(EVALUATION, [cell for by_arm in (full, half) for name in names for cell in by_arm[name]])
    if not any(outcomes.finished(cells) for cells in full.values()):
        raise RuntimeError(
            f"no way could be evaluated; the first failure: {outcomes.messages(outcomes.by_cell)[0]}"
        )
    common: dict[str, list[Cell]] = {}
    if spend.fixed_rate:  # every arm at the one common rate, without any selection
        common = {name: _scored(spend, name, FIXED_RATE) for name in at_fixed_rate}
        outcomes.ahead = []
        outcomes.run(COMMON_RATE, [cell for by_seed in common.values() for cell in by_seed])
    workers.close()  # so that nothing of ours disturbs the clock
    finished = {cell.arm for cell in outcomes.by_cell if outcomes.finished([cell])}
    speed = step_times(setting, [name for name in {**full, **common} if name in finished])
    equal = summaries.equal_seconds(outcomes, full, speed)
    variances = summaries.selection_variances(outcomes, full, validation)
    result = {
        "schema": 1,
        **summaries.described(chosen),
        "facts": _facts(chosen),
        "picture": picture_of_data(chosen),
        "protocol": {
            **_protocol(chosen, setting, grid),
            "rate_scales": scales,
            "on_edge": on_edge(validation) if len(grid) > 1 else {},
            "command": command,
        },
        "arms": {
            name: {
                "lr": best[name],
                **summaries.arm_figures(outcomes, full[name], speed.get(name)),
                "half_budget": summary(outcomes.losses(half[name])),
                "equal_seconds": equal[name],
                "rates": summaries.rate_figures(outcomes, name, validation[name]),
                "failed": outcomes.messages([*outcomes.selection(name), *full[name], *half[name]]),
            }
            for name in names
        },
        "fixed_rate": summaries.fixed_rate_table(outcomes, common, speed) if common else None,
        "pairs": summaries.pairs(outcomes, full, half, variances),
        "environment": {
            **environment(),
            "threads_per_cell": 1,
            "jobs": workers.jobs,
            "git": _git_revision(),
            "seed": 0,
        },
        "seconds": math.fsum(outcome.get("seconds", 0.0) for outcome in outcomes.by_cell.values())
        / workers.jobs,
    }
    return Comparison(result, outcomes.by_cell)


def _load(path: str) -> Callable[[], Subject]:
    """The function that "module:function" names."""
    module, _, function = path.partition(":")
    if not module or not function:
        raise ValueError(f"own must be MODULE:FUNCTION; got '{path}'")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load '{path}': {error}") from error
    return cast(Callable[[], Subject], found)


def _select(
    outcomes: Outcomes, scales: Mapping[str, float], may_grow: bool
) -> tuple[list[float], dict[str, dict[float, float]]]:
    """The final grid, and every arm's mean validation loss at the rates of the grid times its scale."""
    spend = outcomes.budget
    grid, left = sorted(spend.rates), spend.extensions if may_grow else 0
    if len(grid) == 1 and left <= 0:  # nothing to choose
        return grid, {name: {grid[0] * scale: math.nan} for name, scale in scales.items()}
    while True:
        outcomes.run(SELECTION, _selecting(scales, grid, spend))
        validation = {
            name: {
                rate * scale: mean(outcomes.losses(_selecting({name: scale}, [rate], spend), "validation"))
                for rate in grid
            }
            for name, scale in scales.items()
        }
        grown = extension(grid, on_edge(validation))[: max(left, 0)]
        if not grown:
            return grid, validation
        left -= len(grown)
        grid = sorted([*grid, *grown])


def _selecting(scales: Mapping[str, float], grid: Sequence[float], spend: Budget) -> list[Cell]:
    """The cells by which a rate of the grid is chosen for each arm."""
    return [
        Cell(name, rate * scale, seed, spend.steps, scored=False)
        for name, scale in scales.items()
        for rate in grid
        for seed in spend.selection
    ]


def _to_come(spend: Budget, names: Sequence[str], at_fixed_rate: Sequence[str]) -> dict[str, list[Cell]]:
    """Cells like those after the selection, by phase; at which rate makes no difference to their time."""
    full = [cell for name in names for cell in _scored(spend, name, FIXED_RATE)]
    half = [dataclasses.replace(cell, steps=spend.steps // 2, scored=False) for cell in full]
    common = [cell for name in at_fixed_rate for cell in _scored(spend, name, FIXED_RATE)]
    return {EVALUATION: [*full, *half], COMMON_RATE: common if spend.fixed_rate else []}


def _scored(spend: Budget, name: str, rate: float | None) -> list[Cell]:
    """One cell for each evaluation seed; none where no rate is left to evaluate."""
    return [] if rate is None else [Cell(name, rate, seed, spend.steps) for seed in spend.evaluation]


def _facts(chosen: Problem) -> dict[str, float]:
    baseline = {"gaussian": gaussian_baseline(chosen)} if chosen.kind.of_density else {}
    if is_multivariate(chosen):
        baseline["kernel_density_estimate"] = kernel_baseline(chosen)[0]
    entropy = {"entropy": chosen.entropy} if chosen.entropy is not None else {}
    return {**baseline, **chosen.facts, **entropy}


def _protocol(chosen: Problem, setting: Setting, grid: Sequence[float]) -> dict[str, Any]:
    spend = setting.budget
    return {
        "budget": spend.name,
        "steps": spend.steps,
        "half_steps": spend.steps // 2,
        "batch_size": spend.batch_size,
        "rates": list(grid),
        "selection_seeds": list(spend.selection),
        "evaluation_seeds": list(spend.evaluation),
        "architecture": {**chosen.architecture, "blocks": chosen.blocks},
        "optimizer": spend.optimizer,
        **({"objective": chosen.density_objective} if chosen.kind.objectives else {}),
        "schedule": "cosine",
        "clip": spend.clip,
        "selection": "validation",
        "device": setting.device,
        "half_budget": "separate runs of half the steps and their own schedule, at the rate chosen above",
        "equal_seconds": (
            "inside the full run, at the time when the fastest way ends; seconds are steps times the median "
            "time of a step, measured for all ways in turn with one thread"
        ),
        **({"log_z": _LOG_Z} if is_multivariate(chosen) else {}),
        "intervals": (
            "ci95: t-interval over evaluation seeds, widened by what the noisy choice of rates adds; "
            "seeds_ci95: without that; rows_ci95: bootstrap over test rows"
        ),
    }


def _git_revision() -> str | None:
    """The commit of the library's own checkout, None where it is installed otherwise."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
