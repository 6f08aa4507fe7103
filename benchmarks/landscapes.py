"""Plateaus of the validation curve and the loss landscape around the runs, arm by arm.

    python benchmarks/landscapes.py --out results/landscapes.json --figures docs/images

Every arm trains the same network from the same start ("principled", and "folded_normal", from which softplus
is known to stall), at the article's fixed rate 0.001 and at the library's default rate. Plateaus are those of
`convexlift.mechanism.plateaus`, on the curves of the frozen models. The landscape is that of one seed: the
plane of the two leading principal directions of all arms' trajectories together, in the space of effective
weights, and the straight lines from the common start to each arm's end. Finished cells are kept beside --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import BATCH_SIZE, Ledger, beside
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from convexlift.data import whole
from convexlift.mechanism import Landscape, landscape, plateaus
from convexlift.problems import Problem, problem
from convexlift.study.arms import ALL_ARMS, build
from convexlift.training import History, fit
from convexlift.training.run import TrainingDiverged

ARMS = ("projected", "softplus", "squared", "lift", "lift-fixed-batch")
OWN_START = ("lift-reference", "softplus-scattered")  # they start elsewhere: no landscape in common
STARTS = ("principled", "folded_normal")
RATES = {"fixed": {"density": 0.001, "flow": 0.001}, "default": {"density": 0.064, "flow": 0.032}}
EVALUATIONS = 50
LINE = 13  # places on a straight line


def chosen(name: str, start: str) -> Problem:
    """The problem with its networks starting from this initialisation."""
    known = problem(name)
    return dataclasses.replace(known, architecture={**known.architecture, "init": start})


def run(known: Problem, arm: str, lr: float, seed: int, steps: int) -> tuple[Any, History | None, Tensor]:
    """The frozen model, the history and the trajectory (T, P) of effective weights, its start first."""
    task = cast(Any, build(known, arm, seed, ALL_ARMS))
    rows = whole(known.train)
    task.initialise(rows)
    path = [parameters_to_vector(task.freeze(rows).parameters())]
    try:
        history = fit(
            task,
            known.train,
            validation=known.validation,
            steps=steps,
            batch_size=BATCH_SIZE[known.task],
            lr=lr,
            evaluate_every=max(1, steps // EVALUATIONS),
            seed=seed,
            progress=False,
            callbacks=[lambda event: path.append(parameters_to_vector(event.frozen.parameters()))],
        )
    except TrainingDiverged:
        history = None
    return task.freeze(rows), history, torch.stack(path)


def cell(name: str, start: str, arm: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """The curve, its plateaus and the frozen test loss of one run; None where it diverged."""
    known = chosen(name, start)
    frozen, history, _ = run(known, arm, lr, seed, steps)
    if history is None:
        return {"test": None, "curve": [], "plateaus": []}
    test = float(known.evaluate(frozen).double().mean())
    return {
        "test": test if math.isfinite(test) else None,
        "curve": list(zip(history.steps, history.validation, strict=True)),
        "plateaus": [dataclasses.asdict(found) for found in plateaus(history)],
    }


def summary(runs: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Of one arm: how many runs have a plateau, the share of a run spent there, the depth, the test loss."""
    tests = [run["test"] for run in runs]
    finite = [test for test in tests if test is not None]
    found = [run["plateaus"] for run in runs]
    return {
        "runs": len(runs),
        "with_plateau": sum(bool(p) for p in found),
        "share": statistics.fmean(sum(p["length"] for p in ps) / steps for ps in found),
        "depth": max((p["depth"] for ps in found for p in ps), default=0.0),
        "test": tests,
        "mean": statistics.fmean(finite) if len(finite) == len(tests) else None,
        "error": statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) == len(tests) > 1 else None,
    }


def around(
    name: str, start: str, lr: float, steps: int, points: int
) -> tuple[dict[str, Any], Landscape, Any]:
    """What the landscape says of seed 0, in figures, and what is drawn."""
    known, paths, lines = chosen(name, start), {}, {}
    for arm in ARMS:
        frozen, history, path = run(known, arm, lr, 0, steps)
        if history is not None and bool(path.isfinite().all()):
            paths[arm] = path
            lines[arm] = landscape(frozen, frozen.loss, known.validation, path, points=LINE).line_loss
    plane = landscape(frozen, frozen.loss, known.validation, torch.cat(list(paths.values())), points=points)
    said = {
        arm: {
            "start": float(line[0]),
            "end": float(line[-1]),
            # how much higher the straight line goes than its higher end: 0 is a descent without a barrier
            "barrier": float(line.max() - torch.maximum(line[0], line[-1])),
            "monotone": bool((line.diff() <= 1e-6 * line.abs().max()).all()),
            "distance": float((paths[arm][-1] - paths[arm][0]).norm()),
            "path_length": float(paths[arm].diff(dim=0).norm(dim=1).sum()),
        }
        for arm, line in lines.items()
    }
    drawn = dict(zip(paths, plane.path.split([len(path) for path in paths.values()]), strict=True))
    return {"explained": plane.explained, "arms": said}, plane, (drawn, lines)


