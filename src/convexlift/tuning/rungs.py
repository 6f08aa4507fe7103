"""The plan of a quick search: how many settings are trained for how long, and scored on which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, final

import torch

from convexlift.data import Rows, count_rows, hold_out, take
from convexlift.seeds import generator_of

SomeRows = TypeVar("SomeRows", bound=Rows)

# Fewer held-out rows choose noise: then two quarters of the rows are held out in turn.
_ENOUGH = 100
# Fewer rows are no ground to choose on.
LEAST_ROWS = 40


@final
@dataclass(frozen=True)
class Rung:
    """So many settings, each trained anew for a share of the steps and scored on so many holds."""

    settings: int
    share: float
    holds: int


@final
@dataclass(frozen=True)
class Plan:
    """Rungs, of rising length; what is still best after the last of them is trained for all steps."""

    rungs: tuple[Rung, ...]


# Second blocks, which are dearer, are tried with many rows only.
_FEW = Plan((Rung(10, 1 / 16, 1), Rung(4, 1 / 8, 2), Rung(2, 1 / 2, 2)))
_MANY = Plan((Rung(7, 1 / 16, 1), Rung(3, 1 / 6, 1), Rung(2, 1 / 2, 1)))


def plan_for(rows: Rows, share: float) -> Plan:
    """The plan for rows of which a share is held out to validate on.

    Raises:
        ValueError: there are fewer than 40 rows.

    >>> plan_for(torch.zeros(150, 2), 0.1).rungs[-1]
    Rung(settings=2, share=0.5, holds=2)
    """
    n = count_rows(rows)
    if n < LEAST_ROWS:
        raise ValueError(f"a search needs at least {LEAST_ROWS} rows to choose settings by; got {n}")
    return _MANY if round(share * n) >= _ENOUGH else _FEW


def held_out(rows: SomeRows, share: float, seed: int, plan: Plan, hold: int) -> tuple[SomeRows, SomeRows]:
    """The rows to train on and those to score on: of one hold the split of training itself, else quarters."""
    if plan.rungs[-1].holds == 1:
        return hold_out(rows, share, seed)
    n = count_rows(rows)
    order = torch.randperm(n, generator=generator_of(seed, "holds"), device="cpu")
    first, last = hold * (n // 4), (hold + 1) * (n // 4)
    return take(rows, torch.cat([order[:first], order[last:]])), take(rows, order[first:last])
