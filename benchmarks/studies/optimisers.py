"""Which optimiser trains input-convex networks best: Adam, SOAP, Muon, schedule-free Adam or Prodigy.

    python benchmarks/studies/optimisers.py [--data FOLDER --hours 8 --jobs 2] --out results/optimisers.json

Each with four weight sources, on flows, a density and regressions. An optimiser has one grid of rates for a
kind of problem, shared by all sources; the rate of a side is chosen on validation with seeds of its own, and
scored on test rows with others: after as many steps as all have, after as many as fit into the seconds of
Adam with the same source, and, untuned, at the rate that did best on validation on the other problems of the
kind. Rates follow a cosine, but for schedule-free Adam, which is scored at its average; Prodigy finds its
own.

Where the whole study would take more than --hours of one core, by steps timed in turn, a random part of every
grid is drawn, as many rates for each optimiser. FOLDER holds a folder for each problem that reads a file;
those not there are left out. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import Ledger, Outcome, finite, mean, or_inf, standard_error, train
from depth import Mixed
from timing import Result, arguments, given, interleaved, markdown, parsed, write

from convexlift.data import place_for
from convexlift.problems import FROM_FILES, Problem, problem
from convexlift.sources import Projected
from convexlift.study.arms import build
from convexlift.study.protocol import SELECTION_SEED
from convexlift.study.report.numbers import score_text
from convexlift.training.fit import Run
from convexlift.training.history import FitEvent
from convexlift.training.optimisation import Group
from convexlift.training.settings import Settings

OPTIMISERS = ("adam", "soap", "muon", "schedule-free", "prodigy")
SOURCES = ("projected", "softplus", "squared", "lift")
PROBLEMS = (
    *("digits21", "collider", "hepmass", "power", "gas", "gumbel"),
    *("regression-square", "regression-logsumexp"),
)
STEPS = {"flow": 1_000, "density": 1_000, "regression": 2_000}
BATCH_SIZE = {"flow": 128, "density": 256, "regression": 500}
_GRID = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
RATES = {
    kind: {
        **dict.fromkeys(("adam", "soap"), tuple(factor * lr for lr in _GRID)),
        **dict.fromkeys(("muon", "schedule-free"), tuple(2 * factor * lr for lr in _GRID)),
        "prodigy": (1.0,),
    }
    for kind, factor in {"flow": 1, "density": 1, "regression": 0.25}.items()
}
MEASURES = {
    "equal_steps": "After equally many steps, at the rate chosen on validation",
    "equal_seconds": "After the seconds that Adam takes with the same weights, at the same rate",
    "untuned": "Untuned, at the rate that did best on the other problems of the kind",
}
Side = tuple[str, str]  # optimiser and weight source
EVALUATIONS = 1.3  # by how much a run takes longer than its steps
BLOCK, BLOCKS = 10, 5  # steps timed at a time, as SOAP turns its bases every ten, and how often


@cache
def known(name: str, data: Path | None) -> Problem:
    """The problem of that name, its file in a folder of its name."""
    return problem(name, data / name if data is not None and name in FROM_FILES else None)


class ScheduleFree:
    """Schedule-free Adam for a task: frozen, the task is at the average of the steps.

    The steps of projected weights are projected too, so that their averages are non-negative.
    """

    def __init__(self, task: Any, lr: float) -> None:
        self.task, self.lr, self.freeze = task, lr, task.freeze
        self.projected = [part for part in task.modules() if isinstance(part, Projected)]
        self.latents = {id(latent) for part in self.projected for latent in part.latents}
        task.freeze = self.freeze_at_average

    def __call__(self, groups: list[Group]) -> torch.optim.Optimizer:
        from pytorch_optimizer import ScheduleFreeAdamW

        self.optimizer: Any = ScheduleFreeAdamW(groups, lr=self.lr)
        self.optimizer.register_step_post_hook(lambda *_: self.project_steps())
        return self.optimizer

    @torch.no_grad()
    def project_steps(self) -> None:
        """Clamp z in x <- (1 - c) x + c z and y = (1 - beta) z + beta x; the parameter holds y."""
        for group in self.optimizer.param_groups:
            beta, share = group["betas"][0], group["lr_max"] ** 2 / group["weight_sum"]
            for latent in (p for p in group["params"] if id(p) in self.latents):
                z = self.optimizer.state[latent]["z"]
                below = (-z).clamp_min(0)
                z += below
                latent += (1 - beta + beta * share) * below

    def freeze_at_average(self, rows: Any) -> Any:
        own = [p.detach().clone() for p in self.task.parameters()]
        self.optimizer.eval()
        for part in self.projected:
            part.project()  # from rounding
        frozen = self.freeze(rows)
        self.optimizer.train()
        with torch.no_grad():
            for p, value in zip(self.task.parameters(), own, strict=True):
                p.copy_(value)
        return frozen


def prodigy(groups: list[Group], lr: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import Prodigy

    return Prodigy(groups, lr=lr)


def how(optimiser: str, lr: float, task: Any) -> dict[str, Any]:
    """What ``fit`` is told to train a task by an optimiser."""
    makers: dict[str, Callable[[], Any]] = {
        "muon": lambda: partial(Mixed, names=("source", "free"), lr=lr, other_lr=lr),
        "schedule-free": lambda: ScheduleFree(task, lr),
        "prodigy": lambda: partial(prodigy, lr=lr),
    }
    schedule = "constant" if optimiser == "schedule-free" else "cosine"
    return {"optimizer": makers.get(optimiser, lambda: optimiser)(), "lr": lr, "schedule": schedule}


class Best:
    """Keeps the frozen model that is best on validation."""

    def __init__(self) -> None:
        self.validation, self.frozen = math.inf, None

    def __call__(self, event: FitEvent) -> None:
        if event.validation is not None and event.validation < self.validation:
            self.validation, self.frozen = event.validation, event.frozen


def run(data: Path | None, cell: Mapping[str, Any]) -> Outcome:
    """Train one cell; validation and test loss of the best frozen model, None where training diverged."""
    torch.set_num_threads(1)
    chosen = known(cell["problem"], data)
    task: Any = build(chosen, cell["source"], cell["seed"])
    best, sizes = Best(), {"steps": cell["steps"], "batch_size": BATCH_SIZE[chosen.task]}
    options = {**how(cell["optimiser"], cell["lr"], task), **sizes, "seed": cell["seed"]}
    history = train(task, chosen.train, chosen.validation, callbacks=[best], **options)
    if history is None:
        return {"validation": None, "test": None}
    scored = cell["seed"] < SELECTION_SEED
    test = finite(float(chosen.evaluate(best.frozen).double().mean())) if scored else None
    return {"validation": finite(best.validation), "test": test}


def step_times(data: Path | None, cell: Mapping[str, Any]) -> Outcome:
    """Milliseconds of a step of every side on a problem, steps of all sides in turn."""
    torch.set_num_threads(1)
    chosen = known(cell["problem"], data)
    steps = BLOCK * (BLOCKS + 1)
    sides = {}
    for optimiser, source in itertools.product(cell["optimisers"], cell["sources"]):
        task: Any = build(chosen, source, 0)
        options = how(optimiser, 1e-4, task)
        settings = Settings(
            steps=steps, batch_size=BATCH_SIZE[chosen.task], clip=None, patience=None, evaluate_every=steps,
            seed=0, **options,
        )  # fmt: skip
        ready = Run(task, place_for(task, chosen.train), None, settings, (), None, None)
        sides[told(optimiser, source)] = partial(block, ready)
    times = interleaved(sides, BLOCKS, warmup=1)
    return {"ms": {side: statistics.median(each) / BLOCK for side, each in times.items()}}


def block(ready: Run) -> None:
    for _ in range(BLOCK):
        ready.train_step()


class Study:
    """The cells of the study, and the figures made of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.ledger = options, Ledger(options.out, __file__)
        self.names = [name for name in options.problems if self.is_there(name)]
        self.kind = {name: known(name, options.data).task for name in self.names}
        self.sides = list(itertools.product(options.optimisers, options.sources))
        marks = [
            {"problem": name, "optimisers": list(options.optimisers), "sources": list(options.sources)}
            for name in self.names
        ]
        timed = self.ledger.run_all(marks, partial(step_times, options.data))
        self.ms = {name: outcome["ms"] for name, outcome in zip(self.names, timed, strict=True)}
        self.rates = self.drawn()

    def is_there(self, name: str) -> bool:
        data = self.options.data
        return name not in FROM_FILES or (data is not None and (data / name).exists())

    def steps(self, name: str) -> int:
        return self.options.steps or STEPS[self.kind[name]]

    def hours(self, count: int) -> float:
        """About what the study takes with so many rates of every grid."""
        spent = 0.0
        for name, (optimiser, source) in itertools.product(self.names, self.sides):
            rates = min(count, len(RATES[self.kind[name]][optimiser]))
            runs = rates * self.options.selection + len(MEASURES) * self.options.seeds
            spent += runs * self.steps(name) * self.ms[name][told(optimiser, source)]
        return EVALUATIONS * spent / 3.6e6

    def drawn(self) -> dict[str, dict[str, list[float]]]:
        """For a kind of problem and an optimiser the rates tried, as many as the hours allow."""
        counts = range(max(len(grid) for grids in RATES.values() for grid in grids.values()), 0, -1)
        count = next((count for count in counts if self.hours(count) <= self.options.hours), None)
        if count is None:
            raise SystemExit(f"one rate a side takes about {self.hours(1):.1f} hours: raise --hours")
        draw = random.Random(0)
        return {
            kind: {
                optimiser: sorted(draw.sample(grid, min(count, len(grid))))
                for optimiser, grid in RATES[kind].items()
                if optimiser in self.options.optimisers
            }
            for kind in dict.fromkeys(self.kind.values())
        }

    def cells(self, name: str, side: Side, lr: float, seeds: range, steps: int) -> list[dict[str, Any]]:
        """The runs of a side at a rate, seed by seed."""
        of_all = {"problem": name, "optimiser": side[0], "source": side[1], "lr": lr, "steps": steps}
        return [{**of_all, "seed": seed} for seed in seeds]

    def run(self, cells: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """The outcomes of runs."""
        return self.ledger.run_all(cells, partial(run, self.options.data), self.options.jobs)

    def tried(self, name: str) -> dict[Side, dict[float, float]]:
        """The mean validation loss of every side at every rate."""
        seeds = range(SELECTION_SEED, SELECTION_SEED + self.options.selection)
        cells = {
            (side, lr): self.cells(name, side, lr, seeds, self.steps(name))
            for side in self.sides
            for lr in self.rates[self.kind[name]][side[0]]
        }
        self.run([cell for each in cells.values() for cell in each])
        found: dict[Side, dict[float, float]] = {side: {} for side in self.sides}
        for (side, lr), each in cells.items():
            found[side][lr] = mean(outcome["validation"] for outcome in self.run(each))
        print(f"{name}: rates tried", flush=True)
        return found

    def scored(self, name: str, tuned: Mapping[str, dict[Side, dict[float, float]]]) -> dict[str, Any]:
        """What is reported of every side on a problem, from the validation losses of all problems."""
        others = [
            each for other, each in tuned.items() if other != name and self.kind[other] == self.kind[name]
        ]
        seeds, steps, ms = range(self.options.seeds), self.steps(name), self.ms[name]
        plans: dict[tuple[Side, str], tuple[float, int]] = {}
        for side in self.sides:
            losses, untuned = tuned[name][side], for_all([each[side] for each in others])
            lr = min(losses, key=lambda rate: losses[rate])
            plans[side, "equal_steps"] = lr, steps
            if ("adam", side[1]) in self.sides:
                plans[side, "equal_seconds"] = lr, round(steps * ms[told("adam", side[1])] / ms[told(*side)])
            if untuned is not None:
                plans[side, "untuned"] = untuned, steps
        cells = {
            (side, measure): self.cells(name, side, lr, seeds, max(1, count))
            for (side, measure), (lr, count) in plans.items()
        }
        self.run([cell for each in cells.values() for cell in each])
        found = {told(*side): self.described(name, side, tuned[name][side]) for side in self.sides}
        for (side, measure), each in cells.items():
            tests = [outcome["test"] for outcome in self.run(each)]
            figures = {"mean": finite(mean(tests)), "sem": standard_error(tests), "per_seed": tests}
            found[told(*side)][measure] = {"lr": each[0]["lr"], "steps": each[0]["steps"], **figures}
        print(f"{name}: scored", flush=True)
        return found

    def described(self, name: str, side: Side, losses: Mapping[float, float]) -> dict[str, Any]:
        """What is known of a side before it is scored."""
        rates, lr = list(losses), min(losses, key=lambda rate: losses[rate])
        return {
            "ms_per_step": self.ms[name][told(*side)],
            "validation": {f"{rate:g}": finite(loss) for rate, loss in losses.items()},
            "on_edge": len(rates) > 1 and lr in (rates[0], rates[-1]),
        }

    def figures(self) -> dict[str, Any]:
        """Everything that is reported: of every problem its sides, of every kind of problem their rates."""
        tuned = {name: self.tried(name) for name in self.names}
        rates = {
            kind: {
                told(*side): for_all([tuned[n][side] for n in self.names if self.kind[n] == kind])
                for side in self.sides
            }
            for kind in self.rates
        }
        problems = {
            name: {"task": self.kind[name], "steps": self.steps(name), "sides": self.scored(name, tuned)}
            for name in self.names
        }
        return {"problems": problems, "rates_for_all": rates}


def told(optimiser: str, source: str) -> str:
    """A side in words."""
    return f"{optimiser}, {source}"


def for_all(losses: Sequence[Mapping[float, float]]) -> float | None:
    """The rate of the least mean rank over problems, by validation loss; None of no problems."""
    if not losses:
        return None
    ranked = [sorted(each, key=lambda lr: each[lr]) for each in losses]
    return min(losses[0], key=lambda lr: sum(order.index(lr) for order in ranked))


def table_optimisers(result: Result) -> str:
    """The table of every measure."""
    return "\n".join(f"{title}:\n\n{table(result, measure)}" for measure, title in MEASURES.items())


def table(result: Result, measure: str) -> str:
    """Test losses by problem and source, the optimisers side by side; the least of a line in bold."""
    rows = []
    optimisers, sources = (result["setting"][name] for name in ("optimisers", "sources"))
    for name, source in itertools.product(result["problems"], sources):
        sides = result["problems"][name]["sides"]
        tests = [sides[told(optimiser, source)].get(measure) for optimiser in optimisers]
        least = min((or_inf(test["mean"]) for test in tests if test), default=math.inf)
        cells = []
        for test in tests:
            text = "–" if test is None else score_text(test)
            cells.append(f"**{text}**" if test and test["mean"] == least else text)
        rows.append((name, source, *cells))
    return markdown(("problem", "weights", *optimisers), rows)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=3, selection=1, hours=8.0, jobs=1)
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--optimisers", nargs="+", default=OPTIMISERS)
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--steps", type=int, default=None, help="default: 1,000, of a regression 2,000")
    parser.add_argument("--data", type=Path, default=None, help="folder of the folders of rows")
    options = parsed(parser, line)
    study = Study(options)
    setting = given(options, "seeds", "selection", "hours", "optimisers", "sources")
    result = {
        "setting": {
            **setting,
            "left_out": [name for name in options.problems if name not in study.names],
            "batch_size": BATCH_SIZE,
            "rates": study.rates,
            "pytorch_optimizer": version("pytorch_optimizer"),
        },
        **study.figures(),
    }
    write(options, result, table_optimisers)
    return result


if __name__ == "__main__":
    main()
