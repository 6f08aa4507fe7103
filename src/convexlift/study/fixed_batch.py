"""A lift without randomness: it reads the same training rows at every step."""

from __future__ import annotations

from typing import final

from torch import Tensor

from convexlift.sources import Lift

ROWS = 512


@final
class FixedBatchLift(Lift):
    """The full lift, but the batch that it reads is always the first training rows, at most 512.

        theta = b + R s(X_0),   X_0 fixed.

    Slack, body and readout learn as in the full lift, with the same number of parameters, and nothing
    fluctuates: what is left of the lift is its over-parametrisation. An ablation arm, not a way of training.

    Args: as for `Lift`.

    Shapes: batch (N, dim) with N >= 1; its rows are not read.

    Raises:
        ValueError: as `Lift`.

    Example:
        >>> import torch
        >>> import convexlift as cl
        >>> lift, x = FixedBatchLift(cl.ICNN(2, hidden=(8, 8), seed=0), seed=0), torch.randn(600, 2)
        >>> lift.initialise(x)
        >>> one, two = lift.weights(x[:100]), lift.weights(x[100:200])
        >>> all(bool((one[name] == two[name]).all()) for name in one)
        True
    """

    fixed: Tensor | None = None

    def initialise(self, x: Tensor) -> None:
        """Keep the first rows, and start as any lift."""
        self.fixed = x[:ROWS].detach().clone()
        super().initialise(x)

    def summary(self, batch: Tensor | None) -> Tensor:
        """The summary of the fixed rows; in eval mode and before `initialise` that of the batch."""
        reads_fixed = self.training and self.fixed is not None and batch is not None
        return super().summary(self.fixed if reads_fixed else batch)
