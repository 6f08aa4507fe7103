from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convexlift as cl
from convexlift.testing import CheckFailed, check_convex, check_derivatives, check_nonnegative


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class HandWritten(nn.Module):
    """A convex network as a user would write it, in float32."""

    def __init__(
        self, dim: int, activation: Callable[[Tensor], Tensor], *, width: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(width, dim, generator=generator))
        self.skip = nn.Parameter(torch.randn(width, dim, generator=generator))
        self.bias = nn.Parameter(torch.randn(2, width, generator=generator))
        self.inner = nn.Parameter(torch.rand(width, width, generator=generator) / width)
        self.outer = nn.Parameter(torch.rand(width, generator=generator) / width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(x @ self.first.T + self.bias[0])
        z = self.activation(z @ self.inner.T + x @ self.skip.T + self.bias[1])
        return z @ self.outer


def damaged(dim: int, level: int, *, activation: str = "softplus", seed: int) -> cl.ICNN:
    """A 64 x 3 network with alpha = 0 and all outgoing weights of its most influential unit negated."""
    net = cl.ICNN(dim, hidden=(64,) * 3, activation=activation, strong_convexity=0, seed=seed)
    outgoing = net.outer[None] if level == 2 else net.inner[level]
    with torch.no_grad():
        outgoing[:, outgoing.sum(0).argmax()].neg_()
    return net


# check_nonnegative


@pytest.mark.parametrize("name", ["inner.0", "inner.1", "outer"])
@pytest.mark.parametrize("bad", [-1e-30, -1.0, float("nan"), float("-inf")])
def test_any_one_negative_weight_is_caught(name: str, bad: float) -> None:
    net = cl.ICNN(3, hidden=(8, 8, 8), seed=0)
    weight = dict(net.named_parameters())[name]
    place = tuple(size - 2 for size in weight.shape)
    with torch.no_grad():
        weight[place] = bad
    for subject in (net, net.emit(), nn.Sequential(nn.Identity(), nn.ModuleList([net]))):
        with pytest.raises(
            CheckFailed, match=re.escape(f"{name}' must be non-negative; it is {bad:g} at {place}")
        ) as e:
            check_nonnegative(subject)
        assert e.value.result.index == place
        assert not e.value.result.nonnegative


def test_zeros_and_free_parameters_are_fine() -> None:
    net = cl.ICNN(3, hidden=(8, 8, 8), seed=0)
    with torch.no_grad():
        net.outer.zero_()
        net.skips[1].fill_(-1.0)
    result = check_nonnegative(net)
    assert result.nonnegative
    assert result.smallest == 0
    assert result.checked == 64 + 64 + 8


def test_weight_sources_are_checked_by_what_they_emit() -> None:
    net = cl.ICNN(2, hidden=(8, 8), seed=0)
    assert check_nonnegative(nn.ModuleList([cl.Softplus(net), cl.Squared(net)])).checked == 2 * 72


def test_the_first_nan_wins_over_a_negative_weight() -> None:
    tensors = {"a": torch.tensor([-1.0]), "b": torch.tensor([[0.0, float("nan")]])}
    with pytest.raises(CheckFailed, match=re.escape("'b' must be non-negative; it is nan at (0, 1)")):
        check_nonnegative(tensors)


def test_names_choose_tensors_of_any_module() -> None:
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.fill_(-1.0)
    assert check_nonnegative(linear, names=["weight"]).nonnegative
    assert not issubclass(CheckFailed, ValueError)
    with pytest.raises(CheckFailed, match="'bias' must be non-negative"):
        check_nonnegative(linear, names=["weight", "bias"])


def test_nonnegative_refuses_what_it_cannot_check() -> None:
    with pytest.raises(
        ValueError, match=re.escape("found no weights that are declared non-negative; pass names=")
    ):
        check_nonnegative(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no tensor is named 'w'; there are: weight, bias"):
        check_nonnegative(nn.Linear(2, 2), names=["w"])
    with pytest.raises(TypeError, match="expected a module, a potential or a dict of tensors; got int"):
        check_nonnegative(3)


# check_convex

ACTIVATIONS = {
    "softplus": F.softplus,
    "sharp softplus": lambda u: F.softplus(u, beta=50),
    "relu": F.relu,
    "leaky relu": lambda u: F.leaky_relu(u, 0.2),
    "elu": F.elu,
    "squared relu": lambda u: F.relu(u) ** 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_convex_networks_pass(name: str) -> None:
    for seed, dim in enumerate((1, 2, 5, 21, 40)):
        net = HandWritten(dim, ACTIVATIONS[name], seed=seed)
        result = check_convex(net, dim=dim, starts=64)
        assert result.convex
        assert result.worst >= 0


@pytest.mark.parametrize("init", ["fan_in", "folded_normal", "principled"])
@pytest.mark.parametrize("activation", ["softplus", "smooth_squared_relu", "relu"])
def test_new_networks_of_ours_pass(init: str, activation: str) -> None:
    net = cl.ICNN(4, hidden=(16, 16), activation=activation, init=init, strong_convexity=0, seed=1)
    assert check_convex(net, dim=4, starts=64).convex


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.logsumexp(3 * x, 1),
        lambda x: x.norm(dim=1),
        lambda x: x.amax(1),
        lambda x: x.exp().sum(1),
        lambda x: (x - 1000).square().sum(1) + 1e4,
        lambda x: x.square().sum(1) - 2e3 * x.sum(1) + 1e6,
        lambda x: x.sum(1),
        lambda x: torch.ones(len(x), dtype=x.dtype),
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_convex_functions_pass_in_either_precision(f: Callable[[Tensor], Tensor], single: bool) -> None:
    assert check_convex((lambda x: f(x.float())) if single else f, dim=3, starts=64).convex


@pytest.mark.parametrize("dim", [2, 21])
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_one_unit_with_negated_weights_is_found(dim: int, level: int, activation: str) -> None:
    net = damaged(dim, level, activation=activation, seed=1)
    with pytest.raises(CheckFailed, match=r"f is not convex: curvature -\d.* in direction \["):
        check_convex(net, dim=dim)


@pytest.mark.parametrize("seed", range(6))
def test_one_unit_with_negated_weights_is_found_in_one_dimension(seed: int) -> None:
    # With softplus of sharpness 1 the other units' curvature covers the damage there: f stays convex.
    net = damaged(1, level=seed % 3, activation="relu", seed=seed)
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    slope = net.double().emit().gradient(x)[:, 0]
    assert check_convex(net, dim=1, raises=False).convex == bool((slope.diff() > -1e-9).all())


def test_the_point_found_is_a_witness() -> None:
    net = damaged(2, level=0, seed=0).double()
    result = check_convex(net, dim=2, raises=False)
    assert not result.convex
    assert result.point.shape == result.direction.shape == (2,)
    assert result.direction.norm() == pytest.approx(1)
    ends = torch.stack(
        [result.point - result.length * result.direction, result.point + result.length * result.direction]
    )
    slopes = net.emit().gradient(ends).detach() @ result.direction
    assert (slopes[1] - slopes[0]) / (2 * result.length) == pytest.approx(result.worst, rel=1e-6)


def test_the_hessian_agrees_where_curvature_was_found() -> None:
    result = check_convex(
        lambda x: x[:, 0] ** 2 - x[:, 1].cos() * 0.5 + x[:, 1] ** 2 * 0.2, dim=2, raises=False
    )
    assert not result.convex
    assert result.worst == pytest.approx(-0.1, abs=1e-3)
    assert abs(result.direction[1]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("dim", [3, 100])
def test_a_slightly_concave_direction_is_found(dim: int) -> None:
    curvature = torch.ones(dim, dtype=torch.float64)
    curvature[dim // 2] = -0.01
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)).double()).Q
    result = check_convex(lambda x: ((x @ rotation) ** 2 * curvature).sum(1) / 2, dim=dim, raises=False)
    assert not result.convex
    assert result.worst == pytest.approx(-0.01, rel=0.05)


def test_rounding_of_single_precision_at_far_points_is_not_concavity() -> None:
    a = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    assert check_convex(lambda x: torch.logsumexp(x @ a.T, -1), dim=5).convex


@pytest.mark.parametrize(
    "within",
    [
        lambda x: x.float().to(x.dtype),
        lambda x: x.detach().float().to(x.dtype),
        lambda x: torch.from_numpy(x.detach().float().numpy()).to(x.dtype),
    ],
)
def test_single_precision_within_is_not_concavity(within: Callable[[Tensor], Tensor]) -> None:
    assert check_convex(lambda x: (within(x) - 3).square().sum(1), dim=3, starts=32).convex
    assert check_convex(lambda x: within(x.square().sum(1) + 1e6) - 1e6, dim=3, starts=32).convex
    assert not check_convex(lambda x: within(x).cos().sum(1), dim=3, starts=32, raises=False).convex


def test_a_function_whose_gradient_takes_single_precision_alone_is_checked_in_it() -> None:
    a = torch.zeros(3)
    huber = lambda x: F.huber_loss(x, a.expand_as(x), reduction="none").sum(1)  # noqa: E731
    assert check_convex(huber, dim=3, starts=32).convex


def test_a_function_without_gradient_is_checked_by_its_values() -> None:
    def values(x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().clip(0).sum(1))

    assert check_convex(values, dim=3).convex
    assert not check_convex(lambda x: -values(x), dim=3, raises=False).convex


def test_points_say_where_to_look() -> None:
    def f(x: Tensor) -> Tensor:  # concave only near (500, 500)
        return x.square().sum(1) + 30 * torch.exp(-(x - 500).square().sum(1))

    assert check_convex(f, dim=2, scales=(0.1, 1.0)).convex
    points = 500 + torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert not check_convex(f, dim=2, points=points, scales=(1.0,), raises=False).convex


def test_same_seed_same_result_and_the_network_is_left_alone() -> None:
    net = damaged(2, level=0, seed=0)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    first, second = (check_convex(net, dim=2, raises=False, seed=1) for _ in range(2))
    assert first.worst == second.worst
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in net.parameters())


def test_bound_methods_potentials_and_no_grad() -> None:
    net = cl.ICNN(2, hidden=(8, 8), seed=0)
    with torch.no_grad():
        assert check_convex(net.forward, dim=2, starts=32).convex
        assert check_convex(net.emit(), dim=2, starts=32).convex


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x.sum(1, keepdim=True), ValueError, "expected (N,) values of f; got (N, 1)"),
        (lambda x: x.sum(), ValueError, "expected (N,) values of f; got ()"),
        (lambda x: x.sum(1)[:3], ValueError, "expected (N,) values of f; got (3,)"),
        (lambda x: x.sum(1, keepdim=True).squeeze(), ValueError, "expected (N,) values of f; got ()"),
        (lambda x: 3.0, TypeError, "f must return a tensor; got float"),
        (lambda x: x.sum(1).long(), TypeError, "f must return float32 or float64 values; got torch.int64"),
        (lambda x: x.sum(1) * x.mean(), ValueError, "f gives a point another value alone than in a batch"),
        (lambda x: x.sum(1) * float("nan"), ValueError, "f has no finite values where the search looks"),
        (lambda x: x @ torch.ones(4), RuntimeError, "size mismatch"),
    ],
)
def test_wrong_functions_are_refused(
    f: Callable[[Tensor], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        check_convex(f, dim=3)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected (N, 3) points; got (5, 2)")):
        check_convex(lambda x: x.sum(1), dim=3, points=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=re.escape("scales must be positive; got (0.0,)")):
        check_convex(lambda x: x.sum(1), dim=3, scales=(0.0,))


# check_derivatives


@pytest.mark.parametrize("activation", ["softplus", "smooth_squared_relu"])
def test_our_closed_forms_pass(activation: str) -> None:
    net = cl.ICNN(3, hidden=(8, 8), activation=activation, seed=0)
    for subject in (net, net.emit(), cl.Softplus(net)):
        result = check_derivatives(subject, dim=3)
        assert set(result.errors) == {"gradient", "hessian", "laplacian", "hvp", "logdet"}
        assert max(result.errors.values()) < 1e-10


def test_relu_has_a_gradient_to_check() -> None:
    net = cl.ICNN(3, hidden=(8, 8), activation="relu", seed=0)
    assert set(check_derivatives(net, dim=3, names=["gradient"]).errors) == {"gradient"}


def quartic(x: Tensor) -> Tensor:
    return (x**4).sum(1) / 12 + x.square().sum(1)


FORMS: dict[str, Callable[..., Tensor]] = {
    "gradient": lambda x: x**3 / 3 + 2 * x,
    "hessian": lambda x: (x**2 + 2).diag_embed(),
    "laplacian": lambda x: (x**2 + 2).sum(1),
    "hvp": lambda x, v: (x**2 + 2) * v,
    "logdet": lambda x: (x**2 + 2).log().sum(1),
}


def test_right_forms_pass_and_each_wrong_one_is_named() -> None:
    assert max(check_derivatives(quartic, **FORMS, dim=4).errors.values()) < 1e-14
    for wrong in FORMS:
        forms = dict(FORMS)
        forms[wrong] = lambda *x, right=FORMS[wrong]: right(*x) * (1 + 1e-8)
        with pytest.raises(
            CheckFailed, match=rf"{wrong} is off by \d\.?\d*e-0\d of its largest entry at x = \["
        ):
            check_derivatives(quartic, **forms, dim=4)
        result = check_derivatives(quartic, **forms, dim=4, raises=False)
        assert result.worst == wrong
        assert result.point.shape == (4,)


def test_a_derivative_that_is_nan_fails() -> None:
    with pytest.raises(CheckFailed, match="gradient is off by nan"):
        check_derivatives(quartic, gradient=lambda x: x * float("nan"), hessian=FORMS["hessian"], dim=2)


def test_single_precision_is_compared_less_sharply() -> None:
    def f(x: Tensor) -> Tensor:
        return x.float().square().sum(1)

    assert check_derivatives(f, gradient=lambda x: 2.0001 * x, dim=2).errors["gradient"] > 1e-6
    with pytest.raises(CheckFailed, match="gradient is off by 0.05"):
        check_derivatives(f, gradient=lambda x: 2.1 * x, dim=2)


def softmax_far_out(x: Tensor) -> Tensor:
    return torch.softmax(1e5 * x.float(), 1) * 1e5


def test_rounding_is_no_wrong_derivative() -> None:
    far = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    check_derivatives(
        lambda x: torch.logsumexp(1e5 * x.float(), 1), gradient=softmax_far_out, dim=3, points=far
    )
    with pytest.raises(CheckFailed, match="gradient is off by 0.1"):
        check_derivatives(
            lambda x: torch.logsumexp(1e5 * x.float(), 1),
            gradient=lambda x: 1.1 * softmax_far_out(x),
            dim=3,
            points=far,
        )


@pytest.mark.parametrize(("dtype", "condition"), [(torch.float32, 1e5), (torch.float64, 1e9)])
def test_the_log_determinant_of_an_ill_conditioned_hessian_is_rounded(
    dtype: torch.dtype, condition: float
) -> None:
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    hessian = ((q * torch.logspace(-math.log10(condition), 0, 8).double()) @ q.T).to(dtype)
    exact = hessian.double().logdet()
    for factor, passes in ((1.0, True), (1.5, False)):
        result = check_derivatives(
            lambda x: (x.to(dtype) @ hessian * x.to(dtype)).sum(1) / 2,
            logdet=lambda x, f=factor: (f * exact).expand(len(x)),
            dim=8,
            raises=False,
        )
        assert (result.errors["logdet"] <= 1e-10) == passes


def test_derivatives_at_given_points() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    result = check_derivatives(quartic, gradient=lambda x: x**3 / 3, dim=2, points=points, raises=False)
    assert result.point.tolist() == [2.0, 3.0]
    assert result.errors["gradient"] == pytest.approx(6 / 15)


def test_derivatives_refuse_what_they_cannot_check() -> None:
    with pytest.raises(
        ValueError, match="nothing to check: pass one of gradient, hessian, laplacian, hvp, logdet"
    ):
        check_derivatives(quartic, dim=2)
    with pytest.raises(ValueError, match=re.escape("expected (7, 2, 2) from hessian; got (7, 2)")):
        check_derivatives(quartic, hessian=FORMS["gradient"], dim=2)
    with pytest.raises(ValueError, match=re.escape("expected (N,) values of f; got (N, 1)")):
        check_derivatives(lambda x: quartic(x)[:, None], gradient=FORMS["gradient"], dim=2)
    with pytest.raises(ValueError, match="f has no method 'jacobian'; known derivatives: gradient, hessian"):
        check_derivatives(cl.ICNN(2, hidden=(4,)), dim=2, names=["jacobian"])
    with pytest.raises(ValueError, match="names= chooses among the methods of f"):
        check_derivatives(quartic, gradient=FORMS["gradient"], dim=2, names=["gradient"])
    with pytest.raises(ValueError, match="points are empty"):
        check_derivatives(quartic, gradient=FORMS["gradient"], dim=2, points=torch.zeros(0, 2))
