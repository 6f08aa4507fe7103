"""The exact log-determinant of the Hessian, with a hand-written backward.

With H = B + sum_l T_l diag(c_l) T_l' (B = alpha I + Q'Q, c_l = g_l s''(u_l), T_l the transposed Jacobians)
and d(log det H) = tr(H^{-1} dH), one bmm P_l = H^{-1} T_l per layer gives all that the backward needs:
dT_l = 2 P_l diag(c_l) plus what comes from the sweep above, and dc_l = sum_i (T_l * P_l)_i.
Automatic differentiation of the same forward spends twice the products and as many again in copies.

Most of the time goes into reading and writing Jacobians, not into products. So a large batch is worked on a
chunk of rows at a time, small enough for the cache, in memory that is taken once and written over by every
chunk; the backward makes a chunk's Jacobians again rather than fetch them. Memory is bounded whatever the
batch. A batch of one chunk keeps its Jacobians.

A mean over rows weighs all of them alike, so training knows the gradients up to one factor before the
backward: they are then made in the forward, while a chunk's Jacobians are in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.cholesky import check_factored, check_strongly_convex, logdet_of
from convexlift.calculus.derivatives import Layers
from convexlift.checks import may_branch

# All Jacobians of a chunk of rows, for each thread: they fit the cache; an accelerator wants large products.
_CHUNK_BYTES = {"cpu": 7_500_000, "cuda": 2_000_000_000}


def gradient_and_logdet(x: Tensor, layers: Layers, s: Activation) -> tuple[Tensor, Tensor]:
    """The gradient (N, d) and log det of the Hessian (N,), sharing the sweeps.

    Raises:
        ValueError: alpha is zero: the Hessian may be singular.
        FloatingPointError: a Hessian is not positive definite even in float64 (rows are named).
    """
    gradient, slopes, bends = derivatives.linearise(x, layers, s)
    return gradient, hessian_logdet(x, layers, slopes, bends)


def hessian_logdet(x: Tensor, layers: Layers, slopes: list[Tensor], bends: list[Tensor]) -> Tensor:
    """log det of B + sum_l T_l diag(c_l) T_l' from the slopes s'(u_l) and bends c_l; shape (N,)."""
    check_strongly_convex(layers.alpha)
    skips = [torch.empty(0, dtype=x.dtype, device=x.device) if a is None else a for a in layers.skips]
    base = derivatives.base(x, layers)
    tensors = (base, *slopes[:-1], *bends, *layers.inner, *skips)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _HessianLogdet.apply(len(bends), training, *tensors)[0]


@final
class _HessianLogdet(torch.autograd.Function):
    """Inputs: depth, whether a backward is to come, B (d, d), s'_1 .. s'_{L-1}, c_1 .. c_L, W_1 .. W_{L-1},
    A_1 .. A_L (empty if absent)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(depth: int, training: bool, base: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        chunks = _chunks(depth, tensors, base)
        if training and len(chunks) > 1:
            factor, *kept = _factor_and_gradients(depth, base, tensors, chunks)
        else:
            factor, *kept = _factor(depth, base, tensors, chunks)
        return logdet_of(factor), factor, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        depth, _, _, *tensors = inputs
        ctx.depth = depth
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = 4 * ctx.depth - 2
        saved = ctx.saved_tensors
        tensors, (factor, *kept) = saved[:given], saved[given:]
        if grads[0] is None:
            return (None,) * (given + 3)
        if len(kept) > given:  # gradients for equal weights
            if may_branch(grads[0]) and bool((grads[0] == grads[0][0]).all()):
                return None, None, *(grads[0][0] * gradient for gradient in kept)
            kept = []
        weighted = _inverse(factor, grads[0])
        if kept or ctx.depth == 1:
            upper = _gradients(ctx.depth, weighted, tensors, kept, None)
        else:
            chunks = _chunks(ctx.depth, tensors, weighted)
            room = _room(2 * ctx.depth + 1, ctx.depth, tensors, chunks)
            parts = []
            for rows in chunks:
                cut = _rows(ctx.depth, tensors, rows)
                jacobians = _jacobians(_sweep(ctx.depth, cut, room, keep=True))
                parts.append(_gradients(ctx.depth, weighted[rows], cut, jacobians, room))
            upper = _join(parts)
        return None, None, *_with_first_layer(ctx.depth, weighted, tensors, upper)


def _factor(depth: int, base: Tensor, tensors: tuple[Tensor, ...], chunks: list[slice]) -> tuple[Tensor, ...]:
    """The Cholesky factors (N, d, d) of the Hessians, and the Jacobians where the rows make one chunk."""
    hessian, kept = _hessian(depth, base, tensors, chunks)
    factor, info = torch.linalg.cholesky_ex(hessian)
    if may_branch(info):
        if bool(info.any()):
            factor = _refactor(factor, info, depth, base, tensors)
    else:
        factor = torch.where((info > 0)[:, None, None], torch.nan, factor)
    return factor, *kept


def _factor_and_gradients(
    depth: int, base: Tensor, tensors: tuple[Tensor, ...], chunks: list[slice]
) -> tuple[Tensor, ...]:
    """The Cholesky factors, and the gradients of the sum of all log-determinants in B and all tensors; the
    factors alone where a row needs float64."""
    room = _room(2 * depth + 1, depth, tensors, chunks)
    outer_products = derivatives.outer_products(_split(depth, tensors)[3][0])
    factors, inverses, parts = [], [], []
    for rows in chunks:
        cut = _rows(depth, tensors, rows)
        hessian, pairs = _chunk_hessian(depth, base, cut, outer_products, room, keep=True)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if bool(info.any()):
            return _factor(depth, base, tensors, chunks)
        inverse = _inverse(factor)
        parts.append(_gradients(depth, inverse, cut, _jacobians(pairs), room))
        factors.append(factor)
        inverses.append(inverse)
    return torch.cat(factors), *_with_first_layer(depth, torch.cat(inverses), tensors, _join(parts))


def _inverse(factor: Tensor, weights: Tensor | None = None) -> Tensor:
    """v_n H_n^{-1} from the Cholesky factor of H_n; weights v (N,), or 1."""
    eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, eye, upper=False)
    return root.mT @ (root if weights is None else root * weights[:, None, None])


