"""Convex regression: the least-squares fit of a convex function."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.sources import Centred
from convexlift.tasks.standardise import Standardiser
from convexlift.tasks.task import (
    check_block,
    check_rows,
    emit,
    evaluating,
    freeze_block,
    initialise_block,
    latest_settling,
    map_rows,
    require_weights,
    set_block_progress,
    settle_block,
    start_rows,
)

Rows = Tensor | tuple[Tensor, Tensor]

# The share of a new batch in the moving average of a centred function.
_MOMENTUM = 0.5


class ConvexRegression(nn.Module):
    """The convex function that is closest to y in mean square.

        y ~ mean_y + scale_y (f((x - mean_x) / scale_x) + c),

    f a convex potential and c a free intercept; means and scales are fitted on training data. Where the block
    is ``Centred`` the mean of f over the batch is taken out too, and put back into c by ``freeze``.

    Args:
        block: an ICNN or a weight source of one.

    Shapes: x (N, d); y (N,) or (N, 1); predictions (N,).

    Raises:
        ValueError: from the methods, inputs of another width or length or with NaN or infinite entries, and
            an unfrozen lift without ``batch`` to emit from.
        TypeError: a block of another kind; from the methods, inputs of another dtype, or data that are not
            (x, y).

    Source: Boyd and Vandenberghe, "Convex optimization", section 6.5.5 (the problem).

    Example:
        >>> import convexlift as cl
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> regression = ConvexRegression(cl.ICNN(1, hidden=(8, 8), seed=0))
        >>> regression.initialise((x, x[:, 0] ** 2))
        >>> regression.predict(x).shape, regression.loss((x, x[:, 0] ** 2)).shape
        (torch.Size([50]), torch.Size([]))
    """

    level: Tensor | None

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.dim = check_block(block).dim
        self.block = block
        like = next(block.parameters())
        self.standardiser = Standardiser(self.dim, name="inputs").to(like)
        self.target_standardiser = Standardiser(1, name="targets").to(like)
        self.intercept = nn.Parameter(torch.zeros((), dtype=like.dtype, device=like.device))
        # Of a centred block the mean of f, a moving average.
        level = self.intercept.detach().clone() if isinstance(block, Centred) else None
        self.register_buffer("level", level)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild the regression, with its block; ``save`` writes them."""
        return {"block": self.block}

    @property
    def averaged(self) -> list[str]:
        """The buffers that belong to the weights of the moment, and are averaged where these are."""
        return [] if self.level is None else ["level"]

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of inputs, targets and predictions."""
        return self.standardiser.mean.dtype

    def loss(self, batch: tuple[Tensor, Tensor], emit_from: Rows | None = None) -> Tensor:
        """Mean squared error over the batch (x, y), in units of y squared.

        A lift emits from the inputs of the batch itself, or from those of ``emit_from``.

        Raises:
            ValueError: the batch is empty.
        """
        x, y = self._check_pair(batch)
        if not len(x):
            raise ValueError("a mean over no samples is not defined: the batch is empty")
        x = self.standardiser(x)
        potential = emit(self.block, (x if emit_from is None else self._inputs(emit_from)).detach())
        f = potential.value(x)
        level = self.level
        if level is not None and self.training and torch.is_grad_enabled():
            self.level = level.lerp(f.detach().mean(), _MOMENTUM)
            level = f.mean()
        return (self._restored(f, level) - y).square().mean()

    def predict(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """The fitted function at x, (N,). Changes no state. An unfrozen lift needs a ``batch``."""
        require_weights(self, batch)
        with evaluating(self):
            potential = emit(self.block, None if batch is None else self._inputs(batch))
        return self._restored(potential.value(self._inputs(x)), self.level)

    @torch.no_grad()
    def initialise(self, data: tuple[Tensor, Tensor]) -> None:
        """Fit both standardisers to training data (x, y); start lift and intercept from it. Once only.

        Raises:
            ValueError: see ``Standardiser.fit``.
        """
        if bool(self.standardiser.fitted):
            return
        x, y = self._check_pair(data)
        self.standardiser.fit(x)
        self.target_standardiser.fit(y[:, None])
        start = self.standardiser(start_rows(x))
        with evaluating(self):
            initialise_block(self.block, start)
            level = emit(self.block, start).value(start).mean()
        if self.level is None:
            self.intercept.copy_(-level)
        else:
            self.level = level

    @torch.no_grad()
    def freeze(self, data: Rows | None = None) -> ConvexRegression:
        """A regression of a plain ICNN in eval mode that asks for no gradient.

        A lift emits from the training inputs; without lifts no data are needed.
        """
        x = None if data is None else self._inputs(data)
        with evaluating(self):
            frozen = ConvexRegression(freeze_block(self.block, x))
        frozen.standardiser = copy.deepcopy(self.standardiser)
        frozen.target_standardiser = copy.deepcopy(self.target_standardiser)
        frozen.intercept.copy_(self.intercept)
        if self.level is not None:
            level = self.level if x is None else map_rows(emit(frozen.block, None).value, x).mean()
            frozen.intercept.sub_(level)
        return frozen.requires_grad_(False).eval()

    @torch.no_grad()
    def settle(self, data: Rows) -> None:
        """Fix a lift's summary to that of the training inputs."""
        settle_block(self.block, self._inputs(data))

    def set_progress(self, t: float) -> None:
        """Tell the block how far training is, t in [0, 1]."""
        set_block_progress(self.block, t)

    @property
    def settle_at(self) -> float | None:
        """The fraction of training at which ``settle`` is due; None without a lift."""
        return latest_settling([self.block])

    def block_inputs(self, batch: Rows) -> list[Tensor]:
        """The points (N, d) that the block sees when a lift emits from this batch."""
        return [self._inputs(batch)]

    def _restored(self, f: Tensor, level: Tensor | None) -> Tensor:
        """The function in units of y, from the values of f, less ``level``."""
        f = f + self.intercept if level is None else f - level + self.intercept
        return self.target_standardiser.inverse(f[:, None])[:, 0]

    def _inputs(self, data: Rows) -> Tensor:
        """Standardised inputs, of x alone or of (x, y)."""
        x = data[0] if isinstance(data, tuple) else data
        return self.standardiser(check_rows(x, self.dim, self.dtype, "inputs"))

    def _check_pair(self, data: object) -> tuple[Tensor, Tensor]:
        """x (N, d) and y (N,), checked."""
        if not isinstance(data, tuple) or len(data) != 2:
            got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
            raise TypeError(f"expected a pair (x, y); got {got}")
        x, y = data
        check_rows(x, self.dim, self.dtype, "inputs")
        if isinstance(y, Tensor) and y.ndim == 1:
            y = y[:, None]
        check_rows(y, 1, self.dtype, "targets")
        if len(x) != len(y):
            raise ValueError(f"expected as many targets as inputs; got {len(y)} and {len(x)}")
        return x, y[:, 0]
