"""Conditional densities: closed forms, both objectives against known truths, sources, samples, errors."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, Lift, Projected, Softplus, Squared, fit
from convexlift.architectures import PICNN
from convexlift.integration.annealing import UnreliableEstimate
from convexlift.tasks import conditional_integrals as contexts
from convexlift.tasks.conditional import ConditionalDensity
from convexlift.testing import check_convex, check_nonnegative

UNFROZEN = "^an unfrozen lift has no weights of its own: freeze on training data or pass batch=$"


def plain_lift(network: PICNN, **options: Any) -> Lift:
    """A lift without gains, for large rates."""
    return Lift(network, weight_gain=1.0, free_gain=1.0, **options)


SOURCES = {"projected": Projected, "softplus": Softplus, "squared": Squared, "lift": plain_lift}
Pair = tuple[Tensor, Tensor]


def net(dim: int = 1, k: int = 2, **options: Any) -> PICNN:
    return PICNN(dim, k, **{"hidden": (8, 8), "context_hidden": (8,), "seed": 0, **options})


def rough(dim: int, **options: Any) -> PICNN:
    """A network that is far from quadratic, and depends much on its context."""
    built = net(dim, **options).double()
    with torch.no_grad():
        built.convex.outer.mul_(4)
        for matrix in (*built.gates, *built.scales, *built.offsets, built.tilt):
            matrix.mul_(5)
    return built


class LinearGaussian:
    """x given c ~ N(A c + b, S), c standard normal in two dimensions."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.matrix = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.6, 0.4]])[:dim]
        self.shift = torch.tensor([2.0, -1.0, 0.5])[:dim]
        self.factor = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.2, 0.6]])[:dim, :dim]

    def mean(self, c: Tensor) -> Tensor:
        return c @ self.matrix.T + self.shift

    def draw(self, n: int, seed: int) -> Pair:
        generator = torch.Generator().manual_seed(seed)
        c = torch.randn(n, 2, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator)
        return self.mean(c) + noise @ self.factor.T, c

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        noise = torch.linalg.solve_triangular(self.factor, (x - self.mean(c)).T, upper=False).T
        constant = self.dim / 2 * math.log(2 * math.pi) + self.factor.diagonal().log().sum()
        return -noise.square().sum(1) / 2 - constant


def moments(density: ConditionalDensity, truth: LinearGaussian, c: Tensor) -> tuple[float, Tensor, Tensor]:
    """KL(truth, density), mean and covariance of the density given a context, from weighed draws of truth."""
    noise = torch.randn(20_000, truth.dim, generator=torch.Generator().manual_seed(9))
    x = truth.mean(c) + noise @ truth.factor.T
    log_truth = truth.log_prob(x, c)
    t, e = density.standardiser(x), density.context_standardiser(c)
    log_weight = -density.block(t, e) + density.standardiser.log_scale_jacobian - log_truth
    weight = log_weight.softmax(0)
    mean = weight @ x
    covariance = torch.einsum("n,ni,nj->ij", weight, x - mean, x - mean)
    kl = torch.logsumexp(log_weight, 0) - math.log(len(x)) - log_weight.mean()
    return float(kl), mean, covariance


def gaussian(dim: int) -> tuple[ConditionalDensity, Pair]:
    """A density in closed form: without outgoing weights f = |t|^2 + (T e) . t, so t ~ N(-T e / 2, I / 2)."""
    block = net(dim, context_hidden=(), strong_convexity=2.0, learn_strong_convexity=False).double()
    with torch.no_grad():
        block.convex.outer.zero_()
        block.tilt.copy_(torch.tensor([[2.0, -1.0], [0.5, 4.0], [1.0, 1.0]])[:dim])
    density = ConditionalDensity(block)
    x, c = LinearGaussian(dim).draw(50, seed=0)
    data = 10 + 3 * x.double(), 5 - 2 * c.double()
    density.initialise(data)
    return density.requires_grad_(False), data


