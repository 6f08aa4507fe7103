"""Convex regression without tuning: centring, rate and weight decay on 16 small problems.

    python benchmarks/studies/regression_defaults.py --out results/regression_defaults.json

Four convex truths on [-1, 1]^d, two smooth and two with kinks, at four sizes: 200 rows in one column without
noise, 500 in two with much noise, 2,000 in five with little, 1,000 in ten with more. A tenth of the rows
validates. The score is the squared distance to the noiseless truth over 4,000 fresh points, as a share of the
truth's variance. Each way to train is set against the best of all on every problem: the geometric mean of the
ratios, and the worst. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from common import Ledger, Outcome, finite, mean
from common import train as trained
from timing import Result, arguments, columns, parsed, write
from torch import Tensor

import convexlift as cl

HIDDEN, BATCH_SIZE = (64, 64, 64), 256  # those of convexlift.sklearn.ConvexRegressor
SIZES = ((1, 200, 0.0), (2, 500, 0.3), (5, 2_000, 0.1), (10, 1_000, 0.5))  # columns, rows, noise / sd
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
    net = cl.ICNN(dim, HIDDEN, strong_convexity=0.0, learn_strong_convexity=False, seed=seed)
    source: Any = cl.Squared(net)
    task = cl.ConvexRegression(cl.Centred(source, slopes=way.centred == "slopes") if way.centred else source)
    how = {"steps": steps, "evaluations": 25, "batch_size": BATCH_SIZE, "seed": seed}
    how |= {"lr": way.lr, "weight_decay": way.weight_decay}
    history = trained(task, (x[kept:], y[kept:]), (x[:kept], y[:kept]), **how)
    if history is None:
        return {"error": None}
    error = float((task.freeze().predict(points) - truth(points)).square().mean()) / spread**2
    return {"error": finite(error)}


Errors = dict[str, dict[str, list[float | None]]]  # of a problem and a way, seed by seed


def study(ways: Mapping[str, Way], steps: int, seeds: int, ledger: Ledger) -> Errors:
    """Every problem, way and seed: the test errors."""
    found: Errors = {}
    for size, name in itertools.product(SIZES, truths(1)):
        rows = found.setdefault(f"{name}, {size[0]} columns, {size[1]} rows, noise {size[2]:g}", {})
        for (title, way), seed in itertools.product(ways.items(), range(seeds)):
            cell = {"truth": name, "size": list(size), "seed": seed, "steps": steps, **asdict(way)}
            outcome = ledger.run(cell, partial(train, name, size, way, seed, steps))
            rows.setdefault(title, []).append(outcome["error"])
        print(f"{name}, {size}: {', '.join(f'{k} {mean(v):.4f}' for k, v in rows.items())}", flush=True)
    return found


def ratios(found: Errors) -> dict[str, dict[str, Any]]:
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


def table_regression_defaults(result: Result) -> str:
    """Ways to train a convex regression, over the 16 problems."""
    cells = {
        "trained by": "{title}",
        "error / least error": "{geometric_mean:.2f}",
        "at worst": "{worst:,.1f} ({worst_problem})",
        "least on": "{best_on}",
    }
    rows = [{"title": title, **row} for title, row in result["ratios"].items()]
    return columns(rows, cells).replace(" 1 columns", " 1 column")


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=2, steps=1_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parsed(parser, line)
    ways = {title: WAYS[title] for title in options.ways}
    found = study(ways, options.steps, options.seeds, Ledger(options.out, __file__))
    result = {"errors": found, "ratios": ratios(found)}
    write(options, result, table_regression_defaults)
    return result


if __name__ == "__main__":
    main()
