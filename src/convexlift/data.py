"""Training data: rows, simulators, the batch of every step, and the checks before anything is computed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, nn

from convexlift.arrays import is_table, tensor_of
from convexlift.checks import check_finite, name_dtype, rows_from
from convexlift.seeds import generator_of, generator_on

# What a loss receives, and what `initialise`, `settle` and `freeze` receive.
Rows = Tensor | tuple[Tensor, ...]
SomeRows = TypeVar("SomeRows", bound=Rows)
# Which rows make up a batch: two lists for `Unpaired`, None for fresh draws.
Indices = list[int] | tuple[list[int], ...] | None


@final
@dataclass(frozen=True, eq=False)
class Unpaired:
    """Two samples whose rows do not belong together: each step draws independently from `xs` and from `xt`.

    A loss receives the tuple (rows of xs, rows of xt).

    Example:
        >>> pair = Unpaired(torch.zeros(5, 2), torch.ones(7, 2))
        >>> len(pair.xs), len(pair.xt)
        (5, 7)
    """

    xs: Tensor
    xt: Tensor


@final
class Simulator:
    """Fresh rows at every step, from a function ``draw(n, generator)`` that returns n rows.

    Args:
        draw: returns an (n, ...) tensor, or a tuple of row-aligned ones, random through ``generator`` only.
        seed: of the fixed draws; the draws of training depend on the seed of `fit`.

    Example:
        >>> normal = Simulator(lambda n, generator: torch.randn(n, 2, generator=generator))
        >>> normal.fixed(5).shape, torch.equal(normal.fixed(5), normal.fixed(5))
        (torch.Size([5, 2]), True)
    """

    def __init__(self, draw: Callable[[int, torch.Generator], Rows], *, seed: int = 0) -> None:
        if not callable(draw):
            raise TypeError(f"a Simulator needs a function draw(n, generator); got {type(draw).__name__}")
        self._draw = draw
        self.seed = seed
        self._fixed: dict[tuple[int, int], Rows] = {}

    def draw(self, n: int, generator: torch.Generator) -> Rows:
        """Return n rows that depend on the generator's state only."""
        rows = readable(self._draw(n, generator), "draw(n, generator)")
        if any(not isinstance(x, Tensor) or x.ndim == 0 or len(x) != n for x in _parts(rows)):
            raise ValueError(f"draw(n, generator) must return n rows; asked for {n}, got {_shapes(rows)}")
        return rows

    def fixed(self, n: int = 20_000) -> Rows:
        """Return the n rows that stand for this simulator's distribution: the same ones at every call."""
        key = (self.seed, n)
        if key not in self._fixed:
            self._fixed[key] = self.draw(n, generator_of(self.seed, "fixed"))
        return self._fixed[key]


