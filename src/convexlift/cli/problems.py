"""``convexlift data``: what the problems are, and the published data sets of some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

import typer

from convexlift.cli.options import add_commands, one_argument_of
from convexlift.counting import counted
from convexlift.names import DOWNLOADS
from convexlift.problems.catalogue import FROM_FILES, NAMES, problem

if TYPE_CHECKING:
    from convexlift.problems.published.fetch import Progress


@final
@dataclass(frozen=True)
class List:
    """Name every problem.

    \b
    Example:
      convexlift data list
    """

    def __call__(self) -> None:
        for name in NAMES:
            typer.echo(f"{name} (reads files: --data)" if name in FROM_FILES else name)


@final
@dataclass(frozen=True, kw_only=True)
class Show:
    """Describe a problem.

    \b
    Examples:
      convexlift data show gumbel
      convexlift data show power --data data/power
    """

    name: Annotated[str, one_argument_of(NAMES, "Name of a problem; `convexlift data list` has them.")]
    data: Annotated[Path | None, typer.Option(help=f"The file or folder of {', '.join(FROM_FILES)}.")] = None

    def __call__(self) -> None:
        found = problem(self.name, self.data)

        from convexlift.data import Data, Simulator, count_rows, whole

        def size(part: Data) -> str:
            return "fresh draws" if isinstance(part, Simulator) else counted(count_rows(whole(part)), "row")

        rows = [
            ("problem", found.description),
            ("task", f"{found.task}, {counted(found.dim, 'dimension')}"),
            ("metric", found.metric),
            ("train", size(found.train)),
            ("validation", size(found.validation)),
            ("test", size(found.test)),
            *((fact.replace("_", " "), f"{value:.4f}") for fact, value in found.facts.items()),
            ("source", found.source),
            ("licence", found.licence),
        ]
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            typer.echo(f"{label:<{width}}  {text}")


@final
@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download a published data set from the UCI archive.

    Checks the rows, and records address, size and SHA-256 in SOURCE.json beside the file; once it is there,
    fetching again only compares the file with the record. An interrupted download begins anew. Sizes:
    miniboone and power tens of megabytes, gas 0.4 GB, hepmass 2.6 GB.

    \b
    Examples:
      convexlift data fetch power
      convexlift data fetch hepmass --out data/hepmass
    """

    name: Annotated[str, one_argument_of(DOWNLOADS, f"One of: {', '.join(DOWNLOADS)}.")]
    out: Annotated[Path | None, typer.Option(help="Folder of the files. [default: data/NAME]")] = None

    def __call__(self) -> None:
        from convexlift.problems.published.fetch import ARCHIVE, fetch

        folder = self.out if self.out is not None else Path("data") / self.name
        with _shown() as show_progress:
            records = fetch(self.name, folder, archive=ARCHIVE, progress=show_progress)
        for file, record in records.items():
            size = f"{record['bytes']:,} bytes, {record['rows']:,} rows, SHA-256 {record['sha256']}"
            typer.echo(f"{folder / file}: {size}")
        typer.echo(f"use it with: convexlift compare {self.name} --data {folder}")


app = typer.Typer(rich_markup_mode=None)
add_commands(app, List, Show, Fetch)


@app.callback(invoke_without_command=True)
def data_command(context: typer.Context) -> None:
    """List the problems to compare on, describe one, download a data set."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@contextmanager
def _shown() -> Iterator[Progress]:
    """Show what is done as a bar, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def show(doing: str, done: int, total: int | None) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(doing, total=total)
            size = f"{done:,} rows" if doing.startswith("checking") else f"{done / 1e6:,.1f} MB"
            bars.update(tasks[doing], completed=done, total=total, description=f"{doing}, {size}")

        yield show