def draw(
    file: Path, title: str, curves: Mapping[str, Sequence[tuple[int, float]]], plane: Landscape, drawn: Any
) -> None:
    """Three panels: validation curves with their plateaus, the plane with the paths, the straight lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths, lines = drawn
    colours = dict(zip(ARMS, ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#7f5ca8"), strict=True))
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13.5, 4.3), layout="constrained")
    floor = min(loss for curve in curves.values() for _, loss in curve)
    for arm, curve in curves.items():
        history = History(steps=[s for s, _ in curve], validation=[v for _, v in curve])
        height = [v - floor + 1e-3 for v in history.validation]
        left.plot(history.steps, height, color=colours[arm], label=arm, lw=1.6)
        for found in plateaus(history):
            inside = [
                k for k, s in enumerate(history.steps) if found.start <= s <= found.start + found.length
            ]
            left.plot(
                [history.steps[k] for k in inside],
                [height[k] for k in inside],
                color=colours[arm],
                lw=6,
                alpha=0.3,
            )
    left.set(
        yscale="log",
        xlabel="step",
        ylabel="validation loss above the lowest (+0.001 nats)",
        title="Curves; wide: a plateau",
    )
    shown = plane.loss.clone()
    low = float(shown.min())
    shown = (
        (shown - low + 1e-3)
        .clamp(max=float((plane.loss.isfinite() * 1e4).max()))
        .log10()
        .nan_to_num(posinf=4)
    )
    filled = middle.contourf(plane.x, plane.y, shown.T, levels=14, cmap="Greys_r")
    figure.colorbar(filled, ax=middle, label="log10(loss above the lowest in the plane + 0.001)")
    for arm, path in paths.items():
        middle.plot(path[:, 0], path[:, 1], color=colours[arm], lw=1.8)
        middle.plot(path[-1, 0], path[-1, 1], "o", color=colours[arm], ms=6, mec="white")
    start = next(iter(paths.values()))[0]
    middle.plot(start[0], start[1], "s", color="white", mec="black", ms=7)
    middle.set(
        xlabel="first principal direction (square: the start)",
        ylabel="second",
        title=f"Plane with {plane.explained:.0%} of the paths' variance",
    )
    for arm, line in lines.items():
        height = line - min(float(v.min()) for v in lines.values()) + 1e-3
        right.plot(torch.linspace(0, 1, LINE), height, color=colours[arm], lw=1.6)
    right.set(
        yscale="log",
        xlabel="place on the straight line from start (0) to end (1)",
        title="Loss along the line",
    )
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["laplace", "collider"])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=25, help="places on each axis of the plane")
    parser.add_argument("--figures", type=Path, help="folder of the pictures")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ledger, rows, planes = Ledger(beside(options.out)), [], []
    print(
        f"{'problem':12}{'start':15}{'rate':9}{'arm':20}{'plateaus':>9}{'share':>8}{'depth':>9}{'test':>10}"
    )
    for name in options.problems:
        for start in options.starts:
            for label, by_task in RATES.items():
                lr = by_task[problem(name).task]
                curves = {}
                for arm in (*ARMS, *(OWN_START if start == "principled" else ())):
                    runs = []
                    for seed in range(options.seeds):
                        key = {
                            "problem": name,
                            "start": start,
                            "arm": arm,
                            "lr": lr,
                            "seed": seed,
                            "steps": options.steps,
                        }
                        runs.append(
                            ledger.run(
                                {"study": "landscapes", **key}, lambda k=key: cell(k.pop("problem"), **k)
                            )
                        )
                    found = summary(runs, options.steps)
                    rows.append(
                        {"problem": name, "start": start, "rate": label, "lr": lr, "arm": arm, **found}
                    )
                    curves[arm] = runs[0]["curve"]
                    mean = math.inf if found["mean"] is None else found["mean"]
                    print(
                        f"{name:12}{start:15}{label:9}{arm:20}{found['with_plateau']:>4} of {found['runs']}"
                        f"{found['share']:8.2f}{found['depth']:9.3f}{mean:10.4f}",
                        flush=True,
                    )
                said, plane, drawn = around(name, start, lr, options.steps, options.points)
                planes.append({"problem": name, "start": start, "rate": label, **said})
                if options.figures is not None:
                    title = f"{name}, start {start}, rate {lr:g}, seed 0"
                    file = options.figures / f"landscape-{name}-{start}-{label}.png"
                    draw(file, title, {arm: curves[arm] for arm in ARMS if curves[arm]}, plane, drawn)
    starts = " ".join(options.starts)
    timing.write(
        options.out,
        f"python benchmarks/landscapes.py --problems {' '.join(options.problems)} --starts {starts} "
        f"--steps {options.steps} --seeds {options.seeds} --points {options.points}",
        {"steps": options.steps, "seeds": options.seeds, "rows": rows, "landscapes": planes},
    )


if __name__ == "__main__":
    main()
