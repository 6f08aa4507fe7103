"""Value and derivatives in x of a partially input-convex network, at contexts that are held fixed.

With positive gates p_l, free scales q_l, offsets b_l and tilt a, all functions of the context,

    u_1 = A_1 (q_1 x) + b_1,   u_{l+1} = W_l (p_l s(u_l)) + A_{l+1} (q_{l+1} x) + b_{l+1},

    f(x) = w . (p_L s(u_L)) + a . x + (alpha/2) |x|^2 + (1/2) |Q x|^2 + o

(products of vectors entry by entry). A gate only scales the activation of its unit, so p s' and p s'' take
the places of s' and s'' and the sweeps of ``convexlift.calculus.derivatives`` stay as they are; a scale
multiplies A_l from the right. What depends on the context has a row for each point, or one for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.cholesky import check_strongly_convex, factored_logdet, layers_in_float64
from convexlift.calculus.derivatives import Layers


class PartialLayers(NamedTuple):
    """The tensors of a network in x alone, with what the context gives; R is one or the number of points.

    Shapes: ``layers`` as in ``Layers``, but with biases (R, h_l) and linear (R, d); gates p_l (R, h_l);
    scales q_l (R, d), ``None`` where the layer does not read x; offset o (R,).
    """

    layers: Layers
    gates: tuple[Tensor, ...]
    scales: tuple[Tensor | None, ...]
    offset: Tensor


def per_context(partial: PartialLayers, change: Callable[[Tensor], Tensor]) -> PartialLayers:
    """The layers with a change made to every tensor that has a row for each context."""
    layers = partial.layers
    return PartialLayers(
        layers._replace(
            biases=tuple(change(bias) for bias in layers.biases),
            linear=None if layers.linear is None else change(layers.linear),
        ),
        tuple(change(gate) for gate in partial.gates),
        tuple(None if scale is None else change(scale) for scale in partial.scales),
        change(partial.offset),
    )


def pick(partial: PartialLayers, rows: Tensor) -> PartialLayers:
    """The layers for some of the points, by index (M,); the same layers where one context serves all."""
    return partial if len(partial.offset) == 1 else per_context(partial, lambda t: t[rows])


def value(x: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """f(x), shape (N,)."""
    layers = partial.layers
    out = (partial.gates[-1] * s.value(_preactivations(x, partial, s)[-1])) @ layers.outer + partial.offset
    if layers.linear is not None:
        out = out + (x * layers.linear).sum(-1)
    if layers.alpha is not None:
        out = out + layers.alpha / 2 * x.square().sum(-1)
    if layers.root is not None:
        out = out + (x @ layers.root.T).square().sum(-1) / 2
    return out


def grid(x: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """f at M points (R, M, d) for each of R contexts, shape (R, M)."""
    return value(x, per_context(partial, lambda t: t.unsqueeze(1)), s)


def gradient(x: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """The gradient a + alpha x + Q'Q x + sum_l q_l (A_l' r_l), shape (N, d)."""
    slopes = _slopes(_preactivations(x, partial, s), partial, s)
    return _assemble_gradient(x, partial, slopes, derivatives.reverse_sweep(partial.layers, slopes))


def hvp(x: Tensor, v: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """The Hessian at x times v by one tangent and one reverse sweep, shape (N, d)."""
    layers, gates, scales, _ = partial
    us = _preactivations(x, partial, s)
    slopes = _slopes(us, partial, s)
    outers = derivatives.reverse_sweep(layers, slopes)
    tangents = [_read(v, layers.first, scales[0])]
    for weight, skip, scale, slope in zip(
        layers.inner, layers.skips[1:], scales[1:], slopes[:-1], strict=True
    ):
        tangent = (slope * tangents[-1]) @ weight.T
        tangents.append(tangent if skip is None else tangent + _read(v, skip, scale))
    out = v @ derivatives.base(x, layers)
    change = None  # of g_l along v
    for level in reversed(range(len(us))):
        bend = gates[level] * s.bend(us[level]) * tangents[level] * outers[level]
        reverse = bend if change is None else bend + slopes[level] * change
        skip, scale = layers.skips[level], scales[level]
        if skip is not None and scale is not None:
            out = out + scale * (reverse @ skip)
        if level:
            change = reverse @ layers.inner[level - 1]
    return out


def hessian(x: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """alpha I + Q'Q + sum_l J_l' diag(g_l p_l s''(u_l)) J_l, every term positive semi-definite; (N, d, d)."""
    slopes, _, bends = _sweeps(x, partial, s)
    return _hessian(x, partial, slopes, bends)


def laplacian(x: Tensor, partial: PartialLayers, s: Activation) -> Tensor:
    """The trace of the Hessian, shape (N,)."""
    layers, (slopes, _, bends) = partial.layers, _sweeps(x, partial, s)
    out = ((bends[0] @ layers.first.square()) * _first_scale(partial).square()).sum(1)
    out = out + derivatives.base(x, layers).trace()
    for jacobian, bend in zip(_jacobians(partial, slopes), bends[1:], strict=True):
        out = out + (jacobian.square().sum(1) * bend).sum(1)
    return out


def gradient_and_logdet(x: Tensor, partial: PartialLayers, s: Activation) -> tuple[Tensor, Tensor]:
    """The gradient (N, d) and log det of the Hessian (N,), sharing the sweeps.

    Rows whose Hessian has no Cholesky factor in float32 are done again in float64.

    Raises:
        ValueError: alpha is zero: the Hessian may be singular.
        FloatingPointError: a Hessian is not positive definite even in float64 (rows are named).
    """
    check_strongly_convex(partial.layers.alpha)
    slopes, outers, bends = _sweeps(x, partial, s)
    matrix = _hessian(x, partial, slopes, bends)
    logdet = factored_logdet(
        matrix, lambda rows: hessian(x[rows].double(), layers_in_float64(pick(partial, rows)), s)
    )
    return _assemble_gradient(x, partial, slopes, outers), logdet


def _preactivations(x: Tensor, partial: PartialLayers, s: Activation) -> list[Tensor]:
    """u_1 ... u_L, each (N, h_l)."""
    layers, gates, scales, _ = partial
    us = [_read(x, layers.first, scales[0]) + layers.biases[0]]
    for level, weight in enumerate(layers.inner):
        u = (gates[level] * s.value(us[-1])) @ weight.T + layers.biases[level + 1]
        skip = layers.skips[level + 1]
        us.append(u if skip is None else u + _read(x, skip, scales[level + 1]))
    return us


def _read(x: Tensor, skip: Tensor, scale: Tensor | None) -> Tensor:
    """A (q x)."""
    return (x if scale is None else scale * x) @ skip.T


def _slopes(us: list[Tensor], partial: PartialLayers, s: Activation) -> list[Tensor]:
    """p_l s'(u_l)."""
    return [gate * s.slope(u) for gate, u in zip(partial.gates, us, strict=True)]


