"""Commands, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer

import convexlift as cl
from convexlift.problems import problem
from convexlift.study.comparison import compare
from convexlift.study.protocol import Budget
from convexlift.study.statistics import paired_difference
from convexlift.tensorboard import TensorBoard

from .case import Case, refused
from .given import arrays, command, density, fit, flow, model, regression, rows, run, table, text

TRAIN = "train flow --data rows.csv --out run --steps 1"
REG = "train regression --data rows.csv --out run --steps 1"


def comparison(**change: Any) -> None:
    """A folder with the result of a comparison."""
    found = {"schema": 1, "problem": "gumbel", "task": "density", "arms": {}, "protocol": {}, **change}
    text(json.dumps(found), "run/result.json")


def named_model() -> None:
    """A model of columns a and b."""
    made = flow().freeze()
    made.columns = {"x": ["a", "b"]}
    Path("run").mkdir()
    cl.save(made, "run/model.safetensors")


def constant() -> str:
    """rows.csv, of which column b is constant."""
    return text("a,b\n" + "".join(f"{k},1\n" for k in range(20)))


TRAINING: list[Case] = [
    refused("`train flow --lr 0`", command(f"{TRAIN} --lr 0"), ValueError, "--lr must be positive; got 0.0"),
    refused(
        "`train flow --weight-decay 50`",
        command(f"{TRAIN} --weight-decay 50"),
        ValueError,
        "--weight-decay must be at least 0 and below 1 / lr = 31.25; got 50.0",
    ),
    refused(
        "`train flow --averaging 1`",
        command(f"{TRAIN} --averaging 1"),
        ValueError,
        "--averaging must be at least 0 and below 1; got 1.0",
    ),
    refused(
        "`train flow --validation-fraction 1`",
        command(f"{TRAIN} --validation-fraction 1"),
        ValueError,
        "--validation-fraction must lie between 0 and 1; got 1.0",
    ),
    refused(
        "`train flow` into the folder of a run",
        command(TRAIN, table, lambda: fit(run_dir="run")),
        FileExistsError,
        "run holds config.json already; pass --resume to go on with that run, or another --out",
    ),
    refused(
        "`train flow --resume` of a folder with a model and no run",
        command(f"{TRAIN} --resume", table, model),
        ValueError,
        "run holds model.safetensors but no run that could be resumed",
    ),
    refused(
        "`train flow --out` of a file",
        command(TRAIN, table, lambda: text("", "run")),
        FileExistsError,
        "cannot make the folder run: File exists",
    ),
    refused(
        "`train flow --tensorboard` in a folder that is in use",
        command(f"{TRAIN} --tensorboard tb", table, lambda: text("", "tb/events.out.tfevents.1")),
        FileExistsError,
        "tb holds a TensorBoard run already; pass --resume to go on in it, or another folder",
    ),
    refused(
        "a `TensorBoard` callback whose folder is a file",
        lambda: TensorBoard(text("", "tb")),
        NotADirectoryError,
        "tb is a file; TensorBoard needs a folder",
    ),
    refused(
        "`train flow --patience soon`",
        command(f"{TRAIN} --patience soon"),
        ValueError,
        "--patience must be a number of evaluations, rising or none; got soon",
    ),
    refused(
        "`train regression` with a target that is not there",
        command(f"{REG} --target c", table),
        ValueError,
        "rows.csv has no column 'c'; it has a, b",
    ),
    refused(
        "`train regression` of one column alone",
        command(f"{REG} --target a", lambda: text("a\n1\n2\n3\n4\n5\n")),
        ValueError,
        "rows.csv has no column beside the target 'a'",
    ),
    refused(
        "`train regression` with the target among the inputs",
        command(f"{REG} --target a --columns a,b", table),
        ValueError,
        "--columns a,b are the inputs: leave the target 'a' out",
    ),
    refused(
        "`train regression` with a constant target",
        command(f"{REG} --target b", constant),
        ValueError,
        "rows.csv: the target 'b' is constant (every value is 1)",
    ),
    refused(
        "`train flow --sharpness 0`",
        command("train flow --data rows.csv --out run --sharpness 0", table),
        ValueError,
        "--sharpness must be positive; got 0.0",
    ),
    refused(
        "`train flow --hidden 8,8 --depth 3`",
        command("train flow --data rows.csv --out run --hidden 8,8 --depth 3", table),
        ValueError,
        "--hidden 8,8 has 2 layers; leave --depth out",
    ),
    refused(
        "`train flow --hidden wide`",
        command("train flow --data rows.csv --out run --hidden wide"),
        typer.BadParameter,
        "'wide' is not a width; give one, as in 64, or several, as in 64,64,32",
    ),
    refused(
        "`train flow --dtype half`",
        command(f"{TRAIN} --dtype half"),
        ValueError,
        "unknown dtype 'half'; known: float32, float64",
        kin="another choice",
    ),
    refused(
        "`train flow` of a table with a constant column",
        command(TRAIN, constant),
        ValueError,
        "rows.csv: column 'b' is constant (every value is 1): leave it out with --columns",
        kin="in words of the command",
    ),
]

USE: list[Case] = [
    refused(
        "`evaluate` of a folder without a model",
        command("evaluate run --data rows.csv", table, lambda: Path("run").mkdir()),
        FileNotFoundError,
        "run is a folder that holds no trained model (there is no model.safetensors in it)",
        kin="by a command",
    ),
    refused(
        "`evaluate` of a regression that does not know its target",
        command("evaluate run --data rows.csv", table, lambda: model(regression)),
        ValueError,
        "run does not say which column its target is: pass --target COLUMN",
    ),
    refused(
        "`evaluate` on one row",
        command("evaluate run --data rows.csv", lambda: text("a,b\n1,2\n"), model),
        ValueError,
        "rows.csv has one row; a standard error needs at least two",
    ),
    refused(
        "`transform` with a density",
        command("transform run --data rows.csv --out z.csv", table, lambda: model(density)),
        ValueError,
        "run holds a LogConcaveDensity; only a flow maps rows to latent points",
    ),
    refused(
        "`sample --out` of a .txt",
        command("sample run --out new.txt", model),
        ValueError,
        "cannot write new.txt: its name must end in .csv, .npy or .npz (also ...)",
    ),
    refused(
        "`sample --out` of a folder",
        command("sample run --out new.csv", lambda: Path("new.csv").mkdir()),
        IsADirectoryError,
        "cannot write new.csv: it is a folder",
    ),
    refused(
        "`sample --out` of a file that is there",
        command("sample run --out new.csv", lambda: text("", "new.csv")),
        FileExistsError,
        "new.csv exists; pass --force to replace it",
    ),
    refused(
        "`sample --out` in a folder that is not there",
        command("sample run --out none/new.csv"),
        FileNotFoundError,
        "cannot write none/new.csv: there is no folder none",
    ),
    refused(
        "`evaluate` of a table that lacks a column of the model",
        command("evaluate run --data rows.csv", named_model, lambda: text("a,c\n1,2\n3,4\n")),
        ValueError,
        "rows.csv has no column 'b', which the model reads; it has a, c",
    ),
    refused(
        "`evaluate` of a table without names and with too many columns",
        command("evaluate run --data rows.csv", named_model, lambda: text("1.5,2,3\n4.5,5,7\n")),
        ValueError,
        "rows.csv has 3 columns without names; the model reads 2 (a, b): choose them with --columns",
    ),
    refused(
        "`evaluate --target` of a flow",
        command("evaluate run --data rows.csv --target a", table, model),
        ValueError,
        "--target is for regressions; run holds a ConvexPotentialFlow",
    ),
    refused(
        "`freeze` of a folder that is not there",
        command("freeze run"),
        FileNotFoundError,
        "run does not exist",
    ),
    refused(
        "`freeze` of a folder without a run of a command",
        command("freeze run", lambda: Path("run").mkdir()),
        ValueError,
        "run holds no run of `convexlift train` that has been evaluated: it has no train.json",
    ),
    refused(
        "`freeze` of a run that is finished",
        command(
            "freeze run", table, lambda: run("train flow --data rows.csv --out run --steps 1 --hidden 4")
        ),
        FileExistsError,
        "run holds model.safetensors already; pass --force to replace it",
    ),
    refused(
        "`sample` of a regression",
        command("sample run --out new.csv", lambda: model(regression)),
        ValueError,
        "run holds a ConvexRegression, which is not a density",
    ),
    refused(
        "`predict` with a flow",
        command("predict run --data rows.csv --out y.csv", table, model),
        ValueError,
        "run holds a ConvexPotentialFlow; only a regression predicts a target",
    ),
    refused(
        "`evaluate` of a run that has not ended",
        command("evaluate run --data rows.csv", table, lambda: fit(run_dir="run", validation=rows())),
        ValueError,
        "run/best.safetensors is a checkpoint of an unfinished training run, not a frozen model: "
        "go on with the run, or make a model of its best step so far with `convexlift freeze run`",
        kin="by a command",
    ),
]


def unbegun(do: Callable[[], Any]) -> Callable[[], Any]:
    """To do something as far as the first run of a comparison, which fails."""

    def until() -> Any:
        with (
            patch("convexlift.study.comparison.Workers", side_effect=RuntimeError("it has begun")),
            patch("convexlift.study.ablation.Workers", side_effect=RuntimeError("it has begun")),
        ):
            return do()

    return until


def comparing(words: str, *before: Callable[[], object]) -> Callable[[], Any]:
    return unbegun(command(words, *before))


def compared(**options: Any) -> Callable[[], Any]:
    return unbegun(lambda: compare(out="run", **options))


STUDIES: list[Case] = [
    refused(
        "`compare gambel`",
        comparing("compare gambel"),
        ValueError,
        "unknown problem 'gambel'; did you mean 'gumbel'? known: ...",
    ),
    refused(
        "`compare gumbel --data rows.csv`",
        comparing("compare gumbel --data rows.csv", table),
        ValueError,
        "problem 'gumbel' reads no file; remove --data rows.csv",
    ),
    refused(
        "`compare --arms lfit`",
        comparing("compare gumbel --arms lfit"),
        ValueError,
        "unknown arm 'lfit'; known: ...",
    ),
    refused(
        "`compare --arms ''`",
        compared(problem="gumbel", arms=[]),
        ValueError,
        "no arms to compare; known: ...",
    ),
    refused(
        "`compare --rates fast`",
        comparing("compare gumbel --rates fast"),
        ValueError,
        "--rates: 'fast' is not a number",
    ),
    refused(
        "`compare --rates 2`",
        comparing("compare gumbel --rates 2"),
        ValueError,
        "learning rates must lie in (0, 1]; got 2",
    ),
    refused(
        "`compare --budget endless`",
        compared(problem="gumbel", budget="endless"),
        ValueError,
        "unknown budget 'endless' for a density problem; known: quick, standard, full, paper",
    ),
    refused(
        "a budget of 0 steps",
        lambda: Budget("mine", 0, 32, (0.01,), 1, 1, extensions=0),
        ValueError,
        "steps must be at least 2; got 0",
    ),
    refused(
        "`compare moon --objective score`",
        compared(problem="moon", objective="score"),
        ValueError,
        "an objective is for densities; problem 'moon' has task 'flow': add the task density",
    ),
    refused(
        "`compare regression-square --task density`",
        lambda: problem("regression-square").as_task("density"),
        ValueError,
        "problem 'regression-square' has task 'regression'; it cannot be taken as 'density'",
    ),
    refused(
        "`compare --own mine`",
        compared(own="mine"),
        ValueError,
        "own must be MODULE:FUNCTION; got 'mine'",
    ),
    refused(
        "`compare --own nowhere:mine`",
        compared(own="nowhere:mine"),
        ValueError,
        "cannot load 'nowhere:mine': No module named 'nowhere'",
    ),
    refused(
        "`compare gumbel --own mine:made`",
        compared(problem="gumbel", own="mine:made"),
        ValueError,
        "own brings its own problem and data: leave out the problem's name and data",
    ),
    refused(
        "a comparison of your own without arms",
        compared(own=lambda: (problem("gumbel"), {})),
        TypeError,
        "own must return at least one arm, each a function of a network",
    ),
    refused(
        "a comparison of your own that returns a problem alone",
        compared(own=lambda: problem("gumbel")),
        TypeError,
        "own must return (Problem, {name: arm}), an arm being a function of a network",
    ),
    refused(
        "`compare --out` of a comparison on another problem",
        comparing("compare logistic --out run", comparison),
        FileExistsError,
        "run holds a comparison on gumbel; choose another --out",
    ),
    refused(
        "`report` of a folder without a result",
        command("report run"),
        FileNotFoundError,
        "no comparison at run: run does not exist",
    ),
    refused(
        "`report` of a result that is cut short",
        command("report run", lambda: text('{"sch', "run/result.json")),
        ValueError,
        "run/result.json is not readable JSON",
    ),
    refused(
        "`report` of a training run",
        command("report run", lambda: text("{}", "run/result.json")),
        ValueError,
        "run/result.json is not the result of a comparison: it has no problem or no arms",
    ),
    refused(
        "`report` of a result of a later version",
        command("report run", lambda: comparison(schema=9)),
        ValueError,
        "run/result.json has schema 9; this version of convexlift reads schema 1",
    ),
    refused(
        "losses of two arms that cannot be paired",
        lambda: paired_difference([1.0], [1.0, 2.0]),
        ValueError,
        "expected as many losses on both sides, at least one; got 1 and 2",
    ),
    refused(
        "`ablate gumbel --optimizer lion`",
        comparing("ablate gumbel --optimizer lion"),
        ValueError,
        "unknown optimizer 'lion'; known: adam, sgd, soap",
        kin="another choice",
    ),
]

DATA: list[Case] = [
    refused(
        "`data fetch bsds300`",
        command("data fetch bsds300"),
        ValueError,
        "there is nothing to download for 'bsds300'; known: hepmass, miniboone, power, gas",
    ),
    refused(
        "`data show hepmass` without `--data`",
        command("data show hepmass"),
        ValueError,
        "hepmass needs --data FILE.npz with arrays 'train' and 'test' of at least 21 columns (MAF's "
        "preprocessing), or the folder of 1000_train.csv.gz and 1000_test.csv.gz, which 'convexlift "
        "data fetch hepmass' downloads",
    ),
    refused(
        "`data show power` without `--data`",
        command("data show power"),
        ValueError,
        "power needs --data household_power_consumption.txt (also .gz, .zip), which 'convexlift data "
        "fetch power' downloads, or an .npz file with arrays 'data' and 'columns'",
    ),
    refused(
        "`data show gas` without `--data`",
        command("data show gas"),
        ValueError,
        "gas needs --data ethylene_CO.txt (also .gz, .zip), which 'convexlift data fetch gas' "
        "downloads, or an .npz file with arrays 'train', 'val' and 'test'",
    ),
    refused(
        "`data show gas` of a pickle",
        command("data show gas --data gas.pickle", lambda: text("x", "gas.pickle")),
        ValueError,
        "gas.pickle is a pickle, which can run code when it is read: use ethylene_CO.txt instead",
    ),
    refused(
        "`data show miniboone` without `--data`",
        command("data show miniboone"),
        ValueError,
        "miniboone needs --data MiniBooNE_PID.txt (also .gz, .zip), which 'convexlift data fetch "
        "miniboone' downloads, MAF's data.npy, or an .npz file with arrays 'train', 'val' and 'test'",
    ),
    refused(
        "`data show hepmass` of a file that is not there",
        command("data show hepmass --data rows.npz"),
        FileNotFoundError,
        "no such file: rows.npz",
    ),
    refused(
        "`data show hepmass` of an .npz that is cut short",
        command("data show hepmass --data rows.npz", lambda: text("PK", "rows.npz")),
        ValueError,
        "rows.npz is not a readable .npz file",
    ),
    refused(
        "`data show hepmass` of an .npz without `train`",
        command("data show hepmass --data rows.npz", lambda: arrays(a=rows())),
        ValueError,
        "rows.npz has no array 'train'; hepmass needs 'train' and 'test'",
    ),
    refused(
        "`data show hepmass` of too few columns",
        command("data show hepmass --data rows.npz", lambda: arrays(train=rows(), test=rows())),
        ValueError,
        "rows.npz: 'train' must have at least 2 rows and 21 columns; got (60, 2)",
    ),
    refused(
        "`data show hepmass` of words",
        command(
            "data show hepmass --data rows.npz",
            lambda: arrays(train=rows(9, 21).numpy().astype(str), test=rows(9, 21)),
        ),
        ValueError,
        "rows.npz: 'train' must be numeric; got <U32",
    ),
    refused(
        "`data show hepmass` of an empty folder",
        command("data show hepmass --data run", lambda: Path("run").mkdir()),
        FileNotFoundError,
        "run holds neither 1000_train.csv nor 1000_train.csv.gz nor 1000_train.zip nor an .npz file",
    ),
    refused(
        "`data show mnist-latents` without `--data`",
        command("data show mnist-latents"),
        ValueError,
        "mnist-latents needs --data FOLDER with train-images-idx3-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte.gz",
    ),
    refused(
        "`data show mnist-latents` of a folder that is not there",
        command("data show mnist-latents --data none"),
        FileNotFoundError,
        "no such folder: none; mnist-latents needs one with train-images-idx3-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte.gz",
    ),
    refused(
        "`data show mnist-latents` of an empty folder",
        command("data show mnist-latents --data run", lambda: Path("run").mkdir()),
        FileNotFoundError,
        "run holds neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte, the train images "
        "of mnist-latents",
    ),
    refused(
        "`data show digits-latents:12`",
        command("data show digits-latents:12"),
        ValueError,
        "unknown class '12' of digits-latents; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ),
]

CASES = [*TRAINING, *USE, *STUDIES, *DATA]
