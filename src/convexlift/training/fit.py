"""Training: any module with a scalar loss, on any of the data kinds of `convexlift.training.batches`."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from convexlift.data import Data, check_alike, describe, prepare
from convexlift.training.batches import Batches
from convexlift.training.compilation import check_compiler
from convexlift.training.history import History
from convexlift.training.optimisation import OptimizerChoice, Schedule, parameter_groups
from convexlift.training.progress import progress_bar
from convexlift.training.run import FitEvent, Run
from convexlift.training.run_folder import RunFolder
from convexlift.training.settings import Settings, check_count


def fit(
    module: nn.Module,
    data: Data,
    *,
    validation: Data | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 512,
    optimizer: OptimizerChoice = "adam",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    averaging: float = 0.0,
    schedule: Schedule = "cosine",
    clip: float | None = None,
    patience: int | None = None,
    evaluate_every: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[FitEvent], object]] = (),
    conclude: Callable[[History], Mapping[str, Any]] | None = None,
    compile: bool = False,
) -> History:
    """Train a module in place by minimising its ``loss(batch)``, a mean over the rows of the batch.

    The module may have the hooks ``initialise(data)`` (called once, before the first step),
    ``set_progress(t)`` with t in [0, 1], ``settle(data)`` (called once, as soon as t >= ``module.settle_at``)
    and ``freeze(data)``, which returns the model that is validated; without it a copy in eval mode is.
    ``data`` is there all training rows in the form of one batch (for a `Simulator` 20,000 fixed draws). With
    ``validation`` the module ends at the state whose frozen model was best there; without, at the last state.
    Ctrl-C ends the run after the step in progress, at its last state.

    Args:
        module: any module with ``loss(batch)``, or ``loss(batch, emit_from=...)`` where a part has
            ``coupling == "independent"``: the second argument is then a batch of another, independent stream.
        data: a tensor (N, ...), a tuple of row-aligned tensors, `Unpaired(xs, xt)` or a `Simulator`.
        validation: data of the same form.
        steps: optimiser steps, 1,000 by default; or give ``epochs``.
        epochs: passes through the data.
        batch_size: rows of a step.
        optimizer: "adam", "sgd" (momentum 0.9), or a function that makes an optimiser of the parameter groups
            ``{"name": "source" or "free", "params": [...]}`` and sets rates and weight decay itself.
        lr: learning rate of "adam" and "sgd".
        weight_decay: of "adam" and "sgd", decoupled: W <- W (1 - rate * weight_decay) before each step, with
            the scheduled rate. Free matrices alone decay: first layer and skips of every ``ICNN`` (kernels of
            a ``ConvICNN``), those of a proposal too, and what reads the context in a ``PICNN``. Left alone
            are non-negative weights and all else that a weight source owns (latents, a lift's body), vectors
            (biases, the linear term), alpha and a learned quadratic. Of modules that are not of this library
            every tensor of two or more dimensions decays, but for those declared ``nonnegative``. A lift that
            emits all tensors, as ``Lift.reference`` does, has none that decays.
        averaging: decay of an exponential moving average of the trainable parameters p, in [0, 1); 0 for
            none. After each step a <- a + w (p - a), w = max(1 - averaging, 9 / (step + 9)). Training goes on
            with p, bit for bit as without. The averages are what is frozen, validated, given to callbacks,
            written as the model and left in the module (after an error other than divergence it holds p).
            Means of `Centred` are averaged with the weights that they belong to; other buffers are those of
            the moment. Useful with a constant rate, whose noise it takes out; a cosine to 0 averages by
            itself.
        schedule: "cosine" (to 0 at the end), "constant", or a function of t returning a factor of the rates.
        clip: largest gradient norm, of each parameter group by itself.
        patience: stop after this many evaluations without a better validation loss.
        evaluate_every: steps between evaluations; by default 25 evaluations a run.
        seed: of batches and of everything random in the module; the same seed gives the same run.
        device: where to train; the module is moved. By default where its parameters are.
        dtype: floating dtype to train in; module and data are cast. By default the parameters' own.
        run_dir: folder for checkpoints, metrics and the result; see `RunFolder`.
        resume: go on from the last checkpoint in ``run_dir``, bit for bit; a folder without a run is begun.
        progress: show a progress bar where stderr is a terminal.
        callbacks: called with a `FitEvent` at each evaluation, before its checkpoint.
        conclude: called at the end, unless the run was interrupted, with the module as it is left; what it
            returns joins the result in ``run_dir``.
        compile: run the loss through ``torch.compile``: the same numbers up to rounding, after a minute or so
            of compilation. Random numbers drawn inside the loss (estimated log-determinants, a lift's matched
            noise) are others. Needs a C++ compiler, on a GPU Triton.

    Raises:
        TypeError, ValueError: an argument, the data or the checkpoint is unfit; the message says how.
        TrainingDiverged: something was not finite; the module is back at its state of the last evaluation.
        FileExistsError: ``run_dir`` holds a run and ``resume`` is False.
        OSError: ``run_dir`` cannot be written; its last checkpoint stands.
        RuntimeError: ``compile=True`` where there is no compiler.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019 (``weight_decay``);
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
    _check_module(module)
    _check_callbacks(callbacks)
    place, kind = _place_and_kind(module, device, dtype)
    data = prepare(data, "training data", place, kind)
    if validation is not None:
        validation = prepare(validation, "validation data", place, kind)
        check_alike(data, validation)
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data")
    if resume and run_dir is None:
        raise ValueError("resume=True needs run_dir")
    steps = _steps(steps, epochs, data, batch_size)
    every = max(1, steps // 25) if evaluate_every is None else evaluate_every
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        clip=clip,
        patience=patience,
        evaluate_every=every,
        seed=seed,
        compile=compile,
        weight_decay=weight_decay,
        averaging=averaging,
    )

    if compile:
        check_compiler(place)
    folder = saved = None
    if run_dir is not None:
        folder = RunFolder(run_dir)
        saved = folder.open(_config(module, data, validation, settings, place, kind), resume=resume)

    training = module.training
    module.to(device=device, dtype=dtype)
    cuda = [place] if place.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        _interruptible() as interrupted,
        progress_bar(steps, progress) as show,
    ):
        run = Run(module, data, validation, settings, callbacks, folder, saved)
        try:
            while run.going and not interrupted():
                loss = run.train_step()
                if run.at.step % every == 0 or run.at.step == steps:
                    run.evaluate()
                show(run.at.step, loss, run.history)
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


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"fit trains a torch module; got {type(module).__name__}")
    if not callable(getattr(module, "loss", None)):
        raise TypeError(f"{type(module).__name__} has no method loss(batch)")
    parameter_groups(module)