Data = Tensor | tuple[Tensor, ...] | Unpaired | Simulator


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one step, and their indices in the data: none for fresh draws, two sets for `Unpaired`."""

    data: Rows
    indices: tuple[Tensor, ...]

    def rows(self) -> Indices:
        lists = tuple(i.tolist() for i in self.indices)
        return lists if len(lists) > 1 else lists[0] if lists else None


@final
class Batches:
    """The batch of every step, computed from (seed, step) alone, so that a run resumes at any step.

    Each epoch goes once through a permutation that depends on (seed, epoch); its last, short batch is
    dropped. Data smaller than a batch come whole at every step. The two sides of `Unpaired` have permutations
    of their own.

    Example:
        >>> batches = Batches(torch.arange(6.0), batch_size=2, seed=0)
        >>> sorted(torch.cat([batches.at(step).data for step in range(3)]).tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self._permutations: dict[int, tuple[int, Tensor]] = {}  # side -> (epoch, its permutation)

    def at(self, step: int) -> Batch:
        """Return the batch of one step."""
        if isinstance(self.data, Simulator):
            return Batch(self.data.draw(self.batch_size, generator_of(self.seed, "draw", step)), ())
        if isinstance(self.data, Unpaired):
            i, j = self._indices(step, 0, len(self.data.xs)), self._indices(step, 1, len(self.data.xt))
            return Batch((take(self.data.xs, i), take(self.data.xt, j)), (i, j))
        i = self._indices(step, 0, count_rows(self.data))
        return Batch(take(self.data, i), (i,))

    def steps_per_epoch(self) -> int:
        """Return how many steps go once through the data (through the longer side, of two)."""
        if isinstance(self.data, Simulator):
            raise ValueError("a Simulator has no epochs; give steps")
        sides = (self.data.xs, self.data.xt) if isinstance(self.data, Unpaired) else (self.data,)
        return max(max(1, count_rows(x) // self.batch_size) for x in sides)

    def _indices(self, step: int, side: int, n: int) -> Tensor:
        epoch, position = divmod(step, max(1, n // self.batch_size))
        if self._permutations.get(side, (-1,))[0] != epoch:
            order = torch.randperm(n, generator=generator_of(self.seed, "epoch", side, epoch), device="cpu")
            self._permutations[side] = (epoch, order)
        return self._permutations[side][1][position * self.batch_size : (position + 1) * self.batch_size]


def prepare(data: Data, name: str, device: torch.device, dtype: torch.dtype | None) -> Data:
    """Return the data on a device and in a dtype if `fit` can train on them, else raise with what is wrong.

    Without a dtype they keep their own.

    Raises:
        TypeError: neither a tensor, a tuple of tensors, `Unpaired` nor a `Simulator`; or not floating-point.
        ValueError: no rows, rows that do not align, entries that are NaN or infinite, or are once cast.
    """
    data = readable(data, name)
    if not isinstance(data, Tensor | tuple | Unpaired | Simulator):
        raise TypeError(
            f"{name} must be a tensor, a tuple of row-aligned tensors, Unpaired or a Simulator; "
            f"got {type(data).__name__}"
        )
    parts = _parts(whole(data))
    if not parts:
        raise ValueError(f"{name} are an empty tuple")
    places = [""] if len(parts) == 1 else [f" (tensor {k} of {len(parts)})" for k in range(len(parts))]
    for where, x in zip(places, parts, strict=True):
        label = name + where
        if not isinstance(x, Tensor):
            raise TypeError(f"{label} must be a tensor; got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise TypeError(f"{label} must be floating-point; got {name_dtype(x.dtype)}")
        if x.ndim == 0:
            raise ValueError(f"{label} must have rows; got a scalar tensor")
        if x.numel() == 0:
            raise ValueError(f"{label} are empty: shape {tuple(x.shape)}")
    counts = [len(x) for x in parts]
    if not isinstance(data, Unpaired) and len(set(counts)) > 1:
        raise ValueError(f"{name} must have one row count; got {', '.join(map(str, counts))} rows")
    placed = place(data, device, dtype)
    for where, x, moved in zip(places, parts, _parts(whole(placed)), strict=True):
        if not bool(moved.isfinite().all()):
            _check_present(x, name + where)
            check_finite(moved, name=f"{name} in {name_dtype(moved.dtype)}{where}")
    return placed


def readable(data: Any, name: str) -> Any:
    """The data with tensors in place of arrays and data frames, and without the graphs of tensors.

    Raises:
        TypeError, ValueError: see ``tensor_of``.
    """
    if isinstance(data, Unpaired):
        return Unpaired(readable(data.xs, name), readable(data.xt, name))
    if isinstance(data, tuple):
        return tuple(readable(part, name) for part in data)
    numbers = is_table(data) or (isinstance(data, Tensor) and (data.is_floating_point() or data.is_complex()))
    return tensor_of(data, name=name) if numbers else data


def _check_present(x: Tensor, name: str) -> None:
    """Refuse missing values, with what to do."""
    try:
        check_finite(x, name=name)
    except ValueError as error:
        if not bool(x.isnan().any()):
            raise
        raise ValueError(f"{error}; convexlift.drop_missing leaves such rows out") from None


def check_alike(data: Data, validation: Data) -> None:
    """Raise ValueError unless the validation data have the form and the row shape of the training data."""
    one, other = _parts(whole(data)), _parts(whole(validation))
    if isinstance(data, Unpaired) != isinstance(validation, Unpaired) or len(one) != len(other):
        raise ValueError("validation data must have the form of the training data")
    for x, y in zip(one, other, strict=True):
        if x.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"validation rows have shape {tuple(y.shape[1:])}, training rows {tuple(x.shape[1:])}"
            )


def dtype_for(module: nn.Module, dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype in which rows reach a module that computes in ``dtype``: None for their own.

    That is so where a module ``standardises``, as the tasks do: it centres and scales rows in float64 and
    casts what comes out, so that no digit is lost to a large offset.

    Example:
        >>> import convexlift as cl
        >>> dtype_for(torch.nn.Linear(2, 1), torch.float32)
        torch.float32
        >>> dtype_for(cl.ConvexPotentialFlow([cl.ICNN(2)]), torch.float32) is None
        True
    """
    return None if getattr(module, "standardises", False) else dtype


def place_for(module: nn.Module, data: Data) -> Data:
    """Return the data where a module is, and in the dtype in which it takes rows."""
    like = next(p for p in module.parameters() if p.is_floating_point())
    return place(data, like.device, dtype_for(module, like.dtype))


def place(data: Data, device: torch.device, dtype: torch.dtype | None) -> Data:
    """Return the data on a device, in a dtype or their own; what a `Simulator` draws is moved as it comes."""

    def moved(rows: Rows) -> Rows:
        return _each(rows, lambda x: x.to(device, dtype))

    if isinstance(data, Unpaired):
        return Unpaired(data.xs.to(device, dtype), data.xt.to(device, dtype))
    if isinstance(data, Simulator):
        if all(x.device == device and x.dtype == (dtype or x.dtype) for x in _parts(data.fixed())):
            return data
        return Simulator(lambda n, generator: moved(data.draw(n, generator)), seed=data.seed)
    return moved(data)


def hold_out(rows: SomeRows, share: float, seed: int = 0) -> tuple[SomeRows, SomeRows]:
    """Return training rows and held-out rows: the last and the first of a permutation by ``seed``.

    Of n rows max(1, round(share * n)) are held out; those of a tuple stay together.

    Raises:
        ValueError: the share is not between 0 and 1, or fewer than two rows would be left to train on.

    Example:
        >>> [len(part) for part in hold_out(torch.zeros(50, 2), 0.1)]
        [45, 5]
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of rows to hold out must lie between 0 and 1; got {share}")
    rows = readable(rows, "rows")
    n = count_rows(rows)
    held = max(1, round(share * n))
    if n - held < 2:
        raise ValueError(f"{n} rows are too few: {n - held} would be left to train on")
    order = torch.randperm(n, generator=generator_on(seed=seed), device="cpu")
    return take(rows, order[held:]), take(rows, order[:held])


def count_rows(rows: Rows) -> int:
    """Return how many rows there are.

    Example:
        >>> count_rows((torch.zeros(5, 2), torch.zeros(5)))
        5
    """
    return len(_parts(rows)[0])


def take(rows: SomeRows, which: Tensor | slice) -> SomeRows:
    """Return some of the rows; the parts of a tuple stay together.

    Example:
        >>> take((torch.arange(5), torch.arange(5) ** 2), torch.tensor([3, 1]))
        (tensor([3, 1]), tensor([9, 1]))
    """
    return _each(rows, lambda x: x[which.to(x.device) if isinstance(which, Tensor) else which])


def whole(data: Data) -> Rows:
    """Return all rows in the form of one batch: the pair of `Unpaired`, the fixed draws of a `Simulator`."""
    if isinstance(data, Unpaired):
        return data.xs, data.xt
    return data.fixed() if isinstance(data, Simulator) else data


def chunks(data: Data, size: int) -> Iterator[tuple[Rows, int]]:
    """Yield the rows in order as (piece, number of rows); the two sides of `Unpaired` in one piece."""
    rows = whole(data)
    n = count_rows(rows)
    if isinstance(data, Unpaired) or n <= size:
        yield rows, n
        return
    for start in range(0, n, size):
        yield take(rows, slice(start, start + size)), min(size, n - start)


def mean_loss(
    loss: Callable[[Rows], Tensor], data: Data, size: int, weight_of: Callable[[Rows], float] | None = None
) -> float:
    """Return the mean over all rows of a loss that is itself a mean over rows, ``size`` rows at a time.

    A piece counts for ``weight_of(piece)``, by default its rows; one that counts for nothing is passed over.
    """
    with torch.no_grad():
        parts, start = list[tuple[float, float]](), 0
        for piece, n in chunks(data, size):
            weight = n if weight_of is None else weight_of(piece)
            if weight:
                with rows_from(start):
                    parts.append((loss(piece).item() * weight, weight))
            start += n
    return math.fsum(value for value, _ in parts) / math.fsum(weight for _, weight in parts)


def describe(data: Data) -> str:
    """Return one line that tells data sets apart: the kind, the shapes and a digest of the bytes."""
    digest = hashlib.sha256()
    parts = _parts(whole(data))
    for x in parts:
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    kind = type(data).__name__ if isinstance(data, Unpaired | Simulator) else "rows"
    return f"{kind} {_shapes(parts)} {digest.hexdigest()[:16]}"


def _each(rows: SomeRows, change: Callable[[Tensor], Tensor]) -> SomeRows:
    changed = tuple(map(change, _parts(rows)))
    return cast(SomeRows, changed if isinstance(rows, tuple) else changed[0])


def _parts(rows: Rows) -> tuple[Tensor, ...]:
    return rows if isinstance(rows, tuple) else (rows,)


def _shapes(rows: Rows) -> str:
    return ", ".join(
        " x ".join(map(str, x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in _parts(rows)
    )
