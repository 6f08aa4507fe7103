"""Value and derivatives of a convolutional input-convex network in closed form; see ``derivatives``.

The network is u_1 = A_1 * x + b_1, u_{l+1} = W_l * s(u_l) + A_{l+1} * x + b_{l+1}, where * is a convolution,

    f(x) = <w, s(u_L)> + a . x + (alpha/2) |x|^2,

with W_l, w >= 0. The sweeps are those of the fully connected network with convolutions for products, and
transposed ones on the way back. Padding by zeros keeps convexity: a padded convolution is a linear map with
entries of the kernel and zeros. Points are flat, (N, d) with d = channels * height * width.

The Jacobians T_l = (du_l/dx)^T, (N, d, units), are tangents along the d unit vectors, so Hessian and
Laplacian cost d tangent sweeps: for small d. They are made for some rows at a time, again in the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from convexlift.calculus.activations import Activation
from convexlift.calculus.cholesky import check_strongly_convex, factored_logdet, layers_in_float64
from convexlift.calculus.derivatives import outer_products
from convexlift.checks import may_branch

# Entries of all Jacobians of the rows worked on at a time.
_CHUNK_ENTRIES = 2**24


class ConvLayers(NamedTuple):
    """The tensors of a convolutional network, in order; ``None`` where a term is absent.

    Shapes: inner W_l (c_{l+1}, c_l, k, k); outer w, spread over the units of the last layer, (c_L, h_L, w_L)
    or (c_L, 1, 1); skips A_l (c_l, channels, k', k'), of which A_1 is always there; biases b_l (c_l,); linear
    a (d,); alpha scalar. All kernels have odd sides.

    Attributes:
        shape: channels, height and width of a point.
        strides: of the layers, each relative to the one before it.
    """

    shape: tuple[int, int, int]
    strides: tuple[int, ...]
    inner: tuple[Tensor, ...]
    outer: Tensor
    skips: tuple[Tensor | None, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor | None = None
    alpha: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """A_1, the layer every input goes through."""
        first = self.skips[0]
        if first is None:
            raise ValueError("the first layer reads the input and cannot be absent")
        return first

    def reduction(self, level: int) -> int:
        """The stride of a layer relative to the input."""
        return math.prod(self.strides[: level + 1])


@final
@dataclass(frozen=True, eq=False)
class ConvHessianOperator:
    """Hessians of a convolutional network at fixed points, with all that does not depend on v computed once.

    Attributes:
        layers: the tensors of the network.
        slopes: s'(u_l), each (N, c_l, h_l, w_l).
        bends: (df/dz_l) s''(u_l), each (N, c_l, h_l, w_l).

    Shapes: v (..., N, d) -> Hv (..., N, d).

    Example:
        >>> import convexlift as cl
        >>> net, x = cl.ConvICNN((1, 3, 3), channels=(2, 2), seed=0), torch.ones(5, 9)
        >>> _, operator = net.emit().linearise(x)
        >>> torch.allclose(operator(x), net.emit().hvp(x, x), atol=1e-6)
        True
        >>> operator(torch.ones(4, 5, 9)).shape
        torch.Size([4, 5, 9])
    """

    layers: ConvLayers
    slopes: Sequence[Tensor]
    bends: Sequence[Tensor]

    def __call__(self, v: Tensor) -> Tensor:
        layers, lead = self.layers, v.shape[:-1]

        def times(factor: Tensor, t: Tensor) -> Tensor:
            return (factor * t.unflatten(0, lead)).flatten(0, len(lead) - 1)

        image = v.flatten(0, -2).unflatten(1, layers.shape)
        tangents = [convolve(image, layers.first, layers.strides[0])]
        for level, weight in enumerate(layers.inner, 1):
            tangent = convolve(times(self.slopes[level - 1], tangents[-1]), weight, layers.strides[level])
            skip = layers.skips[level]
            tangents.append(
                tangent if skip is None else tangent + convolve(image, skip, layers.reduction(level))
            )
        reverse = [times(self.bends[-1], tangents[-1])]
        for level in reversed(range(len(layers.inner))):
            slope, bend = self.slopes[level], self.bends[level]
            change = _transposed(reverse[-1], layers.inner[level], layers.strides[level + 1], slope.shape)
            reverse.append(times(bend, tangents[level]) + times(slope, change))
        out = _to_input(reverse[::-1], layers).unflatten(0, lead)
        return out if layers.alpha is None else out + layers.alpha * v

    def rows(self, rows: slice) -> ConvHessianOperator:
        """The same at some of the points."""
        return ConvHessianOperator(
            self.layers, [slope[rows] for slope in self.slopes], [bend[rows] for bend in self.bends]
        )


def sizes(shape: tuple[int, int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of every layer: each stride divides them, rounding up.

    >>> sizes((1, 7, 8), (1, 2, 2))
    [(7, 8), (4, 4), (2, 2)]
    """
    height, width = shape[1:]
    out = []
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
        out.append((height, width))
    return out


