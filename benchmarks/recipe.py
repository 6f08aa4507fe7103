"""What to use without any tuning: one rate for each kind of task, against the best tuned arm.

    python benchmarks/recipe.py [--results results --seeds 3 --hepmass FILE] --out results/recipe.json

The choice is made on validation losses over eight problems: those that `convexlift compare` left in
results/*/result.json for its arms and, for the candidates, those of runs made here, of the same seeds:
squared weights with centred activations, and with weight decay. For every arm it is the rate in the middle of
those whose loss is within the margin of the best on every problem (0.02 nats, or 2 % of the error of a
regression), or else the rate whose worst loss is least; for a candidate the rate and decay whose worst loss
is least. Each recipe is then trained on the evaluation seeds and set against the arm that did best under
tuning, pair by pair of seeds: on the problems of the search and, once, on others. For problems without a
result a comparison is made. Finished cells are kept beside --out: run it again to go on. Figures of other
recipes that --out already holds stay.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from depth import write
from rates import Ledger, beside, mean, or_inf
from torch import nn

from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.problems.catalogue import FROM_FILES
from convexlift.sources import Centred, Squared
from convexlift.study import Budget, compare
from convexlift.study.arms import build
from convexlift.study.statistics import paired_difference
from convexlift.training import fit
from convexlift.training.run import TrainingDiverged

Result = dict[str, Any]
Step = tuple[float, float]  # rate and weight decay
Choice = tuple[str, float, float]  # arm, rate and weight decay

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
# A candidate is squared weights with centred activations or weight decay on some kinds of task, each with the
# rates and decays tried, and squared weights as they stand on the others.
CANDIDATES: Mapping[str, Mapping[str, tuple[Step, ...]]] = {
    "centred": {"regression": ((0.001, 0.0), (0.002, 0.0))},
    "decayed": {
        "regression": ((0.004, 10.0), (0.01, 10.0), (0.02, 10.0)),
        "flow": ((0.032, 0.1), (0.032, 0.25), (0.032, 0.5)),
    },
}
SELECTION_SEEDS = (1_000, 1_001)  # those of the comparisons
RECIPES = ("squared", "lift", *CANDIDATES)
MARGIN_NATS, MARGIN_SHARE = 0.02, 0.02
BUDGET = Budget("confirmation", 1_000, 128, (0.016, 0.032, 0.064), 2, 3, extensions=0)


def margin(result: Result) -> float:
    """What counts as near the best: 0.02 nats, for a regression 2 % of the best tuned test error."""
    return MARGIN_SHARE * best_tuned(result)[1] if result["task"] == "regression" else MARGIN_NATS


def best_tuned(result: Result) -> tuple[str, float]:
    """The arm of the least mean test loss at its own tuned rate, and that loss."""
    means = {arm: row["test"]["mean"] for arm, row in result["arms"].items() if "test" in row}
    return min(((arm, loss) for arm, loss in means.items() if loss is not None), key=lambda item: item[1])


def regrets(result: Result) -> dict[Choice, float]:
    """Every arm, rate and decay: its mean validation loss above that of the best tuned arm, in margins."""
    losses = {
        (arm, row["lr"], row.get("weight_decay", 0.0)): or_inf(row["validation"])
        for arm, figures in result["arms"].items()
        for row in figures["rates"]
    }
    least = min(loss for (arm, *_), loss in losses.items() if arm not in CANDIDATES)
    return {choice: (loss - least) / margin(result) for choice, loss in losses.items()}


def choose(results: Mapping[str, Result]) -> dict[str, list[dict[str, Any]]]:
    """By kind of task, every arm at the step that needs no tuning, the least worst regret first."""
    ranked: dict[str, list[dict[str, Any]]] = {}
    for task in dict.fromkeys(result["task"] for result in results.values()):
        found = [regrets(result) for result in results.values() if result["task"] == task]
        common = sorted(set.intersection(*(set(each) for each in found)))
        worst = {choice: max(each[choice] for each in found) for choice in common}
        rows = []
        for arm in dict.fromkeys(arm for arm, *_ in common):
            by_step = {(lr, decay): worst[arm, lr, decay] for name, lr, decay in common if name == arm}
            near = [step for step, regret in by_step.items() if regret <= 1]
            middle = near and arm not in CANDIDATES
            step = near[(len(near) - 1) // 2] if middle else min(by_step, key=lambda step: by_step[step])
            rows.append(
                {
                    "arm": arm,
                    "lr": step[0],
                    "weight_decay": step[1],
                    "worst_regret": by_step[step],
                    "near": near,
                }
            )
        ranked[task] = sorted(
            (row for row in rows if math.isfinite(row["worst_regret"])), key=lambda row: row["worst_regret"]
        )
    return ranked


def task_of(chosen: Problem, arm: str, seed: int) -> Any:
    """The untrained task of an arm or a candidate."""
    if arm not in CANDIDATES:
        return build(chosen, arm, seed)

    def block(network: nn.Module) -> nn.Module:
        source = Squared(network)
        return Centred(source, slopes=arm == "decayed") if chosen.task == "regression" else source

    return build(chosen, arm, seed, {arm: block})


def train(chosen: Problem, choice: Choice, seed: int, steps: int, batch_size: int) -> dict[str, Any]:
    """The frozen losses of one run, as a comparison makes it; None where it diverged."""
    arm, lr, decay = choice
    task = task_of(chosen, arm, seed)
    rows = whole(chosen.train)
    task.initialise(rows)
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            weight_decay=decay,
            evaluate_every=max(1, steps // 20),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"validation": None, "test": None}
    test = float(chosen.evaluate(task.freeze(rows)).double().mean())
    return {"validation": history.best_validation, "test": test if math.isfinite(test) else None}


def tried(name: str, result: Result, arm: str, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A candidate's mean validation loss at every step tried, in the form of an arm of a comparison."""
    protocol = result["protocol"]
    rates = []
    for lr, decay in CANDIDATES[arm][result["task"]]:
        runs = [
            run(name, (arm, lr, decay), seed, protocol["steps"], protocol["batch_size"])
            for seed in SELECTION_SEEDS
        ]
        loss = mean(outcome["validation"] for outcome in runs)
        found = loss if math.isfinite(loss) else None
        rates.append({"lr": lr, "weight_decay": decay, "validation": found})
    return {"rates": rates}


