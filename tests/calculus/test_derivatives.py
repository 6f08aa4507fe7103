"""Closed forms against torch.func, in float64 to 1e-10 relative."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, Potential
from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.logdet import _HessianLogdet

EXACT = 1e-10
CELU = Activation(
    "celu-ish",
    lambda u: torch.where(u > 0, u, torch.expm1(u.clamp_max(0))),
    lambda u: torch.where(u > 0, torch.ones_like(u), u.clamp_max(0).exp()),
    lambda u: torch.where(u > 0, torch.zeros_like(u), u.clamp_max(0).exp()),
)
SMOOTH = {
    "softplus": "softplus",
    "squareplus": "squareplus",
    "smooth_squared_relu": "smooth_squared_relu",
    "own": CELU,
}


def net(depth: int = 2, **options: object) -> ICNN:
    return ICNN(4, hidden=(7, 5, 6, 7, 5, 6)[:depth], init="principled", seed=depth, **options).double()


def close(given: Tensor, exact: Tensor, tolerance: float = EXACT) -> None:
    given, exact = given.detach(), exact.detach()
    assert given.shape == exact.shape
    assert bool(torch.isfinite(given).all())
    assert float((given - exact).abs().max()) <= tolerance * max(1e-30, float(exact.abs().max()))


CLOSED_FORMS = ["value", "gradient", "hessian", "laplacian", "logdet", "hvp"]
NETWORKS = [("softplus", 3, True), ("smooth_squared_relu", 1, False), ("own", 2, False)]


def closed_form(f: Potential, name: str) -> Callable[[Tensor], Tensor]:
    """The closed form of that name as a function of x alone; the Hessian is applied to x squared."""
    return (lambda x: f.hvp(x, x.square().detach())) if name == "hvp" else getattr(f, name)


def exact_derivatives(f: object, x: Tensor) -> tuple[Tensor, Tensor]:
    def scalar(row: Tensor) -> Tensor:
        return f.value(row[None])[0]  # type: ignore[attr-defined]

    return torch.func.vmap(torch.func.grad(scalar))(x), torch.func.vmap(torch.func.hessian(scalar))(x)


@pytest.mark.parametrize(
    ("activation", "depth", "skip", "rank"),
    [
        *itertools.product(SMOOTH, range(1, 7), (True, False), (0,)),
        ("softplus", 3, True, 2),
        ("softplus", 1, False, 1),
    ],
)
def test_closed_forms_agree_with_automatic_differentiation(
    activation: str, depth: int, skip: bool, rank: int
) -> None:
    f = net(depth, activation=SMOOTH[activation], skip=skip, quadratic_rank=rank).emit()
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    gradient, hessian = (t.detach() for t in exact_derivatives(f, x))
    with torch.no_grad():
        close(f.gradient(x), gradient)
        close(f.hessian(x), hessian)
        close(f.laplacian(x), hessian.diagonal(dim1=1, dim2=2).sum(1))
        close(f.hvp(x, v), (hessian @ v.unsqueeze(2)).squeeze(2))
        close(f.logdet(x), torch.linalg.slogdet(hessian).logabsdet)
        both = f.gradient_and_logdet(x)
        close(both[0], gradient)
        close(both[1], f.logdet(x))


@pytest.mark.parametrize(("depth", "skip", "rank"), [(1, True, 0), (2, False, 0), (4, True, 2), (6, True, 0)])
def test_logdet_backward_agrees_with_differentiating_the_hessian(depth: int, skip: bool, rank: int) -> None:
    network = net(depth, skip=skip, quadratic_rank=rank)
    f = network.emit()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    seeds = torch.randn(5, dtype=torch.float64)
    wanted = [x, *network.parameters()]
    ours = torch.autograd.grad((f.logdet(x) * seeds).sum(), wanted, allow_unused=True)
    exact = torch.autograd.grad((torch.logdet(f.hessian(x)) * seeds).sum(), wanted, allow_unused=True)
    for given, known in zip(ours, exact, strict=True):
        zero = torch.zeros(())
        close(zero if given is None else given + 0, zero if known is None else known + 0, 1e-9)


@pytest.mark.parametrize("depth", [1, 3])
def test_logdet_backward_passes_gradcheck(depth: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_(True)

    n, d, h = 2, 2, 3
    slopes, bends = [draw(n, h) for _ in range(depth - 1)], [draw(n, h) for _ in range(depth)]
    inner, skips = [draw(h, h) for _ in range(depth - 1)], [draw(h, d) for _ in range(depth)]

    def logdet(base: Tensor, *tensors: Tensor) -> Tensor:
        return _HessianLogdet.apply(depth, True, base @ base.T + torch.eye(d), *tensors)[0]

    assert torch.autograd.gradcheck(logdet, (draw(d, d), *slopes, *bends, *inner, *skips))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize(
    ("activation", "depth", "skip"), [*itertools.product(SMOOTH, (1, 2, 6), (True, False))]
)
def test_small_batches(rows: int, activation: str, depth: int, skip: bool) -> None:
    network = net(depth, activation=SMOOTH[activation], skip=skip)
    f, x = network.emit(), torch.randn(3, 4, dtype=torch.float64)
    for name in CLOSED_FORMS:
        part, whole = closed_form(f, name)(x[:rows]), closed_form(f, name)(x)
        assert part.shape == (rows, *whole.shape[1:])
        torch.testing.assert_close(part, whole[:rows], rtol=1e-12, atol=1e-12)
        part.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    assert f.inverse(x[:rows]).x.shape == (rows, 4)


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize(("activation", "depth", "skip"), NETWORKS)
def test_closed_forms_compose_with_vmap_and_grad(name: str, activation: str, depth: int, skip: bool) -> None:
    form = closed_form(net(depth, activation=SMOOTH[activation], skip=skip).emit(), name)
    x = torch.randn(5, 4, dtype=torch.float64)

    def one(row: Tensor) -> Tensor:
        return form(row[None])[0]

    close(torch.func.vmap(one)(x), form(x))
    leaf = x.clone().requires_grad_(True)
    (through_batch,) = torch.autograd.grad(form(leaf).sum(), leaf)
    close(torch.func.vmap(torch.func.grad(lambda row: one(row).sum()))(x), through_batch)


@pytest.mark.parametrize("name", ["hessian", "laplacian"])
def test_forward_mode_alone_and_over_reverse_mode(name: str) -> None:
    form = closed_form(net(2).emit(), name)
    x, v = torch.randn(2, 4, 4, dtype=torch.float64)
    _, along = torch.func.jvp(form, (x,), (v,))
    close(along, torch.autograd.functional.jvp(form, x, v)[1])
    second = torch.func.hessian(lambda row: form(row[None]).sum())(x[0])
    close(second, torch.autograd.functional.hessian(lambda row: form(row[None]).sum(), x[0]))


# Raised by dynamo itself when it meets an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize(("activation", "depth", "skip"), NETWORKS)
def test_closed_forms_compile_whole(name: str, activation: str, depth: int, skip: bool) -> None:
    network = net(depth, activation=SMOOTH[activation], skip=skip)
    form = closed_form(network.emit(), name)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(form, backend="aot_eager", fullgraph=True)
    close(compiled(x), form(x))
    ours = torch.autograd.grad(compiled(x).sum(), network.outer)[0]
    close(ours, torch.autograd.grad(form(x).sum(), network.outer)[0])
    assert compiled(x[:1]).shape[0] == 1 and compiled(x[:0]).shape[0] == 0


@pytest.mark.parametrize("depth", [1, 2, 6])
@pytest.mark.parametrize(
    ("activation", "sharpness"),
    [("softplus", 1.0), ("softplus", 50.0)] + [("smooth_squared_relu", 1.0), ("smooth_squared_relu", 50.0)],
)
def test_extreme_preactivations_stay_finite(activation: str, sharpness: float, depth: int) -> None:
    network = ICNN(3, (8,) * depth, activation=activation, sharpness=sharpness, seed=0, strong_convexity=1.0)
    with torch.no_grad():
        for weight in network.inner:
            weight.mul_(1e-6)
        for bias, skip in zip(network.biases, network.skips, strict=True):
            bias.zero_()
            skip.copy_(torch.tensor([[100.0, 0, 0], [-100.0, 0, 0]] * 4))
    f = network.emit()
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [1e-3, 0, 0]], requires_grad=True)
    us = derivatives.preactivations(x, network.layers(f.tensors), network.activation)
    assert all(90 < float(u.detach().abs().max()) < 110 for u in us)
    outputs = [f.value(x), f.gradient(x), f.hessian(x), f.laplacian(x), f.hvp(x, x), f.logdet(x)]
    for out in outputs:
        assert bool(torch.isfinite(out).all())
        for gradient in torch.autograd.grad(out.sum(), [x, *network.parameters()], allow_unused=True):
            assert gradient is None or bool(torch.isfinite(gradient).all())


def test_a_row_whose_float32_factorisation_fails_is_redone_in_float64() -> None:
    network = ICNN(2, hidden=(1,), seed=0, strong_convexity=1e-9, learn_strong_convexity=False)
    with torch.no_grad():
        network.skips[0].copy_(torch.tensor([[900.0, 900.0]]))
        network.biases[0].zero_()
        network.outer.fill_(4.0)
    x = torch.zeros(2, 2)
    x[1] = 1.0
    exact = torch.logdet(network.double().emit().hessian(x.double()))
    with torch.no_grad():
        given = network.float().emit().logdet(x)
    failed = torch.linalg.cholesky_ex(network.emit().hessian(x)).info > 0
    assert bool(failed.any())
    close(given.double(), exact.detach(), 1e-3)
    # Where rows cannot be looked at, they are not numbers rather than wrong ones.
    with torch.no_grad():
        blind = torch.func.vmap(lambda row: network.emit().logdet(row[None])[0])(x)
    assert torch.equal(blind.isnan(), failed)


def test_a_singular_hessian_is_reported_with_its_rows() -> None:
    f = net(2).emit()
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not positive definite in float64 at 1 of 3 rows \(1\)"):
        f.logdet(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.value(torch.zeros(5, 3)), ValueError, r"expected \(N, 4\) samples; got \(5, 3\)"),
        (lambda f: f.value(torch.zeros(4)), ValueError, r"expected \(N, 4\) samples; got \(4,\)"),
        (lambda f: f.value(torch.zeros(5, 4)), TypeError, "expected float64 samples; got float32"),
        (lambda f: f.value([[0.0] * 4]), TypeError, "expected a tensor of samples; got list"),
        (lambda f: f.hvp(torch.zeros(5, 4).double(), torch.zeros(5, 3)), ValueError, r"expected \(N, 4\)"),
    ],
)
def test_bad_points(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(net().emit())  # type: ignore[operator]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("depth", range(1, 7))
def test_relu_has_value_and_gradient_only(depth: int, skip: bool) -> None:
    f = net(depth, activation="relu", skip=skip).emit()
    x = torch.randn(5, 4, dtype=torch.float64)
    close(f.gradient(x), exact_derivatives(f, x)[0])
    assert f.gradient(x[:0]).shape == (0, 4)
    for name in ("hessian", "laplacian", "logdet", "hvp"):
        with pytest.raises(ValueError, match="relu has no second derivative: ask for value or gradient only"):
            closed_form(f, name)(x)


@pytest.mark.parametrize("name", ["logdet", "inverse", "conjugate"])
def test_alpha_zero_has_no_logdet_inverse_or_conjugate(name: str) -> None:
    f = net(2, strong_convexity=0.0).emit()
    with pytest.raises(ValueError, match="needs strong_convexity > 0"):
        getattr(f, name)(torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("rows", [129, 400])
def test_logdet_of_many_rows_is_worked_in_chunks(
    skip: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convexlift.calculus import logdet

    net = ICNN(5, hidden=(16, 12, 8), skip=skip, quadratic_rank=1, seed=0).double()
    x = torch.randn(rows, 5, dtype=torch.float64)
    weights = torch.randn(rows, dtype=torch.float64)
    exact = net.emit().hessian(x).logdet()
    wanted = torch.autograd.grad((weights * exact).sum(), list(net.parameters()), allow_unused=True)
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 64 * 5 * 16 * 8})  # 64 rows at a time
    found = net.emit().logdet(x)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad((weights * found).sum(), list(net.parameters()), allow_unused=True)
    for ours, theirs in zip(grads, wanted, strict=True):
        if theirs is None:
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
