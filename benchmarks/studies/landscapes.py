"""Plateaus of the validation curve and the loss landscape around the runs, arm by arm.

    python benchmarks/studies/landscapes.py --out results/landscapes.json --figures docs/images

Every arm trains the same network from the same start ("principled", and "folded_normal", from which softplus
is known to stall), at the article's fixed rate 0.001 and at the library's default rate. Plateaus are those of
`convexlift.mechanism.plateaus`, on the curves of the frozen models. The landscape is that of one seed: the
plane of the two leading principal directions of all arms' trajectories together, in the space of effective
weights, and the straight lines from the common start to each arm's end. Finished cells are kept beside --out.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from common import Ledger, finite, mean, short, standard_error, train
from rates import BATCH_SIZE, started
from timing import Result, arguments, columns, markdown, parsed, write
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from convexlift.data import whole
from convexlift.mechanism import Landscape, landscape, plateaus
from convexlift.problems import Problem, problem
from convexlift.study.arms import ALL_ARMS, build
from convexlift.training import History

ARMS = ("projected", "softplus", "squared", "lift", "lift-fixed-batch")
OWN_START = ("lift-reference", "softplus-scattered")  # they start elsewhere: no landscape in common
STARTS = ("principled", "folded_normal")
RATES = {"fixed": {"density": 0.001, "flow": 0.001}, "default": {"density": 0.064, "flow": 0.032}}
EVALUATIONS = 50
LINE = 13  # places on a straight line


def run(known: Problem, arm: str, lr: float, seed: int, steps: int) -> tuple[Any, History | None, Tensor]:
    """The frozen model, the history and the trajectory (T, P) of effective weights, its start first."""
    task = cast(Any, build(known, arm, seed, ALL_ARMS))
    rows = whole(known.train)
    task.initialise(rows)
    path = [parameters_to_vector(task.freeze(rows).parameters())]
    options = {"steps": steps, "evaluations": EVALUATIONS, "batch_size": BATCH_SIZE[known.task], "lr": lr}
    follow = [lambda event: path.append(parameters_to_vector(event.frozen.parameters()))]
    history = train(task, known.train, known.validation, seed=seed, callbacks=follow, **options)
    return task.freeze(rows), history, torch.stack(path)


def cell(name: str, start: str, arm: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """The curve, its plateaus and the frozen test loss of one run; None where it diverged."""
    known = started(name, start)
    frozen, history, _ = run(known, arm, lr, seed, steps)
    if history is None:
        return {"test": None, "curve": [], "plateaus": []}
    return {
        "test": finite(float(known.evaluate(frozen).double().mean())),
        "curve": list(zip(history.steps, history.validation, strict=True)),
        "plateaus": [dataclasses.asdict(found) for found in plateaus(history)],
    }


def summary(runs: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Of one arm: how many runs have a plateau, the share of a run spent there, the depth, the test loss."""
    tests, found = ([run[key] for run in runs] for key in ("test", "plateaus"))
    return {
        "runs": len(runs),
        "with_plateau": sum(bool(p) for p in found),
        "share": statistics.fmean(sum(p["length"] for p in ps) / steps for ps in found),
        "depth": max((p["depth"] for ps in found for p in ps), default=0.0),
        "test": tests,
        "mean": finite(mean(tests)),
        "error": standard_error(tests),
    }


def around(name: str, start: str, lr: float, steps: int, points: int) -> tuple[Result, Landscape, Any]:
    """What the landscape says of seed 0, in figures, and what is drawn."""
    known, paths, lines = started(name, start), {}, {}
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


