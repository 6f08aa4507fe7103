"""What is written as a table is read back bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from convexlift.tables import read_table, write_table

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
TABLES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FINITE)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
@given(table=TABLES)
def test_a_table_is_read_as_it_was_written(suffix: str, table: np.ndarray) -> None:
    rows, names = torch.from_numpy(table), [f"x{place + 1}" for place in range(table.shape[1])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"rows{suffix}")
        write_table(file, rows, names)
        found, called = read_table(file)
    assert found.dtype == torch.float32 and torch.equal(found, rows) and called == names
