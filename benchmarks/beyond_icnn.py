"""The same lift on two modules that are no ICNNs: a monotone network and a non-negative matrix factorisation.

    python benchmarks/beyond_icnn.py [--steps 500 --seeds 5] --out results/beyond_icnn.json

`Lift(module, names=[...])` against Softplus, Squared and Projected under the library's protocol: one start,
one factor-2 grid that grows for all arms, rates chosen on validation with two other seeds, paired
t-intervals. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import timing
import torch
from torch import Tensor, nn

from convexlift import Lift, Projected, Softplus, Squared
from convexlift.problems import Problem
from convexlift.study import Budget, compare
from convexlift.study.arms import Arm

GRID = (0.008, 0.016, 0.032, 0.064, 0.128)
EXTENSIONS = 6
RANK = 10
INPUTS, NOISE = 5, 0.1

Subject = tuple[Problem, dict[str, Arm]]


class MonotoneNetwork(nn.Module):
    """A network that increases in every input: non-negative weights, free biases, hyperbolic tangents.

    Shapes: x (N, d) to (N,).
    """

    names = ("weights.0", "weights.1", "weights.2")

    def __init__(self, dim: int, width: int, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        sizes = (dim, width, width, 1)
        self.weights = nn.ParameterList(
            [
                nn.Parameter(4 / n * torch.rand(m, n, generator=draws))
                for n, m in zip(sizes, sizes[1:], strict=False)
            ]
        )
        self.biases = nn.ParameterList(
            [nn.Parameter(2 * torch.rand(m, generator=draws) - 1) for m in sizes[1:]]
        )

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.tanh(x @ weight.T + bias)
        return (x @ self.weights[-1].T + self.biases[-1])[:, 0]


class Factorisation(nn.Module):
    """X ~ C D with non-negative codes C (rows, rank) and dictionary D (rank, columns).

    Shapes: row numbers (N, 1), as floats, to the factorised rows (N, columns).
    """

    names = ("codes", "dictionary")

    def __init__(self, rows: int, columns: int, rank: int, size: float, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        scale = 2 * math.sqrt(
            size / rank
        )  # uniform entries of mean sqrt(size / rank), so that X starts at its mean
        self.codes = nn.Parameter(scale * torch.rand(rows, rank, generator=draws))
        self.dictionary = nn.Parameter(scale * torch.rand(rank, columns, generator=draws))

    def forward(self, number: Tensor) -> Tensor:
        return cast(Tensor, self.codes[number[:, 0].long()] @ self.dictionary)


class LeastSquares(nn.Module):
    """The mean of ``errors`` over the rows of a batch, whose first part is what a lift emits from."""

    def __init__(self, block: nn.Module, errors: Callable[[Callable[..., Tensor], Any], Tensor]) -> None:
        super().__init__()
        self.block: Any = block
        self.errors = errors

    def loss(self, batch: Any) -> Tensor:
        function = self.block.emit(batch[0].detach()) if hasattr(self.block, "emit") else self.block
        return self.errors(function, batch).mean()

    def initialise(self, rows: Any) -> None:
        self.block.initialise(rows[0])

    def settle(self, rows: Any) -> None:
        self.block.settle(rows[0])

    def set_progress(self, t: float) -> None:
        self.block.set_progress(t)

    @property
    def settle_at(self) -> float | None:
        return getattr(self.block, "settle_at", None)

    def freeze(self, rows: Any) -> LeastSquares:
        return LeastSquares(self.block.freeze(rows[0]), self.errors).eval()


def monotone_truth(x: Tensor) -> Tensor:
    """A function of five inputs that increases in each: smooth, kinked, stepped, and with an interaction."""
    a, b, c, d, e = x.unbind(1)
    return (
        nn.functional.softplus(4 * a) / 4 + torch.maximum(b, c) + torch.sigmoid(8 * d) + (1 + d) * (1 + e) / 4
    )


def monotone() -> Subject:
    """Regression of ``monotone_truth`` on [-1, 1]^5, 1,000 rows, noise 0.1; the test rows are noiseless."""

    def split(rows: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        x = 2 * torch.rand(rows, INPUTS, generator=draws) - 1
        return x, monotone_truth(x) + noise * torch.randn(rows, generator=draws)

    return _subject(
        "monotone",
        (split(1_000, 401, NOISE), split(1_000, 402, NOISE), split(4_000, 403, 0.0)),
        "regression of a monotone function of five inputs by a monotone network, 1,000 rows, noise 0.1",
        lambda seed: MonotoneNetwork(INPUTS, 32, seed),
        _distance,
        MonotoneNetwork.names,
        INPUTS,
    )


def factorisation() -> Subject:
    """Held-out pixels of scikit-learn's digits by a rank-10 factorisation.

    80 % of the pixels train, 10 % validate, 10 % test.
    """
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data).float() / 16
    rows, columns = pixels.shape
    lot = torch.rand(rows, columns, generator=torch.Generator().manual_seed(411))
    masks = [(lot < 0.8), (lot >= 0.8) & (lot < 0.9), (lot >= 0.9)]
    seen, number = pixels * masks[0], torch.arange(rows, dtype=torch.float32)[:, None]
    splits = tuple(
        (seen, number, pixels, mask * columns / mask.sum(1, keepdim=True).clamp_min(1)) for mask in masks
    )
    return _subject(
        "factorisation",
        splits,
        "held-out pixels of 1,797 digits of 8 x 8 pixels by a rank-10 non-negative factorisation",
        lambda seed: Factorisation(rows, columns, RANK, float(seen.sum() / masks[0].sum()), seed),
        _masked_distance,
        Factorisation.names,
        columns,
    )


def _distance(function: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (function(x) - y).square()


def _masked_distance(function: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> Tensor:
    _, number, pixels, weight = batch
    return ((function(number) - pixels).square() * weight).mean(1)


def _subject(
    name: str,
    splits: Any,
    description: str,
    network: Callable[[int], nn.Module],
    errors: Callable[[Callable[..., Tensor], Any], Tensor],
    names: Sequence[str],
    columns: int,
) -> Subject:
    problem = Problem(
        name=name,
        task="own",
        dim=columns,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        description=description,
        source="scikit-learn's bundled digits" if name == "factorisation" else "simulated",
        licence="CC BY 4.0 (UCI)" if name == "factorisation" else "none needed (simulated)",
        network=network,
        build=lambda blocks: LeastSquares(blocks[0], errors),
        losses=lambda model, rows: errors(cast(Any, model).block, rows),
    )
    sources = {"projected": Projected, "softplus": Softplus, "squared": Squared}
    arms: dict[str, Arm] = {arm: partial(source, names=names) for arm, source in sources.items()}
    return problem, {**arms, "lift": partial(Lift, names=names, dim=columns)}


SUBJECTS = {"monotone": monotone, "factorisation": factorisation}


def study(
    name: str, steps: int, seeds: int, folder: Path, rates: Sequence[float], extensions: int
) -> dict[str, Any]:
    """Compare the arms on one subject; the figures of every arm, and lift minus each."""
    budget = Budget("study", steps, 128, tuple(rates), min(2, seeds), seeds, extensions=extensions)
    result = compare(own=SUBJECTS[name], budget=budget, out=folder, jobs=1).result
    keys = ("lr", "test", "half_budget", "ms_per_step", "parameters", "rates")
    return {
        "description": result["description"],
        "protocol": {
            k: result["protocol"][k] for k in ("steps", "batch_size", "rates", "on_edge", "intervals")
        },
        "arms": {arm: {key: row[key] for key in keys} for arm, row in result["arms"].items()},
        "pairs": result["pairs"],
    }


def table(name: str, result: dict[str, Any]) -> str:
    """The figures of one subject as text."""
    lines = [f"\n{name}: {result['description']}", f"{'':12}{'test loss':>22}{'rate':>9}{'ms a step':>11}"]
    for arm, row in sorted(result["arms"].items(), key=lambda item: item[1]["test"]["mean"] or math.inf):
        test = row["test"]
        loss = f"{test['mean']:.5f} ± {test['sem'] or 0:.5f}" if test["mean"] is not None else "diverged"
        lines.append(f"{arm:12}{loss:>22}{row['lr']:9.3g}{row['ms_per_step']:11.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--rates", nargs="+", type=float, default=GRID)
    parser.add_argument("--extensions", type=int, default=EXTENSIONS, help="times the grid may grow")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.out is None else options.out.with_suffix(".cells")
        for name in options.subjects:
            found[name] = study(
                name, options.steps, options.seeds, folder / name, options.rates, options.extensions
            )
            print(table(name, found[name]), flush=True)
    setting = {"steps": options.steps, "seeds": list(range(options.seeds))}
    timing.write(options.out, "python benchmarks/beyond_icnn.py", {"setting": setting, "subjects": found})
    return found


if __name__ == "__main__":
    main()
