"""Commands as dataclasses: each field is an option, said once and inherited; calling an instance runs it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, final, get_args, get_type_hints

import typer
from typer.core import TyperCommand

# How help writes the value of an option of a type, where its `metavar` says nothing else.
_VALUES = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


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
    exclude: Annotated[
        str | None, typer.Option(help="Columns to leave out, named in the same way; identifiers, for one.")
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
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave rows with missing values out.")
    ] = False

    @property
    def how(self) -> dict[str, Any]:
        """What `convexlift.table_files.read_table` is told beside the file."""
        told = ("key", "columns", "exclude", "header", "separator", "decimal", "thousands")
        return {**{name: getattr(self, name) for name in told}, "missing": self.drop_missing}

    @property
    def marks(self) -> str:
        """The options that say how a text is written, for a command on another file of the kind."""
        told = {name: getattr(self, name) for name in ("separator", "decimal", "thousands")}
        return "".join(f" --{name} '{value}'" for name, value in told.items() if value is not None)

    def tell_reading(self, how: str, table: str) -> None:
        """Print how the table was read, and what it is in words."""
        for line in filter(None, (how, table)):
            typer.echo(f"{self.data}: {line}")


def one_of(names: Collection[str], help: str) -> Any:
    """An option whose value is one of these names, or a list of them: the shell completes them."""
    return typer.Option(help=help, metavar="NAME", autocompletion=_beginning(names))


def one_argument_of(names: Collection[str], help: str) -> Any:
    """The same of an argument."""
    return typer.Argument(help=help, autocompletion=_beginning(names))


def _beginning(names: Collection[str]) -> Callable[[str], list[str]]:
    """What a shell offers of these names once it has the beginning of one."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


@final
class _Command(TyperCommand):
    """A command whose help writes arguments as its examples do: RUN, not {run} <path>."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind, (name, help) = parameter.param_type_name, record
                records[kind].append((name.split()[0] if kind == "argument" else name, help))
        for kind, shown in records.items():
            if shown:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(shown)


def add_commands(app: typer.Typer, *commands: type[Callable[[], None]]) -> None:
    """Add a command for each dataclass: its docstring is the help, its fields are the options."""
    for command in commands:
        app.command(command.__name__.lower(), cls=_Command)(_function(command))


def _function(command: Any) -> Callable[..., None]:
    """A function as typer reads one: it makes the dataclass of its options and calls it."""

    def call(**options: Any) -> None:
        command(**options)()

    kinds = get_type_hints(command, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_plain(field.name, kinds[field.name]),
        )
        for field in fields(command)
    ]
    call.__doc__ = command.__doc__
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _plain(name: str, annotation: Any) -> Any:
    """The annotation with a word for its value in help: `RUN` of an argument, `--steps N` of an option."""
    kind, told = get_args(annotation)[:2]
    told = copy.copy(told)
    if told.metavar is None:
        values = [_VALUES[part] for part in (kind, *get_args(kind)) if part in _VALUES]
        argument = isinstance(told, type(typer.Argument()))
        told.metavar = name.upper() if argument else next(iter(values), None)
    return Annotated[kind, told]
