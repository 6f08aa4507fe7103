"""The convex-potential flow on tables, beside a Gaussian and zuko's spline and affine autoregressive flows.

    python benchmarks/tabular.py hepmass --data FOLDER --out results/tabular-hepmass.json

Every side sees the same rows, batches, number of steps and optimiser, and ends at the step whose frozen
model was best on validation. Rates: a factor-4 grid, chosen by the validation loss of one run of a seed that
is not used again, and extended while the best is on an edge. Test rows are scored by frozen models of the
evaluation seeds, one by one, and by their mixture with equal weights. Seconds are those of the processor, of
one thread. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import Ledger, Outcome, beside
from tabular_baselines import Autoregressive, Gaussian
from tabular_regularisers import DroppedUnits, Prepared
from torch import Tensor, nn

import convexlift as cl
from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.problems.catalogue import FROM_FILES
from convexlift.seeds import seed_of
from convexlift.study.statistics import paired_difference, rows_interval, summary
from convexlift.training import fit
from convexlift.training.history import TrainingDiverged
from convexlift.training.optimisation import Group

SOURCES = {"squared": cl.Squared, "softplus": cl.Softplus}


@dataclass(frozen=True)
class Recipe:
    """One way to fit a table; what the trials of docs/flows.md vary."""

    kind: str = "flow"
    lr: float = 0.032
    steps: int = 1_000
    batch_size: int = 128
    front: str = "columns"
    jitter: float = 0.0
    fading: bool = False
    averaging: float = 0.0
    weight_decay: float = 0.0
    # of a convex-potential flow
    source: str = "squared"
    hidden: tuple[int, ...] = (64, 64, 64, 64)
    blocks: int = 1
    dropout: float = 0.0
    strong_convexity: float = 0.1
    quadratic_rank: int = 0
    activation: str = "softplus"
    sharpness: float | None = None
    schedule: str = "cosine"
    # of a zuko flow
    transforms: int = 3


def density(recipe: Recipe, dim: int, seed: int) -> nn.Module:
    """The untrained density of a recipe, a module that `fit` trains."""
    options = {key: getattr(recipe, key) for key in ("front", "jitter", "fading", "averaging")}
    if recipe.kind != "flow":
        inside: nn.Module = Autoregressive(
            recipe.kind, dim, transforms=recipe.transforms, hidden=recipe.hidden, seed=seed
        )
        return Prepared(inside, dim, **options)
    blocks: list[nn.Module] = []
    for k in range(recipe.blocks):
        network = cl.ICNN(
            dim,
            recipe.hidden,
            activation=recipe.activation,
            sharpness=recipe.sharpness,
            strong_convexity=recipe.strong_convexity,
            quadratic_rank=recipe.quadratic_rank,
            seed=seed_of(seed, "network", k),
        )
        source = SOURCES[recipe.source](network)
        blocks.append(DroppedUnits(source, recipe.dropout) if recipe.dropout else source)
    return Prepared(cl.ConvexPotentialFlow(blocks), dim, **options)


def optimiser(recipe: Recipe, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """AdamW whose decay falls on the matrices of unconstrained weights alone; Adam where there is none."""
    decayed = [p for group in groups if group["name"] == "free" for p in group["params"] if p.ndim == 2]
    chosen = {id(p) for p in decayed}
    rest = [p for group in groups for p in group["params"] if id(p) not in chosen]
    parts = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([part for part in parts if part["params"]], lr=recipe.lr, fused=True)


def train(chosen: Problem, recipe: Recipe, seed: int, *, scored: bool) -> Outcome:
    """Train one density; losses by row of the frozen one, on validation and, if `scored`, on test rows."""
    task = cast(Any, density(recipe, chosen.dim, seed))
    task.initialise(cast(Tensor, whole(chosen.train)))
    started = time.process_time()
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            optimizer=lambda groups: optimiser(recipe, groups),
            schedule=recipe.schedule,
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"validation": None, "test": None}
    seconds = time.process_time() - started
    frozen = task.freeze()
    outcome: Outcome = {
        "parameters": sum(p.numel() for p in task.density.parameters() if p.requires_grad),
        "cpu_seconds": seconds,
        "best_step": history.best_step,
        "validation": losses(frozen, cast(Tensor, chosen.validation)),
    }
    train_rows = cast(Tensor, whole(chosen.train))[:4096]
    outcome["train_mean"] = float(torch.tensor(losses(frozen, train_rows)).mean())
    outcome["test"] = losses(frozen, cast(Tensor, chosen.test)) if scored else None
    return outcome


@torch.no_grad()
def losses(frozen: nn.Module, rows: Tensor, chunk: int = 4096) -> list[float]:
    """-log p of every row, to five decimals."""
    found = torch.cat([-cast(Any, frozen).log_prob(part) for part in rows.split(chunk)])
    return [round(loss, 5) for loss in found.tolist()]


@dataclass(frozen=True)
class Side:
    """A recipe, the rates that it tries first, and what it then chooses, one field after the other."""

    recipe: Recipe
    rates: tuple[float, ...]
    choices: tuple[tuple[str, tuple[Any, ...]], ...] = ()


FLOW_RATES, ZUKO_RATES = (0.008, 0.032, 0.128), (0.002, 0.008, 0.032)
FRONT, NOISE = ("front", ("columns", "marginals")), ("jitter", (0.0, 0.03, 0.1, 0.2))
DECAY = ("weight_decay", (0.0, 0.05))
NSF = Recipe(kind="nsf", hidden=(64, 64), transforms=3)
MAF = Recipe(kind="maf", hidden=(64, 64), transforms=5)
SIDES = {
    "nsf": Side(NSF, ZUKO_RATES),
    "nsf-chosen": Side(NSF, ZUKO_RATES, (FRONT, NOISE, DECAY, ("hidden", ((64, 64), (128, 128))))),
    "maf": Side(MAF, ZUKO_RATES),
    "maf-chosen": Side(MAF, ZUKO_RATES, (FRONT, NOISE, DECAY)),
    "flow": Side(Recipe(), FLOW_RATES),
    "flow-softplus": Side(Recipe(source="softplus"), FLOW_RATES),
    "flow-chosen": Side(Recipe(), FLOW_RATES, (FRONT, NOISE, DECAY, ("sharpness", (None, 2.0, 4.0)))),
}
REFERENCES = ("flow", "nsf", "nsf-chosen")
SELECTION_SEED = 100
FACTOR, EXTENSIONS = 4.0, 2


@dataclass(frozen=True)
class Plan:
    """What to run, and where finished cells are kept."""

    chosen: Problem
    ledger: Ledger
    seeds: Sequence[int]
    steps: int

    def cell(self, recipe: Recipe, seed: int, *, scored: bool) -> Outcome:
        """Run one cell, unless it is kept."""
        recipe = dataclasses.replace(recipe, steps=self.steps)
        rows = {"description": self.chosen.description, "scored": scored}
        cell = {"problem": self.chosen.name, "seed": seed, **rows, **dataclasses.asdict(recipe)}
        return self.ledger.run(cell, lambda: train(self.chosen, recipe, seed, scored=scored))


Trial = dict[str, Any]


def select(plan: Plan, side: Side) -> tuple[Recipe, list[Trial]]:
    """The recipe that the validation loss of the selection seed chooses, and everything that was tried.

    The rate first; then the fields of ``choices`` in turn, each with what was chosen before it; then, after
    such choices, the rates on both sides once more.
    """
    by_rate = rates(plan, side)
    trials: list[Trial] = [{"lr": lr, "validation": finite(loss)} for lr, loss in by_rate.items()]
    best = min(by_rate, key=lambda lr: by_rate[lr])
    recipe = dataclasses.replace(side.recipe, lr=best)
    again = (("lr", (best / FACTOR, best, best * FACTOR)),) if side.choices else ()
    for name, values in (*side.choices, *again):
        found = {}
        for value in values:
            outcome = plan.cell(dataclasses.replace(recipe, **{name: value}), SELECTION_SEED, scored=False)
            found[value] = mean_of(outcome["validation"])
            trials.append({name: value, "validation": finite(found[value])})
        recipe = dataclasses.replace(recipe, **{name: min(found, key=lambda value: found[value])})
    return recipe, trials


def rates(plan: Plan, side: Side) -> dict[float, float]:
    """The validation loss of the selection seed at every rate; the grid grows while its best is an edge."""
    found: dict[float, float] = {}
    wanted = list(side.rates)
    for _ in range(EXTENSIONS + 1):
        for lr in wanted:
            outcome = plan.cell(dataclasses.replace(side.recipe, lr=lr), SELECTION_SEED, scored=False)
            found[lr] = mean_of(outcome["validation"])
        best = min(found, key=lambda lr: found[lr])
        edges = {min(found): best / FACTOR, max(found): best * FACTOR}
        if best not in edges or len(found) == 1:
            break
        wanted = [edges[best]]
    return dict(sorted(found.items()))


def mean_of(rows: Sequence[float] | None) -> float:
    """The mean of losses; inf for none, or where one is not finite."""
    if rows is None:
        return math.inf
    mean = math.fsum(rows) / len(rows)
    return mean if math.isfinite(mean) else math.inf


def mixture(by_seed: Sequence[Sequence[float]]) -> Tensor:
    """-log of the mean density of several models, row by row, from their losses: (N,)."""
    losses = torch.tensor(by_seed, dtype=torch.float64)
    return math.log(len(losses)) - (-losses).logsumexp(0)


def assess(plan: Plan, side: Side) -> dict[str, Any]:
    """Choose the recipe of a side and score it on the evaluation seeds; test losses by row under "rows"."""
    recipe, trials = select(plan, side)
    outcomes = [plan.cell(recipe, seed, scored=True) for seed in plan.seeds]
    rows = [outcome["test"] for outcome in outcomes]
    complete = all(row is not None for row in rows)
    together = mixture(rows) if complete else None
    mixed = mixture([outcome["validation"] for outcome in outcomes]) if complete else None
    return {
        "recipe": dataclasses.asdict(dataclasses.replace(recipe, steps=plan.steps)),
        "trials": trials,
        "parameters": outcomes[0].get("parameters"),
        "cpu_seconds": average([o.get("cpu_seconds") for o in outcomes]),
        "best_steps": [o.get("best_step") for o in outcomes],
        "train": summary([o.get("train_mean") for o in outcomes]),
        "validation": summary([mean_of(o["validation"]) for o in outcomes]),
        "test": summary([mean_of(row) for row in rows]),
        "ensemble": None
        if together is None or mixed is None
        else {
            "test": float(together.mean()),
            "rows_sem": float(together.std() / math.sqrt(len(together))),
            "validation": float(mixed.mean()),
        },
        "rows": rows if complete else None,
    }


def against(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The test loss of one side minus that of another: paired by seed, by row, and of the two mixtures."""
    if first["rows"] is None or second["rows"] is None:
        return {"mean": None, "ci95": None, "rows_ci95": None, "ensemble": None}
    mine, theirs = (torch.tensor(side["rows"], dtype=torch.float64) for side in (first, second))
    if len(mine) != len(theirs):
        raise ValueError(f"expected as many seeds on both sides; got {len(mine)} and {len(theirs)}")
    found = paired_difference(mine.mean(1).tolist(), theirs.mean(1).tolist())
    together = mixture(first["rows"]) - mixture(second["rows"])
    return {
        **found,
        "rows_ci95": rows_interval((mine - theirs).mean(0)),
        "ensemble": {"mean": float(together.mean()), "rows_ci95": rows_interval(together)},
    }


