"""The TensorBoard callback, by what TensorBoard reads back from its files."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import convexlift as cl
from convexlift.cli.main import main
from convexlift.mechanism import Recorder, probe_batches
from convexlift.tensorboard import TensorBoard
from convexlift.training import FitEvent

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).exp()
RUN = {"batch_size": 64, "lr": 0.01, "evaluate_every": 2, "progress": False, "validation": X}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def flow():
    return cl.ConvexPotentialFlow(
        [cl.Lift(cl.ICNN(2, hidden=(4, 4), seed=0), seed=0), cl.Softplus(cl.ICNN(2, hidden=(4, 4), seed=1))]
    )


def read(folder):
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return events.Reload()


def series(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_what_is_written_is_read_back(tmp_path):
    recorder = Recorder(X, probe_batches(X, 64, count=3))
    frozen = []
    with TensorBoard(tmp_path, recorder) as board:
        history = cl.fit(
            flow(), X, steps=6, callbacks=[board, lambda event: frozen.append(event.frozen)], **RUN
        )
    events = read(tmp_path)
    assert [step for step, _ in series(events, "loss/training")] == [2, 4, 6]
    for tag, values in (("training", history.loss), ("validation", history.validation)):
        assert np.allclose([value for _, value in series(events, f"loss/{tag}")], values, rtol=1e-6)
    speeds = series(events, "progress/steps_per_second")
    assert [step for step, _ in speeds] == [4, 6] and all(value > 0 for _, value in speeds)
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("mechanism/")} == {
        f"mechanism/{name}" for name in recorder.notes
    }
    for name, notes in recorder.notes.items():
        written = series(events, f"mechanism/{name}")
        assert [step for step, _ in written] == [step for step, _ in notes]
        assert np.allclose([value for _, value in written], [value for _, value in notes], rtol=1e-6)
    assert set(events.Tags()["histograms"]) == {
        "weights/blocks.0.inner.0",
        "weights/blocks.0.outer",
        "weights/blocks.1.inner.0",
        "weights/blocks.1.outer",
    }
    for event, model in zip(events.Histograms("weights/blocks.0.inner.0"), frozen, strict=True):
        weight = model.blocks[0].inner[0].detach()
        found = event.histogram_value
        assert found.num == weight.numel() == sum(found.bucket)
        assert found.min == weight.min().item() and found.max == weight.max().item()
        assert found.sum == pytest.approx(weight.sum().item(), rel=1e-5)


def test_a_run_is_the_same_with_and_without(tmp_path):
    ends = []
    for callbacks in ([], [TensorBoard(tmp_path, Recorder(X))]):
        torch.manual_seed(0)
        task = flow()
        history = cl.fit(task, X, steps=4, callbacks=callbacks, **RUN)
        ends.append((history.loss, history.validation, task.state_dict()))
    callbacks[0].close()
    assert ends[0][:2] == ends[1][:2]
    assert all(torch.equal(value, ends[1][2][name]) for name, value in ends[0][2].items())


def test_an_evaluation_is_on_disk_at_once_and_a_recorder_may_be_a_callback_too(tmp_path):
    recorder, counts = Recorder(X), []

    def look(event):
        counts.append(len(series(read(tmp_path), "mechanism/0.outer/shoulder")))

    task = flow()
    task.initialise(X)
    recorder.record(0, task)
    with TensorBoard(tmp_path, recorder) as board:
        cl.fit(task, X, steps=4, callbacks=[recorder, board, recorder, look], **RUN)
    assert counts == [2, 3]


def test_a_resumed_run_goes_on_and_replaces_what_was_beyond(tmp_path):
    """An evaluation is written before its checkpoint, so a run killed between them writes it again."""
    model = cl.ConvexRegression(cl.Softplus(cl.ICNN(2, hidden=(4,), seed=0)))

    def event(step, loss):
        return FitEvent(step, loss, None, model, model.freeze(None))

    with TensorBoard(tmp_path) as board:
        for step, loss in ((2, 5.0), (4, 4.0), (6, 99.0), (8, 99.0)):
            board(event(step, loss))
    with TensorBoard(tmp_path) as board:
        for step, loss in ((6, 3.0), (8, 2.0)):
            board(event(step, loss))
    events = read(tmp_path)
    assert series(events, "loss/training") == [(2, 5.0), (4, 4.0), (6, 3.0), (8, 2.0)]
    assert [event.step for event in events.Histograms("weights/block.outer")] == [2, 4, 6, 8]
    assert "loss/validation" not in events.Tags()["scalars"]


def test_an_interrupted_run_that_resumes_reads_as_if_it_had_not_been(tmp_path):
    def stop(event):
        if event.step == 6:  # written for TensorBoard, and not yet in a checkpoint
            raise KeyboardInterrupt

    def train(name, callbacks=(), resume=False):
        torch.manual_seed(0)
        with TensorBoard(tmp_path / name, Recorder(X)) as board:
            place = {"run_dir": tmp_path / f"{name} run", "resume": resume}
            return cl.fit(flow(), X, steps=10, callbacks=[board, *callbacks], **place, **RUN)

    train("whole")
    assert train("parts", [stop]).stopped == "interrupted"
    assert [step for step, _ in series(read(tmp_path / "parts"), "loss/training")] == [2, 4, 6]
    assert train("parts", resume=True).stopped == "finished"
    whole, parts = read(tmp_path / "whole"), read(tmp_path / "parts")
    assert whole.Tags()["scalars"] == parts.Tags()["scalars"]
    for tag in whole.Tags()["scalars"]:
        if not tag.startswith("progress/"):
            assert series(whole, tag) == series(parts, tag), tag


def test_closing_twice_and_writing_after_closing(tmp_path):
    model = cl.ConvexRegression(cl.Projected(cl.ICNN(2, hidden=(4,), seed=0)))
    board = TensorBoard(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    board.close()
    for step in (1, 2):
        board(FitEvent(step, 1.0, None, model, model.freeze(None)))
        board.close()
        board.close()
    folder = tmp_path / "new" / "folder"
    assert series(read(folder), "loss/training") == [(1, 1.0), (2, 1.0)]
    # The seconds differ, so the order of the files does not depend on what follows in their names.
    assert len({file.name.split(".")[3] for file in folder.iterdir()}) == 2


class Line(torch.nn.Module):
    """A module without a calculus: w . x, w >= 0."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x @ self.w


