from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, Lift, Potential, Projected, Softplus, Squared
from convexlift.calculus.newton import Solution
from convexlift.sources import is_lifted
from convexlift.tasks import ConvexPotentialFlow
from convexlift.tasks.standardise import ActNorm

UNFROZEN = "^an unfrozen lift has no weights of its own: freeze on training data or pass batch=$"
SOURCES = {
    "icnn": lambda net: net,
    "projected": Projected,
    "softplus": Softplus,
    "squared": Squared,
    "lift": Lift,
}


def net(dim: int = 2, seed: int = 0, **options) -> ICNN:
    return ICNN(dim, **{"hidden": (16, 16), "seed": seed, **options})


def moons(n: int = 1000, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points along a parabola: skewed, correlated, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return torch.stack([10 + 3 * a, -5 + a**2 + 0.5 * b], dim=1).to(dtype)


def stack(source=Lift, blocks: int = 3, dim: int = 2, **options) -> ConvexPotentialFlow:
    torch.manual_seed(0)
    return ConvexPotentialFlow([source(net(dim, seed, **options)) for seed in range(blocks)])


def scrambled(flow: ConvexPotentialFlow) -> ConvexPotentialFlow:
    """Blocks that see very different inputs: the norms between them shift and scale."""
    with torch.no_grad():
        for k, norm in enumerate(flow.norms):
            norm.shift += torch.tensor([2.0, -1.0]) * (k + 1)
            norm.log_scale += torch.tensor([0.5, -0.7]) * (-1) ** k
    return flow


# The map and its density.


@pytest.mark.parametrize("name", SOURCES)
def test_logdet_is_that_of_the_jacobian_in_data_space(name):
    x = moons()
    flow = stack(SOURCES[name]).double()
    flow.initialise(x)
    frozen = scrambled(flow).freeze(x)
    z, logdet = frozen(x[:10])
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: frozen(row[None])[0][0]))(x[:10])
    sign, exact = torch.linalg.slogdet(jacobian)
    assert bool((sign > 0).all())
    assert torch.allclose(logdet, exact, atol=1e-10)
    normal = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    assert torch.allclose(frozen.log_prob(x[:10]), normal + logdet, atol=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_inverse_of_forward_is_the_identity(name):
    x = moons(200)
    flow = stack(SOURCES[name]).double()
    flow.initialise(x)
    frozen = scrambled(flow).freeze(x)
    found = frozen.inverse(frozen(x)[0])
    assert isinstance(found, Solution) and found.converged.all() and found.iterations > 0
    assert found.residual.shape == found.converged.shape == (200,) and float(found.residual.max()) < 1e-8
    assert torch.allclose(found.x, x, atol=1e-8, rtol=0)


def test_inverse_of_forward_in_float32():
    x = moons(200, dtype=torch.float32)
    flow = stack(Softplus)
    flow.initialise(x)
    found = flow.inverse(flow(x)[0].detach())
    assert found.converged.all() and found.x.dtype == torch.float32
    assert torch.allclose(found.x, x, atol=1e-2)


def test_it_starts_from_zero_mean_and_unit_deviation():
    x = moons(20_000)
    flow = stack(Softplus).double()
    flow.initialise(x)
    z, _ = flow(x)
    assert torch.allclose(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=0.05)
    assert torch.allclose(z.std(0), torch.ones(2, dtype=torch.float64), atol=0.05)


def test_all_sources_start_as_the_same_flow():
    x = moons(10_000)
    flows = {name: stack(source).double() for name, source in SOURCES.items()}
    log_probs = []
    for flow in flows.values():
        flow.initialise(x)
        # The lift is the network it was given at the summary of the rows it started from.
        rows = x[::3]
        log_probs.append(flow.log_prob(x[:100], batch=rows if is_lifted(flow) else None))
    for other in log_probs[1:]:
        assert torch.allclose(other, log_probs[0], atol=1e-6)


def test_identity_potential_gives_the_fitted_gaussian():
    # f = |x|^2 / 2: the whole flow is the standardiser.
    icnn = net(strong_convexity=1.0).double()
    with torch.no_grad():
        icnn.outer.zero_()
        icnn.linear.zero_()
    x = moons()
    flow = ConvexPotentialFlow([icnn])
    flow.initialise(x)
    with torch.no_grad():
        icnn.raw_alpha.fill_(math.log(math.expm1(1.0)))
    normal = torch.distributions.Normal(x.mean(0), x.std(0, correction=0))
    assert torch.allclose(flow.log_prob(x), normal.log_prob(x).sum(1), atol=1e-10)


def test_gaussian_to_gaussian_in_closed_form():
    # grad f = (alpha I + Q'Q) x maps N(mu, Sigma) onto N(0, I) when alpha I + Q'Q = Sigma^(-1/2).
    sigma = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    mu = torch.tensor([3.0, -1.0], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sigma)
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    icnn = net(strong_convexity=0.1, learn_strong_convexity=False, quadratic_rank=2).double()
    with torch.no_grad():
        icnn.outer.zero_()
        icnn.linear.copy_(-whitening @ mu)
        icnn.root.copy_(torch.linalg.cholesky(whitening - 0.1 * torch.eye(2)).T)
    flow = ConvexPotentialFlow([icnn])
    x = mu + torch.randn(50, 2, dtype=torch.float64) @ torch.linalg.cholesky(sigma).T
    exact = torch.distributions.MultivariateNormal(mu, sigma).log_prob(x)
    assert torch.allclose(flow.log_prob(x), exact, atol=1e-6)  # the fixed alpha is a float32 0.1
    samples = flow.sample(100_000, seed=0)
    assert torch.allclose(samples.mean(0), mu, atol=0.02)
    assert torch.allclose(samples.T.cov(), sigma, atol=0.04)


def test_training_on_a_gaussian_comes_close_to_its_entropy(train):
    sigma = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    x = torch.tensor([3.0, -1.0]) + torch.randn(4000, 2) @ torch.linalg.cholesky(sigma).T
    test = torch.tensor([3.0, -1.0]) + torch.randn(10_000, 2) @ torch.linalg.cholesky(sigma).T
    flow = ConvexPotentialFlow([Softplus(net(quadratic_rank=2))])
    train(flow, x, steps=250)
    exact = torch.distributions.MultivariateNormal(torch.tensor([3.0, -1.0]), sigma).log_prob(test)
    excess = float((exact - flow.freeze().log_prob(test)).mean())
    assert -0.002 < excess < 0.02


@pytest.mark.parametrize("source", [Lift, Softplus])
def test_a_trained_frozen_flow_integrates_to_one(source, train):
    torch.manual_seed(0)
    x = moons(2000, dtype=torch.float32)
    flow = stack(source, blocks=2)
    train(flow, x, steps=120)
    frozen = flow.freeze(x).double()
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    assert float(frozen.log_prob(x.double()).mean()) > float(gaussian) + 0.2
    side = torch.linspace(-40.0, 60.0, 401, dtype=torch.float64)
    other = torch.linspace(-20.0, 50.0, 351, dtype=torch.float64)
    grid = torch.cartesian_prod(side, other)
    mass = frozen.log_prob(grid).exp().sum() * (side[1] - side[0]) * (other[1] - other[0])
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


# Emission, freezing, settling.


def test_freezing_a_stack_of_lifts_is_emission_from_the_training_set_in_order():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    scrambled(flow).eval()
    frozen = flow.freeze(x)
    assert all(isinstance(block, ICNN) for block in frozen.blocks) and not is_lifted(frozen)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert torch.allclose(frozen.log_prob(x), flow.log_prob(x, batch=x), atol=1e-10, rtol=0)
    # The blocks' inputs differ so much that emitting every block from the first one's gives another density.
    wrong = copy.deepcopy(frozen)
    first = flow.norms[0](flow.standardiser(x))
    wrong.blocks = torch.nn.ModuleList([block.freeze(first) for block in flow.blocks])
    assert float((wrong.log_prob(x) - frozen.log_prob(x)).abs().mean()) > 1e-3


def test_freezing_in_train_mode_is_the_same_and_leaves_the_mode():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    assert flow.training
    first = flow.freeze(x)
    assert flow.training and all(block.training for block in flow.blocks)
    assert torch.equal(flow.eval().freeze(x).log_prob(x), first.log_prob(x))


def test_large_data_sets_freeze_in_parts(monkeypatch):
    from convexlift.tasks import flow as module
    from convexlift.tasks import task

    x = moons(1000)
    flow = stack().double()
    flow.initialise(x)
    whole = flow.freeze(x)
    z = whole(x)[0]
    monkeypatch.setattr(module, "_HESSIANS", 64)
    monkeypatch.setattr(task.map_rows, "__defaults__", (100,), raising=False)
    parts = flow.freeze(x)
    assert torch.allclose(parts.log_prob(x), whole.log_prob(x), atol=1e-10)
    assert torch.allclose(parts.inverse(z).x, x, atol=1e-7)


def test_batch_emits_and_the_points_do_not():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    scrambled(flow)
    together = flow.log_prob(x[:20], batch=x)
    apart = torch.cat([flow.log_prob(row[None], batch=x) for row in x[:20]])
    assert torch.allclose(together, apart, atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x[:20], batch=x), together, atol=1e-10)
    z, logdet = flow(x[:20], batch=x)
    assert torch.allclose(together, logdet - 0.5 * z.square().sum(1) - math.log(2 * math.pi), atol=1e-12)
    found = flow.inverse(z.detach(), batch=x)
    assert torch.allclose(found.x, x[:20], atol=1e-8)
    assert torch.equal(flow.sample(4, seed=0, batch=x), flow.freeze(x).sample(4, seed=0))


