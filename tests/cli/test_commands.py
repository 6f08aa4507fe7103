"""The commands, called as a user calls them: what they leave, and one line for everything that is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

import convexlift as cl
from convexlift import saving
from convexlift.cli import models, train
from convexlift.cli.main import join_lists, main
from convexlift.cli.options import add_commands
from convexlift.defaults import FLOW
from convexlift.study import protocol
from convexlift.table_files import write_table
from convexlift.tasks import ConvexRegression
from convexlift.training import History, RunFolder

SMALL = ["--steps", "6", "--hidden", "4", "--depth", "2", "--batch-size", "32"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_rows(path: str = "rows.csv", columns: int = 2, n: int = 80) -> str:
    rows = torch.randn(n, columns, generator=torch.Generator().manual_seed(0)).exp()
    names = ",".join("abcdefgh"[:columns])
    lines = [",".join(f"{value:.6g}" for value in row) for row in rows.tolist()]
    Path(path).write_text("\n".join([names, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a flow on two columns."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(str(folder / "rows.csv"))
    assert (
        main(["train", "flow", "--data", str(folder / "rows.csv"), "--out", str(folder / "run"), *SMALL]) == 0
    )
    return folder / "run"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What works.


def test_train_evaluate_sample_transform(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {
        "config.json",
        "train.json",
        "metrics.jsonl",
        "state.pt",
        "best.safetensors",
        "model.safetensors",
        "result.json",
        "loss.svg",
    } == set(files_of(trained))
    result = json.loads((trained / "result.json").read_text())
    assert (result["kind"], result["columns"]) == ("train flow", ["a", "b"])
    assert result["rows"] == {"train": 72, "validation": 8}
    assert result["validation"]["mean"] == pytest.approx(result["best_validation"], abs=1e-4)

    data = write_rows()
    assert main(["evaluate", str(trained), "--data", data]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mean negative log-likelihood: ") and " ± " in out and "nats (80 rows)" in out
    assert main(["evaluate", str(trained / "model.safetensors"), "--data", data]) == 0
    (beside,) = [line for line in out.splitlines() if line.startswith("that is")]
    assert "a Gaussian" in beside  # of which a lone file knows nothing
    assert capsys.readouterr().out == out.replace(f"{beside}\n", "")

    assert main(["sample", str(trained), "-n", "5", "--out", "new.csv"]) == 0
    assert main(["sample", str(trained), "-n", "5", "--out", "new.npy"]) == 0
    assert Path("new.csv").read_text().splitlines()[0] == "a,b"
    drawn = saving.load(trained / "model.safetensors").sample(5, seed=0)
    assert np.array_equal(np.load("new.npy"), drawn.numpy())

    assert main(["transform", str(trained), "--data", "new.npy", "--out", "z.npz"]) == 0
    with torch.no_grad():
        latent = saving.load(trained / "model.safetensors")(drawn)[0]
    assert np.allclose(np.load("z.npz")["samples"], latent.numpy())


def test_result_json_is_written_once_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    replace = os.replace

    def noted(source: str, target: str) -> None:
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    assert main(["train", "density", "--data", write_rows(), "--out", "run", *SMALL]) == 0
    assert written.count("result.json") == 1 and written[-1] == "result.json"
    assert written.count("model.safetensors") == 1 and "best.safetensors" in written


def test_a_run_that_ends_in_an_error_has_no_result_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collapsed(*_: object) -> None:
        raise RuntimeError("log Z collapsed")

    call = ["train", "density", "--data", write_rows(), "--out", "run", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(train.Density, "further", collapsed)
        assert main(call) == 1
    assert capsys.readouterr().err == "error: log Z collapsed\n"
    assert not Path("run/result.json").exists() and not Path("run/model.safetensors").exists()
    assert main(["evaluate", "run", "--data", "rows.csv"]) == 1
    assert "run/best.safetensors is a checkpoint of an unfinished" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0
    assert Path("run/result.json").exists()


def test_a_finished_run_resumes_to_itself(trained: Path) -> None:
    before = files_of(trained)["model.safetensors"]
    data = str(trained.parent / "rows.csv")
    assert main(["train", "flow", "--data", data, "--out", str(trained), *SMALL, "--resume"]) == 0
    assert files_of(trained)["model.safetensors"] == before


OLD = Path(__file__).parents[1] / "fixtures" / "0.1.0"
OLD_STATE = "state.pt was written by convexlift 0.1.0, whose runs only that version can resume"


def test_a_finished_run_of_version_0_1_0_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(OLD / "run-finished"), "--data", str(OLD / "rows.csv")]) == 0
    assert "mean negative log-likelihood: 4.3688 ± 0.2725 nats (40 rows)" in capsys.readouterr().out
    assert main(["sample", str(OLD / "run-finished"), "-n", "2", "--out", "new.csv"]) == 0
    assert Path("new.csv").read_text().splitlines()[0] == "a,b"


@pytest.mark.parametrize("name", ["run-finished", "run-interrupted"])
def test_a_run_of_version_0_1_0_is_not_resumed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD / name, "run")
    before = files_of(Path("run"))
    call = f"train flow --data {OLD / 'rows.csv'} --out run --steps 4 --hidden 3 --depth 1 --batch-size 32"
    assert main([*call.split(), "--resume"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: run/{OLD_STATE}") and err.count("\n") == 1
    assert main(call.split()) == 1
    assert "run holds config.json already; pass --resume" in capsys.readouterr().err
    assert files_of(Path("run")) == before


def test_an_unfinished_run_of_version_0_1_0_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(OLD / "run-interrupted"), "--out", "new.csv"]) == 1
    assert "model.safetensors is a checkpoint of an unfinished training run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_weight_decay_is_passed_on_and_kept(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", kind, "--data", write_rows(columns=1), *SMALL]
    assert main([*call, "--out", "plain"]) == 0
    assert main([*call, "--out", "decayed", "--weight-decay", "3"]) == 0
    plain, decayed = (json.loads(Path(out, "config.json").read_text()) for out in ("plain", "decayed"))
    assert decayed == {**plain, "weight_decay": 3.0} and "weight_decay" not in plain
    assert Path("plain/model.safetensors").read_bytes() != Path("decayed/model.safetensors").read_bytes()
    capsys.readouterr()
    assert main([*call, "--out", "decayed", "--weight-decay", "2", "--resume"]) == 1
    assert "weight_decay was 3.0 and is now 2.0" in capsys.readouterr().err
    assert main([*call, "--out", "decayed", "--weight-decay", "3", "--resume"]) == 0


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_averaging_and_the_schedule_are_passed_on_and_kept(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", kind, "--data", write_rows(columns=1), *SMALL]
    more = {
        "plain": [],
        "constant": ["--schedule", "constant"],
        "averaged": ["--schedule", "constant", "--averaging", "0.9"],
    }
    for out, options in more.items():
        assert main([*call, "--out", out, *options]) == 0
    plain, constant, averaged = (json.loads(Path(out, "config.json").read_text()) for out in more)
    assert plain["schedule"] == "cosine" and "averaging" not in plain
    assert constant == {**plain, "schedule": "constant"}
    assert averaged == {**constant, "averaging": 0.9}
    assert len({Path(out, "model.safetensors").read_bytes() for out in more}) == 3
    capsys.readouterr()
    assert main([*call, "--out", "averaged", "--schedule", "constant", "--resume"]) == 1
    assert "averaging was 0.9 and is now not set" in capsys.readouterr().err
    assert main([*call, "--out", "averaged", *more["averaged"], "--resume"]) == 0


def test_the_optimiser_its_multiplier_and_warm_up_are_passed_on_and_kept() -> None:
    call = ["train", "flow", "--data", write_rows(columns=1), *SMALL, "--out", "run"]
    assert main([*call, "--optimizer", "soap", "--free-rate", "2", "--warmup", "1"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["optimizer"] == "soap" and config["lr"] == FLOW.soap_lr
    assert config["rates"] == {"free": 2.0} and config["warmup"] == 1


def test_train_density_on_one_of_several_columns(capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(columns=3)
    call = f"train density --data {data} --columns b --out run --source softplus --steps 2 --hidden 4".split()
    assert main(call) == 0
    assert main(["evaluate", "run", "--data", data, "--columns", "b"]) == 0
    assert main(["sample", "run", "-n", "3", "--out", "new.csv"]) == 0
    assert Path("new.csv").read_text().splitlines()[0] == "b"
    assert "warning: the model was trained on " in capsys.readouterr().err
    assert main(["transform", "run", "--data", data, "--columns", "b", "--out", "z.csv"]) == 1
    assert capsys.readouterr().err == (
        "error: run holds a LogConcaveDensity; only a flow maps rows to latent points\n"
    )


def test_train_density_on_several_columns(capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(columns=4, n=200)
    assert main(["train", "density", "--data", data, "--out", "run", *SMALL, "--objective", "chains"]) == 0
    out = capsys.readouterr().out
    assert "validation negative log-likelihood: " in out and "\nmode: a " in out
    assert "\nlog-densities are normalised to within " in out
    result = json.loads(Path("run/result.json").read_text())
    assert 0 < result["log_z"]["error"] < 0.05
    chart = Path("run/density.svg").read_text()
    assert ">draws of the model</text>" in chart and all(f">{name}</text>" in chart for name in "abcd")
    assert main(["evaluate", "run", "--data", data]) == 0
    assert main(["sample", "run", "-n", "3", "--out", "new.csv"]) == 0
    assert Path("new.csv").read_text().splitlines()[0] == "a,b,c,d"
    assert saving.load("run/model.safetensors").log_z == pytest.approx(result["log_z"]["value"])


def test_the_charts_of_one_and_two_columns() -> None:
    data = write_rows()
    for columns, words in (("a", ">density</text>"), ("a,b", "regions of 50, 90 and 99 % of the model")):
        call = ["train", "density", "--data", data, "--columns", columns, "--out", columns, *SMALL]
        assert main(call) == 0
        assert words in Path(columns, "density.svg").read_text()


def test_a_loss_that_is_no_likelihood_is_not_called_one() -> None:
    call = ["train", "density", "--data", write_rows(), "--out", "run", *SMALL, "--objective", "score"]
    assert main(call) == 0
    assert ">loss of the objective</text>" in Path("run/loss.svg").read_text()


def test_a_density_that_cannot_be_drawn_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unmixed(*_: object, **__: object) -> None:
        raise RuntimeError("the chains have not mixed")

    monkeypatch.setattr(cl.plots, "plot_density", unmixed)
    assert main(["train", "density", "--data", write_rows(), "--out", "run", *SMALL]) == 0
    assert "no density.svg: the chains have not mixed\n" in capsys.readouterr().err
    assert Path("run/model.safetensors").exists() and not Path("run/density.svg").exists()


def column(*values: float) -> str:
    return "\n".join(map(str, ["energy", *values])) + "\n"


X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).round(decimals=3)
UNFIT: dict[str, tuple[str, str]] = {
    "few rows": ("1,2,3\n3,1,2\n2,5,4\n6,0,1\n", "need at least 4 rows to whiten 3 columns; got 3"),
    "one row twice": (
        "1,2\n1,2\n1,2\n1,2\n",
        "column 'x1' is constant (every value is 1): leave it out with ",
    ),
    "constant": (
        "1,2\n3,2\n5,2\n6,2\n",
        "column 'x2' is constant (every value is 2): leave it out with --col",
    ),
    "combination": (
        "\n".join(f"{a},{b},{a + b:.3f}" for a, b, _ in X.tolist()),
        "column 2 is a linear combination of the others: remove it (counted from 0)",
    ),
    "outlier": (
        column(*X[:, 0].tolist(), 1e6),
        "row 60, column 0 is 1e+06, ",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rows_that_no_density_is_fitted_to(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = UNFIT[case]
    write("unfit.csv", content)
    assert main(["train", "density", "--data", "unfit.csv", "--out", "run", *SMALL]) == 1
    assert capsys.readouterr().err.startswith(f"error: unfit.csv: {message}")
    assert not Path("run").exists()


def test_whole_numbers_and_copies_are_read_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    counts = torch.poisson(torch.full((80,), 4.0), torch.Generator().manual_seed(0))
    write("counts.csv", column(*counts.tolist()))
    assert main(["train", "density", "--data", "counts.csv", "--out", "run", *SMALL]) == 0
    assert main(["train", "density", "--help"]) == 0
    assert "a count has no density" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_training_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cl, "fit", lambda *_, **__: History(stopped="interrupted"))
    assert main(["train", "flow", "--data", write_rows(), "--out", "run", *SMALL]) == 130
    assert capsys.readouterr().err == (
        "interrupted; run keeps the run: the same command with --resume goes on\n"
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "quick" budget of milliseconds."""
    budget = protocol.Budget("quick", 4, 32, (0.01, 0.02), 1, 2, 0, architecture=(("hidden", (4,)),))
    monkeypatch.setitem(protocol.BUDGETS["density"], "quick", budget)  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny")
