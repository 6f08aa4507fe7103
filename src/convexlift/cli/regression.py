"""``convexlift train regression``: a convex function of some columns that is close to another."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

import convexlift as cl
from convexlift.cli.options import Reading
from convexlift.cli.train import Depth, Rate, Rows, Sharpness, Steps, Training
from convexlift.defaults import REGRESSION
from convexlift.names import close_names

if TYPE_CHECKING:
    from torch import Tensor

    from convexlift.table_files import Table


@final
@dataclass(frozen=True, kw_only=True)
class Regression(Training):
    """Train a convex regression.

    The convex function of the other columns that is closest to the target in mean square. For a concave
    function change the sign of the target.

    \b
    Examples:
      convexlift train regression --data rows.csv --target cost --out runs/cost
      convexlift evaluate runs/cost --data test.csv
      convexlift predict runs/cost --data new.csv --out predicted.csv
    """

    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column to fit, by name or number.", show_default=False)
    ]
    depth: Depth = REGRESSION.depth
    sharpness: Sharpness = REGRESSION.sharpness
    steps: Steps = REGRESSION.steps
    lr: Rate = REGRESSION.lr
    slopes: Annotated[
        bool,
        typer.Option("--slopes", help="Take mean slopes of activations out; for data without much noise."),
    ] = False

    def read(self) -> Rows:
        pairs = read_pairs(self, self.target)
        return Rows((pairs.x, pairs.y), pairs.names, pairs.table, {"target": pairs.target})

    def build(self, dim: int) -> cl.ConvexRegression:
        return cl.ConvexRegression(cl.Centred(self.network(dim), slopes=self.slopes))

    def preflight(self, model: Any, data: Any, rows: Rows) -> None:
        x, y = data
        super().preflight(model, x, rows)
        if bool((y == y[0]).all()):
            called = f"the target '{rows.more['target']}'"
            raise ValueError(f"{self.data}: {called} is constant (every value is {float(y[0]):g})")

    @property
    def strong_convexity(self) -> float:
        return REGRESSION.strong_convexity

    def score(self, frozen: Any, validation: Any) -> dict[str, Any]:
        x, y = validation
        return errors_of(predictions(frozen, x), y)

    def scored(self, score: dict[str, Any]) -> str:
        return in_words(score)

    def unit(self, model: Any) -> str:
        return "mean squared error"


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Inputs x (N, d) and targets y (N,) of a table, and what they are called."""

    table: Table
    x: Tensor
    y: Tensor
    names: list[str]
    target: str


def read_pairs(reading: Reading, target: str, inputs: list[str] | None = None, **how: Any) -> Pairs:
    """The pairs of a table; ``how`` is further told to ``read_table``.

    Inputs are the ``--columns``, else those of the names given, else all columns but the target.
    """
    from convexlift.table_files import read_table

    chosen, how = reading.columns, {**reading.how, **how}
    if target in map(str.strip, (chosen or "").split(",")):
        raise ValueError(f"--columns {chosen} are the inputs: leave the target '{target}' out")
    if chosen is None and target.isdecimal():  # counted as the file has its columns
        target = read_table(reading.data, **{**how, "columns": target}).names[0]
    table = read_table(reading.data, **{**how, "columns": chosen and f"{chosen},{target}"})
    place = len(table.names) - 1 if chosen else place_of(reading.data, table, target)
    names = [name for k, name in enumerate(table.names) if k != place]
    if inputs is not None and chosen is None and table.named:
        names = inputs
    if not names:
        raise ValueError(f"{reading.data} has no column beside the target '{target}'")
    x = table.rows[:, [place_of(reading.data, table, name) for name in names]]
    return Pairs(table, x, table.rows[:, place], names, table.names[place])


def read_inputs(reading: Reading, names: list[str] | None) -> tuple[Table, Tensor]:
    """A table and its inputs (N, d): the ``--columns``, else those of the names given, else all."""
    import torch

    from convexlift.table_files import read_table

    table = read_table(reading.data, **reading.how, dtype=torch.float64)
    if names is not None and reading.columns is None and table.named:
        return table, table.rows[:, [place_of(reading.data, table, name) for name in names]]
    return table, table.rows


def place_of(file: Path, table: Table, name: str) -> int:
    """Where the column of that name stands."""
    if name not in table.names:
        hint = "".join(f"; did you mean '{close}'?" for close in close_names(name, table.names))
        raise ValueError(f"{file} has no column '{name}'; it has {', '.join(table.names)}{hint}")
    return table.names.index(name)


def predictions(model: Any, x: Tensor, rows: int = 4096) -> Tensor:
    """The fitted function at each row, computed in float64, (N,)."""
    import torch

    exact = copy.deepcopy(model).to(torch.float64)
    with torch.no_grad():
        return torch.cat([exact.predict(chunk) for chunk in x.double().split(rows)])


def errors_of(predicted: Tensor, y: Tensor) -> dict[str, Any]:
    """Root mean square error, in the units of y, and coefficient of determination (None for constant y)."""
    residual = (predicted - y.double()).square().mean()
    variance = y.double().var(correction=0)
    share = float(1 - residual / variance) if float(variance) > 0 else None
    return {"rmse": float(residual.sqrt()), "r2": share}


def in_words(score: dict[str, Any]) -> str:
    """R² and root mean square error.

    >>> in_words({"rmse": 0.25, "r2": 0.9375}), in_words({"rmse": 0.25, "r2": None})
    ('R² 0.9375, RMSE 0.25', 'R² undefined (constant targets), RMSE 0.25')
    """
    share = "undefined (constant targets)" if score["r2"] is None else f"{score['r2']:.4f}"
    return f"R² {share}, RMSE {score['rmse']:.4g}"
