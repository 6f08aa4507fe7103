"""Files and folders that the user names for output: nothing is replaced unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convexlift.files import make_folder


def check_output_file(
    path: str | os.PathLike[str], *, force: bool = False, suffixes: Sequence[str] = ()
) -> Path:
    """The path, if a file can be written there and, without ``force``, none is there yet.

    Without ``suffixes`` it is to be a table.

    Raises:
        ValueError: another suffix is needed.
        FileExistsError: the file exists.
        OSError: its folder does not exist or cannot be written to.
    """
    from convexlift.table_files import SUFFIXES, either

    file, suffixes = Path(path), suffixes or SUFFIXES
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
    folder = make_folder(path)
    _try_writing(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written into or made, and make none.

    Raises:
        OSError: that is so.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write into {folder}: Not a directory")
    _try_writing(there)


def _try_writing(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write into the folder {folder}: {error.strerror}") from error
