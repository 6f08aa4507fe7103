"""TODO."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convexlift.files import write_whole

SUFFIXES = (".csv", ".npy", ".npz")


def read_table(
    path: str | os.PathLike[str], key: str | None = None, columns: str | None = None
) -> tuple[Tensor, list[str]]:
    """Read a numeric table.

    A first CSV line without any number is the header; cells are separated by commas, semicolons or tabs.
    Messages count rows and columns from 1.

    Args:
        path: a .csv, .npy or .npz file; pickled content is never loaded.
        key: which array of an .npz file; not needed when it holds one.
        columns: the columns to keep, by header name or number: "pt,eta", "1-5,8". Others are not looked at.

    Returns:
        The rows (N, d), float32, N >= 1, all finite, and the d column names ("x1", ... where there are none).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a numeric table; the message names row and column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "points.csv"
        ...     _ = file.write_text("a,b\\n1,2\\n3,4\\n")
        ...     read_table(file)
        (tensor([[1., 2.],
                [3., 4.]]), ['a', 'b'])
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a {_choices()} file")
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{file} is not a {_choices()} file")
    if key is not None and suffix != ".npz":
        raise ValueError(f"{file} has no named arrays: --key is for .npz files")
    content = file.read_bytes()
    if not content:
        raise ValueError(f"{file} is empty")
    if suffix == ".csv":
        return _read_csv(file, content, columns)
    return _read_array(file, content, key, columns)


def write_table(path: str | os.PathLike[str], rows: Tensor, names: Sequence[str]) -> None:
    """Write rows (N, d) as .csv (with a header), .npy or .npz (array "samples"), whole or not at all."""
    file, table = Path(path), rows.detach().cpu().numpy()
    buffer = io.BytesIO()
    match file.suffix.lower():
        case ".csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([f"{value:.9g}" for value in row] for row in table.tolist())
            buffer.write(text.getvalue().encode())
        case ".npy":
            np.save(buffer, table, allow_pickle=False)
        case ".npz":
            np.savez(buffer, samples=table)
        case suffix:
            raise ValueError(f"cannot write {file}: unknown suffix '{suffix}'")
    write_whole(file, buffer.getvalue())


def _read_csv(file: Path, content: bytes, columns: str | None) -> tuple[Tensor, list[str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a CSV text file") from error
    if "\0" in text:
        raise ValueError(f"{file} is not a CSV text file")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=re.sub('"[^"]*"', "", first).count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise ValueError(f"{file} is not a readable CSV file: {error}") from error
    if not lines:
        raise ValueError(f"{file} is empty")
    width = len(lines[0][1])
    header = not any(_is_number(cell) for cell in lines[0][1])
    names = (
        [cell or f"x{place + 1}" for place, cell in enumerate(lines[0][1])] if header else _numbered(width)
    )
    if header:
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{file} has a header but no rows")
    kept = _select(file, columns, names)
    table = np.empty((len(lines), len(kept)))
    for row, (line, cells) in enumerate(lines):
        if len(cells) != width:
            raise ValueError(f"{file}: row {row + 1} (line {line}) has {len(cells)} cells; expected {width}")
        for place, column in enumerate(kept):
            try:
                table[row, place] = float(cells[column])
            except ValueError:
                where = f"row {row + 1} (line {line}), column {_called(names, column, header)}"
                found = f"{cells[column]!r} is not a number" if cells[column] else "the cell is empty"
                raise ValueError(f"{file}: {where}: {found}") from None
    called = [_called(names, column, header) for column in kept]
    return _finite(file, table, called), [names[column] for column in kept]


def _read_array(file: Path, content: bytes, key: str | None, columns: str | None) -> tuple[Tensor, list[str]]:
    kind = file.suffix.lower()
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if kind != ".npz":
                raise ValueError("an .npz archive under another name")
            names = list(loaded.files)
            key = _choose_array(file, names, key)
            array = loaded[key]
        elif kind == ".npz":
            raise ValueError("an .npy array under another name")
        else:
            array = loaded
    except _Choice as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # damaged bytes can fail anywhere in the parsers
        raise ValueError(f"{file} is not a readable {kind} file of numbers") from error
    place = file if key is None else f"{file}: array '{key}'"
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{place} is not numeric: its type is {array.dtype}")
    if array.ndim != 2:
        hint = "; reshape it to (N, 1) if it is one column" if array.ndim == 1 else ""
        raise ValueError(
            f"{place} must have two dimensions (rows, columns); its shape is {array.shape}{hint}"
        )
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"{place} is empty: its shape is {array.shape}")
    names = _numbered(array.shape[1])
    kept = _select(file, columns, names)
    called = [str(column + 1) for column in kept]
    return _finite(place, array[:, kept].astype(np.float64), called), [names[column] for column in kept]


class _Choice(Exception):
    """The user must name one of the arrays of an archive."""


def _choose_array(file: Path, names: list[str], key: str | None) -> str:
    if not names:
        raise _Choice(f"{file} holds no arrays")
    listed = ", ".join(f"'{name}'" for name in names)
    if key is None and len(names) > 1:
        raise _Choice(f"{file} holds the arrays {listed}: choose one with --key")
    if key is not None and key not in names:
        raise _Choice(f"{file} has no array '{key}'; it holds {listed}")
    return names[0] if key is None else key


def _finite(place: object, table: np.ndarray, called: Sequence[str]) -> Tensor:
    """The table as float32, checked for NaN, infinities and what float32 cannot hold."""
    with np.errstate(over="ignore"):
        rows = table.astype(np.float32)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0].tolist()
        value = table[row, column]
        kind = (
            "NaN"
            if np.isnan(value)
            else "infinite"
            if np.isinf(value)
            else f"{value:g}, too large for float32"
        )
        raise ValueError(f"{place}: row {row + 1}, column {called[column]}: the value is {kind}")
    return torch.from_numpy(rows)


def _select(file: Path, columns: str | None, names: list[str]) -> list[int]:
    """Places of the chosen columns."""
    if columns is None:
        return list(range(len(names)))
    kept: list[int] = []
    for part in (part.strip() for part in columns.split(",")):
        first, dash, last = part.partition("-")
        if part in names:
            kept.append(names.index(part))
        elif part.isdigit():
            kept.append(int(part) - 1)
        elif dash and first.isdigit() and last.isdigit():
            kept += range(int(first) - 1, int(last))
        else:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"{file} has no column '{part}'; it has {shown}")
    for place in kept:
        if not 0 <= place < len(names):
            raise ValueError(f"{file} has no column {place + 1}: it has {len(names)} columns")
    if len(set(kept)) < len(kept) or not kept:
        raise ValueError(f"--columns {columns}: every column may be named once")
    return kept


def _called(names: list[str], column: int, header: bool) -> str:
    return f"'{names[column]}'" if header else str(column + 1)


def _numbered(width: int) -> list[str]:
    return [f"x{place + 1}" for place in range(width)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _choices() -> str:
    return _either(SUFFIXES)


def _either(suffixes: Sequence[str]) -> str:
    return suffixes[0] if len(suffixes) == 1 else f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