def test_compare_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["compare", "logistic", "--arms", "softplus", "lift", "--jobs", "1"]
    assert main([*call, "--out", "first"]) == 0
    out, err = capsys.readouterr()
    assert "logistic: excess negative log-likelihood (nats) of the trained models on test rows" in out
    assert "report: first/report.html" in out
    assert "[1/12] selection: softplus, rate 0.01" in err
    assert {"softplus", "lift"} == set(json.loads(Path("first/result.json").read_text())["arms"])
    assert main([*call, "--seeds", "1", "--rates", "0.01", "--out", "second"]) == 0
    capsys.readouterr()

    assert main(["report", "first"]) == 0
    assert main(["report", "first", "second/result.json", "--out", "both.html"]) == 0
    assert capsys.readouterr().out == "report: first/report.html\nreport: both.html\n"
    assert "Over 2 problems" in Path("both.html").read_text()

    before = files_of(Path("first"))
    assert main(["compare", "gumbel", "--out", "first"]) == 1
    assert capsys.readouterr().err == "error: first holds a comparison on logistic; choose another --out\n"
    assert files_of(Path("first")) == before


@pytest.mark.usefixtures("tiny")
def test_the_gallery_is_compared_on_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    call = "compare gallery --task density --arms softplus --rates 0.01 --seeds 1 --jobs 1 --out all"
    assert main(call.split()) == 0
    out = capsys.readouterr().out
    assert out.endswith("report: all/report.html\n") and out.count("of the trained models on test rows") == 6
    names = ["beta", "gamma", "gumbel", "laplace", "logistic", "uniform"]
    assert sorted(path.parent.name for path in Path("all").glob("*/result.json")) == names
    assert "Over 6 problems" in Path("all/report.html").read_text()


