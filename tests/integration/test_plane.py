from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convexlift as cl
from convexlift.integration import rules
from convexlift.integration.plane import bounds, support
from convexlift.integration.plane.bounds import log_chord_integral, log_tail, log_tangent_integral
from convexlift.integration.plane.exponential import central_moments, langevin_function, log_mean
from convexlift.integration.plane.normaliser import MAX_CELLS, draw, level, log_integral, normaliser
from convexlift.integration.plane.parallelograms import ORDER, divide, gauss_lobatto


def gradient_of(value):
    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(value(x).sum(), x)[0]

    return gradient


def integrate(value, **options):
    return normaliser(value, gradient_of(value), **options)


def turn(degrees: float) -> Tensor:
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


def turned(marginal, degrees: float):
    """f(x) = g(y_1) + g(y_2), y the rotated x."""
    return lambda x: marginal(x @ turn(degrees).to(x.dtype)).sum(1)


def gaussian(mean=(0.0, 0.0), deviations=(1.0, 1.0), degrees=0.0):
    centre, scale = (torch.tensor(pair, dtype=torch.float64) for pair in (mean, deviations))
    exact = math.log(2 * math.pi) + math.log(deviations[0]) + math.log(deviations[1])
    return lambda x: ((x.double() - centre) @ turn(degrees) / scale).square().sum(1).to(x.dtype) / 2, exact


# The integral of exp(-|x| - x^2 / 20) over the line, by completing the square.
LAPLACE_AND_SQUARE = math.log(2 * math.exp(5) * math.sqrt(20 * math.pi) / 2 * math.erfc(math.sqrt(5)))

SMOOTH = {
    "gaussian": gaussian(),
    "gaussian, deviations 100 to 1": gaussian((0.3, -0.2), (10.0, 0.1), 37),
    "gaussian, deviations 10,000 to 1": gaussian((1.0, 2.0), (100.0, 0.01), 80),
    "gaussian, far": gaussian((1e3, -1e3), (1.0, 2.0), 10),
    "gaussian, far and narrow": gaussian((1e3, 5.0), (1e-3, 2e-3), 20),
    "gaussian, far and correlated": gaussian((1e3, 700.0), (1.0, 1e-3), 77),
    "gaussian, wide": gaussian((-1e3, 5.0), (1e3, 2e3), 20),
    "logistic": (turned(lambda y: y + 2 * F.softplus(-y), 30), 0.0),
    "gumbel": (turned(lambda y: y + torch.exp(-y), 30), 0.0),
    "quartic": (turned(lambda y: y**4, 15), 2 * (math.log(2) + math.lgamma(1.25))),
}

KINKED = {
    "laplace": (turned(torch.abs, 30), 2 * math.log(2)),
    "laplace and a quadratic": (turned(lambda y: y.abs() + y.square() / 20, 30), 2 * LAPLACE_AND_SQUARE),
    "laplace, two scales": (turned(lambda y: torch.maximum(-30 * y, y / 10), 13), 2 * math.log(10 + 1 / 30)),
    "square with walls": (turned(lambda y: 50 * torch.relu(y.abs() - 1), 30), 2 * math.log(2.04)),
    "cone": (lambda x: x.norm(dim=1), math.log(2 * math.pi)),
}
ALL = {**SMOOTH, **KINKED}


@pytest.mark.parametrize("name", ALL)
def test_the_bounds_hold_the_exact_value_and_the_value_is_closer(name):
    value, exact = ALL[name]
    found = integrate(value)
    assert float(found.lower) <= exact <= float(found.upper)
    assert found.lower <= found.log_z <= found.upper
    assert float(found.upper - found.lower) <= 1.01e-3
    assert 0 < found.error <= 1.01e-3
    assert float(found.log_z) == pytest.approx(exact, abs=2e-6 if name in SMOOTH else 6e-5)


@pytest.mark.parametrize("name", ALL)
def test_one_training_step_is_accurate_with_few_nodes_and_keeps_them(name):
    value, exact = ALL[name]
    log_z, cells = log_integral(value)
    assert len(cells) <= MAX_CELLS and len(cells) * ORDER**2 <= (4000 if name in SMOOTH else 6000)
    assert float(log_z) == pytest.approx(exact, abs=1e-5 if name in SMOOTH else 5e-4)
    again, same = log_integral(value, cells)
    assert same is cells and torch.equal(again, log_z)


