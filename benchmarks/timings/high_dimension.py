"""A convex potential flow in 256 dimensions: patches of photographs, log-determinants estimated.

    python benchmarks/timings/high_dimension.py [--steps 800] --out results/high_dimension.json

Patches of 16 x 16 grey pixels are cut from the two photographs that come with scikit-learn: training patches
from the left two thirds, validation patches from a strip beside them, test patches from the right quarter.
Noise is added to the grey levels (dequantisation), and everything is whitened by the training rows' mean and
covariance, whose Jacobian is counted: the flow starts near the full-covariance Gaussian that it is compared
with. The flow trains on estimated log-determinants, one probe a row; test rows are scored by 16 probes with
other seeds to see the error of the mean, and some of them exactly. Nearby patches overlap, so rows are far
from independent: this shows that training by estimates works, not a record in image modelling.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from typing import Any

import numpy as np
import timing
import torch
from torch import Tensor

import convexlift as cl

SIDE = 16
DIM = SIDE * SIDE
SEEDS = 4


def patches(count: int, left: float, right: float, seed: int) -> Tensor:
    """Patches (count, 256) with values in [0, 1] from the columns between two fractions of both pictures."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    found = []
    for picture in load_sample_images().images:
        grey = np.round(picture @ np.array([0.299, 0.587, 0.114]))
        height, width = grey.shape
        rows = rng.integers(0, height - SIDE + 1, count // 2)
        columns = rng.integers(math.ceil(left * width), math.floor(right * width) - SIDE + 1, count // 2)
        places = zip(rows.tolist(), columns.tolist(), strict=True)
        found += [grey[y : y + SIDE, x : x + SIDE].ravel() for y, x in places]
    levels = rng.permutation(np.stack(found))
    return torch.from_numpy((levels + rng.random(levels.shape)) / 256)


class Whitening:
    """The affine map of a full-covariance Gaussian fitted to rows (N, d)."""

    def __init__(self, data: Tensor) -> None:
        self.mean = data.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(data.T))
        self.matrix = vectors / values.sqrt()
        self.logdet = -values.log().sum().item() / 2

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.matrix

    def log_prob(self, x: Tensor) -> Tensor:
        return self.logdet - self(x).square().sum(1) / 2 - DIM / 2 * math.log(2 * math.pi)


def bits(nats: float) -> float:
    """Bits a dimension of a log-density of values that 256 grey levels were scaled to."""
    return 8 - nats / DIM / math.log(2)


def new_flow(method: str, options: Any) -> cl.ConvexPotentialFlow:
    nets = [
        cl.ICNN(DIM, hidden=options.hidden, init="identity", strong_convexity=1.0, seed=options.seed + k)
        for k in range(options.blocks)
    ]
    return cl.ConvexPotentialFlow([cl.Squared(net) for net in nets], logdet=method)


def step_ms(method: str, x: Tensor, options: Any, steps: int) -> float:
    """Median milliseconds of the forward and backward pass of a training step."""
    flow = new_flow(method, options)
    flow.initialise(x)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        flow.loss(x[: options.batch]).backward()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_mib() -> float:
    """The most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scores(flow: cl.ConvexPotentialFlow, x: Tensor, offset: float, exact_rows: int) -> dict[str, Any]:
    """The mean log-density of the rows by estimates with several seeds, and what is exact on some of them."""
    started = time.perf_counter()
    estimates = [flow.log_prob_estimate(x, seed=seed) for seed in range(SEEDS)]
    seconds = (time.perf_counter() - started) / SEEDS
    means = torch.stack([estimate.value.double().mean() for estimate in estimates]) + offset
    flow.logdet_method = "exact"
    started = time.perf_counter()
    exact = flow.log_prob(x[:exact_rows])
    exact_seconds = time.perf_counter() - started
    first = estimates[0]
    errors = (first.value[:exact_rows] - exact) / first.standard_error[:exact_rows]
    return {
        "nats": means.mean().item(),
        "bits": bits(means.mean().item()),
        "error_of_mean_over_seeds": (means.std() / SEEDS**0.5).item(),
        "standard_error_a_row": first.standard_error.mean().item(),
        "seconds_estimated": seconds,
        "exact_rows": exact_rows,
        "exact_nats": exact.double().mean().item() + offset,
        "estimated_nats_same_rows": first.value[:exact_rows].double().mean().item() + offset,
        "within_two_standard_errors": (errors.abs() <= 2).double().mean().item(),
        "worst_in_standard_errors": errors.abs().max().item(),
        "seconds_a_row_exact": exact_seconds / exact_rows,
        "seconds_a_row_estimated": seconds / len(x),
    }


def table_high_dimension(result: timing.Result) -> str:
    """The flow and the full-covariance Gaussian."""
    flow, gaussian, step = result["rows"]["flow"], result["rows"]["gaussian"], result["step_ms"]
    within = f"{100 * flow['within_two_standard_errors']:.0f} % within two standard errors"
    error, exact_rows = flow["error_of_mean_over_seeds"], flow["exact_rows"]
    nats = f"{flow['nats']:.1f} ± {error:.1f}"
    rows = [
        ("Gaussian, full covariance", f"{gaussian['nats']:.1f}", f"{gaussian['bits']:.3f}", ""),
        ("flow, estimated", nats, f"{flow['bits']:.3f}", f"{step['estimated']:.0f}"),
        (f"the same flow, exact, {exact_rows} rows", f"{flow['exact_nats']:.1f}", "", f"{step['exact']:.0f}"),
        (f"estimated on those rows ({within})", f"{flow['estimated_nats_same_rows']:.1f}", "", ""),
    ]
    head = ("density", "test log-likelihood (nats)", "bits a dimension", "ms a training step")
    return timing.markdown(head, rows)


def main() -> None:
    sizes: dict[str, Any] = {"steps": 800, "batch": 128, "blocks": 2, "lr": 0.01, "exact_rows": 100}
    parser = timing.arguments(__file__, __doc__, threads=1, seed=0, **sizes)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="default: %(default)s")
    options = timing.parsed(parser)
    train, valid = patches(20_000, 0, 0.66, options.seed), patches(500, 0.66, 0.75, options.seed + 1)
    test = patches(1_000, 0.75, 1, options.seed + 2)
    gaussian = Whitening(train)
    white = [gaussian(rows).float() for rows in (train, valid, test)]

    before = peak_mib()
    flow = new_flow("estimated", options)
    started = time.perf_counter()
    how = {"steps": options.steps, "batch_size": options.batch, "lr": options.lr, "seed": options.seed}
    how |= {"evaluate_every": max(1, options.steps // 8), "patience": None, "clip": 100.0}
    cl.fit(flow, white[0], validation=white[1], progress=False, **how)
    seconds, grown = time.perf_counter() - started, peak_mib() - before
    found = scores(flow.freeze(), white[2], gaussian.logdet, options.exact_rows)
    ms = {how: step_ms(how, white[0], options, steps) for how, steps in (("estimated", 10), ("exact", 3))}
    nats = gaussian.log_prob(test).mean().item()
    rows = {"gaussian": {"nats": nats, "bits": bits(nats)}, "flow": {**found, "seconds": seconds}}
    names = ("steps", "batch", "blocks", "hidden", "lr", "threads", "seed")
    shape = {"dim": DIM, **timing.given(options, *names)}
    print(f"{seconds:.0f} s of training, peak memory grew by {grown:.0f} MiB")
    result = {"shape": shape, "rows": rows, "step_ms": ms, "peak_growth_mib": grown}
    timing.write(options, result, table_high_dimension)


if __name__ == "__main__":
    main()
