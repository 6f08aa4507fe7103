"""Size and depth: regression of |x|^2 and of a log-sum-exp in 50 dimensions by plain input-convex networks.

    python benchmarks/depth.py [--steps 500 --seeds 3] --out results/depth.json

No strong convexity and no quadratic term, so that nothing is built in. Depths 2 to 16 at width 64 and
widths 16 to 512 at depth 4, with skips and without; 5,000 noisy rows, batches of 1,000, 500 steps (100
epochs); the score is the squared distance to the noiseless truth. Every arm at the published rate 0.01, at
the best of three rates and at the best of these with and without weight decay, chosen on validation by the
first seed, and the recipes of docs/recipe-log.md. Finished cells are kept beside --out: run it again to go
on. Figures that --out already holds stay, unless they are made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import Ledger, Outcome, beside, mean, or_inf, standard_error
from torch import nn

from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.sources import Centred, WeightSource
from convexlift.study.arms import ALL_ARMS, build
from convexlift.training import fit
from convexlift.training.optimisation import Group
from convexlift.training.run import TrainingDiverged

ARMS = ("projected", "softplus", "softplus-fan-in", "squared", "lift")
RATES = (0.0025, 0.01, 0.04)
DECAYS = (0.0, 1.0)
PUBLISHED_RATE = 0.01
DEPTHS, WIDTHS, WIDTH, DEPTH = (2, 4, 8, 16), (16, 256, 512), 64, 4
PROBLEMS = ("regression-square", "regression-logsumexp")

Choice = tuple[float, float]  # rate and weight decay


@dataclass(frozen=True)
class Recipe:
    """One way to train: what the trials of docs/recipe-log.md vary.

    ``averaging`` is that of ``fit``, the decay of averaged weights (0: the last ones); ``centred`` takes
    "means", or means and "slopes", out of the activations (``convexlift.Centred``); ``source_factor``
    multiplies the rate of the constrained weights; ``optimizer`` is "adam", or "muon" or "muon-source" for
    orthogonalised steps on all matrices or on the constrained ones; ``weight_decay`` is decoupled and falls
    on the free matrices alone.
    """

    arm: str = "squared"
    lr: float = PUBLISHED_RATE
    init: str = "principled"
    skip: bool = True
    activation: str = "softplus"
    sharpness: float | None = None
    steps: int = 500
    batch_size: int = 1_000
    averaging: float = 0.0
    centred: str = ""
    source_factor: float = 1.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"


class Mixed(torch.optim.Optimizer):
    """Orthogonalised steps (torch.optim.Muon) on the matrices of the named groups, Adam on all the rest."""

    def __init__(self, groups: Sequence[Group], names: Sequence[str], lr: float, other_lr: float) -> None:
        matrices = [p for group in groups if group["name"] in names for p in group["params"] if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for group in groups for p in group["params"] if id(p) not in chosen]
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.parts = (muon, torch.optim.Adam(others, lr=other_lr))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for mine, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = mine["lr"]
            part.step()


KINKED = Recipe(lr=0.04, weight_decay=1.0, schedule="constant", averaging=0.98)
RECIPES = {
    "centred means": Recipe(centred="means"),
    "centred": Recipe(centred="slopes"),
    "centred, sharpness 0.5": Recipe(centred="slopes", sharpness=0.5),
    "Muon on all matrices": Recipe(optimizer="muon", lr=0.04),
    "smooth": Recipe(centred="slopes", sharpness=0.5, weight_decay=4.0),
    "kinked": Recipe(lr=0.04, weight_decay=1.0),
    # Softplus with the rate of its latents multiplied, as a lift's constant part does.
    "softplus, latents x 4": Recipe(arm="softplus", source_factor=4.0),
    "softplus, latents x 10": Recipe(arm="softplus", source_factor=10.0),
    "kinked, averaged": KINKED,
    # The same with the other weight sources.
    **{f"kinked, averaged, {arm}": dataclasses.replace(KINKED, arm=arm) for arm in ARMS if arm != "squared"},
}


def optimiser(recipe: Recipe, groups: list[Group]) -> torch.optim.Optimizer:
    """The optimiser of a recipe for the groups that ``fit`` hands over."""
    if recipe.optimizer == "muon":
        return Mixed(groups, ("source", "free"), recipe.lr, recipe.lr)
    if recipe.optimizer == "muon-source":
        return Mixed(groups, ("source",), recipe.lr * recipe.source_factor, recipe.lr)
    made = []
    for group in groups:
        lr = recipe.lr * (recipe.source_factor if group["name"] == "source" else 1.0)
        decayed = [p for p in group["params"] if group["name"] == "free" and p.ndim == 2]
        rest = [p for p in group["params"] if group["name"] != "free" or p.ndim != 2]
        made += [{"params": decayed, "lr": lr, "weight_decay": recipe.weight_decay}] if decayed else []
        made += [{"params": rest, "lr": lr, "weight_decay": 0.0}] if rest else []
    return torch.optim.AdamW(made)


def task_of(chosen: Problem, recipe: Recipe, seed: int) -> nn.Module:
    """The untrained task of a recipe."""

    def make(network: nn.Module) -> nn.Module:
        source = cast(WeightSource, ALL_ARMS[recipe.arm](network))
        return Centred(source, slopes=recipe.centred == "slopes") if recipe.centred else source

    return build(chosen, recipe.arm, seed, {recipe.arm: make})


def train(name: str, hidden: Sequence[int], recipe: Recipe, seed: int) -> Outcome:
    """Train one network; its losses on training, validation and noiseless test rows, None if it diverged."""
    known = problem(name)
    keys = ("init", "skip", "activation", "sharpness")
    own = {"hidden": tuple(hidden), **{key: getattr(recipe, key) for key in keys}}
    chosen = dataclasses.replace(known, architecture={**known.architecture, **own})
    task = cast(Any, task_of(chosen, recipe, seed))
    rows = whole(chosen.train)
    task.initialise(rows)
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            optimizer=lambda groups: optimiser(recipe, groups),
            averaging=recipe.averaging,
            schedule=recipe.schedule,
            evaluate_every=max(1, recipe.steps // 20),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"train": None, "validation": None, "test": None}
    frozen = task.freeze(rows)
    test = float(chosen.evaluate(frozen).double().mean())
    return {
        "train": float(frozen.loss(rows)),
        "validation": history.best_validation,
        "best_step": history.best_step,
        "test": test if math.isfinite(test) else None,
        "ms_per_step": history.ms_per_step,
    }


def tuned(name: str, shape: Shape, arm: str, plan: Plan) -> dict[str, Any]:
    """One arm at the published rate, at the best of all rates, and at the best with and without decay; the
    first seed's validation loss chooses."""

    def losses(choice: Choice, seeds: Sequence[int]) -> list[Outcome]:
        lr, decay = choice
        return [plan.cell(name, shape, Recipe(arm=arm, lr=lr, weight_decay=decay), seed) for seed in seeds]

    choices = [(lr, decay) for decay in plan.decays for lr in plan.rates]
    first = {choice: or_inf(losses(choice, plan.seeds[:1])[0]["validation"]) for choice in choices}
    plain = min((choice for choice in choices if not choice[1]), key=lambda choice: first[choice])
    free = min(choices, key=lambda choice: first[choice])
    rows = {
        "published": _figures(losses((PUBLISHED_RATE, 0.0), plan.seeds)),
        "tuned": {"lr": plain[0], **_figures(losses(plain, plan.seeds))},
    }
    if len(plan.decays) > 1:
        decay = {"lr": free[0], "weight_decay": free[1]}
        rows["decayed"] = {**decay, **_figures(losses(free, plan.seeds))}
    return rows


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    tests = [outcome["test"] for outcome in outcomes]
    average = mean(tests)
    return {
        "test": average if math.isfinite(average) else None,
        "standard_error": standard_error(tests),
        "seeds": tests,
        "train": [outcome["train"] for outcome in outcomes],
        "validation": [outcome["validation"] for outcome in outcomes],
    }


