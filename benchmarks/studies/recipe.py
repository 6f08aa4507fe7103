"""What to use without any tuning: one rate for each kind of task, against the best tuned arm.

    python benchmarks/studies/recipe.py [--results results --seeds 3 --hepmass FILE] --out results/recipe.json

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

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Ledger, Outcome, finite, mean, or_inf, signed, train_and_score
from depth import add
from timing import arguments, markdown, parsed
from torch import nn

from convexlift.problems import FROM_FILES, Problem, problem
from convexlift.sources import Centred, Squared
from convexlift.study import Budget, build, compare
from convexlift.study.statistics import paired_difference

Result = dict[str, Any]
Step = tuple[float, float]  # rate and weight decay
Choice = tuple[str, float, float]  # arm, rate and weight decay
Run = Callable[[str, Choice, int, Result], Outcome]  # of a problem's name, a choice, a seed and the protocol

SEARCHED = (
    *("gumbel", "uniform", "gamma", "logistic", "digits21", "collider"),
    *("regression-square", "regression-logsumexp"),
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
            row = {"arm": arm, "lr": step[0], "weight_decay": step[1]}
            rows.append({**row, "worst_regret": by_step[step], "near": near})
        rows = [row for row in rows if math.isfinite(row["worst_regret"])]
        ranked[task] = sorted(rows, key=lambda row: row["worst_regret"])
    return ranked


def task_of(chosen: Problem, arm: str, seed: int) -> Any:
    """The untrained task of an arm or a candidate."""
    if arm not in CANDIDATES:
        return build(chosen, arm, seed)

    def block(network: nn.Module) -> nn.Module:
        source = Squared(network)
        return Centred(source, slopes=arm == "decayed") if chosen.task == "regression" else source

    return build(chosen, arm, seed, {arm: block})


def train(known: Problem, choice: Choice, seed: int, steps: int, batch_size: int) -> Outcome:
    """The frozen losses of one run, as a comparison makes it; None where it diverged."""
    arm, lr, decay = choice
    options = {"steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": decay, "seed": seed}
    return train_and_score(task_of(known, arm, seed), known, **options)


def tried(name: str, result: Result, arm: str, run: Run) -> dict[str, Any]:
    """A candidate's mean validation loss at every step tried, in the form of an arm of a comparison."""
    rates = []
    for lr, decay in CANDIDATES[arm][result["task"]]:
        runs = [run(name, (arm, lr, decay), seed, result["protocol"]) for seed in SELECTION_SEEDS]
        loss = finite(mean(outcome["validation"] for outcome in runs))
        rates.append({"lr": lr, "weight_decay": decay, "validation": loss})
    return {"rates": rates}


def against_tuned(name: str, result: Result, choice: Choice, seeds: int, run: Run) -> dict[str, Any]:
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
        mine = [run(name, choice, seed, result["protocol"])["test"] for seed in range(len(theirs))]
    losses = [or_inf(loss) for loss in mine]
    difference = paired_difference(losses, theirs)
    others = {arm: row["test"] for arm, row in result["arms"].items() if arm in ("projected", "softplus")}
    return {
        "choice": list(choice),
        "test": finite(mean(mine)),
        "best_tuned": [rival, result["arms"][rival]["lr"], mean(theirs)],
        "difference": difference,
        "margin": margin(result),
        "near": difference["mean"] is not None and difference["mean"] <= margin(result),
        "against": {arm: paired_difference(losses, test["per_seed"][:seeds]) for arm, test in others.items()},
    }


def measurable(name: str, result: Result, choice: Choice, files: Mapping[str, Path]) -> bool:
    """Whether a choice can be scored: its figures are in the result, or the problem's rows are at hand."""
    arm, lr, _ = choice
    return name not in FROM_FILES or name in files or result["arms"].get(arm, {}).get("lr") == lr


def read(folder: Path, names: Sequence[str]) -> dict[str, Result]:
    """The results that a comparison left, of those problems that have one."""
    paths = {name: folder / name / "result.json" for name in names}
    texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.exists()}
    return {name: json.loads(text) for name, text in texts.items()}