def test_the_loss_emits_from_its_batch_or_from_another():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    flow.eval()
    own = flow.loss(x[:64])
    assert own.item() == pytest.approx(-flow.log_prob(x[:64], batch=x[:64]).mean().item(), abs=1e-12)
    other = flow.loss(x[:64], emit_from=x[64:128])
    assert other.item() == pytest.approx(-flow.log_prob(x[:64], batch=x[64:128]).mean().item(), abs=1e-12)
    assert own.item() != other.item()
    plain = stack(Softplus).double()
    plain.initialise(x)
    assert plain.loss(x[:64]).item() == plain.loss(x[:64], emit_from=x[64:128]).item()


def test_every_block_emits_from_detached_inputs(monkeypatch):
    x = moons(200)
    flow = stack().double()
    flow.initialise(x)
    seen = []
    for block in flow.blocks:
        emit = block.emit
        monkeypatch.setattr(block, "emit", lambda batch, emit=emit: seen.append(batch) or emit(batch))
    flow.loss(x[:50]).backward()
    flow.loss(x[:50], emit_from=x[50:80]).backward()
    assert [len(batch) for batch in seen] == [50] * 3 + [30] * 3
    assert not any(batch.requires_grad for batch in seen)
    assert torch.equal(seen[0], flow.norms[0](flow.standardiser(x[:50])).detach())
    later = flow.norms[0](flow.standardiser(x[50:80]))
    for k in range(3):
        assert torch.allclose(seen[3 + k], later.detach(), atol=1e-10)
        with torch.no_grad():
            later = flow.norms[k + 1](Lift.emit(flow.blocks[k], later.detach()).gradient(later))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(name, elsewhere):
    x = moons(40)
    flow = stack(SOURCES[name], blocks=2, hidden=(4, 4)).double()
    flow.initialise(x)
    flow.eval()  # with running statistics at rest
    # Without lifts all gradients are exact; a lift's summary sends none into the blocks before it.
    emitting = moons(30, seed=1) if elsewhere else None
    flow.loss(x, emit_from=emitting).backward()
    last = 1 if name == "lift" else 0
    for label, parameter in flow.named_parameters():
        if parameter.grad is None or (last and not label.startswith(("blocks.1", "norms.2"))):
            continue
        entry = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(flow)
            with torch.no_grad():
                moved.get_parameter(label).view(-1)[entry] += sign * 1e-5
                values.append(moved.loss(x, emit_from=emitting).item())
        exact = (values[0] - values[1]) / 2e-5
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(exact, rel=1e-5, abs=1e-8), label


