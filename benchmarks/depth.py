"""Size and depth: regression of |x|^2 and of a log-sum-exp in 50 dimensions by plain input-convex networks.

    python benchmarks/depth.py [--steps 500 --seeds 3] --out results/depth.json

No strong convexity and no quadratic term, so that nothing is built in. Depths 2 to 16 at width 64 and
widths 16 and 256 at depth 4; 5,000 noisy rows, batches of 1,000, 500 steps (100 epochs); the score is the
squared distance to the noiseless truth. Every arm at the published rate 0.01 and at the best of three,
chosen on validation, and the recipes of docs/recipe-log.md. Finished cells are kept beside --out: run it
again to go on.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import Ledger, Outcome, beside, mean, standard_error
from torch import Tensor, nn

from convexlift.architectures import ICNN, Potential
from convexlift.calculus.derivatives import preactivations
from convexlift.experiments.arms import build
from convexlift.problems import Problem, problem
from convexlift.sources import WeightSource
from convexlift.training import fit
from convexlift.training.batches import whole
from convexlift.training.optimisation import Group
from convexlift.training.run import TrainingDiverged

ARMS = ("projected", "softplus", "softplus-fan-in", "squared", "lift")
RATES = (0.0025, 0.01, 0.04)
PUBLISHED_RATE = 0.01
DEPTHS, WIDTHS, WIDTH, DEPTH = (2, 4, 8, 16), (16, 256), 64, 4
PROBLEMS = ("regression-square", "regression-logsumexp")


@dataclass(frozen=True)
class Recipe:
    """One way to train: what the trials of docs/recipe-log.md vary.

    ``averaging`` is the decay of the scored, averaged weights (0: the last ones); ``centred`` takes the
    means of activations, followed at the rate ``momentum``, out and folds them into the biases;
    ``source_factor`` multiplies the rate of the
    constrained weights; ``optimizer`` is "adam", or "muon" or "muon-source" for orthogonalised steps
    on all matrices or on the constrained ones; ``weight_decay`` is decoupled and falls on the free matrices
    alone.
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
    centred: bool = False
    momentum: float = 0.1
    source_factor: float = 1.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"


class Averaged(nn.Module):
    """A task whose frozen model has weights averaged over the last 1 / (1 - decay) steps."""

    def __init__(self, task: nn.Module, decay: float) -> None:
        super().__init__()
        self.task: Any = task
        self.average: Any = copy.deepcopy(task).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def initialise(self, rows: Any) -> None:
        self.task.initialise(rows)
        self.average.load_state_dict(self.task.state_dict())

    def loss(self, batch: Any) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self._update()
        return cast(Tensor, self.task.loss(batch))

    @torch.no_grad()
    def _update(self) -> None:
        self.updates += 1
        weight = max(1 - self.decay, 9 / (self.updates + 9))
        for mine, theirs in zip(self.average.parameters(), self.task.parameters(), strict=True):
            mine.lerp_(theirs, weight)
        for mine, theirs in zip(self.average.buffers(), self.task.buffers(), strict=True):
            mine.copy_(theirs)

    def freeze(self, rows: Any) -> nn.Module:
        return cast(nn.Module, self.average.freeze(rows))

    def settle(self, rows: Any) -> None:
        self.task.settle(rows)

    def set_progress(self, t: float) -> None:
        self.task.set_progress(t)

    @property
    def settle_at(self) -> float | None:
        return cast("float | None", self.task.settle_at)


class Centred(nn.Module):
    """A weight source whose inner layers read centred activations, W_l (s(u_l) - m_l), m_l a running mean.

    The function is that of a plain network with biases b_{l+1} - W_l m_l, which is what ``freeze`` returns.
    """

    def __init__(self, source: WeightSource, momentum: float = 0.1) -> None:
        super().__init__()
        self.source = source
        self.architecture = cast(ICNN, source.architecture)
        self.momentum = momentum
        for level, width in enumerate(self.architecture.hidden[:-1]):
            self.register_buffer(f"mean_{level}", self.architecture.biases[level].new_zeros(width))

    @property
    def settle_at(self) -> float | None:
        return getattr(self.source, "settle_at", None)

    def means(self) -> list[Tensor]:
        """m_1 ... m_{L-1}."""
        return [
            cast(Tensor, getattr(self, f"mean_{level}")) for level in range(len(self.architecture.hidden) - 1)
        ]

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start at the source's own function."""
        self.source.initialise(x)
        potential = cast(Potential, self.source.emit(x))
        self._follow(potential.tensors, x, 1.0)
        for level, m in enumerate(self.means()):
            self.architecture.biases[level + 1].add_(potential.tensors[f"inner.{level}"] @ m)

    def emit(self, batch: Tensor | None = None) -> Potential:
        potential = cast(Potential, self.source.emit(batch))
        folded = self._folded(potential.tensors)
        if self.training and torch.is_grad_enabled() and batch is not None:
            self._follow(folded, batch, self.momentum)
            folded = self._folded(potential.tensors)
        return Potential(potential.architecture, folded)

    @torch.no_grad()
    def freeze(self, data: Tensor | None = None) -> ICNN:
        frozen = cast(ICNN, self.source.freeze(data))
        for level, m in enumerate(self.means()):
            frozen.biases[level + 1].sub_(frozen.inner[level] @ m)
        return frozen

    def settle(self, data: Tensor) -> None:
        self.source.settle(data)

    def set_progress(self, t: float) -> None:
        self.source.set_progress(t)

    def _folded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        folded = dict(tensors)
        for level, m in enumerate(self.means()):
            folded[f"biases.{level + 1}"] = tensors[f"biases.{level + 1}"] - tensors[f"inner.{level}"] @ m
        return folded

    @torch.no_grad()
    def _follow(self, tensors: Mapping[str, Tensor], x: Tensor, momentum: float) -> None:
        s = self.architecture.activation
        for m, u in zip(self.means(), preactivations(x, self.architecture.layers(tensors), s), strict=False):
            m.lerp_(s.value(u).mean(0), momentum)


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


