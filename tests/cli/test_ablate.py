"""``convexlift ablate``, called as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convexlift.cli.main import main
from convexlift.study import ablation, protocol, speed
from convexlift.study.protocol import Budget

TINY = Budget("quick", 3, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(protocol.BUDGETS["regression"], "quick", TINY)  # type: ignore[arg-type]
    monkeypatch.setattr(ablation, "ABLATION_ARMS", ("lift", "lift-no-slack", "softplus"))
    monkeypatch.setattr(speed, "ROUNDS", 2)


def test_ablate_leaves_a_result_a_table_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["ablate", "regression-square", "--optimizer", "sgd", "--rates", "0.001", "0.002", "--jobs", "1"]
        )
        == 0
    )
    folder = Path("runs/ablate-regression-square-sgd")
    result = json.loads((folder / "result.json").read_text())
    assert result["protocol"]["rates"] == [0.001, 0.002]
    assert result["protocol"]["command"] == (
        "convexlift ablate regression-square --optimizer sgd --budget quick --rates 0.001 0.002"
    )
    shown = capsys.readouterr().out
    assert (folder / "effects.md").read_text() in shown and "lift-no-slack" in shown
    assert (folder / "report.html").stat().st_size > 0
    assert main(["report", str(folder)]) == 0


def test_all_that_decides_the_result_is_in_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(problem: str, **options: object) -> None:
        assert (options["seeds"], options["steps"], options["rates"]) == (1, 3, [0.002])
        assert options["command"] == (
            f"convexlift ablate {problem} --optimizer adam --budget quick --rates 0.002 --seeds 1 --steps 3"
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "ablate", noted)
    assert main("ablate gumbel --rates 0.002 --seeds 1 --steps 3 --jobs 1 --no-resume".split()) == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablate", "gambel"], "error: unknown problem 'gambel'; did you mean 'gumbel'?"),
        (
            ["ablate", "gumbel", "--optimizer", "muon"],
            "error: unknown optimizer 'muon'; known: adam, sgd, soap",
        ),
        (["ablate", "gumbel", "--rates", "fast"], "error: --rates: 'fast' is not a number"),
        (["ablate", "gumbel", "--budget", "huge"], "error: unknown budget 'huge'"),
    ],
)
def test_one_line_for_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) != 0
    told = capsys.readouterr().err
    assert told.startswith(message) and len(told.splitlines()) == 1


def test_a_folder_of_something_else_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/ablate-gumbel-adam")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"schema": 1, "problem": "beta", "arms": {}}')
    assert main(["ablate", "gumbel"]) == 1
    assert "holds a comparison on beta" in capsys.readouterr().err
