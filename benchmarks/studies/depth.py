"""Size and depth: regression of |x|^2 and of a log-sum-exp in 50 dimensions by plain input-convex networks.

    python benchmarks/studies/depth.py [--steps 500 --seeds 3] --out results/depth.json

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
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from common import Ledger, Outcome, finite, mean, or_inf, standard_error, train_and_score
from timing import Result, arguments, markdown, parsed, write
from torch import nn

from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.sources import Centred, WeightSource
from convexlift.study.arms import ALL_ARMS, build
from convexlift.training.optimisation import Group, decayed_matrices

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


def optimiser(recipe: Recipe, task: nn.Module, groups: list[Group]) -> torch.optim.Optimizer:
    """The optimiser of a recipe for the groups that ``fit`` hands over."""
    source_lr = recipe.lr * recipe.source_factor
    if recipe.optimizer == "muon":
        return Mixed(groups, ("source", "free"), recipe.lr, recipe.lr)
    if recipe.optimizer == "muon-source":
        return Mixed(groups, ("source",), source_lr, recipe.lr)
    decayed = {id(p) for p in decayed_matrices(task)}
    made = []
    for group in groups:
        lr = source_lr if group["name"] == "source" else recipe.lr
        for decay, inside in ((recipe.weight_decay, True), (0.0, False)):
            parameters = [p for p in group["params"] if (id(p) in decayed) is inside]
            made += [{"params": parameters, "lr": lr, "weight_decay": decay}] if parameters else []
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
    task = task_of(chosen, recipe, seed)
    return train_and_score(
        task,
        chosen,
        also=lambda frozen, history: {"train": float(cast(Any, frozen).loss(whole(chosen.train)))},
        optimizer=partial(optimiser, recipe, task),
        seed=seed,
        **{key: getattr(recipe, key) for key in ("steps", "batch_size", "averaging", "schedule")},
    )


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
    return {
        "test": finite(mean(tests)),
        "standard_error": standard_error(tests),
        "seeds": tests,
        "train": [outcome.get("train") for outcome in outcomes],
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


def sizes(plan: Plan, arms: Sequence[str], problems: Sequence[str], shapes: Sequence[Shape]) -> Result:
    """These arms at every shape of every problem."""
    found: dict[str, Any] = {}
    for name, shape in itertools.product(problems if arms else (), shapes):
        rows = {arm: tuned(name, shape, arm, plan) for arm in arms}
        found.setdefault(name, {})[str(shape)] = rows
        means = {arm: {key: figures["test"] for key, figures in row.items()} for arm, row in rows.items()}
        print(f"{name}, {shape}: {means}", flush=True)
    return found


def recipes(plan: Plan, titles: Sequence[str], problems: Sequence[str], shapes: Sequence[Shape]) -> Result:
    """The recipes of the log at every shape of every problem."""
    found: dict[str, Any] = {}
    for name, shape, title in itertools.product(problems, shapes, titles):
        figures = _figures([plan.cell(name, shape, RECIPES[title], seed) for seed in plan.seeds])
        found.setdefault(name, {}).setdefault(title, {})[str(shape)] = figures
        print(f"{name}, {title}, {shape}: {figures['test']}", flush=True)
    return found


def merged(old: Any, new: Any) -> Any:
    """Nested figures, the new ones in place of the old; lists and numbers are whole."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


def add(options: argparse.Namespace, result: Result) -> None:
    """Write figures, or add them to those that the file holds, with every command that made some."""
    if options.out is not None and options.out.exists():
        result = merged(json.loads(options.out.read_text(encoding="utf-8")), result)
        options.command = "; ".join(dict.fromkeys([*result["command"].split("; "), options.command]))
    write(options, {key: value for key, value in result.items() if key not in ("command", "environment")})


