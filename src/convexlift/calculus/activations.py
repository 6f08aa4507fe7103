"""Convex, non-decreasing activations with their first two derivatives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Elementwise = Callable[[Tensor], Tensor]
Jet = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

NAMED = ("softplus", "squareplus", "smooth_squared_relu", "relu")

# softplus(u) is evaluated as u above this; exp(-40) is below the float64 resolution of 40.
_LINEAR_ABOVE = 40.0


@final
@dataclass(frozen=True)
class Activation:
    """A convex, non-decreasing function s with s' and s'', each elementwise.

    The three functions are checked at construction on a grid over [-20, 20] in float64: all are elementwise
    and finite, s' >= 0, s'' >= 0, and both agree with automatic differentiation.

    A copy is the activation itself. A named activation is pickled as its name and sharpness, another one as
    its functions, which must then be importable.

    Args:
        name: how the activation is called in messages and saved files.
        value: s.
        slope: s'.
        curvature: s''; ``None`` where it does not exist (then there is no Hessian).
        sharpness: the parameter of the named activations, kept for saving.
        joint: s, s' and s'' of one argument at once, where that is faster than one by one; see ``jet``.

    Raises:
        ValueError: s decreases or is concave somewhere, a derivative is wrong, or a function is not
            elementwise and finite.
        pickle.PicklingError: when pickled, a function is a lambda or defined inside another one.

    Example:
        >>> step = lambda u: (u > 0).to(u)
        >>> square = Activation("half-square", lambda u: u.relu() ** 2 / 2, torch.relu, step)
        >>> square.value(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
        >>> Activation("sine", torch.sin, torch.cos, lambda u: -torch.sin(u))
        Traceback (most recent call last):
        ...
        ValueError: activation 'sine' is not non-decreasing: slope -1 at u = 15.7
    """

    name: str
    value: Elementwise
    slope: Elementwise
    curvature: Elementwise | None = None
    sharpness: float | None = None
    joint: Jet | None = None

    def __post_init__(self) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self._check()

    def bend(self, u: Tensor) -> Tensor:
        """s''(u).

        Raises:
            ValueError: there is no second derivative.
        """
        if self.curvature is None:
            wanted = "ask for value or gradient only, or use activation='softplus'"
            raise ValueError(f"{self.name} has no second derivative: {wanted}")
        return self.curvature(u)

    def jet(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s(u), s'(u) and s''(u); raises as ``bend`` does."""
        # Functions with a backward of their own know no forward mode, which may lie under other transforms.
        if self.joint is None or forward_ad._current_level >= 0:
            return self.value(u), self.slope(u), self.bend(u)
        return self.joint(u)

    def __copy__(self) -> Activation:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Activation:
        return self

    def __reduce__(self) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
        if self.name in NAMED and getattr(self.slope, "__module__", None) == __name__:
            return activation, (self.name, self.sharpness)
        functions = (self.value, self.slope, self.curvature)
        if any("<" in getattr(function, "__qualname__", "") for function in (*functions, self.joint)):
            raise pickle.PicklingError(
                f"activation {self.name!r} cannot be pickled: define its functions at the top of a module"
            )
        return Activation, (self.name, *functions, self.sharpness, self.joint)

    def _check(self) -> None:
        # Offset from zero, so that a kink there (ReLU) is not sampled.
        u = (torch.linspace(-20.0, 20.0, 2003, dtype=torch.float64, device="cpu") + 1e-3).requires_grad_(True)
        value, slope = self._sample("value", self.value, u), self._sample("slope", self.slope, u)
        self._refuse("non-decreasing", "slope", slope.detach(), u.detach())
        exact = _derivative(value, u)
        self._compare("slope", slope.detach(), exact.detach(), u.detach())
        if self.curvature is None:
            return
        curvature = self._sample("curvature", self.curvature, u).detach()
        self._refuse("convex", "curvature", curvature, u.detach())
        exact = _derivative(slope if slope.requires_grad else exact, u)
        self._compare("curvature", curvature, exact.detach(), u.detach())
        if self.joint is not None:
            labels, known = ("joint value", "joint slope", "joint curvature"), (value, slope, curvature)
            for label, given, exact in zip(labels, self.joint(u), known, strict=True):
                self._compare(label, given.detach(), exact.detach(), u.detach())

    def _sample(self, label: str, function: Elementwise, u: Tensor) -> Tensor:
        out = function(u)
        if not isinstance(out, Tensor) or out.shape != u.shape or not bool(torch.isfinite(out).all()):
            raise ValueError(f"activation {self.name!r}: {label} is not elementwise and finite")
        return out

    def _refuse(self, wanted: str, label: str, out: Tensor, u: Tensor) -> None:
        worst = int(out.argmin())
        if float(out[worst]) < -1e-12:
            found = f"{label} {float(out[worst]):.3g} at u = {float(u[worst]):.3g}"
            raise ValueError(f"activation {self.name!r} is not {wanted}: {found}")

    def _compare(self, label: str, given: Tensor, exact: Tensor, u: Tensor) -> None:
        error = (given - exact).abs() / (1 + exact.abs())
        worst = int(error.argmax())
        if float(error[worst]) > 1e-8:
            raise ValueError(
                f"activation {self.name!r}: its {label} at u = {float(u[worst]):.3g} is "
                f"{float(given[worst]):.6g}, automatic differentiation gives {float(exact[worst]):.6g}"
            )


def softplus(sharpness: float = 1.0) -> Activation:
    """The softplus s(u) = log(1 + exp(k u)) / k of sharpness k, with s' = sigmoid(k u).

    Raises:
        ValueError: the sharpness is not positive.

    >>> softplus().value(torch.zeros(1))
    tensor([0.6931])
    """
    k = _positive(sharpness)

    def curvature(u: Tensor) -> Tensor:
        return k * torch.sigmoid(k * u) * torch.sigmoid(-k * u)

    return Activation(
        "softplus",
        lambda u: F.softplus(u, beta=k, threshold=_LINEAR_ABOVE),
        lambda u: torch.sigmoid(k * u),
        curvature,
        k,
        lambda u: _SoftplusJet.apply(u, k),
    )


@final
class _SoftplusJet(torch.autograd.Function):
    """Softplus of sharpness k, its slope q and its curvature c; the third derivative is k c (1 - 2 q)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
        scaled = u if k == 1 else k * u
        slope = torch.sigmoid(scaled)
        curvature = slope * torch.sigmoid(-scaled)
        value = F.softplus(u, beta=k, threshold=_LINEAR_ABOVE)
        return value, slope, curvature if k == 1 else k * curvature

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.k = inputs[1]
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        slope, curvature = ctx.saved_tensors
        by_value, by_slope, by_curvature = grads
        bend = by_slope  # what the curvature is to be multiplied by
        if by_curvature is not None:
            third = by_curvature * (1 - 2 * slope) * ctx.k
            bend = third if bend is None else bend + third
        out = None if bend is None else bend * curvature
        if by_value is not None:
            out = by_value * slope if out is None else torch.addcmul(out, by_value, slope)
        return out, None


def squareplus(sharpness: float = 1.0) -> Activation:
    """The squareplus s(u) = (u + r) / 2 with r = sqrt(u^2 + 4 / k^2): no exponential, so it is cheap.

    s' = (1 + u / r) / 2 and s'' = 2 / (k^2 r^3), which at zero is k / 4, that of a softplus of sharpness k.
    Its tails fall as 1 / u^2, where those of a softplus fall exponentially.

    Raises:
        ValueError: the sharpness is not positive.

    Source: Barron, "Squareplus: a softplus-like algebraic rectifier", 2021.

    >>> squareplus(2.0).value(torch.zeros(1))
    tensor([0.5000])
    """
    k = _positive(sharpness)
    offset = 4 / k**2

    def root(u: Tensor) -> Tensor:
        return (u * u + offset).sqrt()

    def joint(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = root(u)
        inverse = r.reciprocal()
        return (u + r) / 2, (u * inverse + 1) / 2, offset / 2 * inverse * inverse * inverse

    return Activation(
        "squareplus",
        lambda u: (u + root(u)) / 2,
        lambda u: (u / root(u) + 1) / 2,
        lambda u: offset / 2 / root(u) ** 3,
        k,
        joint,
    )


def smooth_squared_relu(sharpness: float = 1.0) -> Activation:
    """Half the squared softplus, s(u) = softplus_k(u)^2 / 2, which tends to max(u, 0)^2 / 2 as k grows.

    s' = p q and s'' = q^2 + k p q (1 - q) with p = softplus_k(u) and q = sigmoid(k u), all non-negative.

    Raises:
        ValueError: the sharpness is not positive.

    >>> smooth_squared_relu(100.0).value(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    k = _positive(sharpness)

    def root(u: Tensor) -> Tensor:
        return F.softplus(u, beta=k, threshold=_LINEAR_ABOVE)

    def curvature(u: Tensor) -> Tensor:
        q = torch.sigmoid(k * u)
        return q * q + k * root(u) * q * torch.sigmoid(-k * u)

    return Activation(
        "smooth_squared_relu",
        lambda u: root(u).square() / 2,
        lambda u: root(u) * torch.sigmoid(k * u),
        curvature,
        k,
    )


def relu() -> Activation:
    """The rectifier s(u) = max(u, 0): value and gradient only, it has no second derivative.

    >>> relu().curvature is None
    True
    """
    return Activation("relu", torch.relu, lambda u: (u > 0).to(u.dtype))


def activation(choice: str | Activation, sharpness: float | None = None) -> Activation:
    """The activation of that name, one of ``NAMED``, or the one given.

    Raises:
        ValueError: the name is unknown, or a sharpness came with something that has none.

    >>> activation("softplus", 2.0).sharpness
    2.0
    """
    if isinstance(choice, Activation):
        return choice
    sharp = {} if sharpness is None else {"sharpness": float(sharpness)}
    if choice == "softplus":
        return softplus(**sharp)
    if choice == "squareplus":
        return squareplus(**sharp)
    if choice == "smooth_squared_relu":
        return smooth_squared_relu(**sharp)
    if choice == "relu":
        if sharp:
            raise ValueError("relu has no sharpness")
        return relu()
    raise ValueError(f"unknown activation {choice!r}; known: {', '.join(NAMED)}, or an Activation")


def _derivative(out: Tensor, u: Tensor) -> Tensor:
    """The derivative of an elementwise function by automatic differentiation; zero for a constant."""
    if not out.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(out.sum(), u, create_graph=True, materialize_grads=True)[0]


def _positive(sharpness: float) -> float:
    if not sharpness > 0:
        raise ValueError(f"sharpness must be positive; got {sharpness}")
    return float(sharpness)
