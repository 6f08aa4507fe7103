"""``search="quick"`` of the estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from convexlift import sklearn as estimators

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)) @ np.array([[1.0, 0.95], [0.0, 0.1]])
Y = np.abs(X).sum(1)
TINY: dict[str, Any] = {"hidden": (4,), "steps": 48, "search": "quick", "random_state": 0}


def fitted(kind: str, **change: Any) -> Any:
    made = getattr(estimators, kind)(**{**TINY, **change})
    return made.fit(X, Y) if kind == "ConvexRegressor" else made.fit(X)


@pytest.mark.parametrize(
    ("kind", "searched"),
    [
        ("ConvexPotentialFlow", {"sharpness", "weight_decay", "whiten", "learning_rate"}),
        ("LogConcaveDensity", {"sharpness", "weight_decay", "whiten", "learning_rate"}),
        ("ConvexRegressor", {"sharpness", "weight_decay", "slopes", "learning_rate"}),
    ],
)
def test_what_is_chosen_is_trained(kind: str, searched: set[str]) -> None:
    made = fitted(kind)
    assert made.get_params() == getattr(estimators, kind)(**TINY).get_params()  # they stay as they are
    assert set(made.setting_) >= {*searched, "steps"}
    for name in searched:
        assert len({run[name] for run in made.search_}) > 1, name
    assert made.history_.steps[-1] == made.setting_["steps"] <= TINY["steps"]
    again = getattr(estimators, kind)(**{**TINY, "search": None, **made.setting_})
    again.fit(X, Y) if kind == "ConvexRegressor" else again.fit(X)
    assert again.history_.validation == made.history_.validation
    assert np.isfinite(made.score(X, Y))


def test_one_and_two_jobs_choose_the_same() -> None:
    one, two = fitted("ConvexRegressor", steps=16), fitted("ConvexRegressor", steps=16, n_jobs=2)
    timeless = [[{**run, "seconds": 0} for run in made.search_] for made in (one, two)]
    assert timeless[0] == timeless[1]
    assert np.array_equal(one.predict(X), two.predict(X))


def test_it_tells_of_every_run_and_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    made = clone(fitted("ConvexRegressor", verbose=2, n_jobs=None))
    told = capsys.readouterr().err
    assert "ConvexRegressor: search, run 1 of 3 steps, loss " in told and " s left\n" in told
    assert "sharpness  weight_decay  slopes  lr" in told and "chosen" in told
    assert not hasattr(made, "search_")


def test_a_density_of_another_objective_is_not_whitened_by_its_loss() -> None:
    assert not any(run["whiten"] for run in fitted("LogConcaveDensity", objective="score").search_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": "quik"}, "^unknown search 'quik'; known: quick; did you mean 'quick'[?]$"),
        ({"warm_start": True}, "^a search chooses networks anew: set warm_start=False, or search=None$"),
        ({"validation_fraction": 0}, "^a search needs rows to choose by: set validation_fraction above 0$"),
        ({"warmup": 5}, "^a search trains for other numbers of steps too: set warmup=0$"),
    ],
)
def test_what_cannot_be_searched(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted("ConvexPotentialFlow", **change)


def test_whitening_is_a_parameter() -> None:
    plain, white = (fitted("ConvexPotentialFlow", search=None, whiten=w) for w in (False, np.bool_(True)))
    assert not plain.model_.whiten and white.model_.whiten
    assert fitted("LogConcaveDensity", search=None, whiten=True).model_.whiten
