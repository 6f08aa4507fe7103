"""One convex function: an architecture with a set of tensors bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.calculus import estimation, newton
from convexlift.calculus.activations import Activation
from convexlift.calculus.estimation import LogdetEstimate, Operator, Reference
from convexlift.calculus.newton import Solution
from convexlift.checks import check_samples
from convexlift.seeds import generator_on

if TYPE_CHECKING:
    from convexlift.architectures.base import Architecture


class Block(nn.Module):
    """What emits potentials: an architecture or a weight source of one. Tasks tell it how training goes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        guard_methods(cls)

    def initialise(self, x: Tensor) -> None:
        """Data-dependent start, called once with training points as the block will see them."""

    def settle(self, data: Tensor) -> None:
        """Fix what depends on the batch to its value on the training data."""

    def set_progress(self, t: float) -> None:
        """Tell how far training is, t in [0, 1]."""


@final
@dataclass(frozen=True)
class Calculus:
    """The closed forms of an architecture: pure functions of points x (N, d), of its layers and activation.

    One ordinary backward trains each of them; none takes a backward inside.

    Attributes:
        value: f(x), (N,).
        gradient: grad f(x), (N, d).
        hessian: (N, d, d).
        laplacian: the trace of the Hessian, (N,).
        hvp: of (x, v, layers, activation), the Hessian times v (N, d), (N, d).
        gradient_and_logdet: the gradient and the exact log-determinant of the Hessian, (N,).
        linearise: the gradient, and the Hessians as a linear map; where log-determinants can be estimated.
    """

    value: Callable[[Tensor, Any, Activation], Tensor]
    gradient: Callable[[Tensor, Any, Activation], Tensor]
    hessian: Callable[[Tensor, Any, Activation], Tensor]
    laplacian: Callable[[Tensor, Any, Activation], Tensor]
    hvp: Callable[[Tensor, Tensor, Any, Activation], Tensor]
    gradient_and_logdet: Callable[[Tensor, Any, Activation], tuple[Tensor, Tensor]]
    linearise: Callable[[Tensor, Any, Activation], tuple[Tensor, Operator]] | None = None

    @classmethod
    def of(cls, module: Any, **others: Any) -> Calculus:
        """The functions of a module that have these names, with some from elsewhere."""
        found = {field.name: getattr(module, field.name, None) for field in fields(cls)}
        return cls(**{**found, **others})


Method = Literal["exact", "estimated"]


def check_method(method: str | None) -> Method | None:
    """The method, if there is one of that name.

    >>> check_method("fast")
    Traceback (most recent call last):
    ...
    ValueError: method must be "exact", "estimated" or None; got 'fast'
    """
    if method not in (None, "exact", "estimated"):
        raise ValueError(f'method must be "exact", "estimated" or None; got {method!r}')
    return method  # type: ignore[return-value]


# Probes of an estimate that is looked at, and of a training step, whose noise the rows and steps average out.
_PROBES = 16
_TRAINING_PROBES = 1
# Lanczos steps. With the Hessian at the origin as reference the error left is far below that of the probes.
_STEPS = 10
# Dimensions from which the inverse forms no Hessian; where little is asked of it, a few products do.
_PRODUCTS_FROM = 64
_LOOSE, _PRODUCTS_FROM_IF_LOOSE = 1e-3, 16


