"""What is written as a table is read back bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexlift.tables import read_table, write_table


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
@given(seed=st.integers(0, 1000), count=st.integers(1, 6), width=st.integers(1, 4))
def test_a_table_is_read_as_it_was_written(suffix: str, seed: int, count: int, width: int) -> None:
    """Whatever finite number of float32 it holds: the bits are drawn."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, width), dtype=np.uint32)
    rows = torch.from_numpy(np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), 0))
    names = [f"x{place + 1}" for place in range(width)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"rows{suffix}")
        write_table(file, rows, names)
        found, called = read_table(file)
    assert found.dtype == torch.float32 and torch.equal(found, rows) and called == names
