"""Drawing from a trained density of 32 dimensions, against a ten times longer run of the same chains.

    python benchmarks/density_sample.py [--dim 32 --draws 10000] --out results/density_sample.json

A log-concave density is trained on rotated, unlike Gumbel variables. Then its draws are timed, their R-hat
looked at, and their means and variances set beside those of ten times as many draws of another seed, in units
of the Monte Carlo error that the effective sample sizes give.
"""

from __future__ import annotations

import math
import time

import timing
import torch
from torch import Tensor

import convexlift as cl


def rows(n: int, dim: int, seed: int) -> Tensor:
    """Independent Gumbel variables of scales from 1 to 5, rotated."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    gumbel = -(-uniform.log()).log() * torch.linspace(1, 5, dim, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return (gumbel @ rotation.T).float()


def distances(found: Tensor, ess: Tensor, longer: Tensor, longer_ess: Tensor) -> tuple[Tensor, Tensor]:
    """How far means and variances are apart, in standard errors of their difference, (d,) each."""
    x, y = found.double(), longer.double()
    rest = 1 / ess + 1 / longer_ess
    means = (x.mean(0) - y.mean(0)).abs() / (y.var(0) * rest).sqrt()
    centred = y - y.mean(0)
    kurtosis = centred.pow(4).mean(0) / y.var(0).square()
    variances = (x.var(0) - y.var(0)).abs() / (y.var(0) * ((kurtosis - 1) * rest).sqrt())
    return means, variances


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.set_defaults(threads=1)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = rows(8000, options.dim, options.seed)
    density = cl.LogConcaveDensity(
        cl.Squared(cl.ICNN(options.dim, hidden=(64, 64, 64), strong_convexity=0.1, seed=options.seed))
    )
    cl.fit(density, data, steps=options.steps, batch_size=256, lr=0.05, seed=options.seed, progress=False)
    frozen = density.freeze()
    started = time.perf_counter()
    found = frozen.draw(options.draws, seed=0)
    seconds = time.perf_counter() - started
    longer = frozen.draw(10 * options.draws, seed=1)
    means, variances = distances(found.x, found.ess, longer.x, longer.ess)
    started = time.perf_counter()
    normaliser = frozen.normaliser()
    normaliser_seconds = time.perf_counter() - started
    # Of 2 d independent distances the largest is below this with a probability of 99 %.
    limit = float(torch.special.ndtri(torch.tensor(1 - 0.01 / (4 * options.dim), dtype=torch.float64)))
    result = {
        "dim": options.dim,
        "draws": options.draws,
        "seconds": seconds,
        "r_hat": float(found.r_hat.max()),
        "smallest_ess": float(found.ess.min()),
        "acceptance": found.acceptance,
        "chains": found.chains,
        "steps": found.steps,
        "largest_distance_of_means": float(means.max()),
        "largest_distance_of_variances": float(variances.max()),
        "limit": limit,
        "log_z": float(normaliser.log_z),
        "log_z_error": normaliser.error,
        "log_z_seconds": normaliser_seconds,
        "threads": options.threads,
        "seed": options.seed,
    }
    print(
        f"{options.draws:,} draws in {options.dim} dimensions: {seconds:.1f} s on {options.threads} threads"
    )
    print(f"R-hat at most {result['r_hat']:.4f}, effective sample size at least {found.ess.min():,.0f}")
    print(
        f"against {10 * options.draws:,} draws: means within {means.max():.2f}, variances within "
        f"{variances.max():.2f} Monte Carlo errors (99 % of such largest ones are below {limit:.2f})"
    )
    print(f"log Z = {result['log_z']:.3f} ± {normaliser.error:.3f} in {normaliser_seconds:.1f} s")
    timing.write(options.out, "python benchmarks/density_sample.py", result)
    if not (math.isfinite(seconds) and found.converged):
        raise SystemExit("the chains have not mixed")


if __name__ == "__main__":
    main()
