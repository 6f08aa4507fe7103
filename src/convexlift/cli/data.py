"""``convexlift data``: what the problems are."""

from __future__ import annotations

from typing import Annotated

import typer
from torch import Tensor

from convexlift.problems import NAMES, problem

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def data_command(context: typer.Context) -> None:
    """List the problems to compare on."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_problems() -> None:
    """Name every problem.

    \b
    Example:
      convexlift data list
    """
    for name in NAMES:
        typer.echo(f"{name} (reads a file: --data)" if name == "hepmass" else name)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a problem.")]) -> None:
    """Describe a problem.

    \b
    Example:
      convexlift data show gumbel
    """
    found = problem(name)
    rows = [
        ("problem", found.description),
        ("task", f"{found.task}, {found.dim} dimension{'s' if found.dim > 1 else ''}"),
        ("metric", found.metric),
        *(
            (split, f"{_rows(part):,} rows" if isinstance(part, Tensor | tuple) else "fresh draws")
            for split, part in (
                ("train", found.train),
                ("validation", found.validation),
                ("test", found.test),
            )
        ),
        *((fact.replace("_", " "), f"{value:.4f}") for fact, value in found.facts.items()),
        ("source", found.source),
        ("licence", found.licence),
    ]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(f"{label:<{width}}  {text}")


def _rows(part: Tensor | tuple[Tensor, ...]) -> int:
    return len(part) if isinstance(part, Tensor) else len(part[0])
