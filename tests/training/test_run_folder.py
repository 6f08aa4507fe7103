from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from convexlift import files
from convexlift.training import RunFolder, TrainingDiverged, fit, run_folder

DATA = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -2.0])
HELD_OUT = DATA[:20] + 0.1


class Mean(nn.Module):
    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(dim))
        self.register_buffer("seen", torch.tensor(0))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            batch = batch + 0.1 * torch.randn_like(batch)
        return (batch - self.m).square().mean()


class StopsAt(Mean):
    """Raises an error, or asks for an interruption, in the middle of one step."""

    def __init__(self, step: int, stop: Callable[[], None]) -> None:
        super().__init__()
        self.step, self.stop = step, stop

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training and self.seen == self.step:
            self.stop()
        return super().loss(batch)


SETTINGS: dict[str, Any] = {
    "validation": HELD_OUT,
    "steps": 12,
    "evaluate_every": 4,
    "batch_size": 30,
    "lr": 0.05,
    "progress": False,
}


def train(path: Path, module: nn.Module | None = None, **changes: Any) -> nn.Module:
    module = Mean() if module is None else module
    fit(module, changes.pop("data", DATA), run_dir=path, **{**SETTINGS, **changes})
    return module


def raise_error() -> None:
    raise LookupError("the power went out")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def broken_off(path: Path) -> None:
    """Leave a run that ended without notice after its checkpoint at step 8."""
    torch.manual_seed(0)
    with pytest.raises(LookupError):
        train(path, StopsAt(10, raise_error))
    config = json.loads((path / "config.json").read_text())
    config["module"] = config["module"].replace("StopsAt", "Mean")
    (path / "config.json").write_text(json.dumps(config))


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_run_folder_holds_config_metrics_model_state_and_result(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    model = train(path)
    assert sorted(bytes_of(path)) == [
        "best.safetensors",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "state.pt",
    ]
    config = json.loads((path / "config.json").read_text())
    assert config["lr"] == 0.05 and config["optimizer"] == "adam" and config["dtype"] == "float32"
    assert config["data"].startswith("rows 100 x 2 ") and config["module"].startswith(
        "Mean with 1 parameter tensors"
    )
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [4, 8, 12]
    assert list(metrics[0]) == ["step", "loss", "seconds", "validation"]
    tensors = load_file(path / "best.safetensors")
    assert torch.equal(tensors["m"], model.m) and tensors["seen"] == model.seen
    result = json.loads((path / "result.json").read_text())
    assert result["stopped"] == "finished" and result["steps"] == 12 and result["parameters"] == 2
    assert result["best_validation"] == min(record["validation"] for record in metrics)
    assert result["error"] is None and result["environment"]["torch"] == torch.__version__


def test_the_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    train(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state) == {"format", "progress", "module", "optimizer", "best"}


def test_best_safetensors_holds_the_best_model_not_the_last(tmp_path: Path) -> None:
    model = train(tmp_path, validation=torch.zeros(5, 2), lr=0.5)
    assert torch.equal(load_file(tmp_path / "best.safetensors")["m"], model.m)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["progress"]["history"]["best_step"] == 4
    assert not torch.equal(state["module"]["m"], model.m)


@pytest.mark.parametrize("validation", [HELD_OUT, None])
def test_a_run_that_broke_off_goes_on_to_the_same_end(
    tmp_path: Path, validation: torch.Tensor | None
) -> None:
    whole = train(tmp_path / "whole", validation=validation)
    with pytest.raises(LookupError):
        train(tmp_path / "broken", StopsAt(10, raise_error), validation=validation)
    resumed = StopsAt(99, raise_error)
    resumed.m.data.fill_(77.0)
    train(tmp_path / "broken", resumed, validation=validation, resume=True)
    assert torch.equal(whole.m, resumed.m) and whole.seen == resumed.seen
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    for record in one + other:
        del record["seconds"]
    assert one == other


def test_an_interrupted_run_goes_on_from_its_very_step(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = train(tmp_path / "a", StopsAt(6, press_ctrl_c))
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.seen == 7
    assert json.loads((tmp_path / "a" / "result.json").read_text())["stopped"] == "interrupted"
    assert torch.load(tmp_path / "a" / "state.pt", weights_only=True)["progress"]["step"] == 7
    resumed, whole = StopsAt(99, raise_error), StopsAt(99, raise_error)
    history = fit(resumed, DATA, run_dir=tmp_path / "a", resume=True, **SETTINGS)
    expected = fit(whole, DATA, **SETTINGS)
    assert torch.equal(resumed.m, whole.m)
    assert history.loss == expected.loss and history.validation == expected.validation
    assert history.stopped == "finished" and len(history.seconds) == 3


@pytest.mark.parametrize("optimizer", ["sgd", lambda groups: torch.optim.AdamW(groups, lr=0.05)])
def test_every_optimiser_resumes(tmp_path: Path, optimizer: Any) -> None:
    whole = train(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(LookupError):
        train(tmp_path / "broken", StopsAt(6, raise_error), optimizer=optimizer)
    resumed = train(tmp_path / "broken", StopsAt(99, raise_error), optimizer=optimizer, resume=True)
    assert torch.equal(whole.m, resumed.m)


def test_patience_is_remembered_and_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    settings = {"validation": torch.zeros(5, 2), "steps": 100, "patience": 2}
    model = train(tmp_path, **settings)
    again = Mean()
    history = fit(again, DATA, run_dir=tmp_path, resume=True, **{**SETTINGS, **settings})
    assert history.stopped == "patience" and history.steps == [4, 8, 12]
    assert torch.equal(again.m, model.m)


def test_resuming_where_there_is_nothing_begins_a_run(tmp_path: Path) -> None:
    train(tmp_path / "new", resume=True)
    train(tmp_path / "new", resume=True)
    assert (tmp_path / "new" / "result.json").exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(
        FileExistsError, match=f"^{re.escape(str(tmp_path))} already holds a run; pass resume=True or"
    ):
        train(tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.1}, "lr was 0.05 and is now 0.1"),
        ({"steps": 20}, "steps was 12 and is now 20"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"clip": 1.0}, "clip was None and is now 1.0"),
        ({"optimizer": "sgd"}, "optimizer was 'adam' and is now 'sgd'"),
        ({"schedule": lambda t: 1.0}, "schedule was 'cosine' and is now '.*<lambda>'"),
        ({"data": DATA + 1}, "data was 'rows 100 x 2 .*' and is now 'rows 100 x 2 .*'"),
        ({"validation": None}, "validation was 'rows 20 x 2 .*' and is now None"),
        ({"dtype": torch.float64}, "data was 'rows 100 x 2 .*' and is now 'rows 100 x 2 .*'"),
        ({"module": Mean(1)}, "module was 'Mean with .*' and is now 'Mean with .*'"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    broken_off(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=f"^cannot resume {re.escape(str(tmp_path))}: {message}$"):
        train(tmp_path, resume=True, **changes)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a readable checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is not a readable checkpoint"),
        (lambda path: path.write_bytes(b""), "is not a readable checkpoint"),
        (lambda path: path.write_bytes(os.urandom(4096)), "is not a readable checkpoint"),
        (lambda path: path.write_text("step,loss\n1,2\n"), "is not a readable checkpoint"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "is not a readable checkpoint"),
        (lambda path: torch.save({"m": torch.zeros(2)}, path), "is not a checkpoint of a convexlift run"),
        (lambda path: torch.save([1], path), "is not a checkpoint of a convexlift run"),
        (lambda path: torch.save({"format": run_folder.FORMAT}, path), "does not fit this run: 'progress'"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_one_line_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    broken_off(tmp_path)
    damage(tmp_path / "state.pt")
    before = bytes_of(tmp_path)
    module = Mean()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'state.pt'} {message}")) as caught:
        train(tmp_path, module, resume=True)
    assert "\n" not in str(caught.value)
    assert bytes_of(tmp_path) == before and module.m.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"m": torch.zeros(3), "seen": torch.tensor(0)}, "its tensor 'm' has shape (3,), here (2,)"),
        ({"m": torch.zeros(2)}, "it has no tensor 'seen'"),
        ({"m": torch.zeros(2), "seen": torch.tensor(0), "n": torch.zeros(1)}, "it has a tensor 'n'"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    broken_off(tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**saved, "module": state}, tmp_path / "state.pt")
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tmp_path, resume=True)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing, so nothing says which run"),
        (lambda path: path.write_text('{"lr": '), "is not readable JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not readable JSON"),
        (lambda path: path.write_text("[1]"), "is not the configuration of a run"),
    ],
)
def test_a_damaged_configuration_is_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    broken_off(tmp_path)
    damage(tmp_path / "config.json")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'} {message}")):
        train(tmp_path, resume=True)