@dataclass(frozen=True)
class Shape:
    """The widths of a network, and whether x enters every layer."""

    hidden: tuple[int, ...]
    skip: bool

    def __str__(self) -> str:
        return f"{len(self.hidden)} x {self.hidden[0]}{'' if self.skip else ', no skips'}"


@dataclass(frozen=True)
class Plan:
    """What to run: seeds, rates, decays and steps, and where finished cells are kept."""

    ledger: Ledger
    seeds: Sequence[int]
    rates: Sequence[float]
    decays: Sequence[float]
    steps: int

    def cell(self, name: str, shape: Shape, recipe: Recipe, seed: int) -> Outcome:
        """Run one cell, unless it is kept."""
        recipe = dataclasses.replace(recipe, steps=self.steps, skip=shape.skip)
        cell = {"problem": name, "hidden": list(shape.hidden), "seed": seed, **dataclasses.asdict(recipe)}
        return self.ledger.run(cell, lambda: train(name, shape.hidden, recipe, seed))


def sizes(
    plan: Plan, arms: Sequence[str], problems: Sequence[str], shapes: Sequence[Shape]
) -> dict[str, Any]:
    """These arms at every shape of every problem."""
    found: dict[str, Any] = {}
    for name in problems if arms else ():
        for shape in shapes:
            rows = {arm: tuned(name, shape, arm, plan) for arm in arms}
            found.setdefault(name, {})[str(shape)] = rows
            print(f"{name}, {shape}", flush=True)
            for arm, row in rows.items():
                line = f"  {arm:18}{told(row['published'])}   at {row['tuned']['lr']:<7g}{told(row['tuned'])}"
                if free := row.get("decayed"):
                    line += f"   at {free['lr']:g}, decay {free['weight_decay']:<4g}{told(free)}"
                print(line, flush=True)
    return found


