"""What rounding does to a callable of unknown precision, seen in its values along lines."""

from __future__ import annotations

import torch
from torch import Tensor

# Points of a line, as the intervals between them; a power of two, so that the middle of a chord is a point.
INTERVALS = 256
# Differences of this order leave noise alone of values that are smooth, and magnify it so much.
_ORDER = 4
_MAGNIFIED = 70**0.5
# The noise of a line is the largest of so many pieces, of each the median: kinks, few of them, do not count.
_PIECES = 7
# Where more differences than this share vanish exactly, the values are steps.
_STEPS = 0.25


def shake(points: Tensor, seed: int = 0) -> Tensor:
    """Points moved entry by entry by up to two units in the last place or so, in a fixed pattern."""
    generator = torch.Generator().manual_seed(seed)
    part = 2 * torch.rand(points.shape, generator=generator, dtype=torch.float64, device="cpu").to(points) - 1
    return points * (1 + 2 * torch.finfo(points.dtype).eps * part)


def noise(values: Tensor, shaken: Tensor) -> Tensor:
    """The size of what rounding does to values along lines, (L, INTERVALS + 1) -> (L,), in any precision.

    The largest of four: a few units in the last place of the values themselves; how far they move when their
    points are shaken by a unit in theirs, (L, INTERVALS + 1); fourth differences, which leave rounding alone
    of a smooth function; and the height of steps where many values equal the one before, as they do after a
    large number was added and taken away again.

    Source: Moré and Wild, "Estimating computational noise", SIAM Journal on Scientific Computing 2011.

    Example:
        >>> place = torch.linspace(0, 1, INTERVALS + 1, dtype=torch.float64)
        >>> lines = torch.stack([place.square(), (place.square() + 1e6).float() - 1e6])
        >>> [f"{size:.0e}" for size in noise(lines, lines).tolist()]
        ['4e-16', '6e-02']
    """
    steps = values.diff(dim=1).abs()
    smooth = values.diff(n=_ORDER, dim=1).abs() / _MAGNIFIED
    pieces = smooth[:, : smooth.shape[1] // _PIECES * _PIECES].unflatten(1, (_PIECES, -1))
    rough = pieces.median(2).values.amax(1)
    height = torch.where(is_stepped(values), steps.amax(1), 0.0)
    last_places = 2 * torch.finfo(values.dtype).eps * values.abs().amax(1)
    return torch.stack([rough, height, last_places, (shaken - values).abs().amax(1)]).amax(0)


def is_stepped(values: Tensor) -> Tensor:
    """Whether so many values along a line equal the one before that they are steps, (L, n) -> (L,)."""
    return (values.diff(dim=1) == 0).double().mean(1) > _STEPS


def concavity(values: Tensor) -> Tensor:
    """How far values along lines, (L, INTERVALS + 1), lie above a chord at most, (L,).

    The chords are all whose half is a power of two intervals.

    Example:
        >>> place = torch.linspace(-1, 1, INTERVALS + 1)
        >>> [round(gap, 3) for gap in concavity(torch.stack([place.square(), -place.abs()])).tolist()]
        [-0.0, 1.0]
    """
    halves = [2**power for power in range((INTERVALS // 2).bit_length())]
    gaps = [
        (values[:, half:-half] - (values[:, 2 * half :] + values[:, : -2 * half]) / 2).amax(1)
        for half in halves
    ]
    return torch.stack(gaps).amax(0)


def fall(slopes: Tensor) -> Tensor:
    """How far slopes along lines fall at most from an earlier point to a later one, (L, n) -> (L,)."""
    return (slopes.cummax(1).values - slopes).amax(1)
