"""One run of a search: a setting trained for some steps, and its losses on held-out rows, piece by piece."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from convexlift.data import Rows, chunks, count_rows, place_for
from convexlift.names import SCREENS
from convexlift.seeds import one_thread, seeded
from convexlift.training.fit import fit
from convexlift.training.history import TrainingDiverged
from convexlift.tuning.rungs import Plan, held_out
from convexlift.tuning.space import Setting

Make = Callable[..., Any]

# Evaluations of a run, and pieces of the held-out rows by which differences are judged.
_EVALUATIONS, _PIECES = 6, 20
_OF_FIT = frozenset(inspect.signature(fit).parameters)


@final
@dataclass(frozen=True)
class Trial:
    """A setting (names and values), steps, and which rows are held out."""

    setting: tuple[tuple[str, Any], ...]
    steps: int
    hold: int

    def values(self) -> dict[str, Any]:
        """The same as plain values, side by side."""
        return {**dict(self.setting), "steps": self.steps, "hold": self.hold}


@final
@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        loss: mean over the held-out rows of the model of the best step; None where the run failed.
        pieces: the same of pieces of these rows.
        best_step: the best step, of those evaluated.
        seconds: of the processor, for training and scoring.
        message: why the run failed, or "".
    """

    loss: float | None
    pieces: tuple[float, ...]
    best_step: int
    seconds: float
    message: str = ""

    def figures(self) -> dict[str, Any]:
        """The same without the pieces."""
        return {name: value for name, value in asdict(self).items() if name != "pieces"}


@final
@dataclass(frozen=True)
class Work:
    """What the trials of a search share; calling it runs one, with one thread.

    Rows are arrays here, which other processes read wherever they are.
    """

    make: Make
    rows: tuple[Any, ...]
    pair: bool
    share: float
    seed: int
    plan: Plan
    options: Mapping[str, Any]
    base: tuple[tuple[str, Any], ...]

    def __call__(self, trial: Trial) -> Outcome:
        """Train and score.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed while it trained here.
            ValueError: the settings that the search began with cannot be trained; others may fail so.
        """
        parts = tuple(torch.from_numpy(part) for part in self.rows)
        rows: Rows = parts if self.pair else parts[0]
        train, held = held_out(rows, self.share, self.seed, self.plan, trial.hold)
        begun = time.process_time()
        with one_thread():
            try:
                loss, pieces, best_step = self._trained(trial, train, held)
            except (TrainingDiverged, ArithmeticError, ValueError, RuntimeError) as error:
                if isinstance(error, ValueError) and trial.setting == self.base:
                    raise
                return Outcome(None, (), 0, time.process_time() - begun, str(error))
        return Outcome(loss, pieces, best_step, time.process_time() - begun)

    def _trained(self, trial: Trial, train: Rows, held: Rows) -> tuple[float, tuple[float, ...], int]:
        of_task, of_fit = split(dict(trial.setting))
        with seeded(self.seed):
            task = self.make(**of_task)
        history = fit(
            task,
            train,
            validation=held,
            steps=trial.steps,
            evaluate_every=max(1, trial.steps // _EVALUATIONS),
            patience=None,
            seed=self.seed,
            progress=False,
            allow=SCREENS,  # of these rows whoever searches has looked at them all
            **{**self.options, **of_fit},
        )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        frozen = task.freeze(place_for(task, train))
        weight_of = getattr(frozen, "weight_of", count_rows)
        losses, weights = list[float](), list[float]()
        with torch.no_grad():
            for piece, _ in chunks(place_for(task, held), -(-count_rows(held) // _PIECES)):
                if weight := weight_of(piece):
                    losses.append(frozen.loss(piece).item())
                    weights.append(weight)
        loss = float(np.average(losses, weights=weights))
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss on held-out rows is {loss}")
        return loss, tuple(losses), history.best_step


def named(setting: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A setting as a key.

    >>> named({"lr": 0.1, "blocks": 2})
    (('blocks', 2), ('lr', 0.1))
    """
    return tuple(sorted(setting.items()))


def split(setting: Mapping[str, Any]) -> tuple[Setting, Setting]:
    """The settings of a task, and those that ``fit`` has a parameter for.

    >>> split({"sharpness": 2.0, "lr": 0.1})
    ({'sharpness': 2.0}, {'lr': 0.1})
    """
    of_fit = {name: value for name, value in setting.items() if name in _OF_FIT}
    return {name: value for name, value in setting.items() if name not in _OF_FIT}, of_fit
