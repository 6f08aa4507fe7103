"""Six one-dimensional log-concave densities, known exactly.

Gumbel, Laplace, gamma(3), beta(3, 2), logistic and uniform. Training rows are drawn afresh at every step;
validation and test splits are fixed draws. The loss of a row is the excess log p(x) - log q(x); `metrics`
compares the two densities by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods, guarded
from convexlift.data import Simulator
from convexlift.problems.base import Problem

VALIDATION_ROWS = 2_000
TEST_ROWS = 5_000
# The strong convexity gives Gaussian tails, so it stays small beside the exponential tails of the targets.
ARCHITECTURE = {"hidden": (64, 64, 64), "strong_convexity": 0.02}


@guard_methods
@final
@dataclass(frozen=True)
class Density:
    """An exact one-dimensional density: log density, sampler, entropy (nats), support and the range that
    holds its mass.

    Example:
        >>> import torch
        >>> gumbel = DENSITIES["gumbel"]
        >>> gumbel.draw(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 1])
        >>> round(float(gumbel.log_prob(torch.zeros(1, 1))), 4)
        -1.0
    """

    name: str
    formula: str
    log_density: Callable[[Tensor], Tensor]
    inverse: Callable[[Callable[[], Tensor]], Tensor]
    entropy: float
    support: tuple[float, float]
    span: tuple[float, float]
    dim: int = 1

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) for x of shape (N, 1), computed in float64 and returned as (N,) in x's dtype; -inf off the
        support."""
        value = x.double().squeeze(-1)
        inside = (value >= self.support[0]) & (value <= self.support[1])
        safe = torch.where(inside, value, torch.full_like(value, sum(self.span) / 2))
        return torch.where(inside, self.log_density(safe), -math.inf).to(x.dtype)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws, an (n, 1) float32 tensor."""

        def uniform() -> Tensor:
            u = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
            return u.clamp(2.0**-54, 1 - 2.0**-53)

        x = self.inverse(uniform).float().unsqueeze(-1)
        return x.clamp(*self.support)


def _laplace(uniform: Callable[[], Tensor]) -> Tensor:
    u = uniform() - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 2.0**-54))


def _beta(uniform: Callable[[], Tensor]) -> Tensor:
    """The third smallest of four uniform draws is beta(3, 2)."""
    return torch.stack([uniform() for _ in range(4)]).sort(dim=0).values[2]


_EULER = 0.57721566490153286
DENSITIES = {
    density.name: density
    for density in (
        Density("gumbel", "exp(-x - exp(-x))",
                lambda x: -x - torch.exp(-x), lambda u: -torch.log(-torch.log(u())),
                entropy=1 + _EULER, support=(-math.inf, math.inf), span=(-4.0, 25.0)),
        Density("laplace", "exp(-|x|) / 2", lambda x: -x.abs() - math.log(2), _laplace,
                entropy=1 + math.log(2), support=(-math.inf, math.inf), span=(-25.0, 25.0)),
        Density("gamma", "x^2 exp(-x) / 2, x > 0", lambda x: 2 * torch.log(x) - x - math.log(2),
                lambda u: -torch.log(u()) - torch.log(u()) - torch.log(u()),
                entropy=3 + math.log(2) - 2 * (1.5 - _EULER), support=(0.0, math.inf), span=(0.0, 35.0)),
        Density("beta", "12 x^2 (1 - x), 0 < x < 1",
                lambda x: math.log(12) + 2 * torch.log(x) + torch.log1p(-x), _beta,
                entropy=-math.log(12) - 3 - 1 + 25 / 4, support=(0.0, 1.0), span=(0.0, 1.0)),
        Density("logistic", "exp(-x) / (1 + exp(-x))^2",
                lambda x: -x.abs() - 2 * torch.log1p(torch.exp(-x.abs())), lambda u: torch.logit(u()),
                entropy=2.0, support=(-math.inf, math.inf), span=(-27.0, 27.0)),
        Density("uniform", "1, 0 < x < 1", torch.zeros_like, lambda u: u(),
                entropy=0.0, support=(0.0, 1.0), span=(0.0, 1.0)),
    )
}  # fmt: skip


@guarded
def distances(density: Density, log_q: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Total variation, Hellinger distance and Kullback-Leibler divergence of p to a model q, by
    Gauss-Legendre quadrature.

    TV = (1/2) int |p - q|, H^2 = 1 - int sqrt(p q), KL = int p log(p / q); q's mass beyond the nodes counts
    in full. `log_q` maps (N, 1) to (N,). About 16,000 nodes, panel edges on the ends of the support.

    Example:
        >>> d = DENSITIES["uniform"]
        >>> {name: round(value, 6) for name, value in distances(d, d.log_prob).items()}
        {'total_variation': 0.0, 'hellinger': 0.0, 'kl': 0.0}
    """
    low, high = density.span
    width = (high - low) / 2
    x, weight = _panels((low - width, low, high, high + width), (250, 1_500, 250))
    with torch.no_grad():
        log_p = density.log_prob(x.unsqueeze(-1))
        log_model = torch.cat([log_q(part.unsqueeze(-1)) for part in x.split(2_000)]).double()
    p, q = log_p.exp(), log_model.exp()
    inside = p > 0
    beyond = max(0.0, 1.0 - float((weight * q).sum()))
    affinity = float((weight * torch.sqrt(p * q)).sum())
    divergence = (weight * p * torch.where(inside, log_p - log_model, torch.zeros_like(p)))[inside].sum()
    return {
        "total_variation": 0.5 * (float((weight * (p - q).abs()).sum()) + beyond),
        "hellinger": math.sqrt(max(0.0, 1.0 - affinity)),
        "kl": float(divergence),
    }


def _panels(edges: tuple[float, ...], counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the 8-point Gauss-Legendre rule on `counts[k]` equal panels between edges k and k
    + 1."""
    jacobi = torch.diag(
        torch.tensor([k / math.sqrt(4 * k * k - 1) for k in range(1, 8)], dtype=torch.float64, device="cpu"),
        1,
    )
    node, vectors = torch.linalg.eigh(jacobi + jacobi.T)
    rule = 2 * vectors[0].square()
    nodes, weights = [], []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        half = (high - low) / (2 * count)
        centre = low + half * (2 * torch.arange(count, dtype=torch.float64, device="cpu") + 1)
        nodes.append((centre.unsqueeze(1) + half * node).flatten())
        weights.append((half * rule).repeat(count))
    return torch.cat(nodes), torch.cat(weights)


def gallery_problem(name: str) -> Problem:
    """The gallery problem of that name: fresh training draws, 2,000 validation and 5,000 test rows.

    Example:
        >>> laplace = gallery_problem("laplace")
        >>> round(laplace.entropy, 4), tuple(laplace.test.shape)
        (1.6931, (5000, 1))
    """
    density = DENSITIES[name]

    def metrics(model: nn.Module) -> dict[str, float]:
        network = cast(Any, model)
        dtype = next(
            (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.float64
        )
        return distances(density, lambda x: network.log_prob(x.to(dtype)))

    return Problem(
        name=name,
        task="density",
        dim=1,
        train=Simulator(density.draw),
        validation=density.draw(VALIDATION_ROWS, torch.Generator().manual_seed(101)),
        test=density.draw(TEST_ROWS, torch.Generator().manual_seed(102)),
        description=f"one-dimensional {name} density, p(x) = {density.formula}; fresh training draws",
        source="simulated from the exact density",
        licence="none needed (simulated)",
        architecture=ARCHITECTURE,
        log_prob=density.log_prob,
        entropy=density.entropy,
        facts={"exact": 0.0},
        metrics=metrics,
    )
