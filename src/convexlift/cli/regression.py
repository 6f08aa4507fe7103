"""``convexlift train regression``: a convex function of some columns that is close to another."""

from __future__ import annotations

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
        pairs = read_pairs(self, self.target, missing=self.drop_missing)
        xy, where = self.prepared(pairs.table)
        x, y = pairs.split(xy)
        if self.dequantise:
            x = cl.dequantise(x, self.seed)
        return Rows((x, y), pairs.names, pairs.table, where, {"target": pairs.target})

    def columns_of(self, rows: Rows) -> dict[str, Any] | None:
        table, target = rows.table, rows.more["target"]
        known = dict(zip(table.names, table.columns or range(1, len(table.names) + 1), strict=True))
        return {"x": [known[name] for name in rows.names], "y": [known[target]]}

    def build(self, dim: int) -> cl.ConvexRegression:
        return cl.ConvexRegression(cl.Centred(self.network(dim), slopes=self.slopes))

    def preflight(self, model: Any, data: Any, rows: Rows, **how: Any) -> None:
        try:
            super().preflight(model, data, rows, **how)
        except ValueError as error:
            called = f"the target '{rows.more['target']}' "
            raise ValueError(str(error).replace("the target ", called, 1)) from None

    @property
    def strong_convexity(self) -> float:
        return REGRESSION.strong_convexity

    def score(self, frozen: Any, validation: Any) -> dict[str, Any]:
        from convexlift.cli.models import exact
        from convexlift.tasks.task import map_rows

        x, y = validation
        return errors_of(map_rows(exact(frozen).predict, x), y)

    def scored(self, score: dict[str, Any]) -> str:
        return in_words(score)

    def unit(self, model: Any) -> str:
        return "mean squared error / variance of the target"


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """A table, which of its columns is the target, and which are the inputs."""

    table: Table
    place: int

    @property
    def target(self) -> str:
        """The name of the target."""
        return self.table.names[self.place]

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [name for place, name in enumerate(self.table.names) if place != self.place]

    @property
    def x(self) -> Tensor:
        """Inputs, (N, d)."""
        return self.split(self.table.rows)[0]

    @property
    def y(self) -> Tensor:
        """Targets, (N,)."""
        return self.split(self.table.rows)[1]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of rows of the table."""
        others = [place for place in range(rows.shape[1]) if place != self.place]
        return rows[:, others], rows[:, self.place]


def read_pairs(reading: Reading, target: str, **how: Any) -> Pairs:
    """The pairs of a table: inputs are the ``--columns``, else all columns but the target.

    ``how`` is further told to ``read_table``.
    """
    import torch

    from convexlift.table_files import read_table

    chosen, how = reading.columns, {**reading.how, **how, "dtype": torch.float64}
    if target in map(str.strip, (chosen or "").split(",")):
        raise ValueError(f"--columns {chosen} are the inputs: leave the target '{target}' out")
    if chosen is None and target.isdecimal():  # counted as the file has its columns
        target = read_table(reading.data, **{**how, "columns": target}).names[0]
    table = read_table(reading.data, **{**how, "columns": chosen and f"{chosen},{target}"})
    place = len(table.names) - 1 if chosen else place_of(reading.data, table, target)
    if len(table.names) < 2:
        raise ValueError(f"{reading.data} has no column beside the target '{target}'")
    return Pairs(table, place)


def place_of(file: Path, table: Table, name: str) -> int:
    """Where the column of that name stands."""
    if name not in table.names:
        hint = "".join(f"; did you mean '{close}'?" for close in close_names(name, table.names))
        raise ValueError(f"{file} has no column '{name}'; it has {', '.join(table.names)}{hint}")
    return table.names.index(name)


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