def _check_callbacks(callbacks: Sequence[Callable[[FitEvent], object]]) -> None:
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of a FitEvent; got {type(callback).__name__}")


def _steps(steps: int | None, epochs: int | None, data: Data, batch_size: int) -> int:
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        check_count(name, value)
    if steps is not None and epochs is not None:
        raise ValueError("give steps or epochs, not both")
    if epochs is not None:
        return epochs * Batches(data, batch_size, seed=0).steps_per_epoch()
    return 1_000 if steps is None else steps


def _place_and_kind(
    module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype to train in: what was asked for, or the module's own."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype; got {str(dtype).removeprefix('torch.')}")
    like = next(p for p in module.parameters() if p.requires_grad)
    try:
        place = torch.empty(0, device=like.device if device is None else device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is unknown or not available") from error
    return place, like.dtype if dtype is None else dtype


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
    for name in ("compile", "weight_decay", "averaging"):
        if not about[name]:  # as runs were described before there was a choice
            del about[name]
    return {
        "module": f"{type(module).__name__} with {len(shapes)} parameter tensors {digest}",
        "data": describe(data),
        "validation": None if validation is None else describe(validation),
        **about,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C until the step in progress is complete; a second one interrupts at once."""
    pressed: list[int] = []

    def hold(signum: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(signum)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