def preactivations(x: Tensor, layers: ConvLayers, s: Activation) -> list[Tensor]:
    """u_1 ... u_L, each (N, c_l, h_l, w_l)."""
    image = x.unflatten(1, layers.shape)
    us = [convolve(image, layers.first, layers.strides[0], layers.biases[0])]
    for level, weight in enumerate(layers.inner, 1):
        u = convolve(s.value(us[-1]), weight, layers.strides[level], layers.biases[level])
        skip = layers.skips[level]
        us.append(u if skip is None else u + convolve(image, skip, layers.reduction(level)))
    return us


def value(x: Tensor, layers: ConvLayers, s: Activation) -> Tensor:
    """f(x), shape (N,)."""
    out = (s.value(preactivations(x, layers, s)[-1]) * layers.outer).sum((1, 2, 3))
    if layers.linear is not None:
        out = out + x @ layers.linear
    return out if layers.alpha is None else out + layers.alpha / 2 * x.square().sum(1)


def gradient(x: Tensor, layers: ConvLayers, s: Activation) -> Tensor:
    """The gradient, by one forward and one reverse sweep; shape (N, d)."""
    slopes = [s.slope(u) for u in preactivations(x, layers, s)]
    return _assemble_gradient(x, layers, slopes, _reverse_sweep(layers, slopes))


def hvp(x: Tensor, v: Tensor, layers: ConvLayers, s: Activation) -> Tensor:
    """The Hessian at x times v by one tangent and one reverse sweep, shape (N, d)."""
    return linearise(x, layers, s)[1](v)


def linearise(x: Tensor, layers: ConvLayers, s: Activation) -> tuple[Tensor, ConvHessianOperator]:
    """The gradient at x (N, d), and the Hessians there as a linear map, sharing the sweeps."""
    slopes, outers, bends = _sweeps(preactivations(x, layers, s), layers, s)
    return _assemble_gradient(x, layers, slopes, outers), ConvHessianOperator(layers, slopes, bends)


def hessian(x: Tensor, layers: ConvLayers, s: Activation) -> Tensor:
    """alpha I + sum_l T_l diag(c_l) T_l', every term positive semi-definite; (N, d, d)."""
    return _by_rows(lambda rows: _hessian(preactivations(rows, layers, s), layers, s), x, layers)


def laplacian(x: Tensor, layers: ConvLayers, s: Activation) -> Tensor:
    """alpha d + sum_l c_l . sum_i (T_l)_i^2 over the unit vectors i, no Hessian formed; (N,)."""
    return _by_rows(lambda rows: _laplacian(preactivations(rows, layers, s), layers, s), x, layers)


def gradient_and_logdet(x: Tensor, layers: ConvLayers, s: Activation) -> tuple[Tensor, Tensor]:
    """The gradient (N, d) and log det of the Hessian (N,), exact.

    Raises:
        ValueError: alpha is zero: the Hessian may be singular.
        FloatingPointError: a Hessian is not positive definite even in float64 (rows are named).
    """
    check_strongly_convex(layers.alpha)
    matrix = hessian(x, layers, s)
    return gradient(x, layers, s), factored_logdet(
        matrix, lambda rows: hessian(x[rows].double(), layers_in_float64(layers), s)
    )


def convolve(z: Tensor, kernel: Tensor, stride: int, bias: Tensor | None = None) -> Tensor:
    """The convolution of images (N, c, h, w), padded by zeros so that a stride of one keeps their size."""
    return F.conv2d(z, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)


