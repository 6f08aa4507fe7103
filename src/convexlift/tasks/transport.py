"""Optimal transport for the quadratic cost: the Brenier map between two samples, by the semi-dual."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from convexlift.architectures import ICNN, Potential
from convexlift.architectures.base import architecture_of
from convexlift.calculus.newton import Solution
from convexlift.checks import is_number
from convexlift.data import Unpaired
from convexlift.defaults import TRANSPORT
from convexlift.names import TRANSPORT_OBJECTIVES, check_name
from convexlift.screening import Part, screen, tell
from convexlift.seeds import generator_on
from convexlift.sources.named import source_named
from convexlift.tasks.linear import Linear, onto_one_scale
from convexlift.tasks.task import Task, check_rows, in_float64, start_rows

# Newton steps that a row may take in a training step: most take one or two, and few would need more.
_STEPS = 20
# Relative residual of a conjugate in a validation loss: what is left is of its square.
_VALIDATED = 1e-3
# Rows whose conjugates are found at a time, outside training.
_CHUNK = 4096
# Data this many deviations away, or wider or narrower by this factor, are not those of the start.
_OTHER_MEAN, _OTHER_SPREAD = 0.5, 1.5
# The share of a new network that the potential starts with, beside |z|^2 / 2.
_SHARE = 0.1

Rows = Tensor | tuple[Tensor, Tensor] | Unpaired


@final
@dataclass(frozen=True)
class Distance:
    """What a transport map says of the distance between two samples, in the user's units.

    ``half_squared`` estimates a lower bound of W2^2 / 2, which is tight where the potential is optimal; on
    rows that the map was not trained on it is without bias.

    Attributes:
        half_squared: the dual estimate of W2^2 / 2, half the mean squared distance moved.
        standard_error: its Monte Carlo error over the rows of both samples.
        gap: what inexact conjugates may hide, at most: mean of |grad f(x) - y|^2 / (2 alpha), counted against
            the estimate already.
        cost: the mean of |T(x) - x|^2 / 2, which is W2^2 / 2 where T transports one law onto the other.
        cost_error: its standard error.
        unconverged: target rows whose conjugate did not converge; their bound is valid but may be loose.

    >>> Distance(2.0, 0.1, 0.0, 2.0, 0.1, 0).w2
    2.0
    """

    half_squared: float
    standard_error: float
    gap: float
    cost: float
    cost_error: float
    unconverged: int

    @property
    def w2(self) -> float:
        """W2 = sqrt(2 half_squared), the Wasserstein-2 distance; 0 where the estimate is negative."""
        return math.sqrt(2 * max(self.half_squared, 0.0))

    @property
    def w2_error(self) -> float:
        """The standard error of ``w2``, to first order; infinite at 0."""
        return self.standard_error / self.w2 if self.w2 else math.inf


@final
class TransportMap(Task):
    """The optimal-transport (Brenier) map between two samples, the gradient of a convex potential.

        T(x) = m_t + M_t^-1 grad f(z),   z = M_s (x - m_s),   w = M_t (y - m_t),

    f a convex potential, M_s and M_t linear maps that are fitted first: with ``premap="affine"`` those by
    which f(z) = |z|^2 / 2 is the transport map between normal laws of the samples' means and covariances,
    with None multiples of the identity. The loss is the semi-dual, with the exact conjugate f*:

        mean f(z) + mean f*(w),   f*(w) = max_x <x, w> - f(x).

    In training the maximiser of each target row starts from where it was when the row was last seen, and
    Newton's method takes it to a relative residual of ``tolerance``; it is then held fixed, which by the
    envelope theorem leaves the gradient what it is. A row that does not converge in 20 Newton steps is left
    out of that step's loss, keeps the maximiser it had, and is counted in ``left_out``. A model in eval mode
    takes conjugates to 1e-3, and where they do not converge their upper bound: there no row is left out.

    Train it on ``Unpaired(xs, xt)``, choose by held-out rows of the same form; what chooses is then the
    semi-dual of the frozen map. A lift emits from source rows alone.

    Args:
        block: an ICNN or a weight source of one, with strong_convexity > 0; ``TransportMap.of`` makes one.
        objective: "semidual", the only one so far.
        premap: "affine", or None.
        tolerance: of the conjugates in training.
        target_share: the share of a step's target rows that it looks at; conjugates cost more than values.
        floor: the strong convexity that f keeps when it learns alpha: alpha = floor + softplus(raw).

    Shapes: xs (N, d), xt (M, d); T(x) (N, d).

    Attributes:
        asked, left_out: conjugates asked for in training, and those left out, since this object was made.

    Raises:
        ValueError: strong_convexity is zero, or another argument is out of range; from the methods, rows of
            another width or with NaN or infinite entries, and an unfrozen lift without ``batch``; from
            ``initialise``, see ``onto_one_scale``.
        TypeError: a block of another kind; from the methods, rows that are not floating-point.

    Source: Makkuva et al., "Optimal transport mapping via input convex neural networks", ICML 2020; Amos,
    "On amortizing convex conjugates for optimal transport", ICLR 2023 (exact conjugates).

    Example:
        >>> import convexlift as cl
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> map = cl.TransportMap.of(2, seed=0)
        >>> history = cl.fit(map, cl.Unpaired(x, 2 * x + 1), steps=3, progress=False)
        >>> map(x).shape, bool(map.inverse(map(x)).converged.all())
        (torch.Size([500, 2]), True)
    """

    defaults = TRANSPORT
    standardiser: Linear  # type: ignore[assignment]  # set from both samples at once
    starts: Tensor | None

    def __init__(
        self,
        block: nn.Module,
        objective: str = "semidual",
        *,
        premap: str | None = "affine",
        tolerance: float = 1e-2,
        target_share: float = 0.5,
        floor: float = 1e-2,
    ) -> None:
        super().__init__()
        architecture = architecture_of(block)
        if not architecture.strong_convexity:
            raise ValueError(
                "a transport map needs strong_convexity > 0: without it conjugates may be infinite"
            )
        check_name("objective", objective, TRANSPORT_OBJECTIVES)
        if premap not in ("affine", None):
            raise ValueError(f'premap must be "affine" or None; got {premap!r}')
        for name, value in (("tolerance", tolerance), ("target_share", target_share)):
            if not (is_number(value) and 0 < value <= 1):
                raise ValueError(f"{name} must be a number in (0, 1]; got {value!r}")
        if not (is_number(floor) and 0 <= floor < 1):
            raise ValueError(f"floor must be a number in [0, 1); got {floor!r}")
        self.dim = architecture.dim
        self.block = block
        self.objective, self.premap = objective, premap
        self.tolerance, self.floor = float(tolerance), float(floor)
        self.target_share = float(target_share)
        like = next(block.parameters())
        self.standardiser = Linear(self.dim, name="source samples").to(like)
        self.target_standardiser = Linear(self.dim, name="target samples").to(like)
        # The last verified maximiser of every target row of training.
        self.register_buffer("starts", None)
        self.asked = self.left_out = 0
        self._seen: Tensor | None = None  # the target rows that the next loss is of

    @classmethod
    def of(
        cls,
        dim: int,
        *,
        hidden: Sequence[int] = TRANSPORT.hidden,
        source: str = TRANSPORT.source,
        seed: int | None = None,
        **options: Any,
    ) -> TransportMap:
        """The map of the recipe in d dimensions, which starts near the affine one: f(z) ~ |z|^2 / 2.

        Two layers of sharp squareplus units, of which the potential starts with a tenth, beside a learned
        quadratic of full rank that makes its mean Hessian the identity.

        Args:
            dim: d.
            hidden: widths of the hidden layers.
            source: name of the weight source, see ``convexlift.names.SOURCES``.
            seed: of the initial weights.
            options: of ``TransportMap``.

        Example:
            >>> TransportMap.of(3, seed=0).block.architecture.quadratic_rank
            3
        """
        net = ICNN(
            dim,
            hidden,
            activation="squareplus",
            sharpness=TRANSPORT.sharpness,
            strong_convexity=TRANSPORT.strong_convexity,
            quadratic_rank=dim,
            seed=seed,
        )
        return cls(source_named(source)(near_quadratic(net)), **options)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild the map, with its block; ``save`` writes them."""
        return {
            "block": self.block,
            "objective": self.objective,
            "premap": self.premap,
            "tolerance": self.tolerance,
            "target_share": self.target_share,
            "floor": self.floor,
        }

    @property
    def unit(self) -> Tensor:
        """k, by which values of f become those of phi, a scalar in float64."""
        return self.target_standardiser.inverse_matrix.trace() / self.standardiser.matrix.trace()

    def loss(self, batch: tuple[Tensor, Tensor], emit_from: Rows | None = None) -> Tensor:
        """The semi-dual mean f(z) + mean f*(w) of the batch (xs, xt), in the units of z.

        In training the second mean is over the first ``target_share`` of the target rows, which are in random
        order there.

        A lift emits from the source rows of the batch, or of ``emit_from``. In training the first loss after
        ``at_rows`` starts from the maximisers kept for those rows.

        Raises:
            ValueError: a side of the batch is empty.
            FloatingPointError: in training, no conjugate converged.
        """
        xs, xt = self._samples(batch)
        if not (len(xs) and len(xt)):
            raise ValueError("a mean over no samples is not defined: the batch is empty")
        seen, self._seen = self._seen, None
        if self.training:
            xt = xt[: math.ceil(self.target_share * len(xt))]
            seen = None if seen is None else seen[: len(xt)]
        z, w = self.standardiser(xs, self.dtype), self.target_standardiser(xt, self.dtype)
        potential = self._floored(
            self.block.emit((z if emit_from is None else self._rows(emit_from)).detach())
        )
        if not self.training:
            found = _conjugates(potential, w, tolerance=_VALIDATED)
            conjugate = torch.where(found.converged, *_bounds(found))
            return potential.value(z).mean() + conjugate.mean()
        x, kept = self._maximisers(potential, w, seen)
        values = potential.value(torch.cat([z, x[kept]]))
        return values[: len(z)].mean() + ((x * w).sum(1)[kept] - values[len(z) :]).mean()

    def at_rows(self, indices: tuple[Tensor, ...]) -> None:
        """Which rows of the training data the next loss is of, as ``fit`` tells: none, of one side or two."""
        self._seen = indices[-1] if indices else None

    def forward(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """T(x), (N, d). An unfrozen lift needs a ``batch`` of source rows."""
        gradient = self._potential(batch).gradient(self._rows(x))
        return self.target_standardiser.inverse(gradient, self._resolving(x))

    def potential(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """phi(x), (N,), whose gradient is T(x): k f(z) + <m_t, x>."""
        value = self._potential(batch).value(self._rows(x)).double()
        phi = self.unit * value + x.double() @ self.target_standardiser.mean
        return phi.to(self._resolving(x))

    def conjugate(self, y: Tensor, batch: Rows | None = None) -> Solution:
        """phi*(y) = max_x <x, y> - phi(x), with bounds on both sides; no gradient.

        The maximisers ``x`` are T^-1(y). Residuals are those of the potential f, in its own units, relative
        to 1 + |w|.
        """
        found = self._inverted(y, batch, conjugates=True)
        linear = (y.double() - self.target_standardiser.mean) @ self.standardiser.mean
        bounds = _bounds(found)
        value, upper = ((linear + self.unit * v.double()).to(self._resolving(y)) for v in bounds)
        return replace(found, value=value, upper=upper)

    def inverse(self, y: Tensor, batch: Rows | None = None) -> Solution:
        """x with T(x) = y, with a convergence flag for every row; no gradient."""
        return self._inverted(y, batch, conjugates=False)

    def interpolate(self, x: Tensor, t: float, batch: Rows | None = None) -> Tensor:
        """(1 - t) x + t T(x), (N, d): where the rows are at time t of the displacement interpolation.

        Raises:
            ValueError: t is not in [0, 1].

        Source: McCann, "A convexity principle for interacting gases", 1997.
        """
        if not (is_number(t) and 0 <= t <= 1):
            raise ValueError(f"t must be a number in [0, 1]; got {t!r}")
        there = self(x, batch)
        return torch.lerp(x.to(there.dtype), there, float(t))

    @torch.no_grad()
    def distance(self, xs: Tensor, xt: Tensor, batch: Rows | None = None) -> Distance:
        """W2 and W2^2 / 2 between the laws of two samples, by the dual, computed in float64.

        Of any phi the mean of |x|^2 / 2 - phi(x) plus that of |y|^2 / 2 - phi*(y) is at most W2^2 / 2. Of
        conjugates the upper bounds <x, y> - f(x) + |grad f(x) - y|^2 / (2 alpha) are taken.

        Args:
            xs, xt: (N, d) and (M, d), rows that the map was not trained on, at least two of each.

        Example:
            >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
            >>> map = TransportMap.of(2, seed=0)
            >>> map.initialise((x, x + 3))
            >>> round(map.distance(x, x + 3).half_squared)
            9
        """
        for rows, name in ((xs, "source samples"), (xt, "target samples")):
            if len(check_rows(rows, self.dim, name)) < 2:
                raise ValueError(f"a distance needs at least 2 {name}; got {len(rows)}")
        f = in_float64(self._potential(batch))
        z, w = self.standardiser(xs, torch.float64), self.target_standardiser(xt, torch.float64)
        found = _conjugates(f, w)
        value, upper = _bounds(found)
        # From the means of both, so that a large distance between them costs no digit.
        centre_s, centre_t = self.standardiser.mean, self.target_standardiser.mean
        apart, x, y = centre_s - centre_t, xs.double() - centre_s, xt.double() - centre_t
        side_s = x @ apart + x.square().sum(1) / 2 - self.unit * f.value(z)
        side_t = -y @ apart + y.square().sum(1) / 2 - self.unit * upper
        moved = self.target_standardiser.inverse(f.gradient(z)) - xs.double()
        cost = moved.square().sum(1) / 2
        return Distance(
            half_squared=float(apart.square().sum() / 2 + side_s.mean() + side_t.mean()),
            standard_error=float((side_s.var() / len(xs) + side_t.var() / len(xt)).sqrt()),
            gap=float(self.unit * (upper - value).mean()),
            cost=float(cost.mean()),
            cost_error=float(cost.std() / math.sqrt(len(xs))),
            unconverged=int((~found.converged).sum()),
        )

    @torch.no_grad()
    def preflight(
        self,
        rows: Any,
        names: Sequence[str] | None = None,
        *,
        allow: Iterable[str] = (),
        where: Callable[[int], str] | None = None,
    ) -> None:
        """Refuse two samples (xs, xt) that the map cannot start from, and warn of doubtful ones."""
        xs, xt = self._samples(rows)
        self._sides(xs, xt)
        for side in (xs, xt):
            tell(screen([Part(side, "samples", names)], allow=allow), where)

    @torch.compiler.disable
    def _maximisers(self, potential: Potential, w: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """The maximisers of a training step (M, d), and which of them are verified (M,)."""
        known = self.starts if seen is not None else None
        seen = None if seen is None else seen.to(w.device)
        start = None if known is None else known[seen]
        found = potential.inverse(w, start=start, tolerance=self.tolerance, max_iterations=_STEPS)
        kept = found.converged
        if known is not None and seen is not None:
            known[seen[kept]] = found.x[kept]
        left = int((~kept).sum())
        self.asked += len(w)
        self.left_out += left
        if left == len(w):
            raise FloatingPointError("no conjugate of the batch converged")
        if 2 * left > len(w):
            warnings.warn(
                f"{left} of {len(w)} conjugates of a training step did not converge and were left out: a "
                "larger floor or a lower rate keeps the potential easier to invert",
                stacklevel=2,
            )
        return found.x, kept

    def _inverted(self, y: Tensor, batch: Rows | None, conjugates: bool) -> Solution:
        """The solution at y, with points in the user's units and values in those of f."""
        check_rows(y, self.dim, "target samples")
        potential = self._potential(batch)
        with torch.no_grad():
            w = self.target_standardiser(y, self.dtype)
            found = _conjugates(potential, w, conjugates)
            return replace(found, x=self.standardiser.inverse(found.x, self._resolving(y)))

    def _floored(self, potential: Potential) -> Potential:
        """The potential with alpha raised by the floor, where alpha is learned."""
        raw = potential.tensors.get("raw_alpha")
        if raw is None:
            return potential
        return replace(potential, tensors={**potential.tensors, "raw_alpha": _raised(raw, self.floor)})

    def _potential(self, batch: Any) -> Potential:
        return self._floored(super()._potential(batch))

    def _samples(self, data: Any) -> tuple[Tensor, Tensor]:
        """The two samples, checked."""
        if isinstance(data, Unpaired):
            data = (data.xs, data.xt)
        if not isinstance(data, tuple) or len(data) != 2:
            got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
            raise TypeError(f"expected two samples, Unpaired(xs, xt); got {got}")
        xs, xt = data
        check_rows(xs, self.dim, "source samples")
        return xs, check_rows(xt, self.dim, "target samples")

    def _sides(self, xs: Tensor, xt: Tensor) -> Any:
        names = (self.standardiser.name, self.target_standardiser.name)
        return onto_one_scale(xs, xt, names, self.premap == "affine")

    def _rows(self, data: Any, name: str | None = None) -> Tensor:
        if isinstance(data, Unpaired):
            data = data.xs
        return super()._rows(data[0] if isinstance(data, tuple) else data, name)

    def _fit(self, data: Any) -> Tensor:
        xs, xt = self._samples(data)
        sides = self._sides(xs, xt)
        self.standardiser.set(xs, *sides.source)
        self.target_standardiser.set(xt, *sides.target)
        # Where f(z) = |z|^2 / 2 these are the maximisers.
        self.starts = self.target_standardiser(xt, self.dtype)
        return self.standardiser(start_rows(xs), self.dtype)

    def _compare(self, data: Any) -> None:
        xs, xt = self._samples(data)
        for side, rows in ((self.standardiser, xs), (self.target_standardiser, xt)):
            z = side(rows, torch.float64)
            away = float(z.mean(0).norm())
            wide = float((z - z.mean(0)).square().mean().sqrt())
            if away > _OTHER_MEAN or abs(math.log(wide)) > math.log(_OTHER_SPREAD):
                warnings.warn(
                    f"this map was initialised on other data: the {side.name} are now {away:.3g} deviations "
                    f"away and {wide:.3g} times as wide; its scales stay as they are: make a new map to "
                    "start anew",
                    stacklevel=2,
                )

    def _complete(self, frozen: Self, x: Tensor | None) -> None:
        raw = getattr(frozen.block, "raw_alpha", None)
        if raw is not None:
            raw.copy_(_raised(raw, frozen.floor))
        frozen.floor = 0.0
        frozen.starts = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        starts = state_dict.get(prefix + "starts")
        self.starts = None if starts is None else torch.empty_like(starts, device=self.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@torch.no_grad()
def near_quadratic(net: ICNN) -> ICNN:
    """The network with a tenth of its output and a quadratic beside it, so that f(x) ~ |x|^2 / 2; in place.

    On standard normal x the mean gradient is zero and the mean Laplacian d. Its layers stay as they are.

    Raises:
        ValueError: it has no quadratic of full rank, no linear term, or a strong convexity of 0.9 or more.

    >>> net = near_quadratic(ICNN(2, (16, 16), quadratic_rank=2, seed=0))
    >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((net.emit().gradient(x) - x).norm() < 0.3 * x.norm())
    True
    """
    root, linear = net.root, net.linear
    if root is None or linear is None or len(root) < net.dim or net.strong_convexity >= 0.9:
        raise ValueError(
            f"a start near |x|^2 / 2 needs quadratic_rank={net.dim}, skip=True and strong_convexity below 0.9"
        )
    x = torch.randn(4096, net.dim, generator=generator_on(seed=0)).to(root)
    net.outer.mul_(_SHARE)
    root.zero_()
    linear.sub_(net.emit().gradient(x).mean(0))
    left = 1 - float(net.emit().laplacian(x).mean()) / net.dim
    root.diagonal().fill_(math.sqrt(max(left, 0.01)))
    return net


def _raised(raw: Tensor, floor: float) -> Tensor:
    """What softplus takes to floor + softplus(raw)."""
    alpha = floor + nn.functional.softplus(raw)
    return alpha + torch.log(-torch.expm1(-alpha))


def _conjugates(
    potential: Potential, w: Tensor, conjugates: bool = True, tolerance: float | None = None
) -> Solution:
    """Conjugates or inverses at w, so many rows at a time that large samples fit."""
    solve = potential.conjugate if conjugates else potential.inverse
    parts = [solve(rows, tolerance=tolerance) for rows in w.split(_CHUNK)]
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        field.name: torch.cat(found)
        for field in dataclasses.fields(Solution)
        if isinstance((found := [getattr(part, field.name) for part in parts])[0], Tensor)
    }
    return Solution(iterations=max(part.iterations for part in parts), **joined)


def _bounds(found: Solution) -> tuple[Tensor, Tensor]:
    """The lower and upper bounds of conjugates, (M,) each."""
    if found.value is None or found.upper is None:
        raise ValueError("a solution without values is no conjugate")
    return found.value, found.upper
