"""What a comparison needs to know of a data set or a simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from convexlift.data import Rows, Simulator
from convexlift.problems.kinds import KINDS, Kind


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A learning problem with fixed splits, its metric, and what is known exactly about it.

    `task` is "flow", "density", "regression", or "own" (then `network`, `build` and `losses` are given).
    `train` is a tensor (N, dim), a tuple of row-aligned tensors, or a `Simulator` of fresh rows; `validation`
    and `test` are fixed. `architecture` holds the keyword arguments of the `ICNN` that every arm trains and
    `blocks` the number of them. Where `log_prob`, the exact log density, is given, the loss of a test row is
    the excess log p(x) - log q(x); its mean estimates the Kullback-Leibler divergence. `density_objective`
    names what densities are trained by, one of `convexlift.objectives.OBJECTIVES`. Where rows stand for
    images, `images` turns rows (N, dim) into grey values (N, h, w) in [0, 1].

    Example:
        >>> from convexlift.problems import problem
        >>> gumbel = problem("gumbel")
        >>> gumbel.dim, gumbel.task, gumbel.metric
        (1, 'density', 'excess negative log-likelihood (nats)')
    """

    name: str
    task: str
    dim: int
    train: Rows | Simulator
    validation: Rows
    test: Rows
    description: str
    source: str
    licence: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    blocks: int = 1
    log_prob: Callable[[Tensor], Tensor] | None = None
    entropy: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    metrics: Callable[[nn.Module], dict[str, float]] | None = None
    network: Callable[[int], nn.Module] | None = None
    build: Callable[[list[nn.Module]], nn.Module] | None = None
    losses: Callable[[nn.Module, Rows], Tensor] | None = None
    density_objective: str = "mle"
    images: Callable[[Tensor], Tensor] | None = None

    @property
    def kind(self) -> Kind:
        """What the task makes of the problem; raises a ValueError for an unknown task."""
        if self.task not in KINDS:
            raise ValueError(f"problem '{self.name}' has task '{self.task}'; known: {', '.join(KINDS)}")
        return KINDS[self.task]

    @property
    def metric(self) -> str:
        """The name of the loss that `evaluate` returns."""
        if self.losses is not None:
            return "loss"
        return f"{'excess ' if self.log_prob is not None else ''}{self.kind.metric}"

    def as_task(self, task: str) -> Problem:
        """The same rows for another task: one log-concave density in place of a flow; or the problem itself.

        Raises a ValueError for every other change of task.

        Example:
            >>> from convexlift.problems import problem
            >>> moon = problem("moon").as_task("density")
            >>> moon.task, moon.blocks, moon.architecture["hidden"]
            ('density', 1, (64, 64, 64))
            >>> problem("regression-square").as_task("density")
            Traceback (most recent call last):
            ...
            ValueError: problem 'regression-square' has task 'regression'; it cannot be taken as 'density'
        """
        if task == self.task:
            return self
        kind = KINDS.get(task)
        if kind is None or self.task not in kind.takes or self.build is not None:
            raise ValueError(f"problem '{self.name}' has task '{self.task}'; it cannot be taken as '{task}'")
        return dataclasses.replace(
            self,
            task=task,
            blocks=1,
            architecture=kind.architecture,
            description=f"{self.description}; {kind.told}",
        )

    def evaluate(self, model: nn.Module, data: Rows | None = None) -> Tensor:
        """The loss of a frozen model on every row of `data` (default: the test split), an (N,) tensor; lower
        is better.

        Example:
            >>> import torch
            >>> from convexlift.problems import problem
            >>> class Exact(torch.nn.Module):
            ...     log_prob = staticmethod(problem("logistic").log_prob)
            >>> float(problem("logistic").evaluate(Exact()).abs().max())
            0.0
        """
        rows = self.test if data is None else data
        with torch.no_grad():
            if self.losses is not None:
                return self.losses(model, rows).detach()
            found = self.kind.losses(model, rows)
            return found if self.log_prob is None else found + self.log_prob(cast(Tensor, rows))
