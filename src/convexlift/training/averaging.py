"""An exponential moving average of the trainable parameters, beside the training that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

# The average forgets where training began: over its first steps it is close to the last parameters.
_SHORT_START = 9


@final
class Average:
    """The moving average a of a module's trainable parameters p over its optimiser steps.

        a <- a + w (p - a),   w = max(1 - decay, 9 / (step + 9)),   step = 1, 2, ...

    It starts as the parameters are now. A convex set that holds them, such as the non-negative weights, holds
    their average. Of the buffers those are averaged that a part lists in its attribute ``averaged``, as
    `Centred` does with its means; the others stay those of the moment. A decay of 0 averages nothing: every
    method does nothing then.

    Args:
        module: what is trained; its parameters that ask for a gradient now are followed.
        decay: in [0, 1).

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992 (who weigh all
    steps alike).

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> average = Average(layer, decay=0.99)
        >>> _ = nn.init.ones_(layer.weight)
        >>> average.update(step=1)
        >>> with average.in_place():
        ...     round(layer.weight.item(), 4)
        0.9
        >>> layer.weight.item()
        1.0
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._module = module
        named = module.named_parameters() if decay else ()
        self._parameters = {name: p for name, p in named if p.requires_grad}
        self._buffers = [
            f"{path}.{name}".removeprefix(".")
            for path, part in (module.named_modules() if decay else ())
            for name in getattr(part, "averaged", ())
        ]
        self._tensors = {name: p.detach().clone() for name, p in self._followed().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters after an optimiser step, counted from 1."""
        if self._parameters:
            weight = max(1.0 - self._decay, _SHORT_START / (step + _SHORT_START))
            torch._foreach_lerp_(list(self._tensors.values()), list(self._followed().values()), weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module hold the average for a while; it gets its own parameters back, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._followed().items()}
        try:
            self.take_place()
            yield
        finally:
            _copy(own, self._followed())

    def take_place(self) -> None:
        """Let the module hold the average from now on."""
        _copy(self._tensors, self._followed())

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the average by the names of the parameters and buffers."""
        return {name: a.clone() for name, a in self._tensors.items()}

    def load(self, state: Mapping[str, Tensor] | None) -> None:
        """Go on from what ``state()`` returned.

        Raises:
            ValueError: there is none, or it is of other parameters; nothing is loaded then.
        """
        if not isinstance(state, Mapping):
            raise ValueError("it has no averaged parameters")
        for name in sorted(self._tensors.keys() | state.keys()):
            if name not in state or not isinstance(state[name], Tensor):
                raise ValueError(f"it has no average of the parameter {name!r}")
            if name not in self._tensors:
                raise ValueError(f"it has an average of {name!r}, which is no trainable parameter here")
            if state[name].shape != self._tensors[name].shape:
                shapes = f"{tuple(state[name].shape)}, here {tuple(self._tensors[name].shape)}"
                raise ValueError(f"its average of the parameter {name!r} has shape {shapes}")
        _copy(state, self._tensors)

    def _followed(self) -> dict[str, Tensor]:
        # Buffers by name: a module may replace them.
        return {**self._parameters, **{name: self._module.get_buffer(name) for name in self._buffers}}


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(tensors[name])
