"""Commands as dataclasses: each field is an option, said once and inherited; calling an instance runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A table that the user names, and how to read it."""

    data: Annotated[
        Path, typer.Option(help="Table of rows: .csv, .npy, .npz, .parquet, ...", show_default=False)
    ]
    key: Annotated[str | None, typer.Option(help="Which array of an .npz file.")] = None
    columns: Annotated[
        str | None, typer.Option(help='Columns to use, by name or number: "pt,eta" or "1-5,8".')
    ] = None
    header: Annotated[
        bool | None, typer.Option(help="Whether a text begins with names. [default: where it has no number]")
    ] = None
    separator: Annotated[
        str | None,
        typer.Option(help="What separates cells in a text: , ; | tab space [default: what its lines show]"),
    ] = None
    decimal: Annotated[str | None, typer.Option(help="Decimal mark of a text: . or , [default: .]")] = None
    thousands: Annotated[str | None, typer.Option(help="What groups the digits in a text.")] = None

    @property
    def how(self) -> dict[str, Any]:
        """What `convexlift.table_files.read_table` is told beside the file."""
        told = ("key", "columns", "header", "separator", "decimal", "thousands")
        return {name: getattr(self, name) for name in told}

    def tell_reading(self, table: Any) -> None:
        """Print how the table was read, and what was taken for what."""
        for line in filter(None, (table.how, str(table))):
            typer.echo(f"{self.data}: {line}")


def add_commands(app: typer.Typer, *commands: type[Callable[[], None]]) -> None:
    """Add a command for each dataclass: its docstring is the help, its fields are the options."""
    for command in commands:
        app.command(command.__name__.lower())(_function(command))


def _function(command: Any) -> Callable[..., None]:
    """A function as typer reads one: it makes the dataclass of its options and calls it."""

    def call(**options: Any) -> None:
        command(**options)()

    kinds = get_type_hints(command, include_extras=True)
    call.__doc__ = command.__doc__
    call.__annotations__ = {field.name: kinds[field.name] for field in fields(command)}
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(command)
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
