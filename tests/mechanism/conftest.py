from __future__ import annotations

import pytest
import torch


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
