"""Which parameters' steps make the plateau, those of the weights or those of the free tensors?

    python benchmarks/studies/free_rates.py --hours 2 --out results/free_rates.json

A factorial: the rate of the constrained weights' parameters times 1 or 40, that of the free tensors times 1
or 40, for softplus, projection, a lift that emits all tensors without a gain, and the reference lift; beside
them that lift with a gain of 40. Of a lift the rates of the slack are multiplied; body, readout and what is a
task's own (norms, an offset) stay at 0.001. The paper's protocol on four densities (folded-normal start,
128 x 3, 3,000 steps, gradients clipped at 1) and two flows in 21 dimensions (1,000 steps); Adam and SGD, both
at 0.001.

One seed, pair of problems and optimiser after another, in a random order within, until --hours are spent; how
many cells were run is in the result. Finished ones are kept beside it: run it again to go on.
`--figure docs/images/free-rates.png` draws the curves.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from common import Ledger, Outcome, score_text, train_and_score
from timing import Result, arguments, given, markdown, parsed, write
from torch import nn

import convexlift as cl
from convexlift.problems import Problem, problem
from convexlift.sources import WeightSource
from convexlift.study.arms import ARMS, Arm, build
from convexlift.study.protocol import PAPER_ARCHITECTURE
from convexlift.study.statistics import summary

DENSITIES, FLOWS = ("gumbel", "laplace", "gamma", "beta"), ("digits21", "collider")
WAYS: Mapping[str, Arm] = {
    "softplus": ARMS["softplus"],
    "projected": ARMS["projected"],
    "lift, no gain": partial(cl.Lift, weight_gain=1.0, free_gain=1.0),
    "lift, gain 40": partial(cl.Lift, weight_gain=40.0, free_gain=40.0),
    "lift-reference": ARMS["lift-reference"],
}
PAIRS = (("gumbel", "collider"), ("laplace", "digits21"), ("gamma", "beta"))
RATE, MULTIPLIER, POINTS = 0.001, 40.0, 20


@dataclass(frozen=True)
class Cell:
    """One run: the multipliers are of the weights' and the free tensors' rates."""

    problem: str
    optimizer: str
    way: str
    weights: float
    free: float
    seed: int


def cells(seeds: int) -> list[Cell]:
    """All of the factorial, in the order in which it is drawn."""
    found = []
    for seed in range(seeds):
        for names, optimizer in itertools.product(PAIRS, ("adam", "sgd")):
            drawn = [
                Cell(name, optimizer, way, weights, free, seed)
                for name in names
                for way in WAYS
                for weights in (1.0, MULTIPLIER)
                for free in (1.0, MULTIPLIER)
                if way != "lift, gain 40" or weights == free == 1
            ]
            random.Random(seed).shuffle(drawn)
            found += sorted(drawn, key=lambda cell: cell.way == "lift-reference")  # the slowest last
    return found


def optimizer_of(task: nn.Module, cell: Cell) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimiser, with the multiplied rates."""
    free, weights = set(), set()
    for source in task.modules():
        if isinstance(source, WeightSource):
            mine = source.free_tensors().values()
            free |= {id(p) for p in mine}
            slack: Any = getattr(source, "slack", None) or source.latents
            weights |= {id(p) for p in slack} - free
    groups = [
        {"params": [], "lr": RATE * cell.free},
        {"params": [], "lr": RATE * cell.weights},
        {"params": [], "lr": RATE},
    ]
    for p in task.parameters():
        if p.requires_grad:
            groups[0 if id(p) in free else 1 if id(p) in weights else 2]["params"].append(p)  # type: ignore[attr-defined]
    groups = [group for group in groups if group["params"]]
    if cell.optimizer == "sgd":
        return lambda _: torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    return lambda _: torch.optim.Adam(groups, lr=RATE, fused=True)


@lru_cache
def known(name: str) -> Problem:
    """The problem, a density with the paper's network."""
    found = problem(name)
    return replace(found, architecture=dict(PAPER_ARCHITECTURE)) if name in DENSITIES else found


def run(cell: Cell) -> Outcome:
    """Train and score one frozen model."""
    chosen = known(cell.problem)
    density = cell.problem in DENSITIES
    task = build(chosen, cell.way, cell.seed, WAYS)
    offset = -float(chosen.log_prob(chosen.validation).double().mean()) if chosen.log_prob else 0.0  # type: ignore[arg-type]

    def also(frozen: nn.Module, history: Any) -> Outcome:
        curve = [float(f"{loss - offset:.4g}") for loss in history.validation]
        return {"curve": curve, "metrics": chosen.metrics(frozen) if chosen.metrics else {}}

    return train_and_score(
        task,
        chosen,
        steps=3_000 if density else 1_000,
        evaluations=POINTS,
        batch_size=256 if density else 128,
        optimizer=optimizer_of(task, cell),
        clip=1.0 if density else None,
        seed=cell.seed,
        also=also,
    )


