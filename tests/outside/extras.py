"""What a new user does with the extra ``all``, as ``core.py``: estimators, plots, .parquet and pages."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from core import command
from numpy.typing import NDArray

import convexlift as cl
from convexlift.plots import plot_density, plot_flow, plot_history
from convexlift.problems import problem
from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor
from convexlift.study import Budget, compare
from convexlift.tensorboard import TensorBoard


def estimators(x: NDArray[np.float64]) -> None:
    flow = ConvexPotentialFlow(hidden=(4,), steps=5, random_state=0).fit(x)
    assert flow.score_samples(x).shape == (len(x),)
    regressor = ConvexRegressor(hidden=(4,), steps=5, optimizer="soap", random_state=0).fit(x, (x**2).sum(1))
    assert regressor.predict(x).shape == (len(x),)


def figures(x: torch.Tensor, folder: Path) -> None:
    flow = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(2, hidden=(4,), seed=0))])
    with TensorBoard(folder / "events") as board:
        history = cl.fit(flow, x, steps=5, progress=False, callbacks=[board])
    frozen = flow.freeze()
    for axes in (plot_flow(frozen, x), plot_history(history)):
        assert axes is not None
    density = cl.LogConcaveDensity(cl.Squared(cl.ICNN(2, hidden=(4,), seed=0)))
    cl.fit(density, x, steps=2, progress=False)
    assert plot_density(density.freeze(), x) is not None


def files(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(128, 2))
    np.savetxt(folder / "rows.csv", rows, delimiter=",", header="a,b", comments="")
    command("train flow --data rows.csv --out run --steps 5 --hidden 4 --depth 2", folder)
    command("sample run -n 20 --out new.parquet", folder)
    command("evaluate run --data new.parquet", folder)
    assert (folder / "run" / "loss.svg").exists()


def pages(folder: Path) -> None:
    assert problem("digits21").dim == 21  # of scikit-learn's
    budget = Budget("tiny", 2, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
    compare("gumbel", arms=["squared"], budget=budget, jobs=1, out=folder / "compared")
    command("report compared", folder)
    assert (folder / "compared" / "report.html").stat().st_size > 0


def main() -> None:
    x = torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        estimators(x.double().numpy())
        figures(x, folder)
        files(folder)
        pages(folder)


if __name__ == "__main__":
    main()
