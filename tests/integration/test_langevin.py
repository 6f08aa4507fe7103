from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convexlift as cl
from convexlift.integration.gaussian import Gaussian
from convexlift.integration.langevin import Draws, adapted, draw, langevin_step, start_state, together
from convexlift.integration.line import normaliser, quantile

LAWS = {
    "normal": (lambda u: u.square() / 2, lambda u: u, 0.0, 1.0),
    "logistic": (
        lambda u: u + 2 * F.softplus(-u),
        lambda u: 1 - 2 * torch.sigmoid(-u),
        0.0,
        math.pi / 3**0.5,
    ),
    "gumbel": (lambda u: u + torch.exp(-u), lambda u: 1 - torch.exp(-u), 0.57722, math.pi / 6**0.5),
    "laplace": (torch.abs, torch.sign, 0.0, 2**0.5),
    "quartic": (lambda u: u**4, lambda u: 4 * u**3, 0.0, 0.58137),
}


def product(name: str):
    f, slope, _, _ = LAWS[name]
    return (lambda x: f(x).sum(1)), slope


def isotropic(dim: int, mean: float = 0.0, deviation: float = 1.0, dtype=torch.float64) -> Gaussian:
    return Gaussian(torch.full((dim,), mean, dtype=dtype), deviation * torch.eye(dim, dtype=dtype))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_step_obeys_detailed_balance() -> None:
    """The acceptance against the ratio of target and proposal densities, written out."""
    f = together(lambda x: (x**4).sum(1) + x[:, 0], lambda x: 4 * x**3 + torch.tensor([1.0, 0.0]).double())
    factor = torch.tensor([[0.8, 0.0], [-0.5, 1.3]], dtype=torch.float64)
    x, h = torch.randn(200, 2, dtype=torch.float64, generator=seeded()), 0.7
    state = langevin_step(f, start_state(f, x), h, factor, seeded(1))
    noise = torch.randn(200, 2, dtype=torch.float64, generator=seeded(1))

    def drift(y: Tensor) -> Tensor:
        return y - h**2 / 2 * (f(y)[1] @ factor).clamp(-3 / h, 3 / h) @ factor.T

    def log_transition(a: Tensor, b: Tensor) -> Tensor:
        scaled = Gaussian(torch.zeros(2).double(), h * factor)
        return scaled.log_prob(b - drift(a))

    y = drift(x) + h * noise @ factor.T
    ratio = f(x)[0] - f(y)[0] + log_transition(y, x) - log_transition(x, y)
    torch.testing.assert_close(state.log_accept, ratio.clamp_max(0), rtol=1e-9, atol=1e-9)
    assert torch.equal(state.x, torch.where(state.accepted[:, None], y, x)) or torch.allclose(
        state.x, torch.where(state.accepted[:, None], y, x)
    )
    assert 0 < int(state.accepted.sum()) < 200
    torch.testing.assert_close(state.value, f(state.x)[0])
    torch.testing.assert_close(state.gradient, f(state.x)[1])


def test_a_step_costs_one_evaluation_and_stays_in_float32() -> None:
    calls = []

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(x))
        return x.square().sum(1) / 2, x

    state = start_state(f, torch.zeros(10, 3))
    for _ in range(5):
        state = langevin_step(f, state, 0.5, generator=seeded())
    assert calls == [10] * 6
    assert {t.dtype for t in (state.x, state.value, state.gradient, state.log_accept)} == {torch.float32}
    assert 0 < state.acceptance <= 1


@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_any_step_leaves_the_target_as_it_is(step: float) -> None:
    f = together(lambda x: x[:, 0] + torch.exp(-x[:, 0]), lambda x: 1 - torch.exp(-x))
    start = -torch.log(-torch.log(torch.rand(40_000, 1, dtype=torch.float64, generator=seeded())))
    state = start_state(f, start)
    generator = seeded(1)
    for _ in range(8):
        state = langevin_step(f, state, step, generator=generator)
    assert not torch.equal(state.x, start)
    levels = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    points = -torch.log(-torch.log(levels))
    share = (state.x <= points).double().mean(0)
    assert float(((share - levels) / (levels * (1 - levels) / 40_000).sqrt()).abs().max()) < 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_proposal_that_is_not_finite_is_rejected(bad: float) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x[:, 0] > 0, bad, x[:, 0].square()), torch.where(x > 0, bad, 2 * x)

    state = start_state(f, torch.full((500, 1), -0.1))
    for _ in range(20):
        state = langevin_step(f, state, 0.5, generator=seeded())
    assert bool((state.x <= 0).all()) and bool(state.value.isfinite().all())
    assert float(state.log_accept.min()) == -math.inf


