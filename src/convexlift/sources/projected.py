"""Weights as parameters, projected onto the non-negative orthant after every optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convexlift.architectures.base import check_nonnegative_tensors
from convexlift.sources.source import WeightSource


@final
class Projected(WeightSource):
    """W is the parameter itself, clamped at zero after each optimiser step (projected gradient descent).

    ``fit`` attaches the projection to its optimiser; in a loop of your own call ``attach(optimizer)`` once.

    Args:
        module: the architecture; it is copied.
        names: its non-negative parameters; ``module.nonnegative`` when omitted.

    Raises:
        ValueError: from ``emit`` while a weight is negative; otherwise see ``WeightSource``.

    Source: Amos, Xu and Kolter, "Input convex neural networks", ICML 2017.

    Example:
        >>> import torch, convexlift as cl
        >>> source = cl.Projected(cl.ICNN(2, hidden=(8, 8), seed=0))
        >>> optimizer = torch.optim.SGD(source.parameters(), lr=1.0)
        >>> handle = source.attach(optimizer)
        >>> source(torch.ones(4, 2)).sum().backward()
        >>> optimizer.step()
        >>> min(w.detach().min().item() for w in source.weights().values())
        0.0
    """

    def __init__(self, module: nn.Module, names: Sequence[str] | None = None) -> None:
        super().__init__(module, names)
        self.latents = nn.ParameterList([nn.Parameter(w) for w in self._take_out(self.names)])

    def weights(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        weights = dict(zip(self.names, self.latents, strict=True))
        try:
            check_nonnegative_tensors(self.names, weights)
        except ValueError as error:
            raise ValueError(f"{error}: attach(optimizer) before training, or call project()") from None
        return weights

    @torch.no_grad()
    def project(self) -> None:
        """Clamp every constrained weight at zero."""
        for weight in self.latents:
            weight.clamp_min_(0)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Project after every step of this optimiser; returns the hook's handle."""
        return optimizer.register_step_post_hook(lambda *_: self.project())
