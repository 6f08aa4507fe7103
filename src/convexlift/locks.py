"""One owner at a time: a folder that a process writes into is locked for that time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convexlift.files import cannot_write, make_folder, remove_torn

LOCK = ".lock"


@contextmanager
def owned(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Be the one owner of a folder, made if need be; what a killed owner left half written is removed.

    The lock is the operating system's, on the file ``.lock``: it ends with its owner, however that ends. The
    file goes when the folder is given up, and says nothing where it stays.

    Raises:
        BlockingIOError: another process, or another run in this one, owns the folder.
        OSError: it cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, owned(folder):
        ...     with owned(folder):
        ...         pass
        Traceback (most recent call last):
        ...
        BlockingIOError: [Errno ...] ... is in use by another process: wait until that ends, ...
    """
    from filelock import FileLock, Timeout  # slow to import

    folder = make_folder(path)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        advice = "wait until that ends, or choose another folder"
        raise BlockingIOError(errno.EAGAIN, f"{folder} is in use by another process: {advice}") from None
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from error
    try:
        remove_torn(folder)
        yield folder
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            (folder / LOCK).unlink()  # before the release: a later owner makes its own
        lock.release()
