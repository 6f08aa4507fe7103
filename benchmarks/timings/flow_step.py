"""One training step of a convex-potential flow with an exact log-determinant, against what people write.

    python benchmarks/timings/flow_step.py --depth 5 10 --batch 512 1024 --out results/flow_step.json

All exact sides compute the same loss, the mean of |grad f|^2 / 2 - log det Hess f, with its gradient in the
network's tensors (checked here in float64); they differ in how the Hessian and its derivative are had. The
stochastic side has that gradient on average only, and no value.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import baselines
import timing
import torch
from torch import Tensor

from convexlift import ICNN, Potential

Logdet = Callable[[Potential, Tensor], Tensor]

EXACT: dict[str, Logdet] = {
    "vmap(hessian)": baselines.vmap_hessian,
    "vmap(jacfwd(grad))": baselines.vmap_jacfwd_grad,
    "row-by-row autograd": baselines.rowwise_autograd,
}
STOCHASTIC = "stochastic, 21 products"
OURS = "closed form"
COMPILED = "closed form, compiled"
SIZES = {"dim": 21, "width": 64, "depth": 5, "batch": 512}


def loss(potential: Potential, x: Tensor, logdet: Logdet | None) -> Tensor:
    if logdet is None:
        gradient, logdets = potential.gradient_and_logdet(x)
    else:
        gradient, logdets = potential.gradient(x), logdet(potential, x)
    return (gradient.square().sum(1) / 2 - logdets).mean()


def disagreement(net: ICNN, x: Tensor) -> float:
    """Largest relative difference of any parameter's gradient between the closed form and the exact
    baselines, in float64."""
    net, x = net.double(), x.double()
    worst = 0.0
    ours = torch.autograd.grad(loss(net.emit(), x, None), list(net.parameters()))
    for baseline in EXACT.values():
        theirs = torch.autograd.grad(loss(net.emit(), x, baseline), list(net.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    net.float()
    return worst


def matrix_flops(dim: int, width: int, depth: int, batch: int) -> float:
    """Operations of the matrix products that one step needs: sweeps of values and of Jacobians, Gram
    matrices, and the backward.

    A layer's sweep is one product forward and two backward; a Gram matrix one product forward and one (H^{-1}
    T) backward. Value, reverse sweep and gradient count as three sweeps of one vector.
    """
    sweep = 2 * batch * width * width * (depth - 1)
    skips = 2 * batch * dim * width * depth
    grams = 2 * 2 * batch * dim * dim * width * depth
    return 3 * dim * sweep + grams + 3 * 2 * (sweep + skips)


def repeated_flops(dim: int, width: int, depth: int, batch: int) -> float:
    """Operations of the Jacobians' sweep that the backward makes again rather than keep its results."""
    return dim * 2 * batch * width * width * (depth - 1)


def measure(options: Any, dim: int, width: int, depth: int, batch: int, rate: float) -> dict[str, Any]:
    """All sides at one shape."""
    net = ICNN(dim, hidden=(width,) * depth, seed=options.seed)
    x = torch.randn(batch, dim)
    apart = disagreement(net, x[:32])
    net, x = net.to(options.device), x.to(options.device)
    whole = torch.compile(lambda: loss(net.emit(), x, None), dynamic=False)

    def step(evaluate: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad(set_to_none=True)
            evaluate().backward()

        return run

    sides = {OURS: step(lambda: loss(net.emit(), x, None))}
    if options.compile:
        sides[COMPILED] = step(whole)
    for name, logdet in (EXACT | {STOCHASTIC: baselines.stochastic}).items():
        sides[name] = step(lambda logdet=logdet: loss(net.emit(), x, logdet))  # type: ignore[misc]
    times = timing.interleaved(sides, options.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: timing.ratio(times, name, OURS) for name in sides}
    memory = {name: timing.peak_bytes(side) / batch for name, side in sides.items()}
    products, total = timing.matrix_seconds(sides[OURS])
    flops = matrix_flops(dim, width, depth, batch)
    done = flops + repeated_flops(dim, width, depth, batch)
    floor = flops / rate / 1e6
    sizes = dict(zip(SIZES, (dim, width, depth, batch), strict=True))
    return {
        "shape": {**sizes, **timing.given(options, "threads", "device", "seed")},
        "ms": medians,
        "ratio": ratios,
        "peak_bytes_per_sample": memory,
        "fastest_baseline": min(EXACT, key=medians.__getitem__),
        "matrix_gflop": flops / 1e9,
        "floor_ms": floor,
        "share_of_floor": floor / medians[OURS],
        "time_in_products": products / total,
        "rate_in_products": done / products / 1e9 / rate,
        "gradient_disagreement": apart,
    }


def table_flow_step(result: timing.Result) -> str:
    """The first shape: every side's time."""
    first = result["shapes"][0]
    rows = [[side, f"{ms:.1f}", f"{first['ratio'][side]:.2f}"] for side, ms in first["ms"].items()]
    return timing.markdown(("one exact training step", "ms", "times ours"), rows)


def table_flow_steps(result: timing.Result) -> str:
    """Every shape: our time, each baseline as a ratio, how far from the floor."""
    others = [side for side in result["shapes"][0]["ms"] if side != OURS]
    rows = [
        [
            f"{shape['depth']}, {shape['batch']}",
            f"{found['ms'][OURS]:.1f}",
            *(f"{found['ratio'][side]:.2f}" if side in found["ratio"] else "" for side in others),
            f"{found['floor_ms']:.1f} ({100 * found['share_of_floor']:.0f} %)",
            f"{100 * found['rate_in_products']:.0f} %",
            f"{found['peak_bytes_per_sample'][OURS] / 1e3:.0f}",
        ]
        for found in result["shapes"]
        for shape in [found["shape"]]
    ]
    head = ("depth, batch", f"{OURS} (ms)", *others, "floor, ms (share reached)")
    return timing.markdown((*head, "rate of the products", "peak KB a sample"), rows)


def main() -> None:
    parser = timing.arguments(__file__, __doc__, repeats=15, threads=2, device="cpu", seed=0)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[default], help="default: %(default)s")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="one side fewer")
    options = timing.parsed(parser)
    torch.manual_seed(options.seed)
    sizes = timing.given(options, *SIZES).values()
    rate = timing.matrix_rate(options.device)
    found = [measure(options, *shape, rate) for shape in itertools.product(*sizes)]
    apart = max(each["gradient_disagreement"] for each in found)
    print(f"float32, {options.threads} threads; gradients agree to {apart:.1e} (float64, relative)\n")
    timing.write(options, {"matrix_rate_gflops": rate, "shapes": found}, table_flow_step, table_flow_steps)


if __name__ == "__main__":
    main()
