"""Electric power readings from files that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convexlift.data import hold_out
from convexlift.problems.base import Problem
from convexlift.problems.published import tables

# Day, month, year, hour, minute, second, then the seven readings; a lost reading is a "?".
TABLE = tables.TextTable("household_power_consumption.txt", tuple(range(13)), separators="/:;", missing="?")
STEPS = {
    "Global_active_power": 0.001,
    "Voltage": 0.01,
    "Sub_metering_1": 1.0,
    "Sub_metering_2": 1.0,
    "Sub_metering_3": 1.0,
    "minute_of_day": 1.0,
}
NEEDS = "power needs 'columns' with 'data', or with 'train' and 'test'"


def power(path: str | Path | None) -> Problem:
    """Minutes of one household's electricity (UCI 235) from the published file or an .npz file.

    From `household_power_consumption.txt` (also .gz, .zip): active power, voltage, three sub-meters and the
    minute of the day of the complete rows, each with uniform noise of one step of its reading (the minute
    too: a discrete column has no density), split by time: the last 10 % for test, the last 10 % of the rest
    for validation; mean and deviation of the training rows. Published tables split minutes at random, so that
    neighbours of test rows are trained on: they are not comparable. An .npz file has the readings as `data`
    with their names as `columns`, in time order; or, standardised and with noise, `train` and `test`: then a
    fixed-seed 10 % of the training rows becomes the validation split, and the intensity, all but a copy of
    the active power, is dropped. Raises a ValueError when there is no path or a file has another layout, a
    FileNotFoundError when it does not exist.

    Example:
        >>> power(None)
        Traceback (most recent call last):
        ...
        ValueError: power needs --data household_power_consumption.txt (also .gz, .zip), ...
    """
    if path is None:
        raise ValueError(
            f"power needs --data {TABLE.name} (also .gz, .zip), which 'convexlift data fetch power' "
            "downloads, or an .npz file with arrays 'data' and 'columns'"
        )
    file = tables.locate(path, TABLE)
    order = "split by time"
    if file.suffix != ".npz":
        splits = _by_time(file, _readings(TABLE.read(file)))
    else:
        held = tables.arrays(file)
        if "data" in held:
            splits = _by_time(file, _chosen(file, held, "data", list(STEPS)).double().numpy())
        else:
            names = [name for name in STEPS if name in _names(file, held)]
            rows, test = (_chosen(file, held, part, names) for part in ("train", "test"))
            splits = [*hold_out(rows, 0.1), test]
            order = "random minutes of the whole time"
    return tables.published(
        "power",
        f"electric power of one household, {splits[0].shape[1]} columns",
        file,
        splits,
        f", {order}; not comparable with published tables (2,049,280 minutes split at random)",
        "UCI individual household electric power consumption (Hebrail and Berard 2006)",
    )


def _readings(rows: np.ndarray) -> np.ndarray:
    """The columns of `STEPS` from those of `TABLE`."""
    return np.column_stack([rows[:, [6, 8, 10, 11, 12]], 60 * rows[:, 3] + rows[:, 4]])


def _by_time(file: Path, rows: np.ndarray) -> list[Tensor]:
    noise = np.random.default_rng(0).random(rows.shape)
    return tables.standardise(file, *tables.cut(rows + noise * np.array(list(STEPS.values())), file))


def _names(file: Path, held: dict[str, Any]) -> list[str]:
    if "columns" not in held or held["columns"].ndim != 1:
        raise ValueError(f"{file} has no array 'columns'; {NEEDS}")
    return [str(name) for name in held["columns"]]


def _chosen(file: Path, held: dict[str, Any], part: str, wanted: list[str]) -> Tensor:
    """The named columns of one array."""
    names, rows = _names(file, held), tables.split(file, held, part, NEEDS)
    if len(names) != rows.shape[1]:
        raise ValueError(f"{file}: '{part}' has {rows.shape[1]} columns; 'columns' names {len(names)}")
    lacking = [name for name in wanted or list(STEPS) if name not in names]
    if lacking:
        raise ValueError(f"{file}: 'columns' lacks {', '.join(lacking)}")
    return rows[:, [names.index(name) for name in wanted]]
