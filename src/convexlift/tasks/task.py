"""What the tasks share: checks of their blocks and batches, and passes over whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from convexlift.architectures import Architecture, PartialPotential, Potential
from convexlift.architectures.base import architecture_of
from convexlift.checks import check_finite, check_samples, may_branch
from convexlift.sources import is_lifted

P = TypeVar("P", Potential, PartialPotential)

# Rows mapped at a time when a whole data set passes through a block.
_CHUNK = 16_384
# Norms and lifts start from at most this many training rows, so that a lift's initial summary is that of
# exactly the rows its first weights are used on.
_START_ROWS = 4096


def check_block(block: nn.Module) -> Architecture[Potential]:
    """The architecture of a block, which is a network of x alone, like an ICNN, or a weight source of one.

    Raises:
        TypeError: it is neither.

    >>> check_block(nn.Linear(2, 1))
    Traceback (most recent call last):
    ...
    TypeError: expected an ICNN or a weight source of one; got Linear
    """
    return architecture_of(block)


def check_rows(x: Tensor, dim: int, dtype: torch.dtype, name: str = "samples") -> Tensor:
    """x if it is an (N, dim) tensor of that dtype with finite entries; see ``convexlift.checks``."""
    check_samples(x, dim, dtype, name=name)
    if not may_branch(x):
        return x  # entries cannot be looked at there
    return check_finite(x, name=name)


def require_weights(module: nn.Module, batch: object | None) -> None:
    """Refuse to evaluate a module that holds an unfrozen lift unless a batch is there to emit from.

    Raises:
        ValueError: it does, and there is none.
    """
    if batch is None and is_lifted(module):
        raise ValueError("an unfrozen lift has no weights of its own: freeze on training data or pass batch=")


def emit(block: nn.Module, batch: Tensor | None) -> Potential:
    """The potential of an ICNN or a weight source."""
    return block.emit(batch)  # type: ignore[operator]


def in_float64(potential: P) -> P:
    """The same function with its tensors in float64."""
    return replace(potential, tensors={name: t.double() for name, t in potential.tensors.items()})


def freeze_block(block: nn.Module, data: Tensor | None) -> Architecture[Potential]:
    """The plain ICNN of a block, its weights emitted from training data as the block sees them."""
    return block.freeze(data)  # type: ignore[operator]


def initialise_block(block: nn.Module, data: Tensor) -> None:
    """Data-dependent start of a weight source; a bare ICNN has none."""
    block.initialise(data)  # type: ignore[operator]


def settle_block(block: nn.Module, data: Tensor) -> None:
    """Fix a weight source's summary to that of the training data; a bare ICNN has none."""
    block.settle(data)  # type: ignore[operator]


def set_block_progress(block: nn.Module, t: float) -> None:
    """Tell a weight source how far training is; a bare ICNN does not ask."""
    block.set_progress(t)  # type: ignore[operator]


def latest_settling(blocks: Iterable[nn.Module]) -> float | None:
    """The latest fraction of training at which a block must be settled; None when none asks for it."""
    times = [block.settle_at for block in blocks if getattr(block, "settle_at", None) is not None]
    return float(max(times)) if times else None  # type: ignore[arg-type, type-var]


def start_rows(data: Tensor) -> Tensor:
    """At most 4096 rows, evenly spaced, from which norms and lifts start.

    >>> start_rows(torch.zeros(10_000, 2)).shape
    torch.Size([3334, 2])
    """
    return data[:: -(-len(data) // _START_ROWS)] if len(data) else data


@torch.no_grad()
def map_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int = _CHUNK) -> Tensor:
    """function(x) without gradient, so many rows at a time that a large data set fits.

    >>> map_rows(torch.square, torch.tensor([[2.0], [3.0]]))
    tensor([[4.],
            [9.]])
    """
    return torch.cat([function(chunk) for chunk in x.split(rows)])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of a module in eval mode for a while, so that no running statistic moves."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
