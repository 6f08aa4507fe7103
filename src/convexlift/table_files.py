"""Tables in files that the user names: read with errors that say where, written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from convexlift.checks import name_dtype
from convexlift.files import write_whole

SUFFIXES = (".csv", ".npy", ".npz", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".feather")


@final
@dataclass(frozen=True, eq=False)
class Table:
    """What was read from a file; as text, one line that says what was taken for what.

    Attributes:
        rows: (N, d), N >= 1, all finite.
        names: of the d columns; "x1", ... where the file has none.
        named: whether the names are the file's own.
        left_out: the file's other columns, each with the reason.

    Example:
        >>> print(Table(torch.zeros(1500, 2), ["pt", "eta"], True, {"id": "not chosen"}))
        1,500 rows, 2 columns: pt, eta; left out: id (not chosen)
    """

    rows: Tensor
    names: list[str]
    named: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = [
            f"{n:,} {what}{'s' * (n > 1)}" for n, what in zip(self.rows.shape, ("row", "column"), strict=True)
        ]
        lost = [f"{name} ({why})" for name, why in self.left_out.items()]
        return f"{', '.join(sizes)}{'' if self.named else ' without names'}: {_listed(self.names)}" + (
            f"; left out: {_listed(lost)}" if lost else ""
        )


def read_table(
    path: str | os.PathLike[str],
    key: str | None = None,
    columns: str | None = None,
    *,
    header: bool | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Table:
    """Read a numeric table.

    Cells of a .csv are separated by commas, semicolons or tabs, whichever its first line has most of. Where a
    line or a comma may mean two things, the error names the option that tells. Messages count rows and
    columns from 1, and lines as the file has them. Text, .parquet and .feather are read with pandas.

    Args:
        path: a .csv or .tsv (also gzipped), .parquet, .feather, .npy or .npz file; nothing is unpickled.
        key: which array of an .npz file; not needed when it holds one.
        columns: the columns to keep, by name or number: "pt,eta", "1-5,8"; others are not looked at. By
            default all, but for row numbers or labels in a first column without a name.
        header: whether the first line of a text holds names. By default it does where no cell of it is a
            number, and where it is 0,1,2,... above other than whole numbers.
        decimal: "." or ",", as a text writes numbers; a point by default.
        thousands: what a text groups digits by: "," "." " " "'" "_" or None.
        dtype: of the rows; they are parsed in float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a numeric table; the message names row and column.
        ImportError: pandas is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "points.csv"
        ...     _ = file.write_text("a,b\\n1,2\\n3,4\\n")
        ...     table = read_table(file)
        >>> table.names, table.rows.tolist()
        (['a', 'b'], [[1.0, 2.0], [3.0, 4.0]])
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a {either(SUFFIXES, ' file')}")
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    suffix = _suffix(file)
    if suffix is None:
        raise ValueError(f"{file} is not a {either(SUFFIXES, ' file')}")
    if key is not None and suffix != ".npz":
        raise ValueError(f"{file} has no named arrays: --key is for .npz files")
    point = "." if decimal is None else decimal
    if point not in tuple(".,") or thousands not in (None, *",. '_") or thousands == point:
        raise ValueError(f"numbers cannot have decimal mark {point!r} and thousands mark {thousands!r}")
    content = file.read_bytes()
    if not content:
        raise ValueError(f"{file} is empty")
    if suffix in (".npy", ".npz"):
        return _read_array(file, content, key, columns, dtype)
    if suffix in (".parquet", ".feather"):
        return _read_frame(file, content, columns, dtype)
    try:
        return _Text.of(file, content, suffix, decimal, thousands).read(columns, header, dtype)
    except csv.Error as error:
        raise ValueError(f"{file} is not a readable CSV file: {error}") from error


