"""Where exp(-f) has its mass in the plane, for convex f.

The set where f is within D of its lowest value is convex, so rays from any point inside find it, its moments
give its principal axes, and a box along them, or a parallelogram along the kinks of f, holds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.checks import name_dtype
from convexlift.integration.line import DROP, REACH, Function
from convexlift.integration.plane.parallelograms import border

_RAYS = 32
_ROUNDS = 100


@final
@dataclass(frozen=True, eq=False)
class Support:
    """A low point (2,), f there, points (K, 2) where f is DROP higher, principal directions (2, 2)."""

    lowest: Tensor
    bottom: Tensor
    corners: Tensor
    directions: Tensor


def find_support(
    value: Function, guess: Tensor | None, dtype: torch.dtype, device: torch.device | str
) -> Support:
    """Where f is less than DROP above its lowest value.

    Rays from the lowest point known find the level set; its centre of mass is a lower point still, and its
    covariance makes the frame in which the next rays are even. Repeated until the set is round in that frame.
    """
    eps = torch.finfo(dtype).eps
    name = name_dtype(dtype)
    angles = torch.arange(_RAYS, dtype=torch.float64, device=device) * (2 * math.pi / _RAYS)
    rays = torch.stack([angles.cos(), angles.sin()], dim=1)
    unit = torch.eye(2, dtype=torch.float64, device=device)
    if guess is None:
        lowest, frame = torch.zeros_like(unit[0]), unit
    else:
        lowest, frame = guess[:2].double(), guess[2:].double().view(2, 2) / 2
    lowest, bottom = _descend(value, lowest, rays, dtype)
    for _ in range(_ROUNDS):
        radius = _radii(value, lowest, bottom, rays @ frame, dtype)
        polygon = radius[:, None] * rays
        centre, covariance = _moments(polygon)
        corners = lowest + polygon @ frame
        candidates = torch.cat([(lowest + centre @ frame)[None], lowest + 0.5 * polygon @ frame])
        f = evaluate(value, candidates, dtype)
        best = f.argmin()
        fall = bottom - f[best]
        if not bool(fall <= 0):
            lowest, bottom = candidates[best], f[best]
        spread = torch.linalg.eigvalsh(covariance)
        factor = torch.linalg.cholesky(4 * covariance + 1e-10 * spread[1] * unit)
        frame = factor.T @ frame
        directions, size = _principal(frame)
        if float(size[1]) < 32 * eps * float(size[0]):
            raise ValueError(
                f"exp(-f) has no finite integral that {name} can tell: along "
                f"{format_point(directions[0])} f hardly rises"
            )
        if bool(fall <= 1) and float(size[1]) < 3000 * eps * float(lowest.abs().max()):
            raise FloatingPointError(
                f"cannot integrate exp(-f): it is too narrow for {name} at x = {format_point(lowest)}"
            )
        if bool(fall <= 1) and float(spread[0]) > spread[1] / 16 and 0.1 < float(spread[1]) < 1:
            break
    else:
        raise FloatingPointError(f"cannot integrate exp(-f): f is not convex near x = {format_point(lowest)}")
    return Support(lowest, bottom, corners, directions)


def box_around(value: Function, found: Support, directions: Tensor, dtype: torch.dtype) -> Tensor:
    """The box (6,) with sides along the directions that holds the support: on its border f is DROP higher."""
    lowest = found.lowest
    along = (found.corners - lowest) @ torch.linalg.inv(directions)
    low, high = along.amin(0), along.amax(0)
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    for _ in range(_ROUNDS):
        centre = lowest + ((low + high) / 2) @ directions
        box = torch.cat([centre, (((high - low) / 2)[:, None] * directions).reshape(-1)])
        rise = evaluate(value, border(box, 33), dtype).view(4, 33).amin(1) - found.bottom
        short = rise < DROP
        if not bool(short.any()):
            return box.to(dtype)
        width = high - low
        low = low - 0.1 * width * short[[0, 2]]
        high = high + 0.1 * width * short[[1, 3]]
    raise FloatingPointError(f"cannot integrate exp(-f): f is not convex near x = {format_point(lowest)}")


def _descend(value: Function, start: Tensor, rays: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A point (2,) and f there: the start, or a lower one if f is so high there that DROP is lost in it."""
    lowest, bottom = start, evaluate(value, start, dtype)
    lengths = 2.0 ** torch.arange(-20.0, 41.0, dtype=rays.dtype, device=rays.device)
    for _ in range(_ROUNDS):
        if float(bottom) * torch.finfo(dtype).eps < 0.01:
            break
        points = lowest + (lengths[:, None, None] * rays).view(-1, 2)
        f = evaluate(value, points, dtype)
        if not bool(f.min() < bottom):
            break
        lowest, bottom = points[f.argmin()], f.min()
    if not bool(bottom.isfinite()):
        raise FloatingPointError(f"cannot integrate exp(-f): f is infinite at x = {format_point(lowest)}")
    return lowest, bottom


