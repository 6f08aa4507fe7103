"""A comparison from end to end: selection, evaluation, the table at the common rate, and `result.json`."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from convexlift.experiments.arms import DEFAULT_ARMS, FIXED_RATE_ARMS, check_arms
from convexlift.experiments.cells import (
    Cell,
    Named,
    Outcome,
    Setting,
    Subject,
    Workers,
    subject,
    write_json,
)
from convexlift.experiments.pictures import picture_of_data
from convexlift.experiments.protocol import (
    FIXED_RATE,
    SELECTION_SEED,
    Budget,
    best_rate,
    budget_for,
    extension,
    on_edge,
)
from convexlift.experiments.speed import step_times
from convexlift.experiments.statistics import (
    paired_difference,
    residual_deviation,
    rows_interval,
    selection_variance,
    summary,
    verdict,
)
from convexlift.problems import Problem, gaussian_baseline
from convexlift.training.environment import environment

SELECTION, EVALUATION, COMMON_RATE = "selection", "evaluation", "common rate"


@dataclass(frozen=True)
class Event:
    """A cell has finished: `done` of `total` (so far known) cells; `loss` is on validation in the phase
    "selection", on test in "evaluation" and "common rate", inf for a diverged cell, None for a failed one."""

    phase: str
    done: int
    total: int
    message: str
    arm: str
    lr: float
    seed: int
    loss: float | None


@dataclass
class _Books:
    """All outcomes of a comparison so far, and where they are told."""

    setting: Setting
    workers: Workers
    progress: Callable[[Event], object] | None
    outcomes: dict[Cell, Outcome] = field(default_factory=dict)
    total: int = 0

    def run(self, phase: str, cells: Iterable[Cell]) -> None:
        wanted = [cell for cell in dict.fromkeys(cells) if cell not in self.outcomes]
        self.total += len(wanted)
        for cell, outcome in self.workers.run(wanted):
            self.outcomes[cell] = outcome
            if self.progress is not None:
                loss = self.validation(cell) if phase == SELECTION else self.test(cell)
                self.progress(
                    Event(
                        phase,
                        len(self.outcomes),
                        self.total,
                        _line(cell, outcome, loss, "validation" if phase == SELECTION else "test"),
                        cell.arm,
                        cell.lr,
                        cell.seed,
                        loss,
                    )
                )

    def validation(self, cell: Cell) -> float | None:
        """The validation loss: inf for a diverged cell, None for a failed one."""
        return self._loss(cell, "validation")

    def test(self, cell: Cell) -> float | None:
        """The test loss: inf for a diverged cell, None for a failed one."""
        return self._loss(cell, "test")

    def selection(self, name: str, rate: float) -> list[Cell]:
        """The selection cells of an arm at a rate."""
        return [cell for cell in self.outcomes if (cell.arm, cell.lr) == (name, rate) and _is_selection(cell)]

    def trained(self, name: str) -> bool:
        """Whether any cell of the arm finished."""
        return any(bool(self.finished([cell])) for cell in self.outcomes if cell.arm == name)

    def finished(self, cells: Iterable[Cell]) -> list[Outcome]:
        return [self.outcomes[cell] for cell in cells if self.outcomes[cell]["status"] == "finished"]

    def messages(self, cells: Iterable[Cell]) -> list[str]:
        return [
            f"{_name(cell)}: {self.outcomes[cell]['message']}"
            for cell in cells
            if self.outcomes[cell]["status"] != "finished"
        ]

    def _loss(self, cell: Cell, key: str) -> float | None:
        outcome = self.outcomes[cell]
        if outcome["status"] == "finished":
            return float(outcome[key])
        return math.inf if outcome["status"] == "diverged" else None


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
    progress: Callable[[Event], object] | None = None,
) -> dict[str, Any]:
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
        progress: called with an `Event` after every cell.

    Raises:
        ValueError: an unknown name, or a setting that makes no sense.
        OSError: the folder cannot be written.
        RuntimeError: a worker process died, or every cell of the evaluation failed.
        KeyboardInterrupt: Ctrl-C; the finished cells are kept, and a later call goes on from them.

    Example:
        >>> import tempfile
        >>> tiny = Budget("tiny", 4, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = compare("logistic", arms=["lift", "softplus"], budget=tiny, out=folder, jobs=1)
        >>> sorted(result["arms"]), result["protocol"]["steps"]
        (['lift', 'softplus'], 4)
    """
    started = time.perf_counter()
    setting, names, chosen = _prepare(problem, arms, rates, seeds, budget, data, device, own)
    spend = setting.budget
    jobs = _jobs(jobs, device)
    folder = Path(out)
    _check_writable(folder)
    with Workers(setting, folder / "cells", jobs=jobs, resume=resume) as workers:
        books = _Books(setting, workers, progress)
        grid, validation = _select(books, names, rates is None)
        best = {name: best_rate(validation[name]) if len(grid) > 1 else grid[0] for name in names}
        full = {name: _evaluation_cells(spend, name, best[name], spend.steps) for name in names}
        half = {
            name: _evaluation_cells(spend, name, best[name], spend.steps // 2, scored=False) for name in names
        }
        books.run(EVALUATION, [cell for by_arm in (full, half) for name in names for cell in by_arm[name]])
        if not any(books.finished(cells) for cells in full.values()):
            raise RuntimeError(
                f"no arm could be evaluated; the first failure: {books.messages(books.outcomes)[0]}"
            )
        common: dict[str, list[Cell]] | None = None
        if spend.fixed_rate if fixed_rate is None else fixed_rate:
            common = _fixed_rate_cells(books, names if own is not None else FIXED_RATE_ARMS)
    # With the workers gone, so that nothing of ours disturbs the clock.
    speed = step_times(setting, [name for name in {**full, **(common or {})} if books.trained(name)])
    equal = _equal_seconds(books, full, speed)
    result = {
        "schema": 1,
        "problem": chosen.name,
        "task": chosen.task,
        "metric": chosen.metric,
        "description": chosen.description,
        "source": chosen.source,
        "licence": chosen.licence,
        "facts": _facts(chosen),
        "picture": picture_of_data(chosen),
        "protocol": {
            **_protocol(chosen, spend, grid, device),
            "on_edge": on_edge(validation) if len(grid) > 1 else {},
            "command": _command(problem, own, arms, rates, seeds, spend, data, fixed_rate),
        },
        "arms": {
            name: {
                "lr": best[name],
                **_arm(books, full[name], speed.get(name)),
                "half_budget": summary([books.test(cell) for cell in half[name]]),
                "equal_seconds": equal[name],
                "rates": [
                    {
                        "lr": rate,
                        "validation": _finite(validation[name][rate]),
                        "test": _finite(_mean([books.test(cell) for cell in books.selection(name, rate)])),
                    }
                    for rate in grid
                ],
                "failed": books.messages(
                    [
                        *(c for c in books.outcomes if c.arm == name and _is_selection(c)),
                        *full[name],
                        *half[name],
                    ]
                ),
            }
            for name in names
        },
        "fixed_rate": None if common is None else _fixed_rate_table(books, common, speed),
        "pairs": _pairs(books, full, half, _selection_variances(books, full, validation)),
        "environment": {
            **environment(),
            "threads_per_cell": 1,
            "jobs": jobs,
            "git": _git_revision(),
            "seed": 0,
        },
        "seconds": time.perf_counter() - started,
    }
    write_json(folder / "result.json", result)
    return result


# --- what to run ----------------------------------------------------------------------------------


def _prepare(
    problem: str | None,
    arms: Sequence[str] | None,
    rates: Sequence[float] | None,
    seeds: int | None,
    budget: str | Budget,
    data: str | os.PathLike[str] | None,
    device: str,
    own: str | Callable[[], Subject] | None,
) -> tuple[Setting, tuple[str, ...], Problem]:
    if own is not None and (problem is not None or data is not None):
        raise ValueError("own brings its own problem and data: leave out the problem's name and data")
    if own is None:
        make: Callable[[], Subject] = Named(problem or "digits21", None if data is None else os.fspath(data))
    else:
        make = _load(own) if isinstance(own, str) else own
    chosen, known = _checked(make())
    spend = budget_for(chosen.task, budget) if isinstance(budget, str) else budget
    if rates is not None:
        spend = dataclasses.replace(spend, rates=tuple(sorted(set(map(float, rates)))))
    if seeds is not None:
        spend = dataclasses.replace(spend, evaluation_seeds=seeds)
    names = check_arms(arms if arms is not None else (DEFAULT_ARMS if own is None else known), known)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' is unknown or not available") from error
    setting = Setting(make, spend, device)
    return setting, names, subject(setting)[0]


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


def _checked(made: Any) -> Subject:
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Problem):
        raise TypeError("own must return (Problem, {name: arm}), an arm being a function of a network")
    chosen, arms = made
    if not isinstance(arms, Mapping) or not arms or not all(callable(arm) for arm in arms.values()):
        raise TypeError("own must return at least one arm, each a function of a network")
    return chosen, arms


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    if jobs is None and torch.device(device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if jobs is None else jobs


def _check_writable(folder: Path) -> None:
    """Fail before hours of work, not after."""
    probe = folder / "cells" / f".probe.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {folder}: {error.strerror}") from None