def _with_first_layer(
    depth: int, weighted: Tensor, tensors: tuple[Tensor, ...], upper: tuple[list[Tensor], ...]
) -> list[Tensor]:
    """The gradients in B and in all tensors: those of the layers above, and the first layer's own term of H,
    which has the same A_1' for every sample and needs no Jacobian."""
    d_slopes, d_bends, d_inner, d_skips = upper
    (_, (bend, *_), _, (first, *_)), flat = _split(depth, tensors), weighted.flatten(1)
    moment = (bend.T @ flat).unflatten(1, weighted.shape[1:])
    d_first = d_skips[0] + 2 * (moment @ first.unsqueeze(2)).squeeze(2)
    d_bend = flat @ derivatives.outer_products(first).T
    return [weighted.sum(0), *d_slopes, d_bend, *d_bends, *d_inner, d_first, *d_skips[1:]]


@final
class _Room:
    """Memory for a chunk's Jacobians, in slots of (rows, d, width), written over by chunk after chunk."""

    def __init__(self, slots: int, size: int, like: Tensor) -> None:
        self.slots = like.new_empty(slots, size)

    def at(self, slot: int, *shape: int) -> Tensor:
        return self.slots[slot, : math.prod(shape)].view(shape)


def _room(slots: int, depth: int, tensors: tuple[Tensor, ...], chunks: list[slice]) -> _Room | None:
    """Room for the Jacobians of one chunk; None where results must be new tensors: for a batch of one chunk,
    which keeps them, and under ``torch.compile`` and ``torch.func``."""
    _, bends, _, skips = _split(depth, tensors)
    if len(chunks) == 1:
        return None
    widest = max(c.shape[1] for c in bends)
    return _Room(slots, (chunks[0].stop - chunks[0].start) * skips[0].shape[1] * widest, bends[0])


