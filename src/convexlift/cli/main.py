"""The command ``convexlift``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import convexlift
from convexlift.cli import errors, kinds, models, problems
from convexlift.cli.ablate import Ablate
from convexlift.cli.compare import Compare, Report
from convexlift.cli.completion import Completion
from convexlift.cli.demo import Demo
from convexlift.cli.options import add_commands

# Options that take a list: "--arms softplus lift" stands for "--arms softplus,lift".
_LISTS = ("--arms", "--rates", "--hidden")

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
add_commands(app, Demo, Compare, Report, Ablate)
app.add_typer(kinds.app, name="train")
add_commands(app, kinds.Freeze, models.Evaluate, models.Sample, models.Transform, models.Predict)
app.add_typer(problems.app, name="data")
add_commands(app, Completion)


@app.callback(invoke_without_command=True)
def convexlift_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train input-convex neural networks in several ways, see which did best, and use the result.

    \b
    Examples:
      convexlift demo                                        what this is for, in minutes and on one page
      convexlift compare                                     five ways of training, tuned alike, in minutes
      convexlift train flow --data rows.csv --out runs/flow  a density of your own rows
      convexlift sample runs/flow -n 1000 --out new.csv      new rows from it
    """
    if version:
        typer.echo(f"convexlift {convexlift.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr.

    >>> main(["--version"])
    convexlift ...
    0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = join_lists([word for word in given if word != "--debug"])
    return errors.run(
        lambda: app(words, prog_name="convexlift", standalone_mode=False), debug="--debug" in given
    )


def join_lists(words: Sequence[str]) -> list[str]:
    """Join the words after a list option, up to the next option, with commas.

    >>> join_lists(["compare", "gumbel", "--arms", "softplus", "lift", "--seeds", "3"])
    ['compare', 'gumbel', '--arms', 'softplus,lift', '--seeds', '3']
    """
    joined: list[str] = []
    inside = False
    for word in words:
        if inside and not word.startswith("-") and joined[-1] not in _LISTS:
            joined[-1] += f",{word}"
        else:
            inside = word in _LISTS or (inside and not word.startswith("-"))
            joined.append(word)
    return joined
