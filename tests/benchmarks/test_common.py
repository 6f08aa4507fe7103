"""What the scripts share: options that tell their command, cells that are kept, and their first lines."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlift as cl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = ("timing", "baselines", "common", "comparisons")
SCRIPTS = [
    file
    for file in sorted(BENCHMARKS.glob("*/*.py"))
    if file.stem not in SHARED and 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_the_first_lines_say_how_a_script_is_run(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert f"\n    python benchmarks/{file.parent.name}/{file.name} " in doc


def test_a_result_tells_the_command_without_paths(script: Any, tmp_path: Path) -> None:
    timing = script("timing")
    parser = timing.arguments("benchmarks/timings/mine.py", "What it does.", steps=500, rate=0.1)
    parser.add_argument("problem")
    parser.add_argument("--sizes", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--no-skips", action="store_true")
    parser.add_argument("--data", type=Path)
    line = ["moon", "--sizes", "1", "2", "--steps", "9", "--no-skips", "--data", str(tmp_path)]
    options = timing.parsed(parser, [*line, "--out", str(tmp_path / "result.json")])
    command = "python benchmarks/timings/mine.py moon --data DATA --no-skips --steps 9"
    assert options.command == command and torch.get_num_threads() == 1
    timing.write(options, {"figure": 1}, lambda result: f"a table of {result['figure']}")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["command"] == command and written["figure"] == 1 and "torch" in written["environment"]


def test_cells_are_run_once_until_the_study_changes(script: Any, tmp_path: Path) -> None:
    common, study, out = script("common"), tmp_path / "mine.py", tmp_path / "mine.json"
    study.write_text("import parts\nRATE = 1\n")
    (tmp_path / "parts.py").write_text("WIDTH = 2\n")
    ran: list[int] = []

    def work(cell: Mapping[str, Any]) -> dict[str, Any]:
        ran.append(cell["x"])
        return {"twice": 2 * cell["x"]}

    def found() -> list[int]:
        cells = [{"x": x} for x in (1, 2, 1)]
        outcomes = common.Ledger(out, str(study)).run_all(cells, work)
        assert all(outcome["seconds"] >= 0 for outcome in outcomes)
        return [outcome["twice"] for outcome in outcomes]

    assert found() == found() == [2, 4, 2] and ran == [1, 2]
    study.write_text('"""Only said."""\nimport parts\nRATE = 1\n')
    assert common.Ledger(out, str(study)).run({"x": 2}, lambda: {"twice": 0})["twice"] == 4
    for file in (study, tmp_path / "parts.py"):
        common.code_digest.cache_clear()
        file.write_text(file.read_text() + "CHANGED = True\n")
        ran.clear()
        assert found() == [2, 4, 2] and ran == [1, 2]


def test_processes_find_what_one_finds(script: Any) -> None:
    common, cells = script("common"), [{"x": x} for x in range(4)]
    for jobs in (1, 2):
        outcomes = common.Ledger(None, common.__file__).run_all(cells, dict, jobs)
        assert [outcome["x"] for outcome in outcomes] == [0, 1, 2, 3]


def test_a_diverged_run_has_no_losses(script: Any) -> None:
    common, rows = script("common"), torch.randn(64, 2)
    flow = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(2, hidden=(4,), seed=0))])
    assert common.train(flow, rows, rows, steps=5, batch_size=8, lr=1e12) is None
    assert common.mean([1.0, None]) == float("inf") and common.standard_error([1.0, None]) is None
