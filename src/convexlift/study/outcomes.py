"""The outcomes of a comparison so far, and how its progress is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from convexlift.study.cells import Cell, Outcome
from convexlift.study.protocol import Budget
from convexlift.study.workers import Workers

SELECTION, EVALUATION, COMMON_RATE = "selection", "evaluation", "common rate"
_GUESS, _COUNTS_AS = 1.5, 2


@final
@dataclass(frozen=True)
class Event:
    """A cell has finished: `done` of `total` cells, which grow with the grid of rates; `loss` is on
    validation in the phase "selection", on test in "evaluation" and "common rate", inf for a diverged cell,
    None for a failed one; `left` is about how many seconds the rest takes, None where no step was timed."""

    phase: str
    done: int
    total: int
    message: str
    arm: str
    lr: float
    seed: int
    loss: float | None
    left: float | None = None


@final
@dataclass
class Pace:
    """How many times as long runs take as their steps alone, for they are validated, scored and drawn too: a
    guess, which counts as two runs, and what the finished ones took."""

    alone: float = 0.0
    took: float = 0.0
    runs: int = 0

    def note(self, alone: float, took: float) -> None:
        """Take notice of a run."""
        self.alone += alone
        self.took += took
        self.runs += 1

    @property
    def ratio(self) -> float:
        seen = self.took / self.alone if self.alone else 0.0
        return (_COUNTS_AS * _GUESS + self.runs * seen) / (_COUNTS_AS + self.runs)


@final
@dataclass
class Outcomes:
    """The outcome of every cell of a comparison so far, `by_cell`, and where they are told."""

    workers: Workers
    progress: Callable[[Event], object] | None
    by_cell: dict[Cell, Outcome] = field(default_factory=dict)
    total: int = 0
    step_seconds: Mapping[str, float] = field(default_factory=dict)  # of each arm, from a few timed steps
    ahead: list[Cell] = field(default_factory=list)  # cells like those of the phases to come
    pace: Pace = field(default_factory=Pace)

    @property
    def budget(self) -> Budget:
        """What the comparison may spend."""
        return self.workers.setting.budget

    def run(self, phase: str, cells: Iterable[Cell]) -> None:
        """Run the cells that have no outcome yet."""
        wanted = [cell for cell in dict.fromkeys(cells) if cell not in self.by_cell]
        self.total += len(wanted)
        waiting = dict.fromkeys(wanted)
        for cell, outcome in self.workers.run(wanted):
            self.by_cell[cell] = outcome
            del waiting[cell]
            if outcome["status"] == "finished" and "seconds" in outcome and self.step_seconds:
                self.pace.note(self._steps_alone(cell), outcome["seconds"])
            if self.progress is not None:
                split = "validation" if phase == SELECTION else "test"
                loss = self.loss(cell, split)
                told = f"{split} {loss:.4f}" if outcome["status"] == "finished" else outcome["message"]
                done, total = len(self.by_cell), self.total + len(self.ahead)
                said, left = f"{cell}: {told}", self.left(waiting)
                self.progress(Event(phase, done, total, said, cell.arm, cell.lr, cell.seed, loss, left))

    def left(self, waiting: Collection[Cell]) -> float | None:
        """About how many seconds these cells take and those ahead, at the pace of the finished ones.

        None where no step was timed.
        """
        if not self.step_seconds:
            return None
        return (
            self.pace.ratio * math.fsum(map(self._steps_alone, [*waiting, *self.ahead])) / self.workers.jobs
        )

    def _steps_alone(self, cell: Cell) -> float:
        usual = math.fsum(self.step_seconds.values()) / len(self.step_seconds)
        return cell.steps * self.step_seconds.get(cell.arm, usual)

    def loss(self, cell: Cell, split: str = "test") -> float | None:
        """The "test" or "validation" loss: inf for a diverged cell, None for a failed one."""
        outcome = self.by_cell[cell]
        if outcome["status"] == "finished":
            return float(outcome[split])
        return math.inf if outcome["status"] == "diverged" else None

    def losses(self, cells: Iterable[Cell], split: str = "test") -> list[float | None]:
        """`loss` of each."""
        return [self.loss(cell, split) for cell in cells]

    def selection(self, name: str, rate: float | None = None) -> list[Cell]:
        """The selection cells of an arm, at one rate or at all."""
        return [c for c in self.by_cell if c.selects and c.arm == name and rate in (None, c.lr)]

    def finished(self, cells: Iterable[Cell]) -> list[Outcome]:
        """The outcomes of those cells that have one."""
        return [self.by_cell[cell] for cell in cells if self.by_cell[cell]["status"] == "finished"]

    def messages(self, cells: Iterable[Cell]) -> list[str]:
        """Why the other ones have none."""
        return [
            f"{cell}: {self.by_cell[cell]['message']}"
            for cell in cells
            if self.by_cell[cell]["status"] != "finished"
        ]


def mean(values: Sequence[float | None]) -> float:
    """The mean, infinite where any value is, or is missing."""
    return math.fsum(math.inf if v is None else v for v in values) / len(values) if values else math.inf
