"""Estimators and commands in whatever units the user has: see tests/tasks/test_units.py for the tasks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convexlift as cl
from convexlift.cli.main import main
from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor, LogConcaveDensity

SMALL: dict[str, Any] = {"hidden": (8, 8), "steps": 20, "batch_size": 64, "random_state": 0}
SHORT = ["--steps", "20", "--hidden", "8", "--depth", "2", "--batch-size", "64"]


def inputs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3))


def written(path: str, rows: np.ndarray, names: str = "a,b,c") -> str:
    np.savetxt(path, rows, delimiter=",", header=names, comments="", fmt="%.17g")
    return path


@cache
def score(unit: float) -> float:
    """Of the regression of a square, on rows that were held out."""
    regressor = ConvexRegressor(hidden=(16, 16), steps=300, learning_rate=0.01, random_state=0)
    regressor.fit(inputs(400), unit * (inputs(400) ** 2).sum(1))
    x = inputs(200, 1)
    return float(regressor.score(x, unit * (x**2).sum(1)))


@pytest.mark.parametrize("unit", [1e-6, 1e-4, 1e15, 1e30, 2.0**-100])
def test_a_regressor_scores_the_same_in_any_unit_of_the_targets(unit: float) -> None:
    """It was 0.27 at 1e-4, -0.50 at 1e-6, and diverged from 1e15."""
    assert score(1.0) > 0.98
    assert score(unit) == pytest.approx(score(1.0), abs=1e-3)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 1e7), (60.0, 1.7e9), (1e12, 0.0), (1e-25, 0.0)])
@pytest.mark.parametrize("kind", [ConvexPotentialFlow, LogConcaveDensity, ConvexRegressor])
def test_estimators_take_any_offset_and_unit_of_the_columns(kind: Any, factor: float, shift: float) -> None:
    x, columns = inputs(200), 1 if kind is LogConcaveDensity else 3
    x = x[:, :columns]
    y = () if kind is not ConvexRegressor else ((x**2).sum(1),)
    one = kind(**SMALL).fit(x, *y)
    moved = factor * x + shift
    other = kind(**SMALL).fit(moved, *y)
    if kind is ConvexRegressor:
        np.testing.assert_allclose(other.predict(moved), one.predict(x), atol=1e-3)
        return
    expected = one.score_samples(x) - columns * np.log(factor)
    np.testing.assert_allclose(other.score_samples(moved), expected, atol=1e-3)
    back = (other.sample(50) - shift) / factor
    np.testing.assert_allclose(back, one.sample(50), atol=1e-3)
    assert len(np.unique(back)) == back.size


@pytest.mark.parametrize("unit", [2.0**-100, 1e-4, 1e15, 2.0**100])
def test_sample_weights_of_an_estimator_count_by_their_ratios(unit: float) -> None:
    x, weights = inputs(200)[:, :1], np.random.default_rng(1).uniform(0.5, 2, 200)
    one = LogConcaveDensity(**SMALL).fit(x, sample_weight=weights)
    other = LogConcaveDensity(**SMALL).fit(x, sample_weight=unit * weights)
    np.testing.assert_allclose(other.score_samples(x), one.score_samples(x), atol=1e-3)
    assert other.history_.best_validation == pytest.approx(one.history_.best_validation, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["flow", "density"])
def test_the_commands_centre_before_they_cast(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of Unix times, of which float32 tells 29 apart, beside a column of 1e-9."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(300, 2)) * [600.0, 1e-9] + [1.7e9, 0.0]
    written("rows.csv", x, "t,q")
    assert main(["train", kind, "--data", "rows.csv", "--out", "run", "--dtype", dtype, *SHORT]) == 0
    model = cl.load("run/model.safetensors")
    assert model.dtype == getattr(torch, dtype)
    config = json.loads(Path("run/config.json").read_text())
    assert config["dtype"] == dtype
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "rows.csv"]) == 0
    told = float(capsys.readouterr().out.partition(": ")[2].split()[0])
    exact = float(np.log([600.0, 1e-9]).sum() + np.log(2 * np.pi) + 1)
    assert told == pytest.approx(exact, abs=1.0)
    assert main(["sample", "run", "-n", "200", "--out", "draws.csv"]) == 0
    draws = np.loadtxt("draws.csv", delimiter=",", skiprows=1)
    assert len(np.unique(draws[:, 0])) == 200
    assert all(abs(np.log(draws.std(0) / [600.0, 1e-9])) < np.log(3))
    if kind == "flow":
        assert main(["transform", "run", "--data", "rows.csv", "--out", "z.csv"]) == 0
        z = np.loadtxt("z.csv", delimiter=",", skiprows=1)
        assert len(np.unique(z[:, 0])) == 300 and 0.3 < z.std() < 3


def test_another_dtype_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written("rows.csv", inputs(50))
    assert main(["train", "flow", "--data", "rows.csv", "--out", "run", "--dtype", "float16"]) != 0
    assert "unknown dtype 'float16'; known: float32, float64" in capsys.readouterr().err
    assert not Path("run").exists()