def draw(file: Path, title: str, curves: Result, plane: Landscape, drawn: Any) -> None:
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
            end = found.start + found.length
            inside = [k for k, step in enumerate(history.steps) if found.start <= step <= end]
            place = [history.steps[k] for k in inside], [height[k] for k in inside]
            left.plot(*place, color=colours[arm], lw=6, alpha=0.3)
    above = "validation loss above the lowest (+0.001 nats)"
    left.set(yscale="log", xlabel="step", ylabel=above, title="Curves; wide: a plateau")
    height = plane.loss - float(plane.loss.min()) + 1e-3
    shown = height.clamp(max=float((plane.loss.isfinite() * 1e4).max())).log10().nan_to_num(posinf=4)
    filled = middle.contourf(plane.x, plane.y, shown.T, levels=14, cmap="Greys_r")
    figure.colorbar(filled, ax=middle, label="log10(loss above the lowest in the plane + 0.001)")
    for arm, path in paths.items():
        middle.plot(path[:, 0], path[:, 1], color=colours[arm], lw=1.8)
        middle.plot(path[-1, 0], path[-1, 1], "o", color=colours[arm], ms=6, mec="white")
    start = next(iter(paths.values()))[0]
    middle.plot(start[0], start[1], "s", color="white", mec="black", ms=7)
    said = f"Plane with {plane.explained:.0%} of the paths' variance"
    middle.set(xlabel="first principal direction (square: the start)", ylabel="second", title=said)
    for arm, line in lines.items():
        height = line - min(float(v.min()) for v in lines.values()) + 1e-3
        right.plot(torch.linspace(0, 1, LINE), height, color=colours[arm], lw=1.6)
    place = "place on the straight line from start (0) to end (1)"
    right.set(yscale="log", xlabel=place, title="Loss along the line")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def table_plateaus(result: Result) -> str:
    """Plateaus of the validation curves."""

    def loss(row: Result) -> str:
        error = f" ± {row['error']:.1g}" if row["error"] else ""
        return "diverged" if row["mean"] is None else f"{row['mean']:.4g}{error}"

    cells = {
        "problem": "{problem}",
        "start": "{start}",
        "rate": "{lr:g}",
        "trained by": "{arm}",
        "runs with a plateau": "{with_plateau} of {runs}",
        "share of the run on one": lambda row: f"{100 * row['share']:.0f} %",
        "deepest (nats)": lambda row: short(row["depth"]) if row["depth"] else "",
        "test loss": loss,
    }
    return columns(result["rows"], cells)


def table_landscapes(result: Result) -> str:
    """What the straight lines from start to end say."""
    rows = [
        [
            *(plane["problem"], plane["start"], plane["rate"], arm),
            *(f"{found[key]:.3f}" for key in ("start", "end")),
            short(found["barrier"]) if found["barrier"] > 0 else "none",
            "yes" if found["monotone"] else "no",
            f"{found['distance']:.1f}",
            f"{found['path_length'] / found['distance']:.1f}",
        ]
        for plane in result["landscapes"]
        for arm, found in plane["arms"].items()
    ]
    head = (
        *("problem", "start", "rate", "trained by", "loss at the start", "at the end"),
        *("barrier on the line", "falls all along it", "distance", "path / distance"),
    )
    return markdown(head, rows)


def main() -> None:
    parser = arguments(__file__, __doc__, seeds=5, steps=1000, points=25)
    parser.add_argument("--problems", nargs="+", default=["laplace", "collider"])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--figures", type=Path, help="folder of the pictures")
    options = parsed(parser)
    ledger, rows, planes = Ledger(options.out, __file__), [], []
    for name, start, label in itertools.product(options.problems, options.starts, RATES):
        lr = RATES[label][problem(name).task]
        curves = {}
        for arm in (*ARMS, *(OWN_START if start == "principled" else ())):
            setting = {"start": start, "arm": arm, "lr": lr, "steps": options.steps}
            settings = [{**setting, "seed": seed} for seed in range(options.seeds)]
            runs = [ledger.run({"problem": name, **each}, partial(cell, name, **each)) for each in settings]
            found = summary(runs, options.steps)
            rows.append({"problem": name, "start": start, "rate": label, "lr": lr, "arm": arm, **found})
            curves[arm] = runs[0]["curve"]
            print(name, start, label, arm, found["mean"], flush=True)
        said, plane, drawn = around(name, start, lr, options.steps, options.points)
        planes.append({"problem": name, "start": start, "rate": label, **said})
        if options.figures is not None:
            file = options.figures / f"landscape-{name}-{start}-{label}.png"
            seen = {arm: curves[arm] for arm in ARMS if curves[arm]}
            draw(file, f"{name}, start {start}, rate {lr:g}, seed 0", seen, plane, drawn)
    result = {"steps": options.steps, "seeds": options.seeds, "rows": rows, "landscapes": planes}
    write(options, result, table_plateaus, table_landscapes)


if __name__ == "__main__":
    main()
