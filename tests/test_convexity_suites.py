"""Two hundred convex functions that ``check_convex`` must pass, three hundred others that it must find."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.testing import check_convex

Function = Callable[[Tensor], Tensor]
DIMS = (1, 2, 3, 5, 10, 50)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(seed * 1009**k for k, seed in enumerate(seeds)))


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1


def rotation(g: torch.Generator, dim: int) -> Tensor:
    return torch.linalg.qr(normal(g, dim, dim)).Q


# Each makes from a generator and a dimension a function of given tensors, which are then cast.
Made = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def log_sum_exp(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b: torch.logsumexp(x @ a.T + b, -1), (normal(g, 32, dim), normal(g, 32))


def planes(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b: (x @ a.T + b).amax(-1), (normal(g, 16, dim), normal(g, 16))


def euclidean(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b: (x @ a.T + b).norm(dim=-1), (normal(g, dim, dim), normal(g, dim))


def sum_of_norms(g: torch.Generator, dim: int) -> Made:
    def f(x: Tensor, a: Tensor) -> Tensor:
        return x.abs().sum(-1) + (x - a).abs().amax(-1) + x.norm(p=3, dim=-1)

    return f, (normal(g, dim),)


def softplus_sum(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b, w: F.softplus(x @ a.T + b) @ w, (
        normal(g, 24, dim),
        normal(g, 24),
        positive(g, 24),
    )


def quadratic(g: torch.Generator, dim: int) -> Made:
    q, curvature = rotation(g, dim), torch.logspace(-6, 0, dim, dtype=torch.float64)
    return lambda x, h, b: (x @ h * x).sum(-1) / 2 + x @ b, ((q * curvature) @ q.T, normal(g, dim))


def squared_residuals(g: torch.Generator, dim: int) -> Made:
    q = rotation(g, dim) * torch.logspace(-3, 0, dim, dtype=torch.float64)
    return lambda x, a, b: (x @ a - b).square().sum(-1), (q, normal(g, dim))


def network(g: torch.Generator, dim: int) -> Made:
    def f(x: Tensor, a: Tensor, w: Tensor, s: Tensor, o: Tensor) -> Tensor:
        return F.softplus(F.softplus(x @ a.T) @ w.T + x @ s.T) @ o

    return f, (normal(g, 16, dim), positive(g, 16, 16) / 16, normal(g, 16, dim), positive(g, 16))


def rectified(g: torch.Generator, dim: int) -> Made:
    def f(x: Tensor, a: Tensor, w: Tensor, s: Tensor, o: Tensor) -> Tensor:
        return F.relu(F.relu(x @ a.T + s[:, 0]) @ w.T + x @ s.T) @ o

    return f, (normal(g, 16, dim), positive(g, 16, 16) / 16, normal(g, 16, dim), positive(g, 16))


def huber(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: F.huber_loss(x, a.expand_as(x), reduction="none").sum(-1), (normal(g, dim),)


CONVEX = (
    log_sum_exp,
    planes,
    euclidean,
    sum_of_norms,
    softplus_sum,
    quadratic,
    squared_residuals,
    network,
    rectified,
    huber,
)


class Module(nn.Module):
    """The function as a module, which can be had in float64."""

    def __init__(self, f: Function, tensors: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.f = f
        self.held = nn.ParameterList(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, *self.held)


def presented(made: Made, way: int) -> Function:
    """A function in single precision as somebody would write it."""
    f, tensors = made
    single = tuple(t.float() for t in tensors)
    ways: list[Function] = [
        lambda x: f(x, *single),
        lambda x: f(x.float(), *single),
        lambda x: f(x.float(), *single).to(x.dtype),
        lambda x: f(x.detach().float(), *single).to(x.dtype),
        Module(f, single),
    ]
    return ways[way]


def scaled(made: Made, inner: float, outer: float, shift: float, offset: float) -> Made:
    f, tensors = made
    return lambda x, *t: outer * f(inner * (x - shift), *t) + offset, tensors


def suspected(kind: Callable[[torch.Generator, int], Made]) -> list[tuple[object, ...]]:
    """Those of a kind's 20 functions that do not pass."""
    found = []
    for seed in range(20):
        g = generator(CONVEX.index(kind), seed)
        dim = DIMS[seed % 6]
        inner, outer = (10 ** float(power) for power in torch.rand(2, generator=g) * 6 - 3)
        shift, offset = ((0, 0), (3, 0), (0, 100), (-5, -1e4))[seed % 4]
        made = scaled(kind(g, dim), inner, outer, shift, offset * outer)
        result = check_convex(presented(made, seed % 5), dim=dim, starts=32, raises=False)
        if not result.convex:
            found.append((seed, dim, inner, outer, result.worst, result.length))
    return found


