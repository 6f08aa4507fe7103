"""What a new user does with an installed wheel without extras: a program of somebody else's, fully typed.

``scripts/smoke`` runs it in a fresh environment; ``mypy --strict`` checks it against the installed package.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.mechanism import Recorder
from convexlift.objectives import Objective, objective_named
from convexlift.problems import Problem, problem
from convexlift.testing import CheckFailed, ConvexityResult, check_convex
from convexlift.training import FitEvent

FLOW = "--steps 5 --hidden 4 --depth 2"


def flow_of(rows: Tensor, folder: Path) -> cl.ConvexPotentialFlow:
    """A flow that was trained, frozen, saved and loaded."""
    steps: list[int] = []

    def tell(event: FitEvent) -> None:
        assert_type(event.step, int)
        steps.append(event.step)

    flow = cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4, 4), seed=0), seed=0)])
    recorder = Recorder(rows[:64])
    history = cl.fit(
        flow, rows[:192], validation=rows[192:], steps=5, progress=False, callbacks=[tell, recorder]
    )
    assert_type(history, cl.History)
    frozen = assert_type(flow.freeze(rows[:192]), cl.ConvexPotentialFlow)
    cl.save(frozen, folder / "flow.safetensors")
    loaded: cl.ConvexPotentialFlow = cl.load(folder / "flow.safetensors")
    assert_type(loaded.log_prob(rows), Tensor)
    assert steps and torch.equal(loaded.log_prob(rows), frozen.log_prob(rows))
    assert assert_type(loaded.sample(3), Tensor).shape == (3, 2)
    distribution: torch.distributions.Distribution = cl.FlowDistribution(loaded)
    assert distribution.event_shape == (2,)
    return loaded


def density_of(rows: Tensor) -> cl.LogConcaveDensity:
    objective: Objective = objective_named("mle", 2)
    density = cl.LogConcaveDensity(cl.Softplus(cl.ICNN(2, hidden=(4,))), objective=objective)
    cl.fit(density, rows, steps=2, progress=False)
    frozen = assert_type(density.freeze(), cl.LogConcaveDensity)
    assert assert_type(frozen.log_prob(rows), Tensor).isfinite().all()
    return frozen


def regression_of(x: Tensor, y: Tensor) -> cl.ConvexRegression:
    regression = cl.ConvexRegression(cl.Squared(cl.ICNN(2, hidden=(4,))))
    cl.fit(regression, (x, y), steps=2, progress=False)
    frozen = assert_type(regression.freeze(), cl.ConvexRegression)
    assert assert_type(frozen.predict(x), Tensor).shape == y.shape
    return frozen


def is_convex(network: nn.Module) -> bool:
    try:
        found = assert_type(check_convex(network, dim=2), ConvexityResult)
    except CheckFailed:
        return False
    return bool(found)


class Bowl(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1)


def command(words: str, folder: Path, *, refused: str = "") -> None:
    """Run ``convexlift``; where it refuses, its message says so."""
    done = subprocess.run(
        [sys.executable, "-m", "convexlift", *words.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == bool(refused) and refused in done.stderr, f"{words}: {done.stderr}"


def commands(rows: Tensor, folder: Path) -> None:
    lines = ["a,b", *(f"{a},{b}" for a, b in rows.tolist())]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command("--version", folder)
    command("--help", folder)
    command(f"train flow --data rows.csv --out run {FLOW}", folder)
    command("evaluate run --data rows.csv", folder)
    command("sample run -n 10 --out new.csv", folder)
    assert len((folder / "new.csv").read_text(encoding="utf-8").split()) == 11
    if find_spec("pyarrow") is None:
        command("sample run -n 10 --out new.parquet", folder, refused="pip install 'convexlift[tables]'")
    if find_spec("matplotlib") is None:
        command("compare digits21 --out compared", folder, refused="pip install 'convexlift[report]'")


def main() -> None:
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        flow_of(x, folder)
        density_of(x)
        regression_of(x, x.square().sum(1))
        assert is_convex(Bowl())
        gumbel: Problem = problem("gumbel")
        assert gumbel.dim == 1
        commands(x, folder)


if __name__ == "__main__":
    main()
