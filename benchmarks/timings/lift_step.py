"""What emitting the weights costs: one value-only training step of a lift against one of softplus.

    python benchmarks/timings/lift_step.py --out results/lift_step.json

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


def table_lift_step(result: timing.Result) -> str:
    """Every network and source."""
    rows = [
        [side, f"{row['ms']:.2f}", f"{row['ratio_to_softplus']:.2f}", f"{row['parameters_over_network']:.2f}"]
        for side, row in result["rows"].items()
    ]
    head = ("network, trained by", "ms a step", "times softplus", "parameters / network")
    return timing.markdown(head, rows)


def main() -> None:
    parser = timing.arguments(__file__, __doc__, repeats=15, threads=2, device="cpu", seed=0)
    options = timing.parsed(parser)
    torch.manual_seed(options.seed)
    x = torch.randn(BATCH, DIM, device=options.device)
    rows: dict[str, Any] = {}
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
            rows[f"{network} {name}"] = {
                "ms": statistics.median(times[name]),
                "ratio_to_softplus": timing.ratio(times, name, "softplus"),
                "parameters_over_network": sizes[name],
            }
    shape = {"dim": DIM, "batch": BATCH, **timing.given(options, "threads", "device", "seed")}
    timing.write(options, {"shape": shape, "rows": rows}, table_lift_step)


def step(source: WeightSource, x: torch.Tensor) -> Callable[[], None]:
    optimizer = make_optimizer("adam", parameter_groups(source), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        source(x, x).mean().backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
