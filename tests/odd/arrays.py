"""Numbers and arrays as they come."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from convexlift.arrays import array_of, tensor_of

from .case import Case, answered, refused
from .given import fit, rows

ARRAYS = "convexlift.arrays"


def of_array(x: Any) -> Any:
    return tensor_of(x)


def mapped() -> Any:
    """Rows in a file that is open for reading alone."""
    np.save("x.npy", np.arange(3.0))
    return array_of(np.load("x.npy", mmap_mode="r")).flags.writeable


COPIED = ('return np.array(array, dtype=native if kept else np.float64, order="C")', "return array")

CASES: list[Case] = [
    refused(
        "rows of other lengths",
        lambda: of_array([[1.0, 2.0], [3.0]]),
        ValueError,
        "values are no table: their rows differ in length",
    ),
    refused(
        "an array of words", lambda: of_array(np.array(["a"])), TypeError, "values are text ...: give numbers"
    ),
    refused(
        "a masked entry",
        lambda: of_array(np.ma.masked_equal([1.0, 2.0], 2.0)),
        ValueError,
        "values have masked entries (the first at 1): fill or drop them",
    ),
    refused(
        "an array of objects, one of them a word",
        lambda: of_array(np.array([1.0, "a"], dtype=object)),
        TypeError,
        "values hold 'a' at 1: give numbers",
    ),
    refused(
        "a complex tensor",
        lambda: of_array(torch.ones(2, dtype=torch.complex64)),
        TypeError,
        "values are complex numbers (complex64): give numbers",
    ),
    refused(
        "a sparse tensor",
        lambda: of_array(torch.eye(2).to_sparse()),
        TypeError,
        "values are sparse: pass to_dense() of them",
    ),
    refused(
        "a tensor on the device meta",
        lambda: of_array(torch.ones(2, device="meta")),
        ValueError,
        "values are on the device 'meta', which holds no numbers",
    ),
    refused(
        "a sparse matrix of scipy's",
        lambda: of_array(scipy.sparse.eye_array(2)),
        TypeError,
        "values are sparse: pass toarray() of them",
    ),
    answered(
        "rows backwards, `x[::-1]`",
        lambda: of_array(np.arange(3.0)[::-1]).tolist(),
        [2.0, 1.0, 0.0],
        "they are read backwards",
        "convexlift.arrays",
        COPIED,
    ),
    answered(
        "float32 numbers of the other byte order",
        lambda: str(of_array(np.arange(3, dtype=">f4")).dtype),
        "torch.float32",
        "they are read, as float32",
        ARRAYS,
        ("dtype=native if kept", "dtype=array.dtype if kept"),
    ),
    answered(
        "an array of whole numbers",
        lambda: str(of_array(np.arange(3)).dtype),
        "torch.float64",
        "they become float64",
        ARRAYS,
        ("if kept else np.float64", "if True else np.float64"),
    ),
    answered(
        "numbers mapped from a file, for reading alone",
        mapped,
        True,
        "they are copied: nothing writes into the file",
        ARRAYS,
        COPIED,
        kin="protected, not reversed",
    ),
    answered(
        "a missing value of pandas, pd.NA",
        lambda: np.isnan(array_of(np.array([1, pd.NA], dtype=object))).tolist(),
        [False, True],
        "it is NaN, which training refuses by row and column",
        ARRAYS,
        ('if value is None or type(value).__name__ == "NAType":', "if value is None:"),
    ),
    answered(
        "numbers as decimal.Decimal",
        lambda: array_of(np.array([decimal.Decimal("0.5")], dtype=object)).tolist(),
        [0.5],
        "they are read",
        ARRAYS,
        ("Real | Decimal | np.bool_", "Real"),
    ),
    answered(
        "training rows that carry a graph",
        lambda: of_array(rows(3).requires_grad_()).requires_grad,
        False,
        "they are detached",
        ARRAYS,
        ("x.detach().as_subclass(Tensor)", "x.as_subclass(Tensor)"),
    ),
    answered(
        "`averaging=np.array(0.5)`",
        lambda: fit(averaging=np.array(0.5)).loss[-1] - fit(averaging=0.5).loss[-1],
        0.0,
        "it trains as with Python's own number",
        "convexlift.checks.plain",
        lambda value: value,
    ),
]
