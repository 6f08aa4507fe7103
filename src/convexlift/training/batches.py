"""Training data and the batch of every step: a function of (seed, step) and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.data import Data, Rows, Simulator, Unpaired, count_rows, take
from convexlift.seeds import generator_of


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one step, and their indices in the data: none for fresh draws, two sets for `Unpaired`."""

    data: Rows
    indices: tuple[Tensor, ...]

    def rows(self) -> list[int] | tuple[list[int], ...] | None:
        lists = tuple(i.tolist() for i in self.indices)
        return lists if len(lists) > 1 else lists[0] if lists else None


@final
class Batches:
    """The batch of every step, computed from (seed, step) alone, so that a run resumes at any step.

    Each epoch goes once through a permutation that depends on (seed, epoch); its last, short batch is
    dropped. Data smaller than a batch come whole at every step. The two sides of `Unpaired` have permutations
    of their own.

    Example:
        >>> batches = Batches(torch.arange(6.0), batch_size=2, seed=0)
        >>> sorted(torch.cat([batches.at(step).data for step in range(3)]).tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self._permutations: dict[int, tuple[int, Tensor]] = {}  # side -> (epoch, its permutation)

    def at(self, step: int) -> Batch:
        """Return the batch of one step."""
        if isinstance(self.data, Simulator):
            return Batch(self.data.draw(self.batch_size, generator_of(self.seed, "draw", step)), ())
        if isinstance(self.data, Unpaired):
            i, j = self._indices(step, 0, len(self.data.xs)), self._indices(step, 1, len(self.data.xt))
            return Batch((take(self.data.xs, i), take(self.data.xt, j)), (i, j))
        i = self._indices(step, 0, count_rows(self.data))
        return Batch(take(self.data, i), (i,))

    def steps_per_epoch(self) -> int:
        """Return how many steps go once through the data (through the longer side, of two)."""
        if isinstance(self.data, Simulator):
            raise ValueError("a Simulator has no epochs; give steps")
        sides = (self.data.xs, self.data.xt) if isinstance(self.data, Unpaired) else (self.data,)
        return max(max(1, count_rows(x) // self.batch_size) for x in sides)

    def _indices(self, step: int, side: int, n: int) -> Tensor:
        epoch, position = divmod(step, max(1, n // self.batch_size))
        if self._permutations.get(side, (-1,))[0] != epoch:
            order = torch.randperm(n, generator=generator_of(self.seed, "epoch", side, epoch))
            self._permutations[side] = (epoch, order)
        return self._permutations[side][1][position * self.batch_size : (position + 1) * self.batch_size]
