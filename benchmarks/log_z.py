"""log Z by annealed importance sampling against known answers, and the speed of MALA on a trained density.

    python benchmarks/log_z.py [--repeats 50] --out results/log_z.json

Every target has a known log Z. Each repeat adapts a proposal from a standard normal and anneals from it, with
its own seed. Covered counts the repeats whose error is within two standard errors; refused are those that the
library would not give a number for. The last table draws 10,000 points from an ICNN density in 32 dimensions.
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

import convexlift as cl
from convexlift.integration.annealing import UnreliableEstimate, log_normalizer
from convexlift.integration.gaussian import Gaussian
from convexlift.integration.langevin import adapted, draw

Function = Callable[[Tensor], Tensor]

# One coordinate's f, its derivative, and its log Z.
MARGINALS: dict[str, tuple[Function, Function, float]] = {
    "logistic": (lambda u: u + 2 * F.softplus(-u), lambda u: 1 - 2 * torch.sigmoid(-u), 0.0),
    "gumbel": (lambda u: u + torch.exp(-u), lambda u: 1 - torch.exp(-u), 0.0),
    "laplace": (torch.abs, torch.sign, math.log(2)),
    "normal": (lambda u: u.square() / 2, lambda u: u, math.log(2 * math.pi) / 2),
}
CASES = [("logistic", 16), ("logistic", 32), ("gumbel", 16), ("laplace", 16), ("normal", 32)]


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
            found = log_normalizer(value, gradient, proposal, generator=generator)
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


def trained(dim: int, seed: int) -> cl.Potential:
    """A convex potential in float64, by exact score matching on rotated logistic rows."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(8192, dim, generator=generator).clamp(1e-6, 1 - 1e-6)
    rows = torch.logit(uniform) @ torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    rows = (rows - rows.mean(0)) / rows.std(0)
    model = cl.Squared(cl.ICNN(dim, hidden=(64, 64, 64), seed=seed))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(300):
        batch = rows[torch.arange(256) + 256 * (step % 32)]
        potential = model.emit()
        score = potential.gradient(batch)
        loss = (score.square().sum(1) / 2 - potential.laplacian(batch)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.freeze().double().emit()


def drawing(dim: int, n: int, seed: int) -> dict[str, Any]:
    """n draws from the trained density, checked against a run eight times as long, and its log Z."""
    f = trained(dim, seed)
    standard = Gaussian(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    found = draw(f.value, f.gradient, standard, n, generator=generator)
    seconds = time.perf_counter() - started
    long = draw(f.value, f.gradient, standard, 8 * n, generator=generator)
    variance = found.x.var(0)
    z_mean = (found.x.mean(0) - long.x.mean(0)) / (variance * (1 / found.ess + 1 / long.ess)).sqrt()
    started = time.perf_counter()
    proposal = adapted(f.value, f.gradient, standard, generator=generator)
    normaliser = log_normalizer(f.value, f.gradient, proposal, generator=generator)
    return {
        "seconds": seconds,
        "r_hat": float(found.r_hat.max()),
        "ess": float(found.ess.min()),
        "ess_per_second": float(found.ess.min()) / seconds,
        "acceptance": found.acceptance,
        "steps": found.steps,
        "largest_z_of_means": float(z_mean.abs().max()),
        "largest_ratio_of_deviations": float((found.x.std(0) / long.x.std(0)).log().abs().max().exp()),
        "log_z": float(normaliser.log_z),
        "log_z_error": normaliser.error,
        "log_z_backward": normaliser.backward,
        "log_z_seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=50, threads=1)
    parser.add_argument("--draws", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    heads = ("mean", "rms", "largest", "s.e.", "covered", "<= 0.02", "refused", "s")
    widths = (9, 8, 9, 8, 9, 9, 9, 6)
    print(" " * 14 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for name, dim in CASES:
        row = rows[f"{name} {dim}"] = repeated(name, dim, options.repeats)
        print(
            f"{name:10}{dim:4d}{row['mean']:+9.4f}{row['rms']:8.4f}{row['largest']:9.4f}"
            f"{row['standard_error']:8.4f}{row['covered']:6d}/{options.repeats}{row['within_0.02']:6d}/"
            f"{options.repeats}{len(row['refused']):9d}{row['seconds']:6.1f}",
            flush=True,
        )
    sampled = drawing(32, options.draws, options.seed)
    print(f"\n{options.draws:,} draws from a trained density, d = 32")
    for key, number in sampled.items():
        print(f"  {key:28}{number:12.4g}")
    shape = {k: getattr(options, k) for k in ("repeats", "threads", "seed", "draws")}
    timing.write(options.out, "python benchmarks/log_z.py", {"shape": shape, "rows": rows, "draws": sampled})


if __name__ == "__main__":
    main()
