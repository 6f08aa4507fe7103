"""What a quick search is worth, on tables and on convex functions, beside other models given the same search.

    python benchmarks/studies/quick_search.py --data DATA --hours 8 --out results/quick_search.json

Tables of 150 to 10,000 rows, a third of them test rows that nothing is chosen by. The flow is trained with
nothing set, with ``search="quick"``, and with what a larger grid chose on the same validation rows; a neural
spline flow (zuko) gets the same search over its own settings, a Gaussian mixture (scikit-learn) all of its
own. Convex functions plus noise, of six kinds: ``ConvexRegressor`` with nothing set and with the search, a
Gaussian process and a multilayer perceptron (scikit-learn), each chosen on the same held-out rows.

Four tables are marked as kept: nothing about the search was decided by them. DATA has a folder for each of
the published tables; without it these are left out. After so many hours of the processor no further cell is
begun; what is missing is done by the same command.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Ledger, finite
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.mixture import GaussianMixture
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import Result, arguments, columns, parsed, write
from torch import Tensor
from zuko_models import Autoregressive

from convexlift import quick_space, search
from convexlift.data import hold_out
from convexlift.names import SCREENS
from convexlift.problems import problem
from convexlift.seeds import generator_of
from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor
from convexlift.tasks import Standardiser
from convexlift.training import fit
from convexlift.tuning.rungs import held_out, plan_for
from convexlift.tuning.space import draw

BUNDLED = {
    "wine": datasets.load_wine,
    "cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "iris": datasets.load_iris,
}
PUBLISHED = {"power": 2500, "hepmass": 5000, "gas": 10_000, "miniboone": 4000}
SIMULATED = {"collider": 800, "digits21": 1500}
KEPT = ("iris", "gas", "miniboone", "digits21")
TABLES = (*BUNDLED, *SIMULATED, *PUBLISHED)
SIDES = ("default", "quick", "grid", "NSF, quick", "mixture")
STEPS, GRID, SHARE = 1000, 24, 0.1


def rows_of(name: str, data: Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train and validate on, and test rows: two thirds and a third, by a permutation of the seed.

    Values that occur again are told apart by noise of a thousandth of the column's deviation.
    """
    if name in BUNDLED:
        rows = torch.from_numpy(np.asarray(BUNDLED[name]().data, dtype=np.float64))
    else:
        known = problem(name, data / name if name in PUBLISHED and data is not None else None)
        rows = torch.cat([known.train, known.validation, known.test]).double()
    generator = generator_of(seed, name)
    rows = rows[:, [len(column.unique()) > 2 for column in rows.T]]
    rows = rows + 1e-3 * rows.std(0) * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    rows = rows[: {**PUBLISHED, **SIMULATED}.get(name, len(rows))]
    return rows[len(rows) // 3 :], rows[: len(rows) // 3]


def default_flow(rows: Tensor, seed: int, **options: Any) -> tuple[Any, Any]:
    """An estimator and what is told of it."""
    made = ConvexPotentialFlow(random_state=seed, allow=SCREENS, **options).fit(rows.numpy())
    return made.model_, getattr(made, "setting_", {})


def grid_flow(rows: Tensor, seed: int) -> tuple[Any, Any]:
    """The best of many settings and three lengths on the rows that the estimator validates by."""
    made = ConvexPotentialFlow(random_state=seed, allow=SCREENS)
    base: dict[str, Any] = {"sharpness": made.sharpness, "weight_decay": 0.0, "whiten": False, "blocks": 1}
    base["lr"] = made.learning_rate
    best: tuple[float, Any, Any] = (math.inf, None, {})
    for setting in draw(quick_space("flow", base, rows=len(rows), columns=rows.shape[1]), base, GRID, seed):
        for steps in (STEPS // 16, STEPS // 8, STEPS):
            told = {"learning_rate" if k == "lr" else k: v for k, v in setting.items()} | {"steps": steps}
            try:
                tried = ConvexPotentialFlow(random_state=seed, allow=SCREENS, **told).fit(rows.numpy())
            except (RuntimeError, ArithmeticError):
                continue
            loss = tried.history_.best_validation
            best = min(best, (loss, tried.model_, told), key=lambda found: found[0])
    return best[1], best[2]


def spline_flow(dim: int, transforms: int, width: int) -> Autoregressive:
    return Autoregressive("nsf", dim, transforms=transforms, hidden=(width, width), seed=0)


def searched_spline(rows: Tensor, seed: int) -> tuple[Any, Any]:
    """A spline flow of standardised rows, its settings by the same search."""
    map_ = Standardiser(rows.shape[1]).fit(rows)
    z = map_(rows, torch.float32)
    base = {"transforms": 3, "width": 64, "weight_decay": 0.0, "lr": 0.002}
    space = {"transforms": (2, 3, 5), "width": (32, 64, 128), "weight_decay": (0.0, 0.05, 1.0)}
    space["lr"] = (0.0005, 0.002, 0.008)
    make = partial(spline_flow, rows.shape[1])
    found = search(make, z, space, base, steps=STEPS, share=SHARE, seed=seed, progress=False)
    model = make(**found.of_task)
    train, validation = hold_out(z, SHARE, seed)
    fit(model, train, validation=validation, seed=seed, progress=False, allow=SCREENS, **found.of_fit)
    frozen = model.freeze()

    class Model:
        def log_prob(self, x: Tensor) -> Tensor:
            return frozen.log_prob(map_(x, torch.float32)).double() + map_.log_scale_jacobian

    return Model(), found.setting


def mixture(rows: Tensor, seed: int) -> tuple[Any, Any]:
    """A Gaussian mixture of standardised rows, chosen on the rows that a search holds out."""
    map_ = Standardiser(rows.shape[1]).fit(rows)
    z, plan = map_(rows), plan_for(rows, SHARE)
    holds = [held_out(z, SHARE, seed, plan, hold) for hold in range(plan.rungs[-1].holds)]
    settings = itertools.product((1, 2, 3, 5, 8, 12, 20), ("full", "diag"), (1e-6, 1e-3, 1e-2))

    def fitted(setting: tuple[int, str, float], z: Tensor) -> GaussianMixture:
        count, kind, least = setting
        made = GaussianMixture(count, covariance_type=kind, reg_covar=least, random_state=seed)
        return made.fit(z.numpy())

    best = max(settings, key=lambda s: statistics.fmean(fitted(s, a).score(b.numpy()) for a, b in holds))
    model = fitted(best, z)

    class Model:
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.from_numpy(model.score_samples(map_(x).numpy())) + map_.log_scale_jacobian

    return Model(), {"components": best[0], "covariance": best[1], "least": best[2]}


FLOWS: dict[str, Callable[[Tensor, int], tuple[Any, Any]]] = {
    "default": default_flow,
    "quick": partial(default_flow, search="quick"),
    "grid": grid_flow,
    "NSF, quick": searched_spline,
    "mixture": mixture,
}


# Convex functions of x in [-1, 1]^d: dimensions, rows, and a function.
TRUTHS: dict[str, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    "square": (4, 500, lambda x: x.square().sum(1)),
    "log-sum-exp": (8, 2000, lambda x: torch.logsumexp(4 * x, 1)),
    "planes": (5, 1000, lambda x: (x @ _planes(5).T).amax(1)),
    "absolute": (3, 300, lambda x: x.abs().sum(1)),
    "hinge": (6, 1500, lambda x: (x.norm(dim=1) - 0.8).clamp_min(0.0)),
    "valley": (
        10,
        5000,
        lambda x: (x[:, :3].sum(1).abs() - 0.7).clamp_min(0.0) + x[:, 3:].square().sum(1) / 4,
    ),
}
REGRESSORS = ("default", "quick", "Gaussian process", "perceptron")
NOISE, TEST_ROWS, PROCESS_ROWS = 0.2, 5000, 1500


def _planes(dim: int) -> Tensor:
    return torch.randn(12, dim, generator=generator_of("planes"), dtype=torch.float64)


def regression_rows(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, noisy targets, and test inputs with the truth; noise of a fifth of the truth's deviation."""
    dim, count, truth = TRUTHS[name]
    generator = generator_of(seed, name)
    x = 2 * torch.rand(count + TEST_ROWS, dim, generator=generator, dtype=torch.float64) - 1
    y = truth(x)
    noise = NOISE * y.std() * torch.randn(len(x), generator=generator, dtype=torch.float64)
    return x[:count], (y + noise)[:count], x[count:], y[count:]


def regressor(side: str, x: Tensor, y: Tensor, seed: int) -> tuple[Any, Any]:
    """A fitted regressor, its settings chosen on held-out rows, and these."""
    if side in ("default", "quick"):
        how = None if side == "default" else "quick"
        made = ConvexRegressor(random_state=seed, allow=SCREENS, search=how).fit(x.numpy(), y.numpy())
        return made, getattr(made, "setting_", {})
    candidates: dict[str, Any] = {}
    if side == "Gaussian process":
        x, y = x[:PROCESS_ROWS], y[:PROCESS_ROWS]  # its cost is cubic
        ones = np.ones(x.shape[1])
        for name, kernel in (("RBF", RBF(ones)), ("Matern", Matern(ones, nu=2.5)), ("one scale", RBF())):
            whole = ConstantKernel() * kernel + WhiteKernel()
            candidates[name] = GaussianProcessRegressor(whole, normalize_y=True, random_state=seed)
    else:
        for width, decay, rate in itertools.product((64, 128), (1e-4, 1e-2, 1.0), (0.001, 0.004)):
            model = MLPRegressor(
                (width, width),
                alpha=decay,
                learning_rate_init=rate,
                early_stopping=True,
                max_iter=500,
                random_state=seed,
            )
            candidates[f"width {width}, decay {decay}, rate {rate}"] = make_pipeline(StandardScaler(), model)
    plan, best = plan_for((x, y), SHARE), (math.inf, "")
    for name, model in candidates.items():
        losses = []
        for hold in range(plan.rungs[-1].holds):
            (a, b), (c, d) = held_out((x, y), SHARE, seed, plan, hold)
            losses.append(
                float(np.square(model.fit(a.numpy(), b.numpy()).predict(c.numpy()) - d.numpy()).mean())
            )
        best = min(best, (statistics.fmean(losses), name))
    return candidates[best[1]].fit(x.numpy(), y.numpy()), {"chosen": best[1]}


def outcome(cell: Mapping[str, Any], data: Path | None = None) -> dict[str, Any]:
    """The test loss of one side on one table or truth, and the seconds of the processor that it took."""
    torch.set_num_threads(1)
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if "table" in cell:
            rows, test = rows_of(cell["table"], data, cell["seed"])
            begun = time.process_time()
            model, setting = FLOWS[cell["side"]](rows, cell["seed"])
            spent = time.process_time() - begun
            losses = -model.log_prob(test).double()
            size = [len(rows), rows.shape[1]]
        else:
            x, y, held, truth = regression_rows(cell["truth"], cell["seed"])
            begun = time.process_time()
            model, setting = regressor(cell["side"], x, y, cell["seed"])
            spent = time.process_time() - begun
            off = torch.from_numpy(model.predict(held.numpy())) - truth
            losses, size = off.square() / truth.var(), [len(x), x.shape[1]]
    return {
        "test": finite(float(losses.mean())),
        "losses": [float(f"{loss:.6g}") for loss in losses.tolist()] if len(losses) <= 2000 else None,
        "size": size,
        "setting": setting,
        "processor_seconds": spent,
    }


def summary(known: Mapping[tuple[str, str, str, int], Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """A row for every table or truth, with the mean loss of each side over the seeds that are there."""
    by_name: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for (which, name, side, _), each in known.items():
        if which == kind:
            by_name.setdefault(name, {}).setdefault(side, []).append(each)
    found = []
    for name, sides in by_name.items():
        first = next(iter(sides.values()))[0]
        seconds = {
            side: statistics.fmean(each["processor_seconds"] for each in those)
            for side, those in sides.items()
        }
        both = {"quick", "default"} <= seconds.keys()
        found.append(
            {
                "name": name,
                "kept": name in KEPT,
                "rows": first["size"][0],
                "columns": first["size"][1],
                "test": {side: [each["test"] for each in those] for side, those in sides.items()},
                "processor_seconds": seconds,
                "cost": seconds["quick"] / seconds["default"] if both else None,
                "settings": {side: [each["setting"] for each in those] for side, those in sides.items()},
            }
        )
    return found


def _text(values: Sequence[float | None] | None, scale: float = 1.0) -> str:
    if values is None or any(value is None for value in values):
        return "" if values is None else "diverged"
    return f"{scale * statistics.fmean(values):.3f}"  # type: ignore[arg-type]


def _table(rows: Sequence[Mapping[str, Any]], sides: Sequence[str], scale: float) -> str:
    cells: dict[str, Any] = {
        "": lambda row: row["name"] + (" (kept)" if row["kept"] else ""),
        "rows": "{rows:,}",
        "columns": "{columns}",
    }
    for side in sides:
        cells[side] = partial(lambda side, row: _text(row["test"].get(side), scale), side)
    cells["quick / default, core-seconds"] = lambda row: "" if row["cost"] is None else f"{row['cost']:.1f}"
    return columns(rows, cells)


def table_quick_search(result: Result) -> str:
    """Test negative log-likelihood in nats on tables."""
    return _table(result["tables"], SIDES, 1.0)


def table_quick_search_regression(result: Result) -> str:
    """Test error in percent of the truth's variance."""
    return _table(result["truths"], REGRESSORS, 100.0)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=1, hours=8.0)
    parser.add_argument("--data", type=Path, default=None, help="folder of the published tables")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=TABLES)
    parser.add_argument("--truths", nargs="*", default=list(TRUTHS), choices=list(TRUTHS))
    parser.add_argument("--sides", nargs="*", default=[*SIDES, *REGRESSORS[2:]])
    options = parsed(parser, line)
    ledger, spent = Ledger(options.out, __file__), 0.0
    tables = [name for name in options.tables if name not in PUBLISHED or options.data is not None]
    cells: list[dict[str, Any]] = [
        {kind: name, "side": side, "seed": seed}
        for seed in range(options.seeds)
        for kind, names, sides in (("table", tables, SIDES), ("truth", options.truths, REGRESSORS))
        for name in names
        for side in sides
        if side in options.sides
    ]
    known = {}
    for cell in cells:
        kind = "table" if "table" in cell else "truth"
        if spent > 3600 * options.hours:
            print(f"{options.hours} hours are spent: the same command goes on")
            break
        begun = time.process_time()
        known[kind, cell[kind], cell["side"], cell["seed"]] = ledger.run(
            cell, partial(outcome, cell, options.data)
        )
        spent += time.process_time() - begun
    setting = {"seeds": options.seeds, "steps": STEPS, "grid": GRID, "noise": NOISE, "threads": 1}
    result = {"setting": setting, "tables": summary(known, "table"), "truths": summary(known, "truth")}
    write(options, result, table_quick_search, table_quick_search_regression)
    return result


if __name__ == "__main__":
    main()
