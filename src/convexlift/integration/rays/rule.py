"""The integrals of exp(-f(.; c)) over the line or the plane, for many contexts c at once, along rays.

For every context f is convex. From a point near the lowest it rises along each ray, in the end at least
linearly, so a ray may end where f is D higher: that leaves out a share of about exp(-D). In coordinates in
which f is about round a few evenly spaced rays suffice, with Gauss-Legendre nodes on each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.integration.line import DROP
from convexlift.integration.rules import legendre

MAX_POINTS = 2**18  # evaluated at a time where no gradient is asked for
NODES = 16  # of a panel
# Angles in the plane and panels of a ray: the rules tried in turn.
_RULES = ((16, 1), (32, 2), (64, 4), (128, 8), (256, 16))
_TOLERANCE = 1e-6  # change of log Z between two rules that ends the refinement
_UNSETTLED = 0.01  # change of log Z between the last two rules that is refused
_LEVEL = 3.0  # height above the centre at which the shape of exp(-f) in the plane is measured
_SEARCH = 100


@final
@dataclass(frozen=True, eq=False)
class Family:
    """The functions x -> f(x; c) for R contexts, convex on the line (d = 1) or the plane (d = 2).

    `value` maps points (R, M, d), M for each context, to f there, (R, M). `centre` (R, d) is a point near the
    lowest of each, and `hessian` (R, d, d) the second derivatives there. `rows` (R,) are the numbers by which
    messages name the contexts.
    """

    value: Callable[[Tensor], Tensor]
    centre: Tensor
    hessian: Tensor
    rows: Tensor

    @property
    def dim(self) -> int:
        """d, the dimension of the points."""
        return self.centre.shape[1]


@guarded
@torch.no_grad()
def ray_rule(family: Family, angles: int = 16, panels: int = 1, drop: float = 25.0) -> tuple[Tensor, Tensor]:
    """Points (R, M, d) and log weights (R, M), so that log Z = logsumexp(log weights - f(points), 1).

    The rays start at the centre, two on the line and `angles` in the plane, and end where f is `drop` higher.
    Each has `panels` panels of 16 nodes. The rule is right at any centre; near the lowest point it is
    efficient. The points are ordered ray by ray.

    Raises FloatingPointError when f is not a number somewhere or does not rise.

    >>> mean = torch.tensor([[0.0], [5.0]])
    >>> family = Family(
    ...     lambda x: (x - mean[:, None]).square().sum(2) / 2, mean, torch.ones(2, 1, 1), torch.arange(2)
    ... )
    >>> points, log_weights = ray_rule(family)
    >>> torch.logsumexp(log_weights - family.value(points), 1)  # log(2 pi) / 2
    tensor([0.9189, 0.9189])
    """
    unit = unit_vectors(family.dim, angles, family.centre)
    directions, log_volume = whitened(family, unit.expand(len(family.centre), -1, -1))
    ends = ray_ends(family, directions, drop)
    rule, weights = _legendre(panels, ends.dtype, ends.device)
    radii = ends.unsqueeze(2) * rule
    arc = 1.0 if family.dim == 1 else 2 * math.pi / angles
    log_weights = (ends.unsqueeze(2) * weights * radii ** (family.dim - 1) * arc).log()
    points = along(family.centre, directions, radii)
    return points, (log_weights + log_volume[:, None, None]).flatten(1)


@guarded
@torch.no_grad()
def log_integrals(family_of: Callable[[Tensor], Family], rows: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """log Z of every context in `rows` (R,), and how far it may be off, both (R,) in float64.

    `family_of` gives the functions of some of the rows, so that at most about 260,000 points are evaluated at
    a time. Rays end where f is 40 higher. The rule is refined until log Z changes by less than 1e-6, or to
    256 angles and 16 panels a ray; the last change is the error.

    Raises FloatingPointError as `ray_rule` does, and when log Z still changes by more than 0.01 at the finest
    rule.

    >>> scale = torch.tensor([0.5, 3.0], dtype=torch.float64)
    >>> def gaussians(rows):
    ...     s = scale[rows]
    ...     return Family(
    ...         lambda x: (x / s[:, None, None]).square().sum(2) / 2,
    ...         torch.zeros(len(rows), 2, dtype=torch.float64),
    ...         torch.eye(2, dtype=torch.float64) / s[:, None, None].square(),
    ...         rows,
    ...     )
    >>> log_z, error = log_integrals(gaussians, torch.arange(2), dim=2)
    >>> bool((log_z - (2 * math.pi * scale.square()).log()).abs().max() < 1e-9)
    True
    """
    log_z = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    error = torch.full_like(log_z, torch.inf)
    for step, (angles, panels) in enumerate(_RULES):
        unsettled = torch.nonzero(~(error <= _TOLERANCE)).flatten()
        size = max(1, MAX_POINTS // ((2 if dim == 1 else angles) * panels * NODES))
        for some in unsettled.split(size) if len(unsettled) else ():
            family = family_of(rows[some])
            points, log_weights = ray_rule(family, angles, panels, DROP)
            finer = torch.logsumexp(log_weights - family.value(points), 1).double()
            if step:
                error[some] = (finer - log_z[some]).abs()
            log_z[some] = finer
    if len(error) and not bool(error.max() <= _UNSETTLED):
        worst = int(error.argmax())
        raise FloatingPointError(
            f"the integral of exp(-f) did not settle: log Z still changes by {float(error[worst]):.2g} "
            f"between the two finest rules for context {int(rows[worst])}"
        )
    return log_z, error + math.exp(-DROP)


def whitened(family: Family, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Rays B v (R, K, d) for unit vectors v (R, K, d), and log det B (R,), so that f(centre + B t) is round.

    B = L^{-T} with H = L L' the Hessian at the centre. A kink there makes it too narrow in one direction, so
    in the plane B is corrected by the second moments of the set where f is not more than 3 above the centre.
    """
    factor, info = torch.linalg.cholesky_ex(family.hessian)
    diagonal = family.hessian.diagonal(dim1=1, dim2=2).sqrt()
    factor = torch.where((info > 0)[:, None, None], diagonal.diag_embed(), factor)
    log_volume = -factor.diagonal(dim1=1, dim2=2).log().sum(1)
    if family.dim == 2:
        circle = unit_vectors(2, 16, family.centre).expand(len(family.centre), -1, -1)
        radii = ray_ends(family, _solve(factor, circle), _LEVEL)
        shares = radii.double() ** 4 / (2 * _LEVEL * radii.double().square().sum(1, keepdim=True))
        moments = torch.einsum("rk,rki,rkj->rij", shares, circle.double(), circle.double())
        shape = torch.linalg.cholesky(2 * moments).to(family.centre)  # the identity for a quadratic f
        unit = unit @ shape.mT
        log_volume = log_volume + shape.diagonal(dim1=1, dim2=2).log().sum(1)
    return _solve(factor, unit), log_volume


