"""The trained model beside the data, as numbers that the report page draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from convexlift.data import Rows
from convexlift.plots.corner import MOST_COLUMNS, least_normal
from convexlift.problems import Problem
from convexlift.study.scoring import is_multivariate
from convexlift.study.statistics import finite_or_none
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
    if problem.build is not None or problem.task not in _OF_MODEL:
        return None
    try:
        return _OF_MODEL[problem.task](problem, frozen)
    except RuntimeError as error:
        return {"kind": "failed", "message": str(error)}


def picture_of_data(problem: Problem) -> Picture | None:
    """The same of the test rows: the exact density or a histogram, rows of two columns, or the truth."""
    if problem.build is not None or problem.task not in _OF_DATA:
        return None
    return _OF_DATA[problem.task](problem, cast(Any, problem.test))


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


def _flow_samples(problem: Problem, flow: Any) -> Picture:
    return {"kind": "samples", "points": _columns(flow.sample(POINTS, seed=0), columns_to_show(problem))}


def _fit(problem: Problem, regression: Any) -> Picture:
    return {"kind": "fit", "y": _short(regression.predict(_on(regression, problem.test)[0][:POINTS]))}


def _density(problem: Problem, density: Any) -> Picture:
    if not is_multivariate(problem):
        x = _grid(cast(Tensor, problem.test))
        return {"kind": "density", "x": _short(x[:, 0]), "y": _short(density.log_prob(_on(density, x)).exp())}
    if problem.dim == 2:
        return {
            "kind": "regions",
            "outlines": [_columns(curve, (0, 1)) for curve in region_outlines(density)],
        }
    found = density.draw(POINTS, seed=0)
    points = _columns(found.x, columns_to_show(problem, MOST_COLUMNS))
    return {"kind": "corner", "points": points, "r_hat": float(f"{float(found.r_hat.max()):.4g}")}


def _rows(problem: Problem, test: Tensor, kind: str = "samples", most: int = 2) -> Picture:
    columns = columns_to_show(problem, most)
    return {"kind": kind, "points": _columns(test[:POINTS], columns), "columns": list(columns)}


def _exact_density(problem: Problem, test: Tensor) -> Picture:
    if is_multivariate(problem):
        return _rows(problem, test, "regions" if problem.dim == 2 else "corner", MOST_COLUMNS)
    if problem.log_prob is not None:
        x = _grid(test)
        return {"kind": "density", "x": _short(x[:, 0]), "y": _short(problem.log_prob(x).exp())}
    share, edges = torch.histogram(test.double().flatten().cpu(), 40, density=True)
    return {"kind": "density", "x": _short((edges[1:] + edges[:-1]) / 2), "y": _short(share)}


# What is drawn, by task.
_OF_MODEL: Mapping[str, Callable[[Problem, Any], Picture]] = {
    "flow": _flow_samples,
    "density": _density,
    "regression": _fit,
}
_OF_DATA: Mapping[str, Callable[[Problem, Any], Picture]] = {
    "flow": _rows,
    "density": _exact_density,
    "regression": lambda _, test: {"kind": "fit", "y": _short(test[1][:POINTS])},
}


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
    return [finite_or_none(float(f"{value:.4g}")) for value in values.tolist()]
