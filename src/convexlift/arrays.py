"""Tensors of whatever holds a table of numbers: arrays of every kind, data frames, lists, tensors."""

from __future__ import annotations

from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexlift.checks import name_dtype

_KINDS = {"c": "complex numbers", "U": "text", "S": "text", "M": "dates", "m": "time spans", "V": "records"}
_KINDS["T"] = "text"


def tensor_of(values: Any, *, name: str = "values") -> Tensor:
    """The numbers in a tensor of their own, float32 where they are so and float64 otherwise, without a graph.

    Strides, byte order, write protection and mapping to a file do not matter. Whole numbers and truth values
    become float64; what a data frame holds as missing becomes NaN. A tensor keeps its device and its floating
    dtype.

    Args:
        values: a tensor, an array, a data frame, or (nested) lists of numbers.
        name: what they are called in errors.

    Raises:
        TypeError: they are complex, text, dates, records or other objects, or sparse.
        ValueError: entries are masked, or rows differ in length.

    Example:
        >>> tensor_of(np.arange(6.0).reshape(3, 2)[::-1])
        tensor([[4., 5.],
                [2., 3.],
                [0., 1.]], dtype=torch.float64)
        >>> tensor_of(np.ma.masked_equal([1.0, 2.0], 2.0))
        Traceback (most recent call last):
        ...
        ValueError: values have masked entries (the first at 1): fill or drop them
    """
    if isinstance(values, Tensor):
        return _whole(values, name)
    return torch.from_numpy(array_of(values, name=name))


def array_of(values: Any, *, name: str = "values") -> NDArray[Any]:
    """The numbers in an array of their own, as ``tensor_of`` has them in a tensor; see there."""
    refuse(values, name=name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are no table: their rows differ in length") from error
    if array.dtype.kind in _KINDS:
        raise TypeError(f"{name} are {_KINDS[array.dtype.kind]} ({array.dtype}): give numbers")
    if array.dtype.kind == "O":
        array = _of_objects(array, name)
    native = array.dtype.newbyteorder("=")
    kept = native in (np.float32, np.float64)
    with np.errstate(over="ignore"):  # an extended number may be infinite here, which its check will say
        return np.array(array, dtype=native if kept else np.float64, order="C")


def is_table(values: object) -> bool:
    """Whether this is an array, a column or a data frame, rather than a list or something else.

    >>> is_table(np.zeros(3)), is_table([0.0]), is_table(torch.zeros(3))
    (True, False, False)
    """
    return not isinstance(values, Tensor) and (hasattr(values, "__array__") or _is_sparse(values))


def refuse(values: Any, *, name: str = "values") -> None:
    """Raise, as ``tensor_of`` does, for what NumPy would read without its mask or not at all.

    Raises:
        TypeError: sparse matrices.
        ValueError: masked entries.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        place = ", ".join(map(str, np.argwhere(np.ma.getmaskarray(values))[0].tolist()))
        raise ValueError(f"{name} have masked entries (the first at {place}): fill or drop them")
    if _is_sparse(values):
        raise TypeError(f"{name} are sparse: pass toarray() of them")


def _of_objects(array: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Numbers that came as Python objects; what a data frame holds as missing becomes NaN."""
    out = np.empty(array.shape, dtype=np.float64)
    for place, value in np.ndenumerate(array):
        if value is None or type(value).__name__ == "NAType":
            out[place] = np.nan
        elif isinstance(value, Real | Decimal | np.bool_):
            out[place] = float(value)
        else:
            where = ", ".join(map(str, place))
            raise TypeError(f"{name} hold {value!r} at {where or 0}: give numbers")
    return out


def _whole(x: Tensor, name: str) -> Tensor:
    if x.is_complex():
        raise TypeError(f"{name} are complex numbers ({name_dtype(x.dtype)}): give numbers")
    if x.is_nested or x.layout not in (torch.strided, torch._mkldnn):  # type: ignore[attr-defined]
        raise TypeError(f"{name} are sparse: pass to_dense() of them")
    if x.device.type == "meta":
        raise ValueError(f"{name} are on the device 'meta', which holds no numbers")
    x = x.detach().as_subclass(Tensor)
    x = x.to_dense() if x.layout != torch.strided else x.resolve_neg()
    x = x if x.is_floating_point() else x.double()
    return x.clone() if x.is_inference() else x


def _is_sparse(values: object) -> bool:
    return hasattr(values, "toarray") and hasattr(values, "nnz")
