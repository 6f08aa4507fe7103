from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Linear(torch.nn.Module):
    """f(x) = w . x with w >= 0, in float64."""

    nonnegative = ("weight",)

    def __init__(self, dim: int, weight: float = 1.0) -> None:
        super().__init__()
        self.dim = dim
        self.weight = torch.nn.Parameter(torch.full((dim,), weight, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.fixture
def linear() -> type[Linear]:
    return Linear
