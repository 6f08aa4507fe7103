"""Scores of rows by models that have not seen them: the table in parts, each left out once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import convexlift as cl
from convexlift.cli.errors import Interrupted
from convexlift.cli.regression import exact, simple_predictions
from convexlift.cli.train import Rows, Training
from convexlift.cli.yardstick import gaussian_losses, share_below
from convexlift.data import hold_out, take
from convexlift.seeds import generator_on
from convexlift.tasks.task import map_rows


@final
@dataclass(frozen=True)
class LeftOut:
    """The rows of a table, and what models say that were trained without them.

    Attributes:
        rows: the table.
        values: log-densities or predictions, (N,).
        simple: the losses of a "gaussian", or the predictions of a "plane" and a "quadratic", (N,) each;
            without those that do not exist for some part.
        shares: of the draws of a density whose log-density is lower, (N,), if they were asked for.
    """

    rows: Rows
    values: Tensor
    simple: dict[str, Tensor]
    shares: Tensor | None


def left_out(training: Training, folds: int, *, shares: bool = False) -> LeftOut:
    """Each row of a table as a model sees it that was trained without its part; and the simplest models.

    Raises:
        ValueError: fewer than two rows a part, or rows that cannot be trained on.
        Interrupted: Ctrl-C.
    """
    training.check()
    rows = training.read()
    training.preflight(training.untrained(rows), rows.data, rows)
    count = len(rows.table.rows)
    if count < 2 * folds:
        raise ValueError(f"{training.data}: {count} rows are too few for {folds} parts")
    values, share = (torch.empty(count, dtype=torch.float64) for _ in range(2))
    simple: dict[str, Tensor] = defaultdict(lambda: torch.full((count,), torch.nan, dtype=torch.float64))
    order = torch.randperm(count, generator=generator_on(seed=training.seed), device="cpu")
    for held in order.tensor_split(folds):
        kept = order[~torch.isin(order, held)]
        others, these = take(rows.data, kept), take(rows.data, held)
        frozen = _trained(training, rows, others)
        if isinstance(these, tuple):
            values[held] = map_rows(exact(frozen).predict, these[0]).double()
            for name, predicted in simple_predictions(others, these[0]).items():
                simple[name][held] = predicted
        else:
            values[held] = map_rows(frozen.log_prob, these).double()
            losses = gaussian_losses(others, these)
            if losses is not None:
                simple["gaussian"][held] = losses
            if shares:
                share[held] = share_below(frozen, values[held])
    whole = {name: found for name, found in simple.items() if not bool(found.isnan().any())}
    is_density = not isinstance(rows.data, tuple)
    return LeftOut(rows, values, whole, share if shares and is_density else None)


def _trained(training: Training, rows: Rows, data: Any) -> Any:
    """A frozen model of some of the rows, trained as the run was."""
    train, validation = hold_out(data, training.validation_fraction, training.seed)
    model = training.untrained(rows)
    history = cl.fit(model, train, validation=validation, **training.how_to_fit)
    if history.stopped == "interrupted":
        raise Interrupted("interrupted")
    return training.freeze(model, train)
