"""Checks of user input, with errors that say what was expected, what came, and where."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The number of the first row of those that are looked at, where a table is looked at in parts.
_FIRST_ROW = ContextVar("first row", default=0)


@contextmanager
def rows_from(start: int) -> Iterator[None]:
    """While rows from number ``start`` on are looked at, errors name them as the whole table numbers them.

    >>> with rows_from(4096):
    ...     check_finite(torch.tensor([[0.0], [float("nan")]]))
    Traceback (most recent call last):
    ...
    ValueError: samples have NaN at row 4097, column 0
    """
    before = _FIRST_ROW.set(_FIRST_ROW.get() + start)
    try:
        yield
    finally:
        _FIRST_ROW.reset(before)


def check_samples(x: Tensor, dim: int, dtype: torch.dtype | None = None, *, name: str = "samples") -> Tensor:
    """Return ``x`` if it is an (N, dim) float tensor, else raise.

    Args:
        x: the tensor to look at; (N, dim), N may be zero.
        dim: expected number of columns.
        dtype: expected dtype; any floating dtype when omitted.
        name: what the rows are called in the message.

    Raises:
        TypeError: ``x`` is not a tensor, or its dtype is another one.
        ValueError: the shape is wrong.

    >>> check_samples(torch.zeros(5, 20), 21)
    Traceback (most recent call last):
    ...
    ValueError: expected (N, 21) samples; got (5, 20)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor of {name}; got {type(x).__name__}")
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"expected (N, {dim}) {name}; got {_shape(x)}")
    if not x.dtype.is_floating_point or (dtype is not None and x.dtype != dtype):
        wanted = "floating-point" if dtype is None else name_dtype(dtype)
        raise TypeError(f"expected {wanted} {name}; got {name_dtype(x.dtype)}")
    return x


def check_finite(x: Tensor, *, name: str = "samples") -> Tensor:
    """Return ``x`` if every entry is finite, else raise with the first bad row and column.

    Raises:
        ValueError: an entry is NaN or infinite.

    >>> check_finite(torch.tensor([[0.0, 1.0], [2.0, float("nan")]]))
    Traceback (most recent call last):
    ...
    ValueError: samples have NaN at row 1, column 1
    """
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        where = torch.nonzero(~finite)[0].tolist()
        kind = "NaN" if bool(torch.isnan(x[tuple(where)])) else "an infinity"
        place = f"row {_FIRST_ROW.get() + where[0]}" + (f", column {where[1]}" if len(where) > 1 else "")
        count = int((~finite).reshape(len(x), -1).any(1).sum())
        more = f" ({count} of {len(x)} rows have NaN or infinities)" if count > 1 else ""
        raise ValueError(f"{name} have {kind} at {place}{more}")
    return x


def plain(value: Any) -> Any:
    """A number of NumPy's, or a NumPy array that is one, as Python's own; all else as it is.

    >>> plain(np.float32(0.5)), plain(np.array(3)), plain(np.bool_(True)), plain("cosine")
    (0.5, 3, True, 'cosine')
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return the value as an int if it is a whole number of at least ``least``, else raise.

    Raises:
        TypeError: it is not a whole number; True and False are none.
        ValueError: it is smaller.

    >>> check_count("steps", np.int64(3))
    3
    >>> check_count("steps", 1.5)
    Traceback (most recent call last):
    ...
    TypeError: steps must be an int; got 1.5
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}")
    return int(number)


def check_flag(name: str, value: Any) -> bool:
    """Return the value as a bool if it is True or False, else raise.

    Raises:
        TypeError: it is something else.

    >>> check_flag("whiten", "no")
    Traceback (most recent call last):
    ...
    TypeError: whiten must be True or False; got 'no'
    """
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return flag


def is_number(value: Any) -> bool:
    """Whether the value is a real number, of Python or NumPy; True and False are none.

    >>> is_number(np.float32(0.5)), is_number(True), is_number("0.5")
    (True, False, False)
    """
    number = plain(value)
    return isinstance(number, Real) and not isinstance(number, bool)


def check_draws(n: Any) -> int:
    """Return ``n``, a number of samples to draw, if it is a whole one that is not negative, else raise.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is negative.

    >>> check_draws(-1)
    Traceback (most recent call last):
    ...
    ValueError: cannot draw -1 samples
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"expected a whole number of samples; got {n!r}") from None
    if count < 0:
        raise ValueError(f"cannot draw {n} samples")
    return count


def check_device(device: torch.device | str) -> torch.device:
    """Return the device, if torch knows it and it is here, else raise.

    Raises:
        ValueError: it is not.

    >>> check_device("abacus")
    Traceback (most recent call last):
    ...
    ValueError: device 'abacus' is unknown or not available
    """
    try:
        return torch.empty(0, dtype=torch.float32, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' is unknown or not available") from error


def may_branch(*tensors: Tensor) -> bool:
    """Whether Python may look at values here: not under ``torch.compile``, ``export`` or ``torch.func``.

    >>> may_branch(torch.zeros(2))
    True
    """
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not torch.compiler.is_compiling() and not any(map(wrapped, tensors))


def name_rows(failed: Tensor) -> str:
    """The rows of a boolean mask (N,) in words, the first five by number.

    >>> name_rows(torch.tensor([False, True, True]))
    '2 of 3 rows (1, 2)'
    """
    rows = (_FIRST_ROW.get() + failed.nonzero().flatten()).tolist()
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"{len(rows)} of {len(failed)} rows ({shown})"


def name_dtype(dtype: torch.dtype) -> str:
    """The dtype as users call it.

    >>> name_dtype(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


def _shape(x: Tensor) -> str:
    return f"({', '.join(str(n) for n in x.shape)}{',' if x.ndim == 1 else ''})"