def expected(density: ConditionalDensity, c: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, d) and deviation (d,) of x in ``gaussian``."""
    e = density.context_standardiser(c)
    mean = density.standardiser.inverse(-e @ density.block.tilt.T / 2)
    return mean, density.standardiser.scale / math.sqrt(2)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_gaussian_in_closed_form(dim: int) -> None:
    density, (x, c) = gaussian(dim)
    mean, deviation = expected(density, c)
    normal = torch.distributions.Normal(mean, deviation)
    torch.testing.assert_close(density.log_prob(x, c), normal.log_prob(x).sum(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(density.score(x, c), (mean - x) / deviation**2, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(density.mode(c), mean, rtol=1e-7, atol=1e-7)
    assert float(density.normaliser(c).error.max()) < 1e-8
    torch.testing.assert_close(density.log_prob(x, c[:1]), density.log_prob(x, c[:1].expand(50, 2)))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_samples_of_a_gaussian(dim: int) -> None:
    density, (_, c) = gaussian(dim)
    n, rows = 2000, c[:2] if dim < 3 else c[:1]
    mean, deviation = expected(density, rows)
    x = density.sample(n, rows, seed=0)
    assert x.shape == (len(rows), n, dim) and x.dtype == torch.float64
    assert torch.equal(x, density.sample(n, rows, seed=0))
    assert not torch.equal(x[:1], density.sample(n, rows[:1], seed=1))
    z = (x - mean[:, None]) / deviation
    assert float(z.mean(1).abs().max()) < 5 / math.sqrt(n)
    covariance = torch.einsum("rni,rnj->rij", z, z) / n
    assert float((covariance - torch.eye(dim)).abs().max()) < 5 * math.sqrt(2 / n)
    # Kolmogorov's distance to the standard normal: below 1.95 / sqrt(n) with probability 0.999.
    uniform = torch.special.ndtr(z.transpose(1, 2)).sort(2).values
    steps = (torch.arange(n) + 0.5) / n
    assert float((uniform - steps).abs().max()) < 1.95 / math.sqrt(n) + 1e-3


def test_annealing_above_two_dimensions() -> None:
    density, (x, c) = gaussian(3)
    mean, deviation = expected(density, c[:1])
    exact = torch.distributions.Normal(mean, deviation).log_prob(x[:20]).sum(1)
    found = density.normaliser(c[:1])
    assert found.log_z.shape == found.error.shape == (1,)
    log_prob = density.log_prob(x[:20], c[:1])  # the same log Z, found once more
    assert float((log_prob - exact).abs().max()) < 5 * float(found.error) + 1e-9 < 0.1
    t, e = density.standardiser(x[:20]), density.context_standardiser(c[:1])
    again = density.standardiser.log_scale_jacobian - density.block(t, e.expand(20, 2)) - found.log_z
    torch.testing.assert_close(log_prob, again, rtol=0, atol=1e-12)


def test_a_refused_estimate_names_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = [SimpleNamespace(log_z=torch.tensor(1.0), error=0.1)]

    def refuse_the_second(*args: Any, **kwargs: Any) -> SimpleNamespace:
        if not estimates:
            raise UnreliableEstimate("the weights collapsed")
        return estimates.pop()

    monkeypatch.setattr(contexts, "annealed_normaliser", refuse_the_second)
    density, (x, c) = gaussian(3)
    order = density.context_standardiser(c)[:, 0].argsort()
    # Rows 0 and 1 share a context, so the second estimate is that of row 2.
    with pytest.raises(UnreliableEstimate, match="^log Z of context 2: the weights collapsed$"):
        density.log_prob(x[:3], c[order[[0, 0, -1]]])
    with pytest.raises(UnreliableEstimate, match="^log Z of context 0: the weights collapsed$"):
        density.normaliser(c[:1])


@pytest.mark.parametrize("activation", ["softplus", "smooth_squared_relu"])
def test_a_rough_density_integrates_to_one(activation: str) -> None:
    c = 2 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = ConditionalDensity(rough(1, activation=activation)).requires_grad_(False)
    grid = torch.linspace(-60, 60, 12_001, dtype=torch.float64)[:, None]
    plane = ConditionalDensity(rough(2, activation=activation)).requires_grad_(False)
    side = torch.linspace(-30, 30, 301, dtype=torch.float64)
    square = torch.cartesian_prod(side, side)
    for row in c[:2].split(1):
        assert float(line.log_prob(grid, row).exp().sum() * 0.01) == pytest.approx(1, abs=1e-6)
        assert float(plane.log_prob(square, row).exp().sum() * 0.04) == pytest.approx(1, abs=1e-6)


def test_samples_of_a_rough_density_in_the_plane() -> None:
    density = ConditionalDensity(rough(2)).requires_grad_(False)
    c = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    side = torch.linspace(-30, 30, 301, dtype=torch.float64)
    square = torch.cartesian_prod(side, side)
    mass = density.log_prob(square, c).exp() * 0.04
    n = 4000
    x = density.sample(n, c, seed=0)[0]
    for power in (1, 2):
        exact, spread = mass @ square**power, (mass @ square ** (2 * power)).sqrt()
        assert bool(((x**power).mean(0) - exact).abs().le(4 * spread / math.sqrt(n)).all())


def test_the_support_is_found_where_the_laplace_approximation_is_far_off() -> None:
    """A kink at the mode: there the curvature is 2,500, while exp(-f) falls like a two-sided exponential."""
    block = PICNN(1, 1, hidden=(1,), sharpness=1e4, context_hidden=(), skip=False, strong_convexity=1e-3)
    block = block.double()
    with torch.no_grad():
        for matrix in (*block.gates, *block.scales, *block.offsets, block.level):
            matrix.zero_()
        block.convex.skips[0].fill_(1.0)
        block.convex.biases[0].zero_()
        block.convex.outer.fill_(2.0)
        block.tilt.fill_(-1.0)
    density = ConditionalDensity(block.requires_grad_(False))
    c = torch.ones(1, 1, dtype=torch.float64)  # f(t) = 2 max(t, 0) - t = |t|, nearly
    found = density.normaliser(c)
    alpha = 1e-3
    # The integral of exp(-|t| - alpha t^2 / 2) is sqrt(2 pi / alpha) erfcx(1 / sqrt(2 alpha)).
    exact = math.sqrt(2 * math.pi / alpha) * float(
        torch.special.erfcx(torch.tensor(1 / math.sqrt(2 * alpha), dtype=torch.float64))
    )
    assert abs(float(found.log_z) - math.log(exact)) < 1e-4 + float(found.error)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_mle_loss_is_the_likelihood(dim: int) -> None:
    x, c = (t.double() for t in LinearGaussian(dim).draw(40, seed=0))
    density = ConditionalDensity(net(dim).double(), objective="mle")
    density.initialise((x, c))
    loss = density.loss((x, c))
    assert loss.item() == pytest.approx(-float(density.log_prob(x, c).detach().mean()), abs=1e-5)
    loss.backward()
    # The gradient, against the same likelihood summed over one wide grid.
    exact = copy.deepcopy(density)
    exact.zero_grad()
    side = torch.linspace(-25, 25, 301 if dim == 2 else 2001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    t, e = exact.standardiser(x)[:5], exact.context_standardiser(c)[:5]
    density.zero_grad()
    density.loss((x[:5], c[:5])).backward()
    f = exact.block.emit()
    log_z = [torch.logsumexp(-f(grid, row), 0) for row in e.split(1)]
    (f(t, e).mean() + torch.stack(log_z).mean()).backward()
    for one, other in zip(density.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5 if dim == 1 else 1e-3)


def test_the_score_loss_against_automatic_differentiation() -> None:
    x, c = (t.double() for t in LinearGaussian(3).draw(10, seed=0))
    density = ConditionalDensity(net(3).double())
    density.initialise((x, c))
    t, e = density.standardiser(x), density.context_standardiser(c)

    def f(a: Tensor, b: Tensor) -> Tensor:
        return density.block(a[None], b[None])[0]

    gradient = torch.func.vmap(torch.func.grad(f))(t, e)
    hessian = torch.func.vmap(torch.func.hessian(f))(t, e)
    exact = (gradient.square().sum(1) / 2 - torch.einsum("nii->n", hessian)).mean()
    assert density.loss((x, c)).item() == pytest.approx(exact.item(), rel=1e-10)


@pytest.mark.parametrize("name", SOURCES)
def test_a_linear_gaussian_truth_on_the_line(name: str) -> None:
    truth = LinearGaussian(1)
    data, (x, c) = truth.draw(3000, seed=0), truth.draw(1000, seed=1)
    density = ConditionalDensity(SOURCES[name](net(hidden=(6, 6))), objective="mle")
    fit(density, data, steps=70, lr=6e-2, batch_size=64, progress=False)
    frozen = density.freeze(data)
    assert float((truth.log_prob(x, c) - frozen.log_prob(x, c)).mean()) < 0.02
    kl, mean, covariance = moments(frozen, truth, torch.tensor([[1.0, -0.5]]))
    assert kl < 0.02
    assert abs(float(mean) - 3.25) < 0.15
    assert float(covariance) == pytest.approx(0.49, rel=0.2)
    check_nonnegative(frozen)
    given = frozen.block.double().emit().given(torch.zeros(1, 2, dtype=torch.float64))
    assert check_convex(given, dim=1, scales=(1.0, 10.0), starts=16).convex


@pytest.mark.parametrize(("dim", "objective", "steps"), [(2, "mle", 50), (3, "score", 100)])
def test_a_linear_gaussian_truth_above(dim: int, objective: str, steps: int) -> None:
    truth = LinearGaussian(dim)
    data = truth.draw(3000, seed=0)
    density = ConditionalDensity(plain_lift(net(dim), seed=0), objective=objective)
    fit(density, data, steps=steps, lr=6e-2, batch_size=64 if dim == 2 else 128, progress=False)
    frozen = density.freeze(data)
    c = torch.tensor([[0.5, -0.5]])
    kl, mean, covariance = moments(frozen, truth, c)
    assert kl < 0.05
    assert float((mean - truth.mean(c)[0]).abs().max()) < 0.2
    exact = truth.factor @ truth.factor.T
    assert float((covariance - exact).abs().max()) < 0.2 * float(exact.max())


def test_a_deviation_that_depends_on_the_context() -> None:
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        c = 4 * torch.rand(n, 1, generator=generator) - 2
        normal = torch.distributions.Normal(c.sin(), (c / 2).exp() / 2)
        x = normal.mean + normal.stddev * torch.randn(n, 1, generator=generator)
        return x, c, normal.log_prob(x)[:, 0]

    x, c, _ = draw(3000, seed=0)
    density = ConditionalDensity(Squared(net(k=1)), objective="mle")
    fit(density, (x, c), steps=100, lr=6e-2, batch_size=64, progress=False)
    frozen = density.freeze()
    x, c, exact = draw(1000, seed=1)
    assert float((exact - frozen.log_prob(x, c)).mean()) < 0.03
    narrow, wide = frozen.sample(2000, torch.tensor([[-1.5], [1.5]]), seed=0).std(1).flatten().tolist()
    assert narrow == pytest.approx(math.exp(-0.75) / 2, rel=0.15)
    assert wide == pytest.approx(math.exp(0.75) / 2, rel=0.15)


@pytest.mark.parametrize("name", ["bare", *SOURCES])
def test_freezing_changes_nothing(name: str) -> None:
    x, c = (t.double() for t in LinearGaussian(1).draw(100, seed=0))
    block = net().double()
    density = ConditionalDensity(SOURCES[name](block) if name != "bare" else block).eval()
    density.initialise((x, c))
    frozen = density.freeze((x, c))
    assert isinstance(frozen.block, PICNN) and not frozen.training and frozen.objective == "score"
    assert not any(p.requires_grad for p in frozen.parameters())
    batch = (x, c) if name == "lift" else None
    torch.testing.assert_close(frozen.log_prob(x, c), density.log_prob(x, c, batch=batch), rtol=0, atol=1e-10)
    if name != "lift":
        assert torch.equal(density.freeze().score(x, c), frozen.score(x, c))


def test_emitting_from_other_rows() -> None:
    x, c = LinearGaussian(1).draw(200, seed=0)
    density = ConditionalDensity(Lift(net(), seed=0))
    density.initialise((x, c))
    density.eval()
    batch, other = (x[:50], c[:50]), (x[50:60], c[50:60])
    own = density.loss(batch).item()
    assert density.loss(batch, emit_from=batch).item() == own
    assert density.loss(batch, emit_from=other).item() != own
    # A lift reads the contexts too.
    assert density.loss(batch, emit_from=(x[:50], c[:50] + 1)).item() != own
    (rows,) = density.block_inputs(batch)
    assert rows.shape == (50, 3)


def test_settling() -> None:
    data = tuple(t.double() for t in LinearGaussian(1).draw(200, seed=0))
    density = ConditionalDensity(Lift(net().double(), seed=0))
    density.initialise(data)
    assert density.settle_at == 0.85
    density.set_progress(1.0)
    density.settle(data)
    assert torch.equal(density.freeze().score(*data), density.freeze(data).score(*data))
    bare = ConditionalDensity(net())
    bare.set_progress(0.5)
    bare.settle(data)
    assert bare.settle_at is None and ConditionalDensity(Softplus(net())).settle_at is None


def test_evaluating_changes_no_state() -> None:
    x, c = LinearGaussian(1).draw(100, seed=0)
    density = ConditionalDensity(Lift(net(), seed=0), objective="mle")
    density.initialise((x, c))
    before = {name: tensor.clone() for name, tensor in density.state_dict().items()}
    density.log_prob(x, c, batch=(x, c))
    density.sample(3, c, batch=(x, c))
    density.freeze((x, c))
    with pytest.warns(UserWarning, match="initialised on other data"):
        density.initialise((x + 1, c))
    assert density.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in density.state_dict().items())


def test_copies_give_the_same_numbers() -> None:
    x, c = LinearGaussian(1).draw(50, seed=0)
    density = ConditionalDensity(Lift(net(), seed=0), objective="mle")
    density.initialise((x, c))
    density.loss((x, c)).backward()
    again = ConditionalDensity(Lift(net(), seed=1), objective="mle")
    again.load_state_dict(density.state_dict())
    for other in (again, copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        assert torch.equal(other.log_prob(x, c, batch=(x, c)), density.log_prob(x, c, batch=(x, c)))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_nothing_to_evaluate(dim: int) -> None:
    density, (x, c) = gaussian(dim)
    assert density.log_prob(x[:0], c[:0]).shape == (0,)
    assert density.score(x[:0], c[:0]).shape == density.mode(c[:0]).shape == (0, dim)
    assert density.sample(3, c[:0]).shape == (0, 3, dim)
    assert density.sample(0, c).shape == (50, 0, dim)


def test_an_unfrozen_lift_is_refused() -> None:
    x, c = LinearGaussian(1).draw(50, seed=0)
    density = ConditionalDensity(Lift(net(), seed=0))
    density.initialise((x, c))
    for call in (
        lambda: density.log_prob(x, c),
        lambda: density.score(x, c),
        lambda: density.normaliser(c),
        lambda: density.mode(c),
        lambda: density.sample(2, c),
        lambda: density.freeze(),
    ):
        with pytest.raises(ValueError, match=UNFROZEN):
            call()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="^unknown objective 'quadrature'; known: score, mle$"):
        ConditionalDensity(net(), objective="quadrature")
    with pytest.raises(
        ValueError, match="^objective 'mle' needs dim 1 or 2; got dim 3: use objective='score'$"
    ):
        ConditionalDensity(net(3), objective="mle")
    with pytest.raises(ValueError, match="^a conditional density needs strong_convexity > 0"):
        ConditionalDensity(net(strong_convexity=0.0))
    with pytest.raises(TypeError, match="^expected a PICNN or a weight source of one; got ICNN$"):
        ConditionalDensity(ICNN(2))
    with pytest.raises(TypeError, match="^expected a PICNN or a weight source of one; got Lift of ICNN$"):
        ConditionalDensity(Lift(ICNN(2)))


def test_bad_input_is_refused() -> None:
    x, c = LinearGaussian(1).draw(10, seed=0)
    density = ConditionalDensity(net())
    with pytest.raises(TypeError, match=r"^expected a pair \(x, c\); got Tensor$"):
        density.loss(x)
    with pytest.raises(TypeError, match=r"^expected a pair \(x, c\); got a tuple of 3$"):
        density.initialise((x, c, c))
    for call in (lambda x, c: density.loss((x, c)), density.log_prob, density.score):
        with pytest.raises(ValueError, match=r"^expected \(N, 1\) samples; got \(10, 2\)$"):
            call(c, c)
        with pytest.raises(ValueError, match=r"^expected \(N, 2\) contexts; got \(10, 1\)$"):
            call(x, x)
        with pytest.raises(ValueError, match="^expected as many contexts as samples; got 9 and 10$"):
            call(x, c[1:])
        with pytest.raises(TypeError, match="^expected floating-point contexts; got int64$"):
            call(x, c.long())
    bad_x, bad_c = x.clone(), c.clone()
    bad_x[4, 0], bad_c[3, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match="^samples have NaN at row 4, column 0$"):
        density.log_prob(bad_x, c)
    with pytest.raises(ValueError, match="^contexts have an infinity at row 3, column 1$"):
        density.log_prob(x, bad_c)
    with pytest.raises(ValueError, match="^contexts have an infinity at row 3, column 1$"):
        density.sample(2, bad_c)
    with pytest.raises(ValueError, match="^cannot draw -1 samples$"):
        density.sample(-1, c)
    with pytest.raises(ValueError, match="^need at least 2 rows to standardise samples; got 1$"):
        density.initialise((x[:1], c[:1]))


@pytest.mark.parametrize("objective", ["score", "mle"])
def test_a_broken_network_is_reported(objective: str) -> None:
    x, c = LinearGaussian(1).draw(10, seed=0)
    block = net().requires_grad_(False)
    density = ConditionalDensity(block, objective)
    block.tilt[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"f is not a number for context 0$"):
        density.log_prob(x, c)
    with pytest.raises(FloatingPointError, match=r"^the mode was not found for context 0"):
        density.mode(c)