@pytest.mark.parametrize("degrees", [0, 7, 30, 45, 62])
def test_a_kinked_function_at_any_angle(degrees):
    value = turned(lambda y: y.abs() + y.square() / 20, degrees)
    assert float(log_integral(value)[0]) == pytest.approx(2 * LAPLACE_AND_SQUARE, abs=4e-4)


def test_the_bounds_tighten_with_the_tolerance():
    value, exact = gaussian((0.0, 0.0), (1.0, 3.0), 20)
    errors = []
    for tolerance in (1e-1, 1e-2, 3e-4):
        found = integrate(value, tolerance=tolerance)
        assert float(found.lower) <= exact <= float(found.upper)
        assert float(found.upper - found.lower) <= tolerance * 1.01
        errors.append(abs(float(found.log_z) - exact))
    assert errors[0] < 1e-4 and errors[2] < 2e-7


def test_the_bounds_stay_valid_when_cells_run_out(monkeypatch):
    monkeypatch.setattr(bounds, "_MAX_CELLS", 300)
    value, exact = SMOOTH["gumbel"]
    found = integrate(value)
    assert len(found.cells) <= 300
    assert float(found.lower) <= exact <= float(found.upper)
    assert float(found.upper - found.lower) > 1e-3


def test_the_tail_is_bounded_beyond_a_box_that_leaves_mass_out(monkeypatch):
    monkeypatch.setattr(support, "DROP", 3.0)
    value = turned(torch.abs, 0)
    found = integrate(value, tolerance=1e-5)
    corners = (found.cells[:, None, :2] + found.cells[:, 2:].view(-1, 2, 2)).flatten(0, 1)
    assert float(corners.abs().max()) < 10  # about 5 % of the mass lies outside
    assert float(found.lower) < 2 * math.log(2) - 1e-3
    assert 2 * math.log(2) <= float(found.upper)


def test_the_tail_bound_is_exact_for_a_cone_over_a_square():
    # f = 7 max(|x_1|, |x_2|): on the border of the square of half-width 2 it is 14 everywhere.
    rise = torch.tensor(14.0, dtype=torch.float64)
    outside = 8 * math.exp(-14.0) * (2 / 7 + 1 / 49)  # the integral of 8 r exp(-7 r) over r > 2
    assert float(log_tail(torch.tensor(16.0).log(), rise)) == pytest.approx(math.log(outside), abs=1e-6)


def test_the_rule_is_the_one_reported():
    value, _ = gaussian((1.0, 0.0), (1.0, 2.0), 30)
    found = integrate(value)
    assert found.nodes.shape == (len(found.log_weights), 2)
    assert torch.equal(found.values, value(found.nodes))
    again = torch.logsumexp(found.log_weights - found.values, 0)
    assert float(again) == pytest.approx(float(found.log_z), abs=1e-14)


def test_tangents_lie_below():
    value, _ = KINKED["laplace and a quadratic"]
    found = integrate(value)
    place = 2 * torch.rand(len(found.cells), 2, dtype=torch.float64) - 1
    x = found.cells[:, :2] + (place[:, :, None] * found.cells[:, 2:].view(-1, 2, 2)).sum(1)
    below = found.tangents[:, 0] + (place * found.tangents[:, 1:]).sum(1)
    assert bool((below <= value(x) + 1e-10).all())


@pytest.mark.parametrize("degree", range(2 * ORDER - 2))
def test_the_product_rule_is_exact_for_polynomials(degree):
    cell = torch.tensor([[1.0, 0.5, 2.0, 0.0, 0.0, 0.25]], dtype=torch.float64)  # [-1, 3] x [0.25, 0.75]
    nodes, log_weights = gauss_lobatto(cell, ORDER)
    exact = (3.0 ** (degree + 1) - (-1.0) ** (degree + 1)) / (degree + 1) / 4  # times the integral of y
    assert float((log_weights.exp() * nodes[:, 0] ** degree * nodes[:, 1]).sum()) == pytest.approx(exact)


@pytest.mark.parametrize(
    "slope", [-300.0, -3.0, -0.51, -0.49, -0.011, -1e-3, 0.0, 0.009, 0.3, 0.501, 8.0, 900.0]
)
def test_moments_of_an_exponential(slope):
    """Against a fine rule for exp(-slope s) on [-1, 1]."""
    g = torch.tensor(slope, dtype=torch.float64)
    edges = torch.linspace(0, 1, 2001, dtype=torch.float64) ** 4
    rule, weights, _ = rules.lobatto(9, torch.float64, torch.device("cpu"))
    half = edges.diff()[:, None]  # distances from the lower end, from 0 to 2
    distance = (2 * edges[:-1, None] + half + half * rule).reshape(-1)
    mass = (half * weights).reshape(-1) * (-g.abs() * distance).exp()
    s = (distance - 1) * (1 if slope >= 0 else -1)
    mean = (mass * s).sum() / mass.sum()
    moments = [(mass * (s - mean) ** k).sum() / mass.sum() for k in (2, 3)]
    assert float(log_mean(g)) == pytest.approx(float((mass.sum() / 2).log() + g.abs()), abs=1e-10)
    assert float(langevin_function(g)) == pytest.approx(-float(mean), rel=1e-9, abs=1e-12)
    for found, exact in zip(central_moments(g), moments, strict=True):
        assert float(found) == pytest.approx(float(exact), rel=1e-5, abs=1e-10)


