"""How much the learning rate matters: the frozen test loss at eight rates from 1e-4 to 1, without any tuning.

    python benchmarks/rates.py [--problems gumbel uniform --steps 500] --out results/rates.json

Four weight sources and two initialisations, a factor of 4 between rates, three seeds. For every arm: the band
of rates within 0.05 nats of its own best, and of the best of all; and which one choice of arm, initialisation
and rate loses least on its worst problem. For flows the bands are read from the grids of the comparisons in
results/. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timing
import torch

from convexlift.data import whole
from convexlift.problems import problem
from convexlift.study.arms import build
from convexlift.study.digest import code_digest
from convexlift.training import fit
from convexlift.training.run import TrainingDiverged

RATES = (1e-4, 4e-4, 1.6e-3, 6.4e-3, 0.0256, 0.1024, 0.4096, 1.0)
ARMS = ("projected", "softplus", "squared", "lift")
INITIALISATIONS = ("principled", "folded_normal")
BATCH_SIZE = {"density": 256, "flow": 128, "regression": 500}
MARGIN = 0.05

Outcome = dict[str, Any]


class Ledger:
    """Finished cells in a JSON-lines file, so that a study goes on where it was interrupted."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Outcome] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    cell = json.loads(line)
                except ValueError:
                    continue  # cut off while it was written
                self.known[_key(cell["cell"])] = cell["outcome"]

    def run(self, cell: Mapping[str, Any], work: Callable[[], Outcome]) -> Outcome:
        """The outcome of a cell: the one that is kept, or what ``work`` returns, kept from now on."""
        cell = {**cell, "code": code_digest()}
        key = _key(cell)
        if key not in self.known:
            started = time.perf_counter()
            outcome = {**work(), "seconds": time.perf_counter() - started}
            self.known[key] = outcome
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps({"cell": cell, "outcome": outcome}))
        return self.known[key]


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def beside(out: Path | None) -> Path | None:
    """Where the finished cells of a study that writes ``out`` are kept."""
    return None if out is None else out.with_suffix(".cells.jsonl")


def mean(losses: Iterable[float | None]) -> float:
    """The mean of test losses; inf where a run diverged."""
    return statistics.fmean(or_inf(loss) for loss in losses)


def or_inf(loss: float | None) -> float:
    """The loss; inf where a run diverged."""
    return math.inf if loss is None else loss


def standard_error(losses: Sequence[float | None]) -> float | None:
    """The standard error of the mean; None where a run diverged or there is one."""
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < max(2, len(losses)):
        return None
    return statistics.stdev(finite) / math.sqrt(len(finite))


