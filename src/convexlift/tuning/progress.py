"""How far a search is, and how long it will take yet, told after each of its runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import final

from convexlift.tuning.trial import Outcome, Trial


@final
@dataclass(frozen=True)
class Standing:
    """Where a search stands.

    Attributes:
        trial, outcome: the run that has just been finished.
        runs: how many are.
        share: of the cost, spent.
        seconds_left: by the pace so far.
    """

    trial: Trial
    outcome: Outcome
    runs: int
    share: float
    seconds_left: float


Show = Callable[[Standing], None]


@final
class Pace:
    """Counts what a search has cost, and tells ``show`` of it; ``left`` is what it will cost yet."""

    def __init__(self, left: float, show: Show) -> None:
        self.left, self.show = left, show
        self.runs, self.spent, self.kept = 0, 0.0, 0.0
        self.begun = time.monotonic()

    def skip(self, cost: float) -> None:
        """Count a run that was kept from before."""
        self.runs, self.kept, self.left = self.runs + 1, self.kept + cost, self.left - cost

    def tell(self, cost: float, trial: Trial, outcome: Outcome) -> None:
        """Count a run that has been made."""
        self.runs, self.spent, self.left = self.runs + 1, self.spent + cost, self.left - cost
        left, done = max(self.left, 0.0), self.spent + self.kept
        seconds = (time.monotonic() - self.begun) / self.spent * left
        self.show(Standing(trial, outcome, self.runs, done / (done + left), seconds))


@contextmanager
def search_bar(shown: bool | Show) -> Iterator[Show]:
    """Show the runs, the best loss and the time left on stderr, where that is a terminal or a notebook.

    A function in place of True shows it in its own way.
    """
    if callable(shown):
        yield shown
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    hidden = not (shown and (console.is_terminal or console.is_jupyter))
    columns = (TextColumn("search"), BarColumn(20), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console, refresh_per_second=4, disable=hidden) as bar:
        task = bar.add_task("search", total=1.0, told="")

        def show(at: Standing) -> None:
            told = f"{at.runs} runs, about {timedelta(seconds=round(at.seconds_left))} left"
            bar.update(task, completed=at.share, told=told)

        yield show
