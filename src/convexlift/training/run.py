"""One training run: its state, its steps, its evaluations, its checkpoints. `fit` drives it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from torch import Tensor, nn

from convexlift.data import Data, Rows, mean_loss, whole
from convexlift.seeds import seed_of, seed_torch
from convexlift.training.averaging import Average
from convexlift.training.batches import Batch, Batches
from convexlift.training.compilation import compiled
from convexlift.training.environment import environment
from convexlift.training.history import History
from convexlift.training.optimisation import (
    Rates,
    attach_weight_decay,
    clip_gradients,
    make_optimizer,
    parameter_groups,
)
from convexlift.training.run_folder import STATE, RunFolder, State
from convexlift.training.settings import Settings


@final
class TrainingDiverged(FloatingPointError):
    """The loss, a gradient, a parameter or the frozen model's validation loss was not finite.

    The module is back at its last good state, that of the last evaluation.

    Attributes:
        step: how many steps had been done.
        rows: which rows of the training data made up the batch, where a batch is to blame and its rows are
            known; two lists for `Unpaired`.
        history: the run until then.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int = 0,
        rows: list[int] | tuple[list[int], ...] | None = None,
        history: History | None = None,
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


@final
@dataclass
class Progress:
    """Where a run stands, beside the tensors of module and optimiser."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # since the last evaluation
    loss_count: int = 0
    settled: bool = False
    history: History = field(default_factory=History)


@final
class Run:
    """A module in training. What is random in step s is seeded by (seed, s), so it resumes at any step."""

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        validation: Data | None,
        settings: Settings,
        callbacks: Sequence[Callable[[FitEvent], object]],
        folder: RunFolder | None,
        saved: State | None,
    ) -> None:
        self.module: Any = module  # its loss and its optional hooks are looked up by name
        self.device = next(module.parameters()).device
        self.rows: Rows = whole(data)
        self.validation = validation
        self.settings = settings
        self.callbacks = callbacks
        self.folder = folder
        self.batches = Batches(data, settings.batch_size, settings.seed)
        self.emitting: Batches | None = None
        # Lifts that emit from another batch than that of the loss have a stream of batches of their own.
        if any(getattr(part, "coupling", None) == "independent" for part in module.modules()):
            self.emitting = Batches(data, settings.batch_size, seed_of(settings.seed, "emitting"))
        loss: Any = self.module.loss
        self.loss: Callable[..., Any] = compiled(loss) if settings.compile else loss
        self.at = Progress()
        self.best: State | None = None  # the module's state at the best validation loss
        self.durations: list[float] = []

        module.train()
        self._seed("initialise")
        self._call("initialise", self.rows)
        self.optimizer = make_optimizer(settings.optimizer, parameter_groups(module), settings.lr)
        attach_weight_decay(self.optimizer, module, settings.weight_decay)
        self.average = Average(module, settings.averaging)
        self.rates = Rates(self.optimizer, settings.schedule)
        for part in module.modules():
            if hasattr(part, "attach"):
                part.attach(self.optimizer)  # type: ignore[operator]
        if saved is not None:
            self._resume(saved)
        # What to go back to on divergence: the module at the last evaluation, or at the start.
        with self.average.in_place():
            self.good, self.good_step = snapshot(module), self.at.step
        if saved is None:
            self.checkpoint()

    @property
    def history(self) -> History:
        return self.at.history

    @property
    def going(self) -> bool:
        return self.at.step < self.settings.steps and self.history.stopped == "interrupted"

    def train_step(self) -> float:
        """Make one optimiser step and return the loss before it."""
        started = time.perf_counter()
        self._tell_progress()
        self._seed("step", self.at.step)
        batch = self.batches.at(self.at.step)
        self.rates.set(self.at.step / self.settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._backward(batch)
        self.optimizer.step()
        self.at.step += 1
        self.average.update(self.at.step)
        self.at.loss_sum += value
        self.at.loss_count += 1
        self.durations.append(time.perf_counter() - started)
        self.at.seconds += self.durations[-1]
        return value

    def evaluate(self) -> None:
        """Score the frozen model, keep the best, call the callbacks, write a checkpoint.

        All but the checkpoint see the averaged parameters, if there is an average.
        """
        self._tell_progress()
        try:
            with self.average.in_place():
                frozen, validation = self._score()
        except FloatingPointError as error:
            raise self.diverged(str(error)) from error
        with self.average.in_place():
            self.module.train()
            self.good, self.good_step = snapshot(self.module), self.at.step
            loss = self.at.loss_sum / self.at.loss_count
            self.at.loss_sum, self.at.loss_count = 0.0, 0
            improved = self._record(loss, validation)
            for callback in self.callbacks:
                callback(FitEvent(self.at.step, loss, validation, self.module, frozen))
        self._write(improved)

    def finish(self) -> None:
        """Leave the module at the best state, or interrupted at the last one."""
        if self.best is not None and self.history.stopped != "interrupted":
            self.module.load_state_dict(self.best)
            self._call("set_progress", self.history.best_step / self.settings.steps)
        else:
            self.average.take_place()

    def checkpoint(self) -> None:
        """Write down everything that the next step depends on."""
        if self.folder is not None:
            self.folder.write_state(
                {
                    "progress": asdict(self.at),
                    "module": snapshot(self.module),
                    "optimizer": self.optimizer.state_dict(),
                    "best": self.best,
                    **({"average": self.average.state()} if self.settings.averaging else {}),
                }
            )

    def diverged(self, what: str, batch: Batch | None = None) -> TrainingDiverged:
        """Go back to the last good state and return the error to raise."""
        self.module.load_state_dict(self.good)
        self.history.stopped = "diverged"
        rows = None if batch is None else batch.rows()
        message = (
            f"training diverged after {self.at.step} steps: {what}{_named(rows)}; "
            f"the module is back at its state after {self.good_step} steps"
        )
        self.write_result(error=message)
        return TrainingDiverged(message, step=self.at.step, rows=rows, history=self.history)

    def _backward(self, batch: Batch) -> float:
        try:
            if self.emitting is None:
                loss = self.loss(batch.data)
            else:
                loss = self.loss(batch.data, emit_from=self.emitting.at(self.at.step).data)
            value = _scalar(loss)
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value}")
            loss.backward()
            norm = clip_gradients(self.optimizer, self.settings.clip)
            if not math.isfinite(norm):
                raise FloatingPointError(f"the loss is {value:g} but its gradient is not finite")
        except FloatingPointError as error:
            raise self.diverged(str(error), batch) from error
        return value

    def _score(self) -> tuple[nn.Module, float | None]:
        if not all(bool(p.isfinite().all()) for p in self.module.parameters()):
            raise FloatingPointError("a parameter is not finite")
        if self.validation is None and not self.callbacks:
            return self.module, None  # nobody looks at the frozen model
        self._seed("freeze", self.at.step)
        frozen: Any
        validation = None
        try:
            if hasattr(self.module, "freeze"):
                frozen = self.module.freeze(self.rows)
            else:
                frozen = copy.deepcopy(self.module).eval()
            if self.validation is not None:
                size = max(1024, self.settings.batch_size)
                validation = mean_loss(frozen.loss, self.validation, size)
        except FloatingPointError as error:
            raise FloatingPointError(f"the frozen model fails ({error})") from error
        if validation is not None and not math.isfinite(validation):
            raise FloatingPointError(f"the frozen model's validation loss is {validation}")
        return frozen, validation

    def _record(self, loss: float, validation: float | None) -> bool:
        history = self.history
        history.steps.append(self.at.step)
        history.loss.append(loss)
        history.seconds.append(self.at.seconds)
        history.ms_per_step = 1000.0 * statistics.median(self.durations)
        best = history.best_validation
        improved = validation is None or best is None or validation < best
        if validation is not None:
            history.validation.append(validation)
        if improved:
            history.best_step, history.best_validation = self.at.step, validation
            self.best = None if validation is None else self.good
        since_best = len(history.steps) - 1 - history.steps.index(history.best_step)
        if self.at.step == self.settings.steps:
            history.stopped = "finished"
        elif self.settings.patience is not None and since_best >= self.settings.patience:
            history.stopped = "patience"
        return improved

    def _tell_progress(self) -> None:
        t = self.at.step / self.settings.steps
        self._call("set_progress", t)
        settle_at = getattr(self.module, "settle_at", None)
        if settle_at is not None and t >= settle_at and not self.at.settled:
            self._seed("settle")
            self._call("settle", self.rows)
            self.at.settled = True

    def _seed(self, *parts: object) -> None:
        seed_torch(self.device, self.settings.seed, *parts)

    def _call(self, hook: str, argument: object) -> None:
        if hasattr(self.module, hook):
            getattr(self.module, hook)(argument)

    def _write(self, improved: bool) -> None:
        if self.folder is None:
            return
        if improved:
            about = {"step": self.at.step, "module": type(self.module).__name__}
            self.folder.write_model(self.good, about)
        self.folder.append_metrics(_records(self.history)[-1])
        self.checkpoint()

    def write_result(self, error: str | None = None, **more: Any) -> None:
        """Write what there is to say of the run, once: it is over."""
        if self.folder is not None:
            self.folder.write_result(
                {
                    "schema": 1,
                    "seed": self.settings.seed,
                    "steps": self.at.step,
                    "parameters": sum(p.numel() for p in self.module.parameters()),
                    **{k: v for k, v in self.history.to_dict().items() if not isinstance(v, list)},
                    "seconds": self.at.seconds,
                    "error": error,
                    "environment": environment(),
                    **more,
                }
            )

    def _resume(self, saved: State) -> None:
        try:
            at = Progress(**{**saved["progress"], "history": History.from_dict(saved["progress"]["history"])})
            module, optimizer, best = saved["module"], saved["optimizer"], saved["best"]
            check_state(self.module, module)
            if best is not None:
                check_state(self.module, best)
            if self.settings.averaging:
                self.average.load(saved.get("average"))
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            path = "the checkpoint" if self.folder is None else self.folder.path / STATE
            raise ValueError(f"{path} does not fit this run: {error}") from error
        self.module.load_state_dict(module)
        self.at, self.best = at, best
        if self.folder is not None:
            self.folder.write_metrics(_records(at.history))


def snapshot(module: nn.Module) -> State:
    """Return a copy of the module's state that later steps do not change."""
    state = module.state_dict()
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}


def check_state(module: nn.Module, state: State) -> None:
    """Raise ValueError, naming the first tensor that differs, unless the state is one of such a module."""
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            raise ValueError(f"it has no tensor {name!r}, so it is of another model")
        if name not in own:
            raise ValueError(f"it has a tensor {name!r} that this module has not, so it is of another model")
        if isinstance(own[name], Tensor) and own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, here {tuple(own[name].shape)}"
            raise ValueError(f"its tensor {name!r} has shape {shapes}, so it is of another model")


def _scalar(loss: Any) -> float:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss(batch) must return a scalar tensor; got {got}")
    if not loss.requires_grad:
        raise ValueError("loss(batch) does not depend on any trainable parameter")
    return loss.item()


def _named(rows: list[int] | tuple[list[int], ...] | None) -> str:
    if not isinstance(rows, list):
        return ""
    listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f" on a batch of {len(rows)} rows ({listed})"


def _records(history: History) -> list[dict[str, Any]]:
    columns = {"step": history.steps, "loss": history.loss, "seconds": history.seconds}
    if history.validation:
        columns = {**columns, "validation": history.validation}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
