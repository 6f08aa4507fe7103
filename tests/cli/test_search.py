"""``convexlift train --search quick``, and ``--whiten``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convexlift as cl
from convexlift.cli import train
from convexlift.cli.main import main

SMALL = "--data rows.csv --hidden 4 --depth 1 --steps 48 --jobs 1".split()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 2)) @ np.array([[1.0, 0.95], [0.0, 0.1]])
    text = "\n".join(f"{a:.8g},{b:.8g}" for a, b in x)
    Path("rows.csv").write_text(f"a,b\n{text}\n")


def read(file: str) -> Any:
    return json.loads(Path(file).read_text())


@pytest.mark.parametrize("kind", ["flow", "density", "regression --target b"])
def test_a_search_is_shown_kept_and_trained_from(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", *kind.split(), *SMALL, "--search", "quick", "--out", "run"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert re.search(r"^sharpness +weight_decay .*3 steps +6 steps", said, re.M), said
    assert re.search(r"^search and training took .* times training with the settings given$", said, re.M)
    (chosen,) = [line.split() for line in said.splitlines() if line.endswith("chosen")]
    asked = read("run/train.json")["options"]
    assert float(chosen[0]) == asked["sharpness"] and float(chosen[1]) == asked["weight_decay"]
    assert read("run/result.json")["steps"] == asked["steps"] in (3, 6, 24, 48)
    assert len(read("run/search.json")["trials"]) > 10
    assert main(["evaluate", "run", "--data", "rows.csv"]) == 0
    assert main(["freeze", "run", "--force"]) == 0  # which builds the model that was chosen
    if kind == "flow":
        assert cl.load("run").whiten == asked["whiten"]
        assert main(call) == 1 and "pass --resume to go on" in capsys.readouterr().err


def test_an_interrupted_search_is_resumed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, made = train._built, list[dict[str, Any]]()

    def interrupted(training: Any, dim: int, **setting: Any) -> Any:
        made.append(setting)
        if len(made) == 4:
            raise KeyboardInterrupt
        return built(training, dim, **setting)

    monkeypatch.setattr(train, "_built", interrupted)
    call = ["train", "flow", *SMALL, "--search", "quick", "--out", "run"]
    assert main(call) == 130
    assert "run keeps the run: the same command with --resume goes on" in capsys.readouterr().err
    assert main(call) == 1
    assert "run holds search.json already; pass --resume" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0
    assert len(made) == len(read("run/search.json")["trials"]) + 1
    assert cl.load("run").whiten == read("run/train.json")["options"]["whiten"]


def test_it_is_refused_before_torch_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "flow", *SMALL, "--search", "quik", "--out", "run"]) == 1
    assert "unknown search 'quik'; known: quick; did you mean 'quick'?" in capsys.readouterr().err
    Path("rows.csv").write_text("a\n" + "".join(f"{k * k}\n" for k in range(30)))
    assert main(["train", "flow", *SMALL, "--search", "quick", "--out", "run"]) == 1
    assert "a search needs at least 40 rows to choose settings by; got 30" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_whiten(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in (("plain", []), ("white", ["--whiten"])):
        assert main(["train", kind, *SMALL[:-4], "--steps", "4", *more, "--out", name]) == 0
    assert cl.load("white").whiten and not cl.load("plain").whiten
