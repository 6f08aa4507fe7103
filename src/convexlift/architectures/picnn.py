"""The partially input-convex neural network: convex in x for every context c, free in c."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.architectures.base import Architecture
from convexlift.architectures.icnn import ICNN
from convexlift.architectures.initial import normal
from convexlift.architectures.potential import Bound, Calculus, Potential
from convexlift.calculus import newton, partial
from convexlift.calculus.newton import Solution
from convexlift.calculus.partial import PartialLayers
from convexlift.checks import check_samples
from convexlift.seeds import generator_on

# softplus(_UNIT_GATE) = 1: a gate with a zero matrix is one.
_UNIT_GATE = math.log(math.e - 1)
# Deviation of what the context adds to gates, scales and offsets of a new network.
_CONTEXT_EFFECT = 0.1
_CONVEX = "convex."


@final
class PICNN(Architecture["PartialPotential"]):
    """A partially input-convex network f(x; c), convex in x for every context c, with closed forms in x.

    From features e(c) = (c, v(c)) of the context, v an unconstrained tanh network, come positive gates p_l =
    softplus(G_l e), scales q_l = 1 + S_l e, offsets B_l e and a tilt T e; then (products entry by entry)

    u_1 = A_1 (q_1 x) + b_1 + B_1 e,   u_{l+1} = W_l (p_l s(u_l)) + A_{l+1} (q_{l+1} x) + b_{l+1} + B_{l+1} e,

    f(x; c) = w . (p_L s(u_L)) + (a + T e) . x + (alpha/2) |x|^2 + (1/2) |Q x|^2 + o . e.

    It is convex in x because s is convex and non-decreasing, the gates are positive and every W_l and w is
    non-negative (``nonnegative``). G_l is shifted so that a gate is one where G_l e = 0; at the start all
    that comes from the context is small, and f is close to an ``ICNN`` in x. How the weights are kept
    non-negative is the weight source's affair, as with an ``ICNN``. A lift emits from rows (x, c).

    Args:
        dim: d, the number of inputs in which f is convex.
        context_dim: k, the number of entries of a context.
        hidden: widths of the convex path, at least one.
        context_hidden: widths of the context path v; empty for features e(c) = c.
        seed: seed of the initial weights; torch's global generator when omitted.
        options: of the convex path, as in ``ICNN``: activation, sharpness, strong_convexity,
            learn_strong_convexity, skip, init, quadratic_rank.

    Shapes: x (N, d) and c (N, k), or c (1, k) for all points -> f(x; c) (N,).

    Raises:
        ValueError: a size is not positive, or an option of the convex path is unfit; see ``ICNN``.

    Source: Amos, Xu and Kolter, "Input convex neural networks", ICML 2017, section 3.2.

    Example:
        >>> net = PICNN(2, 3, hidden=(16, 16), seed=0)
        >>> x, c = torch.zeros(5, 2), torch.ones(5, 3)
        >>> net(x, c).shape
        torch.Size([5])
        >>> given = net.emit().given(c)
        >>> given.gradient(x).shape, given.hessian(x).shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
        >>> net.nonnegative
        ('convex.inner.0', 'convex.outer')
    """

    calculus = Calculus.of(partial)
    arguments = ("context_dim", "context_hidden")
    undecayed = ("level",)

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        context_hidden: Sequence[int] = (64, 64),
        *,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1; got {context_dim}")
        if any(width < 1 for width in context_hidden):
            raise ValueError(f"context_hidden must be positive widths; got {tuple(context_hidden)}")
        convex = ICNN(dim, hidden, seed=seed, **options)
        super().__init__(
            dim,
            activation=convex.activation,
            strong_convexity=convex.strong_convexity,
            learn_strong_convexity=convex.learn_strong_convexity,
        )
        self.convex = convex
        self.hidden = convex.hidden
        self.context_dim = int(context_dim)
        self.context_hidden = tuple(int(width) for width in context_hidden)

        generator = generator_on(seed=None if seed is None else seed + 1)
        like = self.convex.outer

        def draw(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
            drawn = normal(rows, columns, generator) * scale / math.sqrt(columns)
            return nn.Parameter(drawn.to(like))

        widths = (self.context_dim, *self.context_hidden)
        self.context_weights = nn.ParameterList(
            [draw(width, fan_in) for fan_in, width in zip(widths, widths[1:], strict=False)]
        )
        self.context_biases = nn.ParameterList(
            [nn.Parameter(like.new_zeros(width)) for width in self.context_hidden]
        )
        features = self.context_dim + (self.context_hidden[-1] if self.context_hidden else 0)
        widths = self.convex.hidden
        self.gates = nn.ParameterList([draw(width, features, _CONTEXT_EFFECT) for width in widths])
        self.scales = nn.ParameterList([draw(self.dim, features, _CONTEXT_EFFECT) for _ in self.convex.skips])
        self.offsets = nn.ParameterList([draw(width, features, _CONTEXT_EFFECT) for width in widths])
        self.tilt = draw(self.dim, features, _CONTEXT_EFFECT)
        self.level = draw(1, features, _CONTEXT_EFFECT)

    @property
    def nonnegative(self) -> tuple[str, ...]:
        """Names of the parameters that must be >= 0: W_1 ... W_{L-1} and w."""
        return tuple(_CONVEX + name for name in self.convex.nonnegative)

    def layers(self, tensors: Mapping[str, Tensor]) -> PartialLayers:
        """The tensors at fixed contexts, as ``conditioned`` makes them, in the order of the sweeps."""
        levels = range(len(self.hidden))
        return PartialLayers(
            self.convex.layers(_convex(tensors)),
            tuple(tensors[f"gates.{level}"] for level in levels),
            tuple(tensors.get(f"scales.{level}") for level in levels),
            tensors["offset"],
        )

    def alpha(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The strong convexity in x, that of the convex path; ``None`` for zero."""
        return self.convex.alpha(_convex(tensors))

    def potential(self, tensors: Mapping[str, Tensor]) -> PartialPotential:
        """The partial potential of this architecture with other tensors, by parameter and buffer name."""
        return PartialPotential(self, tensors)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        """f(x; c), (N,)."""
        return self.emit()(x, c)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild this architecture, those of the convex path among them."""
        return {**self.convex.config(), **super().config()}

    def features(self, tensors: Mapping[str, Tensor], c: Tensor) -> Tensor:
        """e(c) = (c, v(c)), (N, m)."""
        v = c
        for level in range(len(self.context_hidden)):
            weight, bias = tensors[f"context_weights.{level}"], tensors[f"context_biases.{level}"]
            v = torch.tanh(F.linear(v, weight, bias))
        return torch.cat([c, v], 1) if self.context_hidden else c

    def conditioned(self, tensors: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        """The tensors of the network in x alone at these contexts; gates and all that is added have rows."""
        e = self.features(tensors, c)
        out = {name: t for name, t in tensors.items() if name.startswith(_CONVEX)}
        for level in range(len(self.hidden)):
            bias = f"{_CONVEX}biases.{level}"
            out[bias] = out[bias] + e @ tensors[f"offsets.{level}"].T
            out[f"gates.{level}"] = F.softplus(_UNIT_GATE + e @ tensors[f"gates.{level}"].T)
        for level in range(len(self.scales)):
            out[f"scales.{level}"] = 1 + e @ tensors[f"scales.{level}"].T
        linear, tilt = f"{_CONVEX}linear", e @ tensors["tilt"].T
        out[linear] = out[linear] + tilt if linear in out else tilt
        out["offset"] = e @ tensors["level"][0]
        return out

    # The convex path checks its own tensors when they are loaded.
    _load_from_state_dict = nn.Module._load_from_state_dict


@final
@dataclass(frozen=True, eq=False)
class PartialPotential(Bound):
    """A function f(x; c), convex in x: a ``PICNN`` with a set of tensors bound to it.

    It is what a weight source of a ``PICNN`` emits. ``given(c)`` is the potential in x at those contexts,
    with all derivatives and solvers of ``Potential``; what depends on c alone is computed once, there.

    Attributes:
        architecture: the network.
        tensors: every tensor of it by parameter name, the constrained ones non-negative.

    Raises:
        ValueError: contexts that are not (N, k), or points of another number than the contexts.
        TypeError: another dtype than that of the tensors.

    Example:
        >>> f = PICNN(2, 1, hidden=(8, 8), seed=0).emit()
        >>> c = torch.tensor([[0.0], [1.0], [2.0]])
        >>> found = f.given(c).inverse(torch.zeros(3, 2))   # the lowest point for every context
        >>> found.x.shape, bool(found.converged.all())
        (torch.Size([3, 2]), True)
        >>> f.given(c[:1]).value(torch.zeros(7, 2)).shape   # one context for all points
        torch.Size([7])
    """

    architecture: PICNN

    def given(self, c: Tensor) -> ConditionedPotential:
        """The potential x -> f(x; c) at contexts (N, k), one for each point, or (1, k), one for all."""
        check_samples(c, self.architecture.context_dim, self.dtype, name="contexts")
        return ConditionedPotential(self.architecture, self.architecture.conditioned(self.tensors, c))

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        """f(x; c), (N,)."""
        return self.given(c).value(x)


@final
@dataclass(frozen=True, eq=False)
class ConditionedPotential(Potential):
    """The convex function x -> f(x; c) at contexts that are held fixed; see ``PartialPotential.given``.

    It is a ``Potential``: with one context it takes any number of points, with R contexts R points, row by
    row.

    Raises:
        ValueError: from every method, when x is not (R, d).

    Example:
        >>> given = PICNN(1, 1, hidden=(8,), seed=0).emit().given(torch.zeros(3, 1))
        >>> given.value(torch.zeros(2, 1))
        Traceback (most recent call last):
        ...
        ValueError: expected 3 samples, one for each context; got 2
    """

    @property
    def contexts(self) -> int:
        """R, the number of contexts."""
        return len(self.tensors["offset"])

    def grid(self, points: Tensor) -> Tensor:
        """f at M points for each context, (R, M, d) -> (R, M)."""
        if points.ndim != 3 or len(points) != self.contexts:
            raise ValueError(f"expected ({self.contexts}, M, {self.dim}) points; got {tuple(points.shape)}")
        check_samples(points.flatten(0, 1), self.dim, self.dtype)
        return partial.grid(points, *self._bound())

    def inverse(
        self,
        y: Tensor,
        *,
        start: Tensor | None = None,
        tolerance: float | None = None,
        max_iterations: int = newton.MAX_ITERATIONS,
    ) -> Solution:
        """x with grad f(x; c) = y, row by row; see ``Potential.inverse``."""
        if self.contexts == 1:
            return super().inverse(y, start=start, tolerance=tolerance, max_iterations=max_iterations)
        self._strong("inverse")
        layers, s = self._bound()

        # The solver works on some rows at a time. Each point carries the number of its context in a last
        # column, whose residual is zero and which no step moves.
        def field(x: Tensor) -> Tensor:
            return F.pad(partial.gradient(x[:, :-1], partial.pick(layers, x[:, -1].long()), s), (0, 1))

        def curvature(x: Tensor) -> Tensor:
            padded = F.pad(partial.hessian(x[:, :-1], partial.pick(layers, x[:, -1].long()), s), (0, 1, 0, 1))
            padded[:, -1, -1] = 1
            return padded

        y = self._check(y)
        rows = torch.arange(len(y), device=y.device, dtype=torch.float64).to(y.dtype)[:, None]
        first = torch.zeros_like(y) if start is None else self._check(start)
        found = newton.invert_gradient(
            field,
            curvature,
            F.pad(y, (0, 1)),
            start=torch.cat([first, rows], 1),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        return Solution(found.x[:, :-1], found.residual, found.iterations, found.converged)

    def _check(self, x: Tensor) -> Tensor:
        check_samples(x, self.dim, self.dtype)
        if self.contexts not in (1, len(x)):
            raise ValueError(f"expected {self.contexts} samples, one for each context; got {len(x)}")
        return x


def _convex(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the convex path, by their names there."""
    return {name.removeprefix(_CONVEX): t for name, t in tensors.items() if name.startswith(_CONVEX)}
