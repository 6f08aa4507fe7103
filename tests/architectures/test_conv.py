"""The convolutional ICNN: closed forms, convexity, starts, sources, copies, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convexlift as cl
from convexlift import ConvexPotentialFlow, ConvexRegression, ConvICNN, Lift, Potential
from convexlift.architectures.initial import INITIALISATIONS
from convexlift.calculus import convolution
from convexlift.calculus.activations import Activation
from convexlift.sources import Projected, Softplus, Squared
from convexlift.testing import CheckFailed, check_convex, check_derivatives, check_nonnegative

SHAPE, DIM = (2, 3, 4), 24
CLOSED_FORMS = ["value", "gradient", "hessian", "laplacian", "hvp", "logdet"]
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "one layer": {"channels": (3,)},
    "down": {"strides": (1, 2, 2)},
    "fast, no skips": {"strides": (2, 1, 3), "skip": False, "pooling": "none"},
    "wide kernel": {"kernel": 5, "activation": "smooth_squared_relu", "strides": 2},
    "points": {"kernel": 1, "strong_convexity": 0.5, "learn_strong_convexity": False},
    "sharp": {"sharpness": 3.0, "pooling": "none"},
}
SOURCES: list[Callable[[nn.Module], nn.Module]] = [
    Projected,
    Softplus,
    lambda net: Softplus(net, fan_in=True),
    Squared,
    lambda net: Lift(net, seed=1),
    lambda net: Lift(net, readout="dense", psi="square", targets="all", seed=1),
]
SOURCE_NAMES = ["projected", "softplus", "softplus / fan-in", "squared", "lift", "lift of all"]


def network(**options: object) -> ConvICNN:
    return ConvICNN(SHAPE, **{"channels": (3, 4, 3), "seed": 0, **options}).double()  # type: ignore[arg-type]


def small_network(**options: object) -> ConvICNN:
    """Of six pixels, for the checks of convexity."""
    return ConvICNN((1, 2, 3), (2, 3), strides=(1, 2), seed=0, **options).double()  # type: ignore[arg-type]


def points(rows: int, dim: int = DIM) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def closed_form(f: Potential, name: str) -> Callable[[Tensor], Tensor]:
    """The closed form of that name as a function of x alone; the Hessian is applied to x squared."""
    return (lambda x: f.hvp(x, x.square().detach())) if name == "hvp" else getattr(f, name)


def close(given: Tensor, exact: Tensor, tolerance: float = 1e-10) -> None:
    assert given.shape == exact.shape
    assert bool(torch.isfinite(given).all())
    error = (given - exact).detach().abs().max()
    assert float(error) <= tolerance * max(1e-30, float(exact.detach().abs().max()))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_closed_forms_agree_with_automatic_differentiation(options: dict[str, object]) -> None:
    check_derivatives(network(**options), dim=DIM, names=CLOSED_FORMS[1:])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_value_is_that_of_the_formula(options: dict[str, object]) -> None:
    net, x = network(**options), points(3)
    image = x.view(3, *SHAPE)
    z, reduction = None, 1
    for level, (bias, stride) in enumerate(zip(net.biases, net.strides, strict=True)):
        reduction *= stride
        u = bias[:, None, None]
        if level:
            side = max(net.kernel, 2 * stride - 1)
            weight = net.inner[level - 1].view(net.channels[level], -1, side, side)
            u = u + F.conv2d(z, weight, stride=stride, padding=(side - 1) // 2)
        if net.skip or not level:
            side = max(net.kernel, 2 * reduction - 1)
            weight = net.skips[level].view(net.channels[level], -1, side, side)
            u = u + F.conv2d(image, weight, stride=reduction, padding=(side - 1) // 2)
        z = net.activation.value(u)
        assert z.shape[2:] == net.sizes[level]
    exact = z.mean((2, 3)) @ net.outer if net.pooling == "mean" else z.flatten(1) @ net.outer
    exact = exact + net.alpha(net.emit().tensors) / 2 * x.square().sum(1)
    if net.skip:
        exact = exact + x @ net.linear
    close(net(x), exact, 1e-13)


@pytest.mark.parametrize("options", [OPTIONS["down"], OPTIONS["fast, no skips"]])
def test_one_backward_trains_every_closed_form(options: dict[str, object]) -> None:
    net, x = network(**options), points(2)
    wanted = dict(net.named_parameters())

    def number(tensors: dict[str, Tensor]) -> Tensor:
        f = net.potential(tensors)
        return sum(closed_form(f, name)(x).sin().sum() for name in CLOSED_FORMS)  # type: ignore[return-value]

    ours = dict(zip(wanted, torch.autograd.grad(number(wanted), list(wanted.values())), strict=True))
    generator = torch.Generator().manual_seed(3)
    way = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in wanted.items()}
    moved = [
        number({n: t.detach() + step * way[n] for n, t in wanted.items()}).item() for step in (-1e-5, 1e-5)
    ]
    exact = (moved[1] - moved[0]) / 2e-5
    assert abs(sum((ours[n] * way[n]).sum().item() for n in wanted) - exact) < 1e-6 * max(1.0, abs(exact))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("options", [OPTIONS["fast, no skips"], OPTIONS["one layer"]])
def test_small_batches(rows: int, options: dict[str, object]) -> None:
    net = network(**options)
    f, x = net.emit(), points(3)
    for name in CLOSED_FORMS:
        part, whole = closed_form(f, name)(x[:rows]), closed_form(f, name)(x)
        assert part.shape == (rows, *whole.shape[1:])
        torch.testing.assert_close(part, whole[:rows], rtol=1e-11, atol=1e-12)
        part.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    assert f.inverse(x[:rows]).x.shape == (rows, DIM)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_compose_with_vmap_and_grad(name: str) -> None:
    form = closed_form(network(strides=(1, 2, 1)).emit(), name)
    x = points(3)

    def one(row: Tensor) -> Tensor:
        return form(row[None])[0]

    close(torch.func.vmap(one)(x), form(x))
    leaf = x.clone().requires_grad_(True)
    (through_batch,) = torch.autograd.grad(form(leaf).sum(), leaf)
    close(torch.func.vmap(torch.func.grad(lambda row: one(row).sum()))(x), through_batch)


@pytest.mark.parametrize("name", ["hvp", "logdet"])
def test_closed_forms_compile_whole(name: str) -> None:
    net, x = network(channels=(2, 2), strides=(1, 2)), points(2)
    form = closed_form(net.emit(), name)
    torch._dynamo.reset()
    backend = "aot_eager" if name == "logdet" else "eager"
    compiled, exact = torch.compile(form, backend=backend, fullgraph=True)(x), form(x)
    close(compiled, exact)
    ours, known = (torch.autograd.grad(out.sum(), net.inner[0])[0] for out in (compiled, exact))
    close(ours, known)


def test_rows_worked_on_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(strides=(1, 2, 1)), points(5)
    results = []
    for entries in (2**24, 1):
        monkeypatch.setattr(convolution, "_CHUNK_ENTRIES", entries)
        leaf = x.clone().requires_grad_(True)
        out = net.emit().logdet(leaf) + net.emit().laplacian(leaf)
        results.append([out, *torch.autograd.grad(out.sum(), [leaf, net.inner[0], net.skips[1]])])
    for whole, parts in zip(*results, strict=True):
        close(parts, whole, 1e-12)
    tensors = {name: t.detach() for name, t in net.emit().tensors.items()}
    at = torch.func.grad(lambda w: net.potential({**tensors, "inner.0": w}).laplacian(x).sum())
    (known,) = torch.autograd.grad(net.emit().laplacian(x).sum(), net.inner[0])
    close(at(tensors["inner.0"]), known)


def test_the_operator_takes_many_vectors_a_point() -> None:
    net, x = network(strides=(1, 2, 1)), points(3)
    f = net.emit()
    (gradient, operator), v = f.linearise(x), torch.randn(2, 4, 3, DIM, dtype=torch.float64)
    close(gradient, f.gradient(x))
    exact = torch.einsum("nij,abnj->abni", f.hessian(x), v)
    close(operator(v), exact)
    close(operator.rows(slice(1, 3))(v[:, :, 1:]), exact[:, :, 1:])


def test_an_estimated_log_determinant_is_exact_with_all_probes_and_steps() -> None:
    f, x = network(strides=(1, 2, 1)).emit(), points(3)
    found = f.logdet_estimate(x, probes=DIM, steps=DIM)
    close(found.value, f.logdet(x).detach(), 1e-9)
    few = f.logdet_estimate(x, probes=6)
    assert bool(((few.value - found.value).abs() < 6 * few.standard_error).all())
    # One backward through an estimate from all probes is that of the exact value.
    net = f.architecture
    ours, exact = (
        torch.autograd.grad(f.logdet(x, method=method, probes=DIM).sum(), [net.inner[0], net.outer])
        for method in ("estimated", "exact")
    )
    for given, known in zip(ours, exact, strict=True):
        close(given, known, 1e-2)


def test_inverse_and_conjugate() -> None:
    f, x = network(strong_convexity=0.5).emit(), points(4)
    y = f.gradient(x).detach()
    close(f.inverse(y).x, x, 1e-6)
    found = f.conjugate(y)
    assert bool(found.converged.all())
    close(found.value, (x * y).sum(1) - f.value(x), 1e-10)


@pytest.mark.parametrize(
    ("init", "activation"), [*((init, "softplus") for init in INITIALISATIONS), ("principled", "relu")]
)
def test_every_start_is_convex(init: str, activation: str) -> None:
    alpha = 1.0 if init == "identity" else 0.0
    options = {"init": init, "activation": activation, "strong_convexity": alpha}
    check_nonnegative(network(**options, strides=(1, 2, 1)))
    assert check_convex(small_network(**options), dim=6, scales=(1.0, 10.0), starts=16).convex


@pytest.mark.parametrize("source", SOURCES, ids=SOURCE_NAMES)
def test_every_source_starts_as_the_network_and_stays_convex(
    source: Callable[[nn.Module], nn.Module],
) -> None:
    net, x = small_network(strong_convexity=0.0), points(32, 6)
    module = source(net)
    module.initialise(x)  # type: ignore[operator]
    close(module(x), net(x), 1e-6)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    if isinstance(module, Projected):
        module.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        (module(x) - x.square().sum(1)).square().mean().backward()
        optimizer.step()
    trained = module.freeze(x)  # type: ignore[operator]
    assert isinstance(trained, ConvICNN) and not any(p.requires_grad for p in trained.parameters())
    assert not torch.allclose(trained(x), net(x))
    check_nonnegative(trained)
    assert check_convex(trained, dim=6, scales=(1.0, 10.0), starts=16).convex


def test_a_damaged_network_fails_the_checks_and_is_not_frozen_or_loaded() -> None:
    net = small_network(strong_convexity=0.0)
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.inner[0][2, 7] = -20.0
    with pytest.raises(CheckFailed, match=r"'inner.0' must be non-negative; it is -20 at \(2, 7\)"):
        check_nonnegative(net)
    with pytest.raises(CheckFailed, match="f is not convex"):
        check_convex(net, dim=6, scales=(1.0, 10.0), starts=16)
    with pytest.raises(ValueError, match="'inner.0' must be non-negative; its smallest entry is -20"):
        net.freeze()
    state["outer"][0] = -1.0
    with pytest.raises(ValueError, match="'outer' must be non-negative; its smallest entry is -1"):
        net.load_state_dict(state)


@pytest.mark.parametrize("options", [{}, {"skip": False}, {"activation": "relu"}, {"strides": (1, 2, 1, 1)}])
def test_principled_keeps_mean_zero_and_variance_one(options: dict[str, object]) -> None:
    net = ConvICNN((1, 6, 6), channels=(8, 8, 8, 8), seed=0, **options)  # type: ignore[arg-type]
    fresh = torch.randn(512, 36, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layers = net.layers(net.emit().tensors)
        us = convolution.preactivations(fresh, layers, net.activation)
        top = (net.activation.value(us[-1]) * layers.outer).sum((1, 2, 3))
    for u in us:
        assert float(u.mean((0, 2, 3)).abs().max()) < 0.3
        assert float((u.var((0, 2, 3)) - 1).abs().max()) < 0.4
    assert abs(float(top.var()) - 1) < 0.4


def test_calibrate_is_exact_on_its_own_rows_and_keeps_weights_non_negative() -> None:
    net, x = network(init="fan_in", strides=(1, 2, 1)), 3 * points(20) + 1
    net.calibrate(x)
    us = convolution.preactivations(x, net.layers(net.emit().tensors), net.activation)
    for u in us:
        close(u.var((0, 2, 3)), torch.ones(u.shape[1], dtype=torch.float64), 1e-10)
        assert float(u.mean((0, 2, 3)).detach().abs().max()) < 1e-10
    check_nonnegative(net)


def test_identity_starts_near_the_identity_map() -> None:
    net = network(init="identity", strong_convexity=1.0)
    close(net.emit().gradient(points(5)), points(5), 0.01)


def test_every_pixel_is_seen_through_every_skip() -> None:
    """A layer of large stride reads a kernel wide enough that no pixel falls between its places."""
    net = ConvICNN((1, 7, 9), channels=(2, 2, 2), strides=(2, 2, 1), seed=0)
    layers = net.layers(net.emit().tensors)
    for level, skip in enumerate(layers.skips):
        pixels = torch.eye(63).view(63, 1, 7, 9)
        seen = convolution.convolve(pixels, skip.abs(), layers.reduction(level))
        assert seen.shape[2:] == net.sizes[level] and bool((seen.flatten(1).sum(1) > 0).all())


def test_same_seed_same_network_in_both_precisions() -> None:
    default = torch.get_default_dtype()
    single = ConvICNN(SHAPE, (3, 4), seed=3)
    try:
        torch.set_default_dtype(torch.float64)
        double = ConvICNN(SHAPE, (3, 4), seed=3)
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(single.double().state_dict(), double.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e-6])
def test_extreme_inputs_stay_finite_in_float32(scale: float) -> None:
    net = ConvICNN(SHAPE, (3, 4), strides=(1, 2), sharpness=20.0, strong_convexity=1.0, seed=0)
    x = (scale * points(4)).float().requires_grad_(True)
    for name in CLOSED_FORMS:
        out = (
            (lambda x: net.emit().hvp(x, torch.ones_like(x)))(x)
            if name == "hvp"
            else getattr(net.emit(), name)(x)
        )
        assert bool(out.isfinite().all())
        for gradient in torch.autograd.grad(out.sum(), [x, *net.parameters()], allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all())


def test_a_row_whose_float32_factorisation_fails_is_redone_in_float64() -> None:
    net = ConvICNN((1, 1, 2), (1,), strong_convexity=1e-9, learn_strong_convexity=False, seed=0)
    with torch.no_grad():
        net.skips[0].fill_(0.0)
        net.skips[0].view(3, 3)[1] = 900.0  # both units read both pixels, with one weight
        net.biases[0].zero_()
        net.outer.fill_(4.0)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    exact = torch.logdet(copy.deepcopy(net).double().emit().hessian(x.double()))
    failed = torch.linalg.cholesky_ex(net.emit().hessian(x)).info > 0
    assert failed.tolist() == [True, True] or failed.tolist() == [True, False]
    given = net.emit().logdet(x)
    close(given.double(), exact, 1e-3)
    for gradient in torch.autograd.grad(given.sum(), [net.skips[0], net.outer]):
        assert bool(gradient.isfinite().all())
    blind = torch.func.vmap(lambda row: net.emit().logdet(row[None])[0])(x)
    assert torch.equal(blind.isnan(), failed)


def test_a_singular_hessian_is_reported_with_its_rows() -> None:
    x = points(3)
    x[1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not positive definite in float64 at 1 of 3 rows \(1\)"):
        network().emit().logdet(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8)}, r"shape must be \(channels, height, width\); got \(8, 8\)"),
        ({"shape": (1, 0, 8)}, r"shape must be a non-empty sequence of positive numbers; got \(1, 0, 8\)"),
        ({"channels": ()}, r"channels must be a non-empty sequence of positive numbers; got \(\)"),
        ({"kernel": 4}, "kernel must be odd and positive; got 4"),
        ({"strides": (1, 2)}, "expected 3 strides, one for each hidden layer; got 2"),
        ({"strides": 0}, r"strides must be a non-empty sequence of positive numbers; got \(0, 0, 0\)"),
        ({"pooling": "max"}, "unknown pooling 'max'; known: mean, none"),
        ({"strong_convexity": -0.1}, "strong_convexity must be >= 0; got -0.1"),
        ({"init": "identity"}, 'init="identity" needs strong_convexity=1 and learn_strong_convexity=True'),
        ({"init": "zeros"}, "unknown init 'zeros'; known: fan_in, folded_normal, principled, identity"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ConvICNN(**{"shape": (1, 8, 8), **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.value(points(5)[:, 1:]), ValueError, r"expected \(N, 24\) samples; got \(5, 23\)"),
        (lambda f: f.value(points(5).view(5, *SHAPE)), ValueError, r"got \(5, 2, 3, 4\)"),
        (lambda f: f.value(points(5).float()), TypeError, "expected float64 samples; got float32"),
        (lambda f: f.logdet(points(5)), ValueError, "logdet needs strong_convexity > 0"),
        (lambda f: f.architecture.calibrate(points(1)), ValueError, "calibrate needs at least 2 rows; got 1"),
    ],
)
def test_bad_points(call: Callable[[Potential], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(network(strong_convexity=0.0).emit())


def test_relu_has_no_hessian() -> None:
    f = network(activation="relu").emit()
    assert f.gradient(points(3)).shape == (3, DIM)
    with pytest.raises(ValueError, match="relu has no second derivative"):
        f.hessian(points(3))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_config_and_pickle_rebuild_the_network(options: dict[str, object]) -> None:
    net, x = network(**options), points(3)
    again = ConvICNN(**net.config()).double()
    again.load_state_dict(net.state_dict())
    for other in (again, pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(other(x), net(x))
        assert other.config() == net.config()


def test_config_refuses_a_users_activation() -> None:
    own = Activation("own", lambda u: u * 1, torch.ones_like, torch.zeros_like)
    with pytest.raises(ValueError, match="activation 'own' is a user's own: save the state_dict"):
        network(activation=own).config()


def test_frozen_networks_and_flows_are_saved(tmp_path: Path) -> None:
    x = points(40).float()
    net = ConvICNN(SHAPE, (3, 4), strides=(1, 2), pooling="none", seed=0)
    flow = ConvexPotentialFlow([Squared(net), Lift(net, seed=1)])
    flow.initialise(x)
    for number, model in enumerate([net.freeze(), flow.freeze(x)]):
        cl.save(model, tmp_path / f"{number}.safetensors")
        again = cl.load(tmp_path / f"{number}.safetensors")
        score = "log_prob" if number else "forward"
        assert torch.equal(getattr(again, score)(x), getattr(model, score)(x))


def test_a_flow_and_a_regression_train_on_it() -> None:
    x = points(64).float()
    x = x + x.roll(1, 1)  # neighbours are correlated
    flow = ConvexPotentialFlow([Squared(ConvICNN(SHAPE, (4,), strides=1, seed=0))])
    regression = ConvexRegression(Squared(ConvICNN(SHAPE, (4,), strong_convexity=0.0, seed=0)))
    for module, data in ((flow, x), (regression, (x, x.square().sum(1)))):
        module.initialise(data)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = module.loss(data)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    frozen = flow.freeze()
    drawn = frozen.sample(3, seed=0)
    z, logdet = frozen(drawn)
    exact = -0.5 * (z.square().sum(1) + DIM * torch.log(torch.tensor(2 * torch.pi))) + logdet
    close(frozen.log_prob(drawn), exact, 1e-4)
