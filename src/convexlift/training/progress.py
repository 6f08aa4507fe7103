"""What stands between `fit` and whoever watches it: a progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from convexlift.training.history import History

# (step, loss of its batch, history); first called when the first step is about to begin
Show = Callable[[int, float, History], None]


@contextmanager
def progress_bar(steps: int, shown: bool | Show) -> Iterator[Show]:
    """Show loss, validation, ms per step and time left on stderr, where that is a terminal or a notebook.

    A function in place of True shows it in its own way.
    """
    if callable(shown):
        yield shown
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    text = (TextColumn("{task.fields[left]}"), TextColumn("{task.fields[figures]}"))
    columns = (TextColumn("fit"), BarColumn(20), MofNCompleteColumn(), *text)
    room = console.width - len(f"fit {20 * '-'} {steps}/{steps} about 0:00:00 left ")
    hidden = not (shown and (console.is_terminal or console.is_jupyter))
    with Progress(*columns, console=console, refresh_per_second=4, disable=hidden) as bar:
        task = bar.add_task("fit", total=steps, figures="", left="")
        begun: list[tuple[int, float]] = []

        def show(step: int, loss: float, history: History) -> None:
            if hidden:
                return
            first, moment = begun[0] if begun else (step, time.monotonic())
            if step == first:
                begun[:] = [(first, moment)]
                return bar.update(task, completed=step)
            seconds = (time.monotonic() - moment) / (step - first) * (steps - step)
            left = f"about {timedelta(seconds=round(seconds))} left"
            speed = f"  {history.ms_per_step:.1f} ms/step" if history.steps else ""
            figures = fitting(room, f"loss {loss:.4g}", standing(history), speed)
            bar.update(task, completed=step, figures=figures, left=left)

        yield show


def fitting(room: int, loss: str, standing: str, speed: str) -> str:
    """As much of the figures as fits, and of a number all or nothing.

    >>> fitting(40, "loss 7.2", "  validation 7.31, the best", "  3.1 ms/step")
    'loss 7.2  validation 7.31, the best'
    >>> fitting(20, "loss 7.2", "  validation 7.31, the best", "  3.1 ms/step")
    'validation 7.31'
    """
    latest = standing.split(",")[0]
    shown = (loss + standing + speed, loss + standing, loss + latest, latest.strip() or loss)
    return next((figures for figures in shown if len(figures) <= room), "")


def standing(history: History) -> str:
    """The latest validation loss, and where it is not the best one, from where it has risen since when.

    >>> standing(History(steps=[10, 20], validation=[3.25, 3.5], best_step=10, best_validation=3.25))
    '  validation 3.5, risen from 3.25 at step 10'
    """
    if not history.validation or history.best_validation is None:
        return ""
    latest, best = history.validation[-1], history.best_validation
    since = sum(step > history.best_step for step in history.steps)
    if not since:
        return f"  validation {latest:.4g}, the best"
    ago = f" ({since} evaluations ago)" if since > 1 else ""
    now, then = _told(latest, best), _told(best, latest)
    return f"  validation {now}, risen from {then} at step {history.best_step}{ago}"


def _told(value: float, beside: float) -> str:
    """A number with as many digits as tell it from another.

    >>> _told(22.0401, 22.04)
    '22.0401'
    """
    digits = (d for d in range(4, 10) if f"{value:.{d}g}" != f"{beside:.{d}g}")
    return f"{value:.{next(digits, 10)}g}"


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