def test_the_lower_bound_is_one_on_any_convex_cell():
    """Bilinear interpolation lies above f: for random convex quadratics, steep ones too."""
    generator = torch.Generator().manual_seed(0)
    factors = 3 * torch.randn(200, 2, 2, generator=generator, dtype=torch.float64)
    slopes = 5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:  # (200, K, 2) -> (200, K)
        return (x @ factors).square().sum(2) / 2 + (x @ slopes[:, :, None])[..., 0]

    line = torch.linspace(-1, 1, 3, dtype=torch.float64)
    lattice = torch.cartesian_prod(line, line).expand(200, 9, 2)
    cells = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    fine, log_weights = gauss_lobatto(divide(cells[0], 12), ORDER)
    exact = torch.logsumexp(log_weights - f(fine.expand(200, -1, 2)), 1)
    below = log_chord_integral(cells.expand(200, 6), f(lattice).view(200, 3, 3))
    centre = torch.cat([torch.zeros(200, 1, dtype=torch.float64), slopes], 1)
    above = log_tangent_integral(cells.expand(200, 6), centre)
    assert bool((below <= exact + 1e-9).all()) and bool((exact <= above + 1e-9).all())
    assert float((exact - below).min()) < 0.1  # some are tight


def potential(seed: int = 0) -> cl.Potential:
    return cl.ICNN(2, hidden=(16, 16), strong_convexity=0.3, seed=seed).double().emit()


def dense_grid(reach: float, count: int) -> tuple[Tensor, float]:
    """Points and log weight of the trapezoid rule, exact to rounding for smooth f with little outside."""
    line = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return torch.cartesian_prod(line, line), 2 * math.log(2 * reach / (count - 1))


@pytest.mark.parametrize("seed", [0, 1])
def test_an_icnn_and_its_gradient_agree_with_a_dense_grid(seed):
    f = potential(seed)
    tensors = [t for t in f.tensors.values() if t.requires_grad]
    points, log_cell = dense_grid(14.0, 350)
    integral = torch.logsumexp(-f.value(points), 0) + log_cell
    exact = float(integral.detach())
    found = normaliser(f.value, f.gradient)
    step, _ = log_integral(f.value)
    assert float(found.lower) <= exact <= float(found.upper)
    assert float(found.log_z.detach()) == pytest.approx(exact, abs=2e-6)
    assert float(step.detach()) == pytest.approx(exact, abs=1e-5)
    want = torch.autograd.grad(integral, tensors, allow_unused=True)
    for log_z, tolerance in ((found.log_z, 1e-5), (step, 1e-4)):
        for got, expected in zip(torch.autograd.grad(log_z, tensors, allow_unused=True), want, strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                assert torch.allclose(got, expected, atol=tolerance)


def test_a_network_of_usual_size_takes_few_cells():
    f = cl.ICNN(2, hidden=(64, 64, 64), strong_convexity=0.1, seed=0).double().emit()
    with torch.no_grad():
        found = normaliser(f.value, f.gradient)
        step, _ = log_integral(f.value)
    assert found.error <= 1.01e-3 and len(found.cells) < 8000
    assert float(step) == pytest.approx(float(found.log_z), abs=1e-5)


def test_gradient_of_log_z_is_minus_the_expectation_of_the_gradient():
    # f = a |x - m|^2 / 2: log Z = log(2 pi / a).
    a = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    m = torch.tensor([0.7, -3.0], dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return a * (x - m).square().sum(1) / 2

    for log_z in (normaliser(value, lambda x: a * (x - m)).log_z, log_integral(value)[0]):
        by_a, by_m = torch.autograd.grad(log_z, [a, m])
        assert float(by_a) == pytest.approx(-1 / 4, abs=1e-5)
        assert torch.allclose(by_m, torch.zeros(2, dtype=torch.float64), atol=1e-4)


def test_a_training_step_that_keeps_its_cells_evaluates_once():
    counts = []
    near, exact = gaussian((0.03, 0.0), (1.05, 0.98), 5)

    def value(x: Tensor) -> Tensor:
        counts.append(len(x))
        return near(x)

    _, cells = log_integral(gaussian()[0])
    log_z, same = log_integral(value, cells)
    assert same is cells
    assert len(counts) == 1 and counts[0] <= 4100
    assert float(log_z) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        gaussian((4.0, 0.0)),
        gaussian((100.0, 0.0), (0.01, 0.01)),
        gaussian((0.0, 0.0), (3.0, 1.0)),
        gaussian((0.0, 0.0), (1.0, 0.02), 45),
        gaussian((1e5, 1.0)),
    ],
    ids=["moved", "far and narrow", "wider", "narrower", "very far"],
)
def test_cells_that_no_longer_fit_are_replaced(changed):
    value, exact = changed
    _, cells = log_integral(gaussian()[0])
    log_z, new = log_integral(value, cells)
    assert new is not cells
    assert float(log_z) == pytest.approx(exact, abs=1e-5)


