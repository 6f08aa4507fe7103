"""Readouts of the lift: linear maps from the summary to the latent weights, around the slack times a gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from convexlift.seeds import generator_on

FAN_IN = "fan_in"


@final
class Dense(nn.Module):
    """theta = g b + c R s with one full matrix R per tensor; k parameters for every emitted weight.

    Args:
        shapes: shapes of the emitted tensors.
        features: k, the length of the summary.
        scale: c, or "fan_in" for c = 1/k with R started k^(1/2) larger.
    """

    def __init__(self, shapes: Sequence[torch.Size], features: int, scale: float | str) -> None:
        super().__init__()
        self.scale, deviation = _scale(scale, features)
        self.maps = nn.ParameterList(
            [nn.Parameter(_uniform(shape.numel(), features) * deviation) for shape in shapes]
        )

    def forward(self, summary: Tensor, slack: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
        code = self.scale * summary
        return [
            torch.addmv(b.flatten(), matrix, code, beta=g).view_as(b)
            for matrix, b, g in zip(self.maps, slack, gains, strict=True)
        ]

    def amplification(self, summary: Tensor) -> list[Tensor]:
        """sum_p |d theta / d p| over the readout's parameters p: how far a sign step moves each latent."""
        return [(self.scale * summary.abs().sum()).expand(len(matrix)) for matrix in self.maps]


@final
class Factored(nn.Module):
    """theta = g b + c U diag(P s) V' with U (m, r), V (n, r), P (r, k): r (m + n + k) parameters a matrix.

    A vector of length n is g b + c V P s, with r (n + k) parameters. Other tensors are read as matrices
    (first, rest).

    Args:
        shapes: shapes of the emitted tensors.
        features: k, the length of the summary.
        scale: c, or "fan_in" for c = 1/k with P started k^(1/2) larger.
        rank: r.
    """

    def __init__(self, shapes: Sequence[torch.Size], features: int, scale: float | str, rank: int) -> None:
        super().__init__()
        self.scale, deviation = _scale(scale, features)
        self.rank = rank
        # Entries of U V', and of a vector's V summed over r, have variance one per unit code.
        rows: list[nn.Parameter | None] = []
        columns = []
        for shape in shapes:
            vector, (m, n) = len(shape) < 2, matrix_shape(shape)
            rows.append(None if vector else nn.Parameter(_normal(m, rank) * rank**-0.25))
            columns.append(nn.Parameter(_normal(n, rank) * rank ** (-0.5 if vector else -0.25)))
        self.rows, self.columns = nn.ParameterList(rows), nn.ParameterList(columns)
        self.code = nn.Parameter(_uniform(len(shapes) * rank, features) * deviation)

    def forward(self, summary: Tensor, slack: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
        codes = (self.code @ (self.scale * summary)).view(-1, self.rank).unbind(0)
        return [
            torch.addmv(b.view(-1), v, q, beta=g).view_as(b)
            if u is None
            else torch.addmm(b.view(matrix_shape(b.shape)), u * q, v.T, beta=g).view_as(b)
            for q, u, v, b, g in zip(codes, self.rows, self.columns, slack, gains, strict=True)
        ]

    def amplification(self, summary: Tensor) -> list[Tensor]:
        """sum_p |d theta / d p| over the readout's parameters p: how far a sign step moves each latent."""
        codes = (self.code @ (self.scale * summary)).view(-1, self.rank).abs()
        reach = self.scale * summary.abs().sum()
        return [
            q.sum() + reach * v.abs().sum(1)
            if u is None
            else ((v.abs() @ q)[None, :] + (u.abs() @ q)[:, None] + reach * (u.abs() @ v.abs().T)).flatten()
            for q, u, v in zip(codes, self.rows, self.columns, strict=True)
        ]


def _scale(scale: float | str, features: int) -> tuple[float, float]:
    """The factor c, and what the starting values of R are multiplied by."""
    if scale == FAN_IN:
        return 1 / features, math.sqrt(3 * features)
    if isinstance(scale, str) or not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f'readout_scale must be positive or "fan_in"; got {scale!r}')
    return float(scale), 1.0


def _uniform(outputs: int, features: int) -> Tensor:
    u = torch.rand(outputs, features, generator=generator_on(), dtype=torch.float32, device="cpu")
    return (2 * u - 1) / math.sqrt(features)


def _normal(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator_on(), dtype=torch.float32, device="cpu")


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns as which a tensor of any shape is read."""
    if len(shape) < 2:
        return 1, shape.numel()
    return shape[0], shape.numel() // shape[0]
