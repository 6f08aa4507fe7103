"""Pairs of a public benchmark of transport maps, whose true map is known, from files that the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from convexlift.problems.published import tables
from convexlift.seeds import generator_of

# Rows mapped at a time.
_CHUNK = 8192
_ALPHA = 0.01
_NETWORKS = ("v1", "v2")


@final
@dataclass(frozen=True, eq=False)
class TransportPair:
    """A source law that can be drawn from, and the optimal-transport map T from it to the target law.

    T is the gradient of the sum of two input-convex networks that the authors trained, so the pair is
    synthetic, and favours a learner whose potential is such a network.

    Attributes:
        name: of the pair.
        dim: d.
        tensors: what the file holds, in float64.

    Source: Korotin et al., "Do neural optimal transport solvers work? A continuous Wasserstein-2 benchmark",
    NeurIPS 2021 (Mix3ToMix10; code and weights under MIT).
    """

    name: str
    dim: int
    tensors: Mapping[str, Tensor]

    def source(self, n: int, seed: int, *parts: object) -> Tensor:
        """n draws of the source, a mixture of three normal laws, (n, d) in float64."""
        generator = generator_of(seed, "source", *parts)
        which = torch.randint(3, (n,), generator=generator)
        x = self.tensors["input/std"] * torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        for k, (centre, factor) in enumerate(
            zip(self.tensors["input/centers"], self.tensors["input/maps"], strict=True)
        ):
            x[which == k] = x[which == k] @ factor.T + centre
        return x

    def target(self, n: int, seed: int, *parts: object) -> Tensor:
        """n draws of the target, T of draws of the source that are independent of those above, (n, d)."""
        return self.map(self.source(n, seed, "target", *parts))

    def map(self, x: Tensor) -> Tensor:
        """T(x), (N, d), in float64."""
        return torch.cat([self._gradient(rows) for rows in x.double().split(_CHUNK)])

    def potential(self, x: Tensor) -> Tensor:
        """The potential whose gradient T is, (N,), in float64."""
        shift, scale = self.tensors["standardize/shift"], self.tensors["standardize/scale"]
        first, second = (_network(x, self._of(name)) for name in _NETWORKS)
        return scale * (first + second + x @ shift)

    def _of(self, network: str) -> dict[str, Tensor]:
        start = f"{network}/"
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def _gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self.potential(x).sum(), x)[0]


def transport_pair(path: str | Path) -> TransportPair:
    """The pair in a file ``mix3tomix10_D.npz``: the authors' networks and the source law, as arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another layout.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{place} does not exist; the pairs are files mix3tomix10_D.npz")
    held = tables.arrays(place)
    needed = {"input/centers", "input/maps", "input/std", "standardize/shift", "standardize/scale"}
    needed |= {f"{v}/final_layer.weight" for v in _NETWORKS}
    missing = sorted(needed - set(held))
    if missing:
        raise ValueError(f"{place} is no pair of the benchmark: it has no array {missing[0]!r}")
    wanted = [name for name in held if name.split("/")[0] in (*_NETWORKS, "input") or name in needed]
    tensors = {name: torch.from_numpy(held[name].astype("float64")) for name in wanted}
    return TransportPair(place.stem, tensors["input/centers"].shape[1], tensors)


@torch.no_grad()
def score(
    map: Callable[[Tensor], Tensor], pair: TransportPair, *, rows: int = 16_384, seed: int = 0
) -> dict[str, float]:
    """L2-UVP in per cent and cosine of a map on fresh rows, with the standard error of the former.

    L2-UVP = 100 E|T'(x) - T(x)|^2 / Var(y), Var the sum of the columns' variances;
    cos = E <T'(x) - x, T(x) - x> / (E|T'(x) - x|^2 E|T(x) - x|^2)^(1/2).
    """
    x = pair.source(rows, seed, "scored")
    true = pair.map(x)
    found = map(x).double()
    total = float(true.var(0).sum())
    errors = (found - true).square().sum(1)
    moved, exact = found - x, true - x
    norms = moved.square().sum(1).mean() * exact.square().sum(1).mean()
    return {
        "uvp": 100 * float(errors.mean()) / total,
        "uvp_error": 100 * float(errors.std()) / total / math.sqrt(rows),
        "cosine": float((moved * exact).sum(1).mean() / norms.sqrt()),
    }


def _network(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The benchmark's dense network with quadratic skips, convex in x, (N,)."""
    hidden = _quadratic(x, tensors, 0)  # no activation follows the first layer
    level = 1
    while f"quadratic_layers.{level}.weight" in tensors:
        through = hidden @ tensors[f"convex_layers.{level - 1}.weight"].T
        hidden = F.celu(through + _quadratic(x, tensors, level))
        level += 1
    return (hidden @ tensors["final_layer.weight"].T)[:, 0] + _ALPHA / 2 * x.square().sum(1)


def _quadratic(x: Tensor, tensors: Mapping[str, Tensor], level: int) -> Tensor:
    name = f"quadratic_layers.{level}"
    products = torch.einsum("ni,iro->nro", x, tensors[f"{name}.quadratic_decomposed"]).square().sum(1)
    return products + x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
