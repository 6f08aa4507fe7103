"""Checks of a trained or hand-written network: non-negative weights, convexity, closed-form derivatives.

They take anybody's network, not only this library's, and belong in a test suite: each raises ``CheckFailed``
with what it found, and returns a result otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.checks import check_samples

__all__ = [
    "CheckFailed",
    "ConvexityResult",
    "DerivativesResult",
    "NonnegativeResult",
    "check_convex",
    "check_derivatives",
    "check_nonnegative",
]

Function = Callable[[Tensor], Tensor]

_DERIVATIVES = ("gradient", "hessian", "laplacian", "hvp", "logdet")

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


class CheckFailed(AssertionError):
    """A check found what it looks for; ``result`` holds the finding.

    >>> try:
    ...     check_nonnegative({"w": torch.tensor([0.5, -0.25])})
    ... except CheckFailed as failure:
    ...     failure.result.index
    (1,)
    """

    def __init__(self, message: str, result: ConvexityResult | DerivativesResult | NonnegativeResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class NonnegativeResult:
    """The smallest constrained weight.

    Attributes:
        nonnegative: no weight is negative or NaN.
        smallest: the smallest weight, or NaN if there is one.
        name: the tensor that holds it.
        index: where in that tensor.
        checked: how many weights were looked at.

    >>> check_nonnegative({"w": torch.tensor([0.5, 0.25])})
    NonnegativeResult(nonnegative=True, smallest=0.25, name='w', index=(1,), checked=2)
    """

    nonnegative: bool
    smallest: float
    name: str
    index: tuple[int, ...]
    checked: int


@dataclass(frozen=True, eq=False)
class ConvexityResult:
    """The smallest curvature that the search met.

    Attributes:
        convex: no violation was found (which proves nothing: the search looks at finitely many places).
        worst: the smallest v'Hv, or mean curvature along a segment from x - h v to x + h v: negative when
            ``convex`` is false; otherwise what rounding explains counts as zero, and it is not negative.
        point: x, (d,).
        direction: v, (d,), of length one.
        length: h; zero when ``worst`` is v'Hv at x.

    >>> result = check_convex(lambda x: x.square().sum(1), dim=2)
    >>> result.convex, result.worst
    (True, 2.00)
    """

    convex: bool
    worst: float
    point: Tensor
    direction: Tensor
    length: float


@dataclass(frozen=True, eq=False)
class DerivativesResult:
    """Errors of closed forms against automatic differentiation, relative to each derivative's largest entry.

    Attributes:
        errors: the worst error by name of derivative.
        worst: the name with the largest error.
        point: where, (d,).

    >>> result = check_derivatives(lambda x: x.square().sum(1), gradient=lambda x: 2 * x, dim=2)
    >>> result.errors["gradient"] < 1e-15
    True
    """

    errors: Mapping[str, float]
    worst: str
    point: Tensor


def check_nonnegative(
    weights: nn.Module | Mapping[str, Tensor] | Any, names: Sequence[str] | None = None
) -> NonnegativeResult:
    """Check that no weight that must be non-negative is negative or NaN.

    Args:
        weights: an architecture (its ``nonnegative`` names say which), a ``Potential``, any module that holds
            some of these, such as a frozen task, or a dict of tensors, all of which are then checked.
            A weight source is checked by what it emits.
        names: the tensors to check instead, by their names in the module's ``state_dict`` or the dict; needed
            for a module of your own.

    Raises:
        CheckFailed: with the name, place and value of the smallest weight.
        ValueError: there is no tensor of such a name, or nothing to check was found.
        TypeError: something else than a module, a potential or a dict of tensors.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(1.0)[1, 2] = -0.25
        >>> check_nonnegative(net, names=["weight"])
        Traceback (most recent call last):
        ...
        convexlift.testing.CheckFailed: 'weight' must be non-negative; it is -0.25 at (1, 2)
    """
    checked, worst = 0, None
    for name, tensor in _constrained(weights, names):
        flat = tensor.detach().flatten()
        checked += flat.numel()
        if not flat.numel():
            continue
        # argmin takes a NaN for the smallest.
        place = int(flat.argmin())
        value = float(flat[place])
        if worst is None or not value >= worst[0]:
            worst = value, name, _unravel(place, tensor.shape)
            if math.isnan(value):
                break
    if worst is None:
        raise ValueError("found no weights that are declared non-negative; pass names=")
    value, name, index = worst
    result = NonnegativeResult(value >= 0, value, name, index, checked)
    if not result.nonnegative:
        where = f" at {index}" if index else ""
        raise CheckFailed(f"{name!r} must be non-negative; it is {value:g}{where}", result)
    return result


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
    if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
        raise ValueError(f"scales must be positive; got {tuple(scales)}")
    f, centres = _precise(f, dim, points)
    with torch.enable_grad():
        search = _Search(f, centres, scales, torch.Generator().manual_seed(seed))
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


def check_derivatives(
    f: Any,
    gradient: Function | None = None,
    hessian: Function | None = None,
    laplacian: Function | None = None,
    hvp: Callable[[Tensor, Tensor], Tensor] | None = None,
    logdet: Function | None = None,
    *,
    dim: int,
    points: Tensor | None = None,
    names: Sequence[str] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    raises: bool = True,
) -> DerivativesResult:
    """Compare closed-form derivatives of f with automatic differentiation of its values.

    The error of a derivative is its largest deviation over the points, divided by its largest entry (by at
    least one for the log-determinant, which may be zero).

    Args:
        f: (N, d) -> (N,), twice differentiable. The methods ``gradient``, ``hessian``, ``laplacian``, ``hvp``
            and ``logdet`` of a ``Potential``, or of an object like one, are checked if none is passed; of an
            architecture or a weight source, those of the potential that it emits.
        gradient: (N, d) -> (N, d).
        hessian: (N, d) -> (N, d, d).
        laplacian: (N, d) -> (N,).
        hvp: x (N, d) and v (N, d) -> (N, d).
        logdet: (N, d) -> (N,), the logarithm of the Hessian's determinant.
        dim: d.
        points: (N, d), where to compare; 7 standard normal points when omitted.
        names: which of the object's methods to check; all it has when omitted.
        tolerance: the largest error allowed; 1e-10, or 1e-3 if f takes only float32.
        seed: seed of the points and of v.
        raises: raise on a deviation, rather than return it.

    Raises:
        CheckFailed: a derivative deviates; with its name, error and point.
        ValueError: there is nothing to check, or a result has another shape.
        TypeError: f does not return a tensor.

    Example:
        >>> check_derivatives(lambda x: x.exp().sum(1), hessian=lambda x: x.exp().diag_embed() * 1.1, dim=2)
        Traceback (most recent call last):
        ...
        convexlift.testing.CheckFailed: hessian is off by 0.1 of its largest entry at x = [1.541, -0.2934]
    """
    given = {"gradient": gradient, "hessian": hessian, "laplacian": laplacian, "hvp": hvp, "logdet": logdet}
    closed: dict[str, Callable[..., Any]] = {name: form for name, form in given.items() if form is not None}
    if not closed:
        emit = getattr(f, "emit", None)
        f = _double(emit() if callable(emit) else f)
        closed = _methods(f, _DERIVATIVES if names is None else names, required=names is not None)
    elif names is not None:
        raise ValueError("names= chooses among the methods of f; it does not go with closed forms passed")
    value: Function = f.value if hasattr(f, "value") else f

    generator = torch.Generator().manual_seed(seed)
    if points is None:
        points = torch.randn(7, dim, generator=generator, dtype=torch.float64)
    elif not len(check_samples(points, dim, name="points")):
        raise ValueError("points are empty")
    x = points.detach().double()
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    calls: dict[str, Function] = dict(closed)
    if "hvp" in closed:
        calls["hvp"] = lambda x: closed["hvp"](x, v.to(x))
    dtype = _accepted_dtype(value, x, calls.values())
    x, v = x.to(dtype), v.to(dtype)
    if tolerance is None:
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3

    with torch.enable_grad():
        exact = _automatic(value, x, v, closed)
    errors, rows = {}, {}
    for name, call in calls.items():
        errors[name], rows[name] = _deviation(name, call(x), exact[name])
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    result = DerivativesResult(errors, worst, x[rows[worst]])
    if raises and not errors[worst] <= tolerance:
        error = f"off by {errors[worst]:.3g} of its largest entry"
        raise CheckFailed(f"{worst} is {error} at x = {_digits(result.point)}", result)
    return result


def _constrained(weights: Any, names: Sequence[str] | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weights, Mapping):
        yield from _pick(weights, weights if names is None else names)
    elif isinstance(weights, nn.Module):
        if names is not None:
            yield from _pick(weights.state_dict(keep_vars=True), names)
        else:
            yield from _declared(weights, "")
    elif hasattr(weights, "tensors") and hasattr(weights, "architecture"):
        yield from _pick(weights.tensors, weights.architecture.nonnegative if names is None else names)
    else:
        raise TypeError(f"expected a module, a potential or a dict of tensors; got {type(weights).__name__}")


def _declared(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The constrained weights of the architectures, and of what the weight sources emit, in a module."""
    if hasattr(module, "nonnegative"):
        yield from _pick(dict(module.named_parameters()), module.nonnegative, prefix)
    elif hasattr(module, "emit") and hasattr(module, "names"):
        yield from _pick(module.emit().tensors, module.names, prefix)
    else:
        for name, child in module.named_children():
            yield from _declared(child, f"{prefix}{name}.")


