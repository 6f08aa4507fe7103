"""Is a function convex? A search for a point and a direction of negative curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.checks import check_samples
from convexlift.seeds import generator_on
from convexlift.testing.precision import accepted_dtype, digits, double
from convexlift.testing.results import CheckFailed, ConvexityResult, Function
from convexlift.testing.rounding import INTERVALS, concavity, fall, is_stepped, noise, shake

# Up to this dimension the search for a direction of negative curvature forms whole Hessians.
_WHOLE_HESSIAN = 32
# Power iterations for that direction above it.
_POWER_STEPS = 30
# Random chords tried at each scale, lines, and the points on each.
_CHORDS = 1024
_LINES = 8
_LINE_POINTS = 513
# Steps of the gradient search from the most promising starts, and how many of those there are at each scale.
_STEPS = 60
_FINALISTS = 16
# Suspects of each search and scale that are held against rounding: so many of the most negative, and so many
# of those that stand out most; on lines so many times as long as the segment on which they were found.
_SUSPECTS = 8
_ZOOMS = (16.0, 4.0, 1.0, 1 / 4, 1 / 16)
# How many deviations of the rounding a violation must measure, in values and in slopes (a fall is the largest
# difference of 257 numbers, so noise alone makes it several deviations).
_CLEAR_VALUES = 10
_CLEAR_SLOPES = 20


@guarded
def check_convex(
    f: nn.Module | Function,
    *,
    dim: int,
    points: Tensor | None = None,
    scales: Sequence[float] = (0.1, 1.0, 10.0, 100.0, 1000.0),
    starts: int = 256,
    seed: int = 0,
    raises: bool = True,
) -> ConvexityResult:
    """Search for a point and a direction along which f curves downwards; a black box, for anybody's network.

    Three searches at every scale: for x and v with v'H(x)v < 0, from random x and the eigenvectors of the
    smallest eigenvalues (networks with second derivatives); for a chord below the function,
    f(x) > (f(x - h v) + f(x + h v)) / 2, at short and long ranges; and for a slope that falls along a line.
    The best starts of the first two are improved by gradient steps. Before it counts, negative curvature must
    show in the gradients at a distance, and nothing counts that rounding explains.

    A module is checked in float64 (on a copy). Another callable is, too, if it takes float64 points;
    otherwise it is checked in float32, less sharply. Passing proves nothing, failing does. A function with
    wrong weights may well be convex all the same: ``check_nonnegative`` looks at the weights.

    Args:
        f: (N, d) -> (N,), row by row. It need not be differentiable, but the search is weaker then.
        dim: d.
        points: (M, d), where to look; the starts lie about these, spread by ``scales`` times their deviation.
            The origin with deviation one when omitted.
        scales: distances of the starts from the points.
        starts: starts of the curvature search at each scale.
        seed: seed of the starts.
        raises: raise on a violation, rather than return it.

    Raises:
        CheckFailed: f is not convex; with the point, direction and curvature.
        ValueError: f returns something else than (N,) values, mixes rows, or is finite nowhere.
        TypeError: f does not return a tensor.

    Example:
        >>> ramps = lambda x: x.relu().sum(1)
        >>> check_convex(ramps, dim=3).convex
        True
        >>> check_convex(lambda x: ramps(x) - 0.1 * (x[:, 0] - x[:, 1]).relu(), dim=3, raises=False).convex
        False
    """
    if not len(scales) or not all(scale > 0 and math.isfinite(scale) for scale in scales):
        raise ValueError(f"scales must be positive; got {tuple(scales)}")
    f, centres = _precise(f, dim, points)
    with torch.enable_grad():
        search = _Search(f, centres, scales, generator_on(seed=seed))
        found = [search.chords()]
        if search.differentiable:
            found.append(search.slopes())
        if search.smooth:
            found.append(search.curvature(starts))
    finite = [result for result in found if result is not None]
    if not finite:
        raise ValueError("f has no finite values where the search looks; pass points= or smaller scales=")
    result = min(finite, key=lambda result: result.worst)
    if raises and not result.convex:
        raise CheckFailed(f"f is not convex: {_describe(result)}", result)
    return result


@final
class _Search:
    """The searches of ``check_convex``. Rows are points; ``level`` (N,) is the index of the scale of each."""

    def __init__(
        self, f: Function, centres: Tensor, scales: Sequence[float], generator: torch.Generator | None
    ) -> None:
        self.f = f
        self.centres = centres
        self.generator = generator
        spread = float((centres - centres.mean(0)).square().mean().sqrt()) if len(centres) > 1 else 1.0
        self.scales = (spread or 1.0) * torch.tensor(scales, dtype=centres.dtype, device=centres.device)
        # What a first look lets pass, relative to values and to slopes. Some implementations of softplus jump
        # down by 2e-9 where they turn linear, which is not the concavity looked for.
        self.exact = centres.dtype == torch.float64
        self.rounding = 4 * torch.finfo(centres.dtype).eps
        self.chord_tolerance = 1e-5
        self.slope_tolerance = 1e-9 if self.exact else 1e-6
        self.differentiable, self.smooth = self._probe()
        self.usual = self._usual_slope()

    def chords(self) -> ConvexityResult | None:
        """The worst of random chords and of the best of them after gradient steps; None if none is finite."""
        middle, level = self._starts(_CHORDS)
        half = self._directions(len(level)) * self.scales[level, None]
        half = half * 10 ** (2 * self._uniform(len(level)) - 2)
        if self.differentiable:
            best = self._best(self._bulge(middle, half))
            better = self._improve(lambda m, h: -self._bulge(m, h), middle[best], half[best], level[best])
            middle, half = torch.cat([middle, better[0]]), torch.cat([half, better[1]])
            level = torch.cat([level, level[best]])
        with torch.no_grad():
            length = half.norm(dim=1)
            centre, left, right = (self.f(x) for x in (middle, middle - half, middle + half))
            gap = centre - (left + right) / 2
            slope = torch.maximum((centre - left).abs(), (centre - right).abs()) / length
            passed = self.rounding * (centre.abs() + left.abs() + right.abs())
            passed = passed + self.chord_tolerance * length * torch.maximum(slope, self.usual[level])
            curvature = -2 * torch.where(gap.abs() <= passed, 0, gap) / length.square()
        return self._smallest(middle, half / length[:, None], curvature, length, level, gap / passed)

    def slopes(self) -> ConvexityResult | None:
        """The largest fall of the slope from point to point of random lines, which meet each kink alone."""
        x, level = self._starts(_LINES)
        v = self._directions(len(x))
        place = torch.linspace(-3, 3, _LINE_POINTS, dtype=x.dtype, device=x.device)
        points = x[:, None] + place[:, None] * (self.scales[level, None] * v)[:, None]
        gradient = self._gradient(points.flatten(0, 1)).view_as(points)
        rise = ((gradient[:, 1:] - gradient[:, :-1]) * v[:, None]).sum(2)
        size = gradient[:, 1:].norm(dim=2) + gradient[:, :-1].norm(dim=2)
        steps = rise.shape[1]
        level = level.repeat_interleave(steps)
        length = (place[1] - place[0]) / 2 * self.scales[level]
        rise, excess = self._clear(rise.flatten(), size.flatten(), level)
        middle = (points[:, 1:] + points[:, :-1]).flatten(0, 1) / 2
        return self._smallest(
            middle, v.repeat_interleave(steps, 0), rise / (2 * length), length, level, excess
        )

    def curvature(self, starts: int) -> ConvexityResult | None:
        """The worst v'Hv, first over v at random x, then over both by gradient steps."""
        x, level = self._starts(starts)
        v = self._downward(x)
        best = self._best(-self._share(x, v))
        better = self._improve(self._share, x[best], v[best], level[best])
        x, v = torch.cat([x[best], better[0], x]), torch.cat([v[best], better[1], v])
        v = v / v.norm(dim=1, keepdim=True)
        bend = (v * self._product(x, v)).sum(1)
        finalists = 2 * len(best)
        confirmed = self._confirm(x[:finalists], v[:finalists], level[best].repeat(2))
        return confirmed or _smallest(x, v, bend.clamp_min(0), torch.zeros_like(bend))

    def _confirm(self, x: Tensor, v: Tensor, level: Tensor) -> ConvexityResult | None:
        """The most negative mean curvature along segments about x, if the gradients show it clearly."""
        lengths = torch.logspace(-3, 0, 13, dtype=x.dtype, device=x.device)
        length = (lengths[:, None] * self.scales[level]).flatten()
        x, v, level = x.repeat(len(lengths), 1), v.repeat(len(lengths), 1), level.repeat(len(lengths))
        left, right = (self._gradient(x + sign * length[:, None] * v) for sign in (-1, 1))
        size = left.norm(dim=1) + right.norm(dim=1)
        rise, excess = self._clear(((right - left) * v).sum(1), size, level)
        curvature = torch.where(rise < 0, rise / (2 * length), math.nan)
        found = self._smallest(x, v, curvature, length, level, excess)
        return found if found is not None and not found.convex else None

    def _clear(self, rise: Tensor, size: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Differences of slopes, zero where they are small for what was subtracted; and how far they fall."""
        passed = self.slope_tolerance * torch.maximum(size, self.usual[level])
        return torch.where(rise.abs() <= passed, 0, rise), -rise / passed

    def _smallest(
        self, x: Tensor, v: Tensor, curvature: Tensor, length: Tensor, level: Tensor, excess: Tensor
    ) -> ConvexityResult | None:
        """The smallest curvature, where zero stands for what rounding explains; None if none is finite.

        Negative ones are held against rounding where they are largest and where their ``excess`` is.
        """
        known = torch.where(curvature.isfinite(), curvature, math.inf).detach()
        suspects = []
        for scale in level.unique():
            rows = ((known < 0) & (level == scale)).nonzero()[:, 0]
            for order in (known[rows], -excess.detach()[rows]):
                suspects.append(rows[order.argsort()[:_SUSPECTS]])
        rows = torch.cat(suspects).unique()
        held = torch.zeros_like(known, dtype=torch.bool)
        if len(rows):
            held[rows] = self._exceeds_rounding(x[rows], v[rows], length[rows])
        return _smallest(x, v, torch.where((known < 0) & ~held, 0, known), length)

    def _exceeds_rounding(self, x: Tensor, v: Tensor, length: Tensor) -> Tensor:
        """Whether f is concave beyond what its rounding explains on a line about x along v, (N,).

        In values; in double precision in slopes too, which show a little curvature far from the origin. In
        single precision their errors are no noise: where log-sum-exp is large they drift by units of its last
        place.
        """
        place = torch.linspace(-1, 1, INTERVALS + 1, dtype=x.dtype, device=x.device)
        exceeds = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for zoom in _ZOOMS:
            along = zoom * length[:, None, None] * place[:, None] * v[:, None]
            points = (x[:, None] + along).detach()
            with torch.no_grad():
                values, others = (self.f(p.flatten(0, 1)).view(p.shape[:2]) for p in (points, shake(points)))
            exceeds |= concavity(values) > _CLEAR_VALUES * noise(values, others)
            if self.exact and self.differentiable:
                slopes, others = (
                    (self._gradient(p.flatten(0, 1)).view_as(p) @ v[:, :, None])[:, :, 0]
                    for p in (points, shake(points))
                )
                # Steps of slopes may be those of a function of planes: of these the values tell.
                exceeds |= (fall(slopes) > _CLEAR_SLOPES * noise(slopes, others)) & ~is_stepped(slopes)
        return exceeds

    def _bulge(self, middle: Tensor, half: Tensor) -> Tensor:
        """How far f at the middle lies above the chord, over the length; positive only if f is not convex."""
        gap = self.f(middle) - (self.f(middle - half) + self.f(middle + half)) / 2
        return gap / half.norm(dim=1)

    def _share(self, x: Tensor, v: Tensor) -> Tensor:
        """v'Hv / |Hv|, (N,), free of the curvature's magnitude, which may differ by many orders over x.

        Where it is negative, -1 - log(-v'Hv) stands for it: then gradient steps make the curvature large.
        """
        v = v / v.norm(dim=1, keepdim=True)
        product = self._product(x, v)
        bend = (v * product).sum(1)
        size = -1 - (-bend).clamp_min(torch.finfo(x.dtype).tiny).log()
        return torch.where(bend < 0, size, bend / product.norm(dim=1))

    def _downward(self, x: Tensor) -> Tensor:
        """For each x a direction of the smallest curvature, (N, d): exact in few dimensions."""
        dim, tiny = x.shape[1], torch.finfo(x.dtype).tiny
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.f(x).sum(), x, create_graph=True)

        def product(v: Tensor) -> Tensor:
            along = (gradient * v).sum()
            (bend,) = torch.autograd.grad(along, x, retain_graph=True, materialize_grads=True)
            return bend.nan_to_num(0, 0, 0)

        if dim <= _WHOLE_HESSIAN:
            basis = torch.eye(dim, dtype=x.dtype, device=x.device)
            hessian = torch.stack([product(e.expand_as(x)) for e in basis], 1)
            hessian = hessian / hessian.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
            hessian = torch.where(hessian.abs() < 1e-30, 0, hessian + hessian.mT)  # for eigh to converge
            return torch.linalg.eigh(hessian).eigenvectors[..., 0]
        v, largest = self._directions(len(x)), torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)
        for _ in range(_POWER_STEPS):
            change = product(v)
            largest = torch.maximum(largest, change.norm(dim=1, keepdim=True))
            v = v - change / largest.clamp_min(tiny)
            v = v / v.norm(dim=1, keepdim=True).clamp_min(tiny)
        return v

    def _improve(
        self, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, v: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adam on each row's loss, in steps that fit x's scale and v's length; bad gradients move nothing."""
        units = self.scales[level, None], v.norm(dim=1, keepdim=True)
        moves = [torch.zeros_like(x, requires_grad=True), torch.zeros_like(v, requires_grad=True)]
        optimiser = torch.optim.Adam(moves, lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=_STEPS)

        def moved() -> tuple[Tensor, Tensor]:
            return x + units[0] * moves[0], v + units[1] * moves[1]

        for _ in range(_STEPS):
            gradients = torch.autograd.grad(loss(*moved()).sum(), moves, materialize_grads=True)
            for move, gradient in zip(moves, gradients, strict=True):
                move.grad = gradient.nan_to_num(0, 0, 0)
            optimiser.step()
            schedule.step()
        x, v = moved()
        return x.detach(), v.detach()

    def _best(self, score: Tensor) -> Tensor:
        """Rows of the largest scores at each scale."""
        score = torch.where(score.isfinite(), score, -math.inf).view(len(self.scales), -1)
        count = score.shape[1]
        first = torch.arange(len(score), device=score.device)[:, None] * count
        return (first + score.topk(min(_FINALISTS, count)).indices).flatten()

    def _gradient(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(self.f(x).sum(), x, materialize_grads=True)[0]

    def _product(self, x: Tensor, v: Tensor) -> Tensor:
        """H(x) v, with a graph where x has one."""
        graph = x.requires_grad
        x = x if graph else x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.f(x).sum(), x, create_graph=True)
        return torch.autograd.grad((gradient * v).sum(), x, create_graph=graph, materialize_grads=True)[0]

    def _probe(self) -> tuple[bool, bool]:
        """Whether f has a gradient, and second derivatives that are not zero everywhere."""
        x, _ = self._starts(32)
        if not self.f(x.requires_grad_(True)).requires_grad:
            return False, False
        try:
            return True, bool((self._product(x.detach(), self._directions(len(x))) != 0).any())
        except RuntimeError:  # differentiable once only
            return True, False

    def _usual_slope(self) -> Tensor:
        """The median slope of short chords at each scale; below it, differences are held to its rounding."""
        x, level = self._starts(128)
        length = 0.01 * self.scales[level]
        with torch.no_grad():
            slope = (self.f(x + length[:, None] * self._directions(len(x))) - self.f(x)).abs() / length
        slope = torch.where(slope.isfinite(), slope, math.nan)
        return slope.view(len(self.scales), -1).nanmedian(1).values.nan_to_num(0.0)

    def _starts(self, count: int) -> tuple[Tensor, Tensor]:
        """So many normal points at each scale, at distances within a factor three of it, and their levels."""
        level = torch.arange(len(self.scales), device=self.centres.device).repeat_interleave(count)
        rows = torch.randint(len(self.centres), (len(level),), generator=self.generator, device="cpu").to(
            level.device
        )
        factor = self.scales[level, None] * 10 ** (self._uniform(len(level)) - 0.5)
        return self.centres[rows] + factor * self._normal(len(level)), level

    def _directions(self, count: int) -> Tensor:
        v = self._normal(count)
        return v / v.norm(dim=1, keepdim=True)

    def _normal(self, count: int) -> Tensor:
        shape = (count, self.centres.shape[1])
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu").to(
            self.centres
        )

    def _uniform(self, count: int) -> Tensor:
        return torch.rand((count, 1), generator=self.generator, dtype=torch.float64, device="cpu").to(
            self.centres
        )


def _precise(f: Any, dim: int, points: Tensor | None) -> tuple[Function, Tensor]:
    """f in float64 if it can be had, and the centres of the search in f's dtype and on its device."""
    f = double(f)
    centres = (
        torch.zeros(1, dim, dtype=torch.float32, device="cpu")
        if points is None
        else check_samples(points, dim, name="points").detach()
    )
    tensors = [*f.parameters(), *f.buffers()] if isinstance(f, nn.Module) else []
    device = tensors[0].device if tensors else centres.device
    sample = centres.to(device, torch.float64)
    if len(sample) < 2:
        sample = sample + torch.linspace(-1.0, 1.0, 8, dtype=torch.float64, device=device)[:, None]
    dtype = accepted_dtype(f, sample[:8])
    return (lambda x: f(x).to(dtype)), centres.to(device, dtype)


def _smallest(x: Tensor, v: Tensor, curvature: Tensor, length: Tensor) -> ConvexityResult | None:
    known = torch.where(curvature.isfinite(), curvature, math.inf).detach()
    row = int(known.argmin())
    worst = float(known[row]) + 0.0  # no negative zero
    if worst == math.inf:
        return None
    return ConvexityResult(worst >= 0, worst, x[row].detach(), v[row].detach(), float(length[row]))


def _describe(found: ConvexityResult) -> str:
    where = f"x = {digits(found.point)}"
    if found.length:
        where = f"the segment of half length {found.length:.4g} about {where}"
    return f"curvature {found.worst:.4g} on {where} in direction {digits(found.direction)}"
