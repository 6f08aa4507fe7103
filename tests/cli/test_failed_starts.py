"""A start that fails leaves nothing behind, and a run that diverged makes way for the corrected command."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlift as cl
from convexlift.cli.main import main
from convexlift.training import TrainingDiverged, fit

SMALL = ["--steps", "6", "--hidden", "4", "--depth", "2", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    write("rows.csv", rows)
    large = rows.clone()
    large[7, 1] = 1e38
    write("large.csv", large)


def write(path: str, rows: torch.Tensor) -> None:
    lines = [",".join(f"{value:.9g}" for value in row) for row in rows.tolist()]
    Path(path).write_text("\n".join(["a,b", *lines]) + "\n")


def call(kind: str = "flow", data: str = "rows.csv", *more: str) -> list[str]:
    return ["train", kind, "--data", data, "--out", "runs/first", *SMALL, *more]


FAILURES = {
    "rate": ("--lr", "-1"),
    "infinite rate": ("--lr", "inf"),
    "decay": ("--weight-decay", "1e9"),
    "averaging": ("--averaging", "1"),
    "patience": ("--patience", "soon"),
    "negative patience": ("--patience", "-3"),
    "device": ("--device", "abacus"),
    "share": ("--validation-fraction", "0.999"),
    "source": ("--source", "lfit"),
    "sharpness": ("--sharpness", "-1"),
    "tensorboard": ("--tensorboard", "rows.csv/board"),
    "seed": ("--seed", "-1"),
}


@pytest.mark.parametrize("kind", ["flow", "density"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_wrong_setting_leaves_nothing(failure: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call(kind, "rows.csv", *FAILURES[failure])) in (1, 2)
    assert "error: " in capsys.readouterr().err
    assert sorted(map(str, Path().iterdir())) == ["large.csv", "rows.csv"]
    assert main(call(kind)) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_accelerator_leaves_nothing() -> None:
    assert main(call("flow", "rows.csv", "--device", "cuda")) == 1
    assert main(["compare", "logistic", "--device", "cuda", "--out", "runs/here"]) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_a_table_that_cannot_be_trained_on_does_not_block_the_folder(kind: str) -> None:
    code = main(call(kind, "large.csv"))  # one entry of 1e38
    assert main(call(kind)) == 0, code
    assert json.loads(Path("runs/first/result.json").read_text())["data"] == "rows.csv"


def test_a_run_that_diverged_is_begun_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call("flow", "rows.csv", "--lr", "1e9")) == 1
    assert "training diverged after" in capsys.readouterr().err
    assert json.loads(Path("runs/first/result.json").read_text())["stopped"] == "diverged"
    assert main(call("flow", "rows.csv", "--resume")) == 1
    assert capsys.readouterr().err == (
        "error: cannot resume runs/first: lr was 1000000000.0 and is now 0.032; that run came to nothing: "
        "without resume it is begun anew\n"
    )
    assert main(call()) == 0
    assert capsys.readouterr().err == "runs/first: the run there came to nothing: begun anew\n"
    assert json.loads(Path("runs/first/config.json").read_text())["lr"] == 0.032
    steps = [json.loads(line)["step"] for line in Path("runs/first/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert main(call()) == 1  # and now it holds a run
    assert "runs/first holds config.json already; pass --resume" in capsys.readouterr().err


def test_its_tensorboard_folder_makes_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    more = ["--tensorboard", "board"]
    assert main(call("flow", "rows.csv", *more)) == 0
    result = Path("runs/first/result.json")
    result.write_text(json.dumps({**json.loads(result.read_text()), "stopped": "diverged"}))
    assert main(call("flow", "rows.csv", "--lr", "0.01", *more)) == 0
    assert main(["train", "flow", "--data", "rows.csv", "--out", "runs/other", *SMALL, *more]) == 1


def test_without_the_report_s_packages_no_comparison_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for line in (["compare", "logistic"], ["ablate", "gumbel"]):
        assert main(line) == 1
        assert "pip install 'convexlift[report]'" in capsys.readouterr().err
    assert not Path("runs").exists()


# The same of `fit`.


class Mean(nn.Module):
    def __init__(self, breaks_at: int = 10**9) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.tensor(0))
        self.breaks_at = breaks_at

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            if self.seen > self.breaks_at:
                return self.m.sum() * torch.nan
        return (batch - self.m).square().mean()


def run(module: nn.Module, **settings: Any) -> cl.History:
    return fit(module, torch.ones(8, 2), run_dir="run", progress=False, **{"steps": 50, **settings})


@pytest.mark.parametrize("breaks_at", [0, 1, 20])
def test_fit_begins_a_diverged_run_anew(breaks_at: int) -> None:
    with pytest.raises(TrainingDiverged):
        run(Mean(breaks_at))
    with pytest.raises(
        ValueError, match=r"lr was 0.001 and is now 0.01; that run came to nothing: without resume"
    ):
        run(Mean(), lr=0.01, resume=True)
    assert run(Mean(), lr=0.01).stopped == "finished"
    with pytest.raises(FileExistsError, match="run already holds a run; pass resume=True or another run_dir"):
        run(Mean(), lr=0.01)


@pytest.mark.parametrize("left", [("config.json",), ("config.json", "state.pt")])
def test_a_run_that_was_killed_before_its_first_evaluation_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    def die(*_: object) -> None:
        raise SystemExit  # as a kill does, without a word

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(torch.optim.Adam, "step", die)
        run(Mean())
    for path in Path("run").iterdir():
        if path.name not in left:
            path.unlink()
    assert run(Mean(), lr=0.01).stopped == "finished"


def test_a_run_that_was_interrupted_before_its_first_evaluation_is_kept() -> None:
    class Interrupted(Mean):
        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            if self.training and self.seen == 4:
                signal.raise_signal(signal.SIGINT)
            return super().loss(batch)

    assert run(Interrupted(), evaluate_every=25).stopped == "interrupted"
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(Mean())


@pytest.mark.parametrize("state", [b"", b"torn"])
def test_a_damaged_checkpoint_is_no_reason_to_begin_anew(state: bytes) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    Path("run/state.pt").write_bytes(state)
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(Mean())


def test_a_kill_while_a_diverged_run_makes_way_leaves_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink
    for k in range(5):
        with pytest.raises(TrainingDiverged):
            run(Mean(20))
        calls = 0

        def dying(self: Path, missing_ok: bool = False, k: int = k) -> None:
            nonlocal calls
            if self.name != ".lock":
                if calls == k:
                    raise SystemExit
                calls += 1
            unlink(self, missing_ok)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Path, "unlink", dying)
            run(Mean(), lr=0.01)
        with pytest.raises(TrainingDiverged):
            run(Mean(20), lr=0.02)


def test_nothing_is_written_before_fit_has_checked_everything() -> None:
    for settings in (
        {"lr": -1.0},
        {"steps": 0},
        {"device": "abacus"},
        {"optimizer": lambda groups: None},
        {"dtype": torch.int64},
        {"patience": "soon"},
        {"compile": 3},
    ):
        with pytest.raises((ValueError, TypeError)):
            run(Mean(), **settings)
    with pytest.raises(ValueError, match="in float32 have an infinity"):
        fit(Mean(), torch.full((4, 2), 1e39, dtype=torch.float64), run_dir="run", progress=False)
    flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(4,))])
    with pytest.raises(ValueError, match="constant"):
        fit(flow, torch.ones(8, 2), run_dir="run", progress=False)
    assert not Path("run").exists()
