"""The trained model beside the data, as numbers that the report page draws."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from convexlift.data import Rows
from convexlift.plots.corner import MOST_COLUMNS, least_normal
from convexlift.problems import Problem
from convexlift.study.scoring import is_multivariate
from convexlift.tasks.region import region_outlines

Picture = dict[str, Any]

POINTS = 400  # samples, or rows of a regression
_GRID = 161  # points of a density's curve


@torch.no_grad()
def picture_of_model(problem: Problem, frozen: nn.Module) -> Picture | None:
    """What a frozen model makes of a problem: its density on a grid, samples of two columns, or its fit.

    A density has outlines of its credible regions in two dimensions, and more columns of its draws above.

    None for a task of the user's own; {"kind": "failed", "message": ...} where the model cannot be sampled.

    Example:
        >>> import convexlift as cl
        >>> from convexlift.problems import problem
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,), seed=0)]).freeze()
        >>> drawn = picture_of_model(problem("moon"), flow)
        >>> drawn["kind"], len(drawn["points"])
        ('samples', 400)
    """
    model = cast(Any, frozen)
    if not _is_drawn(problem):
        return None
    rows = _on(model, problem.test)
    if is_multivariate(problem):
        return _picture_of_density(problem, model)
    if problem.task == "density":
        x = _grid(cast(Tensor, problem.test))
        return {"kind": "density", "x": _short(x[:, 0]), "y": _short(model.log_prob(_on(model, x)).exp())}
    if problem.task == "regression":
        x, _ = rows
        return {"kind": "fit", "y": _short(model.predict(x[:POINTS]))}
    try:
        samples = model.sample(POINTS, seed=0)
    except RuntimeError as error:
        return {"kind": "failed", "message": str(error)}
    return {"kind": "samples", "points": _columns(samples, columns_to_show(problem))}


def picture_of_data(problem: Problem) -> Picture | None:
    """The same of the test rows: the exact density or a histogram, rows of two columns, or the truth."""
    if not _is_drawn(problem):
        return None
    if problem.task == "regression":
        return {"kind": "fit", "y": _short(problem.test[1][:POINTS])}
    test = cast(Tensor, problem.test)
    if is_multivariate(problem):
        shown = columns_to_show(problem, MOST_COLUMNS)
        kind = "regions" if problem.dim == 2 else "corner"
        return {"kind": kind, "points": _columns(test[:POINTS], shown), "columns": list(shown)}
    if problem.task == "flow":
        columns = columns_to_show(problem)
        return {"kind": "samples", "points": _columns(test[:POINTS], columns), "columns": list(columns)}
    if problem.log_prob is not None:
        x = _grid(test)
        return {"kind": "density", "x": _short(x[:, 0]), "y": _short(problem.log_prob(x).exp())}
    share, edges = torch.histogram(test.double().flatten().cpu(), 40, density=True)
    return {"kind": "density", "x": _short((edges[1:] + edges[:-1]) / 2), "y": _short(share)}


def _picture_of_density(problem: Problem, density: Any) -> Picture:
    try:
        if problem.dim == 2:
            return {
                "kind": "regions",
                "outlines": [_columns(curve, (0, 1)) for curve in region_outlines(density)],
            }
        found = density.draw(POINTS, seed=0)
    except RuntimeError as error:
        return {"kind": "failed", "message": str(error)}
    columns = columns_to_show(problem, MOST_COLUMNS)
    worst = float(found.r_hat.max())
    return {"kind": "corner", "points": _columns(found.x, columns), "r_hat": float(f"{worst:.4g}")}


def columns_to_show(problem: Problem, most: int = 2) -> tuple[int, ...]:
    """The columns of the test rows, two or `most`, whose marginals are farthest from normal, in their order.

    The distance is the largest gap between the distribution functions, of the standardised column and the
    standard normal.

    Example:
        >>> from convexlift.problems import problem
        >>> columns_to_show(problem("rings"))
        (0, 1)
    """
    return least_normal(cast(Tensor, problem.test), most)


def _is_drawn(problem: Problem) -> bool:
    """Whether the task is one of the library's, with a picture of its own."""
    return problem.objective is None and problem.task in ("density", "flow", "regression")


def _grid(test: Tensor) -> Tensor:
    low, high = float(test.min()), float(test.max())
    spare = 0.05 * (high - low)
    return torch.linspace(low - spare, high + spare, _GRID, dtype=test.dtype)[:, None]


def _on(model: Any, rows: Rows) -> Any:
    like = next(model.parameters())
    return tuple(part.to(like) for part in rows) if isinstance(rows, tuple) else rows.to(like)


def _columns(rows: Tensor, columns: tuple[int, ...]) -> list[list[float | None]]:
    return [_short(row) for row in rows[:, list(columns)]]


def _short(values: Tensor) -> list[float | None]:
    """Four digits of each value; None for what is not finite, which JSON cannot hold."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
