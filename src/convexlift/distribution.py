"""A trained flow in ``torch.distributions``: as a distribution and as a transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Transform, constraints

from convexlift.ambient import guard_methods
from convexlift.sources import is_lifted
from convexlift.tasks import ConvexPotentialFlow
from convexlift.tasks.task import evaluating


@guard_methods
@final
class FlowDistribution(Distribution):
    """A convex potential flow as a ``torch.distributions`` distribution on R^d.

        log p(x) = log N(T(x); 0, I) + log det DT(x)

    ``log_prob`` is differentiable in the value and in the flow's parameters. ``rsample`` is differentiable in
    the parameters, once: with x = T^{-1}(z) and z held, dx = -DT(x)^{-1} (dT)(x).

    Args:
        flow: a ``ConvexPotentialFlow`` without unfrozen lifts.
        batch_shape: shape of a batch of such distributions, all the same.
        validate_args: check values, as everywhere in ``torch.distributions``.

    Shapes: value (..., *batch_shape, d) -> log_prob (..., *batch_shape).

    Raises:
        TypeError: another kind of module; from ``log_prob``, a value that is not floating-point.
        ValueError: the flow holds an unfrozen lift; from ``log_prob``, a value of another shape, with NaN or
            infinite entries.
        FloatingPointError: from ``log_prob``, see ``ConvexPotentialFlow.log_prob``.
        RuntimeError: from ``sample`` and ``rsample``, an inverse did not converge.

    Source: Huang, Chen, Tsirigotis and Courville, "Convex potential flows", ICLR 2021.

    Example:
        >>> import convexlift as cl
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8, 8), seed=0)]).freeze()
        >>> p = FlowDistribution(flow)
        >>> x = p.sample((5, 3))
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, flow: ConvexPotentialFlow, batch_shape: Sequence[int] = (), *, validate_args: bool | None = None
    ) -> None:
        self.transform = FlowTransform(flow)
        self.flow = flow
        super().__init__(torch.Size(batch_shape), torch.Size([flow.dim]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), of the shape of the value without its last axis."""
        if self._validate_args and value.numel():  # torch's check cannot read an empty tensor
            self._validate_sample(value)
        out = self.flow.log_prob(_flat(value, self.flow.dim)).reshape(value.shape[:-1])
        return out.expand(torch.broadcast_shapes(out.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Independent draws, (*sample_shape, *batch_shape, d), from torch's global generator."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.flow.sample(shape[:-1].numel()).reshape(shape)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """The draws of ``sample`` with a gradient in the flow's parameters, once differentiable."""
        shape = self._extended_shape(torch.Size(sample_shape))
        x = self.flow.sample(shape[:-1].numel())
        with torch.no_grad():
            z = self.transform(x)
        return _differentiable(self.flow, z, x).reshape(shape)

    def expand(
        self, batch_shape: Sequence[int], _instance: FlowDistribution | None = None
    ) -> FlowDistribution:
        """The same distribution with another batch shape; the flow is shared."""
        torch.empty(self.batch_shape).expand(torch.Size(batch_shape))  # raises where it cannot be
        return FlowDistribution(self.flow, batch_shape, validate_args=self._validate_args)

    def __repr__(self) -> str:
        return (
            f"FlowDistribution(event_shape={tuple(self.event_shape)}, batch_shape={tuple(self.batch_shape)})"
        )


@guard_methods
@final
class FlowTransform(Transform):
    """The map of a convex potential flow, x -> z = T(x), as a ``torch.distributions`` transform.

    Its inverse is found by Newton's method, row by row, and carries a gradient in z and in the flow's
    parameters, once: dx = DT(x)^{-1} (dz - (dT)(x)). A transform is no module: an optimiser takes
    ``transform.flow.parameters()``.

    Args:
        flow: a ``ConvexPotentialFlow`` without unfrozen lifts.
        cache_size: 1 to remember the last pair (x, z), as everywhere in ``torch.distributions``.

    Shapes: (..., d) -> (..., d); log_abs_det_jacobian (...).

    Raises:
        TypeError: another kind of module, or a point that is not floating-point.
        ValueError: the flow holds an unfrozen lift; a point of another shape or not finite.
        FloatingPointError: T(x) or its log-determinant overflows.
        RuntimeError: from the inverse, some rows did not converge.

    Source: Huang, Chen, Tsirigotis and Courville, "Convex potential flows", ICLR 2021.

    Example:
        >>> import convexlift as cl
        >>> from torch.distributions import Normal, TransformedDistribution
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8, 8), seed=0)]).freeze()
        >>> normal = Normal(torch.zeros(2), torch.ones(2))
        >>> p = TransformedDistribution(normal, [FlowTransform(flow).inv])
        >>> x = p.sample((5,))
        >>> torch.allclose(p.log_prob(x), flow.log_prob(x), atol=1e-4)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: ConvexPotentialFlow, cache_size: int = 0) -> None:
        if not isinstance(flow, ConvexPotentialFlow):
            raise TypeError(f"expected a ConvexPotentialFlow; got {type(flow).__name__}")
        if is_lifted(flow):
            raise ValueError("an unfrozen lift has no density of its own: pass flow.freeze(data)")
        super().__init__(cache_size=cache_size)
        self.flow = flow

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlowTransform) and other.flow is self.flow

    def __hash__(self) -> int:
        return hash(self.flow)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """The same transform with another cache size."""
        return self if cache_size == self._cache_size else FlowTransform(self.flow, cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log det DT(x), of the shape of x without its last axis; y is not read."""
        return _mapped(self.flow, _flat(x, self.flow.dim))[1].reshape(x.shape[:-1])

    def _call(self, x: Tensor) -> Tensor:
        return _mapped(self.flow, _flat(x, self.flow.dim))[0].reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        z = _flat(y, self.flow.dim)
        found = self.flow.inverse(z.detach())
        if not bool(found.converged.all()):
            failed = int((~found.converged).sum())
            raise RuntimeError(
                f"{failed} of {len(z)} points have no converged inverse (worst relative residual "
                f"{float(found.residual.max()):.2g}); a larger strong_convexity makes the inverse easier"
            )
        return _differentiable(self.flow, z, found.x).reshape(y.shape)


def _flat(x: Tensor, dim: int) -> Tensor:
    """x (..., dim) as rows."""
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ValueError(f"expected (..., {dim}) points; got {tuple(x.shape)}")
    return x.reshape(-1, dim)


def _mapped(flow: ConvexPotentialFlow, x: Tensor) -> tuple[Tensor, Tensor]:
    """T(x) and its log-determinant, the same in train mode as in eval mode; changes no state."""
    with evaluating(flow):
        out: tuple[Tensor, Tensor] = flow(x)
        return out


def _differentiable(flow: ConvexPotentialFlow, z: Tensor, x: Tensor) -> Tensor:
    """x = T^{-1}(z) with its gradient in z and in the flow's parameters, where one is asked for."""
    inputs = [z, *flow.parameters()]
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return x
    with torch.no_grad():
        jacobian = flow.jacobian(x)
    out: Tensor = _Implicit.apply(x, z - _mapped(flow, x)[0], jacobian)
    return out


@final
class _Implicit(torch.autograd.Function):
    """x, whose derivative is J^{-1} times that of the residual z - T(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, jacobian: Tensor) -> Tensor:
        ctx.save_for_backward(jacobian)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (jacobian,) = ctx.saved_tensors
        return None, torch.linalg.solve(jacobian.mT, grad.unsqueeze(2)).squeeze(2), None
