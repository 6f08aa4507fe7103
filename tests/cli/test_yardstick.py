"""The simplest models beside a trained one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convexlift.cli.yardstick import compared, gaussian_losses, interval, polynomial_predictions


@pytest.fixture
def rows() -> Tensor:
    own = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1e2, 3e1, 0.0], [0.0, 1e-2, 2e-3], [0.0, 0.0, 5.0]], dtype=torch.float64)
    return torch.randn(400, 3, generator=own, dtype=torch.float64) @ mix + torch.tensor([1e3, 0.0, 3.0])


def test_gaussian_losses_are_those_of_torch(rows: Tensor) -> None:
    train, other = rows[:300], rows[300:]
    exact = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T))
    found = gaussian_losses(train, other)
    assert found is not None
    torch.testing.assert_close(found, -exact.log_prob(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("column", [torch.zeros(300), torch.arange(300.0)], ids=["constant", "twice"])
def test_there_is_no_gaussian_of_a_singular_covariance(rows: Tensor, column: Tensor) -> None:
    train = torch.cat([rows[:300, :1], rows[:300, :1] * 2 if column.any() else column[:, None].double()], 1)
    assert gaussian_losses(train, train) is None


def test_there_is_no_gaussian_of_fewer_rows_than_columns(rows: Tensor) -> None:
    assert gaussian_losses(rows[:3], rows) is None and gaussian_losses(rows[:1], rows) is None


def test_one_column_has_a_gaussian() -> None:
    x = torch.tensor([[1.0], [2.0], [6.0]])
    found, exact = gaussian_losses(x, x), torch.distributions.Normal(3.0, x.std().item())
    assert found is not None
    torch.testing.assert_close(found.float(), -exact.log_prob(x[:, 0]))


def test_polynomials_are_found_with_constant_columns_and_few_rows(rows: Tensor) -> None:
    x = torch.cat([rows, torch.ones(400, 1)], 1)
    y = 3.0 + x @ torch.tensor([1e-2, 2.0, -1.0, 0.5], dtype=torch.float64)
    for degree, target in ((1, y), (2, y), (2, y + (x[:, 0] - 1000) * x[:, 2] - x[:, 1].square())):
        found = polynomial_predictions(degree, x[:300], target[:300], x[300:])
        assert found is not None
        torch.testing.assert_close(found, target[300:], rtol=1e-6, atol=1e-6)
    few = polynomial_predictions(1, x[:2], y[:2], x[:2])
    assert few is not None and few.isfinite().all()
    assert polynomial_predictions(2, x[:29], y[:29], x) is None


def test_an_interval_of_one_row_is_none() -> None:
    assert interval(torch.ones(1)) is None


def test_what_it_means() -> None:
    assert compared(0.4, 0.2, 0.6) == (
        "worse than a Gaussian fitted to the training rows by 0.400 nats (95 % interval 0.200 to 0.600)"
    )
    assert compared(0.1, -0.2, 0.4) == (
        "not clearly better or worse than a Gaussian fitted to the training rows: "
        "0.100 nats worse (95 % interval 0.200 better to 0.400 worse)"
    )
