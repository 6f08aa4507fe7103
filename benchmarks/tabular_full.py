"""What the full HEPMASS would take: memory and rows a second with as many rows, simulated, on one thread.

    python benchmarks/tabular_full.py --out results/tabular-full.json

The rows are those of the `collider` simulator, which has HEPMASS's 21 columns; 315,123 of them for training
and 35,013 for validation, as in the published splits. A few steps are timed at each batch size, in processor
seconds; the time of whole runs is extrapolated from them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timing
import torch
from tabular import Recipe, density

from convexlift.problems.simulated.collider import collider_events
from convexlift.training import fit

ROWS, VALIDATION_ROWS, EPOCHS = 315_123, 35_013, 100


def simulated(n: int, seed: int, part: int = 10_000) -> torch.Tensor:
    """n events, (n, 21), made in parts so that the simulator's own memory stays small."""
    generator = torch.Generator().manual_seed(seed)
    parts = [collider_events(min(part, n - start), generator) for start in range(0, n, part)]
    return torch.cat(parts)


def measure(recipe: Recipe, rows: torch.Tensor, held_out: torch.Tensor, steps: int) -> dict[str, Any]:
    """Seconds of a pass over the rows and of a validation, and the peak memory of the process so far."""
    task = cast(Any, density(recipe, rows.shape[1], 0))
    task.initialise(rows)
    settings = {"batch_size": recipe.batch_size, "lr": recipe.lr, "progress": False}
    fit(task, rows, steps=3, **settings)
    started = time.process_time()
    fit(task, rows, steps=steps, evaluate_every=steps, **settings)
    step = (time.process_time() - started) / steps
    frozen = task.freeze()
    started = time.process_time()
    frozen.log_prob(held_out)
    validation = time.process_time() - started
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


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 2048], help="in rising order")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = simulated(options.rows, 0)
    held_out = simulated(max(2, options.rows * VALIDATION_ROWS // ROWS), 1)
    found = []
    for batch_size in options.batches:
        row = measure(Recipe(batch_size=batch_size), rows, held_out, options.steps)
        found.append(row)
        print(
            f"batches of {batch_size:5}: {row['rows_per_second']:8,.0f} rows a second, "
            f"{row['seconds_per_epoch']:6.1f} s a pass, {EPOCHS} passes {row['hours_extrapolated']:.2f} h "
            f"(extrapolated), peak {row['peak_mib']:,.0f} MiB",
            flush=True,
        )
    setting = {"rows": options.rows, "validation_rows": len(held_out), "epochs": EPOCHS, "threads": 1}
    result = {"setting": setting, "batches": found}
    timing.write(options.out, "python benchmarks/tabular_full.py", result)
    return result


if __name__ == "__main__":
    main()
