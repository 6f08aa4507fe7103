"""The equal-tuning protocol: budgets, the shared grid of rates, and the selection on validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from convexlift.names import OPTIMIZERS, check_name

LEAST_RATE, LARGEST_RATE = 1e-4, 1.0
FACTOR = 2.0
FIXED_RATE = 1e-3
SELECTION_SEED = 1_000  # selection seeds are 1000, 1001, ...; evaluation seeds begin below


@final
@dataclass(frozen=True)
class Budget:
    """What a comparison may spend.

    Every arm trains at every rate of `rates` with each of the selection seeds; the grid grows by a factor of
    2 at a time for all arms together while any arm's best sits on its edge, at most `extensions` times and
    between 1e-4 and 1. The chosen rate is run with each of the evaluation seeds, for `steps` steps and anew
    for half of them. `fixed_rate` adds the table at the one common rate 0.001. `architecture` overrides the
    problem's. `optimizer` is one that `fit` knows by name; `traced` runs also follow the coupling and the
    stays on the shoulder, where they are scored. Evaluation seeds begin with `first_seed`, whose models are
    drawn.
    """

    name: str
    steps: int
    batch_size: int
    rates: tuple[float, ...]
    selection_seeds: int
    evaluation_seeds: int
    extensions: int
    fixed_rate: bool = False
    clip: float | None = None
    architecture: tuple[tuple[str, Any], ...] = ()
    optimizer: str = "adam"
    traced: bool = False
    first_seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate <= LARGEST_RATE for rate in self.rates):
            raise ValueError(
                f"learning rates must lie in (0, 1]; got {', '.join(f'{r:g}' for r in self.rates)}"
            )
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        for field in ("steps", "batch_size", "selection_seeds", "evaluation_seeds"):
            least, given = 2 if field == "steps" else 1, getattr(self, field)
            if given < least:
                raise ValueError(f"{field.replace('_', ' ')} must be at least {least}; got {given}")
        if not 0 <= self.first_seed <= SELECTION_SEED - self.evaluation_seeds:
            last = SELECTION_SEED - 1
            raise ValueError(
                f"evaluation seeds must lie between 0 and {last}; "
                f"got {self.evaluation_seeds} from {self.first_seed}"
            )

    @property
    def selection(self) -> range:
        """The seeds by which rates are chosen."""
        return range(SELECTION_SEED, SELECTION_SEED + self.selection_seeds)

    @property
    def evaluation(self) -> range:
        """The seeds that are scored."""
        return range(self.first_seed, self.first_seed + self.evaluation_seeds)


GRID = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)

# "paper" is the protocol of the method's paper on the one-dimensional gallery: one common rate, no selection.
PAPER_ARCHITECTURE = (
    ("hidden", (128, 128, 128)),
    ("strong_convexity", 0.02),
    ("learn_strong_convexity", False),
    ("init", "folded_normal"),
)
BUDGETS: Mapping[str, Mapping[str, Budget]] = {
    "flow": {
        "quick": Budget("quick", 300, 128, (0.016, 0.032, 0.064), 2, 3, extensions=1),
        "standard": Budget("standard", 1_000, 128, GRID[2:], 2, 5, extensions=99, fixed_rate=True),
        "full": Budget("full", 5_000, 256, GRID, 2, 5, extensions=99, fixed_rate=True),
    },
    "density": {
        "quick": Budget("quick", 400, 256, (0.004, 0.008, 0.016, 0.032), 2, 3, extensions=1),
        "standard": Budget("standard", 1_000, 256, GRID[1:], 2, 10, extensions=99, fixed_rate=True),
        "full": Budget("full", 3_000, 256, GRID, 2, 10, extensions=99, fixed_rate=True),
        "paper": Budget(
            "paper", 3_000, 256, (0.001,), 1, 5, extensions=0, clip=1.0, architecture=PAPER_ARCHITECTURE
        ),
    },
    "multivariate density": {
        "quick": Budget("quick", 300, 256, (0.008, 0.016, 0.032, 0.064), 2, 3, extensions=1),
        "standard": Budget("standard", 400, 256, (0.032, 0.064, 0.128, 0.256), 2, 5, extensions=99),
        "full": Budget("full", 3_000, 256, GRID[1:], 2, 5, extensions=99, fixed_rate=True),
    },
    "regression": {
        "quick": Budget("quick", 500, 500, (0.002, 0.004, 0.008, 0.016), 2, 3, extensions=1),
        "standard": Budget("standard", 2_000, 500, GRID[:-1], 2, 5, extensions=99, fixed_rate=True),
        "full": Budget("full", 5_000, 500, GRID, 2, 5, extensions=99, fixed_rate=True),
    },
}


def budget_for(task: str, budget: str | Budget, dim: int = 1, **changes: Any) -> Budget:
    """The budget of that name for a kind of task of dimension d, or the one given, with some fields changed.

    "own" tasks have the budgets of flows. Densities above one dimension have budgets of their own: their
    steps cost more. A change to None is none.

    Example:
        >>> budget_for("density", "standard").evaluation_seeds
        10
        >>> budget_for("flow", "quick", rates=[0.02, 0.01], steps=None).rates
        (0.01, 0.02)
        >>> budget_for("flow", "huge")
        Traceback (most recent call last):
        ...
        ValueError: unknown budget 'huge' for a flow problem; known: quick, standard, full
    """
    if isinstance(budget, str):
        kind = "multivariate density" if task == "density" and dim > 1 else task
        known = BUDGETS.get(kind, BUDGETS["flow"])
        if budget not in known:
            raise ValueError(f"unknown budget '{budget}' for a {kind} problem; known: {', '.join(known)}")
        budget = known[budget]
    changed = {field: value for field, value in changes.items() if value is not None}
    if "rates" in changed:
        changed["rates"] = tuple(sorted(set(map(float, changed["rates"]))))
    return dataclasses.replace(budget, **changed)


def best_rate(losses: Mapping[float, float]) -> float | None:
    """The rate of the least mean validation loss, the smaller one in a tie; None where every rate diverged.

    Example:
        >>> best_rate({0.01: 2.0, 0.02: 1.5, 0.04: float("inf")})
        0.02
    """
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return min(sorted(finite), key=lambda rate: finite[rate]) if finite else None


def on_edge(losses: Mapping[str, Mapping[float, float]]) -> dict[str, str]:
    """The arms whose best rate is the "lowest" or the "highest" of the grid; an arm that diverged at every
    rate asks for lower ones.

    Example:
        >>> on_edge({"lift": {0.01: 1.0, 0.02: 2.0, 0.04: 3.0}, "squared": {0.01: 2.0, 0.02: 1.0, 0.04: 3.0}})
        {'lift': 'lowest'}
    """
    found = {}
    for arm, by_rate in losses.items():
        best = best_rate(by_rate)
        if best is None or best == min(by_rate):
            found[arm] = "lowest"
        elif best == max(by_rate):
            found[arm] = "highest"
    return found


def extension(rates: Sequence[float], edges: Mapping[str, str]) -> list[float]:
    """The rates by which the grid must grow for all arms, none beyond 1e-4 or 1.

    Example:
        >>> extension([0.25, 0.5], {"lift": "highest", "softplus": "lowest"})
        [0.125, 1.0]
        >>> extension([0.3, 0.6], {"lift": "highest"})
        []
    """
    candidates = {"lowest": min(rates) / FACTOR, "highest": max(rates) * FACTOR}
    return [
        rate
        for side, rate in candidates.items()
        if side in edges.values() and LEAST_RATE <= rate <= LARGEST_RATE
    ]
