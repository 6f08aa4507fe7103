"""The convex-potential flow on tables, beside a Gaussian and zuko's spline and affine autoregressive flows.

    python benchmarks/studies/tabular.py hepmass --data FOLDER --out results/tabular-hepmass.json

Every side sees the same rows, batches, number of steps and optimiser, and ends at the step whose frozen
model was best on validation. Rates: a factor-4 grid, chosen by the validation loss of one run of a seed that
is not used again, and extended while the best is on an edge. Test rows are scored by frozen models of the
evaluation seeds, one by one, and by their mixture with equal weights. Seconds are those of the processor, of
one thread. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from common import Ledger, Outcome, finite, interval_text, score_text, short, signed
from common import train as trained
from tabular_regularisers import DroppedUnits, Prepared
from timing import Result, arguments, markdown, parsed, write
from torch import Tensor, nn
from zuko_models import Autoregressive, Gaussian

import convexlift as cl
from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.seeds import seed_of
from convexlift.study.statistics import paired_difference, rows_interval, summary
from convexlift.training import fit
from convexlift.training.optimisation import Group, decayed_matrices

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
        sizes = {"transforms": recipe.transforms, "hidden": recipe.hidden}
        return Prepared(Autoregressive(recipe.kind, dim, **sizes, seed=seed), dim, **options)
    kept = ("activation", "sharpness", "strong_convexity", "quadratic_rank")
    blocks: list[nn.Module] = []
    for k in range(recipe.blocks):
        own = {key: getattr(recipe, key) for key in kept}
        network = cl.ICNN(dim, recipe.hidden, **own, seed=seed_of(seed, "network", k))
        source = SOURCES[recipe.source](network)
        blocks.append(DroppedUnits(source, recipe.dropout) if recipe.dropout else source)
    return Prepared(cl.ConvexPotentialFlow(blocks), dim, **options)


def optimiser(recipe: Recipe, task: nn.Module, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """AdamW whose decay falls on the matrices of unconstrained weights alone; Adam where there is none."""
    decayed = decayed_matrices(task)
    chosen = {id(p) for p in decayed}
    rest = [p for group in groups for p in group["params"] if id(p) not in chosen]
    parts = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([part for part in parts if part["params"]], lr=recipe.lr, fused=True)


def train(chosen: Problem, recipe: Recipe, seed: int, *, scored: bool) -> Outcome:
    """Train one density; losses by row of the frozen one, on validation and, if `scored`, on test rows."""
    task = cast(Any, density(recipe, chosen.dim, seed))
    started = time.process_time()
    options = {key: getattr(recipe, key) for key in ("steps", "batch_size", "schedule")}
    options |= {"optimizer": partial(optimiser, recipe, task), "evaluations": 25, "seed": seed}
    history = trained(task, chosen.train, chosen.validation, **options)
    if history is None:
        return {"validation": None, "test": None}
    seconds = time.process_time() - started
    frozen = task.freeze()
    train_rows = cast(Tensor, whole(chosen.train))[:4096]
    return {
        "parameters": sum(p.numel() for p in task.density.parameters() if p.requires_grad),
        "cpu_seconds": seconds,
        "best_step": history.best_step,
        "validation": losses(frozen, cast(Tensor, chosen.validation)),
        "train_mean": float(torch.tensor(losses(frozen, train_rows)).mean()),
        "test": losses(frozen, cast(Tensor, chosen.test)) if scored else None,
    }


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


def select(plan: Plan, side: Side) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe that the validation loss of the selection seed chooses, and everything that was tried.

    The rate first; then the fields of ``choices`` in turn, each with what was chosen before it; then, after
    such choices, the rates on both sides once more.
    """
    by_rate = rates(plan, side)
    trials = [{"lr": lr, "validation": finite(loss)} for lr, loss in by_rate.items()]
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
    mean = math.inf if rows is None else math.fsum(rows) / len(rows)
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
    ensemble = None
    if complete:
        together, held_out = mixture(rows), mixture([outcome["validation"] for outcome in outcomes])
        ensemble = {**mean_and_error(together), "validation": float(held_out.mean())}
    return {
        "recipe": dataclasses.asdict(dataclasses.replace(recipe, steps=plan.steps)),
        "trials": trials,
        "parameters": outcomes[0].get("parameters"),
        "cpu_seconds": summary([o.get("cpu_seconds") for o in outcomes])["mean"],
        "best_steps": [o.get("best_step") for o in outcomes],
        "train": summary([o.get("train_mean") for o in outcomes]),
        "validation": summary([mean_of(o["validation"]) for o in outcomes]),
        "test": summary([mean_of(row) for row in rows]),
        "ensemble": ensemble,
        "rows": rows if complete else None,
    }


