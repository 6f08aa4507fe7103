from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convexlift as cl
from convexlift.integration import annealing
from convexlift.integration.annealing import UnreliableEstimate, annealed_normaliser
from convexlift.integration.gaussian import Gaussian, laplace
from convexlift.integration.langevin import adapted
from convexlift.integration.line import gauss_lobatto, normaliser


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def isotropic(dim: int, mean: float = 0.0, deviation: float = 1.0) -> Gaussian:
    return Gaussian(torch.full((dim,), mean).double(), deviation * torch.eye(dim).double())


def normal(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


def slope(x: Tensor) -> Tensor:
    return x


def rotated(f, derivative, dim: int):
    basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=seeded(dim)))[0]
    return (lambda x: f(x @ basis).sum(1)), (lambda x: derivative(x @ basis) @ basis.T)


def logistic(dim: int):
    return rotated(lambda u: u + 2 * F.softplus(-u), lambda u: 1 - 2 * torch.sigmoid(-u), dim)


def test_a_gaussian_from_itself_is_exact() -> None:
    root = torch.randn(32, 32, dtype=torch.float64, generator=seeded())
    factor = torch.linalg.cholesky(root @ root.T / 32 + 0.1 * torch.eye(32))
    q = Gaussian(torch.randn(32, dtype=torch.float64), factor)
    precision = torch.cholesky_inverse(factor)

    def gradient(x: Tensor) -> Tensor:
        return (x - q.mean) @ precision

    found = annealed_normaliser(
        lambda x: 7 - q.log_prob(x), gradient, laplace(q.mean, precision), particles=256, generator=seeded()
    )
    assert float(found.log_z) == pytest.approx(-7, abs=1e-9)
    assert found.error < 1e-9 and found.ess == pytest.approx(256)
    assert found.temperatures.tolist() == [0.0, 1.0]


def test_a_correlated_gaussian_from_an_adapted_one() -> None:
    root = torch.randn(32, 32, dtype=torch.float64, generator=seeded())
    factor = torch.linalg.cholesky(root @ root.T / 32 + 0.1 * torch.eye(32))
    precision = torch.cholesky_inverse(factor)

    def value(x: Tensor) -> Tensor:
        return ((x @ precision) * x).sum(1) / 2

    generator = seeded(1)
    q = adapted(value, lambda x: x @ precision, isotropic(32), generator=generator)
    found = annealed_normaliser(value, lambda x: x @ precision, q, particles=512, generator=generator)
    truth = 16 * math.log(2 * math.pi) + float(factor.diagonal().log().sum())
    assert found.error < 0.05 and abs(float(found.log_z) - truth) < 4 * found.error


def test_a_rotated_product_of_sixteen_logistics() -> None:
    """Z = 1; the Laplace fit has covariance 2 I, the logistic law pi^2 / 3."""
    value, gradient = logistic(16)
    q = laplace(torch.zeros(16), 0.5 * torch.eye(16))
    found = annealed_normaliser(value, gradient, q, generator=seeded(0))
    assert abs(float(found.log_z)) < 0.02 and abs(float(found.log_z)) < 3 * found.error
    assert 0.004 < found.error < 0.02 and found.particles == 2048
    assert abs(found.backward - float(found.log_z)) < 0.1 and 0.5 < found.acceptance < 0.8
    assert found.method.startswith("annealed importance sampling, 2,048 particles over ")


def test_the_standard_error_covers_the_truth() -> None:
    value, gradient = logistic(3)
    hits = 0
    for seed in range(6):
        found = annealed_normaliser(
            value, gradient, isotropic(3, 0, 1.5), particles=256, generator=seeded(seed)
        )
        hits += abs(float(found.log_z)) <= 2 * found.error
    assert hits >= 5


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_networks_against_quadrature(dim: int) -> None:
    f = cl.ICNN(dim, hidden=(12, 12), strong_convexity=0.3, seed=4).double().freeze().emit()
    generator = seeded(2)
    q = adapted(f.value, f.gradient, isotropic(dim), generator=generator)
    found = annealed_normaliser(f.value, f.gradient, q, particles=1024, generator=generator)
    if dim == 1:
        truth = float(normaliser(f.value, f.gradient).log_z)
    else:  # a tensor grid wide enough that nothing is left outside
        reach = 7 * float(q.covariance.diagonal().sqrt().max())
        panels = 10 if dim == 2 else 4
        nodes, log_weights = gauss_lobatto(torch.linspace(-reach, reach, panels + 1, dtype=torch.float64))
        grid = torch.cartesian_prod(*[nodes] * dim) + q.mean
        weights = torch.cartesian_prod(*[log_weights] * dim).sum(1)
        truth = float(torch.logsumexp(weights - f.value(grid), 0))
    assert found.error < 0.02
    assert abs(float(found.log_z) - truth) < 3 * found.error


