"""The outcomes of a comparison so far, and how its progress is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from convexlift.study.cells import Cell, Outcome, Setting, Workers
from convexlift.study.protocol import SELECTION_SEED

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
class Books:
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

    @property
    def seconds(self) -> float:
        """What the cells took together, those of earlier calls included."""
        return math.fsum(outcome.get("seconds", 0.0) for outcome in self.outcomes.values())

    def validation(self, cell: Cell) -> float | None:
        """The validation loss: inf for a diverged cell, None for a failed one."""
        return self._loss(cell, "validation")

    def test(self, cell: Cell) -> float | None:
        """The test loss: inf for a diverged cell, None for a failed one."""
        return self._loss(cell, "test")

    def selection(self, name: str, rate: float) -> list[Cell]:
        """The selection cells of an arm at a rate."""
        return [cell for cell in self.outcomes if (cell.arm, cell.lr) == (name, rate) and is_selection(cell)]

    def trained(self, name: str) -> bool:
        """Whether any cell of the arm finished."""
        return any(bool(self.finished([cell])) for cell in self.outcomes if cell.arm == name)

    def finished(self, cells: Iterable[Cell]) -> list[Outcome]:
        return [self.outcomes[cell] for cell in cells if self.outcomes[cell]["status"] == "finished"]

    def messages(self, cells: Iterable[Cell]) -> list[str]:
        return [
            f"{cell_name(cell)}: {self.outcomes[cell]['message']}"
            for cell in cells
            if self.outcomes[cell]["status"] != "finished"
        ]

    def _loss(self, cell: Cell, key: str) -> float | None:
        outcome = self.outcomes[cell]
        if outcome["status"] == "finished":
            return float(outcome[key])
        return math.inf if outcome["status"] == "diverged" else None


def is_selection(cell: Cell) -> bool:
    return cell.seed >= SELECTION_SEED


def cell_name(cell: Cell) -> str:
    return f"{cell.arm}, rate {cell.lr:g}, seed {cell.seed}, {cell.steps} steps"


def mean(values: Sequence[float | None]) -> float:
    """The mean, infinite where any value is, or is missing."""
    return math.fsum(math.inf if v is None else v for v in values) / len(values) if values else math.inf


def _line(cell: Cell, outcome: Outcome, loss: float | None, split: str) -> str:
    if outcome["status"] == "finished":
        return f"{cell_name(cell)}: {split} {loss:.4f}"
    return f"{cell_name(cell)}: {outcome['message']}"
