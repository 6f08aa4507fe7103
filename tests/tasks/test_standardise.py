from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexlift.tasks import Standardiser


def table(n: int = 50, dim: int = 4, **options) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), **options)


def test_fitted_columns_have_zero_mean_and_unit_deviation():
    data = table(dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.01, 3.0]) + torch.tensor(
        [5.0, -70.0, 0.0, 1e3]
    )
    standardiser = Standardiser(4).double().fit(data)
    z = standardiser(data)
    assert torch.allclose(z.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(0, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(standardiser.inverse(z), data, atol=1e-11)


@given(seed=st.integers(0, 1000), n=st.integers(2, 20), exponents=st.tuples(*[st.integers(-60, 60)] * 4))
def test_units_of_powers_of_two_change_no_bit_and_the_inverse_returns_the_data(seed, n, exponents):
    data = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = 2.0 ** torch.tensor(exponents, dtype=torch.float64)
    one, other = Standardiser(4).double().fit(data), Standardiser(4).double().fit(data * unit)
    assert torch.equal(other(data * unit), one(data))
    torch.testing.assert_close(other.inverse(other(data * unit)) / unit, data, rtol=1e-12, atol=1e-12)
    logs = math.log(2) * sum(exponents)
    assert float(other.log_scale_jacobian) == pytest.approx(float(one.log_scale_jacobian) - logs, abs=1e-9)


def test_log_jacobian_is_minus_the_sum_of_log_scales():
    standardiser = Standardiser(2).double().fit(torch.tensor([[0.0, 0.0], [2.0, 8.0]], dtype=torch.float64))
    assert float(standardiser.log_scale_jacobian) == pytest.approx(-math.log(1.0) - math.log(4.0), abs=1e-14)
    jacobian = torch.func.jacfwd(standardiser)(torch.zeros(1, 2, dtype=torch.float64)).reshape(2, 2)
    assert float(jacobian.slogdet()[1]) == pytest.approx(float(standardiser.log_scale_jacobian), abs=1e-14)


def test_unfitted_is_the_identity():
    standardiser = Standardiser(4)
    data = table()
    assert torch.equal(standardiser(data), data)
    assert float(standardiser.log_scale_jacobian) == 0
    assert not standardiser.fitted


def test_statistics_are_those_of_float64():
    # In float32 the sum of squares of these would lose the deviation altogether.
    data = (1e4 + table(20_000, 1, dtype=torch.float64)).float()
    standardiser = Standardiser(1).fit(data)
    assert float(standardiser.scale) == pytest.approx(float(data.double().std(correction=0)), rel=1e-6)


def test_state_dict_round_trip():
    fitted = Standardiser(4).fit(table())
    again = Standardiser(4)
    again.load_state_dict(fitted.state_dict())
    assert again.fitted and torch.equal(again(table()), fitted(table()))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e300), (torch.float32, 1e37)])
def test_huge_values_do_not_overflow(dtype, size):
    data = table(dtype=dtype) * size / 10
    standardiser = Standardiser(4).to(dtype).fit(data)
    assert standardiser(data).isfinite().all()
    assert torch.allclose(standardiser(data).std(0, correction=0), torch.ones(4, dtype=dtype), rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows(n):
    with pytest.raises(ValueError, match=f"^need at least 2 rows to standardise samples; got {n}$"):
        Standardiser(4).fit(table(n))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "samples have NaN at row 7, column 2"),
        (math.inf, "samples have an infinity at row 7, column 2"),
    ],
)
def test_non_finite_entries_are_located(value, message):
    data = table()
    data[7, 2] = value
    with pytest.raises(ValueError, match=f"^{message}$"):
        Standardiser(4).fit(data)


def test_wrong_width():
    with pytest.raises(ValueError, match=r"^expected \(N, 4\) samples; got \(50, 3\)$"):
        Standardiser(4).fit(table(dim=3))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_column(value):
    data = table()
    data[:, 3] = value
    with pytest.raises(
        ValueError,
        match=rf"^column 3 is constant \(every value is {value:.6g}\): remove it$".replace("+", r"\+"),
    ):
        Standardiser(4).fit(data)


def test_column_that_is_constant_to_the_precision_of_the_rows():
    data = 1e9 + table(dtype=torch.float64)
    with pytest.raises(ValueError, match="column 0 is constant"):
        Standardiser(4).fit(data.float())
    Standardiser(4).fit(data)


@pytest.mark.parametrize(
    ("dtype", "large", "small"), [(torch.float32, 1e38, 1e-39), (torch.float64, 5e307, 1e-309)]
)
def test_columns_beyond_the_range_of_their_dtype(dtype, large, small):
    data, called = table(dtype=dtype), str(dtype).removeprefix("torch.")
    data[:, 1] = torch.linspace(-large, large, 50, dtype=dtype)
    with pytest.raises(ValueError, match=rf"^column 1 is too large for {called} \(up to .*\)$"):
        Standardiser(4).fit(data)
    data[:, 1] = torch.linspace(-small, small, 50, dtype=dtype)
    with pytest.raises(ValueError, match=rf"^column 1 is too small for {called} \(deviation .*\)$"):
        Standardiser(4).fit(data)


def test_a_failed_fit_leaves_it_unfitted():
    standardiser = Standardiser(4)
    with pytest.raises(ValueError):
        standardiser.fit(torch.ones(5, 4))
    assert not standardiser.fitted and torch.equal(standardiser.scale, torch.ones(4))
