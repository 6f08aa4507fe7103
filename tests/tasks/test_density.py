from __future__ import annotations

import copy
import math

import pytest
import torch

from convexlift import ICNN, Lift, Projected, Softplus, Squared
from convexlift.tasks import LogConcaveDensity

UNFROZEN = "^an unfrozen lift has no weights of its own: freeze on training data or pass batch=$"
SOURCES = {
    "icnn": lambda net: net,
    "projected": Projected,
    "softplus": Softplus,
    "squared": Squared,
    "lift": Lift,
}


def net(**options) -> ICNN:
    return ICNN(1, **{"hidden": (16, 16), "seed": 0, **options})


def quadratic(alpha: float = 1.0) -> ICNN:
    """f(x) = alpha x^2 / 2 + constant: the outgoing weights are zero."""
    icnn = net(strong_convexity=alpha, learn_strong_convexity=False).double()
    with torch.no_grad():
        icnn.outer.zero_()
        icnn.linear.zero_()
    return icnn


def gumbel(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-(-uniform.log()).log()).to(dtype)


def data(n: int = 500, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 5 + 2 * torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_a_quadratic_potential_is_a_gaussian():
    density = LogConcaveDensity(quadratic(4.0))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    normal = torch.distributions.Normal(0.0, 0.5)
    assert torch.allclose(density.log_prob(x), normal.log_prob(x)[:, 0].double(), atol=1e-6)
    exact = -2 * x[:, 0] ** 2 - 0.5 * math.log(2 * math.pi / 4)
    assert torch.allclose(density.log_prob(x), exact, atol=1e-12)
    assert torch.allclose(density.score(x), -4 * x, atol=1e-12)


def test_a_quadratic_potential_on_standardised_data_is_the_fitted_gaussian():
    density = LogConcaveDensity(quadratic())
    x = data()
    density.initialise(x)
    mean, deviation = x.mean(), x.std(correction=0)
    exact = torch.distributions.Normal(mean, deviation).log_prob(x)[:, 0]
    assert torch.allclose(density.log_prob(x), exact, atol=1e-12)
    assert torch.allclose(density.score(x), (mean - x) / deviation**2, atol=1e-12)
    assert density.loss(x).item() == pytest.approx(float(-exact.mean()), abs=1e-10)


@pytest.mark.parametrize("name", SOURCES)
def test_it_integrates_to_one_in_data_space(name):
    density = LogConcaveDensity(SOURCES[name](net().double()))
    density.initialise(data())
    frozen = density.freeze(data())
    x = torch.linspace(-100, 110, 200_001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(frozen.log_prob(x).exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-8)


def test_the_score_is_the_derivative_of_log_prob():
    density = LogConcaveDensity(Softplus(net().double()))
    density.initialise(data())
    x = data(20).requires_grad_(True)
    (exact,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    assert torch.allclose(density.score(x.detach()), exact, atol=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_the_gradient_of_the_loss_is_that_of_finite_differences(name):
    torch.manual_seed(0)
    density = LogConcaveDensity(SOURCES[name](net(hidden=(4, 4)).double()))
    x = data(50)
    density.initialise(x)
    density.loss(x).backward()
    for label, parameter in density.named_parameters():
        if parameter.grad is None:
            continue
        entry = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(density)
            with torch.no_grad():
                moved.get_parameter(label).view(-1)[entry] += sign * 1e-5
                values.append(moved.loss(x).item())
        difference = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad.view(-1)[entry]) == pytest.approx(difference, rel=1e-5, abs=1e-8), label


def test_training_loss_is_minus_the_mean_log_prob():
    density = LogConcaveDensity(Softplus(net().double()))
    x = data()
    density.initialise(x)
    assert density.loss(x).item() == pytest.approx(-density.log_prob(x).mean().item(), abs=1e-9)


@pytest.mark.parametrize("name", ["softplus", "lift", "projected"])
def test_training_on_gumbel_samples_comes_close_to_the_exact_density(name, train):
    torch.manual_seed(0)
    density = LogConcaveDensity(SOURCES[name](net(hidden=(32, 32))))
    rows, test = gumbel(4000, dtype=torch.float32), gumbel(20_000, seed=1, dtype=torch.float32)
    train(density, rows, steps=300, lr=1e-2)
    frozen = density.freeze(rows)
    exact = -(test + torch.exp(-test))[:, 0]
    excess = float((exact - frozen.log_prob(test)).mean())
    assert -0.002 < excess < 0.02


def test_relu_networks_train_too(train):
    density = LogConcaveDensity(Softplus(net(activation="relu")))
    rows = gumbel(2000, dtype=torch.float32)
    train(density, rows, steps=100)
    frozen = density.freeze()
    assert frozen.normaliser().error < 2e-6
    assert float(-frozen.log_prob(rows).mean()) < 1.65  # 1.577 is exact, a Gaussian has 1.668


def test_a_training_step_seldom_looks_for_panels_again(train, monkeypatch):
    from convexlift.integration import line as quadrature

    searches = []
    search = quadrature.panel_edges
    monkeypatch.setattr(quadrature, "panel_edges", lambda *a, **k: searches.append(1) or search(*a, **k))
    density = LogConcaveDensity(Lift(net(), seed=0))
    train(density, gumbel(1000, dtype=torch.float32), steps=60)
    assert 1 <= len(searches) <= 6


def test_samples_have_the_density():
    torch.manual_seed(0)
    density = LogConcaveDensity(Softplus(net().double()))
    density.initialise(data())
    x = density.sample(200_000, seed=3)
    grid = torch.linspace(-100, 110, 100_001, dtype=torch.float64)[:, None]
    mass = density.log_prob(grid).detach().exp() * (grid[1, 0] - grid[0, 0])
    mean = float((mass * grid[:, 0]).sum())
    deviation = math.sqrt(float((mass * (grid[:, 0] - mean) ** 2).sum()))
    assert float(x.mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(len(x)))
    assert float(x.std()) == pytest.approx(deviation, rel=0.02)
    entropy = -(mass * density.log_prob(grid)).sum().item()
    assert -density.log_prob(x).mean().item() == pytest.approx(entropy, abs=0.02)
    # Kolmogorov and Smirnov's distance is below 1.63 / sqrt(n) at the 1 % level.
    distribution = mass.cumsum(0)
    empirical = torch.searchsorted(x[:, 0].sort().values, grid[:, 0]) / len(x)
    assert float((distribution - empirical).abs().max()) < 1.63 / math.sqrt(len(x)) + 1e-3


def test_samples_depend_on_the_seed_only():
    density = LogConcaveDensity(net())
    density.initialise(data(dtype=torch.float32))
    before = torch.get_rng_state()
    assert torch.equal(density.sample(10, seed=1), density.sample(10, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(density.sample(10, seed=1), density.sample(10, seed=2))
    assert not torch.equal(density.sample(10), density.sample(10))
    assert density.sample(0).shape == (0, 1)
    assert density.sample(3).dtype == torch.float32


def test_normaliser_has_rigorous_bounds():
    found = LogConcaveDensity(net()).normaliser()
    assert found.log_z.dtype == torch.float64
    assert found.lower <= found.log_z <= found.upper and found.error < 1.1e-6


def test_normaliser_of_a_quadratic():
    icnn = quadratic(0.25)
    constant = icnn(torch.zeros(1, 1, dtype=torch.float64)).item()
    found = LogConcaveDensity(icnn).normaliser()
    assert found.log_z.item() == pytest.approx(0.5 * math.log(2 * math.pi / 0.25) - constant, abs=1e-12)


def test_a_frozen_density_keeps_its_log_z():
    density = LogConcaveDensity(Softplus(net()))
    density.initialise(data(dtype=torch.float32))
    frozen = density.freeze()
    assert isinstance(frozen.block, ICNN) and not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.log_z.isfinite() and not density.log_z.isfinite()
    x = data(20, dtype=torch.float32)
    assert torch.allclose(frozen.log_prob(x), density.log_prob(x), atol=1e-6)
    assert float(frozen.loss(x)) == pytest.approx(float(-frozen.log_prob(x).mean()), abs=1e-6)
    frozen.log_z += 1  # it is what log_prob reads
    assert torch.allclose(frozen.log_prob(x), density.log_prob(x) - 1, atol=1e-6)


def test_a_frozen_density_that_is_trained_again_recomputes_log_z():
    frozen = LogConcaveDensity(quadratic()).freeze()
    frozen.block.requires_grad_(True)
    with torch.no_grad():
        frozen.block.linear += 1
    x = data(5)
    exact = -((x[:, 0] + 1) ** 2) / 2 - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(frozen.log_prob(x), exact, atol=1e-10)


@pytest.mark.parametrize("name", SOURCES)
def test_freezing_changes_nothing(name):
    density = LogConcaveDensity(SOURCES[name](net().double())).eval()
    x = data()
    density.initialise(x)
    batch = x if name == "lift" else None
    frozen = density.freeze(x)
    assert torch.allclose(frozen.log_prob(x), density.log_prob(x, batch=batch), atol=1e-10)
    assert torch.allclose(frozen.score(x), density.score(x, batch=batch), atol=1e-12)
    assert torch.equal(frozen.sample(5, seed=0), density.sample(5, seed=0, batch=batch))


def test_state_dict_and_deepcopy_restore_log_probs_exactly():
    density = LogConcaveDensity(Lift(net(), seed=0))
    x = data(dtype=torch.float32)
    density.initialise(x)
    density.loss(x).backward()
    again = LogConcaveDensity(Lift(net(), seed=5))
    again.load_state_dict(density.state_dict())
    for other in (again, copy.deepcopy(density)):
        assert torch.equal(other.log_prob(x, batch=x), density.log_prob(x, batch=x))
        assert torch.equal(other.objective.where.nan_to_num(), density.objective.where.nan_to_num())
    frozen, blank = density.freeze(x), LogConcaveDensity(net(seed=9))
    blank.load_state_dict(frozen.state_dict())
    assert torch.equal(blank.requires_grad_(False).log_prob(x), frozen.log_prob(x))


def test_only_training_losses_change_state():
    density = LogConcaveDensity(Lift(net(), summary="moments", seed=0))
    x = data(dtype=torch.float32)
    density.initialise(x)
    before = {k: v.clone() for k, v in density.state_dict().items()}
    density.log_prob(x, batch=x)
    density.score(x, batch=x)
    density.sample(5, batch=x)
    density.normaliser(batch=x)
    density.freeze(x)
    density.eval().loss(x)
    assert not density.training
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in density.state_dict().items())
    density.train().loss(x)
    assert density.objective.where.isfinite().any()


def test_initialise_is_done_once():
    density = LogConcaveDensity(net().double())
    density.initialise(data())
    mean = density.standardiser.mean.clone()
    with pytest.warns(UserWarning, match="initialised on other data"):
        density.initialise(data() + 100)
    assert torch.equal(density.standardiser.mean, mean)


def test_emitting_from_other_rows():
    density = LogConcaveDensity(Lift(net(), seed=0))
    x = data(dtype=torch.float32)
    density.initialise(x)
    own, other = density.loss(x[:50]), density.loss(x[:50], emit_from=x[50:60])
    assert own.item() != other.item()
    assert density.loss(x[:50], emit_from=x[:50]).item() == own.item()
    plain = LogConcaveDensity(Softplus(net()))
    plain.initialise(x)
    assert plain.loss(x[:50]).item() == plain.loss(x[:50], emit_from=x[50:60]).item()


def test_settled_lifts_freeze_to_what_they_are():
    density = LogConcaveDensity(Lift(net().double(), seed=0))
    x = data()
    density.initialise(x)
    assert density.settle_at == 0.85
    density.set_progress(0.85)
    density.settle(x)
    frozen = density.freeze(x)
    assert torch.equal(density.freeze().log_prob(x), frozen.log_prob(x))
    assert density.loss(x[:7]).item() == pytest.approx(float(frozen.loss(x[:7])), abs=1e-10)
    assert LogConcaveDensity(Softplus(net())).settle_at is None


def test_an_unfrozen_lift_is_refused():
    density = LogConcaveDensity(Lift(net()))
    x = data(dtype=torch.float32)
    for call in (
        lambda: density.log_prob(x),
        lambda: density.score(x),
        lambda: density.sample(3),
        lambda: density.normaliser(),
        lambda: density.freeze(),
    ):
        with pytest.raises(ValueError, match=UNFROZEN):
            call()


def test_bad_input_is_refused():
    density = LogConcaveDensity(net())
    with pytest.raises(ValueError, match=r"^expected \(N, 1\) samples; got \(4, 2\)$"):
        density.log_prob(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="^expected floating-point samples; got int64$"):
        density.loss(data().long())
    with pytest.raises(ValueError, match="^samples have NaN at row 0, column 0$"):
        density.score(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"^expected \(N, 1\) samples for the lift; got \(4, 2\)$"):
        density.loss(torch.zeros(4, 1), emit_from=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="^cannot draw -1 samples$"):
        density.sample(-1)
    with pytest.raises(ValueError, match="^column 0 is constant"):
        density.initialise(torch.ones(4, 1))
    with pytest.raises(TypeError, match="^expected an ICNN or a weight source of one; got Linear$"):
        LogConcaveDensity(torch.nn.Linear(1, 1))
    linear = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(linear.weight)
    with pytest.raises(
        TypeError, match="^expected an ICNN or a weight source of one; got Softplus of Linear$"
    ):
        LogConcaveDensity(Softplus(linear, names=["weight"]))


def test_a_potential_that_is_not_integrable_is_refused():
    icnn = net(strong_convexity=0.0)
    with torch.no_grad():
        icnn.linear.fill_(100.0)
    density = LogConcaveDensity(icnn)
    with pytest.raises(ValueError, match=r"^exp\(-f\) has no finite integral: on the left"):
        density.loss(torch.zeros(4, 1))


def test_a_potential_that_is_not_a_number_is_a_floating_point_error():
    icnn = net()
    with torch.no_grad():
        icnn.linear.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="f is not a number"):
        LogConcaveDensity(icnn).loss(torch.zeros(4, 1))