@pytest.mark.parametrize("kind", CONVEX, ids=lambda kind: kind.__name__)
def test_convex_functions_in_single_precision_pass(kind: Callable[[torch.Generator, int], Made]) -> None:
    assert suspected(kind) == []


def base(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


def radius(dim: int, share: float) -> float:
    """Half the width of a ball that holds about a share of a standard normal law."""
    squares = torch.randn(100_000, dim, generator=generator(1)).square().sum(1)
    return float(squares.quantile(share).sqrt())


def saddle(g: torch.Generator, dim: int) -> Made:
    curvature = positive(g, dim)
    curvature[-1] = -0.01
    q = rotation(g, dim)
    return lambda x, h: (x @ h * x).sum(-1), ((q * curvature) @ q.T,)


def slight_saddle(g: torch.Generator, dim: int) -> Made:
    curvature = torch.ones(dim, dtype=torch.float64)
    curvature[0] = -0.002
    q = rotation(g, dim)
    return lambda x, h: (x @ h * x).sum(-1), ((q * curvature) @ q.T,)


def wide_saddle(g: torch.Generator, dim: int) -> Made:
    curvature = torch.logspace(-3, 0, dim, dtype=torch.float64)
    curvature[0] = -0.005
    q = rotation(g, dim)
    return lambda x, h: (x @ h * x).sum(-1), ((q * curvature) @ q.T,)


def concave(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: -torch.logsumexp(x @ a.T, -1), (normal(g, 8, dim),)


def ridge(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (x @ a).sin() * 0.2 + base(x) * 0.1, (F.normalize(normal(g, dim), dim=0),)


def fast_ridge(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (8 * (x @ a)).sin() * 0.05 + base(x), (F.normalize(normal(g, dim), dim=0),)


def bump(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: base(x) + 3 * torch.exp(-(x - c).square().sum(-1)), (normal(g, dim) * 0.3,)


def wide_bump(g: torch.Generator, dim: int) -> Made:
    width = max(1.0, dim / 4)
    return lambda x, c: base(x) + 4 * width * torch.exp(-(x - c).square().sum(-1) / width), (normal(g, dim),)


def narrow_bump(g: torch.Generator, dim: int) -> Made:
    width = radius(dim, 0.02)
    return lambda x, c: base(x) + 4 * width**2 * torch.exp(-(x - c).square().sum(-1) / width**2), (
        normal(g, dim) * 0.1,
    )


def negative_weight(g: torch.Generator, dim: int) -> Made:
    f, (a, w, s, o) = network(g, dim)
    o[0] = -2 * o.sum()
    return f, (a, w, s, o)


def negative_unit(g: torch.Generator, dim: int) -> Made:
    f, (a, w, s, o) = network(g, dim)
    w[:, 3] = -2.0
    return f, (a, w, s, o)


def negative_rectified(g: torch.Generator, dim: int) -> Made:
    f, (a, w, s, o) = rectified(g, dim)
    o[0] *= -1
    return f, (a, w, s, o)


def free_network(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, w, o: (x @ a.T).tanh() @ w @ o + 0.01 * base(x), (
        normal(g, 16, dim),
        normal(g, 16, 16),
        normal(g, 16),
    )


def gelu_network(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b, o: F.gelu(x @ a.T + b) @ o, (normal(g, 8, dim), normal(g, 8), positive(g, 8))


def silu_network(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, o: F.silu(x @ a.T) @ o, (normal(g, 4, dim), positive(g, 4))


def product(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (x @ a[0]) * (x @ a[1]) + 0.05 * base(x), (normal(g, 2, dim) / math.sqrt(dim),)


def double_well(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: ((x @ a).square() - 1).square() + base(x - (x @ a)[:, None] * a), (
        F.normalize(normal(g, dim), dim=0),
    )


def separate_wells(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: ((x - c).square() - 0.5).square().sum(-1), (0.1 * normal(g, dim),)


def concave_kink(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: base(x) - 0.5 * (x @ a - 0.3).abs(), (F.normalize(normal(g, dim), dim=0),)


def small_kink(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (x @ a.T).amax(-1) - 0.1 * (x @ a[0] + 0.5).relu(), (normal(g, 2, dim),)


def minimum(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: torch.minimum(base(x - c[0]), base(x - c[1])), (normal(g, 2, dim),)


def soft_minimum(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: -torch.logsumexp(-(x[:, None] - c).square().sum(-1), -1), (normal(g, 3, dim),)


def root(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: ((x - c).square().sum(-1) + 0.1) ** 0.25, (normal(g, dim),)


def logarithm(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: (1 + (x - c).square().sum(-1)).log(), (normal(g, dim),)


def half_norm(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: ((x - c).abs() + 0.01).sqrt().sum(-1), (normal(g, dim),)


def cubic(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (x @ a) ** 3 / 3 + base(x), (F.normalize(normal(g, dim), dim=0),)


def difference(g: torch.Generator, dim: int) -> Made:
    return lambda x, a, b: torch.logsumexp(x @ a.T, -1) - torch.logsumexp(x @ b.T, -1), (
        normal(g, 8, dim),
        normal(g, 8, dim),
    )


def ripples(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: 0.5 * base(x) + (3 * (x - c).norm(dim=-1)).cos() * 0.3, (normal(g, dim),)


def rastrigin(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: base(x) + ((x - c) * 4).cos().sum(-1), (normal(g, dim),)


def sigmoid_step(g: torch.Generator, dim: int) -> Made:
    return lambda x, a: (3 * (x @ a)).sigmoid() + 0.01 * base(x), (F.normalize(normal(g, dim), dim=0),)


def saturating(g: torch.Generator, dim: int) -> Made:
    return lambda x, c: (x - c).abs().clamp(max=1.0).sum(-1) + 0.01 * base(x), (normal(g, dim),)


def rosenbrock(g: torch.Generator, dim: int) -> Made:
    def f(x: Tensor, c: Tensor) -> Tensor:
        bent = torch.cat([x, x + c], 1)
        return (bent[:, 1:] - bent[:, :-1].square()).square().sum(-1) + (1 - x).square().sum(-1)

    return f, (normal(g, dim),)


OTHERS = (
    saddle,
    slight_saddle,
    wide_saddle,
    concave,
    ridge,
    fast_ridge,
    bump,
    wide_bump,
    narrow_bump,
    negative_weight,
    negative_unit,
    negative_rectified,
    free_network,
    gelu_network,
    silu_network,
    product,
    double_well,
    separate_wells,
    concave_kink,
    small_kink,
    minimum,
    soft_minimum,
    root,
    logarithm,
    half_norm,
    cubic,
    difference,
    ripples,
    rastrigin,
    sigmoid_step,
    saturating,
    rosenbrock,
)
# In many dimensions a small ball, or a ball of a width of one, holds next to nothing of the region.
FEW = {bump: 3, narrow_bump: 5}
# Of these some or all are convex in one dimension.
CONVEX_ON_THE_LINE = {
    saddle,
    slight_saddle,
    wide_saddle,
    negative_weight,
    negative_unit,
    negative_rectified,
    product,
    soft_minimum,
    rosenbrock,
}


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_others_are_found(kind: Callable[[torch.Generator, int], Made]) -> None:
    missed = []
    for seed in range(10):
        g = generator(100 + OTHERS.index(kind), seed)
        dim = min(DIMS[seed % 6], FEW.get(kind, 50))
        if kind in CONVEX_ON_THE_LINE:
            dim = max(dim, 2)
        f, tensors = kind(g, dim)
        offset, outer = ((0, 1), (100, 1), (1e3, 30.0), (0, 1e-3), (0, 1e3))[seed % 5]

        def g_of(x: Tensor, *t: Tensor, f=f, offset=offset, outer=outer) -> Tensor:
            return outer * (f(x, *t) + offset)

        if seed % 2:
            call = lambda x, f=g_of, t=tensors: f(x, *t)  # noqa: E731
        else:
            call = presented((g_of, tensors), seed // 2)
        if check_convex(call, dim=dim, scales=(0.3, 3.0), raises=False).convex:
            missed.append((seed, dim))
    assert missed == []
