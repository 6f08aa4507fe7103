"""Transport maps on pairs whose true map is known: L2-UVP of the frozen map against seconds of training.

    python benchmarks/studies/w2_benchmark.py --data FOLDER [--dims 2 4 8] --out results/w2_benchmark.json

FOLDER holds the files mix3tomix10_D.npz (Mix3ToMix10 of Korotin et al., the authors' networks as arrays);
--curve 5 15 trains with these budgets too. Each cell draws training rows and held-out rows of its own, trains
the recipe of ``TransportMap.of`` within the budget, and keeps the state whose frozen semi-dual is best on the
held-out rows; the true map is read when that is done, on fresh rows. The budget, in seconds of one processor,
is for all of it: the short run that measures a step, training, and validation. Beside it is the affine map of
the same rows. The true maps are gradients of input-convex networks, which favours this library. Those cells
that are finished are kept beside --out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Ledger, Outcome
from timing import Result, arguments, columns, given, parsed, write

import convexlift as cl
from convexlift.data import whole
from convexlift.problems.published.w2_benchmark import score, transport_pair

# Rows of each sample that a cell trains on and is held to. All settings here are those of the recipe, chosen
# before any map was scored.
ROWS, HELD = 131_072, 8192
RECIPE: dict[str, Any] = {
    "optimizer": "soap",
    "batch_size": 1024,  # of which conjugates are taken for half of the target rows
    "averaging": 0.999,
    "schedule": "cosine",
    "patience": None,
    "progress": False,
}
WARMUP, EVALUATIONS, TRIAL = 100, 10, 150
# Held-out rows at which the potential's least curvature is looked for, to see whether alpha holds it up.
CURVED = 2048
# The learning rate, halved where there are many dimensions; of conjugates the tolerance, finer in the plane.
RATE, MANY = 0.02, 16
TOLERANCE, PLANE = 1e-2, 3e-3


def run(file: Path, dim: int, seconds: float, seed: int, rows: int, held: int) -> Outcome:
    """Train within the budget; scores of the frozen map and of the affine one, and how the time was spent."""
    pair = transport_pair(file / f"mix3tomix10_{dim}.npz")
    data = cl.Unpaired(pair.source(rows, seed).float(), pair.target(rows, seed).float())
    validation = cl.Unpaired(
        pair.source(held, seed, "held out").float(), pair.target(held, seed, "held out").float()
    )
    recipe = {**RECIPE, "lr": RATE if dim < MANY else RATE / 2, "seed": seed}
    started, wall = time.process_time(), time.perf_counter()
    steps = _steps(data, validation, recipe, dim, seconds, started)
    map = _map(dim, seed)
    history = cl.fit(
        map,
        data,
        validation=validation,
        steps=steps,
        warmup=min(WARMUP, steps // 4),
        evaluate_every=math.ceil(steps / EVALUATIONS),
        **recipe,
    )
    frozen = map.freeze()
    spent, waited = time.process_time() - started, time.perf_counter() - wall
    affine = cl.TransportMap.of(dim, seed=seed)
    affine.initialise(whole(data))
    source, target = affine.standardiser, affine.target_standardiser
    f = frozen.block.emit()
    curvatures = torch.linalg.eigvalsh(f.hessian(frozen.standardiser(validation.xs[:CURVED])))
    held_out = frozen.distance(validation.xs, validation.xt)
    return {
        "seconds": waited,
        "processor_seconds": spent,
        "steps": steps,
        "ms_per_step": history.ms_per_step,
        "best_step": history.best_step,
        "validation": history.validation,
        "left_out": map.left_out / map.asked,
        "alpha": float(f.alpha),
        "least_curvature": float(curvatures.min()),
        "half_squared": held_out.half_squared,
        "standard_error": held_out.standard_error,
        **score(frozen, pair),
        "affine": score(lambda x: target.inverse(source(x)), pair),
    }


def _map(dim: int, seed: int) -> cl.TransportMap:
    return cl.TransportMap.of(dim, seed=seed, tolerance=TOLERANCE if dim > 2 else PLANE)


def _steps(data: Any, validation: Any, recipe: Any, dim: int, seconds: float, started: float) -> int:
    """How many steps fit into what is left of the budget, by a short run of a map that is thrown away."""
    trial = _map(dim, recipe["seed"])
    cl.fit(trial, data, steps=TRIAL, warmup=TRIAL // 4, **recipe)  # the first steps are slower
    clock = time.process_time()
    trial.freeze().loss(whole(validation))
    evaluation = time.process_time() - clock
    cl.fit(trial, data, steps=TRIAL, **recipe)
    step = (time.process_time() - clock - evaluation) / TRIAL
    left = seconds - (time.process_time() - started) - EVALUATIONS * evaluation
    return max(TRIAL, int(left / step))


def study(options: argparse.Namespace, ledger: Ledger) -> list[dict[str, Any]]:
    """All cells, the seeds of one dimension and budget after the other."""
    found = []
    budgets = [*options.curve, options.seconds]
    for dim, seconds, seed in itertools.product(options.dims, budgets, range(options.seeds)):
        cell = {"dim": dim, "seconds": seconds, "seed": seed, "rows": options.rows, "held": options.held}
        outcome = ledger.run({"budget": cell}, partial(run, options.data, **cell))
        found.append({"dim": dim, "budget": seconds, "seed": seed, **outcome})
        print(f"d = {dim}, {seconds:g} s, seed {seed}: {outcome['uvp']:.3f} %", flush=True)
    return found


def table_transport(result: Result) -> str:
    """L2-UVP and cosine of every cell, beside those of the affine map."""
    return columns(
        result["cells"],
        {
            "d": "{dim}",
            "budget, s": "{budget:g}",
            "seed": "{seed}",
            "L2-UVP, %": "{uvp:.3f}",
            "± ": "{uvp_error:.3f}",
            "cosine": "{cosine:.4f}",
            "affine map, %": lambda row: f"{row['affine']['uvp']:.1f}",
            "seconds": "{processor_seconds:.0f}",
            "steps": "{steps}",
            "alpha, of the least curvature": lambda row: f"{row['alpha'] / row['least_curvature']:.0%}",
            "conjugates left out": lambda row: f"{100 * row['left_out']:.3f} %",
        },
    )


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seconds=60.0, seeds=1, rows=ROWS, held=HELD)
    parser.add_argument("--data", type=Path, required=True, help="folder of mix3tomix10_D.npz")
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 4, 8, 16, 32])
    parser.add_argument("--curve", nargs="*", type=float, default=[], help="further budgets, seconds")
    options = parsed(parser, line)
    cells = study(options, Ledger(options.out, __file__))
    recipe = {**RECIPE, "lr": RATE, "lr_from_16_dimensions": RATE / 2, "warmup": WARMUP}
    recipe |= {"tolerance": TOLERANCE, "tolerance_in_the_plane": PLANE}
    setting = {**given(options, "dims", "seconds", "curve", "seeds", "rows", "held"), "recipe": recipe}
    result = {"setting": setting, "cells": cells}
    write(options, result, table_transport)
    return result


if __name__ == "__main__":
    main()
