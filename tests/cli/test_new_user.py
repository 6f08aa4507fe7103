"""What a new user meets: plain help, completion, hints at what was meant, Ctrl-C, pipes, and a regression."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import convexlift as cl
from convexlift.cli import compare, errors, train
from convexlift.cli.main import main
from convexlift.study.outcomes import Event
from convexlift.training import History

SMALL = ["--steps", "60", "--hidden", "8", "8", "--batch-size", "64"]
ENVIRONMENT = {"PYTHONPATH": str(Path(cl.__file__).parents[1]), "PATH": os.environ["PATH"]}
COMMANDS = (
    "compare report ablate freeze evaluate sample transform predict completion "
    "train+flow train+density train+regression data+show data+fetch"
).split()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def called(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convexlift", *words],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **more},
    )


def write_costs(path: str = "costs.csv", n: int = 200, scale: float = 1e3) -> str:
    x = np.random.default_rng(0).normal(size=(n, 2))
    y = scale * (x**2).sum(1)
    lines = [f"{b:.6g},{c:.8g},{a:.6g}" for (a, b), c in zip(x, y, strict=True)]
    Path(path).write_text("\n".join(["b,cost,a", *lines]) + "\n")
    return path


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_braces_and_no_types(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split("+"), "--help"]) == 0
    out = capsys.readouterr().out
    usage = out.splitlines()[0]
    assert not any(sign in usage for sign in "{}<>")
    assert not any(f"<{kind}" in out for kind in ("str", "int", "float", "path"))
    if command in ("evaluate", "sample", "transform", "predict", "freeze"):
        assert usage == f"Usage: convexlift {command} [OPTIONS] RUN"
    if command == "compare":
        assert usage.endswith("[PROBLEM]")


# Completion.


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_names_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "_CONVEXLIFT_COMPLETE" in out and "convexlift" in out
    assert main(["completion", "tcsh"]) == 1
    assert capsys.readouterr().err == "error: unknown shell 'tcsh'; known: bash, zsh, fish\n"


def test_completion_is_installed_by_the_usual_option(tmp_path: Path) -> None:
    more = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = called("--install-completion", "bash", **more)
    assert (done.returncode, done.stderr) == (0, "") and "bash completion installed in" in done.stdout
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert script.name in (tmp_path / ".bashrc").read_text()
    assert "_CONVEXLIFT_COMPLETE=complete_bash" in script.read_text()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("convexlift comp", {"compare", "completion"}),
        ("convexlift train ", {"flow", "density", "regression"}),
        ("convexlift train flow --source sof", {"softplus", "softplus-fan-in"}),
        ("convexlift train flow --av", {"--averaging"}),
        ("convexlift compare gum", {"gumbel"}),
        ("convexlift compare --budget st", {"standard"}),
        ("convexlift data fetch ", {"hepmass", "miniboone", "power", "gas"}),
    ],
)
def test_what_a_shell_is_offered(words: str, offered: set[str]) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    assert set(called(_CONVEXLIFT_COMPLETE="complete_bash", **asked).stdout.split()) == offered


# Regression.


@pytest.fixture
def fitted() -> str:
    call = ["train", "regression", "--data", write_costs(), "--target", "cost", "--out", "run"]
    assert main([*call, *SMALL]) == 0
    return "run"


def test_a_regression_is_trained_evaluated_and_used(capsys: pytest.CaptureFixture[str], fitted: str) -> None:
    out = capsys.readouterr().out
    result = json.loads(Path("run/result.json").read_text())
    assert (result["kind"], result["columns"], result["target"]) == ("train regression", ["b", "a"], "cost")
    assert f"\nvalidation R² {result['validation']['r2']:.4f}, RMSE " in out
    assert isinstance(cl.load("run"), cl.ConvexRegression)

    table = np.loadtxt("costs.csv", delimiter=",", skiprows=1)
    assert main(["predict", "run", "--data", "costs.csv", "--out", "p.csv"]) == 0
    header, *values = Path("p.csv").read_text().split()
    predicted = np.array(values, float)
    model = cl.load("run").double()
    assert header == "cost_predicted"
    assert np.allclose(predicted, model.predict(torch.tensor(table[:, [0, 2]])).numpy())

    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "costs.csv"]) == 0
    rmse = np.sqrt(np.mean((predicted - table[:, 1]) ** 2))  # in the user's units
    r2 = 1 - rmse**2 / table[:, 1].var()
    told = f"R² {r2:.4f}, RMSE {rmse:.4g} (200 rows, target cost)\n"
    assert capsys.readouterr().out.startswith(told) and rmse > 10

    # Other columns, in another order, are found by their names; the target is not needed to predict.
    np.savetxt("moved.csv", table[:, [2, 0]], delimiter=",", header="a,b", comments="", fmt="%.17g")
    assert main(["predict", "run", "--data", "moved.csv", "--out", "q.csv"]) == 0
    assert Path("q.csv").read_text() == Path("p.csv").read_text()


def test_the_target_is_a_column_by_name_or_number(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", "regression", "--data", write_costs(), *SMALL, "--steps", "4"]
    assert main([*call, "--target", "cost", "--out", "one"]) == 0
    assert main([*call, "--target", "2", "--out", "two"]) == 0
    assert main([*call, "--target", "cost", "--columns", "b,a", "--out", "three"]) == 0
    one, two, three = (Path(run, "model.safetensors").read_bytes() for run in ("one", "two", "three"))
    assert one == two == three
    capsys.readouterr()
    for more, message in (
        (["--target", "cots"], "costs.csv has no column 'cots'; it has b, cost, a; did you mean 'cost'?"),
        (["--target", "a", "--columns", "a,b"], "--columns a,b are the inputs: leave the target 'a' out"),
    ):
        assert main([*call, *more, "--out", "bad"]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not Path("bad").exists()


def test_a_regression_is_evaluated_on_the_columns_it_knows_however_they_are_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = ["train", "regression", "--data", write_costs(), "--target", "cost", *SMALL, "--steps", "4"]
    assert main([*call, "--out", "run"]) == 0
    table = np.loadtxt("costs.csv", delimiter=",", skiprows=1)  # b, cost, a
    np.savetxt("turned.csv", table[:, [2, 1, 0]], delimiter=",", header="a,cost,b", comments="")
    np.savetxt("bare.csv", table, delimiter=",")

    def score(*arguments: str, run: str = "run") -> str:
        capsys.readouterr()
        assert main(["evaluate", run, "--data", *arguments]) == 0
        return capsys.readouterr().out.split(" (")[0]

    right = score("costs.csv")
    for arguments in (
        ["turned.csv"],
        ["turned.csv", "--columns", "a,b"],
        ["turned.csv", "--columns", "1,3", "--target", "2"],
        ["bare.csv", "--target", "2"],
        ["bare.csv", "--columns", "1,3", "--target", "2"],
    ):
        assert score(*arguments) == right
    for arguments, message in (
        (["turned.csv", "--columns", "a"], "turned.csv has no column 'b', which the model reads; it has a"),
        (
            ["turned.csv", "--target", "b"],
            "turned.csv: the model reads 'b', which cannot be its target as well",
        ),
        (
            ["bare.csv"],
            "bare.csv has no names, so that nothing tells which column is the target 'cost': "
            "pass --target by number",
        ),
    ):
        capsys.readouterr()
        assert main(["evaluate", "run", "--data", *arguments]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"

    # A target in the middle of a file without names is found there again, and by name in one with names.
    call[3], call[5] = "bare.csv", "2"
    assert main([*call, "--out", "unnamed"]) == 0
    for arguments in (["bare.csv"], ["costs.csv"], ["costs.csv", "--target", "cost"]):
        assert score(*arguments, run="unnamed") == right


def test_a_constant_target_is_called_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_costs(scale=0.0)
    call = ["train", "regression", "--data", "costs.csv", "--target", "cost", "--out", "run"]
    assert main(call) == 1
    assert capsys.readouterr().err == ("error: costs.csv: the target 'cost' is constant (every value is 0)\n")
    x = torch.randn(9, 2)
    regression = cl.ConvexRegression(cl.ICNN(2, hidden=(4,)))
    with pytest.raises(ValueError, match=r"^the target is constant \(every value is 1\)$"):
        regression.initialise((x, torch.ones(9)))
    conditional = cl.ConditionalDensity(cl.PICNN(1, 2, hidden=(4,)))
    contexts = torch.stack([torch.randn(9), torch.ones(9)], 1)
    with pytest.raises(ValueError, match=r"^column 1 of the contexts is constant \(every value is 1\)$"):
        conditional.initialise((x[:, :1], contexts))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_is_frozen_from_its_own_table_alone(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", "flow", "--data", write_costs(), *SMALL, "--steps", "6", "--dtype", dtype]
    assert main([*call, "--out", "run"]) == 0
    trained = Path("run/model.safetensors").read_bytes()
    Path("costs.csv").rename("moved.csv")
    assert main(["freeze", "run", "--data", "moved.csv", "--force"]) == 0
    assert Path("run/model.safetensors").read_bytes() == trained

    table = np.loadtxt("moved.csv", delimiter=",", skiprows=1)
    np.savetxt("turned.csv", table[:, ::-1], delimiter=",", header="a,cost,b", comments="")
    capsys.readouterr()
    assert main(["freeze", "run", "--data", "turned.csv", "--force"]) == 1
    assert capsys.readouterr().err == "error: turned.csv does not hold the rows that run was trained on\n"
    assert Path("run/model.safetensors").read_bytes() == trained


def test_what_is_no_regression_is_told(fitted: str, capsys: pytest.CaptureFixture[str]) -> None:
    cl.save(cl.ICNN(2, hidden=(4,)).freeze(), "net.safetensors")
    alone = cl.load("run")
    alone.columns = None
    cl.save(alone, "alone.safetensors")
    capsys.readouterr()
    for call, message in (
        ("predict net.safetensors --data costs.csv --out p.csv", "only a regression predicts a target"),
        ("evaluate net.safetensors --data costs.csv --target a", "--target is for regressions"),
        ("evaluate alone.safetensors --data costs.csv", "pass --target COLUMN"),
        ("transform run --data costs.csv --out z.csv", "holds a ConvexRegression"),
    ):
        assert main(call.split()) == 1
        assert message in capsys.readouterr().err
    assert main("evaluate alone.safetensors --data costs.csv --columns b,a --target cost".split()) == 0


# A run that did not end.


@pytest.mark.parametrize(
    "kind", ["flow", "flow --source lift", "density --columns a", "regression --target cost --source lift"]
)
def test_the_best_step_of_an_interrupted_run_is_frozen(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    call = ["train", *kind.split(), "--data", write_costs(), "--out", "run", *SMALL]
    with monkeypatch.context() as patch:  # Ctrl-C after training, before the model is written
        patch.setattr(train.Training, "freeze", pressed)
        assert main(call) == 130
    assert capsys.readouterr().err == (
        "interrupted; run keeps the run: the same command with --resume goes on\n"
    )
    use = ["evaluate", "run", "--data", "costs.csv", *(["--columns", "a"] if "density" in kind else [])]
    assert main(use) == 1
    assert "`convexlift freeze run`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="convexlift freeze run"):
        cl.load("run")

    assert main(["freeze", "run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("frozen model of step ") and out.endswith(" of 60: run/model.safetensors\n")
    frozen = Path("run/model.safetensors").read_bytes()
    assert main(use) == 0
    assert main(["freeze", "run"]) == 1
    assert "pass --force" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0
    if "lift" not in kind:  # the same function, frozen from the same step
        assert Path("run/model.safetensors").read_bytes() == frozen


def test_what_cannot_be_frozen_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    write_costs()
    Path("bare").mkdir()
    Path("odd").mkdir()
    Path("odd/train.json").write_text("{}")
    for run, message in (
        ("none", "none does not exist"),
        ("costs.csv", "costs.csv is a file; give the folder of a run"),
        ("bare", "bare holds no run of `convexlift train` that has been evaluated: it has no train.json"),
        ("odd", "odd/train.json does not say how the run was made: 'kind'"),
    ):
        assert main(["freeze", run]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"


# Files and folders.


def test_a_folder_is_loaded_by_its_model(fitted: str) -> None:
    assert torch.equal(
        cl.load("run").predict(torch.zeros(1, 2)),
        cl.load("run/model.safetensors").predict(torch.zeros(1, 2)),
    )
    with pytest.raises(FileNotFoundError, match=r"^\. is a folder .*; did you mean run/model.safetensors\?$"):
        cl.load(".")
    with pytest.raises(FileNotFoundError, match="^none does not exist$"):
        cl.load("none")


def test_permission_denied_is_not_called_damaged(fitted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(PermissionError, match="cannot read run/model.safetensors: Permission denied$"):
        cl.load("run/model.safetensors")


# Words and numbers.

HINTS = {
    "train flow --data r.csv --out x --source lfit": "did you mean 'lift'?",
    "train flow --data r.csv --out x --schedule cosin": "did you mean 'cosine'?",
    "train density --data r.csv --out x --objective nec": "did you mean 'nce'?",
    "train flow --data r.csv --out x --setps 3": "did you mean --steps",
    "train flwo --data r.csv": "Did you mean 'flow'?",
    "evalute run": "Did you mean 'evaluate'",
    "compare gumbl": "did you mean 'gumbel'?",
    "compare gumbel --arms sofplus": "did you mean 'softplus'?",
    "compare gumbel --budget qiuck": "did you mean 'quick'?",
    "ablate gumbel --optimizer adm": "did you mean 'adam'?",
    "data fetch hepmas": "did you mean 'hepmass'?",
    "train flow --data r.csv --out x --hidden -1": "Invalid value for '--hidden': '-1' is not a width",
    "train flow --data r.csv --out x --hidden 64 b": "Invalid value for '--hidden': 'b' is not a width",
    "train flow --data r.csv --out x --hidden 8,8 --depth 3": "--hidden 8,8 has 2 layers; leave --depth out",
    "train flow --data r.csv --out x --steps -3": "Invalid value for '--steps'",
    "train flow --data r.csv --out x --seed -1": "Invalid value for '--seed'",
    "train flow --data r.csv --out x --sharpness 0": "--sharpness must be positive; got 0",
}


@pytest.mark.parametrize("call", HINTS)
def test_a_hint(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call.split()) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and HINTS[call] in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("widths", [["8", "4"], ["8,4"]])
def test_widths_are_listed_either_way(widths: list[str]) -> None:
    call = ["train", "flow", "--data", write_costs(), "--out", "run", "--steps", "2", "--hidden", *widths]
    assert main(call) == 0
    assert cl.load("run").blocks[0].hidden == (8, 4)


# Ctrl-C, pipes, terminals.


def test_ctrl_c_before_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "read", pressed)
        assert main(["train", "flow", "--data", write_costs(), "--out", "run"]) == 130
    assert capsys.readouterr().err == "interrupted; training had not begun\n"
    assert not Path("run").exists()
    for call, place in (
        ("data show gumbel", "convexlift.cli.problems.problem"),
        ("evaluate run --data costs.csv", "convexlift.cli.models.load_model"),
    ):
        monkeypatch.setattr(place, pressed)
        assert main(call.split()) == 130
        assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_while_the_command_loads_shows_no_traceback() -> None:
    program = (
        "import importlib.abc, os, signal, sys\n"
        "module = sys.argv.pop(1)\n"
        "class Press(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == module:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "from convexlift.__main__ import main\n"
        "sys.argv[1:] = ['evaluate', 'none', '--data', 'none.csv']\n"
        "sys.exit(main())\n"
    )
    for module in ("typer", "convexlift.cli.compare", "numpy", "torch"):
        run = subprocess.run(
            [sys.executable, "-c", program, module], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert run.returncode in (130, -signal.SIGINT) and run.stderr == "interrupted\n"


def test_who_reads_may_leave() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "convexlift", "data", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()


def test_signs_that_the_terminal_has_not(fitted: str) -> None:
    run = called("evaluate", "run", "--data", "costs.csv", PYTHONIOENCODING="cp1251")
    assert run.returncode == 0 and run.stdout.startswith("R^2 ")
    assert run.stderr.startswith("warning: the model was trained on ") and run.stderr.count("\n") == 1


def screen(monkeypatch: pytest.MonkeyPatch, width: int) -> StringIO:
    """A terminal of that width, to read what was shown."""
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    return text


def test_a_comparison_tells_the_time_left_from_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = screen(monkeypatch, 100)
    with compare.shown() as show:
        show.forecast(3725.4)
        time.sleep(0.6)
    assert "about 1:02:0" in text.getvalue() and " left" in text.getvalue()


def test_without_a_terminal_every_line_tells_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with compare.shown() as show:
        show.forecast(90.2)
        show.progress(Event("selection", 1, 9, "told", "lift", 0.01, 0, 1.0, 80.4))
        show.progress(Event("selection", 2, 9, "told", "lift", 0.01, 0, 1.0))
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "about 0:01:30 in all"
    assert second == "[1/9] selection: told; about 0:01:20 left"
    assert third == "[2/9] selection: told"


def event(phase: str, loss: float | None, rate: float = 0.01) -> Event:
    return Event(phase, 1, 9, "told", "lift", rate, 0, loss)


def test_a_best_so_far_never_gets_worse() -> None:
    standing = compare.Standing()
    shown = []
    for phase, loss in (
        ("selection", 3.0),
        ("selection", 4.0),
        ("selection", None),
        ("evaluation", 9.0),
        ("evaluation", 8.0),
        ("evaluation", 9.5),
        ("common rate", 99.0),
    ):
        standing.note(event(phase, loss))
        shown.append({split: standing.lowest.get(("lift", split)) for split in ("validation", "test")})
    assert [row["validation"] for row in shown] == [(3.0, 0.01)] * 7
    assert [row["test"] for row in shown] == [None] * 3 + [(9.0, 0.01)] + [(8.0, 0.01)] * 3


def test_a_best_so_far_has_no_column_without_figures() -> None:
    standing = compare.Standing()
    standing.note(event("laplace", 3.0))
    assert [column.header for column in standing.table().columns] == ["", "best run, test loss", "runs"]
    standing.note(event("selection", 2.0))
    assert [column.header for column in standing.table().columns][1:3] == [
        "best run, validation loss",
        "best run, test loss",
    ]


def test_a_table_never_ranks_the_larger_of_two_figures_higher() -> None:
    tests = {"a": (22.0361, 0.12), "b": (22.038, 0.011), "c": (22.0384, 0.3), "d": (1e9, 1.0)}
    result = {
        "problem": "p",
        "metric": "m",
        "arms": {
            name: {"test": {"mean": mean, "sem": sem}, "lr": 0.1, "ms_per_step": 1.0, "parameters": 9}
            for name, (mean, sem) in tests.items()
        },
    }
    lines = compare.summary(result).splitlines()[2:]
    means = [float(line.split()[1].replace(",", "")) for line in lines]
    assert means == sorted(means) and means[0] == 22.036


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        ([], ""),
        ([3.25], "  validation 3.25, the best"),
        ([3.25, 3.5], "  validation 3.5, risen from 3.25 at step 10"),
        ([3.25, 3.5, 3.25001], "  validation 3.25001, risen from 3.25 at step 10 (2 evaluations ago)"),
    ],
)
def test_the_bar_tells_the_best_and_whether_it_rises(validation: list[float], told: str) -> None:
    from convexlift.training.progress import standing

    steps = [10 * place for place in range(1, len(validation) + 1)]
    best = min(validation, default=None)
    assert standing(History(steps=steps, validation=validation, best_step=10, best_validation=best)) == told


@pytest.mark.parametrize("width", [20, 60, 160])
def test_the_bar_keeps_to_its_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from convexlift.training.progress import progress_bar

    text = screen(monkeypatch, width)
    history = History(steps=[10, 20], validation=[3.25, 3.5], best_step=10, best_validation=3.25)
    with progress_bar(100, True) as show:
        show(0, float("nan"), History())
        for step in range(1, 21):
            show(step, 3.0, history)
        time.sleep(0.6)
    shown = text.getvalue()
    assert width < 60 or " left" in shown
    assert width < 160 or "risen from 3.25 at step 10" in shown
    assert max(map(len, shown.replace("\r", "\n").split("\n"))) <= width + 20  # and what moves the cursor


def test_errors_are_plain_where_the_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(lambda: 130, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
