"""One convex function: an architecture with a set of tensors bound to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from convexlift.calculus import solve
from convexlift.calculus.solve import Solution
from convexlift.checks import check_samples


class Calculus(Protocol):
    """What a potential asks of its architecture: closed forms as functions of tensors and points."""

    dim: int

    def value(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor: ...
    def gradient(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor: ...
    def hessian(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor: ...
    def laplacian(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor: ...
    def hvp(self, tensors: Mapping[str, Tensor], x: Tensor, v: Tensor) -> Tensor: ...
    def gradient_and_logdet(self, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]: ...
    def alpha(self, tensors: Mapping[str, Tensor]) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Potential:
    """A convex function f: R^d -> R with its derivatives, all trainable by one ordinary backward.

    A potential is what a weight source emits. It is never stored on a module: it may hold tensors that
    belong to a graph.

    Attributes:
        architecture: the module whose closed forms are used, for instance an ``ICNN``.
        tensors: every tensor of the architecture by parameter name, the constrained ones non-negative.

    Raises:
        ValueError: from every method, when x is not (N, d).
        TypeError: from every method, when the dtype of x is not that of the tensors.

    Example:
        >>> import convexlift as cl
        >>> f = cl.ICNN(2, hidden=(16, 16), seed=0).emit()
        >>> x = torch.zeros(5, 2)
        >>> f.value(x).shape, f.gradient(x).shape, f.hessian(x).shape, f.logdet(x).shape
        (torch.Size([5]), torch.Size([5, 2]), torch.Size([5, 2, 2]), torch.Size([5]))
        >>> y = f.gradient(x)
        >>> bool(f.inverse(y).converged.all())
        True
    """

    architecture: Calculus
    tensors: Mapping[str, Tensor]

    @property
    def dim(self) -> int:
        """d, the dimension of the points."""
        return self.architecture.dim

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the tensors, and of the points."""
        return next(iter(self.tensors.values())).dtype

    @property
    def alpha(self) -> Tensor | None:
        """The strong convexity alpha, a scalar; ``None`` when it is fixed at zero."""
        return self.architecture.alpha(self.tensors)

    def value(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.architecture.value(self.tensors, self._check(x))

    def gradient(self, x: Tensor) -> Tensor:
        """grad f(x), (N, d)."""
        return self.architecture.gradient(self.tensors, self._check(x))

    def hessian(self, x: Tensor) -> Tensor:
        """The Hessian, (N, d, d)."""
        return self.architecture.hessian(self.tensors, self._check(x))

    def laplacian(self, x: Tensor) -> Tensor:
        """The trace of the Hessian, (N,)."""
        return self.architecture.laplacian(self.tensors, self._check(x))

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian at x times v, (N, d), without forming the Hessian."""
        return self.architecture.hvp(self.tensors, self._check(x), self._check(v))

    def logdet(self, x: Tensor) -> Tensor:
        """log det of the Hessian, (N,); needs alpha > 0."""
        return self.gradient_and_logdet(x)[1]

    def gradient_and_logdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (N, d) and log-determinant (N,), sharing the work: one layer of a flow."""
        return self.architecture.gradient_and_logdet(self.tensors, self._check(x))

    def inverse(self, y: Tensor, *, start: Tensor | None = None, tolerance: float | None = None) -> Solution:
        """x with grad f(x) = y, by batched damped Newton; detached, with a convergence flag for every row.

        Args:
            y: (N, d).
            start: first guess (N, d); zero when omitted.
            tolerance: on |grad f(x) - y| / (1 + |y|); 1e-8 in float64 and 1e-4 in float32 when omitted.

        Raises:
            ValueError: alpha is zero (an inverse need not exist).
        """
        self._strong("inverse")
        start = None if start is None else self._check(start)
        return solve.invert_gradient(
            self.gradient, self.hessian, self._check(y), start=start, tolerance=tolerance
        )

    def conjugate(
        self, y: Tensor, *, start: Tensor | None = None, tolerance: float | None = None
    ) -> Solution:
        """f*(y) = sup_x <x, y> - f(x), with bounds on both sides.

        An inexact maximiser gives ``value`` <= f*(y) <= ``upper`` = value + |grad f(x) - y|^2 / (2 alpha).
        ``value`` is differentiable in y and in the tensors (Danskin: the maximiser is held fixed).

        Raises:
            ValueError: alpha is zero.
        """
        alpha = self._strong("conjugate")
        found = self.inverse(y, start=start, tolerance=tolerance)
        value = (found.x * y).sum(1) - self.value(found.x)
        with torch.no_grad():
            gap = (self.gradient(found.x) - y).square().sum(1) / (2 * alpha)
        return Solution(
            found.x, found.residual, found.iterations, found.converged, value, value.detach() + gap
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self.value(x)

    def _check(self, x: Tensor) -> Tensor:
        return check_samples(x, self.dim, self.dtype)

    def _strong(self, what: str) -> Tensor:
        alpha = self.alpha
        if alpha is None:
            raise ValueError(f"{what} needs strong_convexity > 0: with alpha = 0 it need not exist")
        return alpha


@dataclass(frozen=True, eq=False)
class BoundModule:
    """A user's own module with tensors bound to it: callable like the module, without calculus."""

    module: nn.Module
    tensors: Mapping[str, Tensor]

    def __call__(self, *args: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, dict(self.tensors), args)
