"""What studies share: a ledger of finished cells, the loop that trains and scores one, and texts of figures.

Options, results and tables are those of the timings, in timing.py.
"""

from __future__ import annotations

import ast
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import nn

from convexlift.data import Batches, Data, whole
from convexlift.names import SCREENS
from convexlift.problems import Problem
from convexlift.seeds import seed_of
from convexlift.study.digest import code_digest
from convexlift.study.ranking import is_clear, tied_with_best
from convexlift.study.report.numbers import interval_text, score_texts, short
from convexlift.study.report.numbers import score_text as score_text  # for the other studies
from convexlift.training import History, fit
from convexlift.training.history import TrainingDiverged

sys.path.append(str(Path(__file__).parents[1] / "timings"))  # for the studies too
import timing as timing  # for the other studies
from timing import Result, markdown

Outcome = dict[str, Any]

# The lift of the studies that were made before it had gains: it emits the constrained weights alone.
WEIGHTS_ALONE: Mapping[str, Any] = {
    "targets": "nonnegative",
    "weight_gain": 1.0,
    "free_gain": 1.0,
    "body_hidden": (64,),
    "features": 32,
    "rank": 4,
}


class Ledger:
    """Finished cells, kept as JSON lines beside ``out``, so that a study goes on where it was interrupted.

    A cell is known by its setting and by a digest of the code: the package, the study's ``script`` and what
    that imports of this folder. A change of any of them begins the cells anew.
    """

    def __init__(self, out: Path | None, script: str) -> None:
        self.path = None if out is None else out.with_suffix(".cells.jsonl")
        self.code = code_digest(*sorted(scripts(Path(script))))
        self.known: dict[str, Outcome] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # cut off while it was written
                self.known[_key(entry["cell"])] = entry["outcome"]

    def has(self, cell: Mapping[str, Any]) -> bool:
        """Whether the outcome of a cell is kept."""
        return _key({**cell, "code": self.code}) in self.known

    def run(self, cell: Mapping[str, Any], work: Callable[[], Outcome]) -> Outcome:
        """The outcome of a cell: the one that is kept, or what ``work`` returns, kept from now on."""
        return self.run_all([cell], lambda _: work())[0]

    def run_all(
        self, cells: Sequence[Mapping[str, Any]], work: Callable[[Any], Outcome], jobs: int = 1
    ) -> list[Outcome]:
        """The outcomes of cells, those that are not kept computed in so many processes.

        An outcome holds the seconds of its work, unless the work tells its own.
        """
        marked = [{**cell, "code": self.code} for cell in cells]
        waiting = {_key(mark): (mark, cell) for mark, cell in zip(marked, cells, strict=True)}
        new = {key: pair for key, pair in waiting.items() if key not in self.known}
        with ExitStack() as stack:
            run = map
            if jobs > 1:
                run = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))).map
            outcomes = run(partial(_timed, work), [cell for _, cell in new.values()])
            for (key, (mark, _)), outcome in zip(new.items(), outcomes, strict=True):
                self.known[key] = outcome
                if self.path is not None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write("\n" + json.dumps({"cell": mark, "outcome": outcome}))
        return [self.known[_key(mark)] for mark in marked]


def scripts(script: Path) -> set[Path]:
    """The file and those beside it that it imports, and that these import."""
    found, waiting = set(), [script]
    while waiting:
        file = waiting.pop()
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            beside = {file.with_name(f"{name}.py") for name in names}
            waiting += [other for other in beside - found if other.exists()]
    return found


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _timed(work: Callable[[Any], Outcome], cell: Any) -> Outcome:
    started = time.perf_counter()
    outcome = work(cell)
    return {"seconds": time.perf_counter() - started, **outcome}


def train(
    task: nn.Module, data: Data, validation: Data, *, steps: int, evaluations: int = 20, **options: Any
) -> History | None:
    """Train a task in place, evaluated so many times; None where training diverged."""
    task.initialise(whole(data))  # type: ignore[operator]
    every = max(1, steps // evaluations)
    try:
        equal: dict[str, Any] = {"steps": steps, "evaluate_every": every, "patience": None, "progress": False}
        return fit(task, data, validation=validation, allow=SCREENS, **equal, **options)
    except TrainingDiverged:
        return None


def train_and_score(
    task: Any,
    known: Problem,
    *,
    scored: bool = True,
    also: Callable[[nn.Module, History], Outcome] = lambda frozen, history: {},
    **options: Any,
) -> Outcome:
    """Train a task on a problem; losses of the frozen model on validation and, if ``scored``, on test rows.

    Both are None where training diverged. ``also`` says what else is kept of the frozen model and its
    history; the options are those of `train` and of ``fit``.
    """
    history = train(task, known.train, known.validation, **options)
    if history is None:
        return {"validation": None, "test": None}
    frozen = task.freeze(whole(known.train))
    return {
        "validation": history.best_validation,
        "test": finite(float(known.evaluate(frozen).double().mean())) if scored else None,
        "best_step": history.best_step,
        "ms_per_step": history.ms_per_step,
        **also(frozen, history),
    }


def probes(known: Problem, batch_size: int, seed: int, count: int, name: str = "probe") -> list[Any]:
    """Batches that training does not see in this order, each of its own memory."""
    drawn = [Batches(known.train, batch_size, seed_of(seed, name, k)) for k in range(count)]
    return [batches.at(0).data for batches in drawn]


def finite(value: float) -> float | None:
    """The value; None where it is not finite."""
    return value if math.isfinite(value) else None


def or_inf(loss: float | None) -> float:
    """The loss; inf where a run diverged."""
    return math.inf if loss is None else loss


def mean(losses: Iterable[float | None]) -> float:
    """The mean of test losses; inf where a run diverged."""
    return statistics.fmean(or_inf(loss) for loss in losses)


def standard_error(losses: Sequence[float | None]) -> float | None:
    """The standard error of the mean; None where a run diverged or there is one."""
    known = [loss for loss in losses if loss is not None]
    if len(known) < max(2, len(losses)):
        return None
    return statistics.stdev(known) / math.sqrt(len(known))


def signed(value: float, form: str) -> str:
    """A number in that format, with a true minus sign."""
    return format(value, form).replace("-", "−")


def starred(found: dict[str, Any] | None) -> str:
    """A difference with its interval, with a star where that leaves out zero; nothing where there is none."""
    if found is None or found["mean"] is None:
        return "" if found is None else "diverged"
    return interval_text(found) + ("*" if is_clear(found) else "")


def average_text(values: Iterable[float | None], form: str = "{}", nothing: str = "") -> str:
    """The mean of the figures that there are, to two digits."""
    there = [value for value in values if value is not None]
    return form.format(short(sum(there) / len(there))) if there else nothing


def scores(section: Result, arms: Iterable[str]) -> list[str]:
    """Each arm's loss as text, empty for one not there; the lowest mean and the arms tied with it in bold."""
    best = tied_with_best(section)
    cells = score_texts({arm: figures["test"] for arm, figures in section["arms"].items()})
    return [f"**{cells[arm]}**" if arm in best else cells.get(arm, "") for arm in arms]


def side_by_side(sections: Mapping[str, Result]) -> str:
    """The table of every arm's loss in each section."""
    arms = list(dict.fromkeys(arm for section in sections.values() for arm in section["arms"]))
    return markdown(
        ("problem", *arms), ([name, *scores(section, arms)] for name, section in sections.items())
    )
