"""What is written as a table is read back bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexlift.table_files import read_table, write_table


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".tsv", ".csv.gz", ".parquet", ".feather"])
@given(seed=st.integers(0, 1000), count=st.integers(1, 6), width=st.integers(1, 4))
def test_a_table_is_read_as_it_was_written(
    suffix: str, kind: type[np.floating], seed: int, count: int, width: int
) -> None:
    """Whatever finite numbers it holds: their bits are drawn."""
    bits = np.random.default_rng(seed).bytes(count * width * np.dtype(kind).itemsize)
    values = np.frombuffer(bits, kind).reshape(count, width)
    rows = torch.from_numpy(np.where(np.isfinite(values), values, kind(0)))
    names = [f"x{place + 1}" for place in range(width)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"rows{suffix}")
        write_table(file, rows, names)
        table = read_table(file, dtype=rows.dtype)
    assert table.rows.dtype == rows.dtype and torch.equal(table.rows, rows) and table.names == names