def test_settling_fixes_every_block_in_order():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    scrambled(flow)
    before = flow.freeze(x).log_prob(x)
    assert flow.settle_at == 0.85
    flow.set_progress(0.85)
    flow.settle(x)
    assert flow.training
    frozen = flow.freeze(x)
    assert torch.allclose(frozen.log_prob(x), before, atol=1e-10)
    assert torch.equal(flow.freeze().log_prob(x), frozen.log_prob(x))
    # A batch no longer matters, in either mode.
    for mode in (True, False):
        flow.train(mode)
        assert flow.loss(x[:5]).item() == pytest.approx(-frozen.log_prob(x[:5]).mean().item(), abs=1e-10)
    assert torch.allclose(flow(x)[1], frozen(x)[1], atol=1e-10)


def test_settle_at_is_the_latest_of_the_blocks():
    assert stack(Softplus).settle_at is None
    lifts = [Lift(net()), Softplus(net()), Lift(net(), settle_window=(0.5, 0.6))]
    assert ConvexPotentialFlow(lifts).settle_at == 0.85
    assert ConvexPotentialFlow([lifts[2]]).settle_at == 0.6


def test_set_progress_and_settle_are_no_ops_without_lifts():
    x = moons()
    flow = ConvexPotentialFlow([net(), Softplus(net())]).double()
    flow.initialise(x)
    before = flow.log_prob(x)
    flow.set_progress(0.9)
    flow.settle(x)
    assert torch.equal(flow.log_prob(x), before)
    assert torch.equal(flow.freeze().log_prob(x), flow.freeze(x).log_prob(x))


