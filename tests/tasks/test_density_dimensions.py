"""Log-concave densities in two dimensions and more."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import convexlift as cl
from convexlift import ICNN, Lift, LogConcaveDensity, Projected, Softplus, Squared, fit
from convexlift.integration.annealing import UnreliableEstimate
from convexlift.integration.annealing import annealed_normaliser as annealed
from convexlift.integration.gaussian import Gaussian
from convexlift.objectives import OBJECTIVES, objective_named
from convexlift.tasks.density import check_outliers
from convexlift.testing import check_convex, check_nonnegative

SOURCES = {"projected": Projected, "softplus": Softplus, "squared": Squared, "lift": Lift}


def net(dim: int, **options) -> ICNN:
    return ICNN(dim, **{"hidden": (16, 16), "strong_convexity": 0.2, "seed": 0, **options})


def gaussian_net(dim: int) -> ICNN:
    """f(x) = |x|^2 / 2 + constant: the outgoing weights are zero."""
    icnn = net(dim, strong_convexity=1.0, learn_strong_convexity=False).double()
    with torch.no_grad():
        icnn.outer.zero_()
        icnn.linear.zero_()
    return icnn


def correlated(n: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(dim, dtype=torch.float64).cumsum(0) * torch.linspace(1, 20, dim, dtype=torch.float64)
    return (5 + torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix).to(dtype)


def trained(dim: int, source: str = "squared", objective: str = "mle", steps: int = 60) -> LogConcaveDensity:
    torch.manual_seed(0)
    density = LogConcaveDensity(SOURCES[source](net(dim)), objective)
    x = correlated(600, dim, dtype=torch.float32).exp().log1p()  # skewed
    fit(density, x, steps=steps, batch_size=128, lr=0.02, progress=False)
    return density.freeze(x)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_quadratic_potential_is_the_full_covariance_gaussian(dim):
    x = correlated(400, dim)
    density = LogConcaveDensity(gaussian_net(dim))
    density.initialise(x)
    frozen = density.freeze()
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    tolerance = 1e-5 if dim == 2 else 0.02
    assert torch.allclose(frozen.log_prob(x), normal.log_prob(x), atol=tolerance)
    precision = torch.linalg.inv(x.T.cov(correction=0))
    assert torch.allclose(frozen.score(x), -(x - x.mean(0)) @ precision, atol=1e-6)
    assert torch.allclose(frozen.mode(), x.mean(0), atol=1e-6)
    found = frozen.normaliser()
    truth = dim / 2 * math.log(2 * math.pi) - float(frozen.block(torch.zeros(1, dim, dtype=torch.float64)))
    assert abs(float(found.log_z) - truth) <= max(3 * found.error, 1e-6)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_trained_model_is_convex_and_non_negative(source, objective):
    frozen = trained(3 if objective in ("chains", "importance", "mle") else 2, source, objective, steps=12)
    potential = frozen.block.emit()
    assert check_convex(potential.value, dim=frozen.dim)
    assert check_nonnegative(frozen.block)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("objective", ["mle", "score", "nce"])
def test_a_trained_density_integrates_to_one_in_the_plane(objective):
    frozen = trained(2, objective=objective)
    x = frozen.sample(5000, seed=0).double()
    low, high = x.amin(0) - 3 * x.std(0), x.amax(0) + 3 * x.std(0)
    sides = [torch.linspace(float(a), float(b), 1201) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*sides)
    cell = math.prod(float(side[1] - side[0]) for side in sides)
    with torch.no_grad():
        mass = sum(float(frozen.log_prob(part).double().exp().sum()) for part in grid.split(200_000)) * cell
    assert mass == pytest.approx(1.0, abs=2e-3)


def test_annealing_agrees_with_quadrature_in_the_plane():
    frozen = trained(2)
    exact = frozen.normaliser()
    f = copy.deepcopy(frozen.block).double().emit()
    q = Gaussian(torch.zeros(2), torch.eye(2))
    found = annealed(f.value, f.gradient, q, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.log_z - exact.log_z)) < 3 * found.error + exact.error


def test_annealing_agrees_with_a_grid_in_space():
    frozen = trained(3, steps=30)
    side = torch.linspace(-9, 9, 121)
    grid = torch.cartesian_prod(side, side, side)
    with torch.no_grad():
        parts = [torch.logsumexp(-frozen.block(part).double(), 0) for part in grid.split(300_000)]
    exact = float(torch.logsumexp(torch.stack(parts), 0)) + 3 * math.log(float(side[1] - side[0]))
    found = frozen.normaliser(seed=3)
    assert abs(float(found.log_z) - exact) < 3 * found.error
    assert found.error < 0.02


@pytest.mark.parametrize("dim", [2, 3])
def test_samples_have_the_density(dim):
    """The mean of log p over draws is minus the entropy, which importance sampling gives too."""
    frozen = trained(dim)
    found = frozen.draw(20_000, seed=1)
    assert found.converged and float(found.ess.min()) > 2000
    x = found.x.double()
    wide = Gaussian(x.mean(0), 1.3 * torch.linalg.cholesky(x.T.cov()))
    y = wide.sample(40_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = frozen.log_prob(y.float()).double()
        own = -frozen.log_prob(found.x).double().mean()
    w = (log_p - wide.log_prob(y)).exp()
    assert float(w.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(own) == pytest.approx(float(-(w * log_p).sum() / w.sum()), abs=0.05)
    moments = (w[:, None] * y).sum(0) / w.sum()
    assert torch.allclose(x.mean(0), moments, atol=4 * float(x.std(0).max()) / math.sqrt(2000))


def test_samples_and_chains_depend_on_the_seed_only():
    frozen = trained(3, steps=10)
    before = torch.get_rng_state()
    assert torch.equal(frozen.sample(20, seed=1), frozen.sample(20, seed=1))
    assert not torch.equal(frozen.sample(20, seed=1), frozen.sample(20, seed=2))
    assert float(frozen.normaliser().log_z) == float(frozen.normaliser().log_z)
    assert torch.equal(before, torch.get_rng_state())
    assert frozen.sample(0).shape == (0, 3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_credible_region_holds_its_share_and_is_convex(dim):
    frozen = trained(dim)
    region = frozen.credible_region(0.8)
    fresh = frozen.sample(20_000, seed=9)
    share = float(region.contains(fresh).double().mean())
    assert share == pytest.approx(0.8, abs=4 * region.error + 4 * math.sqrt(0.16 / 4000))
    assert bool(region.contains(frozen.mode()[None]).all())
    inside = fresh[region.contains(fresh)]
    middle = (inside[:4000] + inside[4000:8000]) / 2
    assert bool(region.contains(middle).all())
    with pytest.raises(ValueError, match=r"^the level must lie between 0 and 1; got 1\.5$"):
        frozen.credible_region(1.5)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_credible_region_of_a_gaussian_is_a_ball(dim):
    density = LogConcaveDensity(gaussian_net(dim)).freeze()
    half = torch.tensor(dim / 2, dtype=torch.float64)
    region = density.credible_region(torch.tensor(0.9))
    radius_squared = -2 * (region.threshold + dim / 2 * math.log(2 * math.pi))
    held = float(torch.special.gammainc(half, torch.tensor(radius_squared / 2, dtype=torch.float64)))
    assert isinstance(region.level, float)
    if dim <= 2:
        assert region.error == 0.0 and held == pytest.approx(0.9, abs=1e-3)
    else:
        assert 0 < region.error < 0.01 and held == pytest.approx(0.9, abs=4 * region.error + 0.01)
    edge = torch.eye(dim, dtype=torch.float64)[:1] * math.sqrt(radius_squared)
    assert region.contains(torch.cat([0.99 * edge, 1.01 * edge])).tolist() == [True, False]


def test_a_credible_region_draws_once(monkeypatch):
    frozen = trained(3, steps=5)
    runs = []
    draw = LogConcaveDensity.draw
    monkeypatch.setattr(LogConcaveDensity, "draw", lambda *a, **k: runs.append(1) or draw(*a, **k))
    frozen.credible_region(0.5)
    assert len(runs) == 1


def test_a_credible_region_stays_when_training_goes_on():
    density = LogConcaveDensity(gaussian_net(2))
    region = density.credible_region(0.9)
    with torch.no_grad():
        density.block.linear += 5
    assert bool(region.contains(torch.zeros(1, 2, dtype=torch.float64)))


def test_a_frozen_density_finds_z_once_and_keeps_it(tmp_path, monkeypatch):
    frozen = trained(3, steps=10)
    assert not bool(frozen.log_z.isfinite()) and bool(frozen.quick_log_z.isfinite())
    x = frozen.sample(50, seed=0)
    cheap = float(frozen.loss(x))
    cl.save(frozen, tmp_path / "density.safetensors")
    assert bool(frozen.log_z.isfinite())
    assert float(frozen.loss(x)) == pytest.approx(float(-frozen.log_prob(x).mean()), abs=1e-5)
    assert cheap == pytest.approx(float(frozen.loss(x)), abs=0.1)
    loaded = cl.load(tmp_path / "density.safetensors")
    monkeypatch.setattr("convexlift.tasks.density.annealed", None)  # log Z is not looked for again
    assert torch.equal(loaded.log_prob(x), frozen.log_prob(x))
    assert torch.equal(loaded.sample(5, seed=0), frozen.sample(5, seed=0))
    assert float(loaded.loss(x)) == pytest.approx(float(frozen.loss(x)), abs=1e-6)


def test_an_unfrozen_density_does_not_keep_z():
    density = LogConcaveDensity(Squared(net(3)))
    x = correlated(100, 3, dtype=torch.float32)
    density.initialise(x)
    with pytest.raises(ValueError, match="^only a frozen density keeps its log Z: call freeze first$"):
        density.normalise()
    assert torch.allclose(density.log_prob(x), density.freeze().log_prob(x), atol=1e-5)
    assert not bool(density.log_z.isfinite())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_row_of_weight_two_counts_twice(dim):
    x = correlated(200, dim, dtype=torch.float32)
    weights = torch.ones(200)
    weights[:50] = 2
    weights[150:] = 0
    twice = torch.cat([x[:150], x[:50]])
    one, other = (LogConcaveDensity(Squared(net(dim)), "score") for _ in range(2))
    one.initialise((x, weights))
    other.initialise(twice)
    assert torch.allclose(one.standardiser.mean, other.standardiser.mean, atol=1e-5)
    assert torch.allclose(one.standardiser(x), other.standardiser(x), atol=1e-4)
    assert one.loss((x, weights)).item() == pytest.approx(other.loss(twice).item(), abs=1e-4)


def test_weights_train_through_fit():
    """Weights that turn a uniform sample into a normal one."""
    x = (torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 10
    weights = torch.exp(-x.square().sum(1) / 2)
    density = LogConcaveDensity(Squared(net(2)))
    fit(density, (x, weights), validation=(x[:500], weights[:500]), steps=100, lr=0.02, progress=False)
    frozen = density.freeze((x, weights))
    y = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(y)
    assert -0.02 < float((exact - frozen.log_prob(y)).mean()) < 0.05
    assert frozen.loss((x, weights)).item() == pytest.approx(
        float(-(weights * frozen.log_prob(x)).mean() / weights.mean()), abs=1e-4
    )


def test_lifts_settle_and_freeze():
    x = correlated(300, 3, dtype=torch.float32)
    density = LogConcaveDensity(Lift(net(3), weight_gain=1.0, free_gain=1.0, seed=0))
    fit(density, x, validation=x[:50], steps=20, batch_size=64, lr=0.001, patience=None, progress=False)
    frozen = density.freeze(x)
    assert isinstance(frozen.block, ICNN)
    batch_free = density.eval().freeze()
    assert torch.equal(frozen.log_prob(x), batch_free.log_prob(x))


def test_data_that_no_density_has_are_refused():
    density = LogConcaveDensity(net(3))
    x = correlated(100, 3, dtype=torch.float32)
    cases = {
        r"^need at least 4 rows to whiten 3 columns; got 3$": x[:3],
        r"^column 1 is constant": torch.stack([x[:, 0], torch.ones(100), x[:, 2]], 1),
        r"^column \d is a linear combination of the others: remove it$": torch.stack(
            [x[:, 0], x[:, 1], x[:, 0] + x[:, 1]], 1
        ),
        r"^column 0 is constant": x[:1].expand(50, 3),
        r"^row 7, column 2 is 1e\+08, .* away from the median: remove or clip it$": x.index_put(
            (torch.tensor(7), torch.tensor(2)), torch.tensor(1e8)
        ),
    }
    for message, rows in cases.items():
        with pytest.raises(ValueError, match=message):
            density.initialise(rows)
    with pytest.raises(TypeError, match="^expected floating-point samples; got int64$|^expected float32"):
        density.initialise(torch.zeros(10, 3, dtype=torch.int64))


def test_rows_that_repeat_are_weights():
    x = correlated(30, 2, dtype=torch.float32)
    density = LogConcaveDensity(Squared(net(2)))
    how = {"steps": 20, "batch_size": 128, "lr": 0.02, "progress": False, "allow": ("ties", "duplicates")}
    fit(density, x.repeat(20, 1), **how)
    assert bool(density.freeze().log_prob(x).isfinite().all())


def test_bad_weights_are_refused():
    density = LogConcaveDensity(net(2))
    x, one = correlated(10, 2, dtype=torch.float32), torch.ones(10)
    with pytest.raises(ValueError, match=r"^weights must not be negative; row 3 has -1$"):
        density.initialise((x, one.index_fill(0, torch.tensor(3), -1.0)))
    with pytest.raises(ValueError, match=r"^expected as many weights as samples; got 9 and 10$"):
        density.initialise((x, one[:9]))
    with pytest.raises(ValueError, match=r"^every weight is zero$"):
        density.initialise((x, 0 * one))
    with pytest.raises(ValueError, match=r"^weights have NaN at row 0, column 0$"):
        density.loss((x, one.index_fill(0, torch.tensor(0), math.nan)))
    with pytest.raises(
        TypeError, match=r"^expected samples, or a pair \(samples, weights\); got a tuple of 3$"
    ):
        density.loss((x, one, one))


def test_a_bad_proposal_is_refused():
    frozen = trained(3, steps=5)
    f = copy.deepcopy(frozen.block).double().emit()
    narrow = Gaussian(torch.full((3,), 40.0), 0.001 * torch.eye(3))
    with pytest.raises(UnreliableEstimate, match="proposal"):
        annealed(
            f.value,
            f.gradient,
            narrow,
            particles=256,
            max_temperatures=8,
            generator=torch.Generator().manual_seed(0),
        )


def test_a_density_without_a_mode_says_so():
    icnn = net(3, strong_convexity=0.0)
    with torch.no_grad():
        icnn.linear.fill_(50.0)  # f falls for ever
    with pytest.raises(RuntimeError, match="^the mode was not found"):
        LogConcaveDensity(icnn).mode()


@pytest.mark.parametrize("source", ["icnn", "squared", "lift"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_density_without_gradients_has_a_loss_all_the_same(source, dim):
    """Only a plain ICNN is frozen: its log Z is found when it is needed; a source's is its objective's."""
    density = LogConcaveDensity(net(dim) if source == "icnn" else SOURCES[source](net(dim)))
    x = correlated(200, dim, dtype=torch.float32)
    density.initialise(x)
    density.requires_grad_(False)
    batch = x if source == "lift" else None
    exact = -float(density.log_prob(x, batch=batch).mean())
    assert float(density.loss(x)) == pytest.approx(
        exact, abs=0.5
    )  # chains know the entropy to a tenth or two
    assert bool(density.log_z.isfinite()) == (source == "icnn")


def test_a_loaded_state_without_log_z_has_a_loss():
    frozen = trained(2, steps=5)
    blank = LogConcaveDensity(net(2))
    blank.load_state_dict(frozen.state_dict())
    x = frozen.sample(50, seed=0)
    assert float(blank.requires_grad_(False).loss(x)) == pytest.approx(float(frozen.loss(x)), abs=1e-4)


@pytest.mark.parametrize("objective", ["mle", "score"])
def test_a_frozen_density_that_is_trained_again_forgets_log_z(objective):
    density = LogConcaveDensity(gaussian_net(2), objective).freeze()
    density.normalise()
    density.block.requires_grad_(True)
    x = correlated(20, 2)
    density.loss(x).backward()
    with torch.no_grad():
        density.block.linear += 1
    density.requires_grad_(False)
    exact = torch.distributions.MultivariateNormal(-torch.ones(2).double(), torch.eye(2).double())
    assert torch.allclose(density.log_prob(x), exact.log_prob(x), atol=1e-5)


def test_a_density_from_a_file_says_how_to_train_it_again(tmp_path):
    cl.save(trained(2, steps=5), tmp_path / "density.safetensors")
    loaded = cl.load(tmp_path / "density.safetensors")
    x = loaded.sample(50, seed=0)
    loaded.block.requires_grad_(True)
    with pytest.raises(RuntimeError, match="^a density from a file has no objective: set its `objective`"):
        loaded.loss(x)
    loaded.objective = objective_named("mle", 2)
    assert loaded.loss(x).item() == pytest.approx(-loaded.log_prob(x).mean().item(), abs=1e-4)


def test_a_failed_start_leaves_nothing_behind():
    density = LogConcaveDensity(Lift(net(3)))
    x = correlated(50, 3)
    with pytest.raises(TypeError, match="^expected floating-point samples; got int64$"):
        density.initialise(x.long())
    with pytest.raises(TypeError, match="^expected a tensor of samples; got ndarray$"):
        density.initialise(x.numpy())
    assert not bool(density.standardiser.fitted)


def test_rows_of_weight_zero_do_not_count():
    x = correlated(200, 3, dtype=torch.float32)
    x[7, 1] = 1e9
    weights = torch.ones(200).index_fill(0, torch.tensor(7), 0.0)
    density = LogConcaveDensity(Squared(net(3)), "score")
    density.initialise((x, weights))
    assert density.loss((x[6:9], 0 * weights[6:9])).item() == 0.0  # a batch may have no others


def test_a_column_that_is_nearly_constant_is_refused():
    x = correlated(200, 3, dtype=torch.float32)
    x[:, 1] = (torch.arange(200) < 5).float()
    with pytest.raises(ValueError, match="^column 1 is 0 in nine rows of ten, which no density is: remove"):
        LogConcaveDensity(net(3)).initialise(x)


def test_outliers_are_looked_for_in_any_number_of_rows():
    x = torch.zeros(17_000_000, 1)  # more than torch.quantile takes
    x[:, 0] = torch.arange(len(x)) % 7
    x[5] = 1e6
    with pytest.raises(ValueError, match=r"^row 5, column 0 is 1e\+06"):
        check_outliers(x)


@pytest.mark.parametrize("dim", [1, 3])
def test_a_number_of_draws_is_whole(dim):
    frozen = LogConcaveDensity(net(dim)).freeze()
    with pytest.raises(TypeError, match=r"^expected a whole number of samples; got 2\.5$"):
        frozen.sample(2.5)


def test_rectifiers_can_be_normalised_and_sampled_above_two_dimensions():
    density = LogConcaveDensity(Squared(net(3, activation="relu")))
    x = correlated(400, 3, dtype=torch.float32).exp().log1p()
    fit(density, x, steps=30, batch_size=128, lr=0.02, progress=False)
    frozen = density.freeze()
    draws = frozen.draw(2000, seed=0)
    assert draws.converged and frozen.normaliser().error < 0.02
    assert torch.allclose(draws.x.mean(0), x.mean(0), atol=0.3 * float(x.std(0).max()))


@pytest.mark.parametrize("source", ["squared", "lift"])
def test_validation_does_not_change_what_is_learned(source):
    """Freezing brings the entropy of the chains up to date, and nothing else."""
    x = correlated(300, 3, dtype=torch.float32)
    options = {"steps": 20, "batch_size": 64, "evaluate_every": 5, "progress": False}
    last = {}

    def keep(event) -> None:
        last.update({name: tensor.clone() for name, tensor in event.module.state_dict().items()})

    densities = [
        LogConcaveDensity(SOURCES[source](net(3), **({"seed": 0} if source == "lift" else {})))
        for _ in range(2)
    ]
    fit(densities[0], x, **options)
    fit(densities[1], x, validation=x[:50], callbacks=[keep], **options)
    changed = [
        k
        for k, v in densities[0].state_dict().items()
        if not torch.equal(v.nan_to_num(), last[k].nan_to_num())
    ]
    assert changed == ["objective.entropy"]
