from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convexlift.integration import line as quadrature
from convexlift.integration.line import (
    MAX_PANELS,
    ORDER,
    gauss_lobatto,
    log_integral,
    normaliser,
    panel_edges,
    quantile,
)


def derivative_of(value):
    def derivative(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(value(x).sum(), x)[0]

    return derivative


def integrate(value, **options):
    return normaliser(value, derivative_of(value), **options)


def gaussian(mean=0.0, deviation=1.0, offset=0.0):
    return lambda x: ((x[:, 0] - mean) / deviation) ** 2 / 2 + offset


LOG_2PI = math.log(2 * math.pi)

SMOOTH = {
    "gaussian": (gaussian(), LOG_2PI / 2),
    "gaussian, far": (gaussian(1e4, 3.0), LOG_2PI / 2 + math.log(3.0)),
    "gaussian, narrow": (gaussian(0.1, 1e-5), LOG_2PI / 2 + math.log(1e-5)),
    "gaussian, wide": (gaussian(0.0, 1e7), LOG_2PI / 2 + math.log(1e7)),
    "gaussian, large offset": (gaussian(offset=1e3), LOG_2PI / 2 - 1e3),
    "logistic": (lambda x: x[:, 0] + 2 * F.softplus(-x[:, 0]), 0.0),
    "gumbel": (lambda x: x[:, 0] + torch.exp(-x[:, 0]), 0.0),
    "log of gamma(5)": (lambda x: torch.exp(x[:, 0]) - 5 * x[:, 0], math.lgamma(5)),
    "one steep side": (lambda x: torch.exp(1000 * x[:, 0]) - x[:, 0], math.lgamma(1.001)),
    "quartic": (lambda x: x[:, 0] ** 4, math.log(2) + math.lgamma(1.25)),
    "nearly a box": (lambda x: x[:, 0] ** 40, math.log(2) + math.lgamma(1 + 1 / 40)),
    "cosh": (lambda x: torch.cosh(x[:, 0]), math.log(2 * 0.42102443824070834)),  # 2 K_0(1)
}

KINKED = {
    "laplace": (lambda x: x[:, 0].abs(), math.log(2)),
    "laplace, off centre": (lambda x: 7 * (x[:, 0] - 0.3).abs(), math.log(2 / 7)),
    "laplace, two scales": (
        lambda x: torch.maximum(-1e3 * x[:, 0], 1e-3 * x[:, 0]),
        math.log(1e3 + 1e-3),
    ),
    "box with steep walls": (lambda x: 1e5 * torch.relu(x[:, 0].abs() - 1), math.log(2 + 2e-5)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_are_integrated_to_1e_10(name):
    value, exact = SMOOTH[name]
    assert float(integrate(value).log_z) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
def test_the_bounds_hold_the_exact_value_and_the_estimate(name):
    value, exact = {**SMOOTH, **KINKED}[name]
    found = integrate(value)
    assert found.lower <= found.log_z <= found.upper
    assert float(found.lower) <= exact <= float(found.upper)
    assert float(found.upper - found.lower) <= 1.1e-6
    assert 0 < found.error <= 1.1e-6


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_resolved(name):
    value, exact = KINKED[name]
    assert float(integrate(value).log_z) == pytest.approx(exact, abs=2e-8)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_the_bounds_tighten_with_the_tolerance(tolerance):
    found = integrate(gaussian(), tolerance=tolerance)
    assert float(found.lower) <= LOG_2PI / 2 <= float(found.upper)
    assert float(found.upper - found.lower) <= tolerance * 1.01


def test_the_tails_are_bounded_by_the_tangents_at_the_ends(monkeypatch):
    found = integrate(lambda x: x[:, 0].abs())
    assert float(found.edges[0]) < -40 and float(found.edges[-1]) > 40
    # On an interval that leaves out a seventh of the mass, which the tangents give exactly here.
    monkeypatch.setattr(quadrature, "DROP", 2.0)
    found = integrate(lambda x: x[:, 0].abs())
    inside = math.log(2 - math.exp(float(found.edges[0])) - math.exp(-float(found.edges[-1])))
    assert inside < math.log(2) - 0.1
    assert float(found.lower) <= inside and math.log(2) <= float(found.upper) < math.log(2) + 1e-5


def test_the_rule_is_the_one_reported():
    value = gaussian(0.5, 2.0)
    found = integrate(value)
    again = torch.logsumexp(found.log_weights - value(found.nodes[:, None]), 0)
    assert float(again) == pytest.approx(float(found.log_z), abs=1e-14)
    nodes, log_weights = gauss_lobatto(found.edges)
    assert torch.equal(nodes, found.nodes) and torch.equal(log_weights, found.log_weights)


def test_values_at_points_are_those_of_f():
    value = gaussian(0.5, 2.0)
    found = integrate(value)
    assert torch.equal(found.values, value(found.points[:, None]))
    assert bool((found.points.diff() > 0).all())


@pytest.mark.parametrize("degree", range(2 * ORDER - 2))
def test_the_rule_is_exact_for_polynomials(degree):
    nodes, log_weights = gauss_lobatto(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
    exact = (2.0 ** (degree + 1) - (-1.0) ** (degree + 1)) / (degree + 1)
    assert float((log_weights.exp() * nodes**degree).sum()) == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_gradient_of_log_z_is_minus_the_expectation_of_the_gradient():
    # f = a (x - m)^2 / 2: log Z = log(2 pi / a) / 2.
    a = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    m = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return a * (x[:, 0] - m) ** 2 / 2

    with_bounds = normaliser(value, lambda x: a * (x - m)).log_z
    for log_z in (with_bounds, log_integral(value)[0]):
        by_a, by_m = torch.autograd.grad(log_z, [a, m])
        assert float(by_a) == pytest.approx(-1 / 8, abs=1e-12)
        assert float(by_m) == pytest.approx(0.0, abs=1e-12)


def test_one_training_step_evaluates_a_few_hundred_points_once():
    counts = []

    def value(x: Tensor) -> Tensor:
        counts.append(len(x))
        return gaussian(0.05, 1.1)(x)

    _, edges = log_integral(gaussian())
    log_z, same = log_integral(value, edges)
    assert same is edges
    assert len(counts) == 1 and counts[0] < 400
    assert float(log_z) == pytest.approx(LOG_2PI / 2 + math.log(1.1), abs=1e-8)


@pytest.mark.parametrize(
    "changed",
    [gaussian(4.0), gaussian(100.0, 0.01), gaussian(0.0, 3.0), gaussian(0.0, 1e-3), gaussian(1e5, 1.0)],
    ids=["moved", "far and narrow", "wider", "narrower", "very far"],
)
def test_edges_that_no_longer_fit_are_replaced(changed):
    _, edges = log_integral(gaussian())
    log_z, new = log_integral(changed, edges)
    exact, _ = log_integral(changed)
    assert new is not edges
    assert float(log_z) == pytest.approx(float(exact), abs=1e-9)


def test_edges_that_are_not_numbers_for_the_new_function_are_replaced():
    _, edges = log_integral(gaussian())
    log_z, new = log_integral(
        lambda x: gaussian()(x) + torch.where(x[:, 0].abs() > 8.9, math.inf, 0.0), edges
    )
    assert new is not edges and float(log_z) == pytest.approx(LOG_2PI / 2, abs=1e-9)


def test_a_hard_wall_is_integrated_and_the_missing_slope_refused():
    def value(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 0, math.inf, x[:, 0])

    assert float(log_integral(value)[0]) == pytest.approx(0.0, abs=1e-4)
    message = (
        "^cannot bound the integral of exp\\(-f\\): f' must be negative on the left, positive on the right$"
    )
    with pytest.raises(ValueError, match=message):
        normaliser(value, lambda x: torch.ones_like(x))


def test_float32_reaches_its_own_precision():
    found = integrate(gaussian(0.3, 2.0), dtype=torch.float32)
    assert found.log_z.dtype == torch.float32
    assert len(found.edges) < 40
    assert float(found.log_z) == pytest.approx(LOG_2PI / 2 + math.log(2), abs=2e-6)
    assert found.lower <= found.log_z <= found.upper
    _, edges = log_integral(gaussian(), dtype=torch.float32)
    assert log_integral(gaussian(0.05), edges, dtype=torch.float32)[1] is edges


def test_panels_are_capped():
    kinks = torch.linspace(-5, 5, 300, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (x - kinks).abs().mean(1) * 8

    assert len(panel_edges(value)) <= MAX_PANELS + 1
    found = integrate(value)
    assert found.lower <= found.log_z <= found.upper and found.error <= 1.1e-6


@pytest.mark.parametrize(
    ("value", "side"),
    [
        (lambda x: x[:, 0], "left"),
        (lambda x: -x[:, 0], "right"),
        (lambda x: torch.relu(x[:, 0]), "left"),
        (lambda x: F.softplus(-x[:, 0]), "right"),
        (lambda x: 0 * x[:, 0], "left"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_or_falling_side_is_refused(value, side, dtype):
    message = (
        rf"^exp\(-f\) has no finite integral: on the {side}, f is still only -?0 above its lowest value at"
    )
    with pytest.raises(ValueError, match=message):
        integrate(value, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        log_integral(value, dtype=dtype)


def test_nan_is_refused():
    with pytest.raises(
        FloatingPointError, match=r"^cannot integrate exp\(-f\): f is not a number at x = -8$"
    ):
        integrate(lambda x: x[:, 0] * math.nan)


def test_too_narrow_for_the_dtype_is_refused():
    value = gaussian(1000.0, 1e-7)
    message = r"^cannot integrate exp\(-f\): it is too narrow for float32 at x = "
    with pytest.raises(FloatingPointError, match=message):
        integrate(lambda x: value(x.double()).float(), dtype=torch.float32)
    assert float(integrate(value).log_z) == pytest.approx(LOG_2PI / 2 + math.log(1e-7), abs=1e-4)


QUANTILES = {
    "gaussian": (gaussian(2.0, 3.0), lambda p: 2 + 3 * math.sqrt(2) * torch.erfinv(2 * p - 1)),
    "laplace": (
        lambda x: x[:, 0].abs(),
        lambda p: torch.where(p < 0.5, (2 * p).log(), -(2 * (1 - p)).log()),
    ),
    "logistic": (lambda x: x[:, 0] + 2 * F.softplus(-x[:, 0]), torch.logit),
    "gumbel": (lambda x: x[:, 0] + torch.exp(-x[:, 0]), lambda p: -torch.log(-torch.log(p))),
    "steep": (lambda x: 1e4 * torch.relu(-x[:, 0]) + x[:, 0], lambda p: -torch.log1p(-p)),
}


@pytest.mark.parametrize("name", QUANTILES)
def test_quantiles(name):
    value, exact = QUANTILES[name]
    p = torch.tensor([1e-3, 0.01, 0.3, 0.5, 0.51, 0.9, 0.999], dtype=torch.float64)
    tolerance = 2e-3 if name == "steep" else 1e-3  # "steep" has mass 1e-4 below zero
    assert torch.allclose(quantile(integrate(value), p), exact(p), atol=tolerance)
    fine = integrate(value, tolerance=1e-9)
    if name != "steep":
        assert torch.allclose(quantile(fine, p), exact(p), atol=1e-5)


def test_quantiles_increase_and_stay_in_the_support():
    found = integrate(gaussian())
    p = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    x = quantile(found, p)
    assert bool((x.diff() >= 0).all()) and x.isfinite().all()
    assert float(x[0]) == float(found.points[0]) and float(x[-1]) <= float(found.points[-1])


def test_ends_that_rounding_moves_are_kept() -> None:
    """An end of exactly the drop, which a second evaluation puts a little lower."""
    calls = 0

    def value(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return 40 * x[:, 0].abs() * (1 - 1e-9 * (calls - 1))

    edges = panel_edges(value)
    assert float(edges[0]) == pytest.approx(-1, abs=0.1) and float(edges[-1]) == pytest.approx(1, abs=0.1)
    log_z, _ = log_integral(value)
    assert float(log_z) == pytest.approx(math.log(2 / 40), abs=1e-3)
