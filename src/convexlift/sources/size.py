"""How large a lift's body and factored readout are where nobody says: as large as the network allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch

from convexlift.sources.readout import matrix_shape

# Widths of the body that are tried, the largest first.
_WIDTHS = (32, 16, 8, 4)
# A summary of fewer features, standardised, hardly moves from batch to batch.
_LEAST_FEATURES = 8


@final
@dataclass(frozen=True)
class Size:
    """Hidden widths of the DeepSets body, and the length of its summary."""

    hidden: tuple[int, ...]
    features: int

    def parameters(self, shapes: Sequence[torch.Size], columns: int, rank: int) -> int:
        """Parameters of body and readout for tensors of these shapes.

        >>> Size((4,), 4).parameters([torch.Size([8, 3])], columns=3, rank=1)
        51
        """
        body = sum(m * n + n for m, n in pairwise((columns, *self.hidden, self.features)))
        sides = sum(sum(matrix_shape(shape)[len(shape) < 2 :]) + self.features for shape in shapes)
        return body + rank * sides


def fitting(shapes: Sequence[torch.Size], columns: int, rank: int, parameters: int) -> Size:
    """The largest size with at most half the network's parameters, or 2,000 where that is more, but never
    over twice them; the smallest size where none fits.

    So a lift has at most 1.5 times the parameters of a network of 4,000, and 3 times those of a smaller one.

    >>> fitting([torch.Size([128, 128])] * 3, columns=1, rank=1, parameters=50_000)
    Size(hidden=(32,), features=16)
    """
    allowed = min(max(parameters / 2, 2_000), 2 * parameters)
    sizes = [Size((width,), max(_LEAST_FEATURES, width // 2)) for width in _WIDTHS]
    return next((size for size in sizes if size.parameters(shapes, columns, rank) <= allowed), sizes[-1])