def write_table(path: str | os.PathLike[str], rows: Tensor, names: Sequence[str]) -> None:
    """Write rows (N, d) whole or not at all; all kinds but .npy and .npz (array "samples") keep the names.

    Raises:
        ValueError: the suffix is none that `read_table` reads.
        ImportError: pandas is missing, and the file is neither .npy nor .npz.
    """
    file, table = Path(path), rows.detach().cpu().numpy()
    suffix, buffer = _suffix(file), io.BytesIO()
    if suffix is None:
        raise ValueError(f"cannot write {file}: unknown suffix '{file.suffix}'")
    if suffix == ".npy":
        np.save(buffer, table, allow_pickle=False)
    elif suffix == ".npz":
        np.savez(buffer, samples=table)
    else:
        frame = _pandas(file).DataFrame(table, columns=list(names))
        if suffix == ".parquet":
            frame.to_parquet(buffer)
        elif suffix == ".feather":
            frame.to_feather(buffer)
        else:
            digits = "%.9g" if rows.dtype == torch.float32 else "%.17g"
            separator = "\t" if suffix.startswith(".tsv") else ","
            text = frame.to_csv(None, sep=separator, index=False, float_format=digits, na_rep="nan")
            content = text.encode()
            buffer.write(gzip.compress(content, mtime=0) if suffix.endswith(".gz") else content)
    write_whole(file, buffer.getvalue())


