from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from torch import Tensor

from convexlift.integration import log_concave_mle as exact
from convexlift.integration.log_concave_mle import LogConcaveMLE, log_concave_mle


def draws(n: int, seed: int, kind: str = "normal") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)
    u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    if kind == "cauchy":
        return torch.tan(math.pi * (u - 0.5))
    return {"uniform": u, "exponential": -u.log(), "gumbel": -(-u.log()).log()}[kind]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def mean_of(found: LogConcaveMLE) -> float:
    """The mean by the distribution function: the last knot minus the integral of F, by Gauss-Legendre."""
    points, weights = nodes(found.knots, 64)
    return float(found.knots[-1] - weights @ found.cdf(points[:, None]))


def nodes(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    rule, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + half * (1 + rule)).reshape(-1), (half * weight).reshape(-1)


# Known answers


def test_two_points_give_the_uniform_density() -> None:
    found = log_concave_mle(column(3.0, -1.0))
    assert found.knots.tolist() == [-1.0, 3.0]
    torch.testing.assert_close(found.log_prob(column(-1.0, 0.3, 3.0)).exp(), torch.full((3,), 0.25).double())
    assert found.log_likelihood == pytest.approx(-math.log(4), abs=1e-14)


@pytest.mark.parametrize("n", [3, 10, 1001])
def test_an_even_grid_gives_the_uniform_density(n: int) -> None:
    found = log_concave_mle(torch.linspace(0, 1, n, dtype=torch.float64)[:, None])
    torch.testing.assert_close(found.log_values, torch.zeros_like(found.log_values), rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", [1e-9, 0.01, 0.3, 0.5, 0.9])
def test_two_weighted_points_give_the_exponential_density_with_their_mean(share: float) -> None:
    found = log_concave_mle(column(0.0, 1.0), torch.tensor([1 - share, share], dtype=torch.float64))
    slope = float(found.log_values.diff())

    def mean(b: float) -> float:  # of exp(b x) on [0, 1], written so that neither sign overflows
        if abs(b) < 1e-6:
            return 0.5 + b / 12
        return 1 / -math.expm1(-b) - 1 / b if b > -700 else -1 / b

    assert mean(slope) == pytest.approx(share, rel=1e-10)


@pytest.mark.parametrize("side", [0.01, 0.1, 0.2, 0.25, 0.3, 0.49])
def test_three_even_points_give_a_peak_or_the_uniform_density(side: float) -> None:
    """The middle bends as soon as its weight exceeds the 1/2 that the uniform density gives to its tent."""
    found = log_concave_mle(
        column(0.0, 1.0, 2.0), torch.tensor([side, 1 - 2 * side, side], dtype=torch.float64)
    )
    if side >= 0.25:
        assert found.knots.tolist() == [0.0, 2.0]
        return

    def tent_share(r: float) -> float:  # of the density proportional to exp(-r |x - 1|) on [0, 2]
        return 1 - (1 - (1 + r) * math.exp(-r)) / r**2 / (-math.expm1(-r) / r)

    r = brentq(lambda r: tent_share(r) - (1 - 2 * side), 1e-3, 1e3, xtol=1e-14)
    peak = -math.log(2 * -math.expm1(-r) / r)
    expected = torch.tensor([peak - r, peak, peak - r], dtype=torch.float64)
    torch.testing.assert_close(found.log_values, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["normal", "exponential", "uniform"])
def test_a_general_solver_over_all_values_finds_the_same(kind: str, seed: int) -> None:
    x = draws(15, seed, kind).sort(0).values
    points = x[:, 0].numpy()
    width = np.diff(points)
    rule, weight = np.polynomial.legendre.leggauss(20)
    right = (1 + rule) / 2

    def objective(phi):
        density = np.exp(phi[:-1, None] * (1 - right) + phi[1:, None] * right) * (weight / 2 * width[:, None])
        gradient = np.full(15, -1 / 15)
        gradient[:-1] += density @ (1 - right)
        gradient[1:] += density @ right
        return density.sum() - phi.mean(), gradient

    bends = np.zeros((13, 15))
    for i in range(13):
        bends[i, i : i + 3] = [-1 / width[i], 1 / width[i] + 1 / width[i + 1], -1 / width[i + 1]]
    bends /= np.abs(bends).max(1, keepdims=True)
    start = -((points - points.mean()) ** 2) / 2 / points.var()
    solved = minimize(
        objective,
        start,
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda phi: bends @ phi, "jac": lambda phi: bends},
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    found = log_concave_mle(x)
    ours = found.log_prob(x)
    # SLSQP reaches our likelihood and no more, up to its own tolerance in the constraints.
    assert 1 - objective(ours.numpy())[0] == pytest.approx(1 - solved.fun, abs=1e-7)
    assert objective(ours.numpy())[0] <= solved.fun + 1e-9
    torch.testing.assert_close(ours, torch.from_numpy(solved.x), rtol=0, atol=2e-3)


# What characterises the estimator


@pytest.mark.parametrize("kind", ["normal", "exponential", "uniform", "gumbel", "cauchy"])
@pytest.mark.parametrize("n", [20, 200, 1000])
def test_the_estimate_is_a_concave_density_with_the_mean_of_the_sample(kind: str, n: int) -> None:
    x = draws(n, n, kind)
    found = log_concave_mle(x)
    assert found.optimality <= exact.TOLERANCE
    slopes = found.log_values.diff() / found.knots.diff()
    assert bool((slopes.diff() < 0).all())
    assert bool(torch.isin(found.knots, x).all())
    assert float(found.cdf(x.max()[None, None])) == pytest.approx(1.0, abs=1e-13)
    assert mean_of(found) == pytest.approx(float(x.mean()), abs=1e-10 * float(x.max() - x.min()))
    assert found.log_likelihood == pytest.approx(float(found.log_prob(x).mean()), abs=1e-10)


@pytest.mark.parametrize("kind", ["normal", "exponential", "uniform"])
def test_its_integrated_distribution_function_stays_below_that_of_the_sample_and_meets_it_at_knots(
    kind: str,
) -> None:
    x = draws(300, 7, kind).sort(0).values
    found = log_concave_mle(x)
    points, weights = nodes(x[:, 0], 12)
    model = (weights * found.cdf(points[:, None])).reshape(299, 12).sum(1).cumsum(0)
    sample = (x[:, 0].diff() * torch.arange(1, 300) / 300).cumsum(0)
    gap = torch.cat([torch.zeros(1).double(), model - sample])
    assert float(gap.max()) < 1e-10
    assert float(gap[torch.isin(x[:, 0], found.knots)].abs().max()) < 1e-10
    assert float(gap.min()) < -1e-5  # or the test says nothing


def test_the_certificate_tells_a_worse_choice_of_knots() -> None:
    x = np.sort(draws(200, 3)[:, 0].numpy())
    unit, w = (x - x[0]) / (x[-1] - x[0]), np.full(200, 1 / 200)
    ends = np.array([0, 199])
    phi = exact._newton(unit[ends], exact._hat_weights(unit, w, ends), np.zeros(2))
    assert exact._optimality(unit, w, ends, phi) > 0.1  # the middle ought to bend
    knots, best, _ = exact._active_set(unit, w)
    assert exact._optimality(unit, w, knots, best) < 1e-12
    assert exact._optimality(unit, w, knots, best + 0.01) == pytest.approx(0.01 * 0.5, rel=1)  # mass above 1


def test_no_other_concave_function_that_we_try_is_more_likely() -> None:
    x = draws(100, 11).sort(0).values
    found = log_concave_mle(x)
    for other in (log_concave_mle(x[::2]), log_concave_mle(draws(100, 12))):
        log_p = other.log_prob(x)
        assert not bool(log_p.isfinite().all()) or float(log_p.mean()) < found.log_likelihood
    assert found.log_likelihood > -0.5 * math.log(2 * math.pi * float(x.var())) - 0.5


# Closed forms


@pytest.mark.parametrize("r", [0.0, 1e-9, 1e-3, 0.5, 1 - 1e-12, 1.0, 1.5, 30.0, 700.0])
def test_moments_of_an_exponential(r: float) -> None:
    for k, found in enumerate(exact._decay_moments(np.array([r]))):
        where = [p for p in (1 / max(r, 1), 10 / max(r, 1)) if 0 < p < 1]
        expected = quad(
            lambda s, k=k: s**k * math.exp(-r * s), 0, 1, epsabs=0, epsrel=1e-13, points=where or None
        )[0]
        assert float(found[0]) == pytest.approx(expected, rel=1e-12)


def test_gradient_and_hessian_are_those_of_automatic_differentiation() -> None:
    x = torch.tensor([0.0, 0.1, 0.15, 0.6, 1.0], dtype=torch.float64)
    w = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.float64)
    phi = torch.tensor([-3.0, 0.5, 0.5 + 1e-9, 1.0, -8.0], dtype=torch.float64)
    rule, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(40))
    share = (1 + rule) / 2

    def likelihood(phi: Tensor) -> Tensor:
        density = torch.exp(phi[:-1, None] * (1 - share) + phi[1:, None] * share)
        return w @ phi - (x.diff()[:, None] * weight / 2 * density).sum()

    gradient, bands = exact._derivatives(x.numpy(), w.numpy(), phi.numpy())
    torch.testing.assert_close(
        torch.from_numpy(gradient), torch.func.grad(likelihood)(phi), rtol=0, atol=1e-13
    )
    hessian = -torch.func.hessian(likelihood)(phi)
    ours = torch.diag(torch.from_numpy(bands[1]))
    for side in (1, -1):
        ours += torch.diag(torch.from_numpy(bands[0, 1:]), side)
    torch.testing.assert_close(ours, hessian, rtol=1e-11, atol=1e-14)


