"""What the full HEPMASS would take: memory and rows a second with as many rows, simulated, on one thread.

    python benchmarks/studies/tabular_full.py --out results/tabular-full.json

The rows are those of the `collider` simulator, which has HEPMASS's 21 columns; 315,123 of them for training
and 35,013 for validation, as in the published splits. A few steps are timed at each batch size, in processor
seconds; the time of whole runs is extrapolated from them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from tabular import Recipe, started
from timing import Result, arguments, columns, parsed, write

from convexlift.problems.simulated.collider import collider_events

ROWS, VALIDATION_ROWS, EPOCHS = 315_123, 35_013, 100


def simulated(n: int, seed: int, part: int = 10_000) -> torch.Tensor:
    """n events, (n, 21), made in parts so that the simulator's own memory stays small."""
    generator = torch.Generator().manual_seed(seed)
    parts = [collider_events(min(part, n - start), generator) for start in range(0, n, part)]
    return torch.cat(parts)


def measure(recipe: Recipe, rows: torch.Tensor, held_out: torch.Tensor, steps: int) -> dict[str, Any]:
    """Seconds of a pass over the rows and of a validation, and the peak memory of the process so far."""
    task, step = started(recipe, rows, steps)
    frozen = task.freeze()
    begun = time.process_time()
    frozen.log_prob(held_out)
    validation = time.process_time() - begun
    epoch = step * len(rows) / recipe.batch_size
    return {
        "batch_size": recipe.batch_size,
        "ms_per_step": 1e3 * step,
        "rows_per_second": recipe.batch_size / step,
        "seconds_per_epoch": epoch,
        "seconds_per_validation": validation,
        "hours_extrapolated": EPOCHS * (epoch + validation) / 3600,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table_tabular_full(result: Result) -> str:
    """Every batch size."""
    hours = f"hours for {result['setting']['epochs']} epochs (extrapolated)"
    cells = {
        "batch": "{batch_size}",
        "ms a step": "{ms_per_step:.1f}",
        "rows a second": "{rows_per_second:,.0f}",
        "seconds an epoch": "{seconds_per_epoch:.0f}",
        hours: "{hours_extrapolated:.2f}",
        "peak memory of the process, GiB": lambda row: f"{row['peak_mib'] / 1024:.1f}",
    }
    return columns(result["batches"], cells)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, rows=ROWS, steps=20)
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 2048], help="in rising order")
    options = parsed(parser, line)
    rows = simulated(options.rows, 0)
    held_out = simulated(max(2, options.rows * VALIDATION_ROWS // ROWS), 1)
    found = [measure(Recipe(batch_size=size), rows, held_out, options.steps) for size in options.batches]
    setting = {"rows": options.rows, "validation_rows": len(held_out), "epochs": EPOCHS, "threads": 1}
    result = {"setting": setting, "batches": found}
    write(options, result, table_tabular_full)
    return result


if __name__ == "__main__":
    main()
