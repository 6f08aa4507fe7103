"""MiniBooNE rows from files that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from convexlift.problems.base import Problem
from convexlift.problems.published.tables import (
    ARCHITECTURE,
    TextTable,
    arrays,
    check_widths,
    continuous,
    cut_last,
    enough,
    locate,
    published_scale,
    sizes,
    split,
    standardise,
)

TABLE = TextTable("MiniBooNE_PID.txt", columns=tuple(range(50)))
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
    file = locate(path, TABLE)
    scale = ""
    if file.suffix == ".npz":
        train, validation, test = _splits(file)
    else:
        train, validation, test, scale = _whole(file)
    published = (len(train), len(validation), len(test)) == PUBLISHED and train.shape[1] == 43 and scale
    return Problem(
        name="miniboone",
        task="flow",
        dim=train.shape[1],
        train=train,
        validation=validation,
        test=test,
        description=(
            f"MiniBooNE signal rows, {train.shape[1]} columns, {sizes(train, validation, test)} from "
            f"{file.name}; "
            + (
                f"the rows of published tables{scale}"
                if published
                else "not comparable with tables of the full set (29,556 training rows, 43 columns)"
            )
        ),
        source="UCI MiniBooNE (Roe 2005), preprocessed as by Papamakarios, Pavlakou and Murray 2017",
        licence="CC BY 4.0 (UCI data set page)",
        architecture=ARCHITECTURE,
    )


def _whole(file: Path) -> tuple[Tensor, Tensor, Tensor, str]:
    """The splits of a file of all rows, and what leads to the scale of published tables."""
    if file.suffix == ".npy":
        rows = split(file, arrays(file), "data", NEEDS).double().numpy()
    else:
        rows = _signal(file)
        rows = rows[rows[:, 0] >= -100]
    rest, test = cut_last(enough(rows, file))
    train, validation = cut_last(rest)
    kept = continuous(train)
    if len(kept) < 2:
        raise ValueError(f"{file}: expected 43 continuous columns; got {len(kept)}")
    splits = [part[:, kept] for part in (train, validation, test)]
    scaled = standardise(file, *splits)
    return scaled[0], scaled[1], scaled[2], published_scale(splits[0], splits[1])


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


def _splits(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    held = arrays(file)
    train = split(file, held, "train_head" if "train_head" in held else "train", NEEDS)
    if "columns_in_43d" not in held:
        validation, test = (split(file, held, name, NEEDS) for name in ("val", "test"))
    else:
        beside = file.with_name(SAME_ROWS)
        if not beside.is_file():
            raise FileNotFoundError(f"no such file: {beside}, which has the validation and test rows")
        columns = [column for column in range(43) if column in held["columns_in_43d"]]
        whole = arrays(beside)
        validation, test = (split(beside, whole, name, NEEDS, 43)[:, columns] for name in ("val", "test"))
    check_widths(file, train, validation, test)
    return train, validation, test
