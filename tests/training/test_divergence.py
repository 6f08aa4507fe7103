"""The state that a run which diverges leaves behind: finite on all rows, and no worse than the start."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlift as cl
from convexlift.names import OBJECTIVES, SOURCES
from convexlift.sources.named import source_named
from convexlift.training import TrainingDiverged, fit

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -2.0])


def block(source: str = "squared", dim: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return source_named(source)(cl.ICNN(dim, hidden=(8, 8), strong_convexity=0.1, seed=0))


def flow(source: str = "squared") -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([block(source)])


def loss(task: Any, rows: Any = X) -> float:
    return float(task.freeze(rows).loss(rows))


def diverged(task: Any, rows: Any = X, **settings: Any) -> TrainingDiverged:
    with pytest.raises(TrainingDiverged) as caught:
        fit(task, rows, progress=False, **{"steps": 30, "lr": 1e3, **settings})
    return caught.value


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("source", SOURCES)
def test_a_rate_that_is_far_too_high_leaves_the_module_as_good_as_it_was(
    source: str, averaging: float
) -> None:
    task = flow(source)
    task.initialise(X)
    start = loss(task)
    error = diverged(task, averaging=averaging)
    assert math.isfinite(loss(task)) and loss(task) <= start
    assert str(error).endswith("the module is back at its state after 0 steps")
    with torch.no_grad():
        assert bool(task.freeze(X).log_prob(X).isfinite().all())


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("lr", [30.0, 1e5, 1e8])
def test_with_validation_too(lr: float, validated: bool) -> None:
    task = flow()
    held = X[:50]
    task.initialise(X[50:])
    start = loss(task, held)
    diverged(task, X[50:], validation=held if validated else None, lr=lr, steps=60)
    if validated:
        assert loss(task, held) <= start
    assert math.isfinite(loss(task, X))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_a_density(objective: str) -> None:
    torch.manual_seed(0)
    task = cl.LogConcaveDensity(block(), objective)
    task.initialise(X)
    start = loss(task)
    try:
        fit(task, X, steps=30, lr=1e6, progress=False)
    except TrainingDiverged:
        assert math.isfinite(loss(task)) and loss(task) <= start


def test_the_other_tasks() -> None:
    y = X.square().sum(1)
    regression = cl.ConvexRegression(block())
    regression.initialise((X, y))
    start = loss(regression, (X, y))
    diverged(regression, (X, y), lr=1e30)
    assert loss(regression, (X, y)) <= start


class Walk(nn.Module):
    """Goes well for a while, then ever worse, at evaluations too, then breaks."""

    def __init__(self, bad_from: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(4.0))
        self.bad_from = bad_from
        self.register_buffer("step", torch.tensor(0))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.step += 1
            if self.step > self.bad_from + 15:
                return self.m * torch.nan
            if self.step > self.bad_from:
                return -self.m.square()  # away, as fast as it goes
        return self.m.square()


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_a_good_state_outlives_worse_ones_after_it(averaging: float) -> None:
    walk = Walk(bad_from=41)
    # 41 steps make it good; then the loss that is trained on falls as the frozen model's rises.
    error = diverged(walk, torch.ones(4, 1), lr=0.5, steps=100, evaluate_every=10, averaging=averaging)
    assert walk.m.square() < 16.0 and "after 56 steps" in str(error)


def test_the_last_evaluation_is_kept_where_it_is_good() -> None:
    walk = Walk(bad_from=41)
    walk.bad_from = 6
    error = diverged(walk, torch.ones(4, 1), lr=1e-3, steps=100, evaluate_every=5)
    assert "back at its state after 5 steps" in str(error) or walk.m.square() <= 16.0


def test_a_start_that_is_not_finite_is_where_the_module_stays() -> None:
    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.ones(2))

        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            return (self.m * torch.nan).sum()

    lost = Lost()
    assert "the loss is nan" in str(diverged(lost, torch.ones(4, 1)))
    assert lost.m.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "freeze",
    [lambda data: len, lambda data: nn.Identity(), None],
    ids=["function", "module", "no loss in eval"],
)
def test_a_frozen_model_without_a_loss_is_not_judged(freeze: Callable[[Any], Any] | None) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.zeros(()))
            self.register_buffer("step", torch.tensor(0))

        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise NotImplementedError
            self.step += 1
            return self.m + (torch.nan if self.step > 7 else 0.0)

    own = Own()
    if freeze is not None:
        own.freeze = freeze  # type: ignore[method-assign, assignment]
    assert "back at its state after 5 steps" in str(diverged(own, torch.ones(4, 1), evaluate_every=5))


def test_a_resumed_run_that_has_no_good_state_says_so(tmp_path: Path) -> None:
    begun = flow()
    begun.initialise(X)
    start = loss(begun)
    diverged(begun, run_dir=tmp_path)
    assert loss(begun) <= start
    error = diverged(flow(), run_dir=tmp_path, resume=True)  # its checkpoint is of the step before
    assert re.search(r"back at its state after \d steps, which is no good either: begin anew$", str(error))
