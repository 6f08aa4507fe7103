"""What the command line says and does about doubtful data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from convexlift.names import SCREENS, check_name

if TYPE_CHECKING:
    from torch import Tensor


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


def without_missing(rows: Tensor, where: Callable[[int], str] | None) -> tuple[Tensor, Any]:
    """The rows without NaN, and what names them; says how many were left out."""
    from convexlift.screening import drop_missing

    left, kept = drop_missing(rows)
    if len(left) < len(rows):
        typer.echo(f"left out {len(rows) - len(left):,} of {len(rows):,} rows with missing values", err=True)
    return left, lambda row: where(int(kept[row])) if where is not None else f"row {int(kept[row])}"
