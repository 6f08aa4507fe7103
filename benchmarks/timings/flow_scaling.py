"""Milliseconds of a training step against dimension, width, depth and batch, with the floor of its products.

    python benchmarks/timings/flow_scaling.py --methods exact estimated --out results/flow_scaling.json \\
        --figure docs/images/flow-scaling.png

One size is varied at a time, the others stay at d = 21, width 64, depth 5, batch 512. The floor is the time
that the matrix products of the exact step would take at the measured rate. A side that takes more than
`--limit` seconds, or has to hold Hessians of more than `--memory` bytes, is not asked for the larger sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from flow_step import SIZES as USUAL
from flow_step import matrix_flops

from convexlift import ICNN

SWEEPS = {
    "dim": (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "width": (16, 32, 64, 128, 256, 512),
    "depth": (1, 2, 3, 5, 10, 20),
    "batch": (64, 128, 256, 512, 1024, 2048, 4096),
}


def step(net: ICNN, x: torch.Tensor, method: str) -> Callable[[], None]:
    """One forward and backward of the flow's loss; an estimate with one probe a row, as training uses it."""

    def run() -> None:
        net.zero_grad(set_to_none=True)
        gradient, logdet = net.emit().gradient_and_logdet(x, method=method, seed=None)  # type: ignore[arg-type]
        (gradient.square().sum(1) / 2 - logdet).mean().backward()

    return run


def sweep(options: Any, name: str, rate: float) -> list[dict[str, Any]]:
    """One row a value of the size that is varied."""
    rows = []
    methods = list(options.methods)
    for size in SWEEPS[name]:
        shape = {**USUAL, name: size}
        if 4 * shape["batch"] * shape["dim"] ** 2 > options.memory:
            methods = [method for method in methods if method != "exact"]
        if not methods:
            break
        net = ICNN(shape["dim"], hidden=(shape["width"],) * shape["depth"], seed=options.seed)
        net, x = net.to(options.device), torch.randn(shape["batch"], shape["dim"], device=options.device)
        times = timing.interleaved({m: step(net, x, m) for m in methods}, options.repeats, warmup=1)
        ms = {method: statistics.median(values) for method, values in times.items()}
        rows.append({**shape, "ms": ms, "floor_ms": matrix_flops(**shape) / rate / 1e6})
        print(f"{name} {size:5}: ", ", ".join(f"{m} {t:.1f} ms" for m, t in ms.items()), end=", ")
        print(f"floor {rows[-1]['floor_ms']:.2f} ms", flush=True)
        methods = [method for method in methods if ms[method] < 1e3 * options.limit]
    return rows


def draw(sweeps: dict[str, list[dict[str, Any]]], methods: list[str], path: Path) -> None:
    """One panel for each size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (3.1 * len(sweeps), 3.1)
    figure, (axes,) = plt.subplots(1, len(sweeps), figsize=size, sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes, sweeps.items(), strict=True):
        for method, colour in zip(methods, ("tab:blue", "tab:orange"), strict=False):
            seen = [(row[name], row["ms"][method]) for row in rows if method in row["ms"]]
            axis.plot(*zip(*seen, strict=True), "o-", markersize=3.5, color=colour, label=method)
        floor = [(row[name], row["floor_ms"]) for row in rows]
        axis.plot(*zip(*floor, strict=True), "--", color="0.4", label="floor of the exact step")
        axis.set(xscale="log", yscale="log", xlabel=name.replace("dim", "dimension"))
        sizes = [row[name] for row in rows][:: 1 if len(rows) < 7 else 3]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a training step")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"drawn to {path}")


def main() -> None:
    parser = timing.arguments(__file__, __doc__, repeats=7, threads=2, device="cpu", seed=0)
    parser.add_argument("--methods", nargs="+", choices=("exact", "estimated"), default=["exact"])
    parser.add_argument("--sizes", nargs="+", choices=tuple(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--limit", type=float, default=5.0, help="seconds a step may take")
    parser.add_argument("--memory", type=float, default=6e8, help="bytes that the Hessians may take")
    parser.add_argument("--figure", type=Path, default=None, help="PNG file to draw")
    options = timing.parsed(parser)
    torch.manual_seed(options.seed)
    rate = timing.matrix_rate(options.device)
    print(f"float32, {options.threads} threads on {options.device}, products at {rate:.0f} GFLOP/s")
    sweeps = {name: sweep(options, name, rate) for name in options.sizes}
    setting = {"usual": USUAL, **timing.given(options, "threads", "device", "seed")}
    timing.write(options, {**setting, "matrix_rate_gflops": rate, "sweeps": sweeps})
    if options.figure is not None:
        draw(sweeps, options.methods, options.figure)


if __name__ == "__main__":
    main()
