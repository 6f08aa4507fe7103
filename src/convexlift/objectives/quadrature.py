"""Maximum likelihood with log Z by quadrature, in one and two dimensions."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from convexlift.architectures import Potential
from convexlift.integration import line
from convexlift.integration.plane import normaliser as plane
from convexlift.objectives.objective import Objective, mean, share


@final
class Quadrature(Objective):
    """The exact negative log-likelihood: mean f(t) + log Z, with log Z by quadrature that follows exp(-f).

    Where the quadrature looks is kept from step to step, so a step costs one evaluation of f at a few hundred
    (d = 1) or a few thousand (d = 2) nodes, and its gradient is exact at those nodes.

    Args:
        dim: 1 or 2.

    Raises:
        ValueError: another dimension.

    Example:
        >>> import convexlift as cl
        >>> Quadrature(1)(cl.ICNN(1, hidden=(8,), seed=0).emit(), torch.zeros(3, 1)).shape
        torch.Size([])
    """

    likelihood = True
    where: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        if dim not in (1, 2):
            raise ValueError(f"exact quadrature needs dim 1 or 2; got dim {dim}")
        # The panels (d = 1) or cells (d = 2) of the last training step, filled up with NaN.
        shape = (line.MAX_PANELS + 1,) if dim == 1 else (plane.MAX_CELLS, 6)
        self.register_buffer("where", torch.full(shape, torch.nan))

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        return mean(potential.value(t), weights) + share(weights) * self._log_z(potential)

    def estimate(self, potential: Potential) -> Tensor:
        return self._log_z(potential).detach()

    def _log_z(self, potential: Potential) -> Tensor:
        known = self.where[
            self.where.isfinite().flatten(1).all(1) if self.dim == 2 else self.where.isfinite()
        ]
        log_integral = line.log_integral if self.dim == 1 else plane.log_integral
        log_z, found = log_integral(
            potential.value, known if len(known) else None, dtype=potential.dtype, device=self.where.device
        )
        if self.training and found is not known:
            self.where.fill_(torch.nan)[: len(found)] = found
        return log_z
