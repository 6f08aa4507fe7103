"""One training step of a convex-potential flow with an exact log-determinant, against three baselines.

    python benchmarks/flow_step.py [--dim 21 --width 64 --depth 5 --batch 512] --out results/flow_step.json

All sides compute the same loss, the mean of |grad f|^2 / 2 - log det Hess f, with its gradient in the
network's tensors (checked here in float64); they differ in how the Hessian and its derivative are had.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import baselines
import timing
import torch
from torch import Tensor

from convexlift import ICNN, Potential

Logdet = Callable[[Potential, Tensor], Tensor]

BASELINES: dict[str, Logdet] = {
    "vmap(hessian)": baselines.vmap_hessian,
    "vmap(jacfwd(grad))": baselines.vmap_jacfwd_grad,
    "row-by-row autograd": baselines.rowwise_autograd,
}
OURS = "closed form"


def loss(potential: Potential, x: Tensor, logdet: Logdet | None) -> Tensor:
    if logdet is None:
        gradient, logdets = potential.gradient_and_logdet(x)
    else:
        gradient, logdets = potential.gradient(x), logdet(potential, x)
    return (gradient.square().sum(1) / 2 - logdets).mean()


def disagreement(net: ICNN, x: Tensor) -> float:
    """Largest relative difference of any parameter's gradient between the closed form and the baselines, in
    float64."""
    net, x = net.double(), x.double()
    worst = 0.0
    exact = torch.autograd.grad(loss(net.emit(), x, None), list(net.parameters()))
    for baseline in BASELINES.values():
        for a, b in zip(
            exact, torch.autograd.grad(loss(net.emit(), x, baseline), list(net.parameters())), strict=True
        ):
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    net.float()
    return worst


def matrix_flops(dim: int, width: int, depth: int, batch: int) -> float:
    """Operations of the matrix products of one step: sweeps of values and of Jacobians, Gram matrices, and
    the backward.

    A layer's sweep is one product forward and two backward; a Gram matrix one product forward and one (H^{-1}
    T) backward. Value, reverse sweep and gradient count as three sweeps of one vector.
    """
    sweep = 2 * batch * width * width * (depth - 1)
    skips = 2 * batch * dim * width * depth
    jacobians = 3 * dim * sweep
    grams = 2 * 2 * batch * dim * dim * width * depth
    return jacobians + grams + 3 * 2 * (sweep + skips)


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    for name, default in (("dim", 21), ("width", 64), ("depth", 5), ("batch", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = ICNN(options.dim, hidden=(options.width,) * options.depth, seed=options.seed)
    x = torch.randn(options.batch, options.dim)
    apart = disagreement(net, x[:32])
    net, x = net.to(options.device), x.to(options.device)

    def step(logdet: Logdet | None) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad(set_to_none=True)
            loss(net.emit(), x, logdet).backward()

        return run

    times = timing.interleaved(
        {OURS: step(None)} | {n: step(f) for n, f in BASELINES.items()}, options.repeats
    )
    rate = timing.matrix_rate(options.device)
    flops = matrix_flops(options.dim, options.width, options.depth, options.batch)
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = flops / rate / 1e6
    shape = f"d = {options.dim}, width {options.width}, depth {options.depth}, batch {options.batch}"
    print(f"one training step, {shape}, float32, {options.threads} threads on {options.device}\n")
    print(f"{'':22}{'ms':>8}{'ratio to closed form':>24}")
    ratios = {}
    for name, median in medians.items():
        ratios[name] = timing.ratio(times, name, OURS)
        print(f"{name:22}{median:8.1f}{ratios[name]:24.2f}")
    fastest = min(BASELINES, key=medians.__getitem__)
    share = floor / medians[OURS]
    print(f"\nfaster than the fastest baseline ({fastest}) by {ratios[fastest]:.2f} times")
    work = f"{flops / 1e9:.2f} GFLOP at {rate:.0f} GFLOP/s measured"
    print(f"floor {floor:.1f} ms ({work}): {share:.0%} of it reached")
    print(f"gradients agree to {apart:.1e} (float64, relative)")
    timing.write(
        options.out,
        "python benchmarks/flow_step.py",
        {
            "shape": {
                k: getattr(options, k)
                for k in ("dim", "width", "depth", "batch", "threads", "device", "seed")
            },
            "ms": medians,
            "ratio": ratios,
            "fastest_baseline": fastest,
            "matrix_rate_gflops": rate,
            "matrix_gflop": flops / 1e9,
            "floor_ms": floor,
            "share_of_floor": share,
            "gradient_disagreement": apart,
        },
    )


if __name__ == "__main__":
    main()
