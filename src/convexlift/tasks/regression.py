"""Convex regression: the least-squares fit of a convex function."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.architectures.base import architecture_of
from convexlift.defaults import REGRESSION
from convexlift.sources import Centred
from convexlift.tasks.standardise import Standardiser
from convexlift.tasks.task import Task, columns_called, map_rows, start_rows

Rows = Tensor | tuple[Tensor, Tensor]

# The share of a new batch in the moving average of a centred function.
_MOMENTUM = 0.5


@final
class ConvexRegression(Task):
    """The convex function that is closest to y in mean square.

        y ~ mean_y + scale_y (f((x - mean_x) / scale_x) + c),

    f a convex potential and c a free intercept; means and scales are fitted on training data. The loss is in
    units of scale_y, the deviation of y there, so it does not depend on the user's; predictions are in the
    user's. Where the block
    is ``Centred`` the mean of f over the batch is taken out too, and put back into c by ``freeze``.

    Args:
        block: an ICNN or a weight source of one.

    Shapes: x (N, d); y (N,) or (N, 1); predictions (N,).

    Raises:
        ValueError: from the methods, inputs of another width or length or with NaN or infinite entries, and
            an unfrozen lift without ``batch`` to emit from.
        TypeError: a block of another kind; from the methods, inputs that are not floating-point, or data that
            are not (x, y).
        FloatingPointError: from the backward of a prediction, a derivative in the user's units overflows.

    Source: Boyd and Vandenberghe, "Convex optimization", section 6.5.5 (the problem).

    Example:
        >>> import convexlift as cl
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> regression = ConvexRegression(cl.ICNN(1, hidden=(8, 8), seed=0))
        >>> regression.initialise((x, x[:, 0] ** 2))
        >>> regression.predict(x).shape, regression.loss((x, x[:, 0] ** 2)).shape
        (torch.Size([50]), torch.Size([]))
    """

    defaults = REGRESSION
    standardiser: Standardiser
    level: Tensor | None

    roles = ("inputs", "targets")

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.dim = architecture_of(block).dim
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
    def loss_unit(self) -> float:
        """scale_y squared, by which a loss becomes the mean squared error in the user's units."""
        return float(self.target_standardiser.scale.square())

    def loss(self, batch: tuple[Tensor, Tensor], emit_from: Rows | None = None) -> Tensor:
        """Mean squared error over the batch (x, y), in units of the variance of the training targets.

        A lift emits from the inputs of the batch itself, or from those of ``emit_from``.

        Raises:
            ValueError: the batch is empty.
        """
        x, y = self._inputs_and_targets(batch)
        if not len(x):
            raise ValueError("a mean over no samples is not defined: the batch is empty")
        x = self.standardiser(x, self.dtype)
        potential = self.block.emit((x if emit_from is None else self._rows(emit_from)).detach())
        f = potential.value(x)
        level = self.level
        if level is not None and self.training and torch.is_grad_enabled():
            self.level = level.lerp(f.detach().mean(), _MOMENTUM)
            level = f.mean()
        target = self.target_standardiser(y[:, None], self.dtype)[:, 0]
        return (self._centred(f, level) - target).square().mean()

    def predict(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """The fitted function at x, (N,). Changes no state. An unfrozen lift needs a ``batch``."""
        f = self._centred(self._potential(batch).value(self._rows(x)), self.level)
        return self.target_standardiser.inverse(f[:, None], self._resolving(x))[:, 0]

    def _centred(self, f: Tensor, level: Tensor | None) -> Tensor:
        """The function in units of the standardised y, from the values of f, less ``level``."""
        return f + self.intercept if level is None else f - level + self.intercept

    def _rows(self, data: Rows, name: str | None = None) -> Tensor:
        return super()._rows(data[0] if isinstance(data, tuple) else data, name)

    def _scaled(self, data: Any) -> list[tuple[str, Tensor, Tensor | None]]:
        x, y = self._inputs_and_targets(data)
        targets = self.target_standardiser(y[:, None])
        return [("inputs", self.standardiser(x), None), ("targets", targets, None)]

    def _inputs_and_targets(self, data: object) -> tuple[Tensor, Tensor]:
        return self._pair(data, "a pair (x, y)", None, "targets")

    def _fit(self, data: Any) -> Tensor:
        x, y = self._inputs_and_targets(data)
        self.standardiser.fit(x)
        with columns_called("the target"):
            self.target_standardiser.fit(y[:, None])
        return self.standardiser(start_rows(x), self.dtype)

    def _start(self, x: Tensor) -> None:
        super()._start(x)
        level = self.block.emit(x).value(x).mean()
        if self.level is None:
            self.intercept.copy_(-level)
        else:
            self.level = level

    def _complete(self, frozen: ConvexRegression, x: Tensor | None) -> None:
        if self.level is not None:
            level = self.level if x is None else map_rows(frozen.block.emit().value, x).mean()
            frozen.intercept.sub_(level)
            frozen.level = None
