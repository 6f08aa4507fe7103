"""Convex regression without tuning: centring, rate and weight decay on 16 small problems.

    python benchmarks/regression_defaults.py [--steps 1000 --seeds 2] --out results/regression_defaults.json

Four convex truths on [-1, 1]^d, two smooth and two with kinks, at four sizes: 200 rows in one column without
noise, 500 in two with much noise, 2,000 in five with little, 1,000 in ten with more. A tenth of the rows
validates. The score is the squared distance to the noiseless truth over 4,000 fresh points, as a share of the
truth's variance. Each way to train is set against the best of all on every problem: the geometric mean of the
ratios, and the worst. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timing
import torch
from rates import Ledger, Outcome, beside, mean
from torch import Tensor

import convexlift as cl
from convexlift.training import fit
from convexlift.training.history import TrainingDiverged

HIDDEN, BATCH_SIZE = (64, 64, 64), 256  # those of convexlift.sklearn.ConvexRegressor
SIZES = (
    (1, 200, 0.0),
    (2, 500, 0.3),
    (5, 2_000, 0.1),
    (10, 1_000, 0.5),
)  # columns, rows, noise / sd of the truth
TEST_POINTS, PLANES = 4_000, 6
DATA_SEED = 3


@dataclass(frozen=True)
class Way:
    """How to train; ``centred`` takes "means", or means and "slopes", out of the activations."""

    lr: float
    centred: str = ""
    weight_decay: float = 0.0


WAYS = {
    "plain, 0.01": Way(0.01),
    "plain, 0.01, decay 0.1": Way(0.01, weight_decay=0.1),
    "means, 0.002": Way(0.002, "means"),
    "means, 0.01": Way(0.01, "means"),
    "slopes, 0.01": Way(0.01, "slopes"),
    "slopes, 0.01, decay 1": Way(0.01, "slopes", 1.0),
    "slopes, 0.01, decay 10": Way(0.01, "slopes", 10.0),
}


def truths(dim: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """The convex functions to learn, (N, d) to (N,)."""
    planes = torch.randn(PLANES, dim, generator=torch.Generator().manual_seed(DATA_SEED))
    return {
        "squares": lambda x: x.square().sum(-1),
        "exponentials": lambda x: x.exp().sum(-1),
        "absolute values": lambda x: x.abs().sum(-1),
        "maximum of planes": lambda x: (x @ planes.T).amax(-1),
    }


def train(name: str, size: tuple[int, int, float], way: Way, seed: int, steps: int) -> Outcome:
    """The test error of one frozen regression as a share of the truth's variance; None where it diverged."""
    dim, rows, noise = size
    truth, draws = truths(dim)[name], torch.Generator().manual_seed(seed)
    x, points = (2 * torch.rand(n, dim, generator=draws) - 1 for n in (rows, TEST_POINTS))
    spread = float(truth(points).std())
    y = truth(x) + noise * spread * torch.randn(rows, generator=draws)
    kept = rows // 10
    source: Any = cl.Squared(
        cl.ICNN(dim, HIDDEN, strong_convexity=0.0, learn_strong_convexity=False, seed=seed)
    )
    task = cl.ConvexRegression(cl.Centred(source, slopes=way.centred == "slopes") if way.centred else source)
    task.initialise((x[kept:], y[kept:]))
    try:
        fit(
            task,
            (x[kept:], y[kept:]),
            validation=(x[:kept], y[:kept]),
            steps=steps,
            batch_size=BATCH_SIZE,
            lr=way.lr,
            weight_decay=way.weight_decay,
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"error": None}
    error = float((task.freeze().predict(points) - truth(points)).square().mean()) / spread**2
    return {"error": error if math.isfinite(error) else None}


def study(
    ways: Mapping[str, Way], steps: int, seeds: int, ledger: Ledger
) -> dict[str, dict[str, list[float | None]]]:
    """Every problem, way and seed: the test errors."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for size in SIZES:
        for name in truths(1):
            rows = found.setdefault(f"{name}, {size[0]} columns, {size[1]} rows, noise {size[2]:g}", {})
            for title, way in ways.items():
                for seed in range(seeds):
                    cell = {"truth": name, "size": list(size), "seed": seed, "steps": steps, **asdict(way)}
                    outcome = ledger.run(
                        cell,
                        lambda n=name, s=size, w=way, k=seed: train(n, s, w, k, steps),  # type: ignore[misc]
                    )
                    rows.setdefault(title, []).append(outcome["error"])
            print(f"{name}, {size}: {', '.join(f'{k} {mean(v):.4f}' for k, v in rows.items())}", flush=True)
    return found


def ratios(found: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, dict[str, Any]]:
    """Each way's mean error over the least one of the problem: geometric mean and worst over problems."""
    best = {name: min(map(mean, rows.values())) for name, rows in found.items()}
    by_way = {
        title: {name: mean(rows[title]) / best[name] for name, rows in found.items()}
        for title in next(iter(found.values()))
    }
    return {
        title: {
            "geometric_mean": math.exp(statistics.fmean(map(math.log, each.values()))),
            "worst": max(each.values()),
            "worst_problem": max(each, key=lambda name: each[name]),
            "best_on": sum(ratio == 1 for ratio in each.values()),
        }
        for title, each in by_way.items()
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = study(
        {title: WAYS[title] for title in options.ways},
        options.steps,
        options.seeds,
        Ledger(beside(options.out)),
    )
    figures = ratios(found)
    for title, row in figures.items():
        print(
            f"{title:26}{row['geometric_mean']:8.2f} times the best, at worst {row['worst']:7.1f} "
            f"({row['worst_problem']}), best on {row['best_on']}"
        )
    command = f"python benchmarks/regression_defaults.py --steps {options.steps} --seeds {options.seeds}"
    if options.ways != list(WAYS):
        command += f" --ways {' '.join(map(shlex.quote, options.ways))}"
    timing.write(options.out, command, {"errors": found, "ratios": figures})
    return {"errors": found, "ratios": figures}


if __name__ == "__main__":
    main()
