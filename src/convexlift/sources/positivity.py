"""Maps from an unconstrained latent onto non-negative weights, with their inverses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor


@final
@dataclass(frozen=True)
class PositiveMap:
    """psi, its inverse and its slope psi'."""

    name: str
    value: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def __reduce__(self) -> tuple[Callable[[str], PositiveMap], tuple[str]]:
        return positive_map, (self.name,)  # copied and pickled by name


# softplus reaches zero at minus infinity only: weights below this start here.
SOFTPLUS_FLOOR = 1e-10


def _softplus_inverse(weight: Tensor) -> Tensor:
    weight = weight.clamp_min(SOFTPLUS_FLOOR)
    return weight + torch.log(-torch.expm1(-weight))


SOFTPLUS = PositiveMap("softplus", F.softplus, _softplus_inverse, torch.sigmoid)
"""psi(v) = log(1 + e^v), psi' = sigmoid(v)."""

SQUARE = PositiveMap("square", lambda v: v.square() / 4, lambda w: 2 * w.sqrt(), lambda v: v.abs() / 2)
"""psi(v) = v^2 / 4, psi' = |v| / 2; gradient flow in v is exponentiated gradient in the weight."""


def positive_map(name: str) -> PositiveMap:
    """The map of that name, "softplus" or "square".

    Raises:
        ValueError: the name is unknown.
    """
    for candidate in (SOFTPLUS, SQUARE):
        if candidate.name == name:
            return candidate
    raise ValueError(f"unknown psi {name!r}; known: softplus, square")