def test_cells_that_are_not_numbers_for_the_new_function_are_replaced():
    value, exact = gaussian()
    _, cells = log_integral(value)
    log_z, new = log_integral(lambda x: value(x) + torch.where(x[:, 0] > 8.9, math.inf, 0.0), cells)
    assert new is not cells and float(log_z) == pytest.approx(exact, abs=1e-4)


def test_kinks_turn_the_cells_along_them():
    """Walls that are not perpendicular: in the frame of the walls they lie along the cells."""
    frame = torch.tensor([[3.0, 1.0], [2.0, 1.5]], dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        y = x @ frame
        return torch.maximum(-20 * y, y).sum(1)

    log_z, cells = log_integral(value)
    directions = F.normalize(cells[0, 2:].view(2, 2) @ frame, dim=1)
    assert bool((directions.abs().amax(1) > 0.999).all())
    assert float(log_z) == pytest.approx(2 * math.log(1.05) - math.log(2.5), abs=1e-3)
    found = integrate(value)
    assert float(found.lower) <= 2 * math.log(1.05) - math.log(2.5) <= float(found.upper)


def test_a_hard_wall_is_integrated_and_has_no_bounds():
    def value(x: Tensor) -> Tensor:
        return torch.where(x.sum(1) < 0, math.inf, x.abs().sum(1))

    assert float(log_integral(value)[0]) == pytest.approx(math.log(2), abs=1e-3)
    message = r"^cannot bound the integral of exp\(-f\): f or its gradient is not finite near x = \("
    with pytest.raises(FloatingPointError, match=message):
        integrate(value)


def test_float32_reaches_its_own_precision():
    value, exact = gaussian((0.3, 0.0), (2.0, 0.5), 20)
    found = integrate(value, dtype=torch.float32)
    assert found.log_z.dtype == torch.float32 and found.cells.dtype == torch.float32
    assert float(found.log_z) == pytest.approx(exact, abs=3e-5)
    assert float(found.lower) <= exact <= float(found.upper)
    log_z, cells = log_integral(value, dtype=torch.float32)
    assert float(log_z) == pytest.approx(exact, abs=3e-5)
    assert log_integral(value, cells, dtype=torch.float32)[1] is cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "value",
    [
        lambda x: x[:, 0],
        lambda x: torch.relu(x).sum(1),
        lambda x: 0 * x[:, 0],
        lambda x: x[:, 0].square(),
        lambda x: (x[:, 0] - 2 * x[:, 1]).square(),
        lambda x: F.softplus(x[:, 0] - x[:, 1]) + (x[:, 0] + x[:, 1]).square(),
    ],
    ids=["falling", "flat quarter", "constant", "valley", "turned valley", "half a valley"],
)
def test_a_flat_or_falling_direction_is_refused(value, dtype):
    message = (
        r"^exp\(-f\) has no finite integral(: f is still only \S+ above its lowest value at x = \(\S+, \S+\)"
        r"| that float\d\d can tell: along \(\S+, \S+\) f hardly rises)$"
    )
    with pytest.raises(ValueError, match=message):
        integrate(value, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        log_integral(value, dtype=dtype)


def test_what_is_not_a_number_is_refused():
    message = r"^cannot integrate exp\(-f\): f is not a number at x = \(0, 0\)$"
    with pytest.raises(FloatingPointError, match=message):
        integrate(lambda x: x[:, 0] * math.nan)
    message = r"^cannot integrate exp\(-f\): f is infinite at x = \(0, 0\)$"
    with pytest.raises(FloatingPointError, match=message):
        log_integral(lambda x: x[:, 0] + math.inf)


def test_a_start_far_up_a_wall_is_left():
    value = turned(lambda y: (y + 50) + torch.exp(-(y + 50)), 20)  # f is near its lowest value at (-50, -50)

    def shifted(x: Tensor) -> Tensor:
        return value(x - 2000)  # and exp(1500) here, which overflows

    assert bool(shifted(torch.zeros(1, 2, dtype=torch.float64)).isinf())
    assert float(log_integral(shifted)[0]) == pytest.approx(0.0, abs=1e-4)
    assert float(log_integral(lambda x: value(x - 100))[0]) == pytest.approx(0.0, abs=1e-4)  # exp(70) here


def test_too_narrow_for_the_dtype_is_refused():
    value, exact = gaussian((1000.0, 3.0), (1e-7, 1e-7))
    message = r"^cannot integrate exp\(-f\): it is too narrow for float32 at x = \((1000|999.999), "
    with pytest.raises(FloatingPointError, match=message):
        log_integral(value, dtype=torch.float32)
    assert float(log_integral(value)[0]) == pytest.approx(exact, abs=1e-4)


def test_a_wrong_gradient_and_a_function_that_is_not_convex_are_refused():
    message = r"^cannot bound the integral of exp\(-f\): f is not convex, or its gradient is not that of f$"
    value, _ = gaussian()
    with pytest.raises(ValueError, match=message):
        normaliser(value, lambda x: x / 2)
    with pytest.raises(ValueError, match=message):
        integrate(lambda x: value(x) + (4 * x[:, 0]).cos())


LEVELS = {
    "gaussian": (gaussian((0.0, 0.0), (10.0, 0.1), 37)[0], lambda c: -torch.expm1(-c)),
    "laplace": (KINKED["laplace"][0], lambda c: -torch.expm1(-c) - c * torch.exp(-c)),
    "cone": (KINKED["cone"][0], lambda c: -torch.expm1(-c) - c * torch.exp(-c)),
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_have_their_probability(name):
    value, distribution = LEVELS[name]
    p = torch.tensor([0.01, 0.1, 0.5, 0.683, 0.9, 0.95, 0.99, 0.999], dtype=torch.float64)
    c = level(integrate(value), p)
    assert bool((c.diff() > 0).all())
    assert torch.allclose(distribution(c), p, atol=1e-3)


def test_levels_of_no_probability_are_refused():
    found = integrate(gaussian()[0], tolerance=0.1)
    with pytest.raises(ValueError, match=r"^expected probabilities between 0 and 1; got 1.5$"):
        level(found, torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"^expected probabilities between 0 and 1; got nan$"):
        level(found, torch.tensor([math.nan]))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("tolerance", [1e-3, 0.3])
def test_draws_have_the_distribution_of_f(name, tolerance):
    """Kolmogorov's distance at level 0.001; with coarse bounds too, since the rejection is exact."""
    value, distribution = LEVELS[name]
    n = 20_000
    x = draw(integrate(value, tolerance=tolerance), value, n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 2)
    share = distribution(value(x).sort().values)
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((share - middle).abs().max()) < 1.95 / math.sqrt(n)


def test_draws_have_the_right_moments_and_repeat():
    mean, deviations = (5.0, -3.0), (2.0, 0.5)
    value, _ = gaussian(mean, deviations, 30)
    found = integrate(value)
    x = draw(found, value, 40_000, torch.Generator().manual_seed(1))
    z = (
        (x - torch.tensor(mean, dtype=torch.float64))
        @ turn(30)
        / torch.tensor(deviations, dtype=torch.float64)
    )
    assert torch.allclose(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=4 / math.sqrt(40_000))
    assert torch.allclose(z.T.cov(), torch.eye(2, dtype=torch.float64), atol=6 / math.sqrt(40_000))
    assert torch.equal(draw(found, value, 40_000, torch.Generator().manual_seed(1)), x)
    assert draw(found, value, 0).shape == (0, 2)
    with pytest.raises(ValueError, match=r"^cannot draw -1 samples$"):
        draw(found, value, -1)


def test_draws_from_what_is_not_a_number_are_refused():
    found = integrate(gaussian()[0], tolerance=0.1)
    with pytest.raises(FloatingPointError, match=r"^cannot integrate exp\(-f\): f is not a number at x = \("):
        draw(found, lambda x: x[:, 0] * math.nan, 5)
