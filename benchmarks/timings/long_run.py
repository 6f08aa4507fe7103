"""Whether steps get slower as a small table is overfitted: a flow on 178 rows of 13 columns, many steps.

    python benchmarks/timings/long_run.py --out results/long_run.json

The table is scikit-learn's wine data, the flow that of `convexlift train flow`. Units saturate as it learns
its rows by heart, and numbers underflow; on processors that compute with denormal numbers in microcode every
step then takes many times as long. `fit` flushes them to zero while it trains; "kept" is the same run
without that. Processor time counts, from one loss to the next; each hundred steps have a median.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from typing import Any

import timing
import torch
from sklearn.datasets import load_wine

import convexlift as cl
from convexlift.data import hold_out
from convexlift.seeds import seeded

EVERY = 100
fitting = sys.modules[cl.fit.__module__]


def underflown(tensors: Any) -> int:
    """How many numbers are denormal."""
    return sum(int(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).sum()) for t in tensors)


def trained(flush: bool, options: Any) -> dict[str, Any]:
    """Median milliseconds of each hundred steps, denormal gradients after each, and where it was best."""
    table = torch.tensor(load_wine().data, dtype=torch.float32)
    rows, held = hold_out(table, 0.1, options.seed)
    with seeded(options.seed):
        net = cl.ICNN(table.shape[1], hidden=(64,) * 4, sharpness=2.0, seed=options.seed)
        flow: Any = cl.ConvexPotentialFlow([cl.Squared(net)])
    begun: list[list[float]] = [[]]
    denormal: list[int] = []
    loss = flow.loss

    def timed(*batch: Any, **more: Any) -> Any:
        begun[-1].append(time.process_time())
        return loss(*batch, **more)

    def turn(event: cl.FitEvent) -> None:
        denormal.append(underflown(p.grad for p in event.module.parameters() if p.grad is not None))
        begun.append([])

    flow.loss = timed
    kept = fitting.flushed
    fitting.flushed = kept if flush else contextlib.nullcontext  # type: ignore[attr-defined]
    try:
        how: dict[str, Any] = {"steps": options.steps, "lr": 0.032, "batch_size": 256, "seed": options.seed}
        how |= {"evaluate_every": EVERY, "patience": None, "progress": False}
        history = cl.fit(flow, rows, validation=held, callbacks=[turn], **how)
    finally:
        fitting.flushed = kept  # type: ignore[attr-defined]
    hundreds = [[b - a for a, b in zip(times, times[1:], strict=False)] for times in begun if len(times) > 1]
    medians = [1e3 * statistics.median(steps) for steps in hundreds]
    return {
        "ms": medians,
        "slowest_over_first": max(medians) / medians[0],
        "denormal_gradients": denormal,
        "best_step": history.best_step,
        "best_validation": history.best_validation,
        "last_loss": history.loss[-1],
    }


def table_long_run(result: timing.Result) -> str:
    """The first hundred steps, the slowest, the last, and where each run was best."""
    cells = {
        "denormal numbers": "{denormals}",
        "first 100 steps (processor ms a step)": lambda row: f"{row['ms'][0]:.1f}",
        "slowest 100": lambda row: f"{max(row['ms']):.1f}",
        "last 100": lambda row: f"{row['ms'][-1]:.1f}",
        "slowest / first": "{slowest_over_first:.2f}",
        "denormal gradients, at most": lambda row: f"{max(row['denormal_gradients']):,}",
        "best step": "{best_step}",
        "validation there": "{best_validation:.4f}",
    }
    return timing.columns(result["rows"], cells)


def main() -> None:
    options = timing.parsed(timing.arguments(__file__, __doc__, steps=1500, threads=1, seed=0))
    rows = [{"denormals": how, **trained(how == "flushed", options)} for how in ("flushed", "kept")]
    timing.write(options, {**timing.given(options, "steps", "threads", "seed"), "rows": rows}, table_long_run)


if __name__ == "__main__":
    main()
