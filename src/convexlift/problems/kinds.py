"""The tasks that a problem can set: what is built for each, how a row is scored, what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn

from convexlift.data import Rows
from convexlift.tasks import ConvexPotentialFlow, ConvexRegression, LogConcaveDensity


@final
@dataclass(frozen=True)
class Kind:
    """What a task makes of a problem: a new task is one entry of `KINDS`.

    Attributes:
        build: the module to train, from its blocks and the name of an objective.
        losses: the loss of a frozen model on each row, (N,).
        metric: the name of that loss.
        of_density: whether the model is a density of the rows, so that other densities can be set beside it.
        objectives: whether it is trained by one of `convexlift.objectives.OBJECTIVES`.
        takes: the tasks whose problems can be set for this one too, as `told` and with `architecture`.

    Example:
        >>> sorted(KINDS), KINDS["regression"].metric
        (['density', 'flow', 'own', 'regression'], 'noiseless mean squared error')
    """

    build: Callable[[Sequence[nn.Module], str], nn.Module]
    losses: Callable[[Any, Any], Tensor]
    metric: str
    of_density: bool = False
    objectives: bool = False
    takes: tuple[str, ...] = ()
    told: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)


def _negative_log_likelihood(model: Any, x: Rows) -> Tensor:
    return -model.log_prob(x)


def _squared_errors(model: Any, rows: tuple[Tensor, Tensor]) -> Tensor:
    x, y = rows
    return (model.predict(x).double() - y).square()  # in the user's units, which may be far from one


def _own(*_: object) -> nn.Module:
    raise ValueError("a problem of task 'own' needs `build`, a function from its blocks to a module")


_NATS = "negative log-likelihood (nats)"
KINDS: Mapping[str, Kind] = {
    "flow": Kind(
        lambda blocks, _: ConvexPotentialFlow(blocks), _negative_log_likelihood, _NATS, of_density=True
    ),
    "density": Kind(
        lambda blocks, objective: LogConcaveDensity(blocks[0], objective),
        _negative_log_likelihood,
        _NATS,
        of_density=True,
        objectives=True,
        takes=("flow",),
        told="fitted by one log-concave density",
        architecture={"hidden": (64, 64, 64), "strong_convexity": 0.1},
    ),
    "regression": Kind(
        lambda blocks, _: ConvexRegression(blocks[0]), _squared_errors, "noiseless mean squared error"
    ),
    "own": Kind(_own, _negative_log_likelihood, _NATS),
}
