"""One owner of a folder at a time: runs, comparisons, ablations, downloads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convexlift.locks import LOCK, owned
from convexlift.study.ablation import ablate
from convexlift.study.comparison import compare
from convexlift.study.protocol import Budget
from convexlift.training import fit

SOURCE = str(Path(__file__).parents[1] / "src")
HOLDER = """
import sys
from convexlift.locks import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
TINY = Budget("tiny", 2, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))


class Holder:
    """Another process that owns a folder until it is released or killed."""

    def __init__(self, folder: Path) -> None:
        call = [sys.executable, "-c", HOLDER, str(folder)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(call, env={**os.environ, "PYTHONPATH": SOURCE}, **pipes)
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"

    def end(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate("")
        assert self.process.returncode == (-signal.SIGKILL if kill else 0)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch - self.m).square().mean()


def train(folder: Path, **settings: Any) -> None:
    fit(Mean(), torch.ones(4, 2), steps=3, progress=False, run_dir=folder, **settings)


def in_use(folder: Path) -> str:
    advice = "wait until that ends, or choose another folder"
    return f"^{re.escape(f'[Errno 11] {folder} is in use by another process: {advice}')}$"


USES: dict[str, Callable[[Path], object]] = {
    "run": train,
    "resumed run": lambda folder: train(folder, resume=True),
    "comparison": lambda folder: compare("logistic", arms=["lift"], budget=TINY, out=folder, jobs=1),
    "ablation": lambda folder: ablate("regression-square", budget=TINY, out=folder, jobs=1),
}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("use", USES)
def test_a_folder_in_use_is_refused_and_untouched_until_its_owner_is_gone(tmp_path: Path, use: str) -> None:
    folder = tmp_path / "here"
    holder = Holder(folder)
    with pytest.raises(BlockingIOError, match=in_use(folder)):
        USES[use](folder)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [LOCK]
    holder.end(kill=True)  # a lock file that says nothing stays
    assert (folder / LOCK).exists()
    USES[use](folder)
    assert not (folder / LOCK).exists() and any(folder.iterdir())


def test_two_threads_are_two_owners_and_each_gives_the_folder_up(tmp_path: Path) -> None:
    found: list[object] = []

    def other() -> None:
        try:
            with owned(tmp_path):
                found.append("owned")
        except BlockingIOError as error:
            found.append(error.errno)

    def ask() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with owned(tmp_path):
        ask()
    ask()
    with pytest.raises(LookupError), owned(tmp_path):
        raise LookupError
    ask()
    assert found == [11, "owned", "owned"] and list(tmp_path.iterdir()) == []


def test_an_owner_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    torn = [f".state.pt.{'0123456789abcdef' * 2}.part", f".a b.{'f' * 32}.part"]
    other = ["state.pt", ".mine.part", "rows.gz.part", f"notes.{'f' * 32}.part", ".hidden"]
    for name in [*torn, *other]:
        (tmp_path / name).write_text("x")
    with owned(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*other, LOCK])
    torn_cell = tmp_path / "out" / "cells" / torn[0]
    torn_cell.parent.mkdir(parents=True)
    torn_cell.write_text("x")
    compare("logistic", arms=["lift"], budget=TINY, out=tmp_path / "out", jobs=1)
    assert not torn_cell.exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OSError, match=re.escape(f"cannot write {tmp_path / LOCK}: ")), owned(tmp_path):
        pass


RACER = """
import sys, time
import torch
from torch import nn
import convexlift as cl

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
    def loss(self, batch):
        time.sleep(0.01)
        return (batch - self.m + 0.1 * torch.randn_like(batch)).square().mean()

print("ready", flush=True)
sys.stdin.readline()
try:
    cl.fit(Mean(), torch.ones(8, 2), validation=torch.ones(2, 2), steps=40, evaluate_every=1, patience=None,
           run_dir=sys.argv[1], resume=True, progress=False)
    print("trained")
except BlockingIOError as error:
    print(error.strerror)
"""


def test_the_same_run_started_three_times_at_once_is_one_run(tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    call = [sys.executable, "-c", RACER, str(tmp_path / "run")]
    racers = [subprocess.Popen(call, env={**os.environ, "PYTHONPATH": SOURCE}, **pipes) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    told = sorted(racer.communicate()[0].strip() for racer in racers)
    refused = (
        f"{tmp_path / 'run'} is in use by another process: wait until that ends, or choose another folder"
    )
    assert told == sorted(["trained", refused, refused])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {k}' for k in range(1, 41)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "state.pt",
    ]