def by_shape(name: str, by: str, skips: bool, result: Result) -> str:
    """What ran of one problem, a row for every arm and recipe.

    A column for every depth at width 64 or, by "width", for every width at depth 4; of networks with skips
    or, without, of those whose first layer alone reads x.
    """
    held = {"depth": (1, WIDTH), "width": (0, DEPTH)}[by]
    sizes, titles = (result[part].get(name, {}) for part in ("sizes", "recipes"))
    known = {shape: read_shape(shape) for rows in (sizes, *titles.values()) for shape in rows}
    shown = (shape for shape in known if known[shape][held[0]] == held[1] and known[shape][2] == skips)
    shapes = sorted(shown, key=lambda shape: known[shape])

    def text(figures: Mapping[str, Any] | None, note: str = "") -> str:
        if figures is None or figures["test"] is None:
            return "" if figures is None else "diverged"
        return f"{figures['test']:.2f} ± {figures['standard_error']:.2f}{note}"

    def note(figures: Mapping[str, Any] | None, key: str) -> str:
        if figures is None or key == "published":
            return ""
        return f" ({figures['lr']:g}{', decay' if figures.get('weight_decay') else ''})"

    arms = list(dict.fromkeys(arm for rows in sizes.values() for arm in rows))
    rows = []
    for key, said in (("published", "rate 0.01"), ("tuned", "best rate"), ("decayed", "best rate and decay")):
        for arm in arms:
            cells = [sizes.get(shape, {}).get(arm, {}).get(key) for shape in shapes]
            rows.append([f"{arm}, {said}", *(text(cell, note(cell, key)) for cell in cells)])
    for title, figures in titles.items():
        rows.append([title, *(text(figures.get(shape)) for shape in shapes)])
    pairs = [[titles.get(title, {}).get(shape) for title in EITHER] for shape in shapes]
    rows.append(["the better of these two on validation", *(text(lower(*pair)) for pair in pairs)])
    heads = [f"{by} {known[shape][by == 'width']}" for shape in shapes]
    return markdown(("trained by", *heads), [row for row in rows if any(row[1:])])


def lower(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of two recipes the one with the lower validation loss, seed by seed."""
    if one is None or other is None:
        return None
    sides = [list(zip(side["validation"], side["seeds"], strict=True)) for side in (one, other)]
    tests = [min(pair)[1] for pair in zip(*sides, strict=False)]
    return {"test": statistics.fmean(tests), "standard_error": standard_error(tests)}


def read_shape(shape: str) -> tuple[int, int, bool]:
    """Depth, width and whether there are skips, of "4 x 64" or "4 x 64, no skips"."""
    widths, _, rest = shape.partition(", ")
    layers, units = widths.split(" x ")
    return int(layers), int(units), not rest


EITHER = ("smooth", "kinked, averaged")
SQUARE, LOGSUMEXP = PROBLEMS
table_depth = partial(by_shape, SQUARE, "depth", True)
table_width = partial(by_shape, SQUARE, "width", True)
table_without_skips = partial(by_shape, SQUARE, "depth", False)
table_depth_logsumexp = partial(by_shape, LOGSUMEXP, "depth", True)
table_width_logsumexp = partial(by_shape, LOGSUMEXP, "width", True)
table_without_skips_logsumexp = partial(by_shape, LOGSUMEXP, "depth", False)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=3, steps=500)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--depths", nargs="*", type=int, default=DEPTHS, help=f"at width {WIDTH}")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help=f"at depth {DEPTH}")
    parser.add_argument("--arms", nargs="*", default=ARMS, help=f"of {', '.join(ALL_ARMS)}")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--decays", nargs="+", type=float, default=DECAYS, help="0 among them")
    parser.add_argument("--no-skips", action="store_true", help="x enters the first layer alone")
    options = parsed(parser, line)
    if 0.0 not in options.decays:
        parser.error("--decays must have 0 among them")
    ledger = Ledger(options.out, __file__)
    plan = Plan(ledger, range(options.seeds), options.rates, options.decays, options.steps)
    sides = [(WIDTH,) * depth for depth in options.depths] + [(width,) * DEPTH for width in options.widths]
    shapes = [Shape(hidden, not options.no_skips) for hidden in sides]
    result = {
        "setting": {"rates": list(options.rates), "decays": list(options.decays)},
        "recipes": recipes(plan, options.recipes, options.problems, shapes),
        "recipes_are": {title: dataclasses.asdict(recipe) for title, recipe in RECIPES.items()},
        "sizes": sizes(plan, options.arms, options.problems, shapes),
    }
    add(options, result)
    return result


if __name__ == "__main__":
    main()
