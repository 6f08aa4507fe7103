"""How much the learning rate matters: the frozen test loss at eight rates from 1e-4 to 1, without any tuning.

    python benchmarks/studies/rates.py [--problems gumbel uniform --steps 500] --out results/rates.json

Four weight sources and two initialisations, a factor of 4 between rates, three seeds. For every arm: the band
of rates within 0.05 nats of its own best, and of the best of all; and which one choice of arm, initialisation
and rate loses least on its worst problem. For flows the bands are read from the grids of the comparisons in
results/. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import Ledger, Outcome, finite, mean, or_inf, standard_error, train_and_score
from timing import Result, arguments, given, markdown, parsed, write

from convexlift.problems import Problem, problem
from convexlift.study.arms import build

RATES = (1e-4, 4e-4, 1.6e-3, 6.4e-3, 0.0256, 0.1024, 0.4096, 1.0)
ARMS = ("projected", "softplus", "squared", "lift")
STARTS = ("principled", "folded_normal")
BATCH_SIZE = {"density": 256, "flow": 128, "regression": 500}
MARGIN = 0.05


def started(name: str, init: str) -> Problem:
    """The problem with its networks starting from this initialisation."""
    known = problem(name)
    return dataclasses.replace(known, architecture={**known.architecture, "init": init})


def run(name: str, arm: str, init: str, lr: float, seed: int, steps: int) -> Outcome:
    """Train one cell; validation and test loss of the frozen model, None where training diverged."""
    known = started(name, init)
    setting = {"steps": steps, "batch_size": BATCH_SIZE[known.task], "lr": lr, "seed": seed}
    return train_and_score(build(known, arm, seed), known, **setting)


def band(rates: Sequence[float], losses: Sequence[float], ceiling: float) -> tuple[float, float] | None:
    """The rates around the best one between which the loss stays at or below ``ceiling``.

    Between grid points the loss is taken as linear in the logarithm of the rate; next to a diverged one the
    band ends at the last finite rate. None where even the best loss is above the ceiling.
    """
    best = min(range(len(rates)), key=lambda k: losses[k])
    if losses[best] > ceiling:
        return None
    ends = []
    for step in (-1, 1):
        k = best
        while 0 <= k + step < len(rates) and losses[k + step] <= ceiling:
            k += step
        end = rates[k]
        if 0 <= k + step < len(rates) and math.isfinite(losses[k + step]):
            share = (ceiling - losses[k]) / (losses[k + step] - losses[k])
            end = rates[k] * (rates[k + step] / rates[k]) ** share
        ends.append(end)
    return ends[0], ends[1]


def study(options: argparse.Namespace, ledger: Ledger) -> dict[str, Any]:
    """Run all cells, the rates of one seed after the other; return the losses by problem, arm and rate."""
    found: dict[str, Any] = {}
    for name in options.problems:
        for seed, init, arm, lr in itertools.product(range(options.seeds), STARTS, ARMS, options.rates):
            cell = {"arm": arm, "init": init, "lr": lr, "seed": seed, "steps": options.steps}
            outcome = ledger.run({"problem": name, **cell}, partial(run, name, **cell))
            by_rate = found.setdefault(name, {}).setdefault(f"{arm}, {init}", {})
            by_rate.setdefault(f"{lr:g}", []).append(outcome)
        print(f"{name}: finished", flush=True)
    return found


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds, bands, and the best choice without tuning, from what ``study`` returns."""
    tests = {
        name: {arm: {lr: mean(o["test"] for o in cells[lr]) for lr in cells} for arm, cells in arms.items()}
        for name, arms in found.items()
    }
    least = {name: min(min(by_rate.values()) for by_rate in arms.values()) for name, arms in tests.items()}
    problems = {
        name: {arm: _arm(by_rate, found[name][arm], least[name]) for arm, by_rate in arms.items()}
        for name, arms in tests.items()
    }
    choices = []
    for arm, lr in ((arm, lr) for arm, by_rate in next(iter(tests.values())).items() for lr in by_rate):
        excess = {name: tests[name][arm][lr] - least[name] for name in tests}
        choices.append({"arm": arm, "rate": float(lr), "excess": excess, "worst": max(excess.values())})
    ranked = sorted((c for c in choices if math.isfinite(c["worst"])), key=lambda c: c["worst"])
    best_of_arm = {c["arm"]: c for c in reversed(ranked)}  # the first of each arm
    untuned = sorted(best_of_arm.values(), key=lambda c: c["worst"])
    return {"least": least, "problems": problems, "without_tuning": untuned}


