"""The PICNN: closed forms in x, convexity in x for every source, rows of contexts, copies, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlift import ICNN, Lift, Projected, Softplus, Squared
from convexlift.architectures import PICNN, ConditionedPotential, PartialPotential
from convexlift.calculus.activations import Activation
from convexlift.testing import CheckFailed, check_convex, check_derivatives, check_nonnegative

D, K = 3, 2
OPTIONS: list[dict[str, Any]] = [
    {},
    {"skip": False},
    {"activation": "smooth_squared_relu", "sharpness": 2.0},
    {"quadratic_rank": 2},
    {"learn_strong_convexity": False},
    {"init": "folded_normal", "context_hidden": ()},
    {"hidden": (5,), "context_hidden": (4,)},
]
SOURCES = {
    "bare": lambda net: net,
    "projected": Projected,
    "softplus": Softplus,
    "squared": Squared,
    "lift": lambda net: Lift(net, seed=0),
}


def net(effect: float = 10.0, **options: Any) -> PICNN:
    """A small network in float64, the effect of its context made large so that a mistake there shows."""
    given = {"hidden": (6, 5, 4), "context_hidden": (7,), "seed": 0, "strong_convexity": 0.3, **options}
    built = PICNN(D, K, **given).double()
    with torch.no_grad():
        for matrix in (*built.gates, *built.scales, *built.offsets, built.tilt, built.level):
            matrix.mul_(effect)
    return built


def points(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(n, 2 * D + K, generator=generator, dtype=torch.float64)
    return draws[:, :D], draws[:, D : D + K], draws[:, D + K :]


def emitted(source: nn.Module, batch: Tensor) -> PartialPotential:
    """What a source emits, as a partial potential of its architecture."""
    architecture = source if isinstance(source, PICNN) else source.architecture
    return architecture.potential(source.emit(batch).tensors)


def written_out(f: PICNN, x: Tensor, c: Tensor) -> Tensor:
    """f(x; c) at one point, straight from the formula."""
    v = c
    for weight, bias in zip(f.context_weights, f.context_biases, strict=True):
        v = torch.tanh(weight @ v + bias)
    e = torch.cat([c, v]) if f.context_hidden else c
    z = None
    for level, bias in enumerate(f.convex.biases):
        u = bias + f.offsets[level] @ e
        if z is not None:
            u = u + f.convex.inner[level - 1] @ z
        if level < len(f.scales):
            u = u + f.convex.skips[level] @ ((1 + f.scales[level] @ e) * x)
        gate = torch.log1p((torch.e - 1) * torch.exp(f.gates[level] @ e))
        z = gate * f.activation.value(u)
    out = f.convex.outer @ z + (f.tilt @ e) @ x + f.level[0] @ e
    out = out + f.convex.alpha(dict(f.convex.named_buffers()) | dict(f.convex.named_parameters())) / 2 * x @ x
    if f.convex.linear is not None:
        out = out + f.convex.linear @ x
    return out if f.convex.root is None else out + (f.convex.root @ x).square().sum() / 2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_follow_the_formula(options: dict[str, Any]) -> None:
    f, (x, c, _) = net(**options), points()
    expected = torch.stack([written_out(f, a, b) for a, b in zip(x, c, strict=True)])
    torch.testing.assert_close(f(x, c), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("one_context", [False, True])
def test_derivatives_against_automatic_differentiation(options: dict[str, Any], one_context: bool) -> None:
    f, (x, c, v) = net(**options), points()
    c = c[:1] if one_context else c
    given = f.emit().given(c)
    rows = c.expand(len(x), K)
    hessians = torch.func.vmap(torch.func.hessian(lambda a, b: written_out(f, a, b)))(x, rows)
    gradients = torch.func.vmap(torch.func.grad(lambda a, b: written_out(f, a, b)))(x, rows)
    torch.testing.assert_close(given.gradient(x), gradients, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(given.hessian(x), hessians, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(given.laplacian(x), torch.einsum("nii->n", hessians), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(
        given.hvp(x, v), torch.einsum("nij,nj->ni", hessians, v), rtol=1e-10, atol=1e-11
    )
    gradient, logdet = given.gradient_and_logdet(x)
    torch.testing.assert_close(gradient, gradients, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(logdet, torch.logdet(hessians), rtol=1e-10, atol=1e-10)
    if one_context:
        check_derivatives(given, dim=D)


@pytest.mark.parametrize("what", ["gradient", "hessian", "laplacian", "logdet"])
def test_one_backward_trains_the_closed_forms(what: str) -> None:
    """The derivative in every parameter, against a finite difference along a random direction."""
    f, (x, c, _) = net(), points()
    weights = torch.randn(7, 7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def number() -> Tensor:
        out = getattr(f.emit().given(c), what)(x)
        return (out * weights[tuple(slice(0, n) for n in out.shape) + (0,) * (3 - out.ndim)]).sum()

    number().backward()
    idle = {name for name, p in f.named_parameters() if p.grad is None}
    affine = {"level"} if what == "gradient" else {"level", "tilt", "convex.linear"}
    assert idle == affine  # what only adds an affine function of x
    generator = torch.Generator().manual_seed(3)
    slope, step = 0.0, 1e-6
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in f.parameters()]
    for p, direction in zip(f.parameters(), directions, strict=True):
        slope += 0.0 if p.grad is None else float((p.grad * direction).sum())
    with torch.no_grad():
        ends = []
        for sign in (1, -2):
            for p, direction in zip(f.parameters(), directions, strict=True):
                p.add_(direction, alpha=sign * step)
            ends.append(float(number()))
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_vmap_agrees_with_rows() -> None:
    f, (x, c, _) = net().requires_grad_(False).emit(), points()
    alone = torch.func.vmap(lambda a, b: f.given(b[None]).gradient_and_logdet(a[None]))(x, c)
    for row, batch in zip(alone, f.given(c).gradient_and_logdet(x), strict=True):
        torch.testing.assert_close(row[:, 0], batch, rtol=1e-12, atol=1e-12)


def test_a_grid_is_the_same_function() -> None:
    x, c, v = points()
    given = net().emit().given(c)
    grid = given.grid(torch.stack([x, v], 1))
    torch.testing.assert_close(grid, torch.stack([given.value(x), given.value(v)], 1), rtol=1e-12, atol=1e-12)


def test_float32_hessians_that_fail_are_done_again_in_float64() -> None:
    f = net(strong_convexity=1e-9, learn_strong_convexity=False).float()
    with torch.no_grad():
        f.convex.outer.mul_(1e5)
    x, c, _ = (t.float() for t in points(50))
    x = 30 * x
    failed = torch.linalg.cholesky_ex(f.emit().given(c).hessian(x))[1] > 0
    assert bool(failed.any()) and not bool(failed.all())
    exact = copy.deepcopy(f).double().emit().given(c.double()).logdet(x.double())
    logdet = f.emit().given(c).logdet(x)
    assert bool(logdet.isfinite().all())
    torch.testing.assert_close(logdet[failed].double(), exact[failed], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("contexts", [1, 6])
def test_inverse_and_conjugate_by_rows(contexts: int) -> None:
    given, (x, _, _) = net().emit().given(points()[1][:contexts]), points()
    found = given.inverse(given.gradient(x).detach())
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x, x, rtol=1e-6, atol=1e-6)
    y = given.gradient(x).detach()
    conjugate = given.conjugate(y)
    torch.testing.assert_close(conjugate.value, (x * y).sum(1) - given.value(x), rtol=1e-9, atol=1e-9)
    warm = given.inverse(y, start=x)
    assert warm.iterations == 0 and torch.equal(warm.x, x)


def test_residuals_do_not_depend_on_the_place_of_a_row() -> None:
    f, (x, c, _) = net().emit(), points()
    y = f.given(c).gradient(x).detach()
    together, alone = f.given(c).inverse(y), f.given(c[5:]).inverse(y[5:])
    torch.testing.assert_close(together.residual[5:], alone.residual, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("options", [{}, {"skip": False, "strong_convexity": 0.0}], ids=str)
def test_convex_in_x_for_every_source_and_context(name: str, options: dict[str, Any]) -> None:
    x, c, _ = points(20)
    source = SOURCES[name](net(**options)).eval()
    batch = torch.cat([x, c], 1)
    if name == "lift":
        source.initialise(batch)
    f = emitted(source, batch)
    assert check_nonnegative(f).checked == 6 * 5 + 5 * 4 + 4
    for row in range(2):
        given = f.given(20 * c[row : row + 1].detach())
        assert check_convex(given, dim=D, scales=(1.0, 100.0), starts=16).convex
        check_nonnegative(given)
    torch.testing.assert_close(f(x, c), net(**options)(x, c), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOURCES)
def test_freezing_a_source(name: str) -> None:
    x, c, _ = points(20)
    batch = torch.cat([x, c], 1)
    source = SOURCES[name](net()).eval()
    frozen = source.freeze(batch)
    assert isinstance(frozen, PICNN) and not any(p.requires_grad for p in frozen.parameters())
    check_nonnegative(frozen)
    torch.testing.assert_close(frozen(x, c), emitted(source, batch)(x, c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_trains_all_its_parameters(name: str) -> None:
    x, c, _ = points(20)
    source = SOURCES[name](net())
    emitted(source, torch.cat([x, c], 1)).given(c).value(x).sum().backward()
    assert {n for n, p in source.named_parameters() if p.requires_grad and p.grad is None} == set()


def test_a_damaged_copy_fails_the_checks() -> None:
    damaged = net(strong_convexity=0.0)
    with torch.no_grad():
        damaged.convex.outer[1] = -5.0
    with pytest.raises(CheckFailed, match="'convex.outer' must be non-negative; it is -5"):
        check_nonnegative(damaged)
    given = damaged.emit().given(torch.zeros(1, K, dtype=torch.float64))
    with pytest.raises(CheckFailed, match="f is not convex"):
        check_convex(given, dim=D)
    with pytest.raises(ValueError, match="'convex.outer' must be non-negative; its smallest entry is -5"):
        damaged.freeze()
    with pytest.raises(ValueError, match="'outer' must be non-negative; its smallest entry is -5"):
        net(strong_convexity=0.0).load_state_dict(damaged.state_dict())


def test_it_is_not_convex_in_the_context() -> None:
    x, c, _ = points(200)
    f = net().requires_grad_(False)
    middle = f(x[:1].expand(199, D), (c[1:] + c[:-1]) / 2)
    ends = (f(x[:1].expand(199, D), c[1:]) + f(x[:1].expand(199, D), c[:-1])) / 2
    assert bool((middle > ends + 1e-3).any()) and bool((middle < ends - 1e-3).any())


def test_a_network_without_effect_of_the_context_is_the_icnn() -> None:
    f, (x, c, _) = net(effect=0.0), points()
    assert isinstance(f.convex, ICNN)
    torch.testing.assert_close(f(x, 100 * c), f.convex(x), rtol=1e-12, atol=1e-12)


def test_a_new_network_is_close_to_an_icnn() -> None:
    generator = torch.Generator().manual_seed(0)
    f = PICNN(D, K, seed=0).requires_grad_(False)
    x, c = torch.randn(2000, D, generator=generator), torch.randn(2000, K, generator=generator)
    plain = f.convex(x)
    assert float((f(x, c) - plain).std()) < 0.5 * float(plain.std())
    assert float((f(x, c) - plain).std()) > 0.01 * float(plain.std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int, dtype: torch.dtype) -> None:
    f = net().to(dtype)
    x, c, v = (t[:n].to(dtype) for t in points())
    given = f.emit().given(c)
    assert given.value(x).shape == (n,) and given.value(x).dtype == dtype
    assert given.gradient(x).shape == given.hvp(x, v).shape == (n, D)
    assert given.hessian(x).shape == (n, D, D)
    assert given.laplacian(x).shape == given.logdet(x).shape == (n,)
    assert given.inverse(x).x.shape == (n, D)


def test_extreme_inputs_give_finite_numbers_in_float32() -> None:
    f = PICNN(D, K, hidden=(16, 16), seed=0)
    x, c, _ = (t.float() for t in points())
    for size in (1e3, 1e5):
        f.zero_grad()
        given = f.emit().given(size * c)
        loss = (
            given.value(size * x).mean() + given.gradient(size * x).square().mean() + given.logdet(x).mean()
        )
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in f.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_config_copies_and_pickles_give_the_same_numbers(options: dict[str, Any]) -> None:
    f, (x, c, _) = net(**options), points()
    again = PICNN(**f.config()).double()
    again.load_state_dict(f.state_dict())
    for other in (again, copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert torch.equal(other(x, c), f(x, c))


def test_the_same_seed_gives_the_same_network() -> None:
    first, second, third = PICNN(D, K, seed=4), PICNN(D, K, seed=4), PICNN(D, K, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.tilt, third.tilt)


def test_a_lift_reads_points_and_contexts() -> None:
    x, c, _ = points(20)
    lift = Lift(net(), seed=0)
    one, other = (emitted(lift, torch.cat([x, k], 1)).tensors["convex.outer"] for k in (c, c + 1))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match=r"^expected a batch of 5 columns; got \(20, 3\)$"):
        lift.emit(x)


def test_bad_arguments_are_refused() -> None:
    own = Activation("own", lambda u: u * 1, torch.ones_like, torch.zeros_like)
    with pytest.raises(ValueError, match="^context_dim must be at least 1; got 0$"):
        PICNN(2, 0)
    with pytest.raises(ValueError, match=r"^context_hidden must be positive widths; got \(4, 0\)$"):
        PICNN(2, 1, context_hidden=(4, 0))
    with pytest.raises(ValueError, match="^dim must be at least 1; got 0$"):
        PICNN(0, 1)
    with pytest.raises(ValueError, match="^activation 'own' is a user's own: save the state_dict"):
        PICNN(2, 1, activation=own).config()
    with pytest.raises(ValueError, match="^relu has no second derivative"):
        PICNN(2, 1, activation="relu").emit().given(torch.zeros(1, 1)).hessian(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="^logdet needs strong_convexity > 0"):
        PICNN(2, 1, strong_convexity=0.0).emit().given(torch.zeros(1, 1)).logdet(torch.zeros(1, 2))


def test_bad_inputs_are_refused() -> None:
    f, (x, c, _) = net().emit(), points()
    given = f.given(c)
    assert isinstance(given, ConditionedPotential)
    with pytest.raises(ValueError, match=r"^expected \(N, 2\) contexts; got \(6, 3\)$"):
        f.given(x)
    with pytest.raises(TypeError, match="^expected float64 contexts; got float32$"):
        f.given(c.float())
    with pytest.raises(ValueError, match=r"^expected \(N, 3\) samples; got \(6, 2\)$"):
        given.value(c)
    with pytest.raises(TypeError, match="^expected float64 samples; got float32$"):
        given.gradient(x.float())
    for call in (given.value, given.hessian, given.inverse, given.conjugate):
        with pytest.raises(ValueError, match="^expected 6 samples, one for each context; got 5$"):
            call(x[:5])
    with pytest.raises(ValueError, match=r"^expected \(6, M, 3\) points; got \(5, 4, 3\)$"):
        given.grid(torch.zeros(5, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="^inverse needs strong_convexity > 0"):
        net(strong_convexity=0.0).emit().given(c).inverse(x)
