"""Settings that nobody has chosen are the same in `fit`, estimators, command line and README."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlift as cl
from convexlift import sklearn as estimators
from convexlift.cli.kinds import KINDS
from convexlift.cli.main import main
from convexlift.defaults import ANY, DENSITY, FLOW, REGRESSION, Defaults

TASKS: dict[str, tuple[Defaults, type, type]] = {
    "flow": (FLOW, cl.ConvexPotentialFlow, estimators.ConvexPotentialFlow),
    "density": (DENSITY, cl.LogConcaveDensity, estimators.LogConcaveDensity),
    "regression": (REGRESSION, cl.ConvexRegression, estimators.ConvexRegressor),
}
# What the estimators call otherwise.
CALLED = {"lr": "learning_rate", "hidden": "hidden"}
SHARED = [f.name for f in fields(Defaults) if f.name not in ("width", "depth", "soap_lr")]


@pytest.mark.parametrize("kind", TASKS)
def test_estimators_and_tasks(kind: str) -> None:
    usual, task, estimator = TASKS[kind]
    parameters = estimator().get_params()
    assert task.defaults is usual  # type: ignore[attr-defined]
    assert tuple(parameters["hidden"]) == usual.hidden
    assert {name: parameters[CALLED.get(name, name)] for name in SHARED} == {
        name: getattr(usual, name) for name in SHARED
    }


@pytest.mark.parametrize("kind", TASKS)
def test_the_command_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    usual, command = TASKS[kind][0], KINDS[kind]
    given: dict[str, Any] = {"data": Path("x.csv"), "out": Path("run")}
    training = command(**given, **({"target": "y"} if kind == "regression" else {}))
    assert training.layers == usual.hidden
    assert {name: getattr(training, name) for name in SHARED} == {
        name: getattr(usual, name) for name in SHARED
    }
    assert main(["train", kind, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("source", "depth", "sharpness", "steps", "lr", "schedule", "batch_size"):
        flag = option.replace("_", "-")
        told = re.search(rf"--{flag} [A-Z]+ .*?\[default: ([^];]+)", shown)
        assert told is not None and told[1] == str(getattr(usual, option))


def test_fit() -> None:
    told = {name: each.default for name, each in inspect.signature(cl.fit).parameters.items()}
    for name in ("batch_size", "weight_decay", "averaging", "schedule"):
        assert told[name] == getattr(ANY, name)


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_fit_takes_the_rate_and_the_steps_of_the_task(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = TASKS[kind][0]
    seen: list[Any] = []
    module = importlib.import_module("convexlift.training.fit")

    def noted(**told: Any) -> None:
        seen.append(told)
        raise ZeroDivisionError

    monkeypatch.setattr(module, "Settings", noted)
    net = cl.ICNN(1, hidden=(4,), seed=0)
    task = cl.ConvexPotentialFlow([net]) if kind == "flow" else cl.LogConcaveDensity(net)
    for more, rate in (
        ({}, usual.lr),
        ({"lr": 0.5}, 0.5),
        ({"optimizer": "sgd"}, ANY.lr),
        ({"optimizer": "soap"}, usual.soap_lr),
    ):
        with pytest.raises(ZeroDivisionError):
            cl.fit(task, torch.randn(9, 1), **more)  # type: ignore[arg-type]
        assert (seen[-1]["lr"], seen[-1]["steps"]) == (rate, usual.steps)


def test_the_readme() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (flow|density|regression) \| (.+) \|$", text, re.MULTILINE)
    assert [kind for kind, _ in rows] == list(TASKS)
    for kind, told in rows:
        usual = TASKS[kind][0]
        hidden = ", ".join(map(str, usual.hidden))
        figures = f"{usual.sharpness:g} | {usual.steps:,} | {usual.batch_size} | {usual.lr}"
        assert told == f"{hidden} | {figures}"