def _select(
    books: _Books, names: Sequence[str], may_grow: bool
) -> tuple[list[float], dict[str, dict[float, float]]]:
    """The final grid, and every arm's mean validation loss at its rates."""
    spend = books.setting.budget
    grid, left = sorted(spend.rates), spend.extensions if may_grow else 0
    while True:
        cells = {(name, rate): _selection_cells(spend, name, rate) for name in names for rate in grid}
        if len(grid) > 1 or left > 0:
            books.run(SELECTION, [cell for group in cells.values() for cell in group])
            validation = {
                name: {rate: _mean([books.validation(cell) for cell in cells[name, rate]]) for rate in grid}
                for name in names
            }
        else:  # one rate: nothing to choose
            return grid, {name: {grid[0]: math.nan} for name in names}
        grown = extension(grid, on_edge(validation))[: max(left, 0)]
        if not grown:
            return grid, validation
        left -= len(grown)
        grid = sorted([*grid, *grown])


def _selection_cells(spend: Budget, name: str, rate: float) -> list[Cell]:
    return [
        Cell(name, rate, SELECTION_SEED + k, spend.steps, scored=False) for k in range(spend.selection_seeds)
    ]


def _evaluation_cells(
    spend: Budget, name: str, rate: float | None, steps: int, *, scored: bool = True
) -> list[Cell]:
    """One cell for each evaluation seed; none where no rate is left to evaluate."""
    seeds = range(spend.evaluation_seeds if rate is not None else 0)
    return [Cell(name, cast(float, rate), seed, steps, scored) for seed in seeds]


