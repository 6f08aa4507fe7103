"""The times of training steps are those of the comparison's own optimiser."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from convexlift.study import speed
from convexlift.study.cells import Named, Setting
from convexlift.study.protocol import budget_for
from convexlift.training.fit import Run


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_steps_are_timed_with_the_budget_s_optimiser(
    optimizer: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "WARM_UP", 0)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    runs: list[Run] = []

    def recorded(*arguments: object) -> Run:
        runs.append(Run(*arguments))  # type: ignore[arg-type]
        return runs[-1]

    monkeypatch.setattr(speed, "Run", recorded)
    budget = dataclasses.replace(budget_for("density", "quick"), optimizer=optimizer)
    times = speed.step_times(Setting(Named("logistic"), budget), ["softplus"])
    assert list(times) == ["softplus"] and times["softplus"] > 0
    assert [type(run.optimizer) for run in runs] == [kind]