@pytest.mark.parametrize("name", sorted(LAWS))
@pytest.mark.parametrize(("mean", "deviation"), [(20.0, 1e-3), (3.0, 1e3)])
def test_draws_have_the_known_moments_from_any_start(name: str, mean: float, deviation: float) -> None:
    value, gradient = product(name)
    found = draw(value, gradient, isotropic(3, mean, deviation), 2000, generator=seeded())
    assert isinstance(found, Draws) and found.converged and found.x.shape == (2000, 3)
    assert 0.4 < found.acceptance < 0.75
    _, _, centre, spread = LAWS[name]
    assert float((found.x.mean(0) - centre).abs().max()) < 5 * spread / float(found.ess.min()) ** 0.5
    assert float((found.x.std(0) / spread - 1).abs().max()) < 0.15


def test_draws_follow_a_trained_looking_density_in_one_dimension() -> None:
    f = cl.ICNN(1, hidden=(16, 16), strong_convexity=0.3, seed=2).double().freeze().emit()
    exact = normaliser(f.value, f.gradient)
    found = draw(f.value, f.gradient, isotropic(1), 4000, generator=seeded())
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    share = (found.x <= quantile(exact, levels)).double().mean(0)
    assert float((share - levels).abs().max()) < 0.035


def test_the_covariance_of_a_stretched_gaussian() -> None:
    scales = torch.logspace(-2, 2, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=seeded()))[0]
    precision = rotation / scales.square() @ rotation.T

    def value(x: Tensor) -> Tensor:
        return ((x @ precision) * x).sum(1) / 2

    found = adapted(value, lambda x: x @ precision, isotropic(8), generator=seeded())
    covariance = rotation * scales.square() @ rotation.T
    whitened = torch.linalg.solve(found.factor, torch.linalg.solve(found.factor, covariance).T)
    eigenvalues = torch.linalg.eigvalsh(whitened)
    assert 0.6 < float(eigenvalues[0]) and float(eigenvalues[-1]) < 1.7


def test_the_same_generator_gives_the_same_draws() -> None:
    value, gradient = product("logistic")
    first, second = (draw(value, gradient, isotropic(2), 100, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first.x, second.x) and first.steps == second.steps
    assert not torch.equal(first.x, draw(value, gradient, isotropic(2), 100, generator=seeded(4)).x)


def test_few_draws_come_from_chains_that_were_long_enough_to_judge() -> None:
    value, gradient = product("normal")
    found = draw(value, gradient, isotropic(2), 5, generator=seeded())
    assert found.x.shape == (5, 2) and found.converged and float(found.ess.max()) <= 5
    start = draw(value, gradient, isotropic(2, dtype=torch.float32), 5, generator=seeded())
    assert start.x.dtype == torch.float64


def test_a_wall_is_respected() -> None:
    """Exponential law: f = x on x > 0, infinite elsewhere."""
    found = draw(
        lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.inf),
        torch.ones_like,
        isotropic(1, 2.0),
        4000,
        generator=seeded(),
    )
    assert found.converged and float(found.x.min()) > 0
    assert float(found.x.mean()) == pytest.approx(1, abs=0.1)


def test_what_cannot_be_sampled_is_refused() -> None:
    value, gradient = product("normal")
    with pytest.raises(RuntimeError, match="not finite at the mean of the Gaussian to start from"):
        draw(lambda x: x[:, 0] * torch.nan, gradient, isotropic(1), 10, generator=seeded())
    with pytest.raises(RuntimeError, match="the chains do not move: .* check that gradient is the gradient"):
        draw(shut_after(40), gradient, isotropic(2), 10, generator=seeded())
    with pytest.raises(
        RuntimeError, match="f is not finite, or not convex: .* of 64 chains found it no lower"
    ):
        draw(lambda x: torch.where(x[:, 0] == 0, 0.0, 1e9), gradient, isotropic(2), 10, generator=seeded())
    with pytest.raises(ValueError, match="at least 2 chains; got n = 0, chains = 64"):
        draw(value, gradient, isotropic(1), 0)
    with pytest.raises(ValueError, match="adapted needs at least 2 chains; got 1"):
        adapted(value, gradient, isotropic(1), chains=1)


def shut_after(count: int):
    """A function that is finite for so many evaluations, and infinite afterwards."""
    calls = []

    def value(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.full_like(x[:, 0], 0.0 if len(calls) <= count else math.inf)

    return value
