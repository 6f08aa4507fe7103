"""What a training run tells: its record, its events, its end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from convexlift.data import Indices


@final
@dataclass
class History:
    """What a run did, one entry per evaluation.

    Attributes:
        steps: optimiser steps done at each evaluation.
        loss: mean training loss since the evaluation before.
        validation: mean validation loss of the frozen model; empty without validation data.
        seconds: training seconds so far, evaluations excluded.
        best_step: the step that was best on validation; without validation the last one evaluated.
        best_validation: the validation loss there, None without validation data.
        stopped: "finished", "patience", "interrupted" or "diverged".
        ms_per_step: median milliseconds of one training step.

    Example:
        >>> history = History(steps=[10, 20], loss=[2.0, 1.0], validation=[2.5, 1.5], best_step=20)
        >>> History.from_dict(history.to_dict()) == history
        True
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_step: int = 0
    best_validation: float | None = None
    stopped: str = "interrupted"
    ms_per_step: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> History:
        """Return the history that `to_dict` wrote down.

        Raises:
            ValueError: a field is missing or unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in sorted(known.symmetric_difference(fields)):
            raise ValueError(f"not a history: field {name!r} is {'missing' if name in known else 'unknown'}")
        return cls(**fields)


@final
class TrainingDiverged(FloatingPointError):
    """The loss, a gradient, a parameter or the frozen model's validation loss was not finite.

    The module is back at its last good state: that of a late evaluation that was no worse than the start.

    Attributes:
        step: how many steps had been done.
        rows: which rows of the training data made up the batch, where a batch is to blame and its rows are
            known; two lists for `Unpaired`.
        history: the run until then.
    """

    def __init__(
        self, message: str, *, step: int = 0, rows: Indices = None, history: History | None = None
    ) -> None:
        super().__init__(message)
        self.step = step
        self.rows = rows
        self.history = history if history is not None else History()


@final
@dataclass(frozen=True)
class FitEvent:
    """What a callback of `fit` receives at each evaluation.

    Attributes:
        step: optimiser steps done.
        loss: mean training loss since the evaluation before.
        validation: mean validation loss of the frozen model, None without validation data.
        module: the module in training. With ``averaging`` it holds the averaged parameters during the
            callback and those of the last step again after it: what a callback writes to them is lost.
        frozen: the frozen model, of the averaged parameters where there are any.
    """

    step: int
    loss: float
    validation: float | None
    module: nn.Module
    frozen: nn.Module
