"""What a search tried, as a text."""

from __future__ import annotations

import math
import statistics
from typing import Any

from convexlift.tuning.halving import Found


def table_of(found: Found) -> str:
    """The settings tried, from the best to the worst, with their held-out loss after each number of steps.

    Settings that no run differed in are left out; the loss of a run that failed is a dash.

    Example:
        >>> def run(lr, steps, loss):
        ...     return {"lr": lr, "steps": steps, "hold": 0, "loss": loss}
        >>> runs = (run(0.1, 10, 2.0), run(0.2, 10, None), run(0.1, 20, 1.5))
        >>> print(table_of(Found({"lr": 0.1, "steps": 20}, {"lr": 0.1}, runs, 0.5, 1.0, 2.0)))
        lr   10 steps  20 steps
        0.1  2         1.5       given, chosen
        0.2  -
    """
    names = [name for name in found.base if len({run[name] for run in found.runs}) > 1]
    lengths = sorted({run["steps"] for run in found.runs})
    losses: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for run in found.runs:
        by_length = losses.setdefault(tuple(run[name] for name in names), {})
        by_length.setdefault(run["steps"], []).append(math.inf if run["loss"] is None else run["loss"])
    means = {
        values: {steps: statistics.fmean(those) for steps, those in by_length.items()}
        for values, by_length in losses.items()
    }
    lines = [[*names, *(f"{steps:,} steps" for steps in lengths), ""]]
    for values in sorted(means, key=lambda values: (-max(means[values]), means[values][max(means[values])])):
        marks = [
            mark
            for mark, setting in (("given", found.base), ("chosen", found.setting))
            if values == tuple(setting[name] for name in names)
        ]
        told = [_number(means[values][steps]) if steps in means[values] else "" for steps in lengths]
        lines.append([*map(_number, values), *told, ", ".join(marks)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cost_of(found: Found, last_seconds: float) -> str:
    """What search and last run cost, the last measured in seconds of the processor, as a sentence.

    >>> cost_of(Found({"lr": 0.1}, {"lr": 0.1}, (), 3.0, 20.0, 10.0), 5.0)
    'search and training took 25 s of the processor, 2.5 times training with the settings given'
    """
    seconds = found.seconds + last_seconds
    ratio = f"{seconds / found.base_seconds:.1f} times training with the settings given"
    return f"search and training took {seconds:.3g} s of the processor, {ratio}"


def _number(value: Any) -> str:
    """A value in words: a number with few digits, a dash for what is not finite."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else "-"
