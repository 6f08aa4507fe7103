"""Five two-dimensional densities for flows; training rows are drawn afresh at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexlift.data import Simulator
from convexlift.problems.base import Problem

VALIDATION_ROWS = 1_000
TEST_ROWS = 4_000
# Of the draws, whatever torch's defaults are.
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
ARCHITECTURE = {"hidden": (64, 64, 64)}

Draw = Callable[[int, torch.Generator | None], Tensor]


def rings(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Four concentric circles of radius 0.5, 1, 1.5 and 2 with radial noise 0.06, (n, 2).

    Example:
        >>> rings(5, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    radius = 0.5 * torch.randint(1, 5, (n,), generator=generator, **_PLAIN) + 0.06 * torch.randn(
        n, generator=generator, **_PLAIN
    )
    angle = 2 * math.pi * torch.rand(n, generator=generator, **_PLAIN)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def eight_gaussians(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Eight equal Gaussians of deviation 0.2 on a circle of radius 2, (n, 2)."""
    angle = math.pi / 4 * torch.randint(0, 8, (n,), generator=generator, **_PLAIN)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + 0.2 * torch.randn(n, 2, generator=generator, **_PLAIN)


def eight_gaussians_log_prob(x: Tensor) -> Tensor:
    """The exact log density of `eight_gaussians`, (N, 2) to (N,)."""
    angle = math.pi / 4 * torch.arange(8, dtype=x.dtype, device=x.device)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    square = (x.unsqueeze(1) - centre).square().sum(-1) / 0.2**2
    return torch.logsumexp(-square / 2, dim=1) - math.log(8 * 2 * math.pi * 0.2**2)


def moon(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Two interleaved half circles with noise 0.1, (n, 2)."""
    angle = math.pi * torch.rand(n, generator=generator, **_PLAIN)
    side = 2.0 * torch.randint(0, 2, (n,), generator=generator, **_PLAIN) - 1
    x = torch.stack([angle.cos() - side / 2, side * (angle.sin() - 0.25)], dim=1)
    return x + 0.1 * torch.randn(n, 2, generator=generator, **_PLAIN)


def pinwheel(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Five arms, each a stretched Gaussian twisted by exp(radius - 1) / 4, (n, 2)."""
    arm = torch.randint(0, 5, (n,), generator=generator, **_PLAIN)
    noise = torch.randn(n, 2, generator=generator, **_PLAIN)
    x, y = 1 + 0.3 * noise[:, 0], 0.1 * noise[:, 1]
    angle = 2 * math.pi / 5 * arm + 0.25 * torch.exp(x - 1)
    return 2 * torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=1)


def checkerboard(n: int, generator: torch.Generator | None = None) -> Tensor:
    """The eight black unit squares of a 4 x 4 board on [-2, 2]^2, uniform, (n, 2)."""
    x = 4 * torch.rand(n, generator=generator, **_PLAIN) - 2
    row = 2 * torch.randint(0, 2, (n,), generator=generator, **_PLAIN) - 2 + x.floor().remainder(2)
    return torch.stack([x, row + torch.rand(n, generator=generator, **_PLAIN)], dim=1)


TOYS: dict[str, Draw] = {
    "rings": rings,
    "eight-gaussians": eight_gaussians,
    "moon": moon,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
}


def toy_problem(name: str) -> Problem:
    """The toy of that name as a flow problem: fresh training draws, 1,000 validation and 4,000 test rows.

    Example:
        >>> tuple(toy_problem("pinwheel").test.shape)
        (4000, 2)
    """
    draw = TOYS[name]
    test = draw(TEST_ROWS, torch.Generator().manual_seed(302))
    exact = {
        "eight-gaussians": eight_gaussians_log_prob,
        "checkerboard": lambda x: x.new_full((len(x),), -math.log(8)),
    }
    facts = {"exact": -float(exact[name](test).mean())} if name in exact else {}
    return Problem(
        name=name,
        task="flow",
        dim=2,
        train=Simulator(draw),
        validation=draw(VALIDATION_ROWS, torch.Generator().manual_seed(301)),
        test=test,
        description=f"two-dimensional toy '{name}'; fresh training draws",
        source="simulated",
        licence="none needed (simulated)",
        architecture=ARCHITECTURE,
        entropy=math.log(8) if name == "checkerboard" else None,
        facts=facts,
    )
