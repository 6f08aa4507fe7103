"""Tables that the user names: read with errors that say where, written without replacing anything unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from convexlift.tables import SUFFIXES, either


def check_training_table(rows: Tensor, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Refuse rows that no density can be fitted to.

    Raises:
        ValueError: fewer than two rows, or a constant column.

    >>> check_training_table(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), ["a", "b"], "points.csv")
    Traceback (most recent call last):
    ...
    ValueError: points.csv: column 'b' is constant (every value is 2): leave it out with --columns
    """
    if len(rows) < 2:
        raise ValueError(f"{path} has one row; training needs at least two")
    for column, name in enumerate(names):
        if bool((rows[:, column] == rows[0, column]).all()):
            value = f"{float(rows[0, column]):g}"
            raise ValueError(
                f"{path}: column '{name}' is constant (every value is {value}): leave it out with --columns"
            )


def check_output_file(
    path: str | os.PathLike[str], *, force: bool = False, suffixes: Sequence[str] = SUFFIXES
) -> Path:
    """The path, if a file can be written there and, without ``force``, none is there yet.

    Raises:
        ValueError: another suffix is needed.
        FileExistsError: the file exists.
        OSError: its folder does not exist or cannot be written to.
    """
    file = Path(path)
    if not file.name.lower().endswith(tuple(suffixes)):
        raise ValueError(f"cannot write {file}: its name must end in {either(suffixes)}")
    if file.is_dir():
        raise IsADirectoryError(f"cannot write {file}: it is a folder")
    if file.exists() and not force:
        raise FileExistsError(f"{file} exists; pass --force to replace it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"cannot write {file}: there is no folder {file.parent}")
    _try_writing(file.parent)
    return file


def check_output_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be, if files can be written into it.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot make the folder {folder}: {error.strerror}") from error
    _try_writing(folder)
    return folder


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or that is not here.

    Raises:
        ValueError: so.

    >>> check_device("cpu")
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device '{device}': torch has no such device here") from error


def _try_writing(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write into the folder {folder}: {error.strerror}") from error
