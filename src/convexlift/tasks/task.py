"""What the tasks share: their frame, checks of blocks and batches, and passes over whole data sets."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.architectures import PartialPotential, Potential
from convexlift.checks import check_finite, check_samples, may_branch, rows_from
from convexlift.data import count_rows
from convexlift.defaults import ANY, Defaults
from convexlift.screening import Finding, Part, Role, screen, tell
from convexlift.sources import is_lifted
from convexlift.tasks.standardise import Affine, Principal, Standardiser, Whitener

P = TypeVar("P", Potential, PartialPotential)

# Rows mapped at a time when a whole data set passes through a block.
_CHUNK = 16_384
# Norms and lifts start from at most this many training rows, so that a lift's initial summary is that of
# exactly the rows its first weights are used on.
_START_ROWS = 4096
# Data this many deviations away, or wider or narrower by this factor, are not those of the start.
_OTHER_MEAN, _OTHER_SPREAD = 0.5, 1.5


@guard_methods
class Task(nn.Module):
    """The frame of a task: a loss on the potentials that blocks emit, of rows on one scale.

    Rows may be of any floating dtype: they are centred and scaled in float64, and cast to the dtype of the
    blocks after that. What comes back in the user's units has the widest dtype of the blocks, of the rows
    given and of the rows fitted on: float32 rows and blocks give float32, float64 rows give float64.

    A subclass sets what is listed here and has a ``loss``. What is its own beside that (rows that are pairs,
    several blocks, what a frozen task keeps) it says in the methods that begin with an underscore.

    Attributes:
        dim: d, the number of columns of samples or inputs.
        block: an architecture or a weight source of one; a flow has ``blocks``.
        standardiser: of the columns, fitted by ``initialise``.
        columns: names of the columns that the task reads, for ``save``, or None: ``{"x": ["a", "b"]}`` for
            samples or inputs, likewise "y" for a target, "context" and "weights". In place of names stand
            numbers, from 1, for columns chosen in a table without names.
        defaults: the settings that ``fit`` takes where it is told none.
    """

    # What the parts of training rows are, where they are a tuple: what has no role is not looked at.
    roles: ClassVar[tuple[Role | None, ...]] = ("samples", None)
    dim: int
    block: Any
    defaults: ClassVar[Defaults] = ANY
    standardiser: Standardiser | Whitener | Principal
    columns: dict[str, list[str] | list[int]] | None = None
    #: rows reach the task as they are: it casts them itself, when they are on one scale
    standardises = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        guard_methods(cls)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the blocks, in which the task computes."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the task is."""
        return self.standardiser.mean.device

    @property
    def settle_at(self) -> float | None:
        """The fraction of training at which ``settle`` is due, for the latest block; None without a lift."""
        times = [getattr(block, "settle_at", None) for block in self._blocks()]
        return max((float(time) for time in times if time is not None), default=None)

    def loss(self, batch: Any, emit_from: Any = None) -> Tensor:
        """The mean loss of a batch, a scalar. Lifts emit from the batch itself, or from ``emit_from``."""
        raise NotImplementedError

    def weight_of(self, batch: Any) -> float:
        """What a batch counts for in a mean of losses: its rows, or the sum of their weights."""
        return float(count_rows(batch))

    @torch.no_grad()
    def preflight(
        self,
        rows: Any,
        names: Sequence[str] | None = None,
        *,
        allow: Iterable[str] = (),
        where: Callable[[int], str] | None = None,
    ) -> None:
        """Refuse rows that the task cannot start from, and warn of doubtful ones; nothing is changed.

        For whoever writes something before training begins. Rows and columns are numbered as given: check a
        whole table, and once more the rows of it to train on. ``initialise`` checks its own rows.

        Args:
            rows: samples or inputs (N, d), of any floating dtype, or a tuple as ``fit`` takes it.
            names: of the d columns, for messages; they go by their numbers without them.
            allow: checks of data to leave out, see ``convexlift.screening.screen``.
            where: names a row in words, "row 7" for the eighth by default.

        Warns:
            DataWarning: what ``convexlift.screening.screen`` finds doubtful.

        Raises:
            ValueError: rows of another width or with NaN or infinite entries, fewer than two, a constant
                column, what makes a result meaningless, and whatever else ``initialise`` refuses.
            TypeError: not a tensor of floating-point numbers.

        Example:
            >>> import convexlift as cl
            >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,))])
            >>> flow.preflight(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), ["a", "b"])
            Traceback (most recent call last):
            ...
            ValueError: column 'b' is constant (every value is 2)
        """
        data, rows = rows, rows[0] if isinstance(rows, tuple) else rows
        name = self.standardiser.name
        check_finite(check_samples(rows, self.dim, name=name), name=name)
        if len(rows) < 2:
            count = "one row" if len(rows) else "no rows"
            raise ValueError(f"the table has {count}; training needs at least two")
        constant = (rows == rows[0]).all(0)
        if bool(constant.any()):
            column = int(constant.nonzero()[0])
            called = column if names is None else f"'{names[column]}'"
            raise ValueError(f"column {called} is constant (every value is {float(rows[0, column]):zg})")
        self.check_entries(rows)
        copy.deepcopy(self.standardiser).fit(rows)
        tell(self.examine(data, names=names, allow=allow), where)

    @torch.no_grad()
    def examine(
        self,
        data: Any,
        validation: Any = None,
        *,
        names: Sequence[str] | None = None,
        allow: Iterable[str] = (),
    ) -> list[Finding]:
        """What is doubtful about finite training data, see ``convexlift.screening.screen``."""
        held = None if validation is None else self._parts(validation, names)
        return screen(self._parts(data, names), validation=held, allow=allow)

    def _parts(self, data: Any, names: Sequence[str] | None) -> list[Part]:
        tensors = data if isinstance(data, tuple) else (data,)
        return [
            Part(rows[:, None] if rows.ndim == 1 else rows, role, None if k else names)
            for k, (rows, role) in enumerate(zip(tensors, self.roles, strict=False))
            if role is not None
        ]

    def check_entries(self, rows: Tensor) -> None:
        """Refuse finite entries that no model of the task would have; here none is refused."""

    @torch.no_grad()
    def initialise(self, data: Any) -> None:
        """Fit the standardisers to training data, and start the blocks from it. Once only.

        Later calls change nothing. They warn (``UserWarning``) of data on another scale, for which a new task
        does better.

        Raises:
            ValueError: see ``Standardiser.fit`` and ``Whitener.fit``, and the class.
            TypeError: data of another form or dtype.
        """
        if bool(self.standardiser.fitted):
            self._compare(data)
            return
        start = self._fit(data)
        with evaluating(self):
            self._start(start)

    @torch.no_grad()
    def freeze(self, data: Any = None) -> Self:
        """The same of plain architectures, in eval mode and asking for no gradient: one function or density.

        Each lift emits from the training data as the frozen blocks before it map them. Without lifts no data
        are needed.

        Raises:
            ValueError: a lift without data, unless it has settled.
        """
        with evaluating(self):
            rows = None if data is None else self._rows(data)
            held, plain = self._plain(rows)
            frozen = copy.deepcopy(self, {id(held): plain})
            self._complete(frozen, rows)
        return frozen.requires_grad_(False).eval()

    @torch.no_grad()
    def settle(self, data: Any) -> None:
        """Fix every lift's summary to that of the training data, as the blocks before it map them."""
        if self.settle_at is not None:
            with evaluating(self):
                self._settle(self._rows(data))

    def set_progress(self, t: float) -> None:
        """Tell the blocks how far training is, t in [0, 1]."""
        for block in self._blocks():
            block.set_progress(t)

    def block_inputs(self, batch: Any) -> list[Tensor]:
        """The points that each block sees when lifts emit from this batch, (N, columns)."""
        return [self._rows(batch)]

    def _compare(self, data: Any) -> None:
        """Warn of data that lie on another scale than those that the task was initialised on."""
        for name, z, weights in self._scaled(data):
            share = torch.full_like(z[:, 0], 1 / len(z)) if weights is None else weights / weights.sum()
            mean = share @ z
            spread = (share @ (z - mean).square()).sqrt()
            other = (mean.abs() > _OTHER_MEAN) | (spread.log().abs() > math.log(_OTHER_SPREAD))
            if bool(other.any()):
                column = int(other.nonzero()[0])
                away, wide = float(mean[column].abs()), float(spread[column])
                warnings.warn(
                    f"this task was initialised on other data: column {column} of the {name} is now "
                    f"{away:.3g} deviations away and {wide:.3g} times as wide; its scales stay as they are: "
                    "make a new task to start anew",
                    stacklevel=2,
                )

    def _scaled(self, data: Any) -> list[tuple[str, Tensor, Tensor | None]]:
        """What the standardisers make of data, with a name, (N, columns), and weights (N,)."""
        return [(self.standardiser.name, self._rows(data), None)]

    def _blocks(self) -> list[Any]:
        return [self.block]

    def _rows(self, data: Any, name: str | None = None) -> Tensor:
        """What the first block sees of a batch: its samples or inputs, checked and standardised."""
        return self.standardiser(check_rows(data, self.dim, name or self.standardiser.name), self.dtype)

    def _fit(self, data: Any) -> Tensor:
        """Fit the standardisers; what the first block sees of the rows to start from."""
        check_rows(data, self.dim, self.standardiser.name)
        return self.standardiser.fit(data)(start_rows(data), self.dtype)

    def _start(self, x: Tensor) -> None:
        """Start the blocks from such rows."""
        self.block.initialise(x)

    def _settle(self, x: Tensor) -> None:
        self.block.settle(x)

    def _plain(self, x: Tensor | None) -> tuple[nn.Module, nn.Module]:
        """The module that holds the blocks, and the frozen one for its place."""
        return self.block, self.block.freeze(x)

    def _complete(self, frozen: Self, x: Tensor | None) -> None:
        """Set what a frozen task, otherwise a copy, has of its own."""

    def _resolving(self, *rows: Tensor) -> torch.dtype:
        """The dtype of what comes back in the user's units, beside such rows if there are any."""
        fitted_on = [part.wide for part in self.children() if isinstance(part, Affine)]
        return widest(self.dtype, *(x.dtype for x in (*rows, *fitted_on) if x is not None))

    def _require_weights(self, batch: object | None) -> None:
        """Refuse to evaluate unfrozen lifts unless a batch is there to emit from."""
        if batch is None and is_lifted(self):
            raise ValueError(
                "an unfrozen lift has no weights of its own: freeze on training data or pass batch="
            )

    def _potential(self, batch: Any) -> Any:
        """The potential of a task of one block, to evaluate."""
        self._require_weights(batch)
        with evaluating(self):
            rows = None if batch is None else self._rows(batch, f"{self.standardiser.name} for the lift")
            return self.block.emit(rows)

    def _pair(
        self, data: object, form: str, width: int | None, name: str, called: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples or inputs (N, d) and what belongs to each, (N, width), or (N,) for None, checked."""
        if not isinstance(data, tuple) or len(data) != 2:
            got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
            raise TypeError(f"expected {form}; got {got}")
        x, y = data
        check_rows(x, self.dim, called or self.standardiser.name)
        if width is None and isinstance(y, Tensor) and y.ndim == 1:
            y = y[:, None]
        check_rows(y, width or 1, name)
        if len(x) != len(y):
            raise ValueError(
                f"expected as many {name} as {self.standardiser.name}; got {len(y)} and {len(x)}"
            )
        return x, y[:, 0] if width is None else y


def check_rows(x: Tensor, dim: int, name: str = "samples") -> Tensor:
    """x if it is an (N, dim) floating-point tensor with finite entries; see ``convexlift.checks``."""
    check_samples(x, dim, name=name)
    if not may_branch(x):
        return x  # entries cannot be looked at there
    return check_finite(x, name=name)


def widest(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to which all of these can be cast without loss.

    >>> widest(torch.float32, torch.float64)
    torch.float64
    """
    return reduce(torch.promote_types, dtypes)


def in_float64(potential: P) -> P:
    """The same function with its tensors in float64."""
    return replace(potential, tensors={name: t.double() for name, t in potential.tensors.items()})


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
    if len(x) <= rows or not may_branch(x):
        return torch.cat([function(chunk) for chunk in x.split(rows)])
    parts = []
    for start in range(0, len(x), rows):
        with rows_from(start):
            parts.append(function(x[start : start + rows]))
    return torch.cat(parts)


@contextmanager
def columns_called(called: str) -> Iterator[None]:
    """Name a column in an error by what it is: "column 0 is constant" may be of inputs, contexts or targets.

    >>> with columns_called("the target"):
    ...     raise ValueError("column 0 is constant (every value is 1): remove it")
    Traceback (most recent call last):
    ...
    ValueError: the target is constant (every value is 1)
    """
    try:
        yield
    except ValueError as error:
        named = re.sub(r"^column (\d+)", lambda match: called.format(match[1]), str(error))
        raise ValueError(named.removesuffix(": remove it")) from None


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