@dataclass(frozen=True, eq=False)
class Bound:
    """An architecture with a set of tensors bound to it: the base of potentials."""

    architecture: Architecture[Any]
    tensors: Mapping[str, Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        guard_methods(cls)

    @property
    def dim(self) -> int:
        """d, the dimension of the points."""
        return self.architecture.dim

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the tensors, and of points and contexts."""
        return next(iter(self.tensors.values())).dtype


@dataclass(frozen=True, eq=False)
class Potential(Bound):
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

    @property
    def alpha(self) -> Tensor | None:
        """The strong convexity alpha, a scalar; ``None`` when it is fixed at zero."""
        return self.architecture.alpha(self.tensors)

    def value(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.architecture.calculus.value(self._check(x), *self._bound())

    def gradient(self, x: Tensor) -> Tensor:
        """grad f(x), (N, d)."""
        return self.architecture.calculus.gradient(self._check(x), *self._bound())

    def hessian(self, x: Tensor) -> Tensor:
        """The Hessian, (N, d, d)."""
        return self.architecture.calculus.hessian(self._check(x), *self._bound())

    def laplacian(self, x: Tensor) -> Tensor:
        """The trace of the Hessian, (N,)."""
        return self.architecture.calculus.laplacian(self._check(x), *self._bound())

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian at x times v, (N, d), without forming the Hessian."""
        return self.architecture.calculus.hvp(self._check(x), self._check(v), *self._bound())

    def linearise(self, x: Tensor) -> tuple[Tensor, Operator]:
        """grad f(x), (N, d), and the Hessians at x as a linear map of vectors (..., N, d).

        Raises:
            ValueError: an architecture without this form, whose log-determinants cannot be estimated.
        """
        if self.architecture.calculus.linearise is None:
            raise ValueError("logdet cannot be estimated for this architecture: it has no linearise")
        return self.architecture.calculus.linearise(self._check(x), *self._bound())

    def logdet(
        self, x: Tensor, *, method: Method | None = None, probes: int | None = None, seed: int | None = 0
    ) -> Tensor:
        """log det of the Hessian, (N,); needs alpha > 0. See ``gradient_and_logdet`` for the arguments."""
        return self.gradient_and_logdet(x, method=method, probes=probes, seed=seed)[1]

    def gradient_and_logdet(
        self, x: Tensor, *, method: Method | None = None, probes: int | None = None, seed: int | None = 0
    ) -> tuple[Tensor, Tensor]:
        """Gradient (N, d) and log-determinant (N,), sharing the work: one layer of a flow.

        Args:
            x: (N, d).
            method: "exact", by Cholesky; "estimated", by Lanczos quadrature; or the one that costs less, and
                always exact below 128 dimensions. An estimate's gradient is one of the exact value's,
                without bias.
            probes: of an estimate; 16 with a seed, 1 without.
            seed: of the probes, which all rows share: a fixed function of x. None draws other probes for each
                row, as training does: then errors average out over rows.

        Raises:
            ValueError: alpha is zero; an unknown method; an architecture that cannot be estimated.
            FloatingPointError: a Hessian is not positive definite (rows are named).
        """
        probes = (_TRAINING_PROBES if seed is None else _PROBES) if probes is None else probes
        if not self.estimates(method, probes):
            return self.architecture.calculus.gradient_and_logdet(self._check(x), *self._bound())
        self._strong("logdet")
        gradient, operator = self.linearise(x)
        drawn = self._probes(probes, x, seed)
        return gradient, estimation.estimated_logdet(operator, self._reference(), drawn, _STEPS)

    def estimates(self, method: Method | None = None, probes: int = _PROBES) -> bool:
        """Whether ``gradient_and_logdet`` would estimate with this method and number of probes."""
        if check_method(method) is None:
            estimable = self.architecture.calculus.linearise is not None
            return estimable and estimation.cheaper(self.dim, probes, _STEPS)
        return method == "estimated"

    @torch.no_grad()
    def logdet_estimate(
        self, x: Tensor, *, probes: int = _PROBES, steps: int = _STEPS, seed: int = 0
    ) -> LogdetEstimate:
        """log det of the Hessian by Lanczos quadrature, with its standard error, both (N,); no gradient.

        All rows share their probes, so the error of a mean over rows is not smaller by the root of N. With
        probes = steps = d the estimate is exact.

        Raises:
            ValueError: alpha is zero; fewer than two probes, or no step; an architecture that cannot be
                estimated.
            FloatingPointError: a Hessian is not positive definite (rows are named).
        """
        self._strong("logdet_estimate")
        operator, drawn = self.linearise(x)[1], self._probes(probes, x, seed)
        return estimation.estimate_with_error(operator, self._reference(), drawn, steps)

    def inverse(
        self,
        y: Tensor,
        *,
        start: Tensor | None = None,
        tolerance: float | None = None,
        max_iterations: int = newton.MAX_ITERATIONS,
    ) -> Solution:
        """x with grad f(x) = y, by batched damped Newton; detached, with a convergence flag for every row.

        From 64 dimensions on, or 16 for a tolerance of 1e-3 or more, no Hessian is formed: directions come
        from conjugate gradients, preconditioned by the Hessian at the origin.

        Args:
            y: (N, d).
            start: first guess (N, d). When omitted, zero; where Hessians are formed the affine map of y that
                is best for normal x, for rows that it takes closer.
            tolerance: on |grad f(x) - y| / (1 + |y|); 1e-8 in float64 and 1e-4 in float32 when omitted.
            max_iterations: Newton steps at most; rows that need more are flagged.

        Raises:
            ValueError: alpha is zero (an inverse need not exist).
        """
        self._strong("inverse")
        start = None if start is None else self._check(start)
        y = self._check(y)
        estimable = self.architecture.calculus.linearise is not None
        loose = tolerance is not None and tolerance >= _LOOSE
        if self.dim < (_PRODUCTS_FROM_IF_LOOSE if loose else _PRODUCTS_FROM) or not estimable:
            start = newton.gaussian_start(self.gradient, y) if start is None and estimable else start
            return newton.invert_gradient(
                self.gradient,
                self.hessian,
                y,
                start=start,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
        # From zero the first step takes one product, for the preconditioner is exact there.
        return newton.invert_gradient_by_products(
            self.gradient,
            lambda x: self.linearise(x)[1],
            y,
            preconditioner=self._reference().precondition,
            start=start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    def conjugate(
        self,
        y: Tensor,
        *,
        start: Tensor | None = None,
        tolerance: float | None = None,
        max_iterations: int = newton.MAX_ITERATIONS,
    ) -> Solution:
        """f*(y) = sup_x <x, y> - f(x), with bounds on both sides; arguments as of ``inverse``.

        An inexact maximiser gives ``value`` <= f*(y) <= ``upper`` = value + |grad f(x) - y|^2 / (2 alpha).
        ``value`` is differentiable in y and in the tensors (Danskin: the maximiser is held fixed).

        Raises:
            ValueError: alpha is zero.
        """
        alpha = self._strong("conjugate")
        found = self.inverse(y, start=start, tolerance=tolerance, max_iterations=max_iterations)
        value = (found.x * y).sum(1) - self.value(found.x)
        with torch.no_grad():
            gap = (self.gradient(found.x) - y).square().sum(1) / (2 * alpha)
        return replace(found, value=value, upper=value.detach() + gap)

    def __call__(self, x: Tensor) -> Tensor:
        return self.value(x)

    def _bound(self) -> tuple[Any, Activation]:
        """The tensors as the closed forms read them; made for each call, whose graph of alpha is its own."""
        return self.architecture.layers(self.tensors), self.architecture.activation

    @torch.no_grad()
    def _reference(self) -> Reference:
        """The Hessian at the origin, where a flow's norms put the mean of its data."""
        like = next(iter(self.tensors.values()))
        operator = self.linearise(like.new_zeros(1, self.dim))[1]
        return Reference.of(estimation.dense(operator, self.dim, like))

    def _probes(self, count: int, x: Tensor, seed: int | None) -> Tensor:
        if count < 1:
            raise ValueError(f"an estimate needs at least 1 probe; got {count}")
        if seed is None:
            own = generator_on(x.device)
            return estimation.orthogonal_probes(count, self.dim, len(x), generator=own, like=x)
        generator = generator_on(x.device, seed)
        return estimation.orthogonal_probes(count, self.dim, 1, generator=generator, like=x).expand(
            count, len(x), self.dim
        )

    def _check(self, x: Tensor) -> Tensor:
        return check_samples(x, self.dim, self.dtype)

    def _strong(self, what: str) -> Tensor:
        alpha = self.alpha
        if alpha is None:
            raise ValueError(f"{what} needs strong_convexity > 0: with alpha = 0 it need not exist")
        return alpha


@final
@dataclass(frozen=True, eq=False)
class BoundModule:
    """A user's own module with tensors bound to it: callable like the module, without calculus."""

    module: nn.Module
    tensors: Mapping[str, Tensor]

    def __call__(self, *args: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, dict(self.tensors), args)