def test_the_distribution_function_is_the_integral_of_the_density() -> None:
    found = log_concave_mle(draws(80, 5, "gumbel"))
    points, weights = nodes(found.knots, 40)
    mass = (weights * found.log_prob(points[:, None]).exp()).reshape(-1, 40).sum(1).cumsum(0)
    torch.testing.assert_close(found.cdf(found.knots[1:, None]), mass, rtol=0, atol=1e-12)
    at = torch.linspace(float(found.knots[0]), float(found.knots[-1]), 51).double()[1:-1]
    slope = (found.cdf(at[:, None] + 1e-6) - found.cdf(at[:, None] - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, found.log_prob(at[:, None]).exp(), rtol=1e-4, atol=1e-5)


def test_outside_the_sample_the_density_is_zero() -> None:
    found = log_concave_mle(column(0.0, 1.0, 1.5, 4.0))
    outside = column(-1e-9, 4.0 + 1e-9, -math.inf, math.inf)
    assert found.log_prob(outside).tolist() == [-math.inf] * 4
    assert found.cdf(outside).tolist() == pytest.approx([0, 1, 0, 1])
    assert bool(found.log_prob(column(0.0, 4.0)).isfinite().all())


@pytest.mark.parametrize("kind", ["gumbel", "exponential", "uniform"])
def test_samples_follow_the_distribution_function(kind: str) -> None:
    found = log_concave_mle(draws(200, 2, kind))
    sample = found.sample(20_000, seed=0)
    u = found.cdf(sample).sort().values
    grid = torch.arange(1, 20_001) / 20_000
    assert float((u - grid).abs().max()) < 1.95 / math.sqrt(20_000)  # Kolmogorov, level 0.001
    torch.testing.assert_close(found.sample(5, seed=3), found.sample(5, seed=3), rtol=0, atol=0)
    assert found.sample(0).shape == (0, 1)


# Weights, scales and hard samples


def test_ties_are_weights_and_the_order_of_rows_does_not_matter() -> None:
    x = draws(60, 8)
    counts = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(1)).double()
    weighted = log_concave_mle(x, counts)
    repeated = log_concave_mle(x[:, 0].repeat_interleave(counts.long())[:, None])
    shuffled = log_concave_mle(x.flip(0), counts.flip(0) * 1e300)
    for other in (repeated, shuffled):
        torch.testing.assert_close(other.knots, weighted.knots, rtol=0, atol=0)
        torch.testing.assert_close(other.log_values, weighted.log_values, rtol=0, atol=1e-11)
    twice = log_concave_mle(x.repeat(2, 1))
    assert twice.log_likelihood == pytest.approx(log_concave_mle(x).log_likelihood, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, -1.0, 1e8, 2e307])
