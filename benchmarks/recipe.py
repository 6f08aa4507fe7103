"""What to use without any tuning: one rate for each kind of task, against the best tuned arm.

    python benchmarks/recipe.py [--results results --seeds 3] --out results/recipe.json

The choice is made on the validation losses that `convexlift compare` left in results/*/result.json, over
eight problems: for every arm the rate in the middle of those whose loss is within the margin of the best on
every problem (0.02 nats, or 2 % of the error of a regression), or else the rate whose worst loss is least.
Three recipes are then trained on the evaluation seeds, the arm of least worst loss by kind of task, squared
weights throughout and the lift throughout, and set against the arm that did best under tuning, pair by pair
of seeds: on the problems of the search and, once, on others. For problems without a result a comparison is
made. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import Ledger, beside, mean

from convexlift.experiments import Budget, compare
from convexlift.experiments.arms import build
from convexlift.experiments.statistics import paired_difference
from convexlift.problems import problem
from convexlift.problems.catalogue import FROM_FILES
from convexlift.training import fit
from convexlift.training.batches import whole
from convexlift.training.run import TrainingDiverged

SEARCHED = (
    "gumbel",
    "uniform",
    "gamma",
    "logistic",
    "digits21",
    "collider",
    "regression-square",
    "regression-logsumexp",
)
CONFIRMED = ("laplace", "beta", "hepmass", "moon")
MADE_HERE = ("moon",)
ARMS = ("projected", "softplus", "squared", "lift")  # of the comparisons that are made here
MARGIN_NATS, MARGIN_SHARE = 0.02, 0.02
BUDGET = Budget("confirmation", 1_000, 128, (0.016, 0.032, 0.064), 2, 3, extensions=0)

Result = dict[str, Any]
Choice = tuple[str, float]


def margin(result: Result) -> float:
    """What counts as near the best: 0.02 nats, for a regression 2 % of the best tuned test error."""
    return MARGIN_SHARE * best_tuned(result)[1] if result["task"] == "regression" else MARGIN_NATS


def best_tuned(result: Result) -> tuple[str, float]:
    """The arm of the least mean test loss at its own tuned rate, and that loss."""
    means = {arm: row["test"]["mean"] for arm, row in result["arms"].items()}
    return min(((arm, loss) for arm, loss in means.items() if loss is not None), key=lambda item: item[1])


def regrets(result: Result) -> dict[Choice, float]:
    """Every arm and rate: its mean validation loss above the least of all, in margins."""
    losses = {
        (arm, row["lr"]): math.inf if row["validation"] is None else row["validation"]
        for arm, figures in result["arms"].items()
        for row in figures["rates"]
    }
    least = min(losses.values())
    return {choice: (loss - least) / margin(result) for choice, loss in losses.items()}


def choose(results: Mapping[str, Result]) -> dict[str, list[dict[str, Any]]]:
    """By kind of task, every arm at the rate that needs no tuning, the least worst regret first."""
    ranked: dict[str, list[dict[str, Any]]] = {}
    for task in dict.fromkeys(result["task"] for result in results.values()):
        found = [regrets(result) for result in results.values() if result["task"] == task]
        common = sorted(set.intersection(*(set(each) for each in found)))
        worst = {choice: max(each[choice] for each in found) for choice in common}
        rows = []
        for arm in dict.fromkeys(arm for arm, _ in common):
            by_rate = {lr: worst[arm, lr] for name, lr in common if name == arm}
            near = [lr for lr, regret in by_rate.items() if regret <= 1]
            lr = near[(len(near) - 1) // 2] if near else min(by_rate, key=lambda lr: by_rate[lr])
            rows.append({"arm": arm, "lr": lr, "worst_regret": by_rate[lr], "near": near})
        ranked[task] = sorted(
            (row for row in rows if math.isfinite(row["worst_regret"])), key=lambda row: row["worst_regret"]
        )
    return ranked


def recipes(ranked: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Choice]]:
    """By name, what each recipe uses for each kind of task."""
    throughout = {
        f"{arm} throughout": {
            task: (arm, next(row["lr"] for row in rows if row["arm"] == arm)) for task, rows in ranked.items()
        }
        for arm in ("squared", "lift")
    }
    return {
        "least worst loss": {task: (rows[0]["arm"], rows[0]["lr"]) for task, rows in ranked.items()},
        **throughout,
    }


def train(name: str, arm: str, lr: float, seed: int, steps: int, batch_size: int) -> dict[str, Any]:
    """The frozen test loss of one run, as a comparison makes it; None where it diverged."""
    chosen = problem(name)
    task = cast(Any, build(chosen, arm, seed))
    rows = whole(chosen.train)
    task.initialise(rows)
    try:
        fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            evaluate_every=max(1, steps // 20),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"test": None}
    test = float(chosen.score(task.freeze(rows)).double().mean())
    return {"test": test if math.isfinite(test) else None}


def against_tuned(
    name: str, result: Result, choice: Choice, seeds: int, run: Callable[..., float | None]
) -> dict[str, Any]:
    """The chosen arm and rate on the evaluation seeds against the best tuned arm, and whether it is near.

    Where the arm's tuned rate is the chosen one, its figures are those of the result.
    """
    arm, lr = choice
    rival, _ = best_tuned(result)
    theirs = result["arms"][rival]["test"]["per_seed"][:seeds]
    own = result["arms"][arm]
    if own["lr"] == lr:
        mine = own["test"]["per_seed"][:seeds]
    else:
        protocol = result["protocol"]
        mine = [
            run(name, arm, lr, seed, protocol["steps"], protocol["batch_size"]) for seed in range(len(theirs))
        ]
    losses = [math.inf if loss is None else loss for loss in mine]
    difference = paired_difference(losses, theirs)
    near = difference["mean"] is not None and difference["mean"] <= margin(result)
    return {
        "choice": [arm, lr],
        "test": mean(mine) if all(map(math.isfinite, losses)) else None,
        "best_tuned": [rival, result["arms"][rival]["lr"], mean(theirs)],
        "difference": difference,
        "margin": margin(result),
        "near": near,
        "against": {
            other: paired_difference(losses, result["arms"][other]["test"]["per_seed"][:seeds])
            for other in ("projected", "softplus")
            if other in result["arms"]
        },
    }


def measurable(name: str, result: Result, choice: Choice) -> bool:
    """Whether a choice can be scored: its figures are in the result, or the problem reads no file."""
    arm, lr = choice
    return name not in FROM_FILES or bool(result["arms"][arm]["lr"] == lr)


def read(folder: Path, names: Sequence[str]) -> dict[str, Result]:
    """The results that a comparison left, of those problems that have one."""
    paths = {name: folder / name / "result.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()
    }


def table(title: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """Each problem's figures as text."""
    lines = [f"\n{title}", f"{'':22}{'untuned':>33}{'best tuned':>36}{'difference':>12}{'margin':>9}"]
    for name, row in rows.items():
        arm, lr = row["choice"]
        rival, rate, loss = row["best_tuned"]
        test = "diverged" if row["test"] is None else f"{row['test']:.5g}"
        gap = "" if row["difference"]["mean"] is None else f"{row['difference']['mean']:+.4f}"
        lines.append(
            f"{name:22}{f'{arm} {lr:g}':>22}{test:>11}{f'{rival} {rate:g}':>24}{loss:>12.5g}{gap:>12}"
            f"{row['margin']:9.3f}  {'near' if row['near'] else 'not near'}"
        )
    lines.append(f"near on {sum(row['near'] for row in rows.values())} of {len(rows)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="where comparisons left theirs")
    parser.add_argument("--searched", nargs="+", default=SEARCHED)
    parser.add_argument("--confirmed", nargs="*", default=CONFIRMED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ledger = Ledger(beside(options.out))

    def run(name: str, arm: str, lr: float, seed: int, steps: int, batch_size: int) -> float | None:
        cell = {"problem": name, "arm": arm, "lr": lr, "seed": seed, "steps": steps, "batch_size": batch_size}
        outcome = ledger.run(cell, lambda: train(name, arm, lr, seed, steps, batch_size))
        return cast("float | None", outcome["test"])

    searched = read(options.results, options.searched)
    ranked = choose(searched)
    for task, rows in ranked.items():
        told = ", ".join(f"{row['arm']} {row['lr']:g} ({row['worst_regret']:.2f})" for row in rows)
        print(f"{task}: worst validation loss above the best, in margins: {told}", flush=True)
    others = read(options.results, options.confirmed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.out is None else options.out.with_suffix(".cells")
        for name in (name for name in options.confirmed if name in MADE_HERE):
            others[name] = compare(name, budget=BUDGET, arms=ARMS, out=folder / name, jobs=1)
    chosen = recipes(ranked)
    figures: dict[str, Any] = {}
    for recipe, choice in chosen.items():
        for part, results in (("searched", searched), ("confirmed", others)):
            rows = {
                name: against_tuned(name, result, choice[result["task"]], options.seeds, run)
                for name, result in results.items()
                if measurable(name, result, choice[result["task"]])
            }
            figures.setdefault(recipe, {})[part] = rows
            print(table(f"{recipe}, {part} problems", rows), flush=True)
    result = {
        "setting": {"seeds": list(range(options.seeds)), "margin": [MARGIN_NATS, MARGIN_SHARE]},
        "ranked": ranked,
        "recipes": chosen,
        "figures": figures,
    }
    timing.write(options.out, "python benchmarks/recipe.py", result)
    return result


if __name__ == "__main__":
    main()
