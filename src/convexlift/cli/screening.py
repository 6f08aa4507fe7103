"""What the command line says and does about doubtful data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from convexlift.names import SCREENS, check_name

if TYPE_CHECKING:
    from convexlift.table_files import Table


def allowed(option: str | None) -> tuple[str, ...]:
    """The checks that ``--allow`` names, separated by commas.

    >>> allowed("outliers, ties"), allowed(None)
    (('outliers', 'ties'), ())
    """
    kinds = tuple(part.strip() for part in option.split(",")) if option is not None else ()
    for kind in kinds:
        check_name("check", kind, SCREENS)
    return kinds


def in_words_of_options(text: str) -> str:
    """A message of the library as a user of the command line can follow it.

    >>> in_words_of_options("99 ties (allow 'ties' to go on all the same)")
    '99 ties (--allow ties to go on all the same)'
    """
    text = text.replace("dequantise it", "--dequantise").replace("dequantise them", "--dequantise")
    return re.sub(r"allow '([\w-]+)'", r"--allow \1", text)


@contextmanager
def warnings_told() -> Iterator[None]:
    """Say each ``DataWarning`` in a line on stderr; other warnings go their way."""
    from convexlift.screening import DataWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, DataWarning):
            typer.echo(f"warning: {in_words_of_options(str(warning.message))}", err=True)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def without_missing(table: Table) -> Table:
    """The table without its rows with NaN, of which there are some if they were asked for; says how many."""
    from convexlift.screening import drop_missing

    rows, kept = drop_missing(table.rows)
    lost = len(table.rows) - len(rows)
    if not lost:
        return table
    typer.echo(f"left out {lost:,} of {len(table.rows):,} rows with missing values", err=True)
    return replace(table, rows=rows, kept=kept)
