"""Tables in files that the user names: published text files and .npz archives, read with errors that say
where, and what the problems made of them share."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast, final

import numpy as np
import torch
from torch import Tensor

from convexlift.checks import check_finite
from convexlift.problems.base import Problem

ARCHITECTURE = {"hidden": (64, 64, 64, 64)}
FEWEST_ROWS = 100
BLOCK = 65_536  # lines that are parsed at a time


@final
@dataclass(frozen=True)
class TextTable:
    """A published text table with one header line: its file name and which cells of a line are read.

    Cells are separated by blanks and by the characters of `separators`; a line with the text `missing` is
    left out. The file may also be gzipped or lie in a zip archive; its first bytes tell.

    Example:
        >>> TextTable("rows.csv", columns=(0, 1), separators=",").names
        ('rows.csv', 'rows.csv.gz', 'rows.zip')
    """

    name: str
    columns: tuple[int, ...]
    separators: str = ""
    missing: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The file names under which a folder may hold the table."""
        return self.name, f"{self.name}.gz", f"{Path(self.name).stem}.zip"

    def header(self, path: str | Path) -> str:
        """The first line of the file."""
        with self._lines(path) as lines:
            return next(lines, "").strip()

    def read(self, path: str | Path, *, every: int = 1, limit: int | None = None) -> np.ndarray:
        """All blocks of `blocks` as one array (N, len(columns))."""
        kept = list(self.blocks(path, every=every, limit=limit))
        return np.concatenate(kept) if kept else np.empty((0, len(self.columns)))

    def blocks(self, path: str | Path, *, every: int = 1, limit: int | None = None) -> Iterator[np.ndarray]:
        """Blocks (n, len(columns)) of finite float64 rows of the first `limit` lines after the header, every
        `every`-th.

        Raises a ValueError for a damaged or truncated file, and with the line's number (the header is line 1)
        for a cell that is missing or no finite number.
        """
        cells = str.maketrans(self.separators, " " * len(self.separators))
        with self._lines(path) as lines:
            wanted = islice(enumerate(lines, start=1), 1, None if limit is None else limit + 1, every)
            full = (
                (number, line.translate(cells))
                for number, line in wanted
                if line.strip() and not (self.missing and self.missing in line)
            )
            while block := list(islice(full, BLOCK)):
                yield self._parse(path, block)

    def check(self, path: str | Path, rows: int, progress: Callable[[int], None]) -> None:
        """Refuse, with a ValueError, a file with another number of rows, a constant column or as `blocks`
        does; `progress` is called with the number of rows so far."""
        found, lowest, highest = 0, np.inf, -np.inf
        for block in self.blocks(path):
            found += len(block)
            lowest, highest = np.minimum(lowest, block.min(0)), np.maximum(highest, block.max(0))
            progress(found)
        if found != rows:
            raise ValueError(f"expected {rows:,} rows; got {found:,}")
        constant = np.flatnonzero(lowest == highest)
        if len(constant):
            raise ValueError(f"column {self.columns[constant[0]] + 1} is constant")

    def _parse(self, path: str | Path, block: list[tuple[int, str]]) -> np.ndarray:
        try:
            rows = np.loadtxt([line for _, line in block], usecols=self.columns, ndmin=2, comments=None)
        except ValueError:
            number, line = next((number, line) for number, line in block if not self._is_row(line))
            raise ValueError(
                f"{path}, line {number}: expected {max(self.columns) + 1} numbers; got {line.strip()[:40]!r}"
            ) from None
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{path}, line {block[row][0]}: cell {self.columns[column] + 1} is {rows[row, column]:g}"
            )
        return rows

    def _is_row(self, line: str) -> bool:
        try:
            np.loadtxt([line], usecols=self.columns, comments=None)
        except ValueError:
            return False
        return True

    @contextmanager
    def _lines(self, path: str | Path) -> Iterator[Iterator[str]]:
        try:
            with closing(self._open(path)) as stream:
                yield iter(io.TextIOWrapper(stream, encoding="latin-1"))
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or truncated") from error

    def _open(self, path: str | Path) -> IO[bytes]:
        with open(path, "rb") as file:
            start = file.read(4)
        if start[:2] == b"\x1f\x8b":
            return cast(IO[bytes], gzip.open(path))
        if start[:2] != b"PK":
            return open(path, "rb")
        with zipfile.ZipFile(path) as archive:  # the member that is opened keeps the file open
            for member in archive.namelist():
                if PurePosixPath(member).name == self.name:
                    return archive.open(member)
        raise ValueError(f"{path} holds no {self.name}")


def locate(path: str | Path, table: TextTable) -> Path:
    """The file `path`; or, in the folder `path`, the table's file, else the only .npz file.

    Raises a FileNotFoundError when there is none, a ValueError when the folder leaves a choice.

    Example:
        >>> locate("none.npz", TextTable("rows.txt", columns=(0,)))
        Traceback (most recent call last):
        ...
        FileNotFoundError: no such file: none.npz
    """
    place = Path(path)
    if place.is_dir():
        texts = [place / name for name in table.names if (place / name).is_file()]
        archives = sorted(place.glob("*.npz"))
        if not texts and len(archives) > 1:
            listed = ", ".join(file.name for file in archives)
            raise ValueError(f"{path} holds several files ({listed}): name one of them")
        if not texts and not archives:
            raise FileNotFoundError(f"{path} holds neither {' nor '.join(table.names)} nor an .npz file")
        return (texts or archives)[0]
    if not place.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return place


def arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of an .npz file by their names, the one of an .npy file as 'data'; nothing is unpickled.

    Raises a ValueError when the file is not readable as either.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                return {"data": content}
            with content:
                return dict(content.items())
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable {Path(path).suffix or '.npz'} file") from error


def split(
    path: str | Path, held: dict[str, Any], name: str, needs: str, columns: int | None = None
) -> Tensor:
    """The rows of one array of a file, (N, columns) float32; all its columns, or the first `columns`.

    Raises a ValueError when it is missing (then `needs` says what the problem reads), not numeric, not a
    table of at least two rows and `columns` columns, or not finite.

    Example:
        >>> split("rows.npz", {"train": np.zeros((3, 2))}, "test", "gas needs 'train', 'val' and 'test'")
        Traceback (most recent call last):
        ...
        ValueError: rows.npz has no array 'test'; gas needs 'train', 'val' and 'test'
    """
    if name not in held:
        raise ValueError(f"{path} has no array '{name}'; {needs}")
    table, width = held[name], columns or 2
    if table.ndim != 2 or table.shape[1] < width or len(table) < 2:
        raise ValueError(f"{path}: '{name}' must have at least 2 rows and {width} columns; got {table.shape}")
    if table.dtype.kind not in "fiu":
        raise ValueError(f"{path}: '{name}' must be numeric; got {table.dtype}")
    rows = torch.from_numpy(table[:, :columns].astype("float32"))
    return check_finite(rows, name=f"{path}: '{name}' rows")


def published(name: str, what: str, file: Path, splits: Sequence[Tensor], more: str, source: str) -> Problem:
    """The problem of flows on training, validation and test rows of a file, described as what, sizes, more.

    Raises a ValueError for splits that differ in their number of columns.

    Example:
        >>> published("gas", "2 sensors", Path("gas.npz"), [torch.zeros(4, 2)] * 3, "", "UCI").description
        '2 sensors, 4 training / 4 validation / 4 test rows from gas.npz'
    """
    train, validation, test = splits
    widths = [rows.shape[1] for rows in splits]
    if len(set(widths)) > 1:
        raise ValueError(f"{file}: training, validation and test rows have {widths} columns")
    description = f"{what}, {sizes(train, validation, test)} from {file.name}{more}"
    licence = "CC BY 4.0 (UCI data set page)"
    return Problem(
        name, "flow", widths[0], train, validation, test, description, source, licence, ARCHITECTURE
    )


def enough(rows: np.ndarray, path: str | Path) -> np.ndarray:
    """The rows, if there are at least 100; else a ValueError.

    Example:
        >>> enough(np.zeros((3, 2)), "rows.txt")
        Traceback (most recent call last):
        ...
        ValueError: rows.txt has 3 usable rows; at least 100 are needed
    """
    if len(rows) < FEWEST_ROWS:
        raise ValueError(f"{path} has {len(rows)} usable rows; at least {FEWEST_ROWS} are needed")
    return rows


def cut_last(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows without the last tenth, rounded down, and that tenth, in the file's order.

    Example:
        >>> [len(part) for part in cut_last(np.zeros((119, 2)))]
        [108, 11]
    """
    last = int(0.1 * len(rows))
    return rows[:-last], rows[-last:]


def cut(rows: np.ndarray, path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test rows: the last tenth of `enough` rows for test, of the rest another."""
    rest, test = cut_last(enough(rows, path))
    return *cut_last(rest), test


def standardise(path: str | Path, train: np.ndarray, *others: np.ndarray) -> list[Tensor]:
    """(x - mean) / deviation of the training rows for every split, float32.

    Raises a ValueError for a column that is constant in the training rows; columns count from 1.

    Example:
        >>> standardise("rows.txt", np.array([[0.0], [2.0]]), np.array([[4.0]]))[1]
        tensor([[3.]])
    """
    mean, deviation = train.mean(0), train.std(0)
    if not deviation.all():
        raise ValueError(f"{path}: column {int(deviation.argmin()) + 1} is constant in the training rows")
    return [torch.from_numpy((rows - mean) / deviation).float() for rows in (train, *others)]


def continuous(train: np.ndarray) -> np.ndarray:
    """The columns whose smallest value occurs at most five times: how MAF tells discrete columns.

    Its code takes the count of the smallest value, not of the commonest one, so that a column with a repeated
    value in its midst stays.

    Example:
        >>> continuous(np.stack([np.arange(9), np.arange(9) // 6, np.arange(9).clip(max=2)], axis=1))
        array([0, 2])
    """
    return np.flatnonzero((train == train.min(0)).sum(0) <= 5)


def scaled(path: str | Path, *splits: np.ndarray) -> tuple[list[Tensor], str]:
    """The splits by `standardise`, and what `published_scale` says of them."""
    return standardise(path, *splits), published_scale(*splits[:2])


def published_scale(train: np.ndarray, validation: np.ndarray) -> str:
    """What to add to a loss to compare it with tables whose columns training and validation rows standardise:
    the sum over columns of log(deviation of train / deviation of both)."""
    both = np.concatenate([train, validation]).std(0)
    return (
        f"; {np.log(train.std(0) / both).sum():+.4f} nats lead to the scale of the published tables, "
        "standardised by training and validation rows"
    )


def sizes(train: Tensor, validation: Tensor, test: Tensor) -> str:
    """The numbers of rows in words.

    Example:
        >>> sizes(torch.zeros(4505, 2), torch.zeros(501, 2), torch.zeros(2462, 2))
        '4,505 training / 501 validation / 2,462 test rows'
    """
    return f"{len(train):,} training / {len(validation):,} validation / {len(test):,} test rows"