def train(name: str, arm: str, init: str, lr: float, seed: int, steps: int) -> Outcome:
    """Train one cell; validation and test loss of the frozen model, None where training diverged."""
    known = problem(name)
    chosen = dataclasses.replace(known, architecture={**known.architecture, "init": init})
    task = cast(Any, build(chosen, arm, seed))
    rows = whole(chosen.train)
    task.initialise(rows)
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=steps,
            batch_size=BATCH_SIZE[chosen.task],
            lr=lr,
            evaluate_every=max(1, steps // 20),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"validation": None, "test": None}
    test = float(chosen.evaluate(task.freeze(rows)).double().mean())
    return {"validation": history.best_validation, "test": test if math.isfinite(test) else None}


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


def study(
    problems: Sequence[str], rates: Sequence[float], seeds: int, steps: int, ledger: Ledger
) -> dict[str, Any]:
    """Run all cells, the rates of one seed after the other; return the losses by problem, arm and rate."""
    found: dict[str, Any] = {}
    for name in problems:
        for seed in range(seeds):
            for init in INITIALISATIONS:
                for arm in ARMS:
                    for lr in rates:
                        cell = {
                            "problem": name,
                            "arm": arm,
                            "init": init,
                            "lr": lr,
                            "seed": seed,
                            "steps": steps,
                        }
                        outcome = ledger.run(cell, lambda c=cell: train(c.pop("problem"), **c))
                        by_rate = found.setdefault(name, {}).setdefault(f"{arm}, {init}", {})
                        by_rate.setdefault(f"{lr:g}", []).append(outcome)
        print(f"{name}: {seeds * len(INITIALISATIONS) * len(ARMS) * len(rates)} cells", flush=True)
    return found


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds, bands, and the best choice without tuning, from what ``study`` returns."""
    tests = {
        name: {
            arm: {lr: mean(o["test"] for o in cells) for lr, cells in by_rate.items()}
            for arm, by_rate in arms.items()
        }
        for name, arms in found.items()
    }
    least = {name: min(min(by_rate.values()) for by_rate in arms.values()) for name, arms in tests.items()}
    problems = {
        name: {arm: _arm(by_rate, found[name][arm], least[name]) for arm, by_rate in arms.items()}
        for name, arms in tests.items()
    }
    choices = [
        {
            "arm": arm,
            "rate": float(lr),
            "excess": {name: tests[name][arm][lr] - least[name] for name in tests},
        }
        for arm, by_rate in next(iter(tests.values())).items()
        for lr in by_rate
    ]
    for choice in choices:
        choice["worst"] = max(choice["excess"].values())
    ranked = sorted((c for c in choices if math.isfinite(c["worst"])), key=lambda c: c["worst"])
    best_of_arm = {c["arm"]: c for c in reversed(ranked)}  # the first of each arm
    return {
        "least": least,
        "problems": problems,
        "without_tuning": sorted(best_of_arm.values(), key=lambda c: c["worst"]),
    }


def _arm(by_rate: Mapping[str, float], cells: Mapping[str, list[Outcome]], least: float) -> dict[str, Any]:
    rates, losses = [float(lr) for lr in by_rate], list(by_rate.values())
    own = band(rates, losses, min(losses) + MARGIN) if math.isfinite(min(losses)) else None
    overall = band(rates, losses, least + MARGIN)
    return {
        "test": {lr: loss if math.isfinite(loss) else None for lr, loss in by_rate.items()},
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
            found[result["problem"]][arm] = {
                "lowest": lowest,
                "band_own": own,
                "factor_own": own and own[1] / own[0],
            }
    return found


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for name, arms in result["problems"].items():
        rates = list(next(iter(arms.values()))["test"])
        lines.append(f"\n{name}: test loss by rate (lowest mean {result['least'][name]:.4g})")
        lines.append(f"{'':26}" + "".join(f"{lr:>9}" for lr in rates) + f"{'own':>9}{'overall':>9}")
        for arm, row in arms.items():
            losses = "".join(f"{'-' if x is None else format(x, '.4g'):>9}" for x in row["test"].values())
            factors = "".join(
                f"{'none' if row[k] is None else format(row[k], '.3g'):>9}"
                for k in ("factor_own", "factor_overall")
            )
            lines.append(f"{arm:26}{losses}{factors}")
    lines.append(
        "\nthe rate of every arm that loses least on its worst problem, in nats above the lowest mean"
    )
    for choice in result["without_tuning"]:
        by_problem = ", ".join(f"{name} {excess:.3f}" for name, excess in choice["excess"].items())
        lines.append(f"{choice['arm']:26}{choice['rate']:9.4g}{choice['worst']:9.3f}   {by_problem}")
    for name, arms in result["compared"].items():
        told = ", ".join(f"{arm} {row['factor_own']:.3g}" for arm, row in arms.items())
        lines.append(f"\n{name}, comparison in results/, width of the own band: {told}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["gumbel", "uniform"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where comparisons left theirs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ledger = Ledger(beside(options.out))
    result = figures(study(options.problems, options.rates, options.seeds, options.steps, ledger))
    result["compared"] = compared(options.results)
    print(table(result))
    setting = {
        "problems": options.problems,
        "steps": options.steps,
        "seeds": list(range(options.seeds)),
        "margin": MARGIN,
        "batch_size": BATCH_SIZE,
    }
    command = f"python benchmarks/rates.py --problems {' '.join(options.problems)}"
    command += f" --seeds {options.seeds} --steps {options.steps} --results {options.results}"
    timing.write(options.out, command, {"setting": setting, **result})
    return result


if __name__ == "__main__":
    main()
