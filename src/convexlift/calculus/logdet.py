"""The exact log-determinant of the Hessian, with a hand-written backward.

With H = B + sum_l T_l diag(c_l) T_l' (B = alpha I + Q'Q, c_l = g_l s''(u_l), T_l the transposed Jacobians)
and d(log det H) = tr(H^{-1} dH), one bmm P_l = H^{-1} T_l per layer gives all that the backward needs:
dT_l = 2 P_l diag(c_l) plus what comes from the sweep above, and dc_l = sum_i (T_l * P_l)_i.
Automatic differentiation of the same forward spends twice the products and as many again in copies.

Most of the time goes into reading and writing Jacobians, not into products. So a large batch is worked on a
chunk of rows at a time, small enough for the cache, and the backward makes a chunk's Jacobians again rather
than fetch them: memory is bounded whatever the batch. A batch of one chunk keeps its Jacobians.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.derivatives import Layers

# The widest Jacobian of a chunk of rows: fits the cache of a core; an accelerator wants large products.
_CHUNK_BYTES = {"cpu": 700_000, "cuda": 256_000_000}


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
        hessian, kept = _hessian(depth, base, tensors)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if _may_branch(info):
            if bool(info.any()):
                factor = _refactor(factor, info, depth, base, tensors)
        else:
            factor = torch.where((info > 0)[:, None, None], torch.nan, factor)
        return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1), factor, *kept

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
        given = 4 * ctx.depth - 2
        tensors, (factor, *kept) = ctx.saved_tensors[:given], ctx.saved_tensors[given:]
        if grads[0] is None:
            return (None,) * (given + 2)
        # Q = v H^{-1}, v the incoming gradient of each sample's log-determinant.
        eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor, eye, upper=False)
        weighted = root.mT @ (root * grads[0][:, None, None])
        if kept:
            return None, weighted.sum(0), *_gradients(ctx.depth, weighted, tensors, kept)
        parts = []
        for rows in _chunks(ctx.depth, tensors):
            cut = _rows(ctx.depth, tensors, rows)
            parts.append(_gradients(ctx.depth, weighted[rows], cut, _jacobians(ctx.depth, cut)))
        pieces = list(zip(*parts, strict=True))
        per_row = 2 * ctx.depth - 1  # gradients of slopes and bends are joined, of weights and skips added up
        joined, added = map(torch.cat, pieces[:per_row]), (torch.stack(p).sum(0) for p in pieces[per_row:])
        return None, weighted.sum(0), *joined, *added


def _gradients(
    depth: int, weighted: Tensor, tensors: tuple[Tensor, ...], jacobians: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of sum_n <Q_n, H_n> in the slopes, bends, weights and skips of some rows."""
    slopes, bends, inner, skips = _split(depth, tensors)
    through, scaled = jacobians[: depth - 1], jacobians[depth - 1 :]
    d_slopes, d_bends, d_inner, d_skips = (
        [torch.zeros_like(t) for t in part] for part in (slopes, bends, inner, skips)
    )
    above: Tensor | None = None  # in T_l diag(s'_l), from layer l + 1
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
        above = (flat @ inner[level - 1]).unflatten(0, (-1, weighted.shape[1]))
    first, flat = skips[0], weighted.flatten(1)
    d_bends[0] = flat @ derivatives.outer_products(first).T
    moment = (bends[0].T @ flat).unflatten(1, weighted.shape[1:])
    d_skips[0] = 2 * (moment @ first.unsqueeze(2)).squeeze(2)
    if above is not None:
        d_slopes[0] = (above * first.T).sum(1)
        d_skips[0] = d_skips[0] + (above * slopes[0].unsqueeze(1)).sum(0).T
    return [*d_slopes, *d_bends, *d_inner, *d_skips]


def _split(depth: int, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """Slopes, bends, inner weights and skips, out of one flat tuple."""
    a, b, c = depth - 1, 2 * depth - 1, 3 * depth - 2
    return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]


def _may_branch(info: Tensor) -> bool:
    """Whether Python may look at values here: not under ``torch.compile`` or ``torch.func.vmap``."""
    return not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(info)


def _chunks(depth: int, tensors: tuple[Tensor, ...]) -> list[slice]:
    """The rows in chunks whose widest Jacobian takes at most `_CHUNK_BYTES`; all at once where that is
    better."""
    _, bends, _, skips = _split(depth, tensors)
    count = len(bends[0])
    if not _may_branch(bends[0]):
        return [slice(0, count)]
    row = skips[0].shape[1] * max(c.shape[1] for c in bends) * bends[0].element_size()
    size = max(1, _CHUNK_BYTES.get(bends[0].device.type, _CHUNK_BYTES["cpu"]) // row)
    return [slice(start, start + size) for start in range(0, count, size)] or [slice(0, 0)]


def _rows(depth: int, tensors: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, ...]:
    """The tensors with the per-sample ones (slopes and bends) cut to some rows."""
    per_row = 2 * depth - 1
    return (*(t[rows] for t in tensors[:per_row]), *tensors[per_row:])


def _jacobians(depth: int, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """T_2 ... T_L, then T_l diag(s'_l) for l < L; see ``derivatives.jacobians``."""
    slopes, _, inner, skips = _split(depth, tensors)
    through, scaled = derivatives.jacobians(slopes, inner, [a if a.numel() else None for a in skips])
    return through + scaled


def _hessian(depth: int, base: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The Hessians (N, d, d), and the Jacobians where the rows make one chunk."""
    dim = base.shape[0]
    outer_products = derivatives.outer_products(_split(depth, tensors)[3][0])
    parts = []
    for rows in _chunks(depth, tensors):
        cut = _rows(depth, tensors, rows)
        bends, jacobians = _split(depth, cut)[1], _jacobians(depth, cut)
        hessian = (bends[0] @ outer_products).unflatten(1, (dim, dim)) + base
        for jacobian, bend in zip(jacobians[: depth - 1], bends[1:], strict=True):
            hessian = torch.baddbmm(hessian, jacobian * bend.unsqueeze(1), jacobian.mT)
        parts.append(hessian)
    return (parts[0], jacobians) if len(parts) == 1 else (torch.cat(parts), [])


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
