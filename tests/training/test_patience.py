"""Stopping early: where validation has risen for long by default, after so many evaluations on request."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convexlift as cl
from convexlift.cli.main import main
from convexlift.sklearn import ConvexPotentialFlow
from convexlift.study import training
from convexlift.study.cells import Cell, Named, Setting
from convexlift.study.protocol import Budget
from convexlift.training import History, fit


class Follows(nn.Module):
    """A frozen model with the validation losses of a list, one an evaluation."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))
        self.losses = iter(losses)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self.m.square() + self.m

    def freeze(self, data: torch.Tensor) -> nn.Module:
        frozen = nn.Module()
        value = torch.tensor(next(self.losses), dtype=torch.float64)
        frozen.loss = lambda batch: value  # type: ignore[method-assign, assignment]
        return frozen


def followed(losses: list[float], **settings: Any) -> History:
    rows, held = torch.ones(4, 1), torch.ones(2, 1)
    count = len(losses)
    return fit(
        Follows(losses), rows, validation=held, steps=4 * count, evaluate_every=4, progress=False, **settings
    )


NOISE = (0.1 * torch.randn(25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).tolist()
RISING = [5.0 - k for k in range(3)] + [3.0 + 0.1 * k for k in range(1, 23)]


@pytest.mark.parametrize(
    ("losses", "evaluations"),
    [
        (RISING, 15),  # the best is the third of 25: twelve more
        ([float(k) for k in range(25)], 13),
        ([x + 0.02 * y for x, y in zip(RISING, NOISE, strict=True)], 15),
        ([-float(k) for k in range(25)], 25),  # falls
        ([2.0] * 25, 25),  # stays
        ([1.0 + y for y in NOISE], 25),  # moves about
        ([0.0, 9.0] + [8.0 - 0.1 * k for k in range(23)], 25),  # comes down again
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 9),  # few evaluations
        ([float(k) for k in range(12)], 10),
    ],
)
def test_a_run_ends_where_validation_has_risen_for_half_of_it(losses: list[float], evaluations: int) -> None:
    history = followed(losses)
    assert len(history.steps) == evaluations
    assert history.stopped == ("finished" if evaluations == len(losses) else "patience")
    assert history.best_validation == min(losses[:evaluations])
    assert len(followed(losses, patience=None).steps) == len(losses)


def test_a_number_counts_evaluations_and_needs_validation() -> None:
    assert len(followed(RISING, patience=4).steps) == 7
    with pytest.raises(ValueError, match="patience needs validation data"):
        fit(Follows([]), torch.ones(4, 1), steps=4, patience=3)
    with pytest.raises(ValueError, match="must be a number of evaluations, 'rising' or None; got 'soon'"):
        followed(RISING, patience="soon")
    with pytest.raises(TypeError, match="patience must be an int; got 0.5"):
        followed(RISING, patience=0.5)
    with pytest.raises(ValueError, match="patience must be at least 1; got 0"):
        followed(RISING, patience=0)


def test_without_validation_nothing_ends_a_run() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.zeros(()))

        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            return (batch - self.m).square().mean()

    assert fit(Mean(), torch.ones(4, 1), steps=30, progress=False).stopped == "finished"


def test_a_stop_is_the_same_after_an_interruption(tmp_path: Path) -> None:
    whole = followed(RISING)

    def stop(event: cl.FitEvent) -> None:
        if event.step == 24:
            raise LookupError

    with pytest.raises(LookupError):
        followed(RISING, run_dir=tmp_path, callbacks=[stop])
    # Five evaluations are in its checkpoint.
    rows, held = torch.ones(4, 1), torch.ones(2, 1)
    rest = Follows(RISING[5:])
    settings: dict[str, Any] = {"steps": 100, "evaluate_every": 4, "progress": False}
    again = fit(rest, rows, validation=held, run_dir=tmp_path, resume=True, **settings)
    assert (again.steps, again.stopped) == (whole.steps, "patience")


def test_comparisons_train_for_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def noted(*arguments: Any, **settings: Any) -> History:
        told.append(settings["patience"])
        return fit(*arguments, **settings)

    monkeypatch.setattr(training, "fit", noted)
    tiny = Budget("tiny", 2, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
    training.train_cell(Setting(Named("logistic"), tiny), Cell("lift", 0.01, 0, 2))
    assert told == [None]


@pytest.fixture
def overfitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that overfits: few rows, a high rate."""
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    lines = [",".join(f"{value:.6g}" for value in row) for row in rows.tolist()]
    Path("rows.csv").write_text("\n".join(["a,b,c,d,e,f", *lines]) + "\n")
    more = ["--steps", "150", "--hidden", "16", "--depth", "2", "--lr", "0.1", "--validation-fraction", "0.4"]
    return ["train", "flow", "--data", "rows.csv", "--out", "run", *more]


def test_the_command_says_that_it_stopped_and_can_train_on(
    overfitted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(overfitted) == 0
    out = capsys.readouterr().out
    result = json.loads(Path("run/result.json").read_text())
    assert result["stopped"] == "patience" and result["steps"] < 150
    assert (
        f"stopped after step {result['steps']}: validation has not been better since step "
        f"{result['best_step']} (--patience none trains to the end)\n"
    ) in out
    for k, off in enumerate(("none", "0")):
        assert main([*overfitted, "--out", f"run{k}", "--patience", off]) == 0
        assert json.loads(Path(f"run{k}/result.json").read_text())["steps"] == 150
        assert "stopped after" not in capsys.readouterr().out
        best = json.loads(Path(f"run{k}/result.json").read_text())["best_step"]
        assert best == result["best_step"]
    assert main([*overfitted, "--out", "few", "--patience", "2"]) == 0
    assert json.loads(Path("few/result.json").read_text())["steps"] < result["steps"]


def test_an_estimator_stops_early_unless_told_otherwise() -> None:
    X = np.random.default_rng(0).normal(size=(30, 6))
    settings: dict[str, Any] = {"hidden": (16, 16), "steps": 150, "learning_rate": 0.1, "random_state": 0}
    settings |= {"validation_fraction": 0.4}
    assert ConvexPotentialFlow(**settings).fit(X).history_.stopped == "patience"
    assert ConvexPotentialFlow(patience=None, **settings).fit(X).history_.stopped == "finished"
    assert inspect.signature(ConvexPotentialFlow).parameters["patience"].default == "rising"