def _pick(
    tensors: Mapping[str, Tensor], names: Sequence[str] | Mapping[str, Tensor], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        if name not in tensors:
            raise ValueError(f"no tensor is named {name!r}; there are: {', '.join(tensors)}")
        yield prefix + name, tensors[name]


def _unravel(place: int, shape: torch.Size) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        place, remainder = divmod(place, size)
        index.append(remainder)
    return tuple(reversed(index))


class _Search:
    """The searches of ``check_convex``. Rows are points; ``level`` (N,) is the index of the scale of each."""

    def __init__(
        self, f: Function, centres: Tensor, scales: Sequence[float], generator: torch.Generator
    ) -> None:
        self.f = f
        self.centres = centres
        self.generator = generator
        spread = float((centres - centres.mean(0)).square().mean().sqrt()) if len(centres) > 1 else 1.0
        self.scales = (spread or 1.0) * torch.tensor(scales, dtype=centres.dtype, device=centres.device)
        # What rounding may do to a value, and to a difference relative to the slope. Some implementations
        # of softplus jump down by 2e-9 where they turn linear, which is not the concavity looked for.
        exact = centres.dtype == torch.float64
        self.rounding = 1e3 * torch.finfo(centres.dtype).eps
        self.chord_tolerance = 1e-5 if exact else 1e-3
        self.slope_tolerance = 1e-9 if exact else 1e-4
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
            noise = self.rounding * (centre.abs() + left.abs() + right.abs())
            noise = noise + self.chord_tolerance * length * torch.maximum(slope, self.usual[level])
            curvature = -2 * torch.where(gap.abs() <= noise, 0, gap) / length.square()
        return self._smallest(middle, half / length[:, None], curvature, length)

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
        curvature = self._clear(rise.flatten(), size.flatten(), level) / (2 * length)
        middle = (points[:, 1:] + points[:, :-1]).flatten(0, 1) / 2
        return self._smallest(middle, v.repeat_interleave(steps, 0), curvature, length)

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
        return confirmed or self._smallest(x, v, bend.clamp_min(0), torch.zeros_like(bend))

    def _confirm(self, x: Tensor, v: Tensor, level: Tensor) -> ConvexityResult | None:
        """The most negative mean curvature along segments about x, if the gradients show it clearly."""
        lengths = torch.logspace(-3, 0, 13, dtype=x.dtype, device=x.device)
        length = (lengths[:, None] * self.scales[level]).flatten()
        x, v, level = x.repeat(len(lengths), 1), v.repeat(len(lengths), 1), level.repeat(len(lengths))
        left, right = (self._gradient(x + sign * length[:, None] * v) for sign in (-1, 1))
        rise = self._clear(((right - left) * v).sum(1), left.norm(dim=1) + right.norm(dim=1), level)
        return self._smallest(x, v, torch.where(rise < 0, rise / (2 * length), math.nan), length)

    def _clear(self, rise: Tensor, size: Tensor, level: Tensor) -> Tensor:
        """Differences of slopes; zero where rounding explains them, given the size of what was subtracted."""
        noise = self.slope_tolerance * torch.maximum(size, self.usual[level])
        return torch.where(rise.abs() <= noise, 0, rise)

    def _smallest(self, x: Tensor, v: Tensor, curvature: Tensor, length: Tensor) -> ConvexityResult | None:
        known = torch.where(curvature.isfinite(), curvature, math.inf).detach()
        row = int(known.argmin())
        worst = float(known[row]) + 0.0  # no negative zero
        if worst == math.inf:
            return None
        return ConvexityResult(worst >= 0, worst, x[row].detach(), v[row].detach(), float(length[row]))

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
        rows = torch.randint(len(self.centres), (len(level),), generator=self.generator).to(level.device)
        factor = self.scales[level, None] * 10 ** (self._uniform(len(level)) - 0.5)
        return self.centres[rows] + factor * self._normal(len(level)), level

    def _directions(self, count: int) -> Tensor:
        v = self._normal(count)
        return v / v.norm(dim=1, keepdim=True)

    def _normal(self, count: int) -> Tensor:
        shape = (count, self.centres.shape[1])
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.centres)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand((count, 1), generator=self.generator, dtype=torch.float64).to(self.centres)


