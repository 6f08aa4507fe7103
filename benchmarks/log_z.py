"""log Z by annealed importance sampling against known answers.

    python benchmarks/log_z.py [--repeats 50] --out results/log_z.json

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


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=50, threads=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    heads = ("mean", "rms", "largest", "s.e.", "covered", "<= 0.02", "refused", "s")
    widths = (9, 8, 9, 8, 9, 9, 9, 6)
    print(" " * 14 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for case in options.cases:
        name, dim = CASES[case]
        row = rows[case] = repeated(name, dim, options.repeats)
        print(
            f"{name:10}{dim:4d}{row['mean']:+9.4f}{row['rms']:8.4f}{row['largest']:9.4f}"
            f"{row['standard_error']:8.4f}{row['covered']:6d}/{options.repeats}{row['within_0.02']:6d}/"
            f"{options.repeats}{len(row['refused']):9d}{row['seconds']:6.1f}",
            flush=True,
        )
    shape = {k: getattr(options, k) for k in ("repeats", "threads", "seed")}
    timing.write(options.out, "python benchmarks/log_z.py", {"shape": shape, "rows": rows})


if __name__ == "__main__":
    main()
