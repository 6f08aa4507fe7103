"""Data take short paths: a row of a file to the loss, a cell of a comparison to its stored outcome."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "walk.py"

# From the ground to the roof. What stands in one place may call its neighbours.
FLOORS = (
    {
        "checks",
        "files",
        "locks",
        "seeds",
        "data",
        "table_columns",
        "table_text",
        "table_files",
        "names",
        "version",
        "freezing",
        "defaults",
        "arrays",
        "origins",
        "screening",
        "counting",
        "processes",
    },
    {"calculus"},
    {"architectures"},
    {"sources"},
    {"integration", "objectives"},
    {"tasks"},
    {"training"},
    {"tuning", "distribution", "export", "saving", "testing"},
    {
        "distribution",
        "export",
        "mechanism",
        "plots",
        "problems",
        "saving",
        "sklearn",
        "tensorboard",
        "testing",
    },
    {"study"},
    {"cli", "__main__", "__init__"},
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("walk", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["walk"] = module
    spec.loader.exec_module(module)
    return module


def floor(place: str) -> int:
    part = place.split("/")[0].removesuffix(".py")
    return next(level for level, parts in enumerate(FLOORS) if part in parts)


def upward(calls: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((caller, called) for caller, called in calls if floor(called) > floor(caller))


def test_a_row_passes_through_few_files(script) -> None:
    walk = script.walk_of_a_row()
    assert len(set(walk.files) - {"checks.py", "screening.py"}) <= 10  # which only look at it
    assert {"table_files.py", "cli/train.py", "training/fit.py", "tasks/flow.py"} <= set(walk.files)
    assert upward(walk.calls) == []


def test_a_cell_passes_through_few_files(script) -> None:
    walk = script.walk_of_a_cell()
    assert len(walk.files) <= 8
    assert {"study/comparison.py", "study/training.py"} <= set(walk.files)
    # A callback of `fit`, how long it may take, the draws of a simulator, the loss that is averaged.
    given = {
        ("training/fit.py", "study/training.py"),
        ("study/comparison.py", "cli/compare.py"),
        ("data.py", "problems/simulated/gallery.py"),
        ("data.py", "tasks/density.py"),
    }
    assert set(upward(walk.calls)) <= given


def test_an_upward_call_is_seen() -> None:
    calls = {("calculus/solve.py", "tasks/flow.py"), ("cli/train.py", "training/fit.py")}
    assert upward(calls) == [("calculus/solve.py", "tasks/flow.py")]


def test_a_value_is_followed_through_what_holds_it(script) -> None:
    def carries(value: object) -> bool:
        return any(part == "value" for part in script.held(value))

    assert carries("value") and carries(("value", 1)) and carries({"value": 1}) and carries({1: "value"})
    assert not carries(["other"]) and not carries((("value",),))
    with pytest.raises(RuntimeError, match="the value did not arrive"):
        script.walk(lambda: None, carries, lambda frame, given: False)