def against_tuned(
    name: str, result: Result, choice: Choice, seeds: int, run: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """The chosen arm and rate on the evaluation seeds against the best tuned arm, and whether it is near.

    Where the arm's tuned rate is the chosen one, its figures are those of the result.
    """
    arm, lr, _ = choice
    rival, _ = best_tuned(result)
    theirs = result["arms"][rival]["test"]["per_seed"][:seeds]
    own = result["arms"].get(arm, {})
    if own.get("lr") == lr:
        mine = own["test"]["per_seed"][:seeds]
    else:
        protocol = result["protocol"]
        mine = [
            run(name, choice, seed, protocol["steps"], protocol["batch_size"])["test"]
            for seed in range(len(theirs))
        ]
    losses = [or_inf(loss) for loss in mine]
    difference = paired_difference(losses, theirs)
    near = difference["mean"] is not None and difference["mean"] <= margin(result)
    return {
        "choice": list(choice),
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


def measurable(name: str, result: Result, choice: Choice, files: Mapping[str, Path]) -> bool:
    """Whether a choice can be scored: its figures are in the result, or the problem's rows are at hand."""
    arm, lr, _ = choice
    return name not in FROM_FILES or name in files or result["arms"].get(arm, {}).get("lr") == lr


def read(folder: Path, names: Sequence[str]) -> dict[str, Result]:
    """The results that a comparison left, of those problems that have one."""
    paths = {name: folder / name / "result.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()
    }


def table(title: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """Each problem's figures as text."""
    lines = [f"\n{title}", f"{'':22}{'untuned':>44}{'best tuned':>36}{'difference':>12}{'margin':>9}"]
    for name, row in rows.items():
        arm, lr, decay = row["choice"]
        rival, rate, loss = row["best_tuned"]
        test = "diverged" if row["test"] is None else f"{row['test']:.5g}"
        gap = "" if row["difference"]["mean"] is None else f"{row['difference']['mean']:+.4f}"
        untuned, tuned = f"{arm} {lr:g}, decay {decay:g}", f"{rival} {rate:g}"
        lines.append(
            f"{name:22}{untuned:>33}{test:>11}{tuned:>24}{loss:>12.5g}{gap:>12}"
            f"{row['margin']:9.3f}  {'near' if row['near'] else 'not near'}"
        )
    lines.append(f"near on {sum(row['near'] for row in rows.values())} of {len(rows)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="where comparisons left theirs")
    parser.add_argument("--searched", nargs="+", default=SEARCHED)
    parser.add_argument("--confirmed", nargs="*", default=CONFIRMED)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="arms and candidates")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hepmass", type=Path, default=None, help="its rows, to run what has no figures")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ledger = Ledger(beside(options.out))

    files = {} if options.hepmass is None else {"hepmass": options.hepmass}

    def run(name: str, choice: Choice, seed: int, steps: int, batch_size: int) -> dict[str, Any]:
        arm, lr, decay = choice
        cell = {"problem": name, "arm": arm, "lr": lr, "seed": seed, "steps": steps, "batch_size": batch_size}
        cell |= {"weight_decay": decay}
        return ledger.run(
            cell, lambda: train(problem(name, data=files.get(name)), choice, seed, steps, batch_size)
        )

    searched = read(options.results, options.searched)
    for arm in (arm for arm in options.recipes if arm in CANDIDATES):
        for name, result in searched.items():
            if result["task"] not in CANDIDATES[arm]:
                continue
            result["arms"][arm] = tried(name, result, arm, run)
            print(f"{name}, {arm}: {result['arms'][arm]['rates']}", flush=True)
    ranked = choose(searched)
    for task, rows in ranked.items():
        told = ", ".join(
            f"{row['arm']} {row['lr']:g}, decay {row['weight_decay']:g} ({row['worst_regret']:.2f})"
            for row in rows
        )
        print(f"{task}: worst validation loss above the best, in margins: {told}", flush=True)
    others = read(options.results, options.confirmed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.out is None else options.out.with_suffix(".cells")
        for name in (name for name in options.confirmed if name in MADE_HERE):
            others[name] = compare(name, budget=BUDGET, arms=ARMS, out=folder / name, jobs=1).result
    step = {
        task: {row["arm"]: (row["lr"], row["weight_decay"]) for row in rows} for task, rows in ranked.items()
    }
    figures: dict[str, Any] = {}
    chosen: dict[str, dict[str, Choice]] = {}
    for arm in options.recipes:
        where = " and ".join(f"{task}s" for task in CANDIDATES.get(arm, {}))
        title = f"squared, {arm} for {where}" if where else f"{arm} throughout"
        chosen[title] = {task: (arm, *by_arm[arm]) for task, by_arm in step.items() if arm in by_arm}
        for part, results in (("searched", searched), ("confirmed", others)):
            rows = {
                name: against_tuned(name, result, chosen[title][result["task"]], options.seeds, run)
                for name, result in results.items()
                if result["task"] in chosen[title]
                and measurable(name, result, chosen[title][result["task"]], files)
            }
            figures.setdefault(title, {})[part] = rows
            print(table(f"{title}, {part} problems", rows), flush=True)
    result = {
        "setting": {"seeds": list(range(options.seeds)), "margin": [MARGIN_NATS, MARGIN_SHARE]},
        "ranked": ranked,
        "tried": {
            arm: {
                name: result["arms"][arm]["rates"]
                for name, result in searched.items()
                if arm in result["arms"]
            }
            for arm in CANDIDATES
        },
        "recipes": chosen,
        "figures": figures,
    }
    made_by = f"python benchmarks/recipe.py --recipes {' '.join(options.recipes)}"
    write(options.out, made_by + (" --hepmass FILE" if files else ""), result)
    return result


if __name__ == "__main__":
    main()