def test_a_laplace_fit_fooled_by_a_kink() -> None:
    """f = e log cosh(x / e): nearly |x|, but with curvature 1 / e at the mode."""
    dim, e = 6, 1e-6

    def f(u: Tensor) -> Tensor:
        return u.abs() + e * (F.softplus(-2 * u.abs() / e) - math.log(2))

    value, gradient = rotated(f, lambda u: torch.tanh(u / e), dim)
    fooled = laplace(torch.zeros(dim), torch.eye(dim) / e)
    with pytest.raises(UnreliableEstimate, match="too far from the target"):
        annealed_normaliser(value, gradient, fooled, particles=256, generator=seeded())
    generator = seeded(1)
    q = adapted(value, gradient, fooled, chains=32, generator=generator)
    assert 1.2 < float(q.covariance.diagonal().mean().sqrt()) < 1.6
    found = annealed_normaliser(value, gradient, q, particles=512, generator=generator)
    truth = dim * (math.log(e * math.sqrt(math.pi)) + math.lgamma(e / 2) - math.lgamma((e + 1) / 2))
    assert found.error < 0.1 and abs(float(found.log_z) - truth) < 3 * found.error


@pytest.mark.parametrize(
    "q", [isotropic(8, 0, 0.01), isotropic(8, 18), isotropic(1, 50), isotropic(8, 0, 1e3)]
)
def test_a_bad_proposal_is_refused(q: Gaussian) -> None:
    with pytest.raises(
        UnreliableEstimate, match="100 temperatures do not bridge them, 1 - b is still .*adapted"
    ):
        annealed_normaliser(normal, slope, q, particles=256, generator=seeded(), max_temperatures=100)


def test_what_is_not_refused_is_right() -> None:
    """In one dimension even so narrow a proposal can be bridged."""
    found = annealed_normaliser(normal, slope, isotropic(1, 0, 0.05), particles=512, generator=seeded())
    assert abs(float(found.log_z) - math.log(2 * math.pi) / 2) < 3 * found.error


def test_annealing_back_sees_what_the_forward_weights_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """One jump from a narrow proposal: its weights are nearly equal, and miss most of the mass."""
    monkeypatch.setattr(annealing, "_CONDITIONAL", 0.0)
    with pytest.raises(
        UnreliableEstimate, match="do not lead back .*: effective sample size .* of 256, less than"
    ):
        annealed_normaliser(normal, slope, isotropic(4, 0, 0.2), particles=512, generator=seeded())
    monkeypatch.setattr(annealing, "SHARE", 0.0)
    with pytest.raises(UnreliableEstimate, match="forwards and backwards disagree: log Z = .* wider one"):
        annealed_normaliser(normal, slope, isotropic(4, 0, 0.2), particles=512, generator=seeded(1))
    monkeypatch.setattr(annealing, "SHARE", 0.1)
    with pytest.raises(UnreliableEstimate, match="collapsed: effective sample size .* of 512, less than 10%"):
        annealed_normaliser(normal, slope, isotropic(4, 3, 1), particles=512, generator=seeded())


def test_a_wrong_gradient_is_refused() -> None:
    with pytest.raises(UnreliableEstimate):
        annealed_normaliser(
            normal, lambda x: -40 * x, isotropic(8, 0, 0.5), particles=256, generator=seeded()
        )


def test_mass_that_is_infinite_elsewhere() -> None:
    """Half a normal: f infinite on the left; half of the weights are zero, and Z is half."""
    found = annealed_normaliser(
        lambda x: torch.where(x[:, 0] > 0, x[:, 0].square() / 2, torch.inf),
        slope,
        isotropic(1, 0.8, 0.8),
        particles=1024,
        generator=seeded(),
    )
    truth = math.log(2 * math.pi) / 2 - math.log(2)
    assert abs(float(found.log_z) - truth) < 3 * found.error


def test_bad_input_has_one_sentence() -> None:
    with pytest.raises(ValueError, match="expected at least 256 particles; got 10"):
        annealed_normaliser(normal, slope, isotropic(1), particles=10)
    with pytest.raises(ValueError, match="f is NaN or -inf at 256 of 256 points"):
        annealed_normaliser(lambda x: normal(x) * torch.nan, slope, isotropic(1), particles=512)
    with pytest.raises(UnreliableEstimate, match="f is infinite at all 256 draws of the proposal"):
        annealed_normaliser(lambda x: normal(x) + torch.inf, slope, isotropic(1), particles=512)


def test_the_same_generator_gives_the_same_estimate() -> None:
    value, gradient = logistic(2)
    first, second = (
        annealed_normaliser(value, gradient, isotropic(2), particles=256, generator=seeded(5))
        for _ in range(2)
    )
    assert torch.equal(first.log_z, second.log_z) and first.backward == second.backward
