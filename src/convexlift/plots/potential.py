"""A function of one or two variables: its curve, or its level lines and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.architectures import Potential
from convexlift.plots.drawing import DATA, MODEL, Axes, axes_of, tick

_GRID, _EVERY, _LEVELS = 121, 10, 12


@guarded
@torch.no_grad()
def plot_potential(
    f: Potential | Callable[[Tensor], Tensor], box: Sequence[tuple[float, float]], *, ax: Axes | None = None
) -> Axes:
    """Draw a function over a box: a curve for one variable, level lines with gradient arrows for two.

    The arrows show grad f, by differences on a grid of 121 x 121 points; the steepest spans their spacing.

    Args:
        f: a potential, or any function of rows (N, d) with values (N,).
        box: (low, high) of each of the d variables.
        ax: where to draw; the axes of a new figure if omitted. They are returned.

    Raises:
        ValueError: a box of another number of variables than 1 or 2, or an empty one; values of another
            shape.
        ImportError: matplotlib is missing.

    Example:
        >>> import convexlift as cl
        >>> f = cl.ICNN(2, hidden=(8,), seed=0).emit()
        >>> plot_potential(f, [(-1, 1), (-2, 2)]).get_xlabel()
        'x₀'
        >>> plot_potential(lambda x: x.square().sum(1), [(-1, 1)]).get_ylabel()
        'f'
    """
    if len(box) not in (1, 2) or not all(low < high for low, high in box):
        raise ValueError(f"expected one or two (low, high) with low below high; got {list(box)}")
    dtype = getattr(f, "dtype", torch.get_default_dtype())
    sides = [torch.linspace(low, high, _GRID, dtype=dtype, device="cpu") for low, high in box]
    x = torch.cartesian_prod(*sides).reshape(-1, len(box))
    values = f.value(x) if isinstance(f, Potential) else f(x)
    if values.shape != x.shape[:1]:
        raise ValueError(f"expected {len(x)} values, one for each row; got {tuple(values.shape)}")
    ax = axes_of(ax, 500, 420)
    if len(box) == 1:
        ax.plot(sides[0], values, color=MODEL)
        ax.set(xlim=box[0], xlabel="x", ylabel="f")
    else:
        grid = values.reshape(_GRID, _GRID)
        ax.contour(*sides, grid.T, _LEVELS, colors=MODEL, linewidths=1.2)
        inner = slice(_EVERY // 2, None, _EVERY)
        steep = torch.stack([part[inner, inner] for part in torch.gradient(grid, spacing=sides)])
        spacing = torch.tensor(
            [(high - low) * _EVERY / _GRID for low, high in box], dtype=dtype, device="cpu"
        )
        scale = float((steep.abs().amax((1, 2)) / spacing).max()) or 1.0
        places = (side[inner] for side in sides)
        ax.quiver(*places, *steep.mT, angles="xy", scale_units="xy", scale=scale, color=DATA, width=0.004)
        ax.set(xlim=box[0], ylim=box[1], xlabel="x₀", ylabel="x₁")
    tick(ax)
    return ax