def _arm(by_rate: Mapping[str, float], cells: Mapping[str, list[Outcome]], least: float) -> dict[str, Any]:
    rates, losses = [float(lr) for lr in by_rate], list(by_rate.values())
    own = band(rates, losses, min(losses) + MARGIN) if math.isfinite(min(losses)) else None
    overall = band(rates, losses, least + MARGIN)
    return {
        "test": {lr: finite(loss) for lr, loss in by_rate.items()},
        "standard_error": {lr: standard_error([o["test"] for o in cells[lr]]) for lr in by_rate},
        "band_own": own,
        "band_overall": overall,
        "factor_own": own and own[1] / own[0],
        "factor_overall": overall and overall[1] / overall[0],
    }


def compared(folder: Path) -> dict[str, Any]:
    """Every arm's own band in the comparisons of flows, from test losses of the selection seeds."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["task"] != "flow":
            continue
        found[result["problem"]] = {}
        for arm, figures in result["arms"].items():
            by_rate = {row["lr"]: or_inf(row["test"]) for row in figures["rates"]}
            lowest = min(by_rate.values())
            own = band(list(by_rate), list(by_rate.values()), lowest + MARGIN)
            factor = own and own[1] / own[0]
            found[result["problem"]][arm] = {"lowest": lowest, "band_own": own, "factor_own": factor}
    return found


def table_rate_bands(result: Result) -> str:
    """Lowest mean and band of rates of every arm and start."""
    problems = result["problems"]
    rows = []
    for key in next(iter(problems.values())):
        arm, start = key.split(", ")
        cells = []
        for arms in problems.values():
            row = arms[key]
            lowest = min(or_inf(loss) for loss in row["test"].values())
            cells += [f"{lowest:.4f}", *(band_text(row, which) for which in ("own", "overall"))]
        rows.append([start, arm, *cells])
    head = [text for name in problems for text in (f"{name}: lowest mean", "own band", "overall")]
    return markdown(("start", "arm", *head), rows)


def band_text(row: Mapping[str, Any], which: str) -> str:
    """The width of a band as a factor; at least that where it ends at an end of the grid."""
    band, factor = row[f"band_{which}"], row[f"factor_{which}"]
    if band is None:
        return "none"
    tried = sorted(map(float, row["test"]))
    cut = "≥ " if band[0] <= tried[0] or band[1] >= tried[-1] else ""
    return f"{cut}{factor:,.0f}" if factor >= 100 else f"{cut}{factor:.3g}"


def table_flow_bands(result: Result) -> str:
    """The widths of the bands of the flows, read from their comparisons."""
    found = result["compared"]
    arms = list(dict.fromkeys(arm for row in found.values() for arm in row))
    rows = [[problem, *(f"{row[arm]['factor_own']:.1f}" for arm in arms)] for problem, row in found.items()]
    return markdown(("flow", *arms), rows)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=3, steps=500)
    parser.add_argument("--problems", nargs="+", default=["gumbel", "uniform"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where comparisons left theirs")
    options = parsed(parser, line)
    result = figures(study(options, Ledger(options.out, __file__)))
    result["compared"] = compared(options.results)
    for choice in result["without_tuning"]:
        print(f"{choice['arm']} at {choice['rate']:g}, nats above the lowest mean: {choice['excess']}")
    setting = {**given(options, "problems", "steps"), "seeds": list(range(options.seeds))}
    setting |= {"margin": MARGIN, "batch_size": BATCH_SIZE}
    write(options, {"setting": setting, **result}, table_rate_bands, table_flow_bands)
    return result


if __name__ == "__main__":
    main()
