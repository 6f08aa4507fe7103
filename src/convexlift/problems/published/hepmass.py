"""HEPMASS rows from files that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from convexlift.data import hold_out
from convexlift.problems.base import Problem
from convexlift.problems.published import tables

COLUMNS = 21
# The label and the first 26 of the 27 features: through a header mismatch MAF loses the last one.
TRAIN = tables.TextTable("1000_train.csv", columns=tuple(range(27)), separators=",")
TEST = tables.TextTable("1000_test.csv", columns=tuple(range(27)), separators=",")
TRAIN_LINES, TEST_LINES = 700_000, 350_000  # MAF took the first tenth of each file
PUBLISHED = (315_123, 35_013, 174_987)


def hepmass(path: str | Path | None) -> Problem:
    """HEPMASS signal rows (UCI, mass 1000) from an .npz file or from the folder of the published files.

    An .npz file has arrays `train` and `test` in MAF's preprocessing; their first 21 columns are read and a
    fixed-seed 10 % of the training rows becomes the validation split. From `1000_train.csv` and
    `1000_test.csv` (also .gz) the preprocessing is MAF's: signal rows of the first 700,000 and 350,000, the
    last feature and the five discrete ones dropped, the last 10 % of train for validation; but the training
    rows alone tell the discrete columns, mean and deviation. Published tables use 315,123 training rows: do
    not set figures from fewer beside them. Raises a ValueError when there is no path or a file has another
    layout, a FileNotFoundError when one does not exist.

    Example:
        >>> hepmass(None)
        Traceback (most recent call last):
        ...
        ValueError: hepmass needs --data FILE.npz with arrays 'train' and 'test' of at least 21 columns ...
    """
    if path is None:
        raise ValueError(
            f"hepmass needs --data FILE.npz with arrays 'train' and 'test' of at least {COLUMNS} columns "
            "(MAF's preprocessing), or the folder of 1000_train.csv.gz and 1000_test.csv.gz, which "
            "'convexlift data fetch hepmass' downloads"
        )
    place = Path(path)
    if place.name in (*TRAIN.names, *TEST.names):
        place = place.parent
    known = "not comparable with tables of the full set (315,123 rows)"
    if any((place / name).is_file() for name in (*TRAIN.names, *TEST.names)):
        splits, scale = _published(place)
        if tuple(map(len, splits)) == PUBLISHED:
            known = f"the rows of published tables{scale}"
    else:
        place = tables.locate(place, TRAIN)
        held, needs = tables.arrays(place), "hepmass needs 'train' and 'test'"
        rows, test = (tables.split(place, held, name, needs, COLUMNS) for name in ("train", "test"))
        splits = [*hold_out(rows, 0.1), test]
    return tables.published(
        "hepmass",
        f"HEPMASS signal rows of mass 1000, {COLUMNS} columns",
        place,
        splits,
        f"; {known}",
        "UCI HEPMASS (Baldi et al. 2016), preprocessed as by Papamakarios, Pavlakou and Murray 2017",
    )


def _published(folder: Path) -> tuple[list[Tensor], str]:
    """The splits of the published files, and what leads to the scale of published tables."""
    files = tables.locate(folder, TRAIN), tables.locate(folder, TEST)
    rows, test = (
        np.concatenate([np.empty((0, 26)), *(b[b[:, 0] == 1, 1:] for b in table.blocks(file, limit=lines))])
        for table, file, lines in zip((TRAIN, TEST), files, (TRAIN_LINES, TEST_LINES), strict=True)
    )
    train, validation = tables.cut_last(tables.enough(rows, files[0]))
    kept = tables.continuous(train)
    if len(kept) != COLUMNS:
        raise ValueError(f"{files[0]}: expected {COLUMNS} continuous columns; got {len(kept)}")
    if not len(test):
        raise ValueError(f"{files[1]} has no signal rows")
    return tables.scaled(files[0], *(part[:, kept] for part in (train, validation, test)))
