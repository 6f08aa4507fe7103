"""How long library and command take to start, in fresh processes, next to what they stand on.

    python benchmarks/timings/start.py --out results/start.json

A ratio is the median over rounds; a round starts every side once. `import convexlift` loads nothing until a
name is used, so the names that most programs use are timed, too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from typing import Any

import timing

TORCH, SKLEARN = "import torch", "import torch, sklearn.base, sklearn.utils.validation"
NAMES = "ICNN, Squared, ConvexPotentialFlow, LogConcaveDensity, fit, freeze, load, save"
# What is timed, and what it is set beside.
SIDES = {
    "import convexlift": (["-c", f"{TORCH}, convexlift"], TORCH),
    "its main names": (["-c", f"{TORCH}; from convexlift import {NAMES}"], TORCH),
    "import convexlift.sklearn": (["-c", f"{SKLEARN}, convexlift.sklearn"], SKLEARN),
    "convexlift --version": (["-m", "convexlift", "--version"], TORCH),
    "convexlift --help": (["-m", "convexlift", "--help"], TORCH),
    "convexlift train flow --help": (["-m", "convexlift", "train", "flow", "--help"], TORCH),
    "convexlift train flow, no data": (["-m", "convexlift", "train", "flow"], TORCH),
    "convexlift compare digitz": (["-m", "convexlift", "compare", "digitz"], TORCH),
}


def start(arguments: list[str]) -> None:
    """Run Python to its end; what a call prints, and that a wrong one fails, is not looked at."""
    subprocess.run([sys.executable, *arguments], capture_output=True)


def measure(repeats: int) -> dict[str, Any]:
    """Median seconds of every side, and the median ratio to its reference."""
    calls = {TORCH: ["-c", TORCH], SKLEARN: ["-c", SKLEARN]} | {
        name: call for name, (call, _) in SIDES.items()
    }
    times = timing.interleaved(
        {name: partial(start, call) for name, call in calls.items()}, repeats, warmup=1
    )
    return {
        "seconds": {name: statistics.median(values) / 1e3 for name, values in times.items()},
        "ratio": {name: timing.ratio(times, name, beside) for name, (_, beside) in SIDES.items()},
    }


def table_start(result: timing.Result) -> str:
    """The sides with their seconds and ratios."""
    seconds, ratio = result["seconds"], result["ratio"]
    rows = [(f"`{name}`", f"{seconds[name]:.2f}", "") for name in (TORCH, SKLEARN)]
    rows += [
        (f"`{name}`", f"{seconds[name]:.2f}", f"{ratio[name]:.2f} of `{beside}`")
        for name, (_, beside) in SIDES.items()
    ]
    return timing.markdown(("in a fresh process", "seconds", "ratio"), rows)


if __name__ == "__main__":
    options = timing.parsed(timing.arguments(__file__, __doc__, repeats=15))
    timing.write(options, measure(options.repeats), table_start)
