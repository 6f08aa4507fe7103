"""What is drawn beside the data: the right kind, the right numbers, and failures told."""

from __future__ import annotations

import dataclasses

import torch

import convexlift as cl
from convexlift.problems import problem
from convexlift.study.snapshots import columns_to_show, picture_of_data, picture_of_model


def test_a_density_is_drawn_on_the_grid_of_the_exact_one() -> None:
    gumbel = problem("gumbel")
    density = cl.LogConcaveDensity(cl.ICNN(1, hidden=(8,), seed=0))
    density.initialise(gumbel.test)
    model, data = picture_of_model(gumbel, density.freeze()), picture_of_data(gumbel)
    assert model is not None and data is not None
    assert model["kind"] == data["kind"] == "density" and model["x"] == data["x"]
    assert abs(torch.trapezoid(torch.tensor(data["y"]), torch.tensor(data["x"])) - 1) < 0.01


def test_what_is_not_finite_is_none() -> None:
    class Overflowing(torch.nn.Linear):
        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x),), torch.inf)

        def sample(self, n: int, seed: int) -> torch.Tensor:
            return torch.zeros(n, 1)

    drawn = picture_of_model(problem("gumbel"), Overflowing(1, 1))
    assert drawn is not None and set(drawn["y"]) == {None}


def test_without_an_exact_density_the_rows_are_binned() -> None:
    binned = picture_of_data(dataclasses.replace(problem("logistic"), log_prob=None))
    assert binned is not None and len(binned["x"]) == 40
    width = binned["x"][1] - binned["x"][0]
    assert abs(sum(binned["y"]) * width - 1) < 0.01


def test_a_regression_is_drawn_against_the_truth() -> None:
    square = problem("regression-square")
    fit = cl.ConvexRegression(cl.ICNN(50, hidden=(8,), strong_convexity=0, seed=0)).freeze()
    model, data = picture_of_model(square, fit), picture_of_data(square)
    assert model is not None and data is not None and len(model["y"]) == len(data["y"]) == 400
    assert data["y"][0] == float(f"{float(square.test[1][0]):.4g}")


def test_the_columns_shown_are_the_least_normal_ones() -> None:
    moon = problem("moon")
    normal = torch.randn(len(moon.test), 1, generator=torch.Generator().manual_seed(0))
    wide = dataclasses.replace(moon, dim=3, test=torch.cat([normal, moon.test], 1))
    assert columns_to_show(wide) == (1, 2)


def test_samples_that_cannot_be_drawn_are_told() -> None:
    class Broken(torch.nn.Linear):
        def sample(self, n: int, seed: int) -> None:
            raise RuntimeError(f"{n} of {n} samples did not converge")

    drawn = picture_of_model(problem("moon"), Broken(2, 2))
    assert drawn == {"kind": "failed", "message": "400 of 400 samples did not converge"}


def test_a_users_own_objective_is_not_drawn() -> None:
    own = dataclasses.replace(problem("moon"), build=lambda blocks: blocks[0])
    assert picture_of_model(own, torch.nn.Linear(2, 2)) is picture_of_data(own) is None