def test_another_task_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    held = {"schema": 1, "problem": "moon", "task": "flow", "arms": {}, "protocol": {}}
    Path("held").mkdir()
    write("held/result.json", json.dumps(held))
    assert main(["compare", "moon", "--task", "density", "--out", "held"]) == 1
    command = {"command": "convexlift compare moon --task density"}
    write("held/result.json", json.dumps({**held, "task": "density", "protocol": command}))
    assert main(["compare", "moon", "--out", "held"]) == 1
    assert capsys.readouterr().err == "".join(
        f"error: held holds a comparison of the task {task}; choose another --out\n"
        for task in ("flow", "density")
    )


def test_an_interrupted_comparison_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convexlift.study.comparison.compare", interrupted)
    assert main(["compare", "gumbel", "--out", "here"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; here keeps every finished run: the same command goes on from there\n"
    )


def test_compare_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(problem: str | None, **options: Any) -> None:
        seen.update(options, problem=problem)
        raise KeyboardInterrupt

    monkeypatch.setattr("convexlift.study.comparison.compare", noted)
    call = (
        "compare gumbel --rates 0.01 2e-2 --arms lift,softplus --seeds 3 --budget full --jobs 2 --no-resume"
    )
    assert main(call.split()) == 130
    seen.pop("progress"), seen.pop("forecast")
    assert seen == {
        "problem": "gumbel",
        "arms": ["lift", "softplus"],
        "rates": [0.01, 0.02],
        "seeds": 3,
        "budget": "full",
        "data": None,
        "jobs": 2,
        "device": "cpu",
        "out": Path("runs/gumbel"),
        "resume": False,
        "fixed_rate": None,
        "own": None,
        "optimizer": None,
        "task": None,
        "objective": "mle",
        "command": "convexlift compare gumbel --arms lift softplus --rates 0.01 0.02 --seeds 3 --budget full",
    }
    assert main("compare power --data power.npz --task density --objective score".split()) == 130
    assert (seen["task"], seen["objective"]) == ("density", "score")
    assert seen["out"] == Path("runs/power-density")
    assert seen["command"] == (
        "convexlift compare power --budget quick --task density --objective score --data power.npz"
    )
    assert main("compare moon --task density --fixed-rate".split()) == 130
    assert seen["command"] == "convexlift compare moon --budget quick --task density --fixed-rate"
    assert main("compare --own mine:subject --arms one".split()) == 130
    assert seen["problem"] is None
    assert seen["command"] == "convexlift compare --own mine:subject --arms one --budget quick"


def test_lists_of_words() -> None:
    assert join_lists("compare --rates 1 2 --arms a b --seeds 3".split()) == [
        *("compare", "--rates", "1,2", "--arms", "a,b", "--seeds", "3"),
    ]
    assert join_lists(["--arms", "--rates", "1"]) == ["--arms", "--rates", "1"]


@pytest.mark.parametrize(
    "call",
    ["", "--help", "compare --help", "report --help", "train", "train --help"]
    + ["train flow --help", "train density --help"]
    + ["evaluate --help", "sample --help", "transform --help", "data", "data list", "data show logistic"],
)
def test_help(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if "--help" in call:
        assert "convexlift " in out and "Example" in out


def test_how_a_table_is_read_is_said_and_told(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("t.csv", "1,5;2.000,25\n2,5;3.000,5\n4,0;1.000,0\n")
    how = ["--no-header", "--decimal", ",", "--thousands", "."]
    for call in (["evaluate", str(trained)], ["transform", str(trained), "--out", "z.csv"]):
        assert main([*call, "--data", "t.csv", *how]) == 0
        assert capsys.readouterr().out.endswith("\nt.csv: 3 rows, 2 columns without names: x1, x2\n")
    call = ["train", "flow", "--out", "run", *SMALL, "--validation-fraction", "0.3"]
    assert main([*call, "--data", write_rows(), "--columns", "b"]) == 0
    assert "\nrows.csv: 80 rows, 1 column: b; left out: a (not chosen)\n" in capsys.readouterr().out


def likelihood(capsys: pytest.CaptureFixture[str], *call: str) -> tuple[str, str]:
    """What ``evaluate`` prints first, and what it prints to stderr."""
    assert main(["evaluate", *call]) == 0
    out, err = capsys.readouterr()
    return out.splitlines()[0], err


def test_columns_are_found_by_the_names_of_the_model(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.loadtxt(write_rows(), delimiter=",", skiprows=1)
    first = likelihood(capsys, str(trained), "--data", "rows.csv")
    assert first[0].startswith("mean negative log-likelihood: ")
    seen = first[1]
    assert seen.startswith("warning: the model was trained on 72 of these 80 rows")
    turned = torch.from_numpy(np.column_stack([np.arange(80), rows[:, ::-1]]))
    for data in ("turned.csv", "turned.parquet"):
        write_table(data, turned, ["id", "b", "a"])
        told = f"{data}: columns are put in the model's order: a, b\n"
        told += f"{data}: ignored, as the model does not read them: id\n"
        # A run folder, and its model file alone.
        shutil.copy(trained / "model.safetensors", "alone.safetensors")
        for run in (str(trained), "alone.safetensors"):
            assert likelihood(capsys, run, "--data", data) == (first[0], told + seen * (run == str(trained)))
        for name in ("rows.csv", data):
            out = f"z-{name}.npy"
            assert main(["transform", str(trained), "--data", name, "--out", out]) == 0
        assert capsys.readouterr().err == told
        assert np.allclose(np.load("z-rows.csv.npy"), np.load(f"z-{data}.npy"))
        Path("z-rows.csv.npy").unlink()
    np.save("rows.npy", rows)
    told = "rows.npy: the file has no column names: x1, x2 taken by position as a, b\n"
    assert likelihood(capsys, str(trained), "--data", "rows.npy") == (first[0], told + seen)
    write("other.csv", "c,b\n1,2\n2,3\n")
    message = "error: other.csv has no column 'a', which the model reads; it has c, b\n"
    for call in (["evaluate", str(trained)], ["transform", str(trained), "--out", "z.csv"]):
        assert main([*call, "--data", "other.csv"]) == 1
        assert capsys.readouterr() == ("", message)
    assert not Path("z.csv").exists()


def test_the_chosen_columns_are_chosen_again(capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(columns=3)
    np.save("rows.npy", np.loadtxt(data, delimiter=",", skiprows=1))
    for name, columns, names in ((data, "c,a", "c,a"), ("rows.npy", "3,1", "x3,x1")):
        run = f"run-{name}"
        call = ["train", "flow", "--data", name, "--columns", columns, "--out", run, *SMALL]
        assert main(call) == 0
        capsys.readouterr()
        again = likelihood(capsys, run, "--data", name)[0]
        assert again == likelihood(capsys, run, "--data", name, "--columns", columns)[0]
        assert main(["sample", run, "-n", "5", "--out", "new.csv", "--force"]) == 0
        assert Path("new.csv").read_text().splitlines()[0] == names
        assert main(["evaluate", run, "--data", "new.csv"]) == 0
    assert saving.load("run-rows.csv/model.safetensors").columns == {"x": ["c", "a"]}
    assert saving.load("run-rows.npy/model.safetensors").columns == {"x": [3, 1]}


def test_a_model_without_names_takes_columns_by_position(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("rows.npy", np.random.default_rng(0).normal(size=(50, 2)))
    assert main(["train", "flow", "--data", "rows.npy", "--out", "run", *SMALL]) == 0
    assert saving.load("run/model.safetensors").columns is None
    assert main(["sample", "run", "-n", "9", "--out", "new.csv"]) == 0
    assert Path("new.csv").read_text().splitlines()[0] == "x1,x2"
    capsys.readouterr()
    assert likelihood(capsys, "run", "--data", "new.csv")[1] == (
        "new.csv: the model has no column names: x1, x2 taken by position\n"
    )
    assert likelihood(capsys, "run", "--data", "rows.npy")[1].startswith(
        "rows.npy: neither the model nor the file has column names: x1, x2 taken by position\n"
    )
    assert main(["evaluate", "run", "--data", write_rows(columns=3)]) == 1
    assert capsys.readouterr().err == (
        "error: rows.csv has 3 columns; the model reads 2: choose them with --columns\n"
    )


def test_a_run_of_version_0_1_0_knows_its_columns_and_its_model_alone_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, told = likelihood(capsys, str(OLD / "run-finished"), "--data", str(OLD / "rows.csv"))
    assert told == ""
    rows = np.loadtxt(OLD / "rows.csv", delimiter=",", skiprows=1)
    write_table("turned.csv", torch.from_numpy(rows[:, ::-1].copy()), ["b", "a"])
    told = "turned.csv: columns are put in the model's order: a, b\n"
    assert likelihood(capsys, str(OLD / "run-finished"), "--data", "turned.csv") == (first, told)
    shutil.copy(OLD / "run-finished" / "model.safetensors", "alone.safetensors")
    write_table("rows.csv", torch.from_numpy(rows), ["a", "b"])
    told = "rows.csv: the model has no column names: a, b taken by position\n"
    assert likelihood(capsys, "alone.safetensors", "--data", "rows.csv") == (first, told)


def test_a_row_that_cannot_be_scored_has_the_line_of_the_file(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "_CHUNK", 3)
    write("rows.csv", "a,b\n\n" + "1,2\n" * 7 + "1e200,2\n")
    assert main(["evaluate", str(trained), "--data", "rows.csv"]) == 1
    assert capsys.readouterr().err.startswith("error: rows.csv: row 8 (line 10): the log-density ")


def test_what_was_decided_is_told(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("t.csv", "# by hand\nb;a\n1,5;2\n2,5;3\n")
    assert main(["evaluate", str(trained), "--data", "t.csv", "--decimal", ","]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "t.csv: names in line 2, cells separated by semicolons, decimal comma, 1 comment skipped",
        "t.csv: 2 rows, 2 columns: a, b",
    ]
    write("t.csv", "1 234\n5 678\n")
    assert main(["evaluate", str(trained), "--data", "t.csv", "--separator", "space"]) == 0
    assert "t.csv: no line of names, cells separated by blanks, decimal point\n" in capsys.readouterr().out


@dataclass(frozen=True, kw_only=True)
class Pair(train.Training):
    """Train two potentials."""

    depth: train.Depth = 1
    sharpness: train.Sharpness = 2.0
    lr: Annotated[float | None, typer.Option()] = 0.01
    first: Annotated[int, typer.Option(help="Seed of the first.")] = 3

    def build(self, dim: int) -> cl.ConvexPotentialFlow:
        return cl.ConvexPotentialFlow([self.network(dim, place) for place in (self.first, self.first + 1)])


def test_another_kind_of_model_is_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(rich_markup_mode=None)
    add_commands(app, Pair)
    call = ["--data", write_rows(), "--out", "run", "--steps", "2", "--hidden", "4", "--first", "7"]
    assert not app(call, standalone_mode=False)
    assert json.loads(Path("run/result.json").read_text())["kind"] == "train pair"
    assert len(saving.load("run/model.safetensors").blocks) == 2
    capsys.readouterr()
    app(["--help"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "Train two potentials." in out and "--first" in out and "--weight-decay" in out


# What is wrong with the input.


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def damaged(trained: Path, change: Callable[[bytes], bytes]) -> str:
    """A copy of a trained model with other bytes."""
    Path("copy").mkdir()
    write("copy/model.safetensors", change((trained / "model.safetensors").read_bytes()))
    return "copy"


def other_tool() -> str:
    save_file({"weight": torch.zeros(2)}, "other.safetensors")
    return "other.safetensors"


def regression() -> str:
    model = ConvexRegression(cl.ICNN(2, hidden=(4,), seed=0))
    model.initialise((torch.randn(20, 2), torch.randn(20)))
    saving.save(model.freeze(torch.randn(20, 2)), "regression.safetensors")
    return "regression.safetensors"


def unfinished(trained: Path) -> str:
    Path("copy").mkdir()
    RunFolder("copy").write_model({"x": torch.zeros(2)}, {"step": 4, "module": "ConvexPotentialFlow"})
    return "copy"


TRAIN = ["train", "flow", "--out", "out", *SMALL, "--data"]
NOISE = bytes((37 * k * k + 11 * k) % 256 for k in range(1, 900))

BAD_DATA: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "none.csv", "none.csv does not exist"),
    "empty": (lambda: write("t.csv", ""), "t.csv is empty"),
    "one row": (lambda: write("t.csv", "a,b\n1,2\n"), "t.csv has one row; training needs at least two"),
    "few rows": (lambda: write("t.csv", "1,2\n3,4\n"), "2 rows are too few: 1 would be left to train on"),
    "NaN": (
        lambda: write("t.csv", "a,b\n1,2\n3,nan\n"),
        "t.csv: row 2 (line 3), column 'b': the value is NaN; --drop-missing leaves such rows out",
    ),
    "infinite": (
        lambda: write("t.csv", "a,b\ninf,2\n3,4\n"),
        "t.csv: row 1 (line 2), column 'a': the value is infinite",
    ),
    "constant": (
        lambda: write("t.csv", "a,b\n1,2\n1,3\n1,4\n"),
        "t.csv: column 'a' is constant (every value is 1): leave it out with --columns",
    ),
    "text": (
        lambda: write("t.csv", "a,b\n1,2\n3,four\n"),
        "t.csv: row 2 (line 3), column 'b': 'four' is not a number",
    ),
    "random csv": (lambda: write("t.csv", NOISE), "t.csv is not a CSV text file"),
    "random npy": (lambda: write("t.npy", NOISE), "t.npy is not a readable .npy file of numbers"),
    "random npz": (lambda: write("t.npz", NOISE), "t.npz is not a readable .npz file of numbers"),
    "suffix": (
        lambda: write("t.txt", "1,2\n"),
        "t.txt is not a .csv, .npy or .npz file (also .tsv, .csv.gz, .tsv.gz, .parquet, .feather)",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_training_on_bad_data(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_DATA[case]
    data = make()
    assert main([*TRAIN, data]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not Path("out").exists()


NARROW = "narrow.csv has no column 'b', which the model reads; it has a"
READS = "the model reads 2 (a, b): choose them with --columns"


def test_evaluating_on_bad_data(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, message in (
        (write("wide.csv", "1,2,3\n3,1,2\n"), f"wide.csv has 3 columns without names; {READS}"),
        (
            write_rows("narrow.csv", columns=1),
            NARROW,
        ),
        (
            write("t.csv", "a,b\n1,nan\n"),
            "t.csv: row 1 (line 2), column 'b': the value is NaN; --drop-missing leaves such rows out",
        ),
        (write("one.csv", "a,b\n1,2\n"), "one.csv has one row; a standard error needs at least two"),
    ):
        assert main(["evaluate", str(trained), "--data", data]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"
        if data.endswith(("wide.csv", "t.csv")):
            assert main(["transform", str(trained), "--data", data, "--out", "z.csv"]) == 1
            assert capsys.readouterr().err == f"error: {message}\n"
            assert not Path("z.csv").exists()


UNREADABLE = "is not a readable safetensors file (damaged, truncated or of another kind)"
BAD_MODEL: dict[str, tuple[Callable[[Path], str], str]] = {
    "truncated": (
        lambda run: damaged(run, lambda b: b[: len(b) // 2]),
        f"copy/model.safetensors {UNREADABLE}",
    ),
    "random": (lambda run: damaged(run, lambda _: NOISE), f"copy/model.safetensors {UNREADABLE}"),
    "empty": (lambda run: damaged(run, lambda _: b""), f"copy/model.safetensors {UNREADABLE}"),
    "other tool": (
        lambda run: other_tool(),
        "other.safetensors is not a convexlift model: another program wrote it",
    ),
    "other model": (
        lambda run: regression(),
        "regression.safetensors holds a ConvexRegression, which is not a density",
    ),
    "unfinished": (
        unfinished,
        "copy/best.safetensors is a checkpoint of an unfinished training run, not a frozen model: go on with "
        "the run, or make a model of its best step so far with `convexlift freeze copy`",
    ),
    "missing": (lambda run: "none", "none does not exist"),
    "no run": (lambda run: ".", "holds no trained model (there is no model.safetensors in it)"),
}


@pytest.mark.parametrize("case", BAD_MODEL)
def test_a_bad_model(case: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_MODEL[case]
    run, data = make(trained), write_rows()
    calls = (
        ["evaluate", run, "--data", data],
        ["sample", run, "--out", "new.csv"],
        ["transform", run, "--data", data, "--out", "new.csv"],
    )
    for call in calls[case == "other model" :]:  # a regression has no density, but it is evaluated
        assert main(call) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.endswith(f"{message}\n") and err.count("\n") == 1
    assert not Path("new.csv").exists()


def test_a_truncated_checkpoint_is_not_resumed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(trained.parent / "rows.csv")
    Path("run").mkdir()
    for name, content in files_of(trained).items():
        write(f"run/{name}", content[:500] if name == "state.pt" else content)
    before = files_of(Path("run"))
    assert main(["train", "flow", "--data", data, "--out", "run", *SMALL, "--resume"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: run/state.pt is not a readable checkpoint") and err.count("\n") == 1
    assert files_of(Path("run")) == before


BAD_CALLS: dict[str, tuple[str, int, str]] = {
    "problem": ("compare digitz", 1, "unknown problem 'digitz'; did you mean 'digits21'?"),
    "arm": ("compare logistic --arms lfit", 1, "unknown way of training 'lfit'; known: projected, softplus"),
    "arm that is a problem": ("compare gumbel --arms lift logistic", 1, "unknown way of training 'logistic'"),
    "budget": ("compare logistic --budget huge", 1, "unknown budget 'huge'"),
    "rate": ("compare logistic --rates fast", 1, "--rates: 'fast' is not a number"),
    "negative rate": ("compare logistic --rates 0", 1, "learning rates must lie in (0, 1]; got 0"),
    "seeds": ("compare logistic --seeds 0", 2, "Invalid value for '--seeds'"),
    "device": ("compare logistic --device abacus", 1, "device 'abacus' is unknown or not available"),
    "needless file": ("compare logistic --data rows.csv", 1, "problem 'logistic' reads no file"),
    "missing file": ("compare hepmass --data none.npz", 1, "no such file: none.npz"),
    "own": ("compare --own nothing", 1, "own must be MODULE:FUNCTION; got 'nothing'"),
    "folder": ("compare logistic --out rows.csv/here", 1, "cannot write into rows.csv/here: Not a directory"),
    "train folder": (
        "train flow --data rows.csv --out rows.csv/run",
        1,
        "cannot make the folder rows.csv/run",
    ),
    "source": ("train flow --data rows.csv --out out --source lfit", 1, "unknown source 'lfit'; known: "),
    "lr": ("train flow --data rows.csv --out out --lr -1", 1, "--lr must be positive; got -1"),
    "negative decay": (
        "train flow --data rows.csv --out out --weight-decay -1",
        1,
        "--weight-decay must be at least 0 and below 1 / lr = 31.25; got -1.0",
    ),
    "large decay": (
        "train density --data rows.csv --out out --lr 0.1 --weight-decay 10",
        1,
        "--weight-decay must be at least 0 and below 1 / lr = 10; got 10.0",
    ),
    "decay": (
        "train flow --data rows.csv --out out --weight-decay nan",
        1,
        "--weight-decay must be at least 0 and below 1 / lr = 31.25; got nan",
    ),
    "averaging": (
        "train flow --data rows.csv --out out --averaging 1",
        1,
        "--averaging must be at least 0 and below 1; got 1.0",
    ),
    "averaging that is no number": (
        "train density --data rows.csv --out out --averaging nan",
        1,
        "--averaging must be at least 0 and below 1; got nan",
    ),
    "schedule": (
        "train density --data rows.csv --out out --schedule linear",
        1,
        "unknown schedule 'linear'; known: constant, cosine",
    ),
    "steps": ("train flow --data rows.csv --out out --steps 0", 2, "Invalid value for '--steps'"),
    "fraction": (
        "train flow --data rows.csv --out out --validation-fraction 1.5",
        1,
        "--validation-fraction must lie between 0 and 1; got 1.5",
    ),
    "train device": (
        "train flow --data rows.csv --out out --device abacus",
        1,
        "device 'abacus' is unknown or not available",
    ),
    "objective": (
        "train density --data rows.csv --out out --objective map",
        1,
        "unknown objective 'map'; known: mle, importance, ",
    ),
    "task": (
        "compare gumbel --task flow",
        1,
        "problem 'gumbel' has task 'density'; it cannot be taken as 'flow'",
    ),
    "objective of a flow": (
        "compare moon --objective score",
        1,
        "an objective is for densities; problem 'moon' has task 'flow': add the task density",
    ),
    "column": (
        "train flow --data rows.csv --out out --columns z",
        1,
        "rows.csv has no column 'z'; it has a, b",
    ),
    "command": ("comprae", 2, "No such command 'comprae'"),
    "option": ("compare --sneed 3", 2, "No such option"),
    "no data": ("train flow --out out", 2, "Missing option '--data'"),
    "report": ("report none", 1, "no comparison at none: none does not exist"),
    "report of a table": ("report rows.csv", 1, "rows.csv is not readable JSON"),
    "page": ("report none --out page.txt", 1, "no comparison at none"),
    "shown problem": ("data show nothing", 1, "unknown problem 'nothing'"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    call, code, message = BAD_CALLS[case]
    write_rows()
    assert main(call.split()) == code
    out, err = capsys.readouterr()
    assert out == "" or out.startswith("rows.csv: names in line 1")  # as it was read, before that was found
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["rows.csv"]


def test_nothing_is_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, before = write_rows(), files_of(trained)
    write("mine.csv", "precious")
    Path("comparison").mkdir()
    write("comparison/result.json", '{"schema": 1, "problem": "gumbel", "arms": {}}')
    for call, message in (
        (["sample", str(trained), "--out", "mine.csv"], "mine.csv exists; pass --force to replace it"),
        (
            ["transform", str(trained), "--data", data, "--out", "mine.csv"],
            "mine.csv exists; pass --force to replace it",
        ),
        (
            ["train", "flow", "--data", data, "--out", str(trained), *SMALL],
            f"{trained} holds config.json already; pass --resume to go on with that run, or another --out",
        ),
        (
            ["train", "flow", "--data", data, "--out", "comparison", *SMALL, "--resume"],
            "comparison holds result.json but no run that could be resumed",
        ),
        (
            ["compare", "logistic", "--out", str(trained)],
            f"{trained} holds the result of something else; choose another --out",
        ),
    ):
        assert main(call) == 1
        assert capsys.readouterr().err == f"error: {message}\n"
    assert Path("mine.csv").read_text() == "precious"
    assert files_of(trained) == before
    assert [path.name for path in Path("comparison").iterdir()] == ["result.json"]
    assert main(["sample", str(trained), "--out", "mine.csv", "--force"]) == 0
    assert Path("mine.csv").read_text() != "precious"


@pytest.mark.parametrize(
    "call",
    ["train flow --data rows.csv --out new", "sample {run} -n 5 --force --out mine.csv"]
    + ["transform {run} --data rows.csv --force --out mine.csv"],
)
def test_a_full_disk(
    call: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows()
    write("mine.csv", "precious")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(call.format(run=trained).split()) == 1
    out, err = capsys.readouterr()
    named = "new/config.json" if call.startswith("train") else "mine.csv"
    assert out == "" or call.startswith("train")
    assert err.startswith(f"error: cannot write {named}: No space left on device")
    assert err.count("\n") == 1
    assert Path("mine.csv").read_text() == "precious"
    assert not list(Path().rglob(".*"))


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (
        ["--debug", "evaluate", "none", "--data", "x.csv"],
        ["evaluate", "none", "--data", "x.csv", "--debug"],
    ):
        assert main(call) == 1
        err = capsys.readouterr().err
        assert err.startswith("Traceback") and err.endswith("\nerror: none does not exist\n")


def test_as_a_process() -> None:
    wrong = subprocess.run(
        [sys.executable, "-m", "convexlift", "evaluate", "none", "--data", "rows.csv"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(cl.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (1, "", "error: none does not exist\n")