def recipes(
    plan: Plan, titles: Sequence[str], problems: Sequence[str], shapes: Sequence[Shape]
) -> dict[str, Any]:
    """The recipes of the log at every shape of every problem."""
    found: dict[str, Any] = {}
    for name in problems:
        for shape in shapes:
            for title in titles:
                figures = _figures([plan.cell(name, shape, RECIPES[title], seed) for seed in plan.seeds])
                found.setdefault(name, {}).setdefault(title, {})[str(shape)] = figures
                print(f"{name}, {title:34}{shape!s:20}{told(figures)}", flush=True)
    return found


def merged(old: Any, new: Any) -> Any:
    """Nested figures, the new ones in place of the old; lists and numbers are whole."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


def write(path: Path | None, made_by: str, result: Mapping[str, Any]) -> None:
    """Write figures, or add them to those that the file holds, with every command that made some."""
    if path is not None and path.exists():
        result = merged(json.loads(path.read_text(encoding="utf-8")), result)
        made_by = "; ".join(dict.fromkeys([*result["command"].split("; "), made_by]))
    timing.write(path, made_by, {key: value for key, value in result.items() if key != "command"})


def told(figures: Mapping[str, Any]) -> str:
    """A mean and its standard error as text."""
    if figures["test"] is None:
        return "diverged"
    error = figures["standard_error"]
    return f"{figures['test']:7.3f}" + ("" if error is None else f" ± {error:.3f}")


def command(options: argparse.Namespace) -> str:
    """The command that runs these cells again."""
    lists = (
        f"--{key} {' '.join(shlex.quote(str(item)) for item in getattr(options, key))}".strip()
        for key in ("problems", "depths", "widths", "arms", "recipes", "rates", "decays")
    )
    lists = (*lists, *(["--no-skips"] if options.no_skips else []))
    return f"python benchmarks/depth.py {' '.join(lists)} --seeds {options.seeds} --steps {options.steps}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--depths", nargs="*", type=int, default=DEPTHS, help=f"at width {WIDTH}")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help=f"at depth {DEPTH}")
    parser.add_argument("--arms", nargs="*", default=ARMS, help=f"of {', '.join(ALL_ARMS)}")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--decays", nargs="+", type=float, default=DECAYS, help="0 among them")
    parser.add_argument("--no-skips", action="store_true", help="x enters the first layer alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write, or to add to")
    options = parser.parse_args(arguments)
    if 0.0 not in options.decays:
        parser.error("--decays must have 0 among them")
    torch.set_num_threads(1)
    plan = Plan(
        Ledger(beside(options.out)), range(options.seeds), options.rates, options.decays, options.steps
    )
    sides = [(WIDTH,) * depth for depth in options.depths] + [(width,) * DEPTH for width in options.widths]
    shapes = [Shape(hidden, not options.no_skips) for hidden in sides]
    result = {
        "setting": {"rates": list(options.rates), "decays": list(options.decays)},
        "recipes": recipes(plan, options.recipes, options.problems, shapes),
        "recipes_are": {title: dataclasses.asdict(recipe) for title, recipe in RECIPES.items()},
        "sizes": sizes(plan, options.arms, options.problems, shapes),
    }
    write(options.out, command(options), result)
    return result


if __name__ == "__main__":
    main()
