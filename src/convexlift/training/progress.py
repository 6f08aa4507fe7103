"""What stands between `fit` and whoever watches it: a progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convexlift.training.history import History

Show = Callable[[int, float, History], None]  # (step, loss of its batch, history)


@contextmanager
def progress_bar(steps: int, shown: bool | Show) -> Iterator[Show]:
    """Show loss, validation, ms per step and time left on stderr, where that is a terminal or a notebook.

    A function in place of True shows it in its own way.
    """
    if callable(shown):
        yield shown
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    figures = TextColumn("{task.fields[figures]}")
    columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), figures, TimeRemainingColumn())
    hidden = not (shown and (console.is_terminal or console.is_jupyter))
    with Progress(*columns, console=console, refresh_per_second=4, disable=hidden) as bar:
        task = bar.add_task("fit", total=steps, figures="")

        def show(step: int, loss: float, history: History) -> None:
            if not hidden:
                frozen = f"  validation {history.validation[-1]:.4g}" if history.validation else ""
                speed = f"  {history.ms_per_step:.1f} ms/step" if history.steps else ""
                bar.update(task, completed=step, figures=f"loss {loss:.4g}{frozen}{speed}")

        yield show


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
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