def _precise(f: Any, dim: int, points: Tensor | None) -> tuple[Function, Tensor]:
    """f in float64 if it can be had, and the centres of the search in f's dtype and on its device."""
    f = _double(f)
    centres = torch.zeros(1, dim) if points is None else check_samples(points, dim, name="points").detach()
    tensors = [*f.parameters(), *f.buffers()] if isinstance(f, nn.Module) else []
    device = tensors[0].device if tensors else centres.device
    sample = centres.to(device, torch.float64)
    if len(sample) < 2:
        sample = sample + torch.linspace(-1.0, 1.0, 8, dtype=torch.float64, device=device)[:, None]
    return f, centres.to(device, _accepted_dtype(f, sample[:8]))


def _double(f: Any) -> Any:
    """A float64 copy of a module or of a potential; anything else as it is."""
    if isinstance(f, nn.Module):
        return copy.deepcopy(f).double()
    owner = getattr(f, "__self__", None)
    if isinstance(owner, nn.Module):
        return getattr(_double(owner), f.__name__)
    tensors = getattr(f, "tensors", None)
    if dataclasses.is_dataclass(f) and not isinstance(f, type) and isinstance(tensors, Mapping):
        double = {name: t.detach().double() if t.is_floating_point() else t for name, t in tensors.items()}
        return dataclasses.replace(f, tensors=double)
    return f


