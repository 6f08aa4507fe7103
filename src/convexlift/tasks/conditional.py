"""Conditional densities p(x | c), log-concave in x for every context c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.architectures import Architecture, PartialPotential
from convexlift.architectures.base import architecture_of
from convexlift.checks import check_draws
from convexlift.integration.rays.rule import ray_rule
from convexlift.seeds import generator_on
from convexlift.tasks import conditional_integrals as contexts
from convexlift.tasks.standardise import Standardiser
from convexlift.tasks.task import Task, check_rows, columns_called, in_float64, start_rows

Pair = tuple[Tensor, Tensor]

OBJECTIVES = ("score", "mle")


@final
@dataclass(frozen=True, eq=False)
class ConditionalNormaliser:
    """log Z(c) = log of the integral of exp(-f(t; c)) over t, for several contexts.

    Attributes:
        log_z: (N,), in float64.
        error: (N,), how far it may be off. By quadrature, the change from the rule before the last one; by
            annealing, the standard error.

    Example:
        >>> import convexlift as cl
        >>> density = ConditionalDensity(cl.PICNN(1, 1, hidden=(8, 8), seed=0))
        >>> found = density.normaliser(torch.zeros(4, 1))
        >>> found.log_z.shape, bool(found.error.max() < 1e-6)
        (torch.Size([4]), True)
    """

    log_z: Tensor
    error: Tensor


@final
class ConditionalDensity(Task):
    """The density p(x | c) = exp(-f(t; e)) / (Z(e) scale), t and e the standardised x and c, f convex in t.

    Trained on pairs (x, c) by one of two objectives:

    - ``"mle"``: maximum likelihood by quadrature, mean of f(t; e) + log Z(e), for d = 1 or 2. log Z of every
      row is integrated along rays from near the mode of f(.; e), each to where f is 25 higher; by convexity
      that leaves out about 1e-11 of the mass. 16 Gauss-Legendre nodes a ray, 2 rays for d = 1 and 16 for
      d = 2. With the default activation log Z is then off by some 1e-7 for most contexts and by at most 1e-4
      (d = 1) or 1e-3 (d = 2); a sharp activation costs more. ``normaliser`` refines until it settles.
    - ``"score"``: exact score matching, mean of |grad f|^2 / 2 - laplacian f at (t; e), for any d.

    A lift emits from the rows (t, e) of the data batch, once a step; the same weights are used at the nodes.

    Args:
        block: a ``PICNN`` or a weight source of one, with strong_convexity > 0.
        objective: "score" or "mle".

    Shapes: samples x (N, d); contexts c (N, k); log-densities (N,). Evaluations take one context (1, k) for
    all samples too.

    Raises:
        ValueError: an unknown objective, "mle" above two dimensions, or strong_convexity = 0; from the
            methods, samples or contexts of another width, length or with NaN or infinite entries, and an
            unfrozen lift without ``batch`` to emit from.
        TypeError: a block of another kind; from the methods, inputs that are not floating-point, or data that
            are not (x, c).
        FloatingPointError: f is not a number somewhere, or its integral did not settle; from ``score``, it
            overflows in the user's units.

    Source: Hyvarinen, "Estimation of non-normalized statistical models by score matching", JMLR 2005.

    Example:
        >>> import convexlift as cl
        >>> c = torch.linspace(-1, 1, 50)[:, None]
        >>> x = 2 * c + torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
        >>> density = ConditionalDensity(cl.PICNN(1, 1, hidden=(8, 8), seed=0), objective="mle")
        >>> density.initialise((x, c))
        >>> density.log_prob(x, c).shape, density.score(x, c).shape, density.mode(c).shape
        (torch.Size([50]), torch.Size([50, 1]), torch.Size([50, 1]))
        >>> density.sample(7, c, seed=0).shape
        torch.Size([50, 7, 1])
    """

    roles = ("samples", "contexts")
    standardiser: Standardiser

    def __init__(self, block: nn.Module, objective: str = "score") -> None:
        super().__init__()
        architecture: Architecture[PartialPotential] = architecture_of(block, conditional=True)
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
        if objective == "mle" and architecture.dim > 2:
            raise ValueError(
                f"objective 'mle' needs dim 1 or 2; got dim {architecture.dim}: use objective='score'"
            )
        if architecture.strong_convexity == 0:
            raise ValueError(
                "a conditional density needs strong_convexity > 0: exp(-f) must have a finite integral "
                "for every context"
            )
        self.dim, self.context_dim = architecture.dim, architecture.context_dim
        self.objective = objective
        self.block = block
        like = next(block.parameters())
        self.standardiser = Standardiser(self.dim).to(like)
        self.context_standardiser = Standardiser(self.context_dim, name="contexts").to(like)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild the density, with its block; ``save`` writes them."""
        return {"block": self.block, "objective": self.objective}

    def loss(self, batch: Pair, emit_from: Pair | None = None) -> Tensor:
        """The objective's mean over the batch (x, c); a lift emits from the batch itself, or ``emit_from``.

        With "mle" it is the mean of -log p(x | c); with "score" it is in units of the standardised x.
        """
        t, e = self._standardised(batch)
        rows = torch.cat([t, e], 1) if emit_from is None else self._rows(emit_from)
        given = self.block.emit(rows.detach()).given(e)
        if self.objective == "score":
            return (given.gradient(t).square().sum(1) / 2 - given.laplacian(t)).mean()
        points, log_weights = ray_rule(contexts.family(given, torch.arange(len(e), device=e.device)))
        log_z = torch.logsumexp(log_weights - given.grid(points), 1)
        return (given.value(t) + log_z).mean().double() - self.standardiser.log_scale_jacobian

    def log_prob(self, x: Tensor, c: Tensor, batch: Pair | None = None) -> Tensor:
        """log p(x | c), (N,), with log Z from ``normaliser``, once for each distinct context.

        Changes no state. The gradient flows through f, not through log Z. An unfrozen lift needs a ``batch``.
        """
        potential = self._potential(batch)
        t, e = self._aligned(x, c)
        rows, place = _distinct(e)
        log_z, _ = contexts.log_integrals(in_float64(potential), e.double(), rows)
        f = potential(t, e).double()
        return (self.standardiser.log_scale_jacobian - f - log_z[place]).to(self._resolving(x, c))

    def score(self, x: Tensor, c: Tensor, batch: Pair | None = None) -> Tensor:
        """The gradient of log p(x | c) in x, (N, d)."""
        potential = self._potential(batch)
        t, e = self._aligned(x, c)
        return self.standardiser.pull_back(-potential.given(e).gradient(t), self._resolving(x, c))

    @torch.no_grad()
    def normaliser(self, c: Tensor, batch: Pair | None = None) -> ConditionalNormaliser:
        """log Z in float64, of f over the standardised x, for each context (N, k), with its error.

        By quadrature for d = 1 and 2: rays to where f is 40 above the mode, rules refined until log Z changes
        by less than 1e-6 or the finest is reached (16 panels a ray, 256 angles). By annealed importance
        sampling above, which takes about a second for each context and is the same at every call.

        Raises:
            FloatingPointError: log Z still changes by more than 0.01 at the finest rule.
            UnreliableEstimate: the annealed weights support no estimate; the message names the context.
        """
        return ConditionalNormaliser(*contexts.log_integrals(*self._at_contexts(c, batch)))

    @torch.no_grad()
    def mode(self, c: Tensor, batch: Pair | None = None) -> Tensor:
        """The most likely x for each context (N, k), (N, d)."""
        return self.standardiser.inverse(contexts.modes(*self._at_contexts(c, batch)), self._resolving(c))

    @torch.no_grad()
    def sample(self, n: int, c: Tensor, seed: int | None = None, batch: Pair | None = None) -> Tensor:
        """n draws for each context (N, k), (N, n, d); the same for the same seed.

        For d = 1 and 2 they are independent, from tables of distribution functions (257 points of the line;
        257 of the angle, then 129 of the ray). Above, they come from chains, one context after the other.

        Raises:
            RuntimeError: chains that have not mixed; the message names the context.
        """
        n = check_draws(n)
        potential, e, rows = self._at_contexts(c, batch)
        generator = generator_on(e.device, seed)
        if n == 0 or not len(c):
            return e.new_zeros(len(c), n, self.dim, dtype=self._resolving(c))
        draws = contexts.draw(potential, e, rows, n, generator)
        return self.standardiser.inverse(draws, self._resolving(c))

    def _at_contexts(self, c: Tensor, batch: Pair | None) -> tuple[PartialPotential, Tensor, Tensor]:
        """The potential and the standardised contexts in float64, and the numbers of all contexts."""
        potential = self._potential(batch)
        e = self._standardised_contexts(c).double()
        return in_float64(potential), e, torch.arange(len(e), device=e.device)

    def _fit(self, data: Any) -> Tensor:
        x, c = self._samples_and_contexts(data)
        self.standardiser.fit(x)
        with columns_called("column {} of the contexts"):
            self.context_standardiser.fit(c)
        return start_rows(self._rows(data))

    def _rows(self, data: Any, name: str | None = None) -> Tensor:
        """Standardised samples and contexts side by side, (N, d + k)."""
        return torch.cat(self._standardised(data), 1)

    def _scaled(self, data: Any) -> list[tuple[str, Tensor, Tensor | None]]:
        x, c = self._standardised(data)
        return [("samples", x, None), ("contexts", c, None)]

    def _standardised(self, data: object) -> Pair:
        x, c = self._samples_and_contexts(data)
        return self.standardiser(x, self.dtype), self.context_standardiser(c, self.dtype)

    def _standardised_contexts(self, c: Tensor) -> Tensor:
        return self.context_standardiser(check_rows(c, self.context_dim, "contexts"), self.dtype)

    def _samples_and_contexts(self, data: object) -> Pair:
        return self._pair(data, "a pair (x, c)", self.context_dim, "contexts")

    def _aligned(self, x: Tensor, c: Tensor) -> Pair:
        """Both standardised; a single context stays one row, which serves all samples."""
        if isinstance(c, Tensor) and c.ndim == 2 and len(c) == 1:
            return super()._rows(x), self._standardised_contexts(c)
        return self._standardised((x, c))


def _distinct(e: Tensor) -> Pair:
    """The rows (R,) of the first of every distinct context, and which of them each context (N,) is."""
    distinct, place = torch.unique(e, dim=0, return_inverse=True)
    rows = torch.arange(len(e), device=e.device)
    return rows.new_full((len(distinct),), len(e)).scatter_reduce(0, place, rows, "amin"), place