@final
@dataclass(frozen=True)
class _Text:
    """The text of a file, what separates its cells, and the marks in its numbers."""

    file: Path
    text: str
    delimiter: str
    decimal: str | None
    thousands: str | None

    @classmethod
    def of(cls, file: Path, content: bytes, suffix: str, decimal: str | None, thousands: str | None) -> _Text:
        try:
            text = (gzip.decompress(content) if suffix.endswith(".gz") else content).decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} is damaged or truncated") from error
        if "\0" in text:
            raise ValueError(f"{file} is not a CSV text file")
        candidates = "\t" if suffix.startswith(".tsv") else ",;\t"
        if "," in (decimal, thousands) and '"' not in text:  # between cells it would need quotes within them
            candidates = candidates.replace(",", "")
        first = re.search(r".*\S.*", text)
        delimiter = max(candidates, key=_unquoted(first[0] if first else "").count)
        blank = rf"(?m)^[ \t{delimiter}]+(?=\r?$)"
        return cls(file, re.sub(blank, "", text), delimiter, decimal, thousands)

    def read(self, columns: str | None, header: bool | None, dtype: torch.dtype) -> Table:
        stream = io.StringIO(self.text, newline="")
        lines = self.lines(stream)
        before, first = next(lines, (0, []))
        if not first:
            raise ValueError(f"{self.file} is empty")
        start, (_, second) = stream.tell(), next(lines, (0, list[str]()))
        named = self.is_header(first, second) if header is None else header
        if named and not second:
            raise ValueError(f"{self.file} has a header but no rows")
        if not named:
            before, start, second = 0, 0, first
            self.check_commas(len(first))
        names = [cell if named and cell else f"x{place}" for place, cell in enumerate(first, 1)]
        kept, left_out = _select(self.file, columns, names), dict[str, str]()
        unnamed = named and columns is None and first[0] in ("", "Unnamed: 0") and all(first[1:])
        if unnamed and not self.is_number(second[0]):
            left_out[names[0]] = "row labels"
            kept.remove(0)
        stream.seek(start)
        try:
            frame = _pandas(self.file).read_csv(
                stream,
                sep=self.delimiter,
                header=None,
                usecols=sorted(kept),
                dtype=np.float64,
                keep_default_na=False,
                na_values=["nan", "-nan", "NaN", "NAN"],
                decimal=self.decimal or ".",
                thousands=self.thousands,
            )
            if _unquoted(self.text[start:]).count(self.delimiter) != len(frame) * (len(first) - 1):
                raise ValueError("its lines have different numbers of cells")
        except ValueError as error:
            stream.seek(start)
            self.check_lines(stream, before, names, kept, named)
            raise ValueError(f"{self.file} is not a readable CSV file: {error}") from error
        table = frame[kept].to_numpy()
        if unnamed and 0 in kept and _number_rows(table[:, 0]):
            left_out[names[0]] = "row numbers"
            table = table[:, 1:]
            kept.remove(0)
        return _table(self.file, table, names, kept, named, left_out, dtype)

    def lines(self, stream: io.StringIO) -> Iterator[tuple[int, list[str]]]:
        """The number of each line that is not blank, and its cells."""
        reader = csv.reader(stream, delimiter=self.delimiter, strict=True)
        return ((reader.line_num, [" ".join(cell.split()) for cell in line]) for line in reader if any(line))

    def is_number(self, cell: str) -> bool:
        point = self.decimal or "."
        plain = cell.replace(self.thousands or point, "" if self.thousands else point).replace(point, ".")
        number = r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity|true|false)"
        return re.fullmatch(number, plain, re.ASCII | re.IGNORECASE) is not None

    def is_header(self, first: list[str], second: list[str]) -> bool:
        """Whether the first line holds names; an error where it may hold numbers as well."""
        if not any(map(self.is_number, first)):
            return not {cell.lower() for cell in first} <= {"", "na", "n/a", "null", "none"}
        counted = [str(place) for place in range(len(first))]
        if first[0] == "" and first[1:] == counted[:-1]:  # a data frame without names, with its index
            return True
        if first != counted or len(first) < 2:
            return False
        if len(first) > 2 and not all(map(str.isdigit, second)):
            return True
        raise ValueError(
            f"{self.file}: the first line, {','.join(first)}, may hold names or numbers: say which by "
            "--header or --no-header"
        )

    def check_commas(self, width: int) -> None:
        """Refuse lines of two whole numbers that may as well be one number with a comma in it."""
        if self.decimal or self.delimiter != "," or width != 2:
            return
        pairs = [re.fullmatch(r"\s*[+-]?\d+,(\d+)\s*", line) for line in self.text.splitlines() if line]
        ends = [pair[1] for pair in pairs if pair]
        padded = any(end[0] == "0" and len(end) > 1 for end in ends)
        if len(ends) == len(pairs) and (padded or all(len(end) > 2 for end in ends)):
            raise ValueError(
                f"{self.file}: a comma may separate two columns or be part of a number: say which by "
                "--decimal '.' (two columns), --decimal ',' or --thousands ','"
            )

    def check_lines(
        self, stream: io.StringIO, before: int, names: list[str], kept: list[int], named: bool
    ) -> None:
        """Refuse the first line that is no row of numbers."""
        for row, (line, cells) in enumerate(self.lines(stream), 1):
            where = f"{self.file}: row {row} (line {before + line})"
            if len(cells) != len(names):
                raise ValueError(f"{where} has {len(cells)} cells; expected {len(names)}")
            for column in kept:
                cell = cells[column]
                if not self.is_number(cell):
                    found = f"{cell!r} is not a number" if cell else "the cell is empty"
                    if re.fullmatch(r"[+-]?\d+([., '_]\d+)+", cell):
                        found += " (see --decimal and --thousands)"
                    raise ValueError(f"{where}, column {_called(names, column, named)}: {found}")


def _read_frame(file: Path, content: bytes, columns: str | None, dtype: torch.dtype) -> Table:
    pandas, kind = _pandas(file), file.suffix.lower()
    read = pandas.read_parquet if kind == ".parquet" else pandas.read_feather
    with _parsing(file, "file"):
        frame = read(io.BytesIO(content))
    names = [str(name) for name in frame.columns]
    if not frame.size:
        raise ValueError(f"{file} is empty: its shape is {frame.shape}")
    kept = _select(file, columns, names)
    for column in kept:
        if frame.dtypes.iloc[column].kind not in "fiub":
            kind = frame.dtypes.iloc[column]
            raise ValueError(f"{file}: column '{names[column]}' is not numeric: its type is {kind}")
    table = np.column_stack([frame.iloc[:, k].to_numpy(np.float64, na_value=np.nan) for k in kept])
    index = {} if isinstance(frame.index, pandas.RangeIndex) else {str(frame.index.name): "the index"}
    return _table(file, table, names, kept, True, index, dtype)


