"""The convolutional input-convex neural network, for images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from convexlift.architectures import initial
from convexlift.architectures.base import Architecture
from convexlift.architectures.potential import Calculus, Potential
from convexlift.calculus import activations, convolution
from convexlift.calculus.convolution import ConvLayers
from convexlift.checks import plain
from convexlift.seeds import generator_on

# Rows of the standard normal sample on which "principled" calibrates a new network.
_CALIBRATION_ROWS = 256
_POOLINGS = ("mean", "none")


@final
class ConvICNN(Architecture[Potential]):
    """A convolutional input-convex network on images, with its derivatives in closed form.

    u_1 = A_1 * x + b_1,  u_{l+1} = W_l * s(u_l) + A_{l+1} * x + b_{l+1},

    f(x) = w . pool(s(u_L)) + a . x + (alpha/2) |x|^2,

    where * is a convolution, padded by zeros, and b_l has one entry a channel. It is convex in x because s is
    convex and non-decreasing and every W_l and w is non-negative (``nonnegative``): a convolution is a linear
    map whose entries are those of its kernel and zeros, and pooling takes means. How the weights are kept
    non-negative is the weight source's affair, as with an ``ICNN``.

    Points are flat rows, (N, d) with d = channels * height * width, as everywhere in the library; they are
    read as images (N, channels, height, width) inside.

    A layer of stride t divides height and width by t, rounding up. The kernels A_l then move by the strides
    up to there, and a kernel grows to 2 t - 1 where that is larger, so that no pixel goes unseen. Kernels are
    stored as matrices, one row an output channel: fan-in is the number of columns, as in an ``ICNN``.

    Value, gradient and Hessian-vector product cost a few convolutions. Hessian, Laplacian and the exact
    log-determinant cost d times as much: for d up to a few hundred. Above, a potential's log-determinant is
    estimated from products; see ``Potential.gradient_and_logdet``.

    Args:
        shape: channels, height and width of a point.
        channels: of the hidden layers, at least one.
        kernel: side of the kernels, odd.
        strides: of the hidden layers, or one number for all.
        pooling: "mean" over positions, w with one entry a channel; or "none", w with one entry a unit.
        activation: "softplus", "squareplus" (cheaper, with heavier tails), "smooth_squared_relu", "relu"
            (value and gradient only), or an ``Activation``.
        sharpness: sharpness of a named smooth activation (1 when omitted).
        strong_convexity: alpha > 0, or 0 for none (then there is no log-determinant, inverse or conjugate).
        learn_strong_convexity: learn alpha (kept positive), or hold it. A zero alpha is always held.
        skip: whether later layers and the output read x too (A_2 ..., a).
        init: initial weights by fan-in: "principled", "fan_in", "folded_normal" or "identity"; see
            ``initial_tensors``.
        seed: seed of the initial weights; torch's global generator when omitted.

    Shapes: x (N, d) -> f(x) (N,).

    Raises:
        ValueError: a size is not positive, a kernel is even, the strides are not one for each layer, alpha is
            negative, an option is unknown, or "identity" without a learned alpha of 1.

    Source: Amos, Xu and Kolter, "Input convex neural networks", ICML 2017; Huang, Chen, Tsirigotis and
        Courville, "Convex potential flows", ICLR 2021, for convolutions.

    Example:
        >>> net = ConvICNN((1, 8, 8), channels=(4, 8), strides=(1, 2), seed=0)
        >>> net.dim, net(torch.zeros(3, 64)).shape
        (64, torch.Size([3]))
        >>> net.nonnegative
        ('inner.0', 'outer')
        >>> f, x = net.emit(), torch.zeros(3, 64)
        >>> f.gradient(x).shape, f.hvp(x, torch.ones(3, 64)).shape, f.logdet(x).shape
        (torch.Size([3, 64]), torch.Size([3, 64]), torch.Size([3]))
        >>> net(torch.zeros(3, 1, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: expected (N, 64) samples; got (3, 1, 8, 8)
    """

    calculus = Calculus.of(convolution)
    arguments = ("shape", "channels", "kernel", "strides", "pooling", "skip")

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (16, 16, 16),
        *,
        kernel: int = 3,
        strides: int | Sequence[int] = 1,
        pooling: str = "mean",
        activation: str | activations.Activation = "softplus",
        sharpness: float | None = None,
        strong_convexity: float = 0.1,
        learn_strong_convexity: bool = True,
        skip: bool = True,
        init: str = "principled",
        seed: int | None = None,
    ) -> None:
        sizes = _shape(shape)
        super().__init__(
            math.prod(sizes),
            activation=activation,
            sharpness=sharpness,
            strong_convexity=strong_convexity,
            learn_strong_convexity=learn_strong_convexity,
        )
        self.shape = sizes
        self.channels = initial.positive_sizes("channels", channels)
        self.strides = _strides(strides, len(self.channels))
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive; got {kernel}")
        if pooling not in _POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(_POOLINGS)}")
        initial.check_identity(init, self)
        self.kernel, self.pooling, self.skip = int(kernel), pooling, bool(skip)

        generator = generator_on(seed=seed)
        self.inner, self.outer, self.skips, self.biases, self.linear = initial.parameters(
            self._initial(init, generator)
        )
        self.own_strong_convexity()
        if init == "principled":
            sample = initial.normal(_CALIBRATION_ROWS, self.dim, generator)
            self.calibrate(sample.to(self.outer))

    @property
    def nonnegative(self) -> tuple[str, ...]:
        """Names of the parameters that must be >= 0: W_1 ... W_{L-1} and w."""
        return (*(f"inner.{level}" for level in range(len(self.channels) - 1)), "outer")

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> ConvICNN:
        """Rescale every channel's weights by a positive factor and set its bias, for mean 0 and variance 1.

        Both are over rows and positions. The last layer is rescaled so that w . pool(s(u_L)) has variance 1.

        Args:
            x: (N, d), N >= 2.

        Raises:
            ValueError: fewer than two rows, a wrong width, or a non-finite entry.
        """
        initial.check_calibration(x, self.dim)
        s = self.activation
        for level, bias in enumerate(self.biases):
            bias.zero_()
            u = convolution.preactivations(x, self.layers(self.emit().tensors, level + 1), s)[-1]
            deviation = u.std((0, 2, 3)).clamp_min(torch.finfo(u.dtype).tiny)
            bias.copy_(-u.mean((0, 2, 3)) / deviation)
            for weights in (self.inner[level - 1 : level] if level else (), self.skips[level : level + 1]):
                for weight in weights:
                    weight.div_(deviation[:, None])
        layers = self.layers(self.emit().tensors)
        top = (s.value(convolution.preactivations(x, layers, s)[-1]) * layers.outer).sum((1, 2, 3))
        self.outer.div_(top.std().clamp_min(torch.finfo(top.dtype).tiny))
        return self

    def layers(self, tensors: Mapping[str, Tensor], depth: int | None = None) -> ConvLayers:
        """The named tensors as the sweeps read them, kernels as (out, in, side, side); the first ``depth``
        layers when given."""
        depth = len(self.channels) if depth is None else depth
        outer, (height, width) = tensors["outer"], self.sizes[-1]
        if self.pooling == "mean":
            outer = (outer / (height * width))[:, None, None]
        else:
            outer = outer.view(self.channels[-1], height, width)
        skips = (tensors.get(f"skips.{level}") for level in range(depth))
        return ConvLayers(
            shape=self.shape,
            strides=self.strides[:depth],
            inner=tuple(
                _kernel(tensors[f"inner.{level}"], self.channels[level]) for level in range(depth - 1)
            ),
            outer=outer,
            skips=tuple(None if skip is None else _kernel(skip, self.shape[0]) for skip in skips),
            biases=tuple(tensors[f"biases.{level}"] for level in range(depth)),
            linear=tensors.get("linear"),
            alpha=self.alpha(tensors),
        )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every hidden layer."""
        return convolution.sizes(self.shape, self.strides)

    def _initial(self, init: str, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The tensors by name in float64: a convolution starts as a dense layer on its patches."""
        out: dict[str, Tensor] = {}
        for level, width in enumerate(self.channels):
            stride = self.strides[level]
            seen = self.shape[0] * self._side(math.prod(self.strides[: level + 1])) ** 2
            if level:
                fan_in = self.channels[level - 1] * self._side(stride) ** 2
                drawn = initial.initial_tensors(init, seen, (fan_in, width), self.skip, generator)
                out[f"inner.{level - 1}"] = drawn["inner.0"]
            else:
                drawn = initial.initial_tensors(init, seen, (width,), self.skip, generator)
            place = min(level, 1)
            out[f"biases.{level}"] = drawn[f"biases.{place}"]
            if self.skip or not level:
                out[f"skips.{level}"] = drawn[f"skips.{place}"]
        units = self.channels[-1] * (1 if self.pooling == "mean" else math.prod(self.sizes[-1]))
        out["outer"] = initial.initial_tensors(init, 1, (units,), False, generator)["outer"]
        if self.skip:
            out["linear"] = initial.initial_tensors(init, self.dim, (1,), True, generator)["linear"]
        return out

    def _side(self, stride: int) -> int:
        """The side of a kernel that moves by this stride."""
        return max(self.kernel, 2 * stride - 1)


def _kernel(weight: Tensor, channels: int) -> Tensor:
    """The matrix (out, channels * side * side) as a kernel (out, channels, side, side)."""
    side = math.isqrt(weight.shape[1] // channels)
    return weight.unflatten(1, (channels, side, side))


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = initial.positive_sizes("shape", shape)
    if len(sizes) != 3:
        raise ValueError(f"shape must be (channels, height, width); got {sizes}")
    return sizes


def _strides(strides: int | Sequence[int], depth: int) -> tuple[int, ...]:
    one: Any = plain(strides)
    given = initial.positive_sizes("strides", (one,) * depth if isinstance(one, int) else one)
    if len(given) != depth:
        raise ValueError(f"expected {depth} strides, one for each hidden layer; got {len(given)}")
    return given