@pytest.mark.parametrize(
    ("make", "tag"),
    [
        (lambda: cl.ConvexRegression(cl.ICNN(2, hidden=(4,))), "weights/block.outer"),
        (lambda: cl.Softplus(cl.ICNN(2, hidden=(4,))), "weights/outer"),
        (lambda: cl.Softplus(Line(), names=["w"]), "weights/w"),
    ],
)
def test_histograms_of_any_module(tmp_path, make, tag):
    module = make()
    with TensorBoard(tmp_path) as board:
        board(FitEvent(1, 1.0, None, module, module.freeze(None)))
    assert read(tmp_path).Tags()["histograms"] == [tag]


def test_errors(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; TensorBoard needs a folder$"):
        TensorBoard(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    wanted = r"^TensorBoard needs the package tensorboard: pip install 'convexlift\[tensorboard\]'$"
    with pytest.raises(ImportError, match=wanted):
        TensorBoard(tmp_path)


# The command.

SMALL = ["--steps", "4", "--hidden", "4", "--depth", "2", "--batch-size", "32"]


def rows_file(folder):
    file = folder / "rows.npy"
    np.save(file, X.numpy())
    return str(file)


def test_train_writes_for_tensorboard_and_trains_the_same(tmp_path, capsys):
    data, board = rows_file(tmp_path), tmp_path / "board"
    call = ["train", "flow", "--data", data, "--source", "lift", *SMALL]
    assert main([*call, "--out", str(tmp_path / "plain")]) == 0
    assert main([*call, "--out", str(tmp_path / "run"), "--tensorboard", str(board)]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "run")]
    assert weights[0] == weights[1]
    events = read(board)
    assert [step for step, _ in series(events, "loss/validation")] == [1, 2, 3, 4]
    assert series(events, "mechanism/emission_noise")[0][1] > 0
    assert events.Tags()["histograms"]
    assert f"tensorboard --logdir {board}" in capsys.readouterr().out

    assert main([*call, "--out", str(tmp_path / "other"), "--tensorboard", str(board)]) == 1
    assert capsys.readouterr().err == (
        f"error: {board} holds a TensorBoard run already; pass --resume to go on in it, or another folder\n"
    )
    assert not (tmp_path / "other").exists()
    assert main([*call, "--out", str(tmp_path / "run"), "--tensorboard", str(board), "--resume"]) == 0
    assert [step for step, _ in series(read(board), "loss/validation")] == [1, 2, 3, 4]


def test_help_tells_of_it(capsys):
    for kind in ("flow", "density"):
        assert main(["train", kind, "--help"]) == 0
        assert "--tensorboard" in capsys.readouterr().out
