"""Runs in TensorBoard: a callback of ``fit``. Needs the extra ``convexlift[tensorboard]``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, final

from torch import Tensor, nn

from convexlift.mechanism.recorder import Recorder
from convexlift.sources import WeightSource
from convexlift.training.history import FitEvent

__all__ = ["TensorBoard"]


@final
class TensorBoard:
    """Writes a run for TensorBoard, evaluation by evaluation; a callback of ``fit``.

    Scalars: ``loss/training``, ``loss/validation``, ``progress/steps_per_second`` (by the clock, evaluations
    included) and what the recorder notes, as ``mechanism/emission_noise`` or
    ``mechanism/0.inner.0/shoulder``. Histograms: ``weights/...``, the constrained weights of the frozen
    model. Look at them with ``tensorboard --logdir FOLDER``.

    Every evaluation is on disk when it returns. Give each run a folder of its own. A resumed run goes on in
    its folder; what was written there beyond the step of the resume is then not shown. ``close()``, or
    leaving a ``with`` block, closes the file; a later evaluation opens a new one.

    Args:
        folder: where the event files go; made at the first evaluation.
        recorder: its notes are written; it need not be a callback of its own.

    Raises:
        ImportError: the package tensorboard is not installed.
        NotADirectoryError: ``folder`` is a file.

    Example:
        >>> import tempfile, torch, convexlift as cl
        >>> x = torch.randn(200, 2)
        >>> flow = cl.ConvexPotentialFlow([cl.Softplus(cl.ICNN(2, hidden=(8, 8), seed=0))])
        >>> with tempfile.TemporaryDirectory() as folder, TensorBoard(folder, Recorder(x)) as board:
        ...     history = cl.fit(flow, x, steps=2, progress=False, callbacks=[board])
        ...     len(list(Path(folder).iterdir()))
        1
    """

    def __init__(self, folder: str | os.PathLike[str], recorder: Recorder | None = None) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file; TensorBoard needs a folder")
        self.recorder = recorder
        self._make_writer = _summary_writer()
        self._writer: Any = None
        self._written: dict[str, int] = {}  # how many of the recorder's notes are written
        self._last: tuple[int, float] | None = None  # step and time of the last evaluation

    def __call__(self, event: FitEvent) -> None:
        """Write an evaluation."""
        scalars = [("loss/training", event.step, event.loss)]
        if event.validation is not None:
            scalars.append(("loss/validation", event.step, event.validation))
        now = time.perf_counter()
        if self._last is not None and event.step > self._last[0]:
            speed = (event.step - self._last[0]) / (now - self._last[1])
            scalars.append(("progress/steps_per_second", event.step, speed))
        self._last = event.step, now
        if self.recorder is not None:
            self.recorder(event)
            scalars += self._new_notes(self.recorder)
        if self._writer is None:
            _await_turn(self.folder)
            # What an interrupted run wrote from here on is replaced.
            self._writer = self._make_writer(str(self.folder), purge_step=min(step for _, step, _ in scalars))
        for tag, step, value in scalars:
            self._writer.add_scalar(tag, value, step)
        for name, weight in _constrained(event.module, event.frozen):
            self._writer.add_histogram(f"weights/{name}", weight, event.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_notes(self, recorder: Recorder) -> list[tuple[str, int, float]]:
        new = []
        for name, series in recorder.notes.items():
            new += [(f"mechanism/{name}", *note) for note in series[self._written.get(name, 0) :]]
            self._written[name] = len(series)
        return new


def _constrained(module: nn.Module, frozen: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The constrained weights of a frozen model, by their names in it."""
    # A frozen part lies where its source lay; an architecture of ours says itself what it constrains.
    parts = [(path, part.names) for path, part in module.named_modules() if isinstance(part, WeightSource)]
    parts += [(path, getattr(part, "nonnegative", ())) for path, part in frozen.named_modules()]
    held = dict(frozen.named_parameters())
    for name in dict.fromkeys(f"{path}.{name}".removeprefix(".") for path, names in parts for name in names):
        if name in held:
            yield name, held[name].detach()


def _await_turn(folder: Path) -> None:
    """Wait until a new file comes last: files are read in the order of their names, which tell the second."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard needs the package tensorboard: pip install 'convexlift[tensorboard]'"
        ) from error
    return SummaryWriter