# State.


def test_log_prob_and_sampling_change_no_state():
    x = moons(dtype=torch.float32)
    torch.manual_seed(0)
    flow = ConvexPotentialFlow([Lift(net(), summary="moments"), Lift(net(), standardise="centred")])
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(x, batch=x)  # not even the norms, before they are initialised
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    flow.initialise(x)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(x, batch=x)
    flow.sample(5, batch=x)
    flow.inverse(torch.zeros(3, 2), batch=x)
    flow.freeze(x)
    assert flow.training
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    flow.loss(x[:100])
    assert not all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_initialise_is_done_once_and_remembered():
    x = moons()
    flow = stack().double()
    flow.initialise(x)
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    with pytest.warns(UserWarning, match="initialised on other data"):
        flow.initialise(3 * x + 7)
    assert all(torch.equal(v, state[k]) for k, v in flow.state_dict().items())
    again = stack(blocks=3).double()
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match="initialised on other data"):
        again.initialise(3 * x + 7)
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert all(bool(norm.initialised) for norm in again.norms)


def test_state_dict_and_deepcopy_restore_log_probs_exactly():
    x = moons(dtype=torch.float32)
    flow = stack()
    flow.initialise(x)
    flow.loss(x).backward()
    again = stack(Lift)
    again.load_state_dict(flow.state_dict())
    for other in (again, copy.deepcopy(flow)):
        assert torch.equal(other.log_prob(x, batch=x), flow.log_prob(x, batch=x))
    frozen, blank = flow.freeze(x), ConvexPotentialFlow([net(seed=k + 10) for k in range(3)])
    blank.requires_grad_(False).load_state_dict(frozen.state_dict())
    assert torch.equal(blank.log_prob(x), frozen.log_prob(x))
    assert torch.equal(copy.deepcopy(frozen).log_prob(x), frozen.log_prob(x))


def test_the_dtype_is_that_of_the_blocks():
    flow = ConvexPotentialFlow([net().double()])
    assert flow.dtype == torch.float64 and flow.norms[0].shift.dtype == torch.float64
    assert flow.sample(2).dtype == torch.float64
    assert flow.float().sample(2).dtype == torch.float32


def test_act_norm():
    x = moons()
    norm = ActNorm(2).double()
    norm.initialise(x)
    z = norm(x)
    assert torch.allclose(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(norm.inverse(z), x, atol=1e-12)
    jacobian = torch.func.jacrev(lambda row: norm(row[None])[0])(x[0])
    assert norm.logdet.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-12)
    norm.initialise(x + 5)
    assert torch.equal(norm(x), z)


# Sampling.


def test_samples_agree_with_log_prob_in_their_moments():
    x = moons()
    flow = stack(Softplus, blocks=2).double()
    flow.initialise(x)
    frozen = scrambled(flow).freeze()
    samples = frozen.sample(20_000, seed=0)
    # E[w] = 1 and E[w t] = E_q[t] for w = q / p, q a Gaussian of half the covariance.
    q = torch.distributions.MultivariateNormal(samples.mean(0), samples.T.cov() / 2)
    weights = (q.log_prob(samples) - frozen.log_prob(samples)).exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.05)
    scaled = (samples - samples.mean(0)) / samples.std(0)
    assert torch.allclose((weights[:, None] * scaled).mean(0), torch.zeros_like(samples[0]), atol=0.05)
    assert torch.allclose((weights[:, None] * scaled**2).mean(0), torch.full_like(samples[0], 0.5), atol=0.05)
    # And the latent points are standard normal.
    z = frozen(samples)[0]
    assert torch.allclose(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=0.03)
    assert torch.allclose(z.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.04)


def test_samples_depend_on_the_seed_only():
    flow = stack(Softplus)
    flow.initialise(moons(dtype=torch.float32))
    before = torch.get_rng_state()
    assert torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=2))
    assert not torch.equal(flow.sample(5), flow.sample(5))
    assert flow.sample(0).shape == (0, 2)
    assert not flow.sample(3).requires_grad


def failing_inverse(monkeypatch, fails):
    """Potential.inverse that does not converge on the first row whenever `fails(y, start)`."""
    exact = Potential.inverse

    def inverse(self, y, *, start=None, tolerance=None):
        found = exact(self, y, start=start, tolerance=tolerance)
        if fails(y, start):
            found.residual[0] = 1.0
            found.x[0] = torch.nan
        return found

    monkeypatch.setattr(Potential, "inverse", inverse)