def _number_rows(column: np.ndarray) -> bool:
    whole = bool((column == np.floor(column)).all())
    return whole and len(np.unique(column)) == len(column) > 1


def _unquoted(text: str) -> str:
    return re.sub('"[^"]*"', "", text) if '"' in text else text


@contextmanager
def _parsing(file: Path, what: str) -> Iterator[None]:
    """One error for damaged bytes, which can fail anywhere in the parsers."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{file} is not a readable {file.suffix.lower()} {what}") from error


def _read_array(
    file: Path, content: bytes, key: str | None, columns: str | None, dtype: torch.dtype
) -> Table:
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
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{place} is not numeric: its type is {array.dtype}")
    if array.ndim != 2:
        hint = "; reshape it to (N, 1) if it is one column" if array.ndim == 1 else ""
        raise ValueError(
            f"{place} must have two dimensions (rows, columns); its shape is {array.shape}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"{place} is empty: its shape is {array.shape}")
    names = [f"x{place}" for place in range(1, array.shape[1] + 1)]
    kept = _select(file, columns, names)
    return _table(place, array[:, kept].astype(np.float64), names, kept, False, {}, dtype)


def _choose_array(file: Path, names: list[str], key: str | None) -> str:
    if not names:
        raise ValueError(f"{file} holds no arrays")
    listed = ", ".join(f"'{name}'" for name in names)
    if key is None and len(names) > 1:
        raise ValueError(f"{file} holds the arrays {listed}: choose one with --key")
    if key is not None and key not in names:
        raise ValueError(f"{file} has no array '{key}'; it holds {listed}")
    return names[0] if key is None else key


def _table(
    place: object,
    table: np.ndarray,
    names: list[str],
    kept: list[int],
    named: bool,
    left_out: dict[str, str],
    dtype: torch.dtype,
) -> Table:
    """The kept columns, checked for NaN, infinities and what the dtype cannot hold."""
    rows = torch.from_numpy(np.array(table)).to(dtype)
    bad = (~rows.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        value = table[row, column]
        large = f"{value:g}, too large for {name_dtype(dtype)}"
        kind = "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else large
        called = _called(names, kept[column], named)
        raise ValueError(f"{place}: row {row + 1}, column {called}: the value is {kind}")
    others = {name: "not chosen" for k, name in enumerate(names) if k not in kept}
    return Table(rows, [names[k] for k in kept], named, {**others, **left_out})


def _select(file: Path, columns: str | None, names: list[str]) -> list[int]:
    """Places of the chosen columns."""
    kept = list(range(len(names))) if columns is None else []
    for part in map(str.strip, columns.split(",") if columns is not None else ()):
        first, dash, last = part.partition("-")
        if part in names:
            kept += [place for place, name in enumerate(names) if name == part]
        elif part.isdigit():
            kept.append(int(part) - 1)
        elif dash and first.isdigit() and last.isdigit():
            kept += range(int(first) - 1, int(last))
        else:
            raise ValueError(f"{file} has no column '{part}'; it has {_listed(names)}")
    for place in kept:
        if not 0 <= place < len(names):
            raise ValueError(f"{file} has no column {place + 1}: it has {len(names)} columns")
    if len(set(kept)) < len(kept) or not kept:
        raise ValueError(f"--columns {columns}: every column may be named once")
    called = [names[place] for place in kept]
    for name in called:
        if called.count(name) > 1:
            places = ", ".join(str(place) for place, other in enumerate(names, 1) if other == name)
            raise ValueError(
                f"{file} has several columns '{name}' ({places}): choose by number with --columns"
            )
    return kept


def _called(names: list[str], column: int, named: bool) -> str:
    return f"'{names[column]}'" if named else str(column + 1)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")


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
        import pyarrow  # noqa: F401  # without it pandas reads no .parquet and no .feather
    except ImportError as error:
        raise ImportError(f"{file} needs pandas and pyarrow: pip install 'convexlift[tables]'") from error
    return pandas
