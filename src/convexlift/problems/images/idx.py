"""Grey images and labels in files of the idx format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_BYTES = 8  # the format's number for unsigned bytes


def read_idx(path: str | Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an idx file, gzipped or not, as an array with that many dimensions.

    The format: two zero bytes, the type (8), the number of dimensions, then each size as a big-endian 32-bit
    number, then the values. Raises a ValueError for another magic number, a damaged file, and fewer or more
    values than the header says; a FileNotFoundError when there is no file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        ...     read_idx(path, 1)
        array([7, 9], dtype=uint8)
    """
    header, magic = 4 + 4 * dimensions, bytes([0, 0, _BYTES, dimensions])
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as stream:
            content = stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or truncated") from error
    if content[:4] != magic:
        raise ValueError(
            f"{path} is no idx file of unsigned bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex() or 'nothing'} instead of {magic.hex()}"
        )
    if len(content) < header:
        raise ValueError(f"{path} is damaged or truncated")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise ValueError(
            f"{path} should hold {' x '.join(map(str, sizes))} values; it holds {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
