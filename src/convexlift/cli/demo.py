"""``convexlift demo``: what the library is for, shown in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from convexlift.cli.compare import command, going_on_from

if TYPE_CHECKING:
    from rich.progress import Task
    from rich.text import Text

    from convexlift.study.demonstration import Progress


@final
@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train one convex network in several ways and see which does best.

    On a toy density and on bundled images of digits, at the usual learning rate and at the library's. Every
    frozen model is checked for convexity. Leaves result.json and a page, demo.html, in the folder.

    \b
    Examples:
      convexlift demo
      convexlift demo --seeds 5 --jobs 4 --out runs/five-seeds
    """

    out: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("runs/demo")
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds; every way is trained with each.")] = 3
    seed: Annotated[int, typer.Option(min=0, max=900, help="The first of them.")] = 0
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")] = (
        None
    )
    resume: Annotated[bool, typer.Option(help="Use the finished runs in the folder.")] = True

    def __call__(self) -> None:
        _check_folder(self.out)
        typer.echo("timing a few steps first, which tells how long the rest takes", err=True)
        from convexlift.study.demonstration import demonstrate
        from convexlift.study.report.demo_page import COMMANDS, write_demo
        from convexlift.study.report.demo_words import headline, text_table

        asked: dict[str, Any] = {"seeds": self.seeds, "seed": self.seed}
        with going_on_from(self.out), shown() as show:
            result = demonstrate(
                self.out,
                **asked,
                jobs=self.jobs,
                resume=self.resume,
                command=command(["demo"], {**asked, "out": self.out}),
                progress=show,
            )
        page = write_demo(result, self.out / "demo.html")
        for part in result["parts"]:
            typer.echo(f"{text_table(part)}\n")
        typer.echo(f"{headline(result)}\n\npage: {page}\n")
        for what, how in COMMANDS.items():
            typer.echo(f"{what}:\n  {how}")


def _check_folder(folder: Path) -> None:
    """Leave alone a folder that holds the result of something else."""
    import json

    try:
        kind = json.loads((folder / "result.json").read_text(encoding="utf-8"))["kind"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != "demonstration":
        raise FileExistsError(f"{folder} holds the result of something else; choose another --out")


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far the runs are and how long they will take: live on a terminal, else a line for each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    from convexlift.study.report.numbers import duration

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda at: console.print(
            f"[{at.done}/{at.total}] {at.message}; about {duration(at.seconds_left)} left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    ends = [time.monotonic()]

    @final
    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"about {duration(max(ends[0] - time.monotonic(), 1.0))} left")

    with Bar(
        BarColumn(), MofNCompleteColumn(), Left(), TextColumn("{task.description}"), console=console
    ) as bar:
        task: Any = None

        def show(at: Progress) -> None:
            nonlocal task
            ends[0] = time.monotonic() + at.seconds_left
            task = bar.add_task("", total=at.total) if task is None else task
            bar.update(task, completed=at.done, description=at.message)

        yield show
