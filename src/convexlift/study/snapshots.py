"""The trained model beside the data, as numbers that the report page draws."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from convexlift.plots.corner import MOST_COLUMNS, least_normal
from convexlift.problems import Problem
from convexlift.study.scoring import is_multivariate
from convexlift.study.statistics import finite_or_none
from convexlift.tasks.region import region_outlines

Picture = dict[str, Any]

POINTS = 400  # samples, or rows of a regression
IMAGES = 16  # where rows stand for images
_GRID = 161  # points of a density's curve


@torch.no_grad()
def picture_of_model(problem: Problem, frozen: nn.Module) -> Picture | None:
    """What a frozen model makes of a problem: its density on a grid, samples of two columns, or its fit.

    A density has draws too in one dimension, outlines of its credible regions in two, and more columns of its
    draws above; samples are images as well where rows stand for images.

    None for a task of the user's own; {"kind": "failed", "message": ...} where the model cannot be sampled.

    Example:
        >>> import convexlift as cl
        >>> from convexlift.problems import problem
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,), seed=0)]).freeze()
        >>> drawn = picture_of_model(problem("moon"), flow)
        >>> drawn["kind"], len(drawn["points"])
        ('samples', 400)
    """
    if problem.build is not None:
        return None
    try:
        return _model(problem, frozen)
    except RuntimeError as error:
        return {"kind": "failed", "message": str(error)}


def picture_of_data(problem: Problem) -> Picture | None:
    """The same of the test rows: the exact density or a histogram, rows of two columns, or the truth."""
    test = cast(Any, problem.test)
    if problem.build is not None or problem.task not in ("flow", "density", "regression"):
        return None
    if problem.task == "regression":
        return {"kind": "fit", "y": _short(test[1][:POINTS])}
    if problem.task == "density" and not is_multivariate(problem):
        if problem.log_prob is not None:
            return _curve(_grid(test), problem.log_prob(_grid(test)).exp())
        share, edges = torch.histogram(test.double().flatten().cpu(), 40, density=True)
        return _curve((edges[1:] + edges[:-1]) / 2, share)
    kind = "samples" if problem.task == "flow" else "regions" if problem.dim == 2 else "corner"
    columns = columns_to_show(problem, MOST_COLUMNS if problem.task == "density" else 2)
    points = _rows(test[:POINTS], columns)
    return {"kind": kind, "points": points, "columns": list(columns), **_images(problem, test)}


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


def _model(problem: Problem, model: Any) -> Picture | None:
    if problem.task == "flow":
        draws = model.sample(POINTS, seed=0)
        return {
            "kind": "samples",
            "points": _rows(draws, columns_to_show(problem)),
            **_images(problem, draws),
        }
    if problem.task == "regression":
        return {"kind": "fit", "y": _short(model.predict(_like(model, problem.test[0][:POINTS])))}
    if problem.task != "density":
        return None
    if not is_multivariate(problem):
        x = _grid(cast(Tensor, problem.test))
        draws = _short(model.sample(POINTS, seed=0).flatten())
        return {**_curve(x, model.log_prob(_like(model, x)).exp()), "draws": draws}
    if problem.dim == 2:
        return {"kind": "regions", "outlines": [_rows(outline) for outline in region_outlines(model)]}
    found = model.draw(POINTS, seed=0)
    points = _rows(found.x, columns_to_show(problem, MOST_COLUMNS))
    return {"kind": "corner", "points": points, "r_hat": float(f"{float(found.r_hat.max()):.4g}")}


def _images(problem: Problem, rows: Tensor) -> Picture:
    """The first rows as images, grey values from 0 to 255, where rows stand for images."""
    if problem.images is None:
        return {}
    return {"images": (255 * problem.images(rows[:IMAGES])).round().int().tolist()}


def _grid(test: Tensor) -> Tensor:
    low, high = float(test.min()), float(test.max())
    spare = 0.05 * (high - low)
    return torch.linspace(low - spare, high + spare, _GRID, dtype=test.dtype)[:, None]


def _like(model: Any, rows: Tensor) -> Tensor:
    return rows.to(next(model.parameters()))


def _curve(x: Tensor, density: Tensor) -> Picture:
    return {"kind": "density", "x": _short(x.flatten()), "y": _short(density)}


def _rows(rows: Tensor, columns: tuple[int, ...] = (0, 1)) -> list[list[float | None]]:
    return [_short(row) for row in rows[:, list(columns)]]


def _short(values: Tensor) -> list[float | None]:
    """Four digits of each value; None for what is not finite, which JSON cannot hold."""
    return [finite_or_none(float(f"{value:.4g}")) for value in values.tolist()]
