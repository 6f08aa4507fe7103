"""The exact log-determinant of the Hessian, with a hand-written backward.

With H = B + sum_l T_l diag(c_l) T_l' (B = alpha I + Q'Q, c_l = g_l s''(u_l), T_l the transposed Jacobians)
and d(log det H) = tr(H^{-1} dH), one bmm P_l = H^{-1} T_l per layer gives all that the backward needs:
dT_l = 2 P_l diag(c_l) plus what comes from the sweep above, and dc_l = sum_i (T_l * P_l)_i.
Automatic differentiation of the same forward spends twice the products and as many again in copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.derivatives import Layers


def gradient_and_logdet(x: Tensor, layers: Layers, s: Activation) -> tuple[Tensor, Tensor]:
    """The gradient (N, d) and log det of the Hessian (N,), sharing the sweeps.

    Raises:
        ValueError: alpha is zero: the Hessian may be singular.
        FloatingPointError: a Hessian is not positive definite even in float64 (rows are named).
    """
    us = derivatives.preactivations(x, layers, s)
    slopes = [s.slope(u) for u in us]
    outers = derivatives.reverse_sweep(layers, slopes)
    bends = [outer * derivatives.curvature(s, u) for outer, u in zip(outers, us, strict=True)]
    return derivatives.assemble_gradient(x, layers, slopes, outers), hessian_logdet(x, layers, slopes, bends)


def hessian_logdet(x: Tensor, layers: Layers, slopes: list[Tensor], bends: list[Tensor]) -> Tensor:
    """log det of B + sum_l T_l diag(c_l) T_l' from the slopes s'(u_l) and bends c_l; shape (N,)."""
    if layers.alpha is None:
        raise ValueError("logdet needs strong_convexity > 0: with alpha = 0 the Hessian may be singular")
    skips = [torch.empty(0, dtype=x.dtype, device=x.device) if a is None else a for a in layers.skips]
    base = derivatives.base(x, layers)
    return _HessianLogdet.apply(len(bends), base, *slopes[:-1], *bends, *layers.inner, *skips)[0]


class _HessianLogdet(torch.autograd.Function):
    """Inputs: depth, B (d, d), s'_1 .. s'_{L-1}, c_1 .. c_L, W_1 .. W_{L-1}, A_1 .. A_L (empty if absent)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(depth: int, base: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        hessian, through, scaled = _hessian(depth, base, tensors)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if _may_branch(info):
            if bool(info.any()):
                factor = _refactor(factor, info, depth, base, tensors)
        else:
            factor = torch.where((info > 0)[:, None, None], torch.nan, factor)
        logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return logdet, factor, *through, *scaled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        depth, _, *tensors = inputs
        ctx.depth = depth
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        depth = ctx.depth
        given = 4 * depth - 2
        saved = ctx.saved_tensors
        (slopes, bends, inner, skips), factor = _split(depth, saved[:given]), saved[given]
        through, scaled = saved[given + 1 : given + depth], saved[given + depth :]
        if grads[0] is None:
            return (None,) * (given + 2)
        # Q = v H^{-1}, v the incoming gradient of each sample's log-determinant.
        weighted = torch.cholesky_inverse(factor) * grads[0][:, None, None]
        dim = factor.shape[1]
        d_slopes: list[Tensor | None] = [None] * (depth - 1)
        d_bends: list[Tensor | None] = [None] * depth
        d_inner: list[Tensor | None] = [None] * (depth - 1)
        d_skips: list[Tensor | None] = [None] * depth
        above: Tensor | None = None  # dL/d(T_l diag(s'_l)), from layer l + 1
        for level in range(depth - 1, 0, -1):
            jacobian = through[level - 1]
            half = weighted @ jacobian
            d_bends[level] = (jacobian * half).sum(1)
            half = half * (2 * bends[level]).unsqueeze(1)
            if above is not None:
                d_slopes[level] = (above * jacobian).sum(1)
                half = torch.addcmul(half, above, slopes[level].unsqueeze(1))
            if skips[level].numel():
                d_skips[level] = half.sum(0).T
            flat = half.flatten(0, 1)
            d_inner[level - 1] = flat.T @ scaled[level - 1].flatten(0, 1)
            above = (flat @ inner[level - 1]).unflatten(0, (-1, dim))
        first, flat = skips[0], weighted.flatten(1)
        d_bends[0] = flat @ derivatives.outer_products(first).T
        moment = (bends[0].T @ flat).unflatten(1, (dim, dim))
        d_first = 2 * (moment @ first.unsqueeze(2)).squeeze(2)
        if above is not None:
            d_slopes[0] = (above * first.T).sum(1)
            d_first = d_first + (above * slopes[0].unsqueeze(1)).sum(0).T
        d_skips[0] = d_first
        return None, weighted.sum(0), *d_slopes, *d_bends, *d_inner, *d_skips


def _split(depth: int, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """Slopes, bends, inner weights and skips, out of one flat tuple."""
    a, b, c = depth - 1, 2 * depth - 1, 3 * depth - 2
    return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]


def _may_branch(info: Tensor) -> bool:
    """Whether Python may look at values here: not under ``torch.compile`` or ``torch.func.vmap``."""
    return not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(info)


def _hessian(
    depth: int, base: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The Hessians (N, d, d), and the transposed Jacobians as ``derivatives.jacobians`` returns them."""
    slopes, bends, inner, skips = _split(depth, tensors)
    through, scaled = derivatives.jacobians(slopes, inner, [a if a.numel() else None for a in skips])
    dim = base.shape[0]
    hessian = (bends[0] @ derivatives.outer_products(skips[0])).unflatten(1, (dim, dim)) + base
    for jacobian, bend in zip(through, bends[1:], strict=True):
        hessian = torch.baddbmm(hessian, jacobian * bend.unsqueeze(1), jacobian.mT)
    return hessian, through, scaled


def _refactor(factor: Tensor, info: Tensor, depth: int, base: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """Cholesky factors with the rows that failed done again in float64.

    Raises:
        FloatingPointError: a row fails in float64 too.
    """
    rows = torch.nonzero(info).flatten()
    slopes, bends, inner, skips = _split(depth, tensors)
    picked = [t[rows].double() for t in (*slopes, *bends)] + [t.double() for t in (*inner, *skips)]
    again, still = torch.linalg.cholesky_ex(_hessian(depth, base.double(), tuple(picked))[0])
    bad = rows[still > 0].tolist()
    if bad:
        shown = ", ".join(str(row) for row in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise FloatingPointError(
            f"the Hessian is not positive definite in float64 at {len(bad)} of {len(info)} rows ({shown}): "
            "raise strong_convexity or look for non-finite inputs"
        )
    return factor.index_copy(0, rows, again.to(factor.dtype))