def _at(room: _Room | None, slot: int, rows: int, dim: int, width: int) -> Tensor | None:
    return None if room is None else room.at(slot, rows, dim, width)


def _sweep(
    depth: int, tensors: tuple[Tensor, ...], room: _Room | None, keep: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """T_{l+1} and T_l diag(s'_l) for l = 1 ... L-1, each (N, d, width); one layer is written over the last
    unless they are to be kept."""
    slopes, _, inner, skips = _split(depth, tensors)
    rows, dim = len(tensors[0]), skips[0].shape[1]
    jacobian = skips[0].T.unsqueeze(0)
    for level, (slope, weight, skip) in enumerate(zip(slopes, inner, skips[1:], strict=True)):
        first, second = (3 + 2 * level, 4 + 2 * level) if keep else (0, 1)
        into = _at(room, first, rows, dim, weight.shape[1])
        scaled = torch.mul(jacobian, slope.unsqueeze(1), out=into)
        jacobian = _product(scaled, weight.T, _at(room, second, rows, dim, weight.shape[0]))
        if skip.numel():
            # A transposed view would be read out of order, once for each row.
            jacobian = torch.add(jacobian, skip.T.contiguous(), out=None if room is None else jacobian)
        yield jacobian, scaled


def _product(stack: Tensor, matrix: Tensor, into: Tensor | None) -> Tensor:
    """stack @ matrix for a stack (N, d, h) of one matrix, as one flat product."""
    flat = None if into is None else into.flatten(0, 1)
    out = torch.mm(stack.flatten(0, 1), matrix, out=flat)
    return out.unflatten(0, (-1, stack.shape[1]))


def _jacobians(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """T_2 ... T_L, then T_l diag(s'_l) for l < L, out of the pairs of a sweep."""
    kept = list(pairs)
    return [jacobian for jacobian, _ in kept] + [scaled for _, scaled in kept]


def _gradients(
    depth: int, weighted: Tensor, tensors: tuple[Tensor, ...], jacobians: Sequence[Tensor], room: _Room | None
) -> tuple[list[Tensor], ...]:
    """Gradients of sum_n <Q_n, H_n>, but for the first layer's own term, over some rows: in the slopes, in
    the bends from the second layer on, in the weights and in the skips. Slots 0 to 2 of the room are free."""
    slopes, bends, inner, skips = _split(depth, tensors)
    through, scaled = jacobians[: depth - 1], jacobians[depth - 1 :]
    d_slopes, d_bends, d_inner, d_skips = [], [], [], [torch.zeros_like(skip) for skip in skips]
    above: Tensor | None = None  # in T_l diag(s'_l), from layer l + 1
    for level in range(depth - 1, 0, -1):
        jacobian = through[level - 1]
        spare, into = _at(room, 0, *jacobian.shape), _at(room, 1, *jacobian.shape)
        half = torch.bmm(weighted, jacobian, out=into)
        d_bends.append(torch.mul(jacobian, half, out=spare).sum(1))
        half = torch.mul(half, (2 * bends[level]).unsqueeze(1), out=into)
        if above is not None:
            d_slopes.append(torch.mul(above, jacobian, out=spare).sum(1))
            half = torch.addcmul(half, above, slopes[level].unsqueeze(1), out=into)
        if skips[level].numel():
            d_skips[level] = half.sum(0).T
        d_inner.append(half.flatten(0, 1).T @ scaled[level - 1].flatten(0, 1))
        above = _product(half, inner[level - 1], _at(room, 2, *scaled[level - 1].shape))
    if above is not None:
        spare = _at(room, 0, *above.shape)
        d_slopes.append(torch.mul(above, skips[0].T.contiguous(), out=spare).sum(1))
        d_skips[0] = torch.mul(above, slopes[0].unsqueeze(1), out=spare).sum(0).T
    return d_slopes[::-1], d_bends[::-1], d_inner[::-1], d_skips


def _join(parts: list[tuple[list[Tensor], ...]]) -> tuple[list[Tensor], ...]:
    """The gradients of all chunks: those of slopes and bends row after row, those of weights added up."""
    slopes, bends, inner, skips = (list(zip(*kind, strict=True)) for kind in zip(*parts, strict=True))
    rows = ([torch.cat(tensors) for tensors in kind] for kind in (slopes, bends))
    sums = ([torch.stack(tensors).sum(0) for tensors in kind] for kind in (inner, skips))
    return *rows, *sums


def _split(depth: int, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """Slopes, bends, inner weights and skips, out of one flat tuple."""
    a, b, c = depth - 1, 2 * depth - 1, 3 * depth - 2
    return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:]


def _chunks(depth: int, tensors: tuple[Tensor, ...], other: Tensor) -> list[slice]:
    """The rows in chunks whose Jacobians take at most `_CHUNK_BYTES`; all at once where values of a tensor
    cannot be looked at."""
    _, bends, _, skips = _split(depth, tensors)
    count = len(bends[0])
    if not may_branch(bends[0], other):
        return [slice(0, count)]
    row = (2 * depth + 1) * skips[0].shape[1] * max(c.shape[1] for c in bends) * bends[0].element_size()
    kind = bends[0].device.type
    room = _CHUNK_BYTES[kind] if kind == "cuda" else _CHUNK_BYTES["cpu"] * torch.get_num_threads()
    most = max(1, room // row)
    size = math.ceil(count / max(1, math.ceil(count / most))) or 1  # all of about one size
    return [slice(start, start + size) for start in range(0, count, size)] or [slice(0, 0)]


def _rows(depth: int, tensors: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, ...]:
    """The tensors with the per-sample ones (slopes and bends) cut to some rows."""
    per_row = 2 * depth - 1
    return (*(t[rows] for t in tensors[:per_row]), *tensors[per_row:])


def _hessian(
    depth: int, base: Tensor, tensors: tuple[Tensor, ...], chunks: list[slice]
) -> tuple[Tensor, list[Tensor]]:
    """The Hessians (N, d, d), and the Jacobians where the rows make one chunk."""
    outer_products = derivatives.outer_products(_split(depth, tensors)[3][0])
    room = _room(2, depth, tensors, chunks)
    hessians: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for rows in chunks:
        cut = _rows(depth, tensors, rows)
        hessian, pairs = _chunk_hessian(depth, base, cut, outer_products, room, keep=False)
        hessians.append(hessian)
    return (hessians[0], _jacobians(pairs)) if len(chunks) == 1 else (torch.cat(hessians), [])


def _chunk_hessian(
    depth: int,
    base: Tensor,
    tensors: tuple[Tensor, ...],
    outer_products: Tensor,
    room: _Room | None,
    keep: bool,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The Hessians of one chunk, and the pairs of its sweep, of use where they are kept or without room."""
    bends = _split(depth, tensors)[1]
    hessian = (bends[0] @ outer_products).unflatten(1, base.shape) + base
    pairs = []
    for bend, pair in zip(bends[1:], _sweep(depth, tensors, room, keep), strict=True):
        jacobian = pair[0]
        bent = torch.mul(jacobian, bend.unsqueeze(1), out=_at(room, 0, *jacobian.shape))
        hessian = torch.baddbmm(hessian, bent, jacobian.mT, out=None if room is None else hessian)
        pairs.append(pair)
    return hessian, pairs


def _refactor(factor: Tensor, info: Tensor, depth: int, base: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """Cholesky factors with the rows that failed done again in float64.

    Raises:
        FloatingPointError: a row fails in float64 too.
    """
    rows = torch.nonzero(info).flatten()
    slopes, bends, inner, skips = _split(depth, tensors)
    picked = [t[rows].double() for t in (*slopes, *bends)] + [t.double() for t in (*inner, *skips)]
    again, still = torch.linalg.cholesky_ex(_hessian(depth, base.double(), tuple(picked), [slice(None)])[0])
    check_factored(still, rows, len(info))
    return factor.index_copy(0, rows, again.to(factor.dtype))
