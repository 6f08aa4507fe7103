"""The fully connected input-convex neural network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.architectures.initial import initial_tensors
from convexlift.architectures.potential import Potential
from convexlift.calculus import activations, derivatives, estimation, logdet
from convexlift.calculus.derivatives import Layers
from convexlift.calculus.estimation import Operator
from convexlift.checks import check_finite, check_samples

# Rows of the standard normal sample on which "principled" calibrates a new network.
_CALIBRATION_ROWS = 4096


class ICNN(nn.Module):
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
        activation: "softplus", "smooth_squared_relu", "relu" (value and gradient only), or an ``Activation``.
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
        super().__init__()
        self.dim, self.hidden = _sizes(dim, hidden)
        self.activation = activations.activation(activation, sharpness)
        if not (strong_convexity >= 0 and math.isfinite(strong_convexity)):
            raise ValueError(f"strong_convexity must be >= 0; got {strong_convexity}")
        if init == "identity" and not (learn_strong_convexity and strong_convexity == 1):
            raise ValueError('init="identity" needs strong_convexity=1 and learn_strong_convexity=True')
        if quadratic_rank < 0:
            raise ValueError(f"quadratic_rank must be >= 0; got {quadratic_rank}")
        self.strong_convexity = float(strong_convexity)
        self.learn_strong_convexity = learn_strong_convexity and strong_convexity > 0
        self.skip = skip
        self.quadratic_rank = quadratic_rank

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        drawn = initial_tensors(init, self.dim, self.hidden, skip, generator)
        dtype = torch.get_default_dtype()
        tensors = {name: nn.Parameter(t.to(dtype)) for name, t in drawn.items()}
        depth = len(self.hidden)
        self.inner = nn.ParameterList([tensors[f"inner.{level}"] for level in range(depth - 1)])
        self.outer = tensors["outer"]
        self.skips = nn.ParameterList([tensors[f"skips.{level}"] for level in range(depth if skip else 1)])
        self.biases = nn.ParameterList([tensors[f"biases.{level}"] for level in range(depth)])
        self.linear = tensors.get("linear")
        self.root = None
        if quadratic_rank:
            root = torch.randn(quadratic_rank, self.dim, generator=generator, dtype=torch.float64)
            self.root = nn.Parameter((root * 0.1 / math.sqrt(quadratic_rank)).to(dtype))
        if self.learn_strong_convexity:
            self.raw_alpha = nn.Parameter(torch.tensor(math.log(math.expm1(strong_convexity)), dtype=dtype))
        elif strong_convexity > 0:
            self.register_buffer("fixed_alpha", torch.tensor(strong_convexity, dtype=dtype))
        if init == "principled":
            sample = torch.randn(_CALIBRATION_ROWS, self.dim, generator=generator, dtype=torch.float64)
            self.calibrate(sample.to(dtype))

    @property
    def nonnegative(self) -> tuple[str, ...]:
        """Names of the parameters that must be >= 0: W_1 ... W_{L-1} and w."""
        return (*(f"inner.{level}" for level in range(len(self.hidden) - 1)), "outer")

    def emit(self, batch: Tensor | None = None) -> Potential:
        """The potential with this network's own tensors; the batch is not read."""
        return self.potential(dict(self._tensors()))

    def potential(self, tensors: Mapping[str, Tensor]) -> Potential:
        """The potential of this architecture with other tensors, by parameter and buffer name."""
        return Potential(self, tensors)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.emit().value(x)

    def freeze(self, data: Tensor | None = None) -> ICNN:
        """A copy that asks for no gradient; the data are not read.

        Raises:
            ValueError: a constrained weight is negative or not finite.
        """
        frozen = copy.deepcopy(self).requires_grad_(False).eval()
        check_nonnegative_tensors(frozen.nonnegative, dict(frozen.named_parameters()))
        return frozen

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> ICNN:
        """Rescale every unit's weights by a positive factor and set its bias, for mean 0 and variance 1 on x.

        Args:
            x: (N, d), N >= 2.

        Raises:
            ValueError: fewer than two rows, a wrong width, or a non-finite entry.
        """
        check_finite(check_samples(x, self.dim))
        if len(x) < 2:
            raise ValueError(f"calibrate needs at least 2 rows; got {len(x)}")
        z: Tensor | None = None
        for level, bias in enumerate(self.biases):
            incoming = []
            if z is not None:
                incoming.append((self.inner[level - 1], z))
            if level < len(self.skips):
                incoming.append((self.skips[level], x))
            u = torch.stack([inputs @ weight.T for weight, inputs in incoming]).sum(0)
            deviation = u.std(0).clamp_min(torch.finfo(u.dtype).tiny)
            for weight, _ in incoming:
                weight.div_(deviation[:, None])
            bias.copy_(-u.mean(0) / deviation)
            z = self.activation.value(u / deviation + bias)
        if z is not None:
            self.outer.div_((z @ self.outer).std().clamp_min(torch.finfo(z.dtype).tiny))
        return self

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild this architecture (not its weights).

        Raises:
            ValueError: the activation is a user's own object, which a file cannot hold.
        """
        if self.activation.name not in activations.NAMED:
            raise ValueError(
                f"activation {self.activation.name!r} is a user's own: "
                "save the state_dict and rebuild the network in code"
            )
        return {
            "dim": self.dim,
            "hidden": list(self.hidden),
            "activation": self.activation.name,
            "sharpness": self.activation.sharpness,
            "strong_convexity": self.strong_convexity,
            "learn_strong_convexity": self.learn_strong_convexity,
            "skip": self.skip,
            "quadratic_rank": self.quadratic_rank,
        }

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, hidden={self.hidden}, activation={self.activation.name!r}, "
            f"strong_convexity={self.strong_convexity:g}, skip={self.skip}"
        )

    # The closed forms, as functions of tensors (what a ``Potential`` calls).

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

    def alpha(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The strong convexity, a scalar; ``None`` for zero."""
        if self.learn_strong_convexity:
            return F.softplus(tensors["raw_alpha"])
        return tensors.get("fixed_alpha")

    def value(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return derivatives.value(x, self.layers(tensors), self.activation)

    def gradient(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """grad f(x), (N, d)."""
        return derivatives.gradient(x, self.layers(tensors), self.activation)

    def hessian(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The Hessian at x, (N, d, d)."""
        return derivatives.hessian(x, self.layers(tensors), self.activation)

    def laplacian(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The trace of the Hessian at x, (N,)."""
        return derivatives.laplacian(x, self.layers(tensors), self.activation)

    def hvp(self, tensors: Mapping[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        """The Hessian at x times v, (N, d)."""
        return derivatives.hvp(x, v, self.layers(tensors), self.activation)

    def gradient_and_logdet(self, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """grad f(x), (N, d), and log det of the Hessian, (N,)."""
        return logdet.gradient_and_logdet(x, self.layers(tensors), self.activation)

    def linearise(self, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Operator]:
        """grad f(x), (N, d), and the Hessians at x as a linear map of vectors (..., N, d)."""
        return estimation.linearise(x, self.layers(tensors), self.activation)

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        yield from self.named_parameters()
        yield from self.named_buffers()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        loaded = {name: state_dict[prefix + name] for name in self.nonnegative if prefix + name in state_dict}
        check_nonnegative_tensors(tuple(loaded), loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_nonnegative_tensors(names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError naming the first of these tensors that holds a negative or NaN entry.

    >>> check_nonnegative_tensors(["w"], {"w": torch.tensor([0.5, -0.25])})
    Traceback (most recent call last):
    ...
    ValueError: 'w' must be non-negative; its smallest entry is -0.25
    """
    for name in names:
        weight = tensors[name].detach()
        if weight.numel() and not bool(weight.min() >= 0):
            raise ValueError(f"{name!r} must be non-negative; its smallest entry is {float(weight.min()):g}")


def _sizes(dim: int, hidden: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    if dim < 1:
        raise ValueError(f"dim must be at least 1; got {dim}")
    widths = tuple(int(width) for width in hidden)
    if not widths or min(widths) < 1:
        raise ValueError(f"hidden must be a non-empty sequence of positive widths; got {tuple(hidden)}")
    return int(dim), widths
