"""Value and derivatives of an input-convex network in closed form: explicit sweeps, no double backward.

The network is u_1 = A_1 x + b_1, u_{l+1} = W_l s(u_l) + A_{l+1} x + b_{l+1},

    f(x) = w . s(u_L) + a . x + (alpha/2) |x|^2 + (1/2) |Q x|^2,

with W_l, w >= 0. One reverse sweep gives g_l = df/dz_l (z_l = s(u_l)) and r_l = s'(u_l) g_l = df/du_l;
one forward sweep gives the Jacobians J_l = du_l/dx, stored transposed as T_l = J_l^T of shape (N, d, h_l),
so that each layer is one flat matrix product. Everything is an ordinary tensor expression: one backward
trains it, and it composes with ``torch.func`` and ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convexlift.calculus.activations import Activation


class Layers(NamedTuple):
    """The tensors of a network, in order; ``None`` where a term is absent.

    Shapes: inner W_l (h_{l+1}, h_l); outer w (h_L,); skips A_l (h_l, d), of which A_1 is always there;
    biases b_l (h_l,); linear a (d,); alpha scalar; root Q (r, d).
    """

    inner: tuple[Tensor, ...]
    outer: Tensor
    skips: tuple[Tensor | None, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor | None = None
    alpha: Tensor | None = None
    root: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """A_1, the layer every input goes through."""
        first = self.skips[0]
        if first is None:
            raise ValueError("the first layer reads the input and cannot be absent")
        return first


def preactivations(x: Tensor, layers: Layers, s: Activation) -> list[Tensor]:
    """u_1 ... u_L, each (N, h_l)."""
    us = [torch.addmm(layers.biases[0], x, layers.first.T)]
    for weight, skip, bias in zip(layers.inner, layers.skips[1:], layers.biases[1:], strict=True):
        u = torch.addmm(bias, s.value(us[-1]), weight.T)
        us.append(u if skip is None else torch.addmm(u, x, skip.T))
    return us


def value(x: Tensor, layers: Layers, s: Activation) -> Tensor:
    """f(x), shape (N,)."""
    out = s.value(preactivations(x, layers, s)[-1]) @ layers.outer
    if layers.linear is not None:
        out = out + x @ layers.linear
    if layers.alpha is not None:
        out = out + layers.alpha / 2 * x.square().sum(1)
    if layers.root is not None:
        out = out + (x @ layers.root.T).square().sum(1) / 2
    return out


def gradient(x: Tensor, layers: Layers, s: Activation) -> Tensor:
    """The gradient a + alpha x + Q'Q x + sum_l A_l' r_l, shape (N, d)."""
    slopes = [s.slope(u) for u in preactivations(x, layers, s)]
    return assemble_gradient(x, layers, slopes, reverse_sweep(layers, slopes))


def hvp(x: Tensor, v: Tensor, layers: Layers, s: Activation) -> Tensor:
    """The Hessian at x times v by one tangent and one reverse sweep, shape (N, d)."""
    us = preactivations(x, layers, s)
    slopes = [s.slope(u) for u in us]
    bends = [outer * s.bend(u) for outer, u in zip(reverse_sweep(layers, slopes), us, strict=True)]
    return products(v, layers, slopes, bends)


def products(v: Tensor, layers: Layers, slopes: Sequence[Tensor], bends: Sequence[Tensor]) -> Tensor:
    """The Hessians with these slopes and bends (N, h_l) times v (..., N, d)."""
    tangents = [v @ layers.first.T]
    for weight, skip, slope in zip(layers.inner, layers.skips[1:], slopes[:-1], strict=True):
        tangent = (slope * tangents[-1]) @ weight.T
        tangents.append(tangent if skip is None else tangent + v @ skip.T)
    out = _quadratic(v, layers)
    change: Tensor | None = None  # of df/dz_l along v
    for level in reversed(range(len(bends))):
        reverse = bends[level] * tangents[level]
        if change is not None:
            reverse = torch.addcmul(reverse, slopes[level], change)
        skip = layers.skips[level]
        if skip is not None:
            out = out + reverse @ skip
        if level:
            change = reverse @ layers.inner[level - 1]
    return out


def hessian(x: Tensor, layers: Layers, s: Activation) -> Tensor:
    """alpha I + Q'Q + sum_l J_l' diag(g_l s''(u_l)) J_l, every term positive semi-definite; (N, d, d)."""
    _, slopes, bends = linearise(x, layers, s)
    first = layers.first
    out = (bends[0] @ outer_products(first)).unflatten(1, (x.shape[1], x.shape[1])) + base(x, layers)
    for jacobian, bend in zip(jacobians(slopes, layers.inner, layers.skips)[0], bends[1:], strict=True):
        out = out + (jacobian * bend.unsqueeze(1)) @ jacobian.mT
    return out


def laplacian(x: Tensor, layers: Layers, s: Activation) -> Tensor:
    """alpha d + |Q|^2 + sum_l sum_k (g_l)_k s''(u_l)_k |J_l,k|^2, shape (N,)."""
    _, slopes, bends = linearise(x, layers, s)
    out = bends[0] @ layers.first.square().sum(1) + base(x, layers).trace()
    for jacobian, bend in zip(jacobians(slopes, layers.inner, layers.skips)[0], bends[1:], strict=True):
        out = out + (jacobian.square().sum(1) * bend).sum(1)
    return out


def linearise(x: Tensor, layers: Layers, s: Activation) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient (N, d), and what the Hessian at x is made of: slopes s'(u_l), bends g_l s''(u_l)."""
    jets = [s.jet(torch.addmm(layers.biases[0], x, layers.first.T))]
    for weight, skip, bias in zip(layers.inner, layers.skips[1:], layers.biases[1:], strict=True):
        u = torch.addmm(bias, jets[-1][0], weight.T)
        jets.append(s.jet(u if skip is None else torch.addmm(u, x, skip.T)))
    gradient = _quadratic(x, layers)
    if layers.linear is not None:
        gradient = gradient + layers.linear
    outer, bends = layers.outer.expand_as(jets[-1][1]), []
    for level in reversed(range(len(jets))):
        _, slope, curvature = jets[level]
        bends.append(outer * curvature)
        reverse, skip = slope * outer, layers.skips[level]
        gradient = gradient if skip is None else torch.addmm(gradient, reverse, skip)
        if level:
            outer = reverse @ layers.inner[level - 1]
    return gradient, [slope for _, slope, _ in jets], bends[::-1]