@pytest.mark.parametrize(
    "fails",
    [lambda y, start: y.dtype == torch.float32, lambda y, start: start is None],
    ids=["float64 helps", "another start helps"],
)
def test_rows_that_do_not_converge_are_solved_again(monkeypatch, fails):
    flow = stack(Softplus)
    flow.initialise(moons(dtype=torch.float32))
    exact = flow.sample(5, seed=0)
    failing_inverse(monkeypatch, fails)
    assert torch.allclose(flow.sample(5, seed=0), exact, atol=1e-2)
    if flow.dtype == torch.float32:
        found = flow.inverse(torch.zeros(3, 2))
        assert found.converged.tolist() == [False, True, True] and float(found.residual[0]) == 1.0


def test_samples_that_never_converge_are_an_error(monkeypatch):
    flow = stack(Softplus)
    flow.initialise(moons(dtype=torch.float32))
    failing_inverse(monkeypatch, lambda y, start: True)
    message = (
        r"^1 of 5 samples did not converge \(worst relative residual 1\); "
        r"a larger strong_convexity makes the inverse easier$"
    )
    with pytest.raises(RuntimeError, match=message):
        flow.sample(5, seed=0)


# Errors.


def test_an_unfrozen_lift_is_refused():
    x = moons(dtype=torch.float32)
    flow = ConvexPotentialFlow([Softplus(net()), Lift(net())])
    flow.initialise(x)
    for call in (
        lambda: flow.log_prob(x),
        lambda: flow.sample(3),
        lambda: flow.inverse(x),
        lambda: flow.freeze(),
        lambda: flow.eval()(x),
    ):
        with pytest.raises(ValueError, match=UNFROZEN):
            call()
    # A settled lift is not frozen yet: its slack and readout still train.
    flow.settle(x)
    for call in (lambda: flow.log_prob(x), lambda: flow.sample(3), lambda: flow.inverse(x)):
        with pytest.raises(ValueError, match=UNFROZEN):
            call()


def test_blocks_are_checked():
    with pytest.raises(ValueError, match="^a flow needs at least one block$"):
        ConvexPotentialFlow([])
    with pytest.raises(ValueError, match="^the blocks of a flow must have one dimension; got 2, 3$"):
        ConvexPotentialFlow([net(2), net(3)])
    message = "^the blocks of a flow need strong_convexity > 0: their gradients must be invertible$"
    with pytest.raises(ValueError, match=message):
        ConvexPotentialFlow([net(), Lift(net(strong_convexity=0.0))])
    with pytest.raises(TypeError, match="^expected an ICNN or a weight source of one; got Linear$"):
        ConvexPotentialFlow([torch.nn.Linear(2, 2)])


def test_samples_are_checked():
    flow = ConvexPotentialFlow([Softplus(net(21))])
    x = torch.zeros(5, 21)
    for call in (flow, flow.log_prob, flow.loss, flow.initialise, flow.freeze):
        with pytest.raises(ValueError, match=r"^expected \(N, 21\) samples; got \(5, 20\)$"):
            call(x[:, :20])
        with pytest.raises(TypeError, match="^expected floating-point samples; got int64$"):
            call(x.long())
        bad = x.clone()
        bad[3, 7] = math.inf
        with pytest.raises(ValueError, match="^samples have an infinity at row 3, column 7$"):
            call(bad)
    with pytest.raises(ValueError, match=r"^expected \(N, 21\) latent points; got \(5, 20\)$"):
        flow.inverse(x[:, :20])
    with pytest.raises(ValueError, match=r"^expected \(N, 21\) samples for the lift; got \(5, 20\)$"):
        flow.loss(x, emit_from=x[:, :20])
    with pytest.raises(TypeError, match="^expected a tensor of samples; got list$"):
        flow.log_prob(x.tolist())
    with pytest.raises(ValueError, match="^need at least 2 rows to standardise samples; got 1$"):
        flow.initialise(x[:1])
    with pytest.raises(ValueError, match=r"^column 0 is constant \(every value is 0\): remove it$"):
        flow.initialise(x)
    with pytest.raises(ValueError, match="^cannot draw -2 samples$"):
        flow.sample(-2)


def test_a_failed_start_can_be_repeated():
    x = moons(dtype=torch.float32)
    flow = stack()
    with pytest.raises(ValueError):
        flow.initialise(torch.ones(5, 2))
    flow.initialise(x)
    assert torch.allclose(flow.standardiser.mean, x.double().mean(0), rtol=1e-14)
