"""What emitting the weights costs: one value-only training step of a lift against one of softplus.

    python benchmarks/lift_step.py --out results/lift_step.json

The step is forward, backward and an Adam update, at 21 -> 128 x 3 and 21 -> 512 x 5, batch 256.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import timing
import torch

from convexlift import ICNN, Lift, Softplus
from convexlift.sources import WeightSource
from convexlift.training.optimisation import make_optimizer, parameter_groups

NETWORKS = {"128 x 3": (128,) * 3, "512 x 5": (512,) * 5}
SOURCES: dict[str, Callable[[ICNN], WeightSource]] = {
    "softplus": Softplus,
    "lift": Lift,
    "lift-reference": Lift.reference,
}
DIM, BATCH = 21, 256
# The reference emits every weight from a dense readout: 107 million parameters at 512 x 5.
TOO_LARGE = {("512 x 5", "lift-reference")}


def trainable(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def main() -> None:
    options = timing.arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    x = torch.randn(BATCH, DIM, device=options.device)
    rows: dict[str, Any] = {}
    print(f"one value-only training step, batch {BATCH}, {options.threads} threads on {options.device}\n")
    print(f"{'network':10}{'source':16}{'ms':>8}{'ratio':>8}{'parameters / network':>24}")
    for network, hidden in NETWORKS.items():
        net = ICNN(DIM, hidden=hidden, seed=options.seed)
        sides, sizes = {}, {}
        for name, make in SOURCES.items():
            if (network, name) in TOO_LARGE:
                continue
            source = make(net).to(options.device)
            sides[name], sizes[name] = step(source, x), trainable(source) / trainable(net)
        times = timing.interleaved(sides, options.repeats * 4, warmup=10)
        for name in sides:
            ms, share = statistics.median(times[name]), timing.ratio(times, name, "softplus")
            rows[f"{network} {name}"] = {
                "ms": ms,
                "ratio_to_softplus": share,
                "parameters_over_network": sizes[name],
            }
            print(f"{network:10}{name:16}{ms:8.2f}{share:8.2f}{sizes[name]:24.2f}")
    shape = {
        "dim": DIM,
        "batch": BATCH,
        "threads": options.threads,
        "device": options.device,
        "seed": options.seed,
    }
    timing.write(options.out, "python benchmarks/lift_step.py", {"shape": shape, "rows": rows})


def step(source: WeightSource, x: torch.Tensor) -> Callable[[], None]:
    optimizer = make_optimizer("adam", parameter_groups(source), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        source(x, x).mean().backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
