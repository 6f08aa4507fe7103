"""Whatever its options, weights and points, an architecture is convex and has the derivatives it says."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convexlift import ICNN, PICNN, ConvICNN, Potential

SMOOTH = st.sampled_from(["softplus", "smooth_squared_relu"])
WIDTHS = st.lists(st.integers(1, 5), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)


@st.composite
def potentials(draw: st.DrawFn, least_alpha: float = 0.0) -> Potential:
    """A function in float64, of dimension 1 to 6, whose unconstrained tensors are moved off their start."""
    options: dict[str, Any] = {
        "activation": draw(SMOOTH),
        "sharpness": draw(st.floats(0.5, 4.0)),
        "strong_convexity": draw(st.sampled_from([a for a in (0.0, 0.1, 1.0) if a >= least_alpha])),
        "skip": draw(st.booleans()),
        "init": draw(st.sampled_from(["fan_in", "folded_normal", "principled"])),
        "seed": draw(SEEDS),
    }
    kind = draw(st.sampled_from([ICNN, PICNN, ConvICNN]))
    net: ICNN | PICNN | ConvICNN
    if kind is ConvICNN:
        shape = draw(st.sampled_from([(1, 2, 2), (2, 1, 3), (1, 2, 3)]))
        pooling = draw(st.sampled_from(["mean", "none"]))
        net = ConvICNN(shape, channels=draw(WIDTHS), pooling=pooling, **options)
    else:
        options |= {"dim": draw(st.integers(1, 4)), "hidden": draw(WIDTHS)}
        options["quadratic_rank"] = draw(st.integers(0, 2))
        net = PICNN(context_dim=2, context_hidden=(3,), **options) if kind is PICNN else ICNN(**options)
    net.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(options["seed"])
    for name, parameter in net.named_parameters():
        if name not in net.nonnegative and "alpha" not in name:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if isinstance(net, PICNN):
        return net.emit().given(torch.randn(1, 2, generator=generator, dtype=torch.float64))
    return net.emit()


def points(draw: st.DrawFn, dim: int, rows: int = 4) -> Tensor:
    normal = torch.randn(rows, dim, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=torch.float64)
    return draw(st.sampled_from([0.0, 0.01, 1.0, 5.0])) * normal


def alpha(f: Potential) -> float:
    return 0.0 if f.alpha is None else float(f.alpha)


@given(st.data())
def test_no_chord_lies_below_the_function(data: st.DataObject) -> None:
    f = data.draw(potentials())
    x, y = points(data.draw, f.dim), points(data.draw, f.dim)
    t = data.draw(st.floats(0, 1))
    chord = t * f.value(x) + (1 - t) * f.value(y)
    gap = chord - f.value(t * x + (1 - t) * y)
    strong = alpha(f) / 2 * t * (1 - t) * (x - y).square().sum(1)
    assert bool((gap >= strong - 1e-10 * (1 + chord.abs())).all())


@given(st.data())
def test_no_tangent_lies_above_the_function(data: st.DataObject) -> None:
    f = data.draw(potentials())
    x = points(data.draw, f.dim)
    y = x + points(data.draw, f.dim)
    tangent = f.value(x) + (f.gradient(x) * (y - x)).sum(1) + alpha(f) / 2 * (x - y).square().sum(1)
    assert bool((f.value(y) >= tangent - 1e-10 * (1 + tangent.abs())).all())


@given(st.data())
def test_the_gradient_is_monotone(data: st.DataObject) -> None:
    f = data.draw(potentials())
    x, y = points(data.draw, f.dim), points(data.draw, f.dim)
    rise = ((f.gradient(x) - f.gradient(y)) * (x - y)).sum(1)
    least = alpha(f) * (x - y).square().sum(1)
    assert bool((rise >= least - 1e-10 * (1 + least)).all())


@given(st.data())
def test_the_hessian_is_symmetric_and_at_least_alpha(data: st.DataObject) -> None:
    f = data.draw(potentials())
    hessian = f.hessian(points(data.draw, f.dim))
    scale = 1 + float(hessian.abs().max())
    torch.testing.assert_close(hessian, hessian.mT, rtol=0, atol=1e-12 * scale)
    assert float(torch.linalg.eigvalsh(hessian).min()) >= alpha(f) - 1e-11 * scale


@given(st.data())
def test_the_closed_forms_agree_with_one_another_and_with_differences(data: st.DataObject) -> None:
    f = data.draw(potentials())
    x, v = points(data.draw, f.dim), points(data.draw, f.dim)
    hessian = f.hessian(x)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(f.laplacian(x), hessian.diagonal(dim1=1, dim2=2).sum(1), **close)
    torch.testing.assert_close(f.hvp(x, v), (hessian @ v[..., None])[..., 0], **close)
    if f.alpha is not None:
        torch.testing.assert_close(f.logdet(x), hessian.logdet(), **close)
    step = 1e-5 * v
    slope = (f.value(x + step) - f.value(x - step)) / 2e-5
    torch.testing.assert_close((f.gradient(x) * v).sum(1), slope, rtol=1e-5, atol=1e-4)


@given(st.data())
def test_the_inverse_undoes_the_gradient(data: st.DataObject) -> None:
    f = data.draw(potentials(least_alpha=0.1))
    x = points(data.draw, f.dim)
    found = f.inverse(f.gradient(x))
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x, x, rtol=1e-5, atol=1e-5)


@given(st.data())
def test_fenchel_and_young(data: st.DataObject) -> None:
    """f(x) + f*(y) >= <x, y>, with equality where y is the gradient at x; the conjugate's bounds hold it."""
    f = data.draw(potentials(least_alpha=0.1))
    x, y = points(data.draw, f.dim), points(data.draw, f.dim)
    dual = f.conjugate(y)
    assert dual.value is not None and dual.upper is not None
    assert bool((dual.upper >= dual.value).all())
    product = (x * y).sum(1)
    assert bool((f.value(x) + dual.upper >= product - 1e-9 * (1 + product.abs())).all())
    y = f.gradient(x)
    touching = f.conjugate(y)
    product = (x * y).sum(1)
    torch.testing.assert_close((f.value(x) + touching.value), product, rtol=1e-6, atol=1e-6)


@given(WIDTHS, st.integers(1, 4), st.booleans(), st.integers(0, 2), SEEDS, SMOOTH)
def test_config_and_state_hold_a_network_whole(
    widths: list[int], dim: int, skip: bool, rank: int, seed: int, name: str
) -> None:
    net = ICNN(dim, widths, skip=skip, quadratic_rank=rank, activation=name, sharpness=1.5, seed=seed)
    again = ICNN(**net.config())
    again.load_state_dict(net.state_dict())
    x = torch.randn(5, dim)
    assert torch.equal(again(x), net(x)) and again.config() == net.config()