# --- what came out --------------------------------------------------------------------------------


def _arm(books: _Books, cells: Sequence[Cell], ms_per_step: float | None) -> dict[str, Any]:
    """The figures of one arm over its evaluation cells."""
    finished = books.finished(cells)
    found: dict[str, Any] = {
        "test": summary([books.test(cell) for cell in cells]),
        "metrics": {
            key: summary([outcome["metrics"][key] for outcome in finished])
            for key in (finished[0]["metrics"] if finished else ())
        },
        "ms_per_step": ms_per_step,
        "parameters": finished[0]["parameters"] if finished else None,
    }
    for key in (
        "emission_noise",
        "step_amplification",
        "shoulder",
        "at_zero",
        "fan_in_weight",
        "relative_speed",
    ):
        seen = [outcome[key] for outcome in finished if outcome.get(key)]
        found[key] = {at: _median([entry[at] for entry in seen]) for at in seen[0]} if seen else None
    histograms = [outcome["weights"] for outcome in finished if outcome.get("weights")]
    found["weights"] = {
        at: [_mean(shares) for shares in zip(*(entry[at] for entry in histograms), strict=True)]
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


def _equal_seconds(
    books: _Books, full: Mapping[str, Sequence[Cell]], speed: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Each arm's test loss when the fastest arm ends: of its model that was best on validation until then, in
    the run of the full budget. Seconds are steps times the arm's milliseconds a step."""
    totals = [books.setting.budget.steps * speed[name] / 1000 for name in full if name in speed]
    limit = min(totals)

    def loss(cell: Cell) -> float | None:
        outcome = books.outcomes[cell]
        if outcome["status"] != "finished":
            return books.test(cell)
        ms = speed[cell.arm]
        reached = [k for k, step in enumerate(outcome["steps"]) if step * ms / 1000 <= limit * (1 + 1e-9)]
        return float(outcome["test_curve"][reached[-1]]) if reached else math.inf

    return {
        name: {**summary([loss(cell) for cell in cells]), "seconds": limit} for name, cells in full.items()
    }


def _selection_variances(
    books: _Books, full: Mapping[str, Sequence[Cell]], validation: Mapping[str, Mapping[float, float]]
) -> dict[str, float]:
    """What the choice of each arm's rate adds to the variance of its score; 0 where it cannot be told."""
    seeds = books.setting.budget.selection_seeds
    losses = [[books.validation(cell) for cell in cells] for cells in full.values() if cells]
    noise = residual_deviation([[math.inf if loss is None else loss for loss in row] for row in losses])
    error = 0.0 if noise is None else noise / math.sqrt(seeds)
    return {name: selection_variance(list(by_rate.values()), error) for name, by_rate in validation.items()}


def _pairs(
    books: _Books,
    full: Mapping[str, Sequence[Cell]],
    half: Mapping[str, Sequence[Cell]] | None,
    variances: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """The lift (or the first arm, where no lift was trained) minus every other arm."""
    names = list(full)
    first = "lift" if "lift" in names else names[0]
    pairs = {}
    for other in names:
        if other == first:
            continue
        found = _difference(
            books, full[first], full[other], variances.get(first, 0) + variances.get(other, 0)
        )
        if found is None:
            continue
        found["rows_ci95"] = _rows(books, full[first], full[other])
        if half is not None:
            found["half_budget"] = _difference(books, half[first], half[other], 0.0)
            found["verdict"] = verdict(found, found["half_budget"])
        pairs[f"{first}-{other}"] = found
    return pairs


def _difference(
    books: _Books, first: Sequence[Cell], second: Sequence[Cell], variance: float
) -> dict[str, Any] | None:
    """The paired difference over the seeds that did not fail in either arm; None where there are none."""
    losses = [(books.test(a), books.test(b)) for a, b in zip(first, second, strict=False)]
    both = [(a, b) for a, b in losses if a is not None and b is not None]
    if not both:
        return None
    one, two = [a for a, _ in both], [b for _, b in both]
    found = paired_difference(one, two, selection_variance=variance)
    return {**found, "seeds_ci95": paired_difference(one, two)["ci95"]}


def _rows(books: _Books, first: Sequence[Cell], second: Sequence[Cell]) -> list[float] | None:
    both = [
        torch.tensor(books.outcomes[a]["rows"]) - torch.tensor(books.outcomes[b]["rows"])
        for a, b in zip(first, second, strict=False)
        if books.outcomes[a]["status"] == books.outcomes[b]["status"] == "finished"
    ]
    return rows_interval(torch.stack(both).double().mean(0)) if both else None


def _fixed_rate_cells(books: _Books, names: Sequence[str]) -> dict[str, list[Cell]]:
    """Train every arm at the one common rate 0.001, without any selection."""
    spend = books.setting.budget
    cells = {name: _evaluation_cells(spend, name, FIXED_RATE, spend.steps) for name in names}
    books.run(COMMON_RATE, [cell for name in names for cell in cells[name]])
    return cells


def _fixed_rate_table(
    books: _Books, cells: Mapping[str, Sequence[Cell]], speed: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of every arm at the common rate."""
    arms = {
        name: {
            "lr": FIXED_RATE,
            **_arm(books, cells[name], speed.get(name)),
            "source_factor": _median([outcome["source_factor"] for outcome in books.finished(cells[name])]),
            "failed": books.messages(cells[name]),
        }
        for name in cells
    }
    return {"lr": FIXED_RATE, "arms": arms, "pairs": _pairs(books, cells, None, {})}


def _facts(chosen: Problem) -> dict[str, float]:
    baseline = {"gaussian": gaussian_baseline(chosen)} if chosen.task in ("flow", "density") else {}
    entropy = {"entropy": chosen.entropy} if chosen.entropy is not None else {}
    return {**baseline, **chosen.facts, **entropy}


def _protocol(chosen: Problem, spend: Budget, grid: Sequence[float], device: str) -> dict[str, Any]:
    return {
        "budget": spend.name,
        "steps": spend.steps,
        "half_steps": spend.steps // 2,
        "batch_size": spend.batch_size,
        "rates": list(grid),
        "selection_seeds": [SELECTION_SEED + k for k in range(spend.selection_seeds)],
        "evaluation_seeds": list(range(spend.evaluation_seeds)),
        "architecture": {**chosen.architecture, "blocks": chosen.blocks},
        "optimizer": "adam",
        "schedule": "cosine",
        "clip": spend.clip,
        "selection": "validation",
        "device": device,
        "half_budget": "separate runs of half the steps and their own schedule, at the rate chosen above",
        "equal_seconds": (
            "inside the full run, at the time when the fastest arm ends; seconds are steps times the median "
            "time of a step, measured for all arms in turn with one thread"
        ),
        "intervals": (
            "ci95: t-interval over evaluation seeds, widened by what the noisy choice of rates adds; "
            "seeds_ci95: without that; rows_ci95: bootstrap over test rows"
        ),
    }


def _command(
    problem: str | None,
    own: str | Callable[[], Subject] | None,
    arms: Sequence[str] | None,
    rates: Sequence[float] | None,
    seeds: int | None,
    spend: Budget,
    data: str | os.PathLike[str] | None,
    fixed_rate: bool | None,
) -> str:
    parts = ["convexlift compare"]
    if own is not None:
        parts += [
            "--own",
            own if isinstance(own, str) else f"{own.__module__}:{own.__name__}",
        ]
    else:
        parts.append(problem or "digits21")
    for option, values in (("--arms", arms), ("--rates", rates)):
        if values is not None:
            parts += [option, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    if seeds is not None:
        parts += ["--seeds", str(seeds)]
    parts += ["--budget", spend.name]
    if data is not None:
        parts += ["--data", os.fspath(data)]
    if fixed_rate is not None and fixed_rate != spend.fixed_rate:
        parts.append("--fixed-rate" if fixed_rate else "--no-fixed-rate")
    return " ".join(parts)


# --- small things ---------------------------------------------------------------------------------


def _is_selection(cell: Cell) -> bool:
    return cell.seed >= SELECTION_SEED


def _name(cell: Cell) -> str:
    return f"{cell.arm}, rate {cell.lr:g}, seed {cell.seed}, {cell.steps} steps"


def _line(cell: Cell, outcome: Outcome, loss: float | None, split: str) -> str:
    if outcome["status"] == "finished":
        return f"{_name(cell)}: {split} {loss:.4f}"
    return f"{_name(cell)}: {outcome['message']}"


def _mean(values: Sequence[float | None]) -> float:
    """The mean, infinite where any value is, or is missing."""
    return math.fsum(math.inf if v is None else v for v in values) / len(values) if values else math.inf


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _git_revision() -> str | None:
    """The commit of the library's own checkout, None where it is installed otherwise."""
    home = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