def _accepted_dtype(f: Function, x: Tensor, others: Iterable[Function] = ()) -> torch.dtype:
    """float64 if f and the others take it, else float32; refuses an f that is not (N, d) -> (N,) by rows."""
    try:
        values = f(x)
        for other in others:
            other(x)
    except Exception:  # whatever float32 functions raise on float64 points; other faults return below
        x = x.float()
        values = f(x)
    if not isinstance(values, Tensor):
        raise TypeError(f"f must return a tensor; got {type(values).__name__}")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"f must return float32 or float64 values; got {values.dtype}")
    for rows, out in ((len(x), values), (1, f(x[:1]))):
        if out.shape != (rows,):
            sizes = [f"{size}" for size in out.shape]
            if sizes and out.shape[0] == rows:
                sizes[0] = "N"
            raise ValueError(f"expected (N,) values of f; got ({', '.join(sizes)}{',' * (len(sizes) == 1)})")
    slack = (1e-9 if values.dtype == torch.float64 else 1e-4) * values.detach().abs().max()
    if bool((f(x[:1]) - values[:1]).abs() > slack):
        raise ValueError("f gives a point another value alone than in a batch: freeze it first")
    return values.dtype


def _methods(f: Any, names: Sequence[str], required: bool) -> dict[str, Callable[..., Tensor]]:
    found = {}
    for name in names:
        if name in _DERIVATIVES and callable(method := getattr(f, name, None)):
            found[name] = method
    if missing := [name for name in names if required and name not in found]:
        raise ValueError(f"f has no method {missing[0]!r}; known derivatives: {', '.join(_DERIVATIVES)}")
    if not found:
        raise ValueError(f"nothing to check: pass one of {', '.join(_DERIVATIVES)}")
    return found


def _automatic(f: Function, x: Tensor, v: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """The derivatives by automatic differentiation, backward over backward: it takes any f, vmap does not."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True, materialize_grads=True)
    exact = {"gradient": gradient.detach()}
    if set(names) <= set(exact):
        return exact
    rows = [
        torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True, materialize_grads=True)[0]
        for i in range(x.shape[1])
    ]
    hessian = torch.stack(rows, 1)
    sign, logdet = torch.linalg.slogdet(hessian)
    return exact | {
        "hessian": hessian,
        "laplacian": hessian.diagonal(dim1=1, dim2=2).sum(1),
        "hvp": (hessian @ v[:, :, None])[:, :, 0],
        "logdet": torch.where(sign > 0, logdet, math.nan),
    }


def _deviation(name: str, given: Tensor, exact: Tensor) -> tuple[float, int]:
    """The largest error relative to the largest entry, and its row."""
    if given.shape != exact.shape:
        raise ValueError(f"expected {tuple(exact.shape)} from {name}; got {tuple(given.shape)}")
    scale = float(exact.abs().max())
    scale = max(scale, 1.0) if name == "logdet" or scale == 0 else scale
    error = (given.detach() - exact).abs().reshape(len(exact), -1).amax(1)
    row = int(error.argmax())  # argmax takes a NaN for the largest
    return float(error[row]) / scale, row


def _describe(found: ConvexityResult) -> str:
    where = f"x = {_digits(found.point)}"
    if found.length:
        where = f"the segment of half length {found.length:.4g} about {where}"
    return f"curvature {found.worst:.4g} on {where} in direction {_digits(found.direction)}"


def _digits(x: Tensor) -> str:
    """The first entries of a vector, for messages."""
    shown = [f"{entry:.4g}" for entry in x[:8].tolist()]
    return f"[{', '.join([*shown, '...'] if len(x) > 8 else shown)}]"
