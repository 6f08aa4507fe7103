"""Whether what was derived from tensors still holds: it does while they are what they were."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor


@final
class Origin:
    """What some tensors are now, to tell later whether they have changed, in whatever way.

    A copy of them, or the same numbers loaded from a file, count as the same; other numbers, or the same ones
    in another dtype, do not.

    Example:
        >>> weight = torch.ones(3)
        >>> origin = Origin([weight])
        >>> origin.holds([weight]), origin.holds([weight.clone()]), origin.holds([weight.double()])
        (True, True, False)
        >>> weight.data[0] = 2.0
        >>> origin.holds([weight])
        False
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        found = list(tensors)
        self._marks, self._digest = _marks(found), _digest(found)

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these tensors are what those were."""
        found = list(tensors)
        marks = _marks(found)
        if marks != self._marks:
            if _digest(found) != self._digest:
                return False
            self._marks = marks  # copied or moved: the next look is quick again
        return True


def _marks(tensors: list[Tensor]) -> tuple[object, ...]:
    """What tells quickly: where they lie, how often they were written to, and their norms, since writes
    through ``data`` are not counted."""
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm([t.detach() for t in tensors])).tolist() if tensors else []
    versions = [0 if t.is_inference() else t._version for t in tensors]
    return [t.data_ptr() for t in tensors], versions, norms


def _digest(tensors: list[Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    found = []
    for t in tensors:
        numbers: Any = t.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        found.append((str(t.dtype), tuple(t.shape), zlib.crc32(numbers)))
    return found
