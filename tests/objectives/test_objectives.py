"""Every objective against a case with a known answer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from convexlift import ICNN, Lift, LogConcaveDensity, Squared, fit
from convexlift.objectives import (
    OBJECTIVES,
    Chains,
    Denoising,
    ImportanceSampling,
    NoiseContrastive,
    Quadrature,
    ScoreMatching,
    objective_named,
)

SMALL = {"hidden": (16, 16), "strong_convexity": 0.1, "seed": 0}


def quadratic(alpha: float, dim: int = 2) -> ICNN:
    """f(x) = alpha |x|^2 / 2 + constant, with alpha learned: the outgoing weights are zero."""
    net = ICNN(dim, hidden=(4,), strong_convexity=alpha, seed=0).double()
    with torch.no_grad():
        net.outer.zero_()
        net.linear.zero_()
    return net


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated_logistics(n: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of independent logistic variables, rotated, and their exact log-densities."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n, dim, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    x = torch.logit(u)
    log_prob = (-x.abs() - 2 * torch.log1p(torch.exp(-x.abs()))).sum(1)
    rotation = torch.linalg.qr(rows(dim, dim, seed=99))[0]
    return (x @ rotation.T).float(), log_prob


def loss_of(objective, alpha: float, t: torch.Tensor) -> float:
    net = quadratic(alpha, t.shape[1])
    objective = objective.double()
    objective.eval()
    with torch.no_grad():
        return float(objective(net.emit(), t))


def test_the_exact_score_matching_loss_of_a_gaussian():
    t = rows(1000, 3)
    for alpha in (0.5, 1.0, 2.0):
        exact = alpha**2 * float(t.square().sum(1).mean()) / 2 - 3 * alpha
        assert loss_of(ScoreMatching(), alpha, t) == pytest.approx(exact, abs=1e-6)


def test_denoising_prefers_the_blurred_gaussian():
    t, noise = rows(200_000, 1), 0.7
    best = 1 / (1 + noise**2)
    losses = {scale: loss_of(Denoising(noise), scale * best, t) for scale in (0.9, 1.0, 1.1)}
    assert min(losses, key=lambda scale: losses[scale]) == 1.0


def test_noise_contrastive_estimation_has_its_least_loss_at_the_truth():
    x, truth = rotated_logistics(100_000, 2, seed=1)
    t = x.double()
    objective = NoiseContrastive(2).double()
    objective.initialise(quadratic(1.0).emit(), t)

    class Exact:
        """f = -log p scaled: the truth at 1."""

        def __init__(self, scale: float) -> None:
            self.scale = scale

        def value(self, points: torch.Tensor) -> torch.Tensor:
            rotation = torch.linalg.qr(rows(2, 2, seed=99))[0]
            y = points @ rotation
            return self.scale * (y.abs() + 2 * torch.log1p(torch.exp(-y.abs()))).sum(1)

    def loss(scale: float, log_z: float) -> float:
        with torch.no_grad():
            objective.log_z.fill_(log_z)
            return float(objective.eval()(Exact(scale), t))

    best = loss(1.0, 0.0)
    assert all(loss(*other) > best for other in ((0.9, 0.0), (1.1, 0.0), (1.0, 0.2), (1.0, -0.2)))
    assert float(truth.mean()) == pytest.approx(-4.0, abs=0.02)  # the draws are what they are said to be


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImportanceSampling(2, draws=200_000),
        lambda: ImportanceSampling(2, proposal="flow", draws=100_000),
        lambda: Chains(2, chains=20_000, moves=30),
    ],
    ids=["gaussian", "flow", "chains"],
)
def test_monte_carlo_likelihoods_have_the_gradient_of_the_exact_one(make):
    torch.manual_seed(0)
    net = ICNN(2, hidden=(8, 8), strong_convexity=0.3, seed=0).double()
    t = rows(500, 2)
    exact, objective = Quadrature(2).double(), make().double()
    objective.initialise(net.emit(), t)
    gradients = []
    for chosen in (exact, objective):
        net.zero_grad()
        loss = chosen(net.emit(), t)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.995
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.1
    assert loss.item() == pytest.approx(exact(net.emit(), t).item(), abs=0.05)
    assert float(objective.eval().estimate(net.emit())) == pytest.approx(
        float(exact.estimate(net.emit())), abs=0.06
    )


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "denoising"])
def test_training_comes_close_to_the_exact_density(name):
    x, _ = rotated_logistics(4000, 2, seed=0)
    test, exact = rotated_logistics(4000, 2, seed=1)
    density = LogConcaveDensity(Squared(ICNN(2, **SMALL)), name)
    fit(density, x, validation=x[:500], steps=250, batch_size=256, lr=0.02, progress=False)
    frozen = density.freeze(x)
    excess = float((exact - frozen.log_prob(test)).mean())
    assert -0.01 < excess < 0.06  # a Gaussian has 0.11


def test_denoising_comes_close_to_the_blurred_density():
    x, _ = rotated_logistics(4000, 2, seed=0)
    density = LogConcaveDensity(Squared(ICNN(2, **SMALL)), Denoising(0.3))
    fit(density, x, steps=250, batch_size=256, lr=0.02, progress=False)
    draws = density.freeze(x).sample(20_000, seed=0)
    blurred = x.var(0) * (1 + 0.3**2)
    assert torch.allclose(draws.var(0), blurred, rtol=0.15)


@pytest.mark.parametrize("name", ["chains", "importance", "score", "nce"])
def test_three_dimensions_come_close_too(name):
    x, _ = rotated_logistics(4000, 3, seed=0)
    test, exact = rotated_logistics(4000, 3, seed=1)
    density = LogConcaveDensity(Squared(ICNN(3, **SMALL)), name)
    fit(density, x, steps=250, batch_size=256, lr=0.02, progress=False)
    excess = float((exact - density.freeze(x).log_prob(test)).mean())
    assert -0.02 < excess < 0.1  # a Gaussian has 0.17


def test_a_lift_moves_the_weights_between_steps_and_the_chains_are_reweighted():
    x, _ = rotated_logistics(2000, 3, seed=0)
    density = LogConcaveDensity(Lift(ICNN(3, **SMALL), seed=0), "chains")
    assert density.effective_share == 1.0
    fit(density, x, steps=30, batch_size=64, lr=0.02, progress=False)
    assert 0.2 < density.effective_share < 1.0
    plain = LogConcaveDensity(Squared(ICNN(3, **SMALL)), "score")
    assert plain.effective_share is None


def test_importance_sampling_that_collapses_falls_back_to_chains():
    net = ICNN(40, hidden=(16,), strong_convexity=0.1, seed=0).double()
    with torch.no_grad():
        net.linear.fill_(3.0)  # exp(-f) sits far from the data
    t = rows(500, 40)
    objective = ImportanceSampling(40).double()
    objective.initialise(net.emit(), t)
    for _ in range(200):
        loss = objective(net.emit(), t)
    assert bool(objective.fallen) and math.isfinite(loss.item())
    assert objective.effective_share == objective.chains.effective_share
    assert torch.isfinite(objective.estimate(net.emit()))


def test_chains_follow_a_potential_that_moves():
    """The chains and the entropy stay near the exact ones while alpha goes from 1 to 4."""
    t = rows(2000, 3)
    objective = Chains(3, chains=2000).double()
    objective.initialise(quadratic(1.0, dim=3).emit(), t)
    entropy = 1.5 * (1 + math.log(2 * math.pi))
    assert float(objective.entropy) == pytest.approx(entropy, abs=0.1)
    for alpha in torch.linspace(1, 4, 60):
        moved = quadratic(float(alpha), dim=3).emit()
        loss = objective(moved, t)
    assert float(objective.x.var()) == pytest.approx(0.25, rel=0.1)
    objective.estimate(moved)
    assert float(objective.entropy) == pytest.approx(entropy - 1.5 * math.log(4), abs=0.15)
    # From then on the value is the negative log-likelihood.
    exact = 2 * float(t.square().sum(1).mean()) + 1.5 * math.log(2 * math.pi / 4)
    assert objective(moved, t).item() == pytest.approx(exact, abs=0.25)
    assert loss.requires_grad


def test_the_entropy_of_another_potential_is_found_by_reweighting():
    """A frozen lift is not the potential under which the chains last moved."""
    objective = Chains(3, chains=4000).double()
    t = rows(4000, 3)
    objective.initialise(quadratic(1.0, dim=3).emit(), t)
    other = quadratic(1.5, dim=3).emit()
    objective.estimate(other)
    entropy = 1.5 * (1 + math.log(2 * math.pi / 1.5))
    assert float(objective.entropy) == pytest.approx(entropy, abs=0.15)
    exact = 0.75 * float(t.square().sum(1).mean()) + 1.5 * math.log(2 * math.pi / 1.5)
    assert float(objective.eval()(other, t).detach()) == pytest.approx(exact, abs=0.15)


def test_chains_start_by_themselves_in_training_only():
    net, t = ICNN(3, **SMALL), rows(50, 3).float()
    with pytest.raises(ValueError, match="^the chains have not been started: call initialise with training"):
        Chains(3).eval()(net.emit(), t)
    density = LogConcaveDensity(Squared(net))
    loss = density.loss(t)
    assert float(loss.detach()) == pytest.approx(-float(density.log_prob(t).detach().mean()), abs=0.5)


def test_more_dimensions_than_chains():
    dim = 40
    objective = Chains(dim, chains=20)
    t = rows(200, dim).float()
    objective.initialise(quadratic(1.0, dim=dim).float().emit(), t)
    log_z = float(objective.estimate(quadratic(1.0, dim=dim).float().emit()))
    assert log_z == pytest.approx(dim / 2 * math.log(2 * math.pi), abs=0.5)


def test_chains_that_take_over_start_where_the_potential_is_now():
    """Reweighted from the potential of the start, all would be clones of the one that is least far off."""
    torch.manual_seed(0)
    t = rows(500, 10)
    objective = ImportanceSampling(10).double()
    objective.initialise(quadratic(1.0, dim=10).emit(), t)
    objective.effective.fill_(0.0)
    now = quadratic(8.0, dim=10).emit()
    objective(now, t)
    assert bool(objective.fallen)
    objective(now, t)
    assert objective.chains.effective_share > 0.99
    assert float(objective.chains.x.var()) == pytest.approx(1 / 8, rel=0.15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_count_rows(name):
    """A row of weight 2 is a row that stands twice."""
    net = ICNN(2, **SMALL).double()
    t = rows(40, 2)
    twice = torch.cat([t, t[:10]])
    weights = torch.ones(40, dtype=torch.float64)
    weights[:10] = 2
    objective = objective_named(name, 2).double()
    torch.manual_seed(0)
    objective.initialise(net.emit(), t)
    if name in ("denoising", "nce"):  # their noise is drawn for each row
        objective = objective.eval()
        noisy = objective(net.emit(), t, weights / weights.mean())
        assert torch.isfinite(noisy) and noisy.item() != objective(net.emit(), t).item()
        return
    again = copy.deepcopy(objective)
    torch.manual_seed(1)
    weighted = objective(net.emit(), t, weights / weights.mean())
    torch.manual_seed(1)
    repeated = again(net.emit(), twice)
    assert weighted.item() == pytest.approx(repeated.item(), abs=1e-10)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "score"])
def test_evaluation_is_a_fixed_function(name):
    net, t = ICNN(3 if name != "mle" else 2, **SMALL), rows(50, 3).float()
    t = t[:, : net.dim]
    objective = objective_named(name, net.dim)
    objective.initialise(net.emit(), t)
    objective.eval()
    before = torch.get_rng_state()
    assert torch.equal(objective(net.emit(), t), objective(net.emit(), t))
    if objective.likelihood:
        assert torch.equal(objective.estimate(net.emit()), objective.estimate(net.emit()))
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_with_chains_resumes_bit_for_bit(tmp_path):
    x, _ = rotated_logistics(500, 3, seed=0)
    losses = {}
    for way in ("whole", "cut"):
        density = LogConcaveDensity(Squared(ICNN(3, **SMALL)), "chains")
        options = {"validation": x[:100], "batch_size": 64, "progress": False, "evaluate_every": 5}

        def stop(event, way=way):
            if way == "cut" and event.step == 10 and not losses.get("stopped"):
                losses["stopped"] = True
                raise KeyboardInterrupt

        folder = tmp_path / way
        fit(density, x, steps=20, run_dir=folder, callbacks=[stop], **options)
        if way == "cut":
            density = LogConcaveDensity(Squared(ICNN(3, **SMALL)), "chains")
            fit(density, x, steps=20, run_dir=folder, resume=True, callbacks=[stop], **options)
        losses[way] = {k: v.clone() for k, v in density.state_dict().items()}
    for name, tensor in losses["whole"].items():
        assert torch.equal(tensor.nan_to_num(), losses["cut"][name].nan_to_num()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadrature(3), "exact quadrature needs dim 1 or 2; got dim 3"),
        (lambda: Denoising(0.0), "the noise must be positive; got 0.0"),
        (lambda: ImportanceSampling(2, "normal"), "unknown proposal 'normal'; known: gaussian, flow"),
        (lambda: ImportanceSampling(2, draws=1), "importance sampling needs at least 2 draws; got 1"),
        (lambda: Chains(2, chains=1), "needs at least 2 chains and 1 move; got 1 and 4"),
        (
            lambda: LogConcaveDensity(ICNN(2, **SMALL), "map"),
            "unknown objective 'map'; known: mle, importance",
        ),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
