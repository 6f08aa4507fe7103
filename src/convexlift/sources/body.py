"""Permutation-invariant summaries of a batch: sums of per-sample features, pooled by their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from convexlift.seeds import linear

# Rows read at a time when a whole training set is pooled.
_CHUNK = 16_384


@final
class DeepSets(nn.Module):
    """Features phi(x) of a small ReLU network, to be pooled over the batch.

    Shapes: (N, d) -> (N, features).

    Source: Zaheer et al., "Deep sets", NeurIPS 2017.

    >>> DeepSets(2, (16,), 8)(torch.zeros(5, 2)).shape
    torch.Size([5, 8])
    """

    def __init__(self, dim: int, hidden: Sequence[int], features: int) -> None:
        super().__init__()
        self.features = features
        widths = [dim, *hidden, features]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            layers += [linear(fan_in, fan_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@final
class Moments(nn.Module):
    """Features [x, x^2], whose pooled values are the batch's first two moments. No parameters.

    Shapes: (N, d) -> (N, 2 d).

    >>> Moments(1)(torch.tensor([[2.0]]))
    tensor([[2., 4.]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = 2 * dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], 1)


def pool(body: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The sum of the features over the rows x (N, d), and N: what ranks or chunks add up before dividing."""
    x = x.detach()
    if len(x) <= _CHUNK:
        return body(x).sum(0), len(x)
    return torch.stack([body(chunk).sum(0) for chunk in x.split(_CHUNK)]).sum(0), len(x)