def score(name: str, outcome: Outcome) -> float | None:
    """Total variation for a density, test loss for a flow; None where it diverged."""
    return outcome.get("metrics", {}).get("total_variation") if name in DENSITIES else outcome["test"]


def title(row: Mapping[str, Any]) -> str:
    """The way, and what its rates are multiplied by."""
    said = {"weights": row["weights"], "free": row["free"]}
    many = [f"{name} × {value:g}" for name, value in said.items() if value != 1]
    return ", ".join([row["way"], *many])


def table_free_rates(result: Result) -> str:
    """Every way and multiplier: mean and standard error, and the number of seeds where it is not all."""
    text = ""
    names = (*DENSITIES, *FLOWS)
    for optimizer in ("adam", "sgd"):
        rows: dict[str, dict[str, str]] = {}
        for row in result["rows"]:
            if row["optimizer"] == optimizer:
                count = len(row["scores"]["per_seed"])
                note = f" ({count})" if count < result["seeds"] else ""
                rows.setdefault(title(row), {})[row["problem"]] = score_text(row["scores"]) + note
        if rows:
            lines = [[way, *(by.get(name, "") for name in names)] for way, by in rows.items()]
            text += markdown((f"{'Adam' if optimizer == 'adam' else 'SGD'}", *names), lines) + "\n"
    return text.rstrip("\n") + "\n"


def draw(result: Result, file: Path) -> None:
    """The mean curves with Adam, plain and with the rates of weights or free tensors multiplied."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    looks = {(1.0, 1.0): ":", (MULTIPLIER, 1.0): "--", (1.0, MULTIPLIER): "-"}
    colours = dict(zip(WAYS, ("#4477aa", "#ee6677", "#228833", "#aa3377", "#bbbbbb"), strict=True))
    there = {row["problem"] for row in result["rows"] if row["optimizer"] == "adam"}
    names = [name for name in ("gumbel", "laplace", "digits21", "collider") if name in there]
    size = {"figsize": (2 + 4 * len(names), 4.4), "layout": "constrained", "squeeze": False}
    figure, ((*axes,),) = pyplot.subplots(1, len(names), **size)
    for ax, name in zip(axes, names, strict=True):
        for row in result["rows"]:
            look = looks.get((row["weights"], row["free"]))
            if row["problem"] == name and row["optimizer"] == "adam" and look and row["curve"]:
                x = [(k + 1) / len(row["curve"]) for k in range(len(row["curve"]))]
                ax.plot(x, row["curve"], look, color=colours[row["way"]], label=title(row), lw=1.6)
        ax.set(title=name, xlabel="fraction of training")
        if name in DENSITIES:
            ax.set_yscale("symlog", linthresh=1e-3)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("validation loss (densities: excess, nats)")
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = arguments(__file__, __doc__, seeds=5, hours=2.0)
    parser.add_argument("--figure", type=Path, help="picture of the curves")
    options = parsed(parser)
    ledger, started = Ledger(options.out, __file__), time.monotonic()
    drawn: dict[tuple[Any, ...], list[tuple[int, Outcome]]] = {}
    planned = cells(options.seeds)
    for cell in planned:
        late = time.monotonic() - started > 3600 * options.hours
        if late and not ledger.has(asdict(cell)):
            continue
        outcome = ledger.run(asdict(cell), partial(run, cell))
        key = (cell.problem, cell.optimizer, cell.way, cell.weights, cell.free)
        drawn.setdefault(key, []).append((cell.seed, outcome))
        print(*key, cell.seed, score(cell.problem, outcome), flush=True)
    rows = []
    order = sorted(drawn, key=lambda k: (list(WAYS).index(k[2]), k[3], k[4]))
    for key in order:
        outcomes = [outcome for _, outcome in sorted(drawn[key], key=lambda pair: pair[0])]
        curves = [outcome["curve"] for outcome in outcomes if "curve" in outcome]
        mean_curve = [sum(at) / len(at) for at in zip(*curves, strict=False)]
        fields = dict(zip(("problem", "optimizer", "way", "weights", "free"), key, strict=True))
        rows.append(
            {
                **fields,
                "seeds": sorted(seed for seed, _ in drawn[key]),
                "scores": summary([score(key[0], outcome) for outcome in outcomes]),
                "curve": [float(f"{value:.4g}") for value in mean_curve],
            }
        )
    share = {"planned": len(planned), "run": sum(map(len, drawn.values()))}
    result = {**given(options, "seeds", "hours"), "rate": RATE, "cells": share, "rows": rows}
    write(options, result, table_free_rates)
    if options.figure is not None:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