def test_scale_and_sign_only_scale_the_density(scale: float) -> None:
    x = draws(150, 9, "gumbel")
    found, scaled = log_concave_mle(x), log_concave_mle(x * scale)
    knots, values = found.knots * scale, found.log_values - math.log(abs(scale))
    if scale < 0:
        knots, values = knots.flip(0), values.flip(0)
    torch.testing.assert_close(scaled.knots, knots, rtol=1e-14, atol=0)
    torch.testing.assert_close(scaled.log_values, values, rtol=1e-10, atol=1e-10)


def test_an_offset_moves_the_density() -> None:
    x = draws(150, 10)
    found, moved = log_concave_mle(x), log_concave_mle(x + 1e6)
    torch.testing.assert_close(moved.knots, found.knots + 1e6, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.log_values, found.log_values, rtol=0, atol=1e-7)


HARD = {
    "an outlier at 1e6": torch.cat([draws(300, 1), column(1e6)]),
    "an outlier at -1e15": torch.cat([draws(300, 1), column(-1e15)]),
    "outliers on both sides": torch.cat([draws(300, 1), column(-1e9, 1e9)]),
    "integers": draws(500, 2).mul(3).round(),
    "two far groups": torch.cat([draws(100, 3), draws(100, 4) + 1e3]),
    "neighbours in the last place": torch.cat([draws(100, 5), draws(100, 5) * (1 + 4e-16)]),
    "lognormal": (4 * draws(400, 6)).exp(),
    "Cauchy": draws(5000, 7, "cauchy"),
    "one point 1,000 times": torch.cat([column(0.0).expand(1000, 1), column(1.0, 1.5)]),
    "float32": draws(300, 8).float(),
    "5,000 rows": draws(5000, 9, "gumbel"),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_samples_are_solved(name: str) -> None:
    x = HARD[name]
    found = log_concave_mle(x)
    assert found.optimality <= exact.TOLERANCE
    assert found.iterations < 40
    assert found.log_values.dtype == torch.float64
    assert bool(found.log_prob(x).isfinite().all())
    assert float(found.cdf(x.max()[None, None])) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("seed", range(40))
def test_small_samples_of_every_shape_are_solved(seed: int) -> None:
    n = 2 + seed % 11
    x = draws(n, seed, ("normal", "cauchy", "exponential")[seed % 3])
    weights = draws(n, seed + 100).mul(1.5).exp()[:, 0]
    found = log_concave_mle(x, weights)
    assert found.optimality <= exact.TOLERANCE
    mean = float((weights * x[:, 0]).sum() / weights.sum())
    assert mean_of(found) == pytest.approx(mean, abs=1e-8 * float(x.max() - x.min()))


def test_weights_of_very_different_size_are_solved_as_far_as_rounding_allows() -> None:
    """Slopes of 1e14 in one density: where rounding hides a bend the method stops and says how far off."""
    for seed in range(30):
        x = draws(40, seed).mul(10).exp() * draws(40, seed).sign()
        weights = draws(40, seed + 50).mul(20).exp()[:, 0]
        found = log_concave_mle(x, weights)
        assert found.optimality < 1e-7
        assert found.iterations < 20


# Errors


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.zeros(5), None, r"expected \(N, 1\) samples; got \(5,\)"),
        (torch.zeros(5, 2), None, r"expected \(N, 1\) samples; got \(5, 2\)"),
        (column(1.0, math.nan), None, "samples have NaN at row 1, column 0"),
        (column(1.0, 2.0, math.inf), None, "samples have an infinity at row 2, column 0"),
        (column(-0.0, 0.0), None, "need at least 2 distinct samples; every sample is 0"),
        (column(2.5, 2.5), None, "need at least 2 distinct samples; every sample is 2.5"),
        (column(), None, "need at least 2 distinct samples; there is none"),
        (column(1.0, 2.0), torch.zeros(2), "need at least 2 distinct samples; there is none"),
        (column(1.0, 2.0), torch.tensor([0.0, 1.0]), "need at least 2 distinct samples; every sample is 2"),
        (column(1.0, 2.0), torch.ones(3), r"expected \(2,\) weights; got \(3,\)"),
        (column(1.0, 2.0), torch.tensor([-2.0, -3.0]), "weights must not be negative; row 0 has -2"),
        (column(1.0, 2.0), torch.tensor([1.0, math.nan]), "weights have NaN at row 1"),
    ],
)
def test_bad_input_has_a_message(x: Tensor, weights: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_concave_mle(x, weights)


def test_bad_types_have_a_message() -> None:
    with pytest.raises(TypeError, match="expected a tensor of samples; got list"):
        log_concave_mle([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected floating-point samples; got int64"):
        log_concave_mle(torch.tensor([[1], [2]]))
    with pytest.raises(TypeError, match="expected a floating-point tensor of weights; got int64"):
        log_concave_mle(column(1.0, 2.0), torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="expected a floating-point tensor of weights; got list"):
        log_concave_mle(column(1.0, 2.0), [1.0, 2.0])  # type: ignore[arg-type]


def test_the_methods_refuse_bad_points() -> None:
    found = log_concave_mle(column(0.0, 1.0))
    with pytest.raises(ValueError, match="samples have NaN at row 0, column 0"):
        found.log_prob(column(math.nan))
    with pytest.raises(ValueError, match=r"expected \(N, 1\) samples; got \(3, 2\)"):
        found.cdf(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="cannot draw -1 samples"):
        found.sample(-1)


def test_a_solver_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_ROUNDS", 1)
    with pytest.raises(RuntimeError, match=r"stopped at optimality .* after 1 iterations"):
        log_concave_mle(draws(500, 0))
