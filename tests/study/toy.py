"""A comparison that takes milliseconds: least squares with one weight, through `own`."""

from __future__ import annotations

import torch
from torch import nn

from convexlift.problems import Problem


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(1, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return self.slope * x


class LeastSquares(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, batch):
        x, y = batch
        return (self.net(x) - y).square().mean()


class Handicapped(Net):
    """Adds a constant error that no training removes."""

    def __init__(self, net: Net) -> None:
        super().__init__(0)
        self.slope = net.slope

    def forward(self, x):
        return super().forward(x) + 1.0


class Explosive(Net):
    def __init__(self, net: Net) -> None:
        super().__init__(0)
        self.slope = net.slope

    def forward(self, x):
        return super().forward(x) * torch.inf


class Broken(Net):
    def __init__(self, net: Net) -> None:
        raise LookupError("no such thing")


def toy() -> Problem:
    draws = torch.Generator().manual_seed(0)

    def split(n: int):
        x = torch.randn(n, generator=draws)
        return x, 2 * x + 0.1 * torch.randn(n, generator=draws)

    return Problem(
        name="line",
        task="own",
        dim=1,
        train=split(64),
        validation=split(32),
        test=split(32),
        description="a line",
        source="simulated",
        licence="none needed",
        network=Net,
        build=lambda blocks: LeastSquares(blocks[0]),
        losses=lambda model, rows: (model.net(rows[0]) - rows[1]).square(),
    )


def identity(net: nn.Module) -> nn.Module:
    return net


def two_arms():
    return toy(), {"one": identity, "two": identity}


def handicapped():
    return toy(), {"good": identity, "bad": Handicapped}


def troubled():
    return toy(), {"good": identity, "explosive": Explosive, "broken": Broken}


def hopeless():
    return toy(), {"broken": Broken}
