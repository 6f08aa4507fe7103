"""log Z by annealed importance sampling against known answers.

    python benchmarks/timings/log_z.py [--repeats 50] --out results/log_z.json

Every target has a known log Z. Each repeat adapts a proposal from a standard normal and anneals from it, with
its own seed. Covered counts the repeats whose error is within two standard errors; refused are those that the
library would not give a number for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from convexlift.integration.annealing import UnreliableEstimate, annealed_normaliser
from convexlift.integration.gaussian import Gaussian
from convexlift.integration.langevin import adapted

Function = Callable[[Tensor], Tensor]

# One coordinate's f, its derivative, and its log Z.
MARGINALS: dict[str, tuple[Function, Function, float]] = {
    "logistic": (lambda u: u + 2 * F.softplus(-u), lambda u: 1 - 2 * torch.sigmoid(-u), 0.0),
    "gumbel": (lambda u: u + torch.exp(-u), lambda u: 1 - torch.exp(-u), 0.0),
    "laplace": (torch.abs, torch.sign, math.log(2)),
    "normal": (lambda u: u.square() / 2, lambda u: u, math.log(2 * math.pi) / 2),
}
CASES = {
    f"{name} {dim}": (name, dim)
    for name, dim in (("logistic", 16), ("logistic", 32), ("gumbel", 16), ("laplace", 16), ("normal", 32))
}


def product(name: str, dim: int) -> tuple[Function, Function, float]:
    """f, its gradient and log Z for a randomly rotated product of one law, its scales from 1/3 to 3."""
    f, slope, log_z = MARGINALS[name]
    generator = torch.Generator().manual_seed(dim)
    rotation = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))[0]
    scales = torch.logspace(-1, 1, dim, base=3, dtype=torch.float64)
    basis = rotation / scales
    return lambda x: f(x @ basis).sum(1), lambda x: slope(x @ basis) @ basis.T, dim * log_z


def repeated(name: str, dim: int, repeats: int) -> dict[str, Any]:
    """Errors and standard errors over repeats."""
    value, gradient, truth = product(name, dim)
    standard = Gaussian(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))
    errors, standard_errors, gaps, seconds, refusals = [], [], [], [], []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        started = time.perf_counter()
        try:
            proposal = adapted(value, gradient, standard, generator=generator)
            found = annealed_normaliser(value, gradient, proposal, generator=generator)
        except UnreliableEstimate as refusal:
            refusals.append(str(refusal))
            continue
        seconds.append(time.perf_counter() - started)
        errors.append(float(found.log_z) - truth)
        gaps.append(found.backward - float(found.log_z))
        standard_errors.append(found.error)
    return {
        "mean": statistics.fmean(errors),
        "rms": math.sqrt(statistics.fmean([e * e for e in errors])),
        "largest": max(abs(e) for e in errors),
        "standard_error": statistics.fmean(standard_errors),
        "covered": sum(abs(e) <= 2 * s for e, s in zip(errors, standard_errors, strict=True)),
        "within_0.02": sum(abs(e) <= 0.02 for e in errors),
        "largest_gap": max(abs(g) for g in gaps),
        "repeats": repeats,
        "refused": refusals,
        "seconds": statistics.median(seconds),
        "errors": errors,
        "standard_errors": standard_errors,
    }


def table_log_z(result: timing.Result) -> str:
    """Errors of every case."""
    cells = {
        "rotated product of": lambda row: "{} law, {} dimensions".format(*row["case"].split()),
        "mean error (nats)": lambda row: f"{row['mean']:+.4f}".replace("-", "−"),
        "root mean square": "{rms:.4f}",
        "standard error given": "{standard_error:.4f}",
        "within 0.02": lambda row: f"{row['within_0.02']} of {row['repeats']}",
        "within two standard errors": "{covered} of {repeats}",
        "refused": lambda row: str(len(row["refused"])),
        "seconds": "{seconds:.1f}",
    }
    return timing.columns([{"case": case, **row} for case, row in result["rows"].items()], cells)


def main() -> None:
    parser = timing.arguments(__file__, __doc__, repeats=50, threads=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = timing.parsed(parser)
    rows = {}
    for case in options.cases:
        rows[case] = repeated(*CASES[case], options.repeats)
        print(f"{case}: mean error {rows[case]['mean']:+.4f}", flush=True)
    timing.write(options, {"shape": timing.given(options, "repeats", "threads"), "rows": rows}, table_log_z)


if __name__ == "__main__":
    main()
