"""What cases start from: rows, models, files and commands."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.cli.main import app, join_lists

TINY = {"hidden": (4,), "steps": 2, "random_state": 0}
FLOAT64 = torch.float64


def rows(n: int = 60, dim: int = 2) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def with_entry(value: float, row: int = 3, column: int = 1) -> Tensor:
    """Rows with one odd entry."""
    x = rows()
    x[row, column] = value
    return x


def with_column(value: float | Tensor, column: int = 1) -> Tensor:
    """Rows with one odd column."""
    x = rows()
    x[:, column] = value
    return x


def net(dim: int = 2, **options: Any) -> cl.ICNN:
    return cl.ICNN(dim, hidden=(4,), seed=0, **options)


def flow(dim: int = 2) -> Any:
    """A flow to be trained."""
    return cl.ConvexPotentialFlow([net(dim)])


def density(dim: int = 1, **options: Any) -> Any:
    """A density to be trained."""
    return cl.LogConcaveDensity(net(dim), **options)


def regression() -> Any:
    return cl.ConvexRegression(net())


def conditional(**options: Any) -> Any:
    """A density of two columns given three, to be trained."""
    return cl.ConditionalDensity(picnn(), **options)


def picnn(dim: int = 2, **options: Any) -> Any:
    return cl.PICNN(dim, context_dim=3, hidden=(4,), seed=0, **options)


@final
class Mean(nn.Module):
    """The least that `fit` trains; its loss may be given."""

    def __init__(self, loss: object = None) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))
        self.given = loss

    def loss(self, batch: Any) -> Any:
        return (batch - self.m).square().mean() if self.given is None else self.given


def fit(module: Any = None, data: Any = None, **options: Any) -> cl.History:
    settings = {"steps": 2, "progress": False, **options}
    return cl.fit(Mean() if module is None else module, rows() if data is None else data, **settings)


def text(content: str | bytes, name: str = "rows.csv") -> str:
    """A file of that content."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def table(n: int = 20) -> str:
    """rows.csv with columns a and b."""
    lines = [f"{a:.6f},{b:.6f}" for a, b in rows(n).tolist()]
    return text("\n".join(["a,b", *lines]) + "\n")


def array(value: Any, name: str = "rows.npy") -> str:
    np.save(name, value)
    return name


def arrays(name: str = "rows.npz", **values: Any) -> str:
    np.savez(name, **values)
    return name


def model(made: Callable[[], Any] = flow, name: str = "run/model.safetensors") -> str:
    """The folder of a run with that model, frozen."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    cl.save(made().freeze(), name)
    return str(Path(name).parent)


def run(words: str) -> Any:
    """A command, in this process."""
    return app(join_lists(shlex.split(words)), prog_name="convexlift", standalone_mode=False)


def command(words: str, *before: Callable[[], object]) -> Callable[[], Any]:
    """To do some things and then run a command."""

    def do() -> Any:
        for prepare in before:
            prepare()
        return run(words)

    return do


made = functools.partial
