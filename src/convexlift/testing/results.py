"""What the checks find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

Function = Callable[[Tensor], Tensor]


class CheckFailed(AssertionError):
    """A check found what it looks for; ``result`` holds the finding.

    >>> import torch
    >>> from convexlift.testing import check_nonnegative
    >>> try:
    ...     check_nonnegative({"w": torch.tensor([0.5, -0.25])})
    ... except CheckFailed as failure:
    ...     failure.result.index
    (1,)
    """

    def __init__(self, message: str, result: ConvexityResult | DerivativesResult | NonnegativeResult) -> None:
        super().__init__(message)
        self.result = result


@final
@dataclass(frozen=True)
class NonnegativeResult:
    """The smallest constrained weight.

    Attributes:
        nonnegative: no weight is negative or NaN.
        smallest: the smallest weight, or NaN if there is one.
        name: the tensor that holds it.
        index: where in that tensor.
        checked: how many weights were looked at.

    >>> import torch
    >>> from convexlift.testing import check_nonnegative
    >>> check_nonnegative({"w": torch.tensor([0.5, 0.25])})
    NonnegativeResult(nonnegative=True, smallest=0.25, name='w', index=(1,), checked=2)
    """

    nonnegative: bool
    smallest: float
    name: str
    index: tuple[int, ...]
    checked: int


@final
@dataclass(frozen=True, eq=False)
class ConvexityResult:
    """The smallest curvature that the search met.

    Attributes:
        convex: no violation was found (which proves nothing: the search looks at finitely many places).
        worst: the smallest v'Hv, or mean curvature along a segment from x - h v to x + h v: negative when
            ``convex`` is false; otherwise what rounding explains counts as zero, and it is not negative.
        point: x, (d,).
        direction: v, (d,), of length one.
        length: h; zero when ``worst`` is v'Hv at x.

    >>> from convexlift.testing import check_convex
    >>> result = check_convex(lambda x: x.square().sum(1), dim=2)
    >>> result.convex, result.worst
    (True, 2.00)
    """

    convex: bool
    worst: float
    point: Tensor
    direction: Tensor
    length: float


@final
@dataclass(frozen=True, eq=False)
class DerivativesResult:
    """Errors of closed forms against automatic differentiation, relative to each derivative's largest entry.

    Attributes:
        errors: the worst error by name of derivative.
        worst: the name with the largest error.
        point: where, (d,).

    >>> from convexlift.testing import check_derivatives
    >>> result = check_derivatives(lambda x: x.square().sum(1), gradient=lambda x: 2 * x, dim=2)
    >>> result.errors["gradient"] < 1e-15
    True
    """

    errors: Mapping[str, float]
    worst: str
    point: Tensor
