"""MiniBooNE rows from files that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from convexlift.problems.base import Problem
from convexlift.problems.published import tables

TABLE = tables.TextTable("MiniBooNE_PID.txt", columns=tuple(range(50)))
SAME_ROWS = "miniboone_43d.npz"  # validation and test rows of a file of further training rows
PUBLISHED = (29_556, 3_284, 3_648)
NEEDS = "miniboone needs 'train' or 'train_head', 'val' and 'test'"


def miniboone(path: str | Path | None) -> Problem:
    """MiniBooNE signal rows (UCI 199) from the published file, MAF's data.npy or an .npz file.

    From `MiniBooNE_PID.txt` (also .gz, .zip), whose first line counts signal and background, the
    preprocessing is MAF's: signal rows without those whose first value is below -100, the last 10 % for
    test, the last 10 % of the rest for validation, discrete columns dropped (43 remain); but the training
    rows alone tell the discrete columns, mean and deviation. MAF's `data.npy` is cut alike. An .npz file
    holds arrays `train` (or `train_head`), `val` and `test`, standardised; one with `train` and
    `columns_in_43d` takes those columns of the other rows from `miniboone_43d.npz` beside it. Raises a
    ValueError when there is no path or a file has another layout, a FileNotFoundError when one does not
    exist.

    Example:
        >>> miniboone(None)
        Traceback (most recent call last):
        ...
        ValueError: miniboone needs --data MiniBooNE_PID.txt (also .gz, .zip), ...
    """
    if path is None:
        raise ValueError(
            f"miniboone needs --data {TABLE.name} (also .gz, .zip), which 'convexlift data fetch miniboone' "
            "downloads, MAF's data.npy, or an .npz file with arrays 'train', 'val' and 'test'"
        )
    file = tables.locate(path, TABLE)
    splits, scale = (_splits(file), "") if file.suffix == ".npz" else _whole(file)
    known = "; not comparable with tables of the full set (29,556 training rows, 43 columns)"
    if tuple(map(len, splits)) == PUBLISHED and splits[0].shape[1] == 43 and scale:
        known = f"; the rows of published tables{scale}"
    return tables.published(
        "miniboone",
        f"MiniBooNE signal rows, {splits[0].shape[1]} columns",
        file,
        splits,
        known,
        "UCI MiniBooNE (Roe 2005), preprocessed as by Papamakarios, Pavlakou and Murray 2017",
    )


def _whole(file: Path) -> tuple[list[Tensor], str]:
    """The splits of a file of all rows, and what leads to the scale of published tables."""
    if file.suffix == ".npy":
        rows = tables.split(file, tables.arrays(file), "data", NEEDS).double().numpy()
    else:
        rows = _signal(file)
        rows = rows[rows[:, 0] >= -100]
    splits = tables.cut(rows, file)
    kept = tables.continuous(splits[0])
    if len(kept) < 2:
        raise ValueError(f"{file}: expected 43 continuous columns; got {len(kept)}")
    return tables.scaled(file, *(part[:, kept] for part in splits))


def _signal(file: Path) -> np.ndarray:
    """The signal rows, which come first, as the first line counts them."""
    counts = TABLE.header(file).split()
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        raise ValueError(f"{file}: the first line must count signal and background rows, as in {TABLE.name}")
    rows = TABLE.read(file, limit=int(counts[0]))
    if len(rows) < int(counts[0]):
        raise ValueError(
            f"{file} is truncated: {int(counts[0]):,} signal rows are announced; got {len(rows):,}"
        )
    return rows


def _splits(file: Path) -> list[Tensor]:
    held = tables.arrays(file)
    train = tables.split(file, held, "train_head" if "train_head" in held else "train", NEEDS)
    if "columns_in_43d" not in held:
        return [train, *(tables.split(file, held, name, NEEDS) for name in ("val", "test"))]
    beside = file.with_name(SAME_ROWS)
    if not beside.is_file():
        raise FileNotFoundError(f"no such file: {beside}, which has the validation and test rows")
    columns = [column for column in range(43) if column in held["columns_in_43d"]]
    whole = tables.arrays(beside)
    return [train, *(tables.split(beside, whole, name, NEEDS, 43)[:, columns] for name in ("val", "test"))]
