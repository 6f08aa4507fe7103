"""Parallelograms in the plane and the Gauss-Lobatto product rule on them.

A cell is a row of six numbers, its centre and two half-axes u and v: its points are centre + s u + t v with s
and t in [-1, 1]. A box is one cell, (6,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from convexlift.integration import rules

ORDER = 5  # Gauss-Lobatto nodes along each side of a cell, for one training step


def gauss_lobatto(cells: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Nodes (C order^2, 2) and log weights (C order^2,) of the Gauss-Lobatto product rule on cells (C, 6).

    Exact on each cell for polynomials up to degree 2 order - 3 in each of its two directions.

    >>> unit = torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    >>> nodes, log_weights = gauss_lobatto(unit, 3)
    >>> round(float((log_weights.exp() * nodes[:, 0] ** 3 * nodes[:, 1] ** 2).sum()), 12)  # 1 / 12
    0.083333333333
    """
    rule, weights, _ = rules.lobatto(order, cells.dtype, cells.device)
    s, t = rule.repeat_interleave(order), rule.repeat(order)
    centre, u, v = (side[:, None] for side in cells.view(-1, 3, 2).unbind(1))
    nodes = centre + s[:, None] * u + t[:, None] * v
    log_weights = log_area(cells)[:, None] + (torch.outer(weights, weights).reshape(-1) / 4).log()
    return nodes.reshape(-1, 2), log_weights.reshape(-1)


def cell_masses(f: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Integral of exp(min f - f) over each cell (C,), and the size of its last coefficients (C, 2)."""
    _, weights, coefficients = rules.lobatto(ORDER, cells.dtype, cells.device)
    density = (f.min() - f).exp()
    area, weights = log_area(cells).exp(), weights / 2
    along_u = (density.transpose(1, 2) @ coefficients).abs().sum(2) @ weights
    along_v = (density @ coefficients).abs().sum(2) @ weights
    return area * (density @ weights @ weights), area[:, None] * torch.stack([along_u, along_v], dim=1)


def log_area(cells: Tensor) -> Tensor:
    """log of the area of each cell, (C,)."""
    return (4 * (cells[:, 2] * cells[:, 5] - cells[:, 3] * cells[:, 4]).abs()).log()


def divide(box: Tensor, count: int) -> Tensor:
    """A cell (6,) cut into count x count cells (count^2, 6)."""
    places = (2 * torch.arange(count, dtype=box.dtype, device=box.device) + 1) / count - 1
    s, t = places.repeat_interleave(count)[:, None], places.repeat(count)[:, None]
    centres = box[:2] + s * box[2:4] + t * box[4:]
    return torch.cat([centres, (box[2:] / count).expand(len(centres), 4)], dim=1)


def turned(cells: Tensor, swap: Tensor) -> Tensor:
    """The cells with the half-axes u and v swapped where `swap`."""
    return torch.where(swap[:, None], cells[:, [0, 1, 4, 5, 2, 3]], cells)


def halves(cells: Tensor) -> Tensor:
    """Both halves of every cell along u: all first halves, then all second ones, (2 C, 6)."""
    centre, u, v = cells[:, :2], cells[:, 2:4] / 2, cells[:, 4:]
    return torch.cat([torch.cat([centre - u, u, v], dim=1), torch.cat([centre + u, u, v], dim=1)])


def outline(cells: Tensor) -> Tensor:
    """The parallelogram (6,) that cells with common directions fill."""
    directions = cells[0, 2:].view(2, 2)
    directions = directions / directions.norm(dim=1, keepdim=True)
    places = torch.linalg.inv(directions)
    half = (cells[:, 2:].view(-1, 2, 2) @ places).abs().sum(1)
    centres = cells[:, :2] @ places
    low, high = (centres - half).amin(0), (centres + half).amax(0)
    centre = ((low + high) / 2) @ directions
    return torch.cat([centre, (((high - low) / 2)[:, None] * directions).reshape(-1)])


def border(box: Tensor, count: int = 16) -> Tensor:
    """count points, both corners included, on each of the four sides of a box: (4 count, 2), side by side."""
    along = torch.linspace(-1, 1, count, dtype=box.dtype, device=box.device)[:, None]
    centre, u, v = box.view(3, 2)
    return torch.cat(
        [centre - u + along * v, centre + u + along * v, centre - v + along * u, centre + v + along * u]
    )
