"""Weights as the softplus of free latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from convexlift.sources.positivity import SOFTPLUS
from convexlift.sources.source import WeightSource


@final
class Softplus(WeightSource):
    """W = softplus(v), or softplus(v) / fan_in, with v a free parameter.

    The gradient on v is that on W times sigmoid(v), so small weights hardly move (the "shoulder"). A weight
    that starts at zero starts at 1e-10, the smallest this map represents.

    Args:
        module: the architecture; it is copied.
        names: its non-negative parameters; ``module.nonnegative`` when omitted.
        fan_in: divide by the number of columns, so that v keeps one scale at every width.

    Raises:
        ValueError: see ``WeightSource``.

    Source: Dugas et al., "Incorporating second-order functional knowledge", NeurIPS 2000.

    Example:
        >>> import torch, convexlift as cl
        >>> net = cl.ICNN(2, hidden=(8, 8), seed=0)
        >>> source = cl.Softplus(net)
        >>> x = torch.ones(4, 2)
        >>> torch.allclose(source(x), net(x), atol=1e-6)
        True
    """

    psi = SOFTPLUS

    def __init__(
        self, module: nn.Module, names: Sequence[str] | None = None, *, fan_in: bool = False
    ) -> None:
        super().__init__(module, names)
        start = self._take_out(self.names)
        self._scales = {n: 1 / w.shape[-1] if fan_in else 1.0 for n, w in zip(self.names, start, strict=True)}
        values = [SOFTPLUS.inverse(w / self.scale(n)) for n, w in zip(self.names, start, strict=True)]
        self.latents = nn.ParameterList(map(nn.Parameter, values))

    def scale(self, name: str) -> float:
        return self._scales[name]

    def weights(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        weights = {name: SOFTPLUS.value(v) for name, v in zip(self.names, self.latents, strict=True)}
        return {name: w if self.scale(name) == 1 else w * self.scale(name) for name, w in weights.items()}
