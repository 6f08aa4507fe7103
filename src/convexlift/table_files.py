"""Tables in files that the user names: read with errors that say where, written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from convexlift.checks import name_dtype
from convexlift.files import write_whole
from convexlift.table_columns import (
    Cells,
    Expected,
    by_name,
    by_position,
    check_names,
    index_columns,
    known_names,
    listed,
    select,
    target_column,
)
from convexlift.table_text import MISSING, SEPARATORS, WORDS, Text

# The columns of some places as float64, (N, d): NaN where a value is missing.
Numbers = Callable[[Sequence[int]], np.ndarray]

SUFFIXES = (".csv", ".npy", ".npz", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".feather")
# What to do with files that hold tables in other ways.
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "save the sheet as .csv"),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".gz"), "unpack it"),
    **dict.fromkeys((".pkl", ".h5", ".hdf5", ".json", ".root"), "save the table as .parquet or .csv"),
}


@final
@dataclass(frozen=True, eq=False)
class Table:
    """What was read from a file; as text, one line that says what was taken for what.

    Attributes:
        rows: (N, d), N >= 1, all finite, but for NaN where missing values were asked for.
        names: of the d columns; "x1", ... where the file has none.
        named: whether the names are the file's own.
        left_out: the file's other columns, each with the reason.
        columns: what a model of these rows remembers of their columns: names, or places, counted from 1,
            that were chosen in a file without names, or None for all columns of such a file.
        how: how a text was read, in words.
        notes: what was done to give a model the columns that it knows, a line each.
        lines: of a row 0, 1, ... of the file, see ``line``.
        kept: which rows of the file, counted from 0, ``rows`` are, where some were left out.

    Example:
        >>> print(Table(torch.zeros(1500, 2), ["pt", "eta"], True, {"id": "not chosen"}))
        1,500 rows, 2 columns: pt, eta; left out: id (not chosen)
    """

    rows: Tensor
    names: list[str]
    named: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    columns: list[str] | list[int] | None = None
    how: str = ""
    notes: list[str] = field(default_factory=list)
    lines: Callable[[int], int | None] = field(default=lambda row: None, repr=False)
    kept: Tensor | None = None

    def line(self, row: int) -> int | None:
        """The line of the file that row 0, 1, ... ends in; None where the file has no lines."""
        return self.lines(self._in_file(row))

    def where(self, row: int) -> str:
        """Row 0, 1, ... as the user finds it in the file.

        >>> Table(torch.zeros(3, 1), ["x1"], lines=lambda row: row + 2).where(1)
        'row 2 (line 3)'
        """
        return _where(self.lines, self._in_file(row))

    def _in_file(self, row: int) -> int:
        return row if self.kept is None else int(self.kept[row])

    def __str__(self) -> str:
        sizes = [
            f"{n:,} {what}{'s' * (n > 1)}" for n, what in zip(self.rows.shape, ("row", "column"), strict=True)
        ]
        lost = [f"{name} ({why})" for name, why in self.left_out.items()]
        return f"{', '.join(sizes)}{'' if self.named else ' without names'}: {listed(self.names)}" + (
            f"; left out: {listed(lost)}" if lost else ""
        )


def read_table(
    path: str | os.PathLike[str],
    key: str | None = None,
    columns: str | None = None,
    *,
    exclude: str | None = None,
    header: bool | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    expected: Expected | None = None,
    target: str | None = None,
    missing: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Table:
    """Read a numeric table.

    Where a line or a mark of a text may mean two things, the error names the option that tells. Messages
    count rows and columns from 1, and lines as the file has them. Files .parquet and .feather are read with
    pandas. Comments (#) above a text are skipped; the last of them may hold the names.

    Args:
        path: a .csv or .tsv (also gzipped), .parquet, .feather, .npy or .npz file; nothing is unpickled.
        key: which array of an .npz file; not needed when it holds one.
        columns: the columns to keep, by name or number: "pt,eta", "1-5,8"; others are not looked at. By
            default all, but for row numbers or labels in first columns without a name, and empty last ones.
        exclude: columns to leave out, named in the same way; they are not looked at.
        header: whether the first line of a text holds names. By default it does where no cell of it is a
            number, where it is 0,1,2,... above other than whole numbers, and where it holds ``expected``.
        separator: what stands between the cells of a text: "," ";" "|" "tab" or "space", any number of
            blanks; by default, of the first four, what cuts the first lines into as many cells.
        decimal: "." or ",", as a text writes numbers; a point by default.
        thousands: what a text groups digits by: "," "." " " "'" "_" or None.
        expected: what a model knows of its columns, as ``Table.columns`` has it, or just their number. They
            are found by name, others ignored; in a file without names, or for a model without, they are taken
            by position if their number fits. What was done is in ``Table.notes``.
        target: a column, by name or number, that is read beside ``columns`` or all others and put last; what
            is expected are the others.
        missing: keep empty cells, NaN, NA and the like as NaN. By default they are errors.
        dtype: of the rows; they are parsed in float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a numeric table, and the message names row and column; or it lacks columns
            that are expected.
        ImportError: pandas or pyarrow is missing, and the file is a .parquet or a .feather.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "points.csv"
        ...     _ = file.write_text("a,b\\n1,2\\n3,4\\n")
        ...     table = read_table(file)
        ...     turned = read_table(file, expected=["b", "a"])
        >>> table.names, table.rows.tolist()
        (['a', 'b'], [[1.0, 2.0], [3.0, 4.0]])
        >>> turned.rows.tolist(), turned.notes
        ([[2.0, 1.0], [4.0, 3.0]], ["columns are put in the model's order: b, a"])
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a {either(SUFFIXES, ' file')}")
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    suffix = _suffix(file)
    if suffix is None:
        advice = _ADVICE.get(file.suffix.lower())
        raise ValueError(f"{file} is not a {either(SUFFIXES, ' file')}{f': {advice}' if advice else ''}")
    if key is not None and suffix != ".npz":
        raise ValueError(f"{file} has no named arrays: --key is for .npz files")
    point = "." if decimal is None else decimal
    if point not in tuple(".,") or thousands not in (None, *",. '_") or thousands == point:
        raise ValueError(f"numbers cannot have decimal mark {point!r} and thousands mark {thousands!r}")
    if separator is not None and separator not in SEPARATORS and separator not in WORDS:
        raise ValueError(f"cells cannot be separated by {separator!r}: it is one of , ; | tab space")
    content = file.read_bytes()
    if suffix.startswith((".csv", ".tsv")):
        marks = {"separator": separator, "decimal": decimal, "thousands": thousands}
        cells, numbers = _text(file, content, suffix, header, known_names(expected), marks)
    elif not content:
        raise ValueError(f"{file} is empty")
    elif suffix in (".npy", ".npz"):
        cells, numbers = _array(file, content, key)
    else:
        cells, numbers = _frame(file, content)
    places, left_out, notes = select(cells, columns, exclude), dict[int, str](), list[str]()
    aside = [] if target is None else [target_column(cells, target, columns, expected)]
    if cells.named and known_names(expected):
        others = [place for place in places if place not in aside]
        places, notes = by_name(cells, others, known_names(expected))
        table = numbers(places + aside)
    else:
        places = list(dict.fromkeys(places + aside))
        check_names(cells, places)
        if columns is None:
            left_out = {k: "row labels" for k in index_columns(cells, places) if cells.is_text(k)}
        read = [place for place in places if place in aside or place not in left_out]
        table = numbers(read)
        if columns is None:
            left_out |= _no_data(cells, read, table)
        places = [place for place in read if place not in aside and place not in left_out]
        if expected is not None:
            beside = " beside the target" if aside else ""
            places, notes = by_position(cells, places, expected, chosen=columns is not None, beside=beside)
        table = table[:, [read.index(place) for place in places + aside]]
    places += aside
    left_out = {place: why for place, why in left_out.items() if place not in aside}
    names = [cells.name(place) for place in places]
    ignored = [] if cells.named and known_names(expected) else range(len(cells.names))  # the notes tell those
    unread = {place: "not chosen" for place in ignored if place not in places}
    return Table(
        _checked(cells, table, places, missing, dtype),
        names,
        cells.named,
        {**{cells.name(place): why for place, why in (unread | left_out).items()}, **cells.apart},
        names if cells.named else [place + 1 for place in places] if columns or aside else None,
        str(cells) if isinstance(cells, Text) else "",
        notes,
        cells.line,
    )


def write_table(path: str | os.PathLike[str], rows: Tensor, names: Sequence[str]) -> None:
    """Write rows (N, d) whole or not at all; all kinds but .npy and .npz (array "samples") keep the names.

    Raises:
        ValueError: the suffix is none that `read_table` reads.
        ImportError: pandas or pyarrow is missing, and the file is a .parquet or a .feather.
    """
    file, table = Path(path), rows.detach().cpu().numpy()
    suffix, buffer = _suffix(file), io.BytesIO()
    if suffix is None:
        raise ValueError(f"cannot write {file}: unknown suffix '{file.suffix}'")
    if suffix == ".npy":
        np.save(buffer, table, allow_pickle=False)
    elif suffix == ".npz":
        np.savez(buffer, samples=table)
    elif suffix in (".parquet", ".feather"):
        frame = _pandas(file).DataFrame(table, columns=list(names))
        (frame.to_parquet if suffix == ".parquet" else frame.to_feather)(buffer)
    else:
        separator, text = "\t" if suffix.startswith(".tsv") else ",", io.StringIO(newline="")
        writer = csv.writer(text, delimiter=separator, lineterminator="\n")
        writer.writerow(names)
        shortest = table.astype("U").tolist()  # the fewest digits that give the same number back
        writer.writerows([cell.removesuffix(".0") for cell in row] for row in shortest)
        content = text.getvalue().encode()
        buffer.write(gzip.compress(content, mtime=0) if suffix.endswith(".gz") else content)
    write_whole(file, buffer.getvalue())


@final
@dataclass(frozen=True, eq=False)
class _Typed(Cells):
    """The columns of an array or a data frame, which have types."""

    file: object
    names: list[str]
    named: bool
    kinds: Sequence[np.dtype]
    apart: dict[str, str] = field(default_factory=dict)

    def is_text(self, column: int) -> bool:
        return self.kinds[column].kind not in "fiub"


def _typed(cells: _Typed, column: Callable[[int], np.ndarray]) -> tuple[Cells, Numbers]:
    def numbers(kept: Sequence[int]) -> np.ndarray:
        for place in filter(cells.is_text, kept):
            raise ValueError(
                f"{cells.file}: column {cells.called(place)} is not numeric: its type is {cells.kinds[place]}"
            )
        return np.column_stack([column(place) for place in kept])

    return cells, numbers


def _frame(file: Path, content: bytes) -> tuple[Cells, Numbers]:
    pandas, kind = _pandas(file), file.suffix.lower()
    read = pandas.read_parquet if kind == ".parquet" else pandas.read_feather
    with _parsing(file, "file"):
        frame = read(io.BytesIO(content))
    if not frame.size:
        raise ValueError(f"{file} is empty: its shape is {frame.shape}")
    plain = isinstance(frame.index, pandas.RangeIndex)
    index = {} if plain else dict.fromkeys(map(str, frame.index.names), "the index")
    cells = _Typed(file, [str(name) for name in frame.columns], True, list(frame.dtypes), index)
    return _typed(cells, lambda place: frame.iloc[:, place].to_numpy(np.float64, na_value=np.nan))


def _text(
    file: Path,
    content: bytes,
    suffix: str,
    header: bool | None,
    expected: Sequence[str],
    marks: dict[str, str | None],
) -> tuple[Cells, Numbers]:
    """A text and its numbers, parsed by NumPy where plain numbers are all there is, else cell by cell."""
    with _cutting(file):
        text = Text(file, content, suffix, header=header, expected=expected, **marks)

    def numbers(kept: Sequence[int]) -> np.ndarray:
        if text.decimal == "." and text.thousands is None and '"' not in text.body:
            try:
                table = np.loadtxt(
                    io.StringIO(text.body, newline=""),
                    delimiter=text.separator,
                    comments=None,
                    usecols=kept,
                    ndmin=2,
                )
                if text.body.count(text.separator) == len(table) * (len(text.names) - 1):
                    return table
            except ValueError:
                pass  # cell by cell: the right value, or an error that says where
        with _cutting(file):
            return np.array(list(_values(text, kept)), dtype=np.float64)

    return text, numbers


def _values(text: Text, kept: Sequence[int]) -> Iterator[list[float | None]]:
    """The numbers of every row, or an error at the first cell that is none."""
    width = len(text.names)
    for row, (line, cells) in enumerate(text.records(), 1):
        where = f"{text.file}: row {row} (line {line})"
        if len(cells) != width:
            commas = " (if a comma is part of a number, see --decimal and --thousands)"
            hint = commas if len(cells) > width and text.separator == "," else ""
            hint = " (the last is empty)" if len(cells) > width and not cells[-1] else hint
            raise ValueError(f"{where} has {len(cells)} cells; expected {width}{hint}")
        values = [text.value(cells[place]) for place in kept]
        if None in values:
            place = kept[values.index(None)]
            found = f"{cells[place]!r} is not a number{text.hint(cells[place], row)}"
            raise ValueError(f"{where}, column {text.called(place)}: {found}")
        yield values


def _no_data(cells: Cells, places: list[int], table: np.ndarray) -> dict[int, str]:
    """Columns that count rows, or that separators at the ends of lines make, each with the reason."""
    found = {}
    leading = index_columns(cells, places)
    rows = table[:, : len(leading)]
    whole = bool((rows == np.floor(rows)).all())
    distinct = whole and len(np.unique(rows, axis=0)) == len(rows)
    for place, column in zip(leading, rows.T, strict=True) if len(rows) > 1 else ():
        steps = np.diff(column)
        starts = column[0] in (0, 1)
        again = bool(((steps == 1) | (column[1:] == column[0])).all()) and column.max() > 1  # of two frames
        unnamed = distinct or (starts and again)
        if unnamed if cells.lacks_name(place) else starts and (steps == 1).all():
            found[place] = "row numbers"
    for place, column in zip(places[:0:-1], table.T[:0:-1], strict=True):
        if (cells.named and cells.names[place]) or not np.isnan(column).all() or cells.cell(0, place):
            break
        found[place] = "empty"
    return found


@contextmanager
def _parsing(file: Path, what: str) -> Iterator[None]:
    """One error for damaged bytes, which can fail anywhere in the parsers."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{file} is not a readable {file.suffix.lower()} {what}") from error


@contextmanager
def _cutting(file: Path) -> Iterator[None]:
    """A user's words for a text that cannot be cut into cells."""
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{file} is not a readable CSV file: {error}") from error


def _array(file: Path, content: bytes, key: str | None) -> tuple[Cells, Numbers]:
    kind = file.suffix.lower()
    with _parsing(file, "file of numbers"):
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile) != (kind == ".npz"):
            raise ValueError("a file of the other kind under this name")
    if kind == ".npz":
        key = _choose_array(file, list(array.files), key)
        with _parsing(file, "file of numbers"):
            array = array[key]
    place = file if key is None else f"{file}: array '{key}'"
    fields = array.dtype.names if array.ndim == 1 else None  # a structured array has names
    if array.dtype.kind not in "fiub" and not fields:
        raise ValueError(f"{place} is not numeric: its type is {array.dtype}")
    if array.ndim != 2 and not fields:
        hint = "; reshape it to (N, 1) if it is one column" if array.ndim == 1 else ""
        raise ValueError(
            f"{place} must have two dimensions (rows, columns); its shape is {array.shape}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"{place} is empty: its shape is {array.shape}")
    if fields:
        columns = [array[name] for name in fields]
        cells = _Typed(place, list(fields), True, [column.dtype for column in columns])
        return _typed(cells, lambda k: columns[k].astype(np.float64))
    width = array.shape[1]
    cells = _Typed(place, [""] * width, False, [array.dtype] * width)
    return _typed(cells, lambda k: array[:, k].astype(np.float64))


def _choose_array(file: Path, names: list[str], key: str | None) -> str:
    if not names:
        raise ValueError(f"{file} holds no arrays")
    listed = ", ".join(f"'{name}'" for name in names)
    if key is None and len(names) > 1:
        raise ValueError(f"{file} holds the arrays {listed}: choose one with --key")
    if key is not None and key not in names:
        raise ValueError(f"{file} has no array '{key}'; it holds {listed}")
    return names[0] if key is None else key


def _checked(
    cells: Cells, numbers: np.ndarray, kept: Sequence[int], missing: bool, dtype: torch.dtype
) -> Tensor:
    """The rows, checked for missing values, infinities and what the dtype cannot hold."""
    rows = torch.from_numpy(np.array(numbers)).to(dtype)
    bad = (~(rows.isfinite() | rows.isnan() if missing else rows.isfinite())).nonzero()
    if not len(bad):
        return rows
    row, column = bad[0].tolist()
    value = numbers[row, column]
    if np.isnan(value):
        cell = cells.cell(row, kept[column])
        plain = cell.strip("+-").lower()
        what = f"'{cell}' is not a number" if cell else "the cell is empty"
        what = "the value is NaN" if plain == "nan" else what
        if cell.lower() in MISSING:
            what += "; --drop-missing leaves such rows out"
    elif np.isinf(value):
        what = "the value is infinite"
    else:
        what = f"the value is {value:g}, too large for {name_dtype(dtype)}"
    raise ValueError(f"{cells.file}: {_where(cells.line, row)}, column {cells.called(kept[column])}: {what}")


def _where(line: Callable[[int], int | None], row: int) -> str:
    number = line(row)
    return f"row {row + 1}" + ("" if number is None else f" (line {number})")


def _suffix(file: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)


def either(suffixes: Sequence[str], noun: str = "") -> str:
    """The suffixes with an "or", from the fourth on in brackets.

    Example:
        >>> either(SUFFIXES[:4], " file")
        '.csv, .npy or .npz file (also .tsv)'
    """
    *others, last = suffixes[:3]
    also = f" (also {', '.join(suffixes[3:])})" if suffixes[3:] else ""
    return f"{', '.join(others)}{' or ' if others else ''}{last}{noun}{also}"


def _pandas(file: Path) -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401  # by which pandas reads them
    except ImportError as error:
        raise ImportError(f"{file} needs pandas and pyarrow: pip install 'convexlift[tables]'") from error
    return pandas
