"""Weights as squares of free latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from convexlift.sources.positivity import SQUARE
from convexlift.sources.source import WeightSource


@final
class Squared(WeightSource):
    """W = v^2 / 4 with v a free parameter.

    Gradient flow in v is exponentiated gradient in W, and zero is a saddle.

    Args:
        module: the architecture; it is copied.
        names: its non-negative parameters; ``module.nonnegative`` when omitted.

    Raises:
        ValueError: see ``WeightSource``.

    Source: Kivinen and Warmuth, "Exponentiated gradient versus gradient descent", 1997.

    Example:
        >>> import torch, convexlift as cl
        >>> source = cl.Squared(cl.ICNN(2, hidden=(8, 8), seed=0))
        >>> bool((source.weights()["outer"] >= 0).all())
        True
    """

    psi = SQUARE

    def __init__(self, module: nn.Module, names: Sequence[str] | None = None) -> None:
        super().__init__(module, names)
        self.latents = nn.ParameterList([nn.Parameter(SQUARE.inverse(w)) for w in self._take_out(self.names)])

    def weights(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        return {name: SQUARE.value(v) for name, v in zip(self.names, self.latents, strict=True)}
