"""The fully connected input-convex neural network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from convexlift.architectures import initial
from convexlift.architectures.base import Architecture
from convexlift.architectures.potential import Calculus, Potential
from convexlift.calculus import activations, derivatives, estimation, logdet
from convexlift.calculus.derivatives import Layers
from convexlift.seeds import generator_on

# Rows of the standard normal sample on which "principled" calibrates a new network.
_CALIBRATION_ROWS = 4096


@final
class ICNN(Architecture[Potential]):
    """An input-convex neural network with its derivatives in closed form.

    u_1 = A_1 x + b_1,  u_{l+1} = W_l s(u_l) + A_{l+1} x + b_{l+1},

    f(x) = w . s(u_L) + a . x + (alpha/2) |x|^2 + (1/2) |Q x|^2,

    convex in x because s is convex and non-decreasing and every W_l and w is non-negative. The network
    declares which of its tensors must be non-negative (``nonnegative``) and knows nothing of how they are
    kept so: wrap it in a weight source (``Lift``, ``Softplus``, ``Projected``, ``Squared``) to train it.
    Bare, it emits the weights it has.

    Args:
        dim: d, the number of inputs.
        hidden: widths of the hidden layers, at least one.
        activation: "softplus", "squareplus" (cheaper, with heavier tails), "smooth_squared_relu", "relu"
            (value and gradient only), or an ``Activation``.
        sharpness: sharpness of a named smooth activation (1 when omitted).
        strong_convexity: alpha > 0, or 0 for none (then there is no log-determinant, inverse or conjugate).
        learn_strong_convexity: learn alpha (kept positive), or hold it. A zero alpha is always held.
        skip: whether later layers and the output read x too (A_2 ..., a).
        init: initial weights: "principled", "fan_in", "folded_normal" or "identity"; see ``initial_tensors``.
        quadratic_rank: rows of the learned Q; 0 for none.
        seed: seed of the initial weights; torch's global generator when omitted.

    Shapes: x (N, d) -> f(x) (N,).

    Raises:
        ValueError: a size is not positive, alpha is negative, or "identity" without a learned alpha of 1.

    Source: Amos, Xu and Kolter, "Input convex neural networks", ICML 2017.

    Example:
        >>> net = ICNN(2, hidden=(16, 16), seed=0)
        >>> net(torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> net.nonnegative
        ('inner.0', 'outer')
    """

    calculus = Calculus.of(
        derivatives, gradient_and_logdet=logdet.gradient_and_logdet, linearise=estimation.linearise
    )
    arguments = ("dim", "hidden", "skip", "quadratic_rank")
    undecayed = ("root",)
    dense = True

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        *,
        activation: str | activations.Activation = "softplus",
        sharpness: float | None = None,
        strong_convexity: float = 0.1,
        learn_strong_convexity: bool = True,
        skip: bool = True,
        init: str = "principled",
        quadratic_rank: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            dim,
            activation=activation,
            sharpness=sharpness,
            strong_convexity=strong_convexity,
            learn_strong_convexity=learn_strong_convexity,
        )
        self.hidden = initial.positive_sizes("hidden", hidden, "widths")
        initial.check_identity(init, self)
        quadratic_rank = int(quadratic_rank)
        if quadratic_rank < 0:
            raise ValueError(f"quadratic_rank must be >= 0; got {quadratic_rank}")
        self.skip = bool(skip)
        self.quadratic_rank = quadratic_rank

        generator = generator_on(seed=seed)
        self.inner, self.outer, self.skips, self.biases, self.linear = initial.parameters(
            initial.initial_tensors(init, self.dim, self.hidden, skip, generator)
        )
        self.root = None
        if quadratic_rank:
            root = initial.normal(quadratic_rank, self.dim, generator)
            self.root = nn.Parameter((root * 0.1 / math.sqrt(quadratic_rank)).to(self.outer))
        self.own_strong_convexity()
        if init == "principled":
            sample = initial.normal(_CALIBRATION_ROWS, self.dim, generator)
            self.calibrate(sample.to(self.outer))

    @property
    def nonnegative(self) -> tuple[str, ...]:
        """Names of the parameters that must be >= 0: W_1 ... W_{L-1} and w."""
        return (*(f"inner.{level}" for level in range(len(self.hidden) - 1)), "outer")

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> ICNN:
        """Rescale every unit's weights by a positive factor and set its bias, for mean 0 and variance 1 on x.

        Args:
            x: (N, d), N >= 2.

        Raises:
            ValueError: fewer than two rows, a wrong width, or a non-finite entry.
        """
        initial.check_calibration(x, self.dim)
        z: Tensor | None = None
        for level, bias in enumerate(self.biases):
            incoming = [] if z is None else [(self.inner[level - 1], z)]
            incoming += [(self.skips[level], x)] if level < len(self.skips) else []
            u = torch.stack([inputs @ weight.T for weight, inputs in incoming]).sum(0)
            deviation = u.std(0).clamp_min(torch.finfo(u.dtype).tiny)
            for weight, _ in incoming:
                weight.div_(deviation[:, None])
            bias.copy_(-u.mean(0) / deviation)
            z = self.activation.value(u / deviation + bias)
        if z is not None:
            self.outer.div_((z @ self.outer).std().clamp_min(torch.finfo(z.dtype).tiny))
        return self

    def layers(self, tensors: Mapping[str, Tensor]) -> Layers:
        """The named tensors in the order the sweeps read them."""
        depth = len(self.hidden)
        return Layers(
            inner=tuple(tensors[f"inner.{level}"] for level in range(depth - 1)),
            outer=tensors["outer"],
            skips=tuple(tensors.get(f"skips.{level}") for level in range(depth)),
            biases=tuple(tensors[f"biases.{level}"] for level in range(depth)),
            linear=tensors.get("linear"),
            alpha=self.alpha(tensors),
            root=tensors.get("root"),
        )
