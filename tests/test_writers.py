"""Every file that is written has the mode of the umask, keeps its own mode, and follows symbolic links."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlift as cl
from convexlift.cli.main import main
from convexlift.study.ablation import ablate
from convexlift.study.comparison import compare
from convexlift.study.protocol import Budget
from convexlift.study.report.page import read_result, write_report
from convexlift.training import fit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")

SMALL = ["--steps", "6", "--hidden", "4", "--depth", "2", "--batch-size", "32"]
TINY = Budget("tiny", 2, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a finished run and the result of a comparison to work on."""
    folder = tmp_path_factory.mktemp("home")
    rows = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    lines = [",".join(f"{value:.6g}" for value in row) for row in rows.tolist()]
    (folder / "rows.csv").write_text("\n".join(["a,b", *lines]) + "\n")
    data = str(folder / "rows.csv")
    assert main(["train", "flow", "--data", data, "--out", str(folder / "run"), *SMALL]) == 0
    compare("logistic", arms=["lift", "softplus"], budget=TINY, out=folder / "compared", jobs=1)
    return folder


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def call(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch - self.m).square().mean()


def draw(folder: Path) -> None:
    cl.plots.draw_images(torch.ones(2, 3, 3), torch.ones(2, 3, 3), torch.ones(2, 3, 3), folder / "images.png")


# What each writes, by the names of its files in a folder; `home` is at hand.
WRITERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], Any]]] = {
    "save": (
        ("net.safetensors",),
        lambda to, _: cl.save(cl.ICNN(2, hidden=(4,)).freeze(), to / "net.safetensors"),
    ),
    "fit": (
        ("config.json", "metrics.jsonl", "state.pt", "best.safetensors", "result.json"),
        lambda to, _: fit(
            Mean(),
            torch.ones(4, 2),
            validation=torch.ones(2, 2),
            steps=2,
            run_dir=to,
            resume=True,
            progress=False,
        ),
    ),
    "train": (
        ("model.safetensors", "loss.svg", "result.json", "density.svg"),
        lambda to, home: call(
            "train", "density", "--data", home / "rows.csv", "--out", to, *SMALL, "--resume"
        ),
    ),
    **{
        f"sample {suffix}": (
            (f"new.{suffix}",),
            lambda to, home, suffix=suffix: call(
                "sample", home / "run", "-n", 5, "--out", to / f"new.{suffix}", "--force"
            ),
        )
        for suffix in ("csv", "npy", "npz", "parquet")
    },
    "transform": (
        ("z.csv",),
        lambda to, home: call(
            "transform", home / "run", "--data", home / "rows.csv", "--out", to / "z.csv", "--force"
        ),
    ),
    "report": (
        ("report.html",),
        lambda to, home: write_report([read_result(home / "compared")], to / "report.html"),
    ),
    "compare": (
        ("result.json",),
        lambda to, _: compare("logistic", arms=["lift"], budget=TINY, out=to, jobs=1, resume=False),
    ),
    "ablate": (("result.json",), lambda to, _: ablate("regression-square", budget=TINY, out=to, jobs=1)),
    "images": (("images.png",), lambda to, _: draw(to)),
}


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("writer", WRITERS)
def test_new_files_are_as_private_as_the_umask_says(
    writer: str, home: Path, tmp_path: Path, umask: Callable[[int], int]
) -> None:
    names, write = WRITERS[writer]
    umask(0o077)
    write(tmp_path, home)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert set(names) <= {path.name for path in written}
    assert {path.name: oct(mode(path)) for path in written if mode(path) != 0o600} == {}
    assert all(mode(path) == 0o700 for path in tmp_path.rglob("*") if path.is_dir())


@pytest.mark.parametrize("writer", WRITERS)
def test_files_that_are_replaced_keep_mode_and_link(
    writer: str, home: Path, tmp_path: Path, umask: Callable[[int], int]
) -> None:
    names, write = WRITERS[writer]
    to, kept = tmp_path / "to", tmp_path / "kept"
    to.mkdir()
    kept.mkdir()
    write(to, home)
    for name in names:
        (to / name).rename(kept / name)
        (to / name).symlink_to(Path("..", "kept", name))
        (kept / name).chmod(0o640)
    umask(0o022)
    write(to, home)
    assert all((to / name).is_symlink() for name in names)
    assert {name: oct(mode(kept / name)) for name in names} == dict.fromkeys(names, "0o640")
    assert sorted(path.name for path in kept.iterdir()) == sorted(names)
