"""``convexlift train regression``: a convex function of some columns that is close to another."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import typer

import convexlift as cl
from convexlift.cli.train import Depth, Rows, Sharpness, Steps, Training, rate_of
from convexlift.cli.yardstick import polynomial_predictions
from convexlift.defaults import REGRESSION, Defaults

if TYPE_CHECKING:
    from torch import Tensor


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

    usual: ClassVar[Defaults] = REGRESSION

    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column to fit, by name or number.", show_default=False)
    ]
    depth: Depth = REGRESSION.depth
    sharpness: Sharpness = REGRESSION.sharpness
    steps: Steps = REGRESSION.steps
    lr: Annotated[float | None, rate_of(REGRESSION)] = None
    slopes: Annotated[
        bool,
        typer.Option("--slopes", help="Take mean slopes of activations out; for data without much noise."),
    ] = False

    def read(self) -> Rows:
        table = self.table(target=self.target)
        x, y = table.rows[:, :-1], table.rows[:, -1]
        if self.dequantise:
            x = cl.dequantise(x, self.seed)
        *names, target = table.names
        return Rows((x, y), names, table, {"target": target})

    def columns_of(self, rows: Rows) -> dict[str, Any] | None:
        known = rows.table.columns or rows.table.names
        return {"x": known[:-1], "y": known[-1:]}

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

    def score(self, frozen: Any, validation: Any, train: Any) -> dict[str, Any]:
        from convexlift.tasks.task import map_rows

        x, y = validation
        found = errors_of(map_rows(exact(frozen).predict, x), y)
        simple = simple_predictions(train, x)
        return {**found, "simple": {name: errors_of(values, y) for name, values in simple.items()}}

    def compared(self, score: dict[str, Any]) -> str:
        return beside_simple(score, score["simple"])

    def next_commands(self) -> tuple[str, ...]:
        other, new = (f"{self.out} --data {file}{self.marks}" for file in ("other.csv", "new.csv"))
        return f"evaluate {other}", f"predict {new} --out predicted.csv"

    def scored(self, score: dict[str, Any]) -> str:
        return in_words(score)

    def unit(self, model: Any) -> str:
        return "mean squared error / variance of the target"


def exact(model: Any) -> Any:
    """The same model, which computes in float64."""
    import torch

    return copy.deepcopy(model).to(torch.float64)


def errors_of(predicted: Tensor, y: Tensor) -> dict[str, Any]:
    """Root mean square error, in the units of y, and coefficient of determination (None for constant y)."""
    residual = (predicted - y.double()).square().mean()
    variance = y.double().var(correction=0)
    share = float(1 - residual / variance) if float(variance) > 0 else None
    return {"rmse": float(residual.sqrt()), "r2": share}


def simple_predictions(train: tuple[Tensor, Tensor], x: Tensor) -> dict[str, Tensor]:
    """What the plane and the quadratic say at x, (M,), that least squares fit to training points, if any."""
    found = {
        name: polynomial_predictions(degree, *train, x)
        for degree, name in enumerate(("plane", "quadratic"), 1)
    }
    return {name: values for name, values in found.items() if values is not None}


def beside_simple(score: dict[str, Any], simple: dict[str, Any]) -> str:
    """What they do beside a model, and whether it is worse.

    >>> beside_simple({"rmse": 2.0, "r2": 0.5}, {"plane": {"rmse": 1.0, "r2": 0.9}})
    'worse than a plane fitted by least squares (R² 0.9000, RMSE 1)'
    """
    worse = [name for name in simple if simple[name]["rmse"] < score["rmse"]]
    told = [f"{name} fitted by least squares ({in_words(simple[name])})" for name in worse or simple]
    return f"{'worse than' if worse else 'better than'} a {', a '.join(told)}"


def in_words(score: dict[str, Any]) -> str:
    """R² and root mean square error.

    >>> in_words({"rmse": 0.25, "r2": 0.9375}), in_words({"rmse": 0.25, "r2": None})
    ('R² 0.9375, RMSE 0.25', 'R² undefined (constant targets), RMSE 0.25')
    """
    share = "undefined (constant targets)" if score["r2"] is None else f"{score['r2']:.4f}"
    return f"R² {share}, RMSE {score['rmse']:.4g}"
