"""Inverting the gradient of one trained potential, against L-BFGS on the same convex problem.

    python benchmarks/flow_inverse.py [--rows 64 --steps 400] --out results/flow_inverse.json

One block of a flow is trained on simulated collider events (d = 21). Then x with grad f(x) = y is sought for
rows y that real rows map to, in float64: by our batched Newton, and by L-BFGS with a strong Wolfe line search
on sum_n f(x_n) - <x_n, y_n>, all rows in one problem, as published convex-potential flows do it.
"""

from __future__ import annotations

import statistics

import timing
import torch
from torch import Tensor

import convexlift as cl
from convexlift import Potential
from convexlift.calculus.solve import Solution
from convexlift.problems import problem

TOLERANCE = 1e-8


def trained(steps: int, seed: int) -> tuple[Potential, Tensor]:
    """The potential of a trained block in float64, and test rows as it sees them."""
    collider = problem("collider")
    net = cl.ICNN(collider.dim, **collider.architecture, seed=seed)
    flow = cl.ConvexPotentialFlow([cl.Squared(net)])
    cl.fit(flow, collider.train, steps=steps, batch_size=128, lr=0.032, seed=seed, progress=False)
    frozen = flow.freeze().double()
    return frozen.blocks[0].emit(), frozen.block_inputs(collider.test.double())[0]


def lbfgs(f: Potential, y: Tensor, tolerance: float) -> Solution:
    """The same equation by L-BFGS on all rows together, until every row is within the tolerance."""
    x = torch.zeros_like(y, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=50, history_size=50, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = (f.value(x) - (x * y).sum(1)).sum()
        value.backward()
        return value

    def residual() -> Tensor:
        with torch.no_grad():
            return (f.gradient(x) - y).norm(dim=1) / (1 + y.norm(dim=1))

    rounds = 0
    while float(residual().max()) > tolerance and rounds < 40:
        optimizer.step(objective)
        rounds += 1
    found = residual()
    return Solution(x.detach(), found, 50 * rounds, found <= tolerance)


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the block")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    f, x = trained(options.steps, options.seed)
    x = x[: options.rows]
    y = f.gradient(x)
    sides = {
        "newton (ours)": lambda: f.inverse(y, tolerance=TOLERANCE),
        "l-bfgs": lambda: lbfgs(f, y, TOLERANCE),
    }
    times = timing.interleaved(sides, max(3, options.repeats // 3), warmup=1)
    rows = {}
    print(f"x with grad f(x) = y for {options.rows} rows, d = {f.dim}, float64, {options.threads} threads\n")
    print(f"{'':16}{'ms':>10}{'ratio':>8}{'converged':>11}{'residual':>11}{'error in x':>12}")
    for name, solve in sides.items():
        found, ms = solve(), statistics.median(times[name])
        rows[name] = {
            "ms": ms,
            "ratio": timing.ratio(times, name, "newton (ours)"),
            "converged": int(found.converged.sum()),
            "residual": float(found.residual.max()),
            "error": float((found.x - x).abs().max()),
        }
        print(
            f"{name:16}{ms:10.1f}{rows[name]['ratio']:8.1f}{rows[name]['converged']:11d}"
            f"{rows[name]['residual']:11.1e}{rows[name]['error']:12.1e}"
        )
    shape = {k: getattr(options, k) for k in ("rows", "steps", "threads", "seed")}
    timing.write(options.out, "python benchmarks/flow_inverse.py", {"shape": shape, "rows": rows})


if __name__ == "__main__":
    main()
