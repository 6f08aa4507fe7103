"""HEPMASS rows from a file that the user names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlift.checks import check_finite

from .problem import Problem

COLUMNS = 21
VALIDATION_SHARE = 0.1
ARCHITECTURE = {"hidden": (64, 64, 64, 64)}


def hepmass(path: str | Path | None) -> Problem:
    """HEPMASS signal rows (UCI, mass 1000) from an .npz file with arrays `train` and `test`; their first 21
    columns.

    A fixed-seed 10 % of the training rows becomes the validation split. Published tables use 315,123 training
    rows: do not set figures from a smaller file beside them. Raises a ValueError when there is no path or the
    file has another layout, a FileNotFoundError when it does not exist.

    Example:
        >>> hepmass(None)
        Traceback (most recent call last):
        ...
        ValueError: hepmass needs --data FILE.npz with arrays 'train' and 'test' of at least 21 columns ...
    """
    if path is None:
        raise ValueError(
            "hepmass needs --data FILE.npz with arrays 'train' and 'test' of at least 21 columns "
            "(MAF's preprocessing)"
        )
    rows, test = (_columns(path, name) for name in ("train", "test"))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held_out = max(1, round(VALIDATION_SHARE * len(rows)))
    train, validation = rows[order[held_out:]], rows[order[:held_out]]
    return Problem(
        name="hepmass",
        task="flow",
        dim=COLUMNS,
        train=train,
        validation=validation,
        test=test,
        description=(
            f"HEPMASS signal rows of mass 1000, 21 columns, {len(train):,} training / {len(validation):,} "
            f"validation / {len(test):,} test rows from {Path(path).name}; not comparable with tables of the "
            "full set (315,123 rows)"
        ),
        source="UCI HEPMASS (Baldi et al. 2016), preprocessed as by Papamakarios, Pavlakou and Murray 2017",
        licence="CC BY 4.0 (UCI data set page)",
        architecture=ARCHITECTURE,
    )


def _columns(path: str | Path, name: str) -> Tensor:
    import numpy

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    arrays: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            content = numpy.load(file, allow_pickle=False)
            if isinstance(content, numpy.lib.npyio.NpzFile):
                with content:
                    arrays = dict(content.items())
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable .npz file") from error
    if name not in arrays:
        raise ValueError(f"{path} has no array '{name}'; hepmass needs 'train' and 'test'")
    table = arrays[name]
    if table.ndim != 2 or table.shape[1] < COLUMNS or len(table) < 2:
        raise ValueError(
            f"{path}: '{name}' must have at least 2 rows and {COLUMNS} columns; got {table.shape}"
        )
    if table.dtype.kind not in "fiu":
        raise ValueError(f"{path}: '{name}' must be numeric; got {table.dtype}")
    rows = torch.from_numpy(table[:, :COLUMNS].astype("float32"))
    return check_finite(rows, name=f"{path}: '{name}' rows")