def base(x: Tensor, layers: Layers) -> Tensor:
    """The part of the Hessian that does not depend on x, alpha I + Q'Q; (d, d)."""
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    out = torch.zeros_like(eye) if layers.alpha is None else layers.alpha * eye
    return out if layers.root is None else out + layers.root.T @ layers.root


def jacobians(
    slopes: Sequence[Tensor], inner: Sequence[Tensor], skips: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Transposed Jacobians T_2 ... T_L, and T_l diag(s'(u_l)) for l < L; each (N, d, h_l).

    T_1 = A_1' is the same for every sample and is not expanded.
    """
    through, scaled = [], []
    jacobian = skips[0].T.unsqueeze(0)  # type: ignore[union-attr]
    for slope, weight, skip in zip(slopes, inner, skips[1:], strict=False):
        scaled.append(jacobian * slope.unsqueeze(1))
        jacobian = scaled[-1] @ weight.T
        if skip is not None:
            jacobian = jacobian + skip.T
        through.append(jacobian)
    return through, scaled


def outer_products(first: Tensor) -> Tensor:
    """The outer products of A_1's rows, flattened: (h_1, d * d)."""
    return (first.unsqueeze(2) * first.unsqueeze(1)).flatten(1)


def reverse_sweep(layers: Layers, slopes: Sequence[Tensor]) -> list[Tensor]:
    """g_1 ... g_L with g_L = w and g_l = W_l' (s'(u_{l+1}) g_{l+1})."""
    outers = [layers.outer.expand_as(slopes[-1])]
    for weight, slope in zip(reversed(layers.inner), reversed(slopes), strict=False):
        outers.append((slope * outers[-1]) @ weight)
    return outers[::-1]


def assemble_gradient(
    x: Tensor, layers: Layers, slopes: Sequence[Tensor], outers: Sequence[Tensor]
) -> Tensor:
    """The gradient from the two sweeps."""
    out = _quadratic(x, layers)
    if layers.linear is not None:
        out = out + layers.linear
    for skip, slope, outer in zip(layers.skips, slopes, outers, strict=True):
        if skip is not None:
            out = out + (slope * outer) @ skip
    return out


def _quadratic(v: Tensor, layers: Layers) -> Tensor:
    """(alpha I + Q'Q) v."""
    out = torch.zeros_like(v) if layers.alpha is None else layers.alpha * v
    return out if layers.root is None else out + (v @ layers.root.T) @ layers.root
