"""Files written in one piece: a reader, or a kill half way, sees the old file or the new one."""

from __future__ import annotations

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

_TORN = re.compile(r"\..+\.[0-9a-f]{32}\.part")  # what `write_whole` calls a file until it is whole


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: a temporary file beside it, flushed to the disk, then renamed.

    A new file gets the mode that the umask gives, a file that is replaced keeps its own, and a symbolic link
    stays one: the file that it names is written. Two processes never share a temporary name.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/note.txt", b"whole")
        ...     Path(folder, "note.txt").read_text()
        'whole'
    """
    shown = Path(path)
    try:
        file = Path(os.path.realpath(shown))
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
        try:
            with open(temporary, "xb") as stream:
                if file.exists():
                    os.chmod(temporary, file.stat().st_mode & 0o7777)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
            _sync_folder(file.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(shown, error) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, its folder made if need be; what is not finite must be None.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
        ValueError: the value holds a number that is not finite.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    make_folder(Path(path).parent)
    write_whole(path, text.encode())


def remove_torn(folder: Path) -> None:
    """Remove what writers that were killed left half written; for the owner of a folder alone."""
    for torn in folder.glob(".*.part"):
        if _TORN.fullmatch(torn.name):
            torn.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error again, naming the file; its class goes by its number, so that a PermissionError stays one."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror or error}")


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and the rename is journalled
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
