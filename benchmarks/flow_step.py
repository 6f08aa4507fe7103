"""One training step of a convex-potential flow with an exact log-determinant, against what people write.

    python benchmarks/flow_step.py --depth 5 10 --batch 512 1024 --out results/flow_step.json

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
SIZES = (("dim", 21), ("width", 64), ("depth", 5), ("batch", 512))


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
    result = {
        "shape": {
            **dict(zip(("dim", "width", "depth", "batch"), (dim, width, depth, batch), strict=True)),
            **{k: getattr(options, k) for k in ("threads", "device", "seed")},
        },
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
    show(result)
    return result


def show(result: dict[str, Any]) -> None:
    shape = result["shape"]
    print(
        f"\none training step, d = {shape['dim']}, width {shape['width']}, depth {shape['depth']}, "
        f"batch {shape['batch']}, float32, {shape['threads']} threads on {shape['device']}\n"
    )
    print(f"{'':26}{'ms':>8}{'ratio to closed form':>24}{'peak KB per sample':>22}")
    for name, ms in result["ms"].items():
        peak = result["peak_bytes_per_sample"][name] / 1e3
        print(f"{name:26}{ms:8.1f}{result['ratio'][name]:24.2f}{peak:22.1f}")
    fastest = result["fastest_baseline"]
    print(f"\nfaster than the fastest exact baseline ({fastest}) by {result['ratio'][fastest]:.2f} times")
    print(f"floor {result['floor_ms']:.1f} ms ({result['matrix_gflop']:.2f} GFLOP): ", end="")
    print(f"{result['share_of_floor']:.0%} of it reached")
    print(f"matrix products take {result['time_in_products']:.0%} of the time, ", end="")
    print(f"at {result['rate_in_products']:.0%} of the measured rate")
    print(f"gradients agree to {result['gradient_disagreement']:.1e} (float64, relative)")


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    for name, default in SIZES:
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[default])
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shapes = list(itertools.product(*(getattr(options, name) for name, _ in SIZES)))
    rate = timing.matrix_rate(options.device)
    results = [measure(options, *shape, rate) for shape in shapes]
    timing.write(
        options.out,
        "python benchmarks/flow_step.py --"
        + " --".join(f"{name} {' '.join(map(str, getattr(options, name)))}" for name, _ in SIZES),
        {"matrix_rate_gflops": rate, "shapes": results},
    )


if __name__ == "__main__":
    main()