def gaussian(chosen: Problem) -> dict[str, Any]:
    """The full-covariance Gaussian of the training rows, with the standard error over test rows."""
    model = Gaussian(cast(Tensor, whole(chosen.train)))
    test = torch.tensor(losses(model, cast(Tensor, chosen.test)))
    return {
        "parameters": model.size,
        "validation": mean_of(losses(model, cast(Tensor, chosen.validation))),
        "test": float(test.mean()),
        "rows_sem": float(test.std() / math.sqrt(len(test))),
    }


def study(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """All sides of one problem and their differences from the reference ones."""
    found = {}
    for name in names:
        found[name] = assess(plan, SIDES[name])
        print(f"{plan.chosen.name:10} {line(name, found[name])}", flush=True)
    pairs = {
        f"{name} - {other}": against(found[name], found[other])
        for name in names
        for other in REFERENCES
        if other in found and other != name
    }
    for row in found.values():
        del row["rows"]
    return {"gaussian": gaussian(plan.chosen), "sides": found, "pairs": pairs}


def throughput(chosen: Problem, recipe: Recipe, steps: int = 30) -> float:
    """Training rows a second of one thread, without validation."""
    rows = cast(Tensor, whole(chosen.train))
    task = cast(Any, density(recipe, chosen.dim, 0))
    task.initialise(rows)
    settings = {"batch_size": recipe.batch_size, "progress": False}
    fit(task, rows, steps=5, **settings)
    started = time.process_time()
    fit(task, rows, steps=steps, evaluate_every=steps, **settings)
    seconds = time.process_time() - started
    return steps * recipe.batch_size / seconds


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def line(name: str, row: Mapping[str, Any]) -> str:
    """One side as text."""
    test = row["test"]
    if test["mean"] is None:
        return f"{name:18} diverged"
    error = "" if test["sem"] is None else f" ± {test['sem']:.3f}"
    mixed = f"{row['ensemble']['test']:8.3f}" if row["ensemble"] else ""
    return (
        f"{name:18}{test['mean']:8.3f}{error}   mixture {mixed}   at {row['recipe']['lr']:<7g}"
        f"{row['parameters']:>9,} parameters {row['cpu_seconds']:6.1f} s"
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", help="hepmass, miniboone, power, gas, digits21 or collider")
    parser.add_argument("--data", default=None, help="file or folder of the problems that read one")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = problem(options.problem, options.data)
    plan = Plan(chosen, Ledger(beside(options.out)), range(options.seeds), options.steps)
    result = {
        "problem": chosen.name,
        "description": chosen.description,
        "setting": {
            "steps": options.steps,
            "seeds": list(plan.seeds),
            "selection_seed": SELECTION_SEED,
            "rows": [
                len(cast(Tensor, part)) for part in (whole(chosen.train), chosen.validation, chosen.test)
            ],
        },
        **study(plan, options.sides),
    }
    result["rows_per_cpu_second"] = {name: throughput(chosen, SIDES[name].recipe) for name in options.sides}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the process
    data = " --data FILE" if options.problem in FROM_FILES else ""
    command = f"python benchmarks/tabular.py {options.problem}{data}"
    command += f" --seeds {options.seeds} --steps {options.steps}"
    timing.write(options.out, command, result)
    return result


if __name__ == "__main__":
    main()