def mean_and_error(losses: Tensor) -> dict[str, float]:
    """The mean of test losses, and its standard error over rows."""
    return {"test": float(losses.mean()), "rows_sem": float(losses.std() / math.sqrt(len(losses)))}


def against(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The test loss of one side minus that of another: paired by seed, by row, and of the two mixtures."""
    if first["rows"] is None or second["rows"] is None:
        return dict.fromkeys(("mean", "ci95", "rows_ci95", "ensemble"))
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
    validation = mean_of(losses(model, cast(Tensor, chosen.validation)))
    test = torch.tensor(losses(model, cast(Tensor, chosen.test)))
    return {"parameters": model.size, "validation": validation, **mean_and_error(test)}


def study(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """All sides of one problem and their differences from the reference ones."""
    found = {}
    for name in names:
        found[name] = assess(plan, SIDES[name])
        print(plan.chosen.name, name, found[name]["test"], found[name]["ensemble"], flush=True)
    pairs = {
        f"{name} - {other}": against(found[name], found[other])
        for name in names
        for other in REFERENCES
        if other in found and other != name
    }
    for row in found.values():
        del row["rows"]
    return {"gaussian": gaussian(plan.chosen), "sides": found, "pairs": pairs}


def started(recipe: Recipe, rows: Tensor, steps: int) -> tuple[Any, float]:
    """A task after some steps, and the processor seconds of one, without validation."""
    task = cast(Any, density(recipe, rows.shape[1], 0))
    task.initialise(rows)
    settings = {"batch_size": recipe.batch_size, "lr": recipe.lr, "progress": False}
    fit(task, rows, steps=5, **settings)
    begun = time.process_time()
    fit(task, rows, steps=steps, evaluate_every=steps, **settings)
    return task, (time.process_time() - begun) / steps


# The sides in the order of the table.
ORDER = ("maf", "maf-chosen", "nsf", "nsf-chosen", "flow-softplus", "flow", "flow-chosen")
TITLES = {side: side.replace("-", ", ").replace("maf", "MAF").replace("nsf", "NSF") for side in ORDER}
PAIRS = ("flow - nsf", "flow-chosen - nsf-chosen", "flow-chosen - flow")


def table_tabular(*results: Result) -> str:
    """Test losses, a problem a line; the mixture of the seeds' models beneath."""
    rows = []
    for found in results:
        gaussian, sides = found["gaussian"], found["sides"]
        lone = {"mean": gaussian["test"], "sem": gaussian["rows_sem"]}
        cells = [score_text(sides[side]["test"]) if side in sides else "" for side in TITLES]
        rows.append([found["problem"], score_text(lone), *cells])
        mixtures = [(sides.get(side) or {}).get("ensemble") for side in TITLES]
        mixed = [short(mixture["test"], 5) if mixture else "" for mixture in mixtures]
        rows.append([f"mixture of {len(found['setting']['seeds'])}", "", *mixed])
    return markdown(("problem", "Gaussian", *TITLES.values()), rows)


def table_front(*results: Result) -> str:
    """Test losses where regularisation was chosen, and how far the flow is from the spline flow."""
    rows = []
    for found in results:
        sides, pair = found["sides"], found["pairs"]["flow-chosen - nsf-chosen"]
        gaussian = {"mean": found["gaussian"]["test"], "sem": found["gaussian"]["rows_sem"]}
        tests = [gaussian, *(sides[side]["test"] for side in ("maf-chosen", "nsf-chosen", "flow-chosen"))]
        rows.append(
            [
                found["problem"],
                f"{found['setting']['rows'][0]:,}",
                *map(score_text, tests),
                interval_text(pair),
            ]
        )
    heads = ("table", "training rows", "Gaussian", "MAF", "NSF", "convexlift", "less NSF (95 %)")
    return markdown(heads, rows)


def table_tabular_pairs(*results: Result) -> str:
    """Differences, of single models and of mixtures."""
    rows = []
    for found in results:
        for pair in PAIRS:
            row = found["pairs"][pair]
            first, second = (TITLES[side] for side in pair.split(" - "))
            mixed = row["ensemble"]
            rows.append(
                [
                    found["problem"],
                    f"({first}) − ({second})",
                    interval_text(row) if row["mean"] is not None else "diverged",
                    " to ".join(signed(bound, ".3f") for bound in row["rows_ci95"] or ()),
                    interval_text({"mean": mixed["mean"], "ci95": mixed["rows_ci95"]}) if mixed else "",
                ]
            )
    heads = ("problem", "difference", "single models (95 %, seeds)", "(95 %, rows)", "mixtures (95 %, rows)")
    return markdown(heads, rows)


def table_tabular_recipes(*results: Result) -> str:
    """What each side chose, and its cost."""
    rows = []
    for found, (side, title) in itertools.product(results, TITLES.items()):
        if side not in found["sides"]:
            continue
        row = found["sides"][side]
        recipe = row["recipe"]
        said = {
            "normal marginals": recipe["front"] == "marginals",
            f"noise {recipe['jitter']:g}": recipe["jitter"],
            f"decay {recipe['weight_decay']:g}": recipe["weight_decay"],
            f"sharpness {recipe['sharpness']}": recipe["sharpness"],
            "width 128": recipe["hidden"] == [128, 128],
        }
        rows.append(
            [
                *(found["problem"], title, f"{recipe['lr']:g}"),
                ", ".join(what for what, chosen in said.items() if chosen),
                *(f"{row['parameters']:,}", short(row["cpu_seconds"])),
                *(score_text(row[split]) for split in ("train", "validation", "test")),
            ]
        )
    heads = ("problem", "side", "rate", "and", "parameters", "seconds a run")
    return markdown((*heads, "training", "validation", "test"), rows)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=5, steps=1_000)
    parser.add_argument("problem", help="hepmass, miniboone, power, gas, digits21 or collider")
    parser.add_argument(
        "--data", type=Path, default=None, help="file or folder of the problems that read one"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options = parsed(parser, line)
    chosen = problem(options.problem, options.data)
    plan = Plan(chosen, Ledger(options.out, __file__), range(options.seeds), options.steps)
    rows = [len(cast(Tensor, part)) for part in (whole(chosen.train), chosen.validation, chosen.test)]
    setting = {"seeds": list(plan.seeds), "selection_seed": SELECTION_SEED, "rows": rows}
    about = {"problem": chosen.name, "description": chosen.description}
    result = {**about, "setting": {"steps": options.steps, **setting}, **study(plan, options.sides)}
    rows, recipes = whole(chosen.train), {name: SIDES[name].recipe for name in options.sides}
    speeds = {name: recipe.batch_size / started(recipe, rows, 30)[1] for name, recipe in recipes.items()}
    result["rows_per_cpu_second"] = speeds
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the process
    write(options, result, table_tabular)
    return result


if __name__ == "__main__":
    main()