def _solve(factor: Tensor, unit: Tensor) -> Tensor:
    """L^{-T} v for vectors v in rows."""
    return torch.linalg.solve_triangular(factor.mT, unit.mT, upper=True).mT


def ray_ends(family: Family, directions: Tensor, drop: float) -> Tensor:
    """How far along each ray (R, K) f is at least `drop`, and not much more, above its value at the centre.

    Raises FloatingPointError when f is not a number on the way, or does not rise.
    """
    centre = family.centre[:, None]
    base = family.value(centre)

    def rise(radii: Tensor) -> Tensor:
        out = family.value(centre + radii.unsqueeze(2) * directions) - base
        if bool(out.isnan().any()):
            row = int(family.rows[out.isnan().any(1)][0])
            raise FloatingPointError(f"cannot integrate exp(-f): f is not a number for context {row}")
        return out

    near = torch.zeros_like(directions[..., 0])
    far = torch.full_like(near, math.sqrt(2 * drop))  # right for a quadratic f
    height = rise(far)
    for _ in range(_SEARCH):
        short = height < drop
        if not bool(short.any()):
            break
        # By convexity f reaches the drop at the latest where its chord does.
        factor = (1.01 * drop / height.clamp_min(drop / 8)).clamp_min(1.05)
        near, far = torch.where(short, far, near), torch.where(short, far * factor, far)
        height = rise(far)
    else:
        row = int(family.rows[(height < drop).any(1)][0])
        raise FloatingPointError(f"cannot integrate exp(-f): f does not rise for context {row}")
    for _ in range(12):
        loose = height > 1.2 * drop
        if not bool(loose.any()):
            break
        step = far * (1.05 * drop / height).sqrt()  # right for a quadratic f
        trial = torch.maximum(step, near + 0.1 * (far - near)).minimum(far - 0.1 * (far - near))
        reached = rise(trial)
        near = torch.where(loose & (reached < drop), trial, near)
        closer = loose & (reached >= drop)
        far, height = torch.where(closer, trial, far), torch.where(closer, reached, height)
    return far


def along(centre: Tensor, directions: Tensor, radii: Tensor) -> Tensor:
    """The points at the radii (R, K, J) of each ray (R, K, d), (R, K J, d)."""
    return (centre[:, None, None] + radii.unsqueeze(3) * directions.unsqueeze(2)).flatten(1, 2)


def unit_vectors(dim: int, angles: int, like: Tensor) -> Tensor:
    """(K, d): both directions of the line, or evenly spaced angles of the plane."""
    if dim == 1:
        return like.new_tensor([[-1.0], [1.0]])
    return on_circle(torch.arange(angles, dtype=like.dtype, device=like.device) * (2 * math.pi / angles))


def on_circle(angle: Tensor) -> Tensor:
    """The unit vectors (..., 2) at angles (...)."""
    return torch.stack([angle.cos(), angle.sin()], -1)


@lru_cache(maxsize=32)
@guarded
def _legendre(panels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each (16 P,), of composite Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = legendre(NODES, torch.float64, torch.device("cpu"))
    starts = torch.arange(panels, dtype=torch.float64, device="cpu")[:, None]
    nodes = ((nodes + 1) / 2 + starts).flatten() / panels
    return nodes.to(device, dtype), (weights / (2 * panels)).repeat(panels).to(device, dtype)
