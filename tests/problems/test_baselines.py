"""The densities that need no training, against cases with known answers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from convexlift.problems import Problem, gaussian_baseline, kernel_baseline, problem


def normal_problem(dim: int, n: int = 8_000) -> Problem:
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(dim, dtype=torch.float64).cumsum(0)
    rows = torch.randn(2 * n + 2000, dim, generator=generator, dtype=torch.float64) @ mix.T
    return dataclasses.replace(
        problem("moon"), dim=dim, train=rows[:n], validation=rows[n : n + 2000], test=rows[n + 2000 :]
    )


@pytest.mark.parametrize("dim", [1, 3])
def test_the_gaussian_of_a_normal_sample_has_its_entropy(dim):
    # det of the mixing matrix is 1
    assert gaussian_baseline(normal_problem(dim)) == pytest.approx(
        dim / 2 * (1 + math.log(2 * math.pi)), abs=0.04
    )


def test_the_kernel_estimate_of_a_normal_sample_comes_close_to_its_entropy():
    loss, bandwidth = kernel_baseline(normal_problem(1))
    assert loss == pytest.approx((1 + math.log(2 * math.pi)) / 2, abs=0.03)
    assert 0.5 <= bandwidth <= 2.0  # Scott's rule is for the normal


def test_the_kernel_estimate_is_a_density():
    chosen = normal_problem(1, n=500)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    flat = dataclasses.replace(chosen, test=grid)
    losses = []
    for row in grid[::400]:
        loss, _ = kernel_baseline(dataclasses.replace(flat, test=row[None]))
        losses.append(math.exp(-loss))
    assert sum(losses) * 1.6 == pytest.approx(1.0, abs=0.05)


def test_a_two_peaked_density_is_closer_to_its_kernel_estimate_than_to_its_gaussian():
    toy = problem("moon")
    assert kernel_baseline(toy)[0] < gaussian_baseline(toy) - 0.1


def test_baselines_need_a_density():
    for baseline in (gaussian_baseline, kernel_baseline):
        with pytest.raises(ValueError, match="baseline needs a density problem; 'regression-square' is a"):
            baseline(problem("regression-square"))
