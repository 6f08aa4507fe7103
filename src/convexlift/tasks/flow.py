"""Convex potential flows: densities from gradients of strongly convex potentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convexlift.architectures import Potential
from convexlift.architectures.base import architecture_of
from convexlift.architectures.potential import Method, check_method
from convexlift.calculus.cholesky import logdet_of
from convexlift.calculus.estimation import LogdetEstimate
from convexlift.calculus.newton import Solution, default_tolerance
from convexlift.checks import check_draws, check_flag, check_samples, may_branch, name_rows, plain, rows_from
from convexlift.defaults import FLOW
from convexlift.seeds import generator_on, replaying
from convexlift.sources import is_lifted
from convexlift.tasks.standardise import ActNorm, Principal, Standardiser
from convexlift.tasks.task import Task, check_rows, evaluating, in_float64, map_rows

# Hessians formed at a time where no gradient is asked for.
_HESSIANS = 4096
# Rows done again in float64 at a time, whose Jacobians are all held.
_AGAIN = 64


@final
class ConvexPotentialFlow(Task):
    """A density by change of variables through gradients of strongly convex potentials.

        z = T(x),  T = norm_K o grad f_K o norm_{K-1} o ... o grad f_1 o norm_0 o standardise,

        log p(x) = log N(z; 0, I) + log det DT(x),

    with activation normalisation between the potentials and an exact log-determinant. Each grad f_k is
    invertible because f_k is strongly convex. Where a block is a lift it emits from the batch as mapped by
    the blocks before it, detached there.

    Args:
        blocks: ICNNs or weight sources of ICNNs (``Lift``, ``Softplus``, ...), all of one dimension and with
            strong_convexity > 0.
        logdet: "exact", "estimated", or by cost: from 128 dimensions on in training, above 768 elsewhere.
            Estimates draw their probes anew in each training step, and from fixed seeds elsewhere:
            ``log_prob`` is one fixed function of x, and ``log_prob_estimate`` gives its standard error.
        chunk: rows that pass through a potential at a time; all at once when omitted. It bounds the memory of
            a step: the backward passes through each chunk again rather than keep what it made. Weights are
            emitted once, from the whole batch. Not heeded under ``torch.compile`` and ``torch.func``.
        whiten: let ``standardise`` take the principal components of the training rows at unit deviation,
            rather than the columns. It needs more rows than columns.

    Shapes: samples (N, d); latent points (N, d), of the dtype of the blocks; log-densities (N,).

    Raises:
        ValueError: no blocks, different dimensions, or strong_convexity = 0; from every method, samples of
            another width or with NaN or infinite entries, and an unfrozen lift without ``batch`` to emit
            from.
        TypeError: a block of another kind; from every method, samples that are not floating-point.
        FloatingPointError: from ``forward`` and ``log_prob``, a result is not finite (rows are named).

    Source: Huang, Chen, Tsirigotis and Courville, "Convex potential flows", ICLR 2021.

    Example:
        >>> import convexlift as cl
        >>> flow = ConvexPotentialFlow([cl.ICNN(2, hidden=(8, 8), seed=0)])
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> flow.initialise(x)
        >>> flow.log_prob(x).shape, flow.sample(5, seed=0).shape
        (torch.Size([100]), torch.Size([5, 2]))
        >>> flow.log_prob(x[:, :1])
        Traceback (most recent call last):
        ...
        ValueError: expected (N, 2) samples; got (100, 1)
    """

    defaults = FLOW
    standardiser: Standardiser | Principal

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        logdet: Method | None = None,
        chunk: int | None = None,
        whiten: bool = False,
    ) -> None:
        super().__init__()
        self.logdet_method = check_method(logdet)
        chunk = plain(chunk)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 row, or None; got {chunk}")
        self.chunk = chunk
        self.blocks = nn.ModuleList(blocks)
        if not len(self.blocks):
            raise ValueError("a flow needs at least one block")
        architectures = [architecture_of(block) for block in self.blocks]
        dims = [architecture.dim for architecture in architectures]
        if len(set(dims)) > 1:
            raise ValueError(f"the blocks of a flow must have one dimension; got {', '.join(map(str, dims))}")
        if not all(architecture.strong_convexity > 0 for architecture in architectures):
            raise ValueError(
                "the blocks of a flow need strong_convexity > 0: their gradients must be invertible"
            )
        self.dim = dims[0]
        like = next(self.blocks[0].parameters())
        self.whiten = check_flag("whiten", whiten)
        self.standardiser = (Principal if self.whiten else Standardiser)(self.dim).to(like)
        self.norms = nn.ModuleList([ActNorm(self.dim).to(like) for _ in range(len(self.blocks) + 1)])

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild the flow, with its blocks; ``save`` writes them."""
        whiten = {"whiten": True} if self.whiten else {}  # what older versions read has no such entry
        return {"blocks": list(self.blocks), "logdet": self.logdet_method, **whiten}

    def forward(self, x: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = T(x), (N, d), and log det DT(x), (N,), both in the space of the data.

        Lifts emit from ``batch``; without it from x in train mode, from stored summaries in eval mode.

        Raises:
            FloatingPointError: a row overflows; not under ``torch.compile`` and ``torch.func``.
        """
        if batch is None and self.training:
            batch = x
        z, logdet = self._map(x, batch)
        logdet = self._in_units(logdet, x)
        if may_branch(z):
            finite = torch.isfinite(z).all(1) & torch.isfinite(logdet)
            if not bool(finite.all()):
                raise FloatingPointError(f"T(x) or its log-determinant overflows at {name_rows(~finite)}")
        return z, logdet

    def log_prob(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """log p(x), (N,), finite. Changes no state. An unfrozen lift needs a ``batch`` to emit from.

        Rows that overflow are done again in float64; not under ``torch.compile`` and ``torch.func``, where
        values cannot be looked at.

        Raises:
            FloatingPointError: rows are not finite in float64 either, or below the range of the flow's dtype.
        """
        self._require_weights(batch)
        check_samples(x, self.dim)
        tensors = [x, *self.parameters()]
        with evaluating(self):
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
                out = self._try_log_prob(x, batch)
            else:
                out = map_rows(lambda rows: self._try_log_prob(rows, batch), x, _HESSIANS)
            if not may_branch(out) or bool(torch.isfinite(out).all()):
                return out
            return self._again_in_float64(out, x, batch)

    @torch.no_grad()
    def log_prob_estimate(
        self, x: Tensor, batch: Tensor | None = None, *, probes: int = 16, seed: int = 0
    ) -> LogdetEstimate:
        """log p(x), (N,), with the standard error from estimated log-determinants; zero where all are exact.

        Which blocks are estimated is decided as in ``log_prob``, whose values these are with 16 probes and
        seed 0. All rows share their probes, so the error of a mean over rows is not smaller by the root of N:
        to see it, compare seeds.

        Raises:
            ValueError: fewer than two probes, where they are needed.
            FloatingPointError: a Hessian is not positive definite, or a row overflows (rows are named).

        Example:
            >>> import convexlift as cl
            >>> flow = ConvexPotentialFlow([cl.ICNN(20, hidden=(8,), seed=0)], logdet="estimated").freeze()
            >>> x = torch.zeros(5, 20)
            >>> found = flow.log_prob_estimate(x)
            >>> torch.allclose(found.value, flow.log_prob(x), atol=1e-4), found.standard_error.shape
            (True, torch.Size([5]))
        """
        self._require_weights(batch)
        z = self._rows(x)
        logdet = torch.zeros_like(z[:, 0])
        variance = torch.zeros_like(logdet)
        with evaluating(self):
            for block, ((norm, _), potential) in enumerate(
                zip(self._layers(), self._potentials(batch), strict=True)
            ):
                z = norm(z)
                logdet = logdet + norm.logdet
                if potential.estimates(self.logdet_method):
                    found = potential.logdet_estimate(z, probes=probes, seed=block + seed * len(self.blocks))
                    logdet = logdet + found.value
                    variance = variance + found.standard_error.square()
                else:
                    exact = partial(potential.logdet, method="exact")
                    logdet = logdet + map_rows(exact, z, _HESSIANS)
                z = potential.gradient(z)
        value = self._in_units(logdet + self._last_norm.logdet + _standard_normal(self._last_norm(z)), x)
        finite = torch.isfinite(value) & torch.isfinite(variance)
        if not bool(finite.all()):
            raise FloatingPointError(f"the log-density overflows at {name_rows(~finite)}")
        return LogdetEstimate(value, variance.sqrt())

    def jacobian(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """DT(x), (N, d, d), the product of the potentials' Hessians and the scales between them.

        Raises:
            FloatingPointError: it overflows.
        """
        self._require_weights(batch)
        z = self._rows(x)
        with evaluating(self):
            out = torch.eye(self.dim, dtype=z.dtype, device=z.device)
            for (norm, _), potential in zip(self._layers(), self._potentials(batch), strict=True):
                z = norm(z)
                out = potential.hessian(z) @ (norm.log_scale.exp()[:, None] * out)
                z = potential.gradient(z)
            out = self._last_norm.log_scale.exp()[:, None] * out
            return self.standardiser.pull_back(out, self._resolving(x))

    def loss(self, batch: Tensor, emit_from: Tensor | None = None) -> Tensor:
        """The mean of -log p over the batch; lifts emit from the batch itself, or from ``emit_from``.

        No row is done again in float64 here: the loss is not finite where one overflows, and ``fit`` stops.

        Raises:
            ValueError: the batch is empty.
        """
        log_prob = self._standardised_log_prob(batch, batch if emit_from is None else emit_from)
        if not log_prob.shape[0]:
            raise ValueError("a mean over no samples is not defined: the batch is empty")
        return -log_prob.mean().double() - self.standardiser.log_scale_jacobian

    def inverse(self, z: Tensor, batch: Tensor | None = None) -> Solution:
        """x with T(x) = z, without gradient.

        ``residual`` is the worst of the blocks' relative residuals, row by row, ``converged`` says whether
        all blocks converged, and ``iterations`` counts the Newton steps of all blocks.
        """
        self._require_weights(batch)
        check_rows(z, self.dim, name="latent points")
        with evaluating(self), torch.no_grad():
            return self._invert(z.to(self.dtype), self._potentials(batch))

    def sample(self, n: int, seed: int | None = None, batch: Tensor | None = None) -> Tensor:
        """n independent draws of the density, (n, d); the same for the same seed.

        Rows whose inverse has not converged are solved again in float64, from two starts.

        Raises:
            RuntimeError: some rows converge from no start.
        """
        n = check_draws(n)
        self._require_weights(batch)
        device = self.device
        generator = generator_on(device, seed)
        with evaluating(self), torch.no_grad():
            potentials = self._potentials(batch)
            z = torch.randn(n, self.dim, generator=generator, dtype=self.dtype, device=device)
            found = self._invert(z, potentials)
            x, failed = found.x, ~found.converged
            for start_at_target in (False, True):
                if not bool(failed.any()):
                    return x
                again = self._invert(z[failed].double(), [in_float64(p) for p in potentials], start_at_target)
                rows = failed.nonzero().flatten()[again.converged]
                x[rows] = again.x[again.converged].to(x.dtype)
                failed[rows] = False
            if bool(failed.any()):
                raise RuntimeError(
                    f"{int(failed.sum())} of {n} samples did not converge (worst relative residual "
                    f"{float(again.residual.max()):.2g}); a larger strong_convexity makes the inverse easier"
                )
            return x

    @torch.no_grad()
    def block_inputs(self, batch: Tensor) -> list[Tensor]:
        """The points (N, d) that each block sees when lifts emit from this batch."""
        x, inputs = self._rows(batch), []
        with evaluating(self):
            for norm, block in self._layers():
                inputs.append(norm(x))
                x = block.emit(inputs[-1]).gradient(inputs[-1])
        return inputs

    def _blocks(self) -> list[Any]:
        return list(self.blocks)

    def _start(self, x: Tensor) -> None:
        for norm, block in self._layers():
            norm.initialise(x)
            x = norm(x)
            block.initialise(x)
            x = block.emit(x).gradient(x)
        self._last_norm.initialise(x)

    def _settle(self, x: Tensor) -> None:
        for norm, block in self._layers():
            x = norm(x)
            block.settle(x)
            x = map_rows(block.emit().gradient, x)

    def _plain(self, x: Tensor | None) -> tuple[nn.Module, nn.Module]:
        plain: list[Any] = []
        for norm, block in self._layers():
            x = None if x is None else norm(x)
            plain.append(block.freeze(x))
            x = None if x is None or not is_lifted(self) else map_rows(plain[-1].emit().gradient, x)
        return self.blocks, nn.ModuleList(plain)

    def _layers(self) -> Iterator[tuple[ActNorm, Any]]:
        """Each block with the norm before it."""
        return zip(self.norms, self.blocks, strict=False)  # type: ignore[arg-type]

    @property
    def _last_norm(self) -> ActNorm:
        return self.norms[-1]  # type: ignore[return-value]

    def _in_units(self, log_prob: Tensor, x: Tensor) -> Tensor:
        """Log-densities or log-determinants of the rows x, (N,), from those of the standardised rows."""
        return (log_prob.double() + self.standardiser.log_scale_jacobian).to(self._resolving(x))

    def _log_prob(self, x: Tensor, batch: Tensor | None) -> Tensor:
        return self._in_units(self._standardised_log_prob(x, batch), x)

    def _standardised_log_prob(self, x: Tensor, batch: Tensor | None) -> Tensor:
        z, logdet = self._map(x, batch)
        return logdet + _standard_normal(z)

    def _try_log_prob(self, x: Tensor, batch: Tensor | None) -> Tensor:
        """log p(x); NaN on every row where a Hessian of one fails, with estimates on the row itself."""
        try:
            return self._log_prob(x, batch)
        except FloatingPointError:
            # The others are not to become exact: an estimate would depend on the rows beside it.
            if len(x) > 1 and any(p.estimates(self.logdet_method) for p in self._potentials(batch)):
                return torch.cat([self._try_log_prob(part, batch) for part in x.chunk(2)])
            return x.new_full((len(x),), torch.nan, dtype=self._resolving(x))

    def _again_in_float64(self, out: Tensor, x: Tensor, batch: Tensor | None) -> Tensor:
        """log p(x) from an attempt of which some rows are not finite: those are done in float64."""
        finite = torch.isfinite(out)
        good, bad = finite.nonzero().flatten(), (~finite).nonzero().flatten()
        potentials = [in_float64(potential) for potential in self._potentials(batch)]
        parts = x[bad].double().split(_AGAIN)
        wide = torch.cat([log_prob_by_cholesky(self, part, potentials) for part in parts])
        again = wide.to(out.dtype)
        for values, what in (
            (wide, "is not finite in float64 at {}: samples too far out, or weights too large"),
            (again, "is below the range of the flow's dtype at {}: remove them, or use flow.double()"),
        ):
            failed = torch.zeros_like(finite)
            failed[bad] = ~torch.isfinite(values)
            if bool(failed.any()):
                raise FloatingPointError("the log-density " + what.format(name_rows(failed)))
        # A gradient through rows that overflow is NaN, so the good rows are done again without them.
        usual = self._log_prob(x[good], batch) if out.requires_grad else out[good]
        return torch.cat([usual, again])[torch.cat([good, bad]).argsort()]

    def _map(self, x: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and its log-determinant in the standardised x; each block emits from `batch` as mapped so far."""
        itself = batch is x
        x = self._rows(x)
        if batch is not None and not itself:
            batch = self._rows(batch, "samples for the lift")
        logdet = torch.zeros_like(x[:, 0])
        for seed, (norm, block) in enumerate(self._layers()):
            x = norm(x)
            logdet = logdet + norm.logdet
            if itself:
                potential = block.emit(x.detach())
            else:
                potential, batch = self._emit_and_map(norm, block, batch)
            step = partial(
                potential.gradient_and_logdet, method=self.logdet_method, seed=None if self.training else seed
            )
            x, block_logdet = step(x) if self.chunk is None else _by_chunks(step, x, self.chunk)
            logdet = logdet + block_logdet
        return self._last_norm(x), logdet + self._last_norm.logdet

    def _potentials(self, batch: Tensor | None) -> list[Potential]:
        if batch is not None:
            batch = self._rows(batch, "samples for the lift")
        potentials = []
        for norm, block in self._layers():
            potential, batch = self._emit_and_map(norm, block, batch)
            potentials.append(potential)
        return potentials

    def _emit_and_map(
        self, norm: ActNorm, block: Any, batch: Tensor | None
    ) -> tuple[Potential, Tensor | None]:
        """The potential that the block emits from the normalised batch, and the batch after it."""
        if batch is None or not is_lifted(self):
            return block.emit(), None
        with torch.no_grad():
            batch = norm(batch)
        potential = block.emit(batch)
        return potential, map_rows(potential.gradient, batch)

    def _invert(self, z: Tensor, potentials: list[Potential], start_at_target: bool = False) -> Solution:
        parts = [self._invert_rows(rows, potentials, start_at_target) for rows in z.split(_HESSIANS)]
        return Solution(
            torch.cat([part.x for part in parts]),
            torch.cat([part.residual for part in parts]),
            sum(part.iterations for part in parts),
            torch.cat([part.converged for part in parts]),
        )

    def _invert_rows(self, z: Tensor, potentials: list[Potential], start_at_target: bool) -> Solution:
        # Newton's last step is quadratic: asking for more than the tolerance costs little, and errors grow
        # from block to block.
        tolerance = torch.finfo(z.dtype).eps ** 0.7
        x = self._last_norm.inverse(z)
        residual, iterations = torch.zeros_like(x[:, 0]), 0
        measured = torch.ones_like(residual, dtype=torch.bool)  # a residual relative to infinity says nothing
        for (norm, _), potential in zip(reversed(list(self._layers())), reversed(potentials), strict=True):
            measured &= torch.isfinite(x.norm(dim=1))
            found = potential.inverse(x, start=x if start_at_target else None, tolerance=tolerance)
            residual = torch.maximum(residual, found.residual)
            iterations += found.iterations
            x = norm.inverse(found.x)
        x = self.standardiser.inverse(x, self._resolving(z))
        converged = (residual <= default_tolerance(z.dtype)) & measured & torch.isfinite(x).all(1)
        return Solution(x, residual, iterations, converged)


def log_prob_by_cholesky(
    flow: ConvexPotentialFlow, x: Tensor, potentials: Iterable[Potential] | None = None
) -> Tensor:
    """log p(x), (N,), from Hessians and their Cholesky factors; NaN where one is not positive definite.

    The same numbers as ``flow.log_prob`` from plain operations that never look at values, so that it can be
    exported, and in whatever dtype the potentials have. It holds all Jacobians of its rows.

    >>> from convexlift import ICNN
    >>> flow, x = ConvexPotentialFlow([ICNN(2, hidden=(8, 8), seed=0)]), torch.ones(1, 2)
    >>> torch.allclose(log_prob_by_cholesky(flow, x), flow.log_prob(x))
    True
    """
    potentials = [block.emit() for block in flow._blocks()] if potentials is None else list(potentials)
    z = flow.standardiser(x, potentials[0].dtype)
    logdet = torch.zeros_like(z[:, 0])
    for (norm, _), potential in zip(flow._layers(), potentials, strict=True):
        z = norm(z)
        factor, info = torch.linalg.cholesky_ex(potential.hessian(z))
        logdet = logdet + norm.logdet + torch.where(info > 0, torch.nan, logdet_of(factor))
        z = potential.gradient(z)
    return flow._in_units(logdet + flow._last_norm.logdet + _standard_normal(flow._last_norm(z)), x)


def _by_chunks(
    step: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """step(x), so many rows at a time; each chunk keeps nothing for the backward but its own rows of x."""
    if len(x) <= rows or not may_branch(x):
        return step(x)
    parts = []
    for start in range(0, len(x), rows):
        with rows_from(start):
            part = x[start : start + rows]
            parts.append(checkpoint(step, part, use_reentrant=False, context_fn=replaying))
    return torch.cat([z for z, _ in parts]), torch.cat([logdet for _, logdet in parts])


def _standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (N,)."""
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