def _transposed(r: Tensor, kernel: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """The transpose of that convolution, onto images (..., height, width) of that shape."""
    extra = [(size - 1) % stride for size in shape[-2:]]  # rows and columns that the stride leaves over
    padding = kernel.shape[-1] // 2
    return F.conv_transpose2d(r, kernel, stride=stride, padding=padding, output_padding=extra)


def _reverse_sweep(layers: ConvLayers, slopes: Sequence[Tensor]) -> list[Tensor]:
    """g_1 ... g_L, the derivatives of f in s(u_l), where g_L = w."""
    outers = [layers.outer.expand_as(slopes[-1])]
    for level in reversed(range(len(layers.inner))):
        weight, stride, shape = layers.inner[level], layers.strides[level + 1], slopes[level].shape
        outers.append(_transposed(slopes[level + 1] * outers[-1], weight, stride, shape))
    return outers[::-1]


def _to_input(reverse: Sequence[Tensor], layers: ConvLayers) -> Tensor:
    """sum_l A_l' r_l, (N, d)."""
    parts = [
        _transposed(r, skip, layers.reduction(level), layers.shape)
        for level, (r, skip) in enumerate(zip(reverse, layers.skips, strict=True))
        if skip is not None
    ]
    return torch.stack(parts).sum(0).flatten(1)


def _assemble_gradient(
    x: Tensor, layers: ConvLayers, slopes: Sequence[Tensor], outers: Sequence[Tensor]
) -> Tensor:
    out = _to_input([slope * outer for slope, outer in zip(slopes, outers, strict=True)], layers)
    if layers.linear is not None:
        out = out + layers.linear
    return out if layers.alpha is None else out + layers.alpha * x


def _sweeps(
    us: Sequence[Tensor], layers: ConvLayers, s: Activation
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """s'(u_l), g_l and c_l = g_l s''(u_l), layer by layer."""
    slopes = [s.slope(u) for u in us]
    outers = _reverse_sweep(layers, slopes)
    return slopes, outers, [outer * s.bend(u) for outer, u in zip(outers, us, strict=True)]


def _jacobians(slopes: Sequence[Tensor], layers: ConvLayers) -> list[Tensor]:
    """T_1 (1, d, units), the same for every row, and T_2 ... T_L (N, d, units), along the unit vectors."""
    dim = math.prod(layers.shape)
    unit = torch.eye(dim, dtype=slopes[0].dtype, device=slopes[0].device).unflatten(1, layers.shape)
    jacobians = [convolve(unit, layers.first, layers.strides[0]).unsqueeze(0)]
    for level, weight in enumerate(layers.inner, 1):
        scaled = jacobians[-1] * slopes[level - 1].unsqueeze(1)
        moved = convolve(scaled.flatten(0, 1), weight, layers.strides[level])
        jacobian = moved.unflatten(0, scaled.shape[:2])
        skip = layers.skips[level]
        jacobians.append(
            jacobian if skip is None else jacobian + convolve(unit, skip, layers.reduction(level))
        )
    return [jacobian.flatten(2) for jacobian in jacobians]


def _hessian(us: Sequence[Tensor], layers: ConvLayers, s: Activation) -> Tensor:
    slopes, _, bends = _sweeps(us, layers, s)
    dim = math.prod(layers.shape)
    eye = torch.eye(dim, dtype=us[0].dtype, device=us[0].device)
    out = _first_term(bends[0], layers)
    if layers.alpha is not None:
        out = out + layers.alpha * eye
    for jacobian, bend in zip(_jacobians(slopes, layers)[1:], bends[1:], strict=True):
        out = out + (jacobian * bend.flatten(1).unsqueeze(1)) @ jacobian.mT
    return out


def _first_term(bend: Tensor, layers: ConvLayers) -> Tensor:
    """T_1 diag(c_1) T_1', (N, d, d): a unit of the first layer couples only the pixels of its patch."""
    dim, side = math.prod(layers.shape), layers.first.shape[-1]
    pixels = torch.arange(1.0, dim + 1, dtype=torch.float64, device=bend.device).view(1, *layers.shape)
    patches = F.unfold(pixels, side, padding=side // 2, stride=layers.strides[0])[0].T.long()
    first, second = patches[:, :, None], patches[:, None, :]  # zero is the padding
    place = torch.where((first > 0) & (second > 0), (first - 1) * dim + second - 1, dim * dim)
    terms = bend.flatten(2).mT @ outer_products(layers.first.flatten(1))
    out = terms.new_zeros(len(bend), dim * dim + 1).index_add(1, place.flatten(), terms.flatten(1))
    return out[:, :-1].unflatten(1, (dim, dim))


def _laplacian(us: Sequence[Tensor], layers: ConvLayers, s: Activation) -> Tensor:
    slopes, _, bends = _sweeps(us, layers, s)
    out = torch.zeros_like(us[0][:, 0, 0, 0])
    if layers.alpha is not None:
        out = out + layers.alpha * math.prod(layers.shape)
    for jacobian, bend in zip(_jacobians(slopes, layers), bends, strict=True):
        out = out + (jacobian.square().sum(1) * bend.flatten(1)).sum(1)
    return out


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor, layers: ConvLayers) -> Tensor:
    """function(x), for so many rows at a time that their Jacobians stay small; all at once where values
    cannot be looked at. A backward makes each chunk's Jacobians again."""
    pixels = sum(
        len(bias) * height * width
        for bias, (height, width) in zip(layers.biases, sizes(layers.shape, layers.strides), strict=True)
    )
    count = max(1, _CHUNK_ENTRIES // (pixels * math.prod(layers.shape)))
    skips = [skip for skip in layers.skips if skip is not None]
    if len(x) <= count or not may_branch(x, layers.outer, *layers.inner, *layers.biases, *skips):
        return function(x)
    return torch.cat([checkpoint(function, rows, use_reentrant=False) for rows in x.split(count)])
