"""Cells: one arm at one rate and seed; what they share, and where the outcome of each is kept.

The name of a cell's file holds a digest of everything the outcome depends on, the library's own code
included: outcomes of an earlier version are never mixed with those of this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch

from convexlift.data import describe
from convexlift.problems import Problem, problem
from convexlift.study.arms import ALL_ARMS, Arm
from convexlift.study.digest import code_digest
from convexlift.study.protocol import SELECTION_SEED, Budget

Outcome = dict[str, Any]
Subject = tuple[Problem, Mapping[str, Arm]]


@final
@dataclass(frozen=True)
class Named:
    """Makes the problem of that name with the library's arms, in whichever process asks.

    `task` None is the problem's own; `objective` is that of densities.
    """

    name: str
    data: str | None = None
    task: str | None = None
    objective: str = "mle"

    def __call__(self) -> Subject:
        named = problem(self.name, self.data)
        chosen = named if self.task is None else named.as_task(self.task)
        return dataclasses.replace(chosen, density_objective=self.objective), ALL_ARMS


@final
@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison share: the subject (a function that makes problem and arms), budget and
    device."""

    make: Callable[[], Subject]
    budget: Budget
    device: str = "cpu"


@final
@dataclass(frozen=True)
class Cell:
    """One training run; `scored` ones also follow the test loss along the run, for the score at equal
    seconds."""

    arm: str
    lr: float
    seed: int
    steps: int
    scored: bool = True

    @property
    def selects(self) -> bool:
        """Whether it serves the choice of a rate only."""
        return self.seed >= SELECTION_SEED

    def __str__(self) -> str:
        return f"{self.arm}, rate {self.lr:g}, seed {self.seed}, {self.steps} steps"


@lru_cache(maxsize=1)
def made(make: Callable[[], Subject]) -> Subject:
    """What a function makes of problem and arms, checked; it is called once for all cells in a process.

    Raises:
        TypeError: it is something else.
    """
    found: Any = make()
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Problem):
        raise TypeError(
            "own must return (Problem, {name: way}), a way of training being a function of a network"
        )
    chosen, arms = found
    if not isinstance(arms, Mapping) or not arms or not all(callable(arm) for arm in arms.values()):
        raise TypeError("own must return at least one way of training, each a function of a network")
    return chosen, arms


def load(make: Callable[[], Subject]) -> Subject:
    """`made` anew, at the start of a comparison: a file may have changed since the last one."""
    made.cache_clear()
    subject.cache_clear()
    return made(make)


@lru_cache(maxsize=1)
def subject(setting: Setting) -> tuple[Problem, Mapping[str, Arm], str]:
    """The problem (with the budget's architecture), its arms, and a digest that tells settings apart."""
    from convexlift import __version__

    chosen, arms = made(setting.make)
    if setting.budget.architecture:
        chosen = dataclasses.replace(chosen, architecture=dict(setting.budget.architecture))
    told = (
        chosen.name,
        *(describe(split) for split in (chosen.train, chosen.validation, chosen.test)),
        sorted(chosen.architecture.items()),
        chosen.blocks,
        chosen.task,
        chosen.density_objective,
        setting.budget.batch_size,
        setting.budget.clip,
        setting.budget.optimizer,
        setting.budget.traced,
        torch.device(setting.device).type,
        __version__,
        code_digest(),
    )
    return chosen, arms, hashlib.sha256(repr(told).encode()).hexdigest()[:10]


def cell_path(folder: Path, setting: Setting, cell: Cell) -> Path:
    """Where the outcome of a cell is kept."""
    arm = re.sub(r"[^\w.-]+", "_", cell.arm)
    return folder / f"{arm}-lr{cell.lr:.6g}-seed{cell.seed}-steps{cell.steps}-{subject(setting)[2]}.json"


def read_outcome(path: Path) -> Outcome | None:
    """The stored outcome; None where there is none or the file is not readable as one."""
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(outcome, dict) and outcome.get("status") in ("finished", "diverged")
    return outcome if known else None