def _radii(value: Function, origin: Tensor, bottom: Tensor, rays: Tensor, dtype: torch.dtype) -> Tensor:
    """How far along each ray (K, 2) from the origin f first is DROP above `bottom`, to 5 %; (K,)."""
    high = torch.full_like(rays[:, 0], torch.inf)
    factors = 2.0 ** torch.arange(-12.0, 13.0, dtype=rays.dtype, device=rays.device)[:, None]
    scale = 1.0
    while True:
        steps = (scale * factors).expand(-1, len(rays))
        f = evaluate(value, origin + steps[..., None] * rays, dtype)
        above = f - bottom >= DROP
        high = torch.minimum(high, steps.masked_fill(~above, torch.inf).amin(0))
        if bool(high.isfinite().all()):
            break
        end = origin + steps[-1][:, None] * rays
        far = ~above[-1] & (end.abs().amax(1) > REACH)
        if bool(far.any()):
            where = int(far.nonzero()[0, 0])
            raise ValueError(
                f"exp(-f) has no finite integral: f is still only {float(f[-1, where] - bottom):.3g} above "
                f"its lowest value at x = {format_point(end[where])}"
            )
        scale *= 2.0**24
    steps = high * torch.linspace(0.5, 1, 11, dtype=rays.dtype, device=rays.device)[:, None]
    above = evaluate(value, origin + steps[..., None] * rays, dtype) - bottom >= DROP
    above[-1] = True
    return steps.masked_fill(~above, torch.inf).amin(0)


def _principal(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (2, 2), one a row, and sizes (2,) of the semi-axes of {y frame: |y| <= 1}, longest first."""
    _, size, directions = torch.linalg.svd(frame)
    return directions, size


def _moments(polygon: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of mass (2,) and covariance (2, 2) of a star-shaped polygon (K, 2) round the origin."""
    after = polygon.roll(-1, 0)
    area = (polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0]) / 2
    weight = area / area.sum()
    total = polygon + after
    centre = (weight[:, None] * total).sum(0) / 3
    second = sum((weight[:, None] * p).T @ p for p in (total, polygon, after)) / 12
    return centre, second - torch.outer(centre, centre)


def evaluate(value: Function, x: Tensor, dtype: torch.dtype) -> Tensor:
    """f at the points x (..., 2), shape (...), refused where it is not a number."""
    f = value(x.reshape(-1, 2).to(dtype)).view(x.shape[:-1]).to(x.dtype)
    undefined = f.isnan() | (f == -torch.inf)
    if bool(undefined.any()):
        raise FloatingPointError(
            f"cannot integrate exp(-f): f is not a number at x = {format_point(x[undefined][0])}"
        )
    return f


def format_point(x: Tensor) -> str:
    """A point (2,) as messages show it."""
    return f"({float(x[0]):.6g}, {float(x[1]):.6g})"
