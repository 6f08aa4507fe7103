"""What a task refuses before anything is written: see ``Task.preflight``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convexlift import (
    ICNN,
    PICNN,
    ConditionalDensity,
    ConvexPotentialFlow,
    ConvexRegression,
    LogConcaveDensity,
)
from convexlift.tasks.task import Task

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tasks(dim: int = 3) -> list[Task]:
    net = ICNN(dim, hidden=(4,), seed=0)
    conditional = ConditionalDensity(PICNN(dim, 1, hidden=(4,), seed=0))
    return [ConvexPotentialFlow([net]), LogConcaveDensity(net), ConvexRegression(net), conditional]


def put(row: int, column: int, value: float) -> Tensor:
    return X.index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(value).double())


@pytest.mark.parametrize("task", tasks(), ids=lambda task: type(task).__name__)
def test_rows_that_no_task_starts_from(task: Task) -> None:
    flat = torch.cat([X[:, :2], torch.full((60, 1), 2.5)], 1)
    cases = {
        r"^the table has one row; training needs at least two$": X[:1],
        r"^the table has no rows; training needs at least two$": X[:0],
        r"^column 'c' is constant \(every value is 2\.5\)$": flat,
        r"^expected \(N, 3\) (samples|inputs); got \(60, 2\)$": X[:, :2],
        r"^(samples|inputs) have NaN at row 5, column 1$": put(5, 1, torch.nan),
        r"^column 0 is too large for float64": X / X.abs().amax(0) * X.new_tensor([1e308, 1.0, 1.0]),
    }
    for message, rows in cases.items():
        with pytest.raises(ValueError, match=message):
            task.preflight(rows, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"^column 2 is constant \(every value is 2\.5\)$"):
        task.preflight(flat)
    with pytest.raises(TypeError, match="^expected floating-point"):
        task.preflight(torch.arange(6).view(2, 3))


def test_rows_that_no_density_starts_from() -> None:
    density = LogConcaveDensity(ICNN(3, hidden=(4,), seed=0))
    cases = {
        r"^need at least 4 rows to whiten 3 columns; got 3$": X[:3],
        r"^column \d is a linear combination of the others: remove it$": torch.cat(
            [X[:, :2], X[:, :1] + X[:, 1:2]], 1
        ),
        r"^row 7, column 2 is 1e\+08, .* away from the median: remove or clip it$": put(7, 2, 1e8),
    }
    for message, rows in cases.items():
        with pytest.raises(ValueError, match=message):
            density.preflight(rows, ["a", "b", "c"])


@pytest.mark.parametrize("task", tasks(), ids=lambda task: type(task).__name__)
def test_a_preflight_changes_nothing(task: Task) -> None:
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task.preflight(X, ["a", "b", "c"])
    torch.testing.assert_close(dict(task.state_dict()), before, rtol=0, atol=0, equal_nan=True)
