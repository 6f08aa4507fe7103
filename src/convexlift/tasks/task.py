"""What the tasks share: their frame, checks of blocks and batches, and passes over whole data sets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from convexlift.architectures import ICNN, ConvICNN, PartialPotential, Potential
from convexlift.checks import check_finite, check_samples, may_branch
from convexlift.sources import is_lifted
from convexlift.tasks.standardise import Standardiser, Whitener

P = TypeVar("P", Potential, PartialPotential)

# Rows mapped at a time when a whole data set passes through a block.
_CHUNK = 16_384
# Norms and lifts start from at most this many training rows, so that a lift's initial summary is that of
# exactly the rows its first weights are used on.
_START_ROWS = 4096


class Task(nn.Module):
    """A loss on potentials, over rows that a standardiser brings to one scale.

    Attributes:
        dim: d, the number of columns of samples or inputs.
        standardiser: of these columns, fitted by ``initialise``.
    """

    dim: int
    standardiser: Standardiser | Whitener

    @torch.no_grad()
    def preflight(self, rows: Tensor, names: Sequence[str] | None = None) -> None:
        """Refuse rows (N, d) that the task cannot start from; nothing is changed.

        For whoever writes something before training begins. Rows and columns are numbered as given: check a
        whole table, and once more the rows of it to train on. ``initialise`` checks its own rows.

        Args:
            rows: samples or inputs, of any floating dtype.
            names: of the columns, for messages; a constant column goes by its number without them.

        Raises:
            ValueError: rows of another width or with NaN or infinite entries, fewer than two, a constant
                column, and whatever else ``initialise`` refuses.
            TypeError: not a tensor of floating-point numbers.

        Example:
            >>> import convexlift as cl
            >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,))])
            >>> flow.preflight(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), ["a", "b"])
            Traceback (most recent call last):
            ...
            ValueError: column 'b' is constant (every value is 2)
        """
        name = self.standardiser.name
        check_finite(check_samples(rows, self.dim, name=name), name=name)
        if len(rows) < 2:
            count = "one row" if len(rows) else "no rows"
            raise ValueError(f"the table has {count}; training needs at least two")
        constant = (rows == rows[0]).all(0)
        if bool(constant.any()):
            column = int(constant.nonzero()[0])
            called = column if names is None else f"'{names[column]}'"
            raise ValueError(f"column {called} is constant (every value is {float(rows[0, column]):g})")
        self.check_entries(rows)
        copy.deepcopy(self.standardiser).fit(rows)

    def check_entries(self, rows: Tensor) -> None:
        """Refuse finite entries that no model of the task would have; here none is refused."""


def check_block(block: nn.Module) -> ICNN | ConvICNN:
    """The architecture of a block, which is an ICNN (convolutional or not) or a weight source of one.

    Raises:
        TypeError: it is neither.

    >>> check_block(nn.Linear(2, 1))
    Traceback (most recent call last):
    ...
    TypeError: expected an ICNN or a weight source of one; got Linear
    """
    architecture = block if isinstance(block, ICNN | ConvICNN) else getattr(block, "architecture", None)
    if not isinstance(architecture, ICNN | ConvICNN):
        inside = f" of {type(architecture).__name__}" if isinstance(architecture, nn.Module) else ""
        raise TypeError(f"expected an ICNN or a weight source of one; got {type(block).__name__}{inside}")
    return architecture


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


def freeze_block(block: nn.Module, data: Tensor | None) -> ICNN | ConvICNN:
    """The plain ICNN of a block, its weights emitted from training data as the block sees them."""
    return block.freeze(data)  # type: ignore[operator]


def initialise_block(block: nn.Module, data: Tensor) -> None:
    """Data-dependent start of a weight source; a bare ICNN has none."""
    if not isinstance(block, ICNN | ConvICNN):
        block.initialise(data)  # type: ignore[operator]


def settle_block(block: nn.Module, data: Tensor) -> None:
    """Fix a weight source's summary to that of the training data; a bare ICNN has none."""
    if not isinstance(block, ICNN | ConvICNN):
        block.settle(data)  # type: ignore[operator]


def set_block_progress(block: nn.Module, t: float) -> None:
    """Tell a weight source how far training is; a bare ICNN does not ask."""
    if not isinstance(block, ICNN | ConvICNN):
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