def _sweeps(
    x: Tensor, partial: PartialLayers, s: Activation
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """p_l s'(u_l), g_l and g_l p_l s''(u_l), layer by layer."""
    us = _preactivations(x, partial, s)
    slopes = _slopes(us, partial, s)
    outers = derivatives.reverse_sweep(partial.layers, slopes)
    rows = zip(partial.gates, us, outers, strict=True)
    return slopes, outers, [outer * gate * s.bend(u) for gate, u, outer in rows]


def _first_scale(partial: PartialLayers) -> Tensor:
    scale = partial.scales[0]
    if scale is None:
        raise ValueError("the first layer reads the input: its scale cannot be absent")
    return scale


def _jacobians(partial: PartialLayers, slopes: list[Tensor]) -> list[Tensor]:
    """The transposed Jacobians T_2 ... T_L, each (N, d, h_l); T_1 = diag(q_1) A_1' is not formed alone."""
    layers, out = partial.layers, []
    jacobian = _first_scale(partial).unsqueeze(2) * layers.first.T
    for weight, skip, scale, slope in zip(
        layers.inner, layers.skips[1:], partial.scales[1:], slopes[:-1], strict=True
    ):
        jacobian = (jacobian * slope.unsqueeze(1)) @ weight.T
        if skip is not None and scale is not None:
            jacobian = jacobian + scale.unsqueeze(2) * skip.T
        out.append(jacobian)
    return out


def _hessian(x: Tensor, partial: PartialLayers, slopes: list[Tensor], bends: list[Tensor]) -> Tensor:
    layers, scale = partial.layers, _first_scale(partial)
    dim = x.shape[1]
    out = (bends[0] @ derivatives.outer_products(layers.first)).unflatten(1, (dim, dim))
    out = out * (scale.unsqueeze(2) * scale.unsqueeze(1)) + derivatives.base(x, layers)
    for jacobian, bend in zip(_jacobians(partial, slopes), bends[1:], strict=True):
        out = out + (jacobian * bend.unsqueeze(1)) @ jacobian.mT
    return out


def _assemble_gradient(
    x: Tensor, partial: PartialLayers, slopes: list[Tensor], outers: list[Tensor]
) -> Tensor:
    layers = partial.layers
    out = x @ derivatives.base(x, layers)
    if layers.linear is not None:
        out = out + layers.linear
    for skip, scale, slope, outer in zip(layers.skips, partial.scales, slopes, outers, strict=True):
        if skip is not None and scale is not None:
            out = out + scale * ((slope * outer) @ skip)
    return out
