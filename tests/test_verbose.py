"""What ``verbose`` of the estimators shows, alone and in a grid search."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from convexlift import sklearn as estimators

X = np.random.default_rng(0).normal(size=(60, 2))
Y = (X**2).sum(1)
OPTIONS: dict[str, Any] = {"hidden": (4,), "steps": 50, "random_state": 0}
LINE = re.compile(
    r"ConvexRegressor: step (\d+) of 50, loss [\d.e+-]+, validation [\d.e+-]+, "
    r"best [\d.e+-]+ at step \d+, [\d.]+ s"
)


def test_silence_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    estimators.ConvexRegressor(**OPTIONS).fit(X, Y)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verbose", [1, 2, True, np.int64(1)])
def test_a_line_at_each_evaluation_where_there_is_no_terminal(
    verbose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    estimators.ConvexRegressor(**OPTIONS, verbose=verbose).fit(X, Y)
    out, err = capsys.readouterr()
    steps = [int(LINE.fullmatch(line)[1]) for line in err.splitlines()]  # type: ignore[index]
    assert steps == list(range(2, 51, 2)) and out == ""


def test_without_validation_nothing_is_said_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    estimators.ConvexPotentialFlow(**OPTIONS, verbose=1, validation_fraction=0).fit(X)
    err = capsys.readouterr().err
    assert err.startswith("ConvexPotentialFlow: step 2 of 50, loss ") and "validation" not in err


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    estimators.ConvexRegressor(**OPTIONS, verbose=1).fit(X, Y)
    assert "ConvexRegressor: step" not in capsys.readouterr().err
    estimators.ConvexRegressor(**OPTIONS, verbose=2).fit(X, Y)
    assert "ConvexRegressor: step 50 of 50" in capsys.readouterr().err


def test_a_grid_search_shows_what_its_fits_do(capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"learning_rate": [0.01, 0.02]}
    GridSearchCV(estimators.ConvexRegressor(**OPTIONS, patience=None, verbose=1), grid, cv=2).fit(X, Y)
    assert capsys.readouterr().err.count("step 50 of 50") == 5  # two times two, and the refit


def test_what_is_shown_changes_nothing() -> None:
    scores = {estimators.ConvexRegressor(**OPTIONS, verbose=v).fit(X, Y).score(X, Y) for v in (0, 1, 2)}
    assert len(scores) == 1
