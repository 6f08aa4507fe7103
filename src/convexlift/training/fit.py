"""Training: any module with a scalar loss, on any of the data kinds of `convexlift.data`."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.checks import check_count, name_dtype, plain
from convexlift.counting import counted
from convexlift.data import (
    Batch,
    Batches,
    Data,
    Indices,
    Rows,
    check_alike,
    describe,
    dtype_for,
    mean_loss,
    prepare,
    whole,
)
from convexlift.defaults import ANY, Defaults
from convexlift.screening import tell
from convexlift.seeds import drawing_apart, reseed, seed_of
from convexlift.training import optimisation
from convexlift.training.averaging import Average
from convexlift.training.compilation import check_compiler, compiled
from convexlift.training.denormals import flushed
from convexlift.training.environment import environment
from convexlift.training.history import FitEvent, History, TrainingDiverged
from convexlift.training.optimisation import OptimizerChoice, Schedule
from convexlift.training.progress import Show, interruptible, progress_bar
from convexlift.training.run_folder import STATE, RunFolder, State
from convexlift.training.settings import (
    RISING,
    Settings,
    check_callbacks,
    check_groups,
    check_module,
    place_and_kind,
)


@guarded(training=True)
def fit(
    module: nn.Module,
    data: Data,
    *,
    validation: Data | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = ANY.batch_size,
    optimizer: OptimizerChoice = "adam",
    lr: float | None = None,
    weight_decay: float = ANY.weight_decay,
    averaging: float = ANY.averaging,
    rates: Mapping[str, float] | None = None,
    schedule: Schedule = "cosine",
    warmup: int = 0,
    clip: float | None = None,
    patience: int | str | None = RISING,
    evaluate_every: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Show = True,
    callbacks: Sequence[Callable[[FitEvent], object]] = (),
    conclude: Callable[[History], Mapping[str, Any]] | None = None,
    compile: bool = False,
    allow: Sequence[str] = (),
) -> History:
    """Train a module in place by minimising its ``loss(batch)``, a mean over the rows of the batch.

    The module may have the hooks ``initialise(data)`` (called before the first step; a task that has been
    initialised keeps its scales, and warns of data on another one: make a new one to start anew),
    ``at_rows(indices)`` (before each step, which rows of the data its batch is: a tuple of one tensor, for
    `Unpaired` two, for a `Simulator` none), ``set_progress(t)`` with t in [0, 1], ``settle(data)`` (called
    once, as soon as t >= ``module.settle_at``) and ``freeze(data)``, which returns the model that is
    validated; without it a copy in eval mode is. Of a weighted loss the validated model tells by
    ``weight_of(batch)`` what a batch counts for in its mean, by default its rows.
    ``data`` is there all training rows in the form of one batch (for a `Simulator` 20,000 fixed draws). With
    ``validation`` the module ends at the state whose frozen model was best there; without, at the last state.
    Ctrl-C ends the run after the step in progress, at its last state. A run that diverges leaves the module
    at a good state: that of a late evaluation whose frozen model's loss is finite and no worse than at the
    start, or the start itself. Steps take denormal numbers for zero, in all
    threads; evaluations and callbacks find the caller's mode.

    Args:
        module: any module with ``loss(batch)``, or ``loss(batch, emit_from=...)`` where a part has
            ``coupling == "independent"``: the second argument is then a batch of another, independent stream.
        data: a tensor (N, ...), a tuple of row-aligned tensors, `Unpaired(xs, xt)` or a `Simulator`.
        validation: data of the same form.
        steps: optimiser steps, by default 1,000 (4,000 for a regression); or give ``epochs``.
        epochs: passes through the data.
        batch_size: rows of a step.
        optimizer: "adam", "sgd" (momentum 0.9), "soap" (Adam in the eigenbasis of Shampoo's preconditioner,
            from ``pytorch_optimizer``; the extra ``convexlift[soap]``), or a function that makes an optimiser
            of the parameter groups ``{"name": "source" or "free", "params": [...]}`` and sets rates and
            weight decay itself. "source" is what makes the non-negative weights, "free" all else; of a lift
            that emits all tensors "free" holds the slack of the free ones. SOAP's first step takes its first
            bases from the gradient and moves nothing. It keeps bases for sides of up to 1,024 of tensors with
            two or more dimensions; vectors are Adam's. Bases that a gradient leaves open are a matter of
            rounding: a run is repeated and resumed bit for bit on one machine, not from one to another.
        lr: learning rate of a named optimiser; by default 0.001, and with "adam" and "soap" that of the task
            where it has one (for a flow 0.032 and 0.064, a density 0.064, a regression 0.002 and 0.001),
            unless a lift in it has a gain above 1.
        weight_decay: of a named optimiser, decoupled: W <- W (1 - rate * weight_decay) before each step, with
            the scheduled rate of "free". Free matrices alone decay: first layer and skips of every ``ICNN``
            (kernels of a ``ConvICNN``), those of a proposal too, and what reads the context in a ``PICNN``.
            Left alone are non-negative weights and what makes them (latents, a lift's body and readout),
            vectors (biases, the linear term), alpha and a learned quadratic. Of modules that are not of this
            library every tensor of two or more dimensions decays, but for those declared ``nonnegative``. Of
            a lift that emits all tensors, as ``Lift.reference`` does, the slack of the free matrices decays.
        averaging: decay of an exponential moving average of the trainable parameters p, in [0, 1); 0 for
            none. After each step a <- a + w (p - a), w = max(1 - averaging, 9 / (step + 9)). Training goes on
            with p, bit for bit as without. The averages are what is frozen, validated, given to callbacks,
            written as the model and left in the module (after an error other than divergence it holds p).
            Means of `Centred` are averaged with the weights that they belong to; other buffers are those of
            the moment. Useful with a constant rate, whose noise it takes out; a cosine to 0 averages by
            itself.
        rates: multipliers of ``lr`` for the parameter groups of a named optimiser, as ``{"free": 40.0}``; 1
            for a group that is not there.
        schedule: "cosine" (to 0 at the end), "constant", or a function of t returning a factor of the rates.
        warmup: steps over which the scheduled rates are raised linearly: times (k + 1) / warmup in step k.
        clip: largest gradient norm, of each parameter group by itself.
        patience: stop after this many evaluations without a better validation loss; None: never. The default,
            "rising", stops where validation has risen for half of the run's evaluations (9 at least): none of
            them was better, and those of the last third were all worse than those of the first.
        evaluate_every: steps between evaluations; by default 25 evaluations a run.
        seed: of batches and of everything random in the module; the same seed gives the same run.
        device: where to train; the module is moved. By default where its parameters are.
        dtype: floating dtype to train in; the module is cast, and so are the data, unless the module
            ``standardises`` them itself, as the tasks do. By default the parameters' own.
        run_dir: folder for checkpoints, metrics and the result; see `RunFolder`. A run there that diverged or
            broke off before its first evaluation is begun anew.
        resume: go on from the last checkpoint in ``run_dir``, bit for bit; a folder without a run is begun.
        progress: show a progress bar where stderr is a terminal; or a function of (step, loss of its batch,
            history so far), called after each step.
        callbacks: called with a `FitEvent` at each evaluation, before its checkpoint.
        conclude: called at the end, unless the run was interrupted, with the module as it is left; what it
            returns joins the result in ``run_dir``.
        compile: run the loss through ``torch.compile``: the same numbers up to rounding, after a minute or so
            of compilation. Random numbers drawn inside the loss (estimated log-determinants, a lift's matched
            noise) are others. Needs a C++ compiler, on a GPU Triton.

        allow: checks of data to leave out, see ``convexlift.screening.screen``.

    Warns:
        DataWarning: the rows of a task are doubtful.

    Raises:
        TypeError, ValueError: an argument, the data or the checkpoint is unfit; the message says how.
        TrainingDiverged: something was not finite; the module is back at its last good state.
        FileExistsError: ``run_dir`` holds a run and ``resume`` is False.
        BlockingIOError: ``run_dir`` belongs to a run that is in progress.
        OSError: ``run_dir`` cannot be written; its last checkpoint stands.
        RuntimeError: ``compile=True`` where there is no compiler.
        ImportError: "soap" without the extra ``convexlift[soap]``.

    Source: Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", ICLR 2025 ("soap");
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019 (``weight_decay``);
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992 (``averaging``).

    Example:
        >>> class Mean(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.m = nn.Parameter(torch.zeros(2))
        ...     def loss(self, batch):
        ...         return (batch - self.m).square().sum(1).mean()
        >>> model = Mean()
        >>> history = fit(model, torch.tensor([[1.0, 2.0], [3.0, 6.0]]), steps=200, lr=0.1, progress=False)
        >>> [round(m, 2) for m in model.m.tolist()], history.stopped
        ([2.0, 4.0], 'finished')
    """
    check_module(module)
    check_callbacks(callbacks)
    place, kind = place_and_kind(module, device, dtype)
    rows_kind = dtype_for(module, kind)
    data = prepare(data, "training data", place, rows_kind)
    if validation is not None:
        validation = prepare(validation, "validation data", place, rows_kind)
        check_alike(data, validation)
        weight_of: Any = getattr(module, "weight_of", None)
        if weight_of is not None and not weight_of(whole(validation)):
            raise ValueError("every weight of the validation data is zero: nothing could be chosen by them")
    examine: Any = getattr(module, "examine", None)
    if examine is not None and isinstance(data, Tensor | tuple):
        tell(examine(data, validation if isinstance(validation, Tensor | tuple) else None, allow=allow))
    if patience not in (None, RISING) and validation is None:
        raise ValueError("patience needs validation data")
    if resume and run_dir is None:
        raise ValueError("resume=True needs run_dir")
    steps, epochs, batch_size = plain(steps), plain(epochs), plain(batch_size)
    usual = usual_settings(module)
    steps = _steps(steps, epochs, data, batch_size, usual.steps)
    every = max(1, steps // 25) if evaluate_every is None else evaluate_every
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr if lr is not None else usual.rate(optimizer) if isinstance(optimizer, str) else ANY.lr,
        schedule=schedule,
        clip=clip,
        patience=None if validation is None else patience,
        evaluate_every=every,
        seed=seed,
        compile=compile,
        weight_decay=weight_decay,
        averaging=averaging,
        rates={} if rates is None else rates,
        warmup=warmup,
    )
    check_groups(settings.rates, module)
    optimisation.check_optimizer(optimizer)
    if compile:
        check_compiler(place)
    with nullcontext() if run_dir is None else RunFolder(run_dir) as folder:
        saved = None
        if folder is not None:
            config = _config(module, data, validation, settings, place, kind)  # digests all data
            saved = folder.open(config, resume=resume)
        training = module.training
        module.to(device=device, dtype=dtype)
        with (
            drawing_apart(module, globally=compile),
            interruptible() as interrupted,
            progress_bar(steps, progress) as show,
        ):
            run = Run(module, data, validation, settings, callbacks, folder, saved)
            if folder is not None and saved is None:  # nothing is written before the module has initialised
                folder.begin(config)
                run.checkpoint()
            show(run.at.step, math.nan, run.history)
            try:
                while run.going and not interrupted():
                    if run.advance(interrupted, show):
                        run.evaluate()
                        show(run.at.step, run.history.loss[-1], run.history)
                if run.going:
                    run.checkpoint()
            except KeyboardInterrupt:
                pass  # raised inside a step or a callback: the last checkpoint stands
            finally:
                module.train(training)
            run.finish()
        over = run.history.stopped != "interrupted"
        run.write_result(**(conclude(run.history) if over and conclude is not None else {}))
    return run.history


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
        self.data = data
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
        groups = optimisation.parameter_groups(module)
        self.optimizer = optimisation.make_optimizer(settings.optimizer, groups, settings.lr, settings.rates)
        optimisation.attach_weight_decay(self.optimizer, module, settings.weight_decay)
        self.average = Average(module, settings.averaging)
        self.rates = optimisation.Rates(self.optimizer, settings.schedule, settings.steps, settings.warmup)
        for part in module.modules():
            if hasattr(part, "attach"):
                part.attach(self.optimizer)  # type: ignore[operator]
        if saved is not None:
            self._resume(saved)
        # What to go back to on divergence, see `_go_back`: by its step, where training begins here, the last
        # evaluation that training went on from well, and the last one.
        with self.average.in_place():
            self.start = self.good = self.latest = (self.at.step, snapshot(module))
        self.first_loss = math.nan

    @property
    def history(self) -> History:
        return self.at.history

    @property
    def going(self) -> bool:
        return self.at.step < self.settings.steps and self.history.stopped == "interrupted"

    def advance(self, interrupted: Callable[[], bool], show: Show) -> bool:
        """Make steps until an evaluation is due, and return whether one is."""
        steps, every = self.settings.steps, self.settings.evaluate_every
        with flushed():
            while not interrupted():
                loss = self.train_step()
                show(self.at.step, loss, self.history)
                if self.at.step % every == 0 or self.at.step == steps:
                    return True
        return False

    def train_step(self) -> float:
        """Make one optimiser step and return the loss before it."""
        started = time.perf_counter()
        self._tell_progress()
        self._seed("step", self.at.step)
        batch = self.batches.at(self.at.step)
        self._call("at_rows", batch.indices)
        self.rates.set(self.at.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._backward(batch)
        try:
            self.optimizer.step()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise self.diverged(f"a step of the optimiser fails ({error})", batch) from error
        self.at.step += 1
        self.average.update(self.at.step)
        if not self.durations:
            self.first_loss = value
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
            loss = self.at.loss_sum / self.at.loss_count
            if loss <= self.first_loss:
                self.good = self.latest
            self.latest = (self.at.step, snapshot(self.module))
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
        back = self._go_back()
        self.history.stopped = "diverged"
        rows = None if batch is None else batch.rows()
        message = (
            f"training diverged after {counted(self.at.step, 'step')}: {what}{_named(rows)}; "
            f"the module is back at its state {back}"
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
            norm = optimisation.clip_gradients(self.optimizer, self.settings.clip)
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
        try:
            frozen = self._frozen()
            validation = None if self.validation is None else self._mean_loss(frozen, self.validation)
        except FloatingPointError as error:
            raise FloatingPointError(f"the frozen model fails ({error})") from error
        if validation is not None and not math.isfinite(validation):
            raise FloatingPointError(f"the frozen model's validation loss is {validation}")
        return frozen, validation

    def _frozen(self) -> Any:
        self._seed("freeze", self.at.step)
        if hasattr(self.module, "freeze"):
            return self.module.freeze(self.rows)
        return copy.deepcopy(self.module).eval()

    def _mean_loss(self, frozen: Any, data: Data) -> float:
        weight_of = getattr(frozen, "weight_of", None)
        return mean_loss(frozen.loss, data, max(1024, self.settings.batch_size), weight_of)

    def _go_back(self) -> str:
        """Load the last state whose frozen model is no worse than at the start, and say which it is."""
        best = [] if self.best is None else [(self.history.best_step, self.best)]
        self.module.load_state_dict(self.start[1])
        least = self._loss_here()  # infinite where the start itself has none
        for step, state in [self.latest, self.good, *best, self.start]:
            self.module.load_state_dict(state)
            loss = self._loss_here()
            if loss <= least and loss < math.inf:
                return f"after {counted(step, 'step')}"
        # So the start itself has no finite loss; only that of a resumed run was trained.
        return f"after {counted(step, 'step')}" + (", which is no good either: begin anew" if step else "")

    def _loss_here(self) -> float:
        """The frozen model's loss, on the validation data if any; infinite unless finite on all data."""
        try:
            frozen = self._frozen()
            losses = [
                self._mean_loss(frozen, data) for data in (self.data, self.validation) if data is not None
            ]
        except (AttributeError, TypeError, NotImplementedError):
            return 0.0  # it has no loss to tell states apart by
        except (ArithmeticError, ValueError, RuntimeError):
            return math.inf
        return losses[-1] if all(map(math.isfinite, losses)) else math.inf

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
            self.best = None if validation is None else self.latest[1]
        if self.at.step == self.settings.steps:
            history.stopped = "finished"
        elif self._out_of_patience():
            history.stopped = "patience"
        return improved

    def _out_of_patience(self) -> bool:
        history, patience = self.history, self.settings.patience
        since_best = len(history.steps) - 1 - history.steps.index(history.best_step)
        if isinstance(patience, int):
            return since_best >= patience
        window = max(9, self.settings.steps // self.settings.evaluate_every // 2)
        if patience is None or since_best < window:
            return False
        recent, third = history.validation[-window:], window // 3
        return min(recent[-third:]) > max(recent[:third])

    def _tell_progress(self) -> None:
        t = self.at.step / self.settings.steps
        self._call("set_progress", t)
        settle_at = getattr(self.module, "settle_at", None)
        if settle_at is not None and t >= settle_at and not self.at.settled:
            self._seed("settle")
            self._call("settle", self.rows)
            self.at.settled = True

    def _seed(self, *parts: object) -> None:
        reseed(self.device, self.settings.seed, *parts)

    def _call(self, hook: str, argument: object) -> None:
        if hasattr(self.module, hook):
            getattr(self.module, hook)(argument)

    def _write(self, improved: bool) -> None:
        if self.folder is None:
            return
        if improved:
            about = {"step": self.at.step, "module": type(self.module).__name__}
            self.folder.write_model(self.latest[1], about)
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
            self.folder.go_on(_records(at.history))


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


def _named(rows: Indices) -> str:
    if not isinstance(rows, list):
        return ""
    listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f" on a batch of {counted(len(rows), 'row')} ({listed})"


def _records(history: History) -> list[dict[str, Any]]:
    columns = {"step": history.steps, "loss": history.loss, "seconds": history.seconds}
    if history.validation:
        columns = {**columns, "validation": history.validation}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def usual_settings(module: nn.Module) -> Defaults:
    """What `fit` takes where it is told nothing: the settings of a task, or those of any other module.

    >>> usual_settings(nn.Linear(2, 1)).lr
    0.001
    """
    own = getattr(module, "defaults", None)
    usual = own if isinstance(own, Defaults) else ANY
    if any(getattr(part, "amplified", False) for part in module.modules()):  # by gains: its steps are longer
        return replace(usual, lr=ANY.lr, soap_lr=ANY.soap_lr)
    return usual


def _steps(steps: int | None, epochs: int | None, data: Data, batch_size: int, usual: int) -> int:
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        if value is not None:
            check_count(name, value)
    if steps is not None and epochs is not None:
        raise ValueError("give steps or epochs, not both")
    if epochs is not None:
        return epochs * Batches(data, batch_size, seed=0).steps_per_epoch()
    return usual if steps is None else steps


def _config(
    module: nn.Module,
    data: Data,
    validation: Data | None,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return what a run must have in common with the checkpoint it resumes from."""
    shapes = [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters()]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
    about = settings.to_dict()
    for name in ("compile", "weight_decay", "averaging", "rates", "warmup"):
        if not about[name]:  # as runs were described before there was a choice
            del about[name]
    return {
        "module": f"{type(module).__name__} with {len(shapes)} parameter tensors {digest}",
        "data": describe(data),
        "validation": None if validation is None else describe(validation),
        **about,
        "device": device.type,
        "dtype": name_dtype(dtype),
    }
