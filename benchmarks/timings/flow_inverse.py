"""Inverting the gradient of one trained potential, against other solvers of the same convex problem.

    python benchmarks/timings/flow_inverse.py [--rows 64 --steps 400] --out results/flow_inverse.json

One block of a flow is trained on simulated collider events (d = 21). Then x with grad f(x) = y is sought for
rows y that real rows map to, in float64: by our batched Newton, and by L-BFGS with a strong Wolfe line search
on sum_n f(x_n) - <x_n, y_n>, all rows in one problem, as published convex-potential flows do it. The same in
256 dimensions, for a block trained on patches of photographs (see high_dimension.py): there our inverse forms
no Hessian, and Newton's method with Hessians is the other solver.

Ours finds its start by itself, which is timed with it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import high_dimension
import timing
import torch
from torch import Tensor

import convexlift as cl
from convexlift import Potential
from convexlift.calculus.newton import Solution, invert_gradient
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


def trained_on_patches(steps: int, seed: int) -> tuple[Potential, Tensor]:
    """The same in 256 dimensions."""
    data = high_dimension.patches(6_000, 0, 0.66, seed)
    whitening = high_dimension.Whitening(data)
    net = cl.ICNN(high_dimension.DIM, hidden=(128, 128), init="identity", strong_convexity=1.0, seed=seed)
    flow = cl.ConvexPotentialFlow([cl.Squared(net)])
    white = whitening(data).float()
    cl.fit(flow, white, steps=steps, batch_size=128, lr=0.01, clip=100.0, seed=seed, progress=False)
    frozen = flow.freeze().double()
    test = whitening(high_dimension.patches(1_000, 0.75, 1, seed + 1))
    return frozen.blocks[0].emit(), frozen.block_inputs(test)[0]


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


def compare(f: Potential, x: Tensor, sides: Mapping[str, Callable[[Tensor], Solution]], repeats: int) -> Any:
    """Time, convergence and error of each solver; the first one is ours."""
    y = f.gradient(x)
    ours = next(iter(sides))
    times = timing.interleaved({name: partial(solve, y) for name, solve in sides.items()}, repeats, warmup=1)
    rows = {}
    for name, solve in sides.items():
        found = solve(y)
        rows[name] = {
            "ms": statistics.median(times[name]),
            "ratio": timing.ratio(times, name, ours),
            "iterations": found.iterations,
            "converged": int(found.converged.sum()),
            "residual": float(found.residual.max()),
            "error": float((found.x - x).abs().max()),
        }
    return rows


def table_flow_inverse(result: timing.Result) -> str:
    """Both dimensions, solver by solver."""
    rows = [
        [
            *(str(dim), side, f"{row['ms']:.0f}", f"{row['ratio']:.1f}"),
            f"{row['converged']} of {result['shape']['rows']}",
        ]
        for dim, part in ((21, "rows"), (256, "rows_256"))
        for side, row in result[part].items()
    ]
    return timing.markdown(("d", "inverse of a trained block", "ms", "times ours", "rows within 1e-8"), rows)


def main() -> None:
    parser = timing.arguments(__file__, __doc__, repeats=15, threads=2, seed=0, rows=64)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the block in 21 dimensions")
    parser.add_argument("--steps-256", type=int, default=100, help="and in 256")
    options = timing.parsed(parser)
    repeats = max(3, options.repeats // 3)

    f, x = trained(options.steps, options.seed)
    sides: dict[str, Callable[[Tensor], Solution]] = {
        "newton (ours)": lambda y: f.inverse(y, tolerance=TOLERANCE),
        "newton from zero": lambda y: f.inverse(y, start=torch.zeros_like(y), tolerance=TOLERANCE),
        "l-bfgs": lambda y: lbfgs(f, y, TOLERANCE),
    }
    rows = compare(f, x[: options.rows], sides, repeats)

    g, x = trained_on_patches(options.steps_256, options.seed)
    sides = {
        "newton-cg (ours)": lambda y: g.inverse(y, tolerance=TOLERANCE),
        "newton with hessians": lambda y: invert_gradient(g.gradient, g.hessian, y, tolerance=TOLERANCE),
        "l-bfgs": lambda y: lbfgs(g, y, TOLERANCE),
    }
    high = compare(g, x[: options.rows], sides, 3)
    shape = timing.given(options, "rows", "steps", "steps_256", "threads", "seed")
    timing.write(options, {"shape": shape, "rows": rows, "rows_256": high}, table_flow_inverse)


if __name__ == "__main__":
    main()