RECIPES = {
    "centred activations": Recipe(centred=True),
    "Muon on all matrices": Recipe(optimizer="muon", lr=0.04),
    "averaged weights": Recipe(averaging=0.98, schedule="constant"),
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
    task = cast(Any, build(chosen, recipe.arm, seed))
    if recipe.centred:
        task.block = Centred(task.block, recipe.momentum)
    return Averaged(task, recipe.averaging) if recipe.averaging else cast(nn.Module, task)


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
            schedule=recipe.schedule,
            evaluate_every=max(1, recipe.steps // 20),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"train": None, "validation": None, "test": None}
    frozen = task.freeze(rows)
    test = float(chosen.score(frozen).double().mean())
    return {
        "train": float(frozen.loss(rows)),
        "validation": history.best_validation,
        "best_step": history.best_step,
        "test": test if math.isfinite(test) else None,
        "ms_per_step": history.ms_per_step,
    }


def tuned(name: str, hidden: Sequence[int], arm: str, plan: Plan) -> dict[str, Any]:
    """One arm at the published rate and at the best of three, chosen by the first seed's validation loss."""

    def losses(lr: float, seeds: Sequence[int]) -> list[Outcome]:
        return [plan.cell(name, hidden, Recipe(arm=arm, lr=lr), seed) for seed in seeds]

    first = {lr: losses(lr, plan.seeds[:1])[0]["validation"] for lr in plan.rates}
    chosen = min(plan.rates, key=lambda lr: math.inf if first[lr] is None else first[lr])
    return {
        "published": _figures(losses(PUBLISHED_RATE, plan.seeds)),
        "tuned": {"lr": chosen, **_figures(losses(chosen, plan.seeds))},
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    tests = [outcome["test"] for outcome in outcomes]
    average = mean(tests)
    return {
        "test": average if math.isfinite(average) else None,
        "standard_error": standard_error(tests),
        "seeds": tests,
        "train": [outcome["train"] for outcome in outcomes],
    }


@dataclass(frozen=True)
class Plan:
    """What to run: seeds, rates and steps, and where finished cells are kept."""

    ledger: Ledger
    seeds: Sequence[int]
    rates: Sequence[float]
    steps: int

    def cell(self, name: str, hidden: Sequence[int], recipe: Recipe, seed: int) -> Outcome:
        """Run one cell, unless it is kept."""
        recipe = dataclasses.replace(recipe, steps=self.steps)
        cell = {"problem": name, "hidden": list(hidden), "seed": seed, **dataclasses.asdict(recipe)}
        return self.ledger.run(cell, lambda: train(name, hidden, recipe, seed))


def sizes(plan: Plan, problems: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Every arm at every shape of every problem."""
    found: dict[str, Any] = {}
    for name in problems:
        for hidden in shapes:
            rows = {arm: tuned(name, hidden, arm, plan) for arm in ARMS}
            found.setdefault(name, {})[shape(hidden)] = rows
            print(f"{name}, {shape(hidden)}", flush=True)
            for arm, row in rows.items():
                print(f"  {arm:18}{told(row['published'])}   at {row['tuned']['lr']:<7g}{told(row['tuned'])}")
    return found


def recipes(plan: Plan, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The recipes of the log at every shape, on |x|^2."""
    found: dict[str, Any] = {}
    for title, recipe in RECIPES.items():
        for hidden in shapes:
            outcomes = [plan.cell(PROBLEMS[0], hidden, recipe, seed) for seed in plan.seeds]
            found.setdefault(title, {})[shape(hidden)] = _figures(outcomes)
            print(f"{title:34}{shape(hidden):10}{told(found[title][shape(hidden)])}", flush=True)
    return found


def shape(hidden: Sequence[int]) -> str:
    """The widths of a network in short."""
    return f"{len(hidden)} x {hidden[0]}"


def told(figures: Mapping[str, Any]) -> str:
    """A mean and its standard error as text."""
    if figures["test"] is None:
        return "diverged"
    error = figures["standard_error"]
    return f"{figures['test']:7.3f}" + ("" if error is None else f" ± {error:.3f}")


def command(options: argparse.Namespace) -> str:
    """The command that runs these cells again."""
    lists = (
        f"--{key} {' '.join(map(str, getattr(options, key)))}".strip()
        for key in ("problems", "depths", "widths")
    )
    return f"python benchmarks/depth.py {' '.join(lists)} --seeds {options.seeds} --steps {options.steps}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--depths", nargs="*", type=int, default=DEPTHS, help=f"at width {WIDTH}")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help=f"at depth {DEPTH}")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = Plan(Ledger(beside(options.out)), range(options.seeds), options.rates, options.steps)
    deep = [(WIDTH,) * depth for depth in options.depths]
    wide = [(width,) * DEPTH for width in options.widths]
    result = {
        "setting": {"steps": options.steps, "seeds": list(plan.seeds), "rates": list(options.rates)},
        "recipes": recipes(plan, deep),
        "recipes_are": {title: dataclasses.asdict(recipe) for title, recipe in RECIPES.items()},
        "sizes": sizes(plan, options.problems, [*deep, *wide]),
    }
    timing.write(options.out, command(options), result)
    return result


if __name__ == "__main__":
    main()