def test_metrics_beyond_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    broken_off(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "loss": 0.0}\n{"step": 1')
    train(tmp_path, resume=True)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 8, 12] and records[-1]["loss"] != 0.0


def test_a_diverged_run_keeps_its_checkpoint_and_says_why(tmp_path: Path) -> None:
    def diverge() -> None:
        raise FloatingPointError("no Cholesky factor")

    with pytest.raises(TrainingDiverged) as caught:
        train(tmp_path, StopsAt(10, diverge))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stopped"] == "diverged" and result["error"] == str(caught.value)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["step"] == 8
    with pytest.raises(TrainingDiverged, match="after 10 steps"):
        train(tmp_path, StopsAt(10, diverge), resume=True)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        NotADirectoryError, match=f"cannot write {re.escape(str(blocked / 'run'))}: Not a directory"
    ):
        train(blocked / "run")
    with pytest.raises(FileExistsError, match=f"cannot write {re.escape(str(blocked))}: File exists"):
        train(blocked)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(
        PermissionError, match=f"cannot write {re.escape(str(tmp_path / 'config.json'))}: Permission"
    ):
        train(tmp_path)


@pytest.mark.parametrize("full_at", range(1, 10))
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    whole = train(tmp_path / "whole")
    broken_off(tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()
    calls, fsync = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"cannot write .*: No space left on device; the last complete checkpoint stands"
    ):
        train(tmp_path / "run", resume=True)
    monkeypatch.undo()
    state = (tmp_path / "run" / "state.pt").read_bytes()
    assert (
        state == before
        or torch.load(tmp_path / "run" / "state.pt", weights_only=True)["progress"]["step"] == 12
    )
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert torch.equal(train(tmp_path / "run", resume=True).m, whole.m)


def test_the_folder_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.open({"lr": 1.0, "clip": None}, resume=False) is None
    assert not (tmp_path / "run").exists()  # nothing is written before a run begins
    folder.begin({"lr": 1.0, "clip": None})
    assert folder.open({"lr": 1.0, "clip": None}, resume=True) is None  # begun, but no checkpoint yet
    folder.write_state({"x": torch.arange(3)})
    saved = folder.open({"lr": 1.0, "clip": None}, resume=True)
    assert saved is not None and torch.equal(saved["x"], torch.arange(3))
    folder.append_metrics({"step": 1})
    folder.append_metrics({"step": 2})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    folder.write_model({"a": torch.eye(3)[:, 1], "b": torch.eye(3).T, "n": 3}, {"step": "2"})
    tensors = load_file(tmp_path / "run" / "best.safetensors")
    assert sorted(tensors) == ["a", "b"] and tensors["a"].tolist() == [0.0, 1.0, 0.0]


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    folder, contents = RunFolder(tmp_path), set()
    for _ in range(20):
        folder.write_model({"b": torch.eye(2), "a": torch.ones(3)}, {"step": 2, "module": "Mean"})
        contents.add((tmp_path / "best.safetensors").read_bytes())
    assert len(contents) == 1
