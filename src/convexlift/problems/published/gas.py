"""Gas sensor readings from files that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from convexlift.problems.base import Problem
from convexlift.problems.published import tables

# Time and the two concentrations come first, then the 16 sensors.
TABLE = tables.TextTable("ethylene_CO.txt", columns=tuple(range(3, 19)))
EVERY = 4  # published tables use a random quarter of the rows


def gas(path: str | Path | None) -> Problem:
    """Readings of gas sensors (UCI 322, ethylene and CO) from the published file or an .npz file.

    From `ethylene_CO.txt` (also .gz, .zip): every fourth row, the last 10 % for test, the last 10 % of the
    rest for validation. As in MAF the first sensor that correlates above 0.98 with another is dropped until
    there is none, but on training rows, which alone give mean and deviation too. Published tables use a
    random quarter: they are not comparable. An .npz file has standardised arrays `train`, `val` and `test`.
    MAF's `ethylene_CO.pickle` is refused, since reading a pickle can run code. Raises a ValueError when there
    is no path or the file has another layout, a FileNotFoundError when it does not exist.

    Example:
        >>> gas(None)
        Traceback (most recent call last):
        ...
        ValueError: gas needs --data ethylene_CO.txt (also .gz, .zip), ...
    """
    if path is None:
        raise ValueError(
            f"gas needs --data {TABLE.name} (also .gz, .zip), which 'convexlift data fetch gas' downloads, "
            "or an .npz file with arrays 'train', 'val' and 'test'"
        )
    file = tables.locate(path, TABLE)
    if file.suffix in (".pickle", ".pkl"):
        raise ValueError(f"{file} is a pickle, which can run code when it is read: use {TABLE.name} instead")
    if file.suffix == ".npz":
        held, needs, order = tables.arrays(file), "gas needs 'train', 'val' and 'test'", "its own split"
        splits = [tables.split(file, held, name, needs) for name in ("train", "val", "test")]
    else:
        splits, order = _by_time(file), "every fourth, split by time"
    return tables.published(
        "gas",
        f"readings of {splits[0].shape[1]} gas sensors",
        file,
        splits,
        f", {order}; not comparable with published tables (852,174 training rows, drawn at random)",
        "UCI gas sensor array under dynamic gas mixtures (Fonollosa et al. 2015)",
    )


def _by_time(file: Path) -> list[Tensor]:
    train, validation, test = tables.cut(TABLE.read(file, every=EVERY), file)
    if not train.std(0).all():
        raise ValueError(f"{file}: sensor {int(train.std(0).argmin()) + 1} is constant in the training rows")
    kept = uncorrelated(train)
    return tables.standardise(file, *(part[:, kept] for part in (train, validation, test)))


def uncorrelated(rows: np.ndarray, limit: float = 0.98) -> np.ndarray:
    """The columns left when the first that correlates above `limit` with another is dropped until none does.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> uncorrelated(np.stack([x[:, 0], x[:, 1], 2 * x[:, 0]], axis=1))
        array([1, 2])
    """
    kept = np.arange(rows.shape[1])
    alike = np.corrcoef(rows.T) > limit
    while (crowded := alike[np.ix_(kept, kept)].sum(1) > 1).any():
        kept = np.delete(kept, crowded.argmax())
    return kept