def table_recipe(result: Result) -> str:
    """Every untuned recipe against the best tuned arm, problem by problem.

    A recipe that was not run for a kind of task is squared weights there.
    """
    figures = result["figures"]
    plain = "squared throughout"
    titles = [plain, *(title for title in figures if title != plain)]
    rows, near = [], dict.fromkeys(titles, 0)
    for part, problems in figures[plain].items():
        for name, first in problems.items():
            rival, rate, loss = first["best_tuned"]
            decimals = 4 if loss < 1 else 3
            cells = []
            for title in titles:
                row = figures[title].get(part, {}).get(name)
                near[title] += (row or first)["near"]
                if row is None:
                    cells.append("as squared")
                    continue
                gap = row["difference"]["mean"]
                arm, lr, decay = row["choice"]
                step = f"{lr:g}{f', decay {decay:g}' if decay else ''}"
                told = "diverged" if gap is None else signed(gap, f"+.{decimals}f")
                cells.append(f"{arm} {step}: {told}{' ✓' if row['near'] else ''}")
            said = name if part == "searched" else f"{name} (not searched)"
            rows.append([said, f"{rival} {rate:g}: {loss:.{decimals}f}", *cells])
    counted = len(rows)
    rows.append(["near", "", *(f"{count} of {counted}" for count in near.values())])
    names = [title.removesuffix(" throughout") for title in titles]
    return markdown(("problem", "best tuned arm", *names), rows)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=3)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where comparisons left theirs")
    parser.add_argument("--searched", nargs="+", default=SEARCHED)
    parser.add_argument("--confirmed", nargs="*", default=CONFIRMED)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="arms and candidates")
    parser.add_argument("--hepmass", type=Path, default=None, help="its rows, to run what has no figures")
    options = parsed(parser, line)
    ledger = Ledger(options.out, __file__)
    files = {} if options.hepmass is None else {"hepmass": options.hepmass}

    def run(name: str, choice: Choice, seed: int, protocol: Result) -> Outcome:
        arm, lr, decay = choice
        sizes = {key: protocol[key] for key in ("steps", "batch_size")}
        cell = {"problem": name, "arm": arm, "lr": lr, "seed": seed, "weight_decay": decay, **sizes}
        return ledger.run(cell, lambda: train(problem(name, files.get(name)), choice, seed, **sizes))

    searched = read(options.results, options.searched)
    for arm in (arm for arm in options.recipes if arm in CANDIDATES):
        for name, result in searched.items():
            if result["task"] in CANDIDATES[arm]:
                result["arms"][arm] = tried(name, result, arm, run)
                print(f"{name}, {arm}: {result['arms'][arm]['rates']}", flush=True)
    ranked = choose(searched)
    for task, rows in ranked.items():
        told = {(row["arm"], row["lr"], row["weight_decay"]): round(row["worst_regret"], 2) for row in rows}
        print(f"{task}: worst validation loss above the best, in margins: {told}", flush=True)
    others = read(options.results, options.confirmed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.out is None else options.out.with_suffix(".cells")
        for name in (name for name in options.confirmed if name in MADE_HERE):
            others[name] = compare(name, budget=BUDGET, arms=ARMS, out=folder / name, jobs=1).result
    step = {task: {r["arm"]: (r["lr"], r["weight_decay"]) for r in rows} for task, rows in ranked.items()}
    figures: dict[str, Any] = {}
    chosen: dict[str, dict[str, Choice]] = {}
    for arm in options.recipes:
        where = " and ".join(f"{task}s" for task in CANDIDATES.get(arm, {}))
        title = f"squared, {arm} for {where}" if where else f"{arm} throughout"
        by_task = {task: (arm, *by_arm[arm]) for task, by_arm in step.items() if arm in by_arm}
        chosen[title], figures[title] = by_task, {}
        for part, results in (("searched", searched), ("confirmed", others)):
            figures[title][part] = {
                name: against_tuned(name, result, by_task[result["task"]], options.seeds, run)
                for name, result in results.items()
                if result["task"] in by_task and measurable(name, result, by_task[result["task"]], files)
            }
    result = {
        "setting": {"seeds": list(range(options.seeds)), "margin": [MARGIN_NATS, MARGIN_SHARE]},
        "ranked": ranked,
        "tried": {
            arm: {name: of["arms"][arm]["rates"] for name, of in searched.items() if arm in of["arms"]}
            for arm in CANDIDATES
        },
        "recipes": chosen,
        "figures": figures,
    }
    if "squared throughout" in figures:
        print(table_recipe(result))
    add(options, result)
    return result


if __name__ == "__main__":
    main()
