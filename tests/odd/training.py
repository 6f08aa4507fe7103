"""Data, modules and settings of `fit`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import convexlift as cl
from convexlift.data import Batches, hold_out
from convexlift.locks import owned
from convexlift.training import History

from .case import Case, answered, refused, warned
from .given import Mean, density, fit, flow, made, net, regression, rows, text, with_column, with_entry


def begun(**options: Any) -> None:
    fit(run_dir="run", **options)


def taken() -> Any:
    begun()
    with owned(Path("run")):
        return fit(run_dir="run", resume=True)


def after_divergence() -> int:
    with contextlib.suppress(cl.TrainingDiverged):
        begun(module=Mean(), data=1e30 * rows())
    return fit(run_dir="run").steps[-1]


def after_refusal() -> bool:
    """Whether there is a folder of a run that could not begin."""
    with contextlib.suppress(ValueError):
        begun(module=flow(), data=with_column(1.0))
    return Path("run").exists()


def again() -> None:
    made = flow()
    made.initialise(rows())
    made.initialise(100 + rows())


def steep(made: Any) -> Any:
    return fit(made, lr=1e3, steps=30)


def after_steep() -> bool:
    """Whether a flow is of use after it has diverged."""
    made = cl.ConvexPotentialFlow([cl.Squared(net())])
    with contextlib.suppress(cl.TrainingDiverged):
        steep(made)
    return bool(made.freeze().log_prob(rows()).isfinite().all())


def rising() -> int:
    """At which of 25 steps training ends where the validation loss rises from the start."""
    return fit(data=rows() + 5, validation=rows() - 5, steps=25, lr=0.1, schedule="constant").steps[-1]


def without_soap() -> Any:
    with patch.dict(sys.modules, {"pytorch_optimizer": None}):
        return fit(optimizer="soap")


def flushed() -> bool:
    """Whether numbers below the smallest normal one are zero in training, and only there."""
    found = []
    made = Mean()
    loss = made.loss
    made.loss = lambda batch: (found.append(bool(torch.tensor(1e-30) * 1e-10 == 0)), loss(batch))[1]
    fit(made)
    return all(found) and bool(torch.tensor(1e-30) * 1e-10 != 0)


DATA: list[Case] = [
    refused(
        "`fit` on a list of numbers",
        lambda: fit(data=[[1.0]]),
        TypeError,
        "training data must be a tensor, a tuple of row-aligned tensors, Unpaired or a Simulator; got list",
    ),
    refused("`fit` on an empty tuple", lambda: fit(data=()), ValueError, "training data are an empty tuple"),
    refused(
        "`fit` on a pair with a list in it",
        lambda: fit(data=(rows(), [1.0])),
        TypeError,
        "training data (tensor 1 of 2) must be a tensor; got list",
    ),
    refused(
        "`fit` on whole numbers",
        lambda: fit(data=rows().long()),
        TypeError,
        "training data must be floating-point; got int64",
    ),
    refused(
        "`fit` on a single number",
        lambda: fit(data=torch.tensor(1.0)),
        ValueError,
        "training data must have rows; got a scalar tensor",
    ),
    refused(
        "`fit` on no rows", lambda: fit(data=rows()[:0]), ValueError, "training data are empty: shape (0, 2)"
    ),
    refused(
        "`fit` on rows with a NaN",
        lambda: fit(data=with_entry(torch.nan)),
        ValueError,
        "training data have NaN at row 3, column 1; convexlift.drop_missing leaves such rows out",
    ),
    refused(
        "`fit` in float32 on numbers of 1e300",
        lambda: fit(data=1e300 * rows().double().exp()),
        ValueError,
        "training data in float32 have an infinity at row 0, column 0 (60 of 60 rows have NaN or infinities)",
        kin="infinite only once it is cast",
    ),
    refused(
        "`fit` on a pair of other lengths",
        lambda: fit(data=(rows(), rows(5))),
        ValueError,
        "training data must have one row count; got 60, 5 rows",
    ),
    refused(
        "a `Simulator` of a tensor",
        lambda: cl.Simulator(rows()),
        TypeError,
        "a Simulator needs a function draw(n, generator); got Tensor",
    ),
    refused(
        "a `Simulator` that returns too few rows",
        lambda: fit(data=cl.Simulator(lambda n, g: rows())),
        ValueError,
        "draw(n, generator) must return n rows; asked for 20000, got 60 x 2",
    ),
    refused(
        "epochs of a `Simulator`",
        lambda: fit(data=cl.Simulator(lambda n, g: rows(n)), steps=None, epochs=1),
        ValueError,
        "a Simulator has no epochs; give steps",
    ),
    refused(
        "validation rows of another width",
        lambda: fit(validation=rows(dim=3)),
        ValueError,
        "validation rows have shape (3,), training rows (2,)",
    ),
    refused(
        "a pair as validation of single rows",
        lambda: fit(validation=(rows(), rows())),
        ValueError,
        "validation data must have the form of the training data",
    ),
    refused(
        "a share of rows to hold out of 1.5",
        lambda: hold_out(rows(), 1.5),
        ValueError,
        "the share of rows to hold out must lie between 0 and 1; got 1.5",
    ),
    refused(
        "rows to hold out of two rows",
        lambda: hold_out(rows(2), 0.5),
        ValueError,
        "2 rows are too few: 1 would be left to train on",
    ),
    answered(
        "fewer rows than a batch",
        lambda: len(Batches(rows(5), 256, 0).at(3).data),
        5,
        "every batch holds all of them",
        "convexlift.data",
        ("epoch, position = divmod(step, max(1, n // self.batch_size))", "epoch, position = 0, step"),
    ),
    answered(
        "one row in fifty to hold out of ten",
        lambda: len(hold_out(rows(10), 0.02)[1]),
        1,
        "one row is held out",
        "convexlift.data",
        ("held = max(1, round(share * n))", "held = round(share * n)"),
    ),
]

MODULES: list[Case] = [
    refused(
        "`fit` on a function",
        lambda: fit(len),
        TypeError,
        "fit trains a torch module; got builtin_function_or_method",
    ),
    refused(
        "`fit` on a module without `loss`",
        lambda: fit(nn.Linear(2, 1)),
        TypeError,
        "Linear has no method loss(batch)",
    ),
    refused(
        "`fit` on a module whose parameters ask for no gradient",
        lambda: fit(Mean().requires_grad_(False)),
        ValueError,
        "the module has no trainable parameters",
    ),
    refused(
        "a loss that returns one number for each row",
        lambda: fit(Mean(torch.ones(8))),
        TypeError,
        "loss(batch) must return a scalar tensor; got shape (8,)",
    ),
    refused(
        "a loss that no parameter enters",
        lambda: fit(Mean(torch.ones(()))),
        ValueError,
        "loss(batch) does not depend on any trainable parameter",
    ),
    refused(
        "a loss that is not a number",
        made(fit, Mean(), 1e30 * rows()),
        cl.TrainingDiverged,
        "training diverged after 0 steps: the loss is inf on a batch of 60 rows (...); "
        "the module is back at its state after 0 steps",
    ),
    answered(
        "a loss that underflows",
        flushed,
        True,
        "denormal numbers, which are slow, are zero in training and only there",
        "convexlift.training.denormals.flushed",
        contextlib.nullcontext,
    ),
    refused(
        "a flow trained with `lr=1e3`",
        lambda: steep(cl.ConvexPotentialFlow([cl.Squared(net())])),
        cl.TrainingDiverged,
        "training diverged after 1 step: the loss is inf on a batch of 60 rows (...); the "
        "module is back at its state after 0 steps",
        kin="of a flow",
    ),
    answered(
        "a flow that has diverged, asked for log-densities",
        after_steep,
        True,
        "its state before is finite on every row",
        "convexlift.training.fit.Run._go_back",
        lambda self: "",
    ),
    answered(
        "a validation loss that rises from the first step",
        rising,
        13,
        "training ends at step 13 of 25, and the best evaluation is kept",
        "convexlift.training.fit.Run._out_of_patience",
        lambda self: False,
    ),
]

SETTINGS: list[Case] = [
    refused("`steps=1.5`", lambda: fit(steps=1.5), TypeError, "steps must be an int; got 1.5"),
    refused("`steps=0`", lambda: fit(steps=0), ValueError, "steps must be at least 1; got 0"),
    refused(
        "`steps` and `epochs` at once",
        lambda: fit(steps=5, epochs=5),
        ValueError,
        "give steps or epochs, not both",
    ),
    refused("`lr=0`", lambda: fit(lr=0.0), ValueError, "lr must be a positive number; got 0.0"),
    refused(
        '`optimizer="lion"`',
        lambda: fit(optimizer="lion"),
        ValueError,
        "optimizer must be 'adam', 'sgd', 'soap' or a function of the parameter groups; got 'lion'",
    ),
    refused(
        "an optimizer function that returns a list",
        lambda: fit(optimizer=list),
        TypeError,
        "optimizer(groups) must return a torch optimiser; got list",
    ),
    refused(
        "`weight_decay=-1`",
        lambda: fit(weight_decay=-1.0),
        ValueError,
        "weight_decay must be a finite number of at least 0; got -1.0",
    ),
    refused(
        "`weight_decay` of an optimizer of your own",
        made(fit, optimizer=list, weight_decay=0.1),
        ValueError,
        "weight_decay is for 'adam', 'sgd' or 'soap'; an optimizer function sets its own",
    ),
    refused(
        "`weight_decay` that takes all of a weight",
        lambda: fit(lr=0.5, weight_decay=2.0),
        ValueError,
        "lr * weight_decay must be below 1; got 0.5 * 2",
    ),
    refused(
        "a schedule that raises the rate until decay takes all",
        made(fit, flow(), lr=0.1, weight_decay=1.0, schedule=lambda t: 20.0),
        ValueError,
        "the scheduled rate times weight_decay must be below 1; got 2 * 1",
    ),
    refused(
        '`rates={"weights": 2}`',
        lambda: fit(rates={"weights": 2.0}),
        ValueError,
        "rates knows the parameter groups 'source' and 'free'; got 'weights'",
    ),
    refused(
        '`rates={"free": 0}`',
        lambda: fit(rates={"free": 0.0}),
        ValueError,
        "rates['free'] must be a positive number; got 0.0",
    ),
    refused(
        "`rates=2`",
        lambda: fit(rates=2.0),
        TypeError,
        "rates must map parameter groups to multipliers; got 2.0",
    ),
    refused(
        "`rates` of an optimizer of your own",
        made(fit, optimizer=list, rates={"free": 2.0}),
        ValueError,
        "rates are for 'adam', 'sgd' or 'soap'; an optimizer function sets its own",
    ),
    refused(
        '`rates={"source": 2}` for a module without a weight source',
        lambda: fit(Mean(), rates={"source": 2.0}),
        ValueError,
        "rates['source']: the module has no trainable parameters in that group",
    ),
    refused(
        "a multiplier with which `weight_decay` takes all of a weight",
        lambda: fit(lr=0.1, rates={"free": 10.0}, weight_decay=1.0),
        ValueError,
        "lr * rates['free'] * weight_decay must be below 1; got 1 * 1",
        kin="a decay that takes all of a weight",
    ),
    refused(
        "`warmup` longer than the run",
        lambda: fit(steps=5, warmup=6),
        ValueError,
        "warmup must be at most the 5 steps; got 6",
    ),
    refused(
        '`optimizer="soap"` without pytorch_optimizer',
        without_soap,
        ImportError,
        "optimizer 'soap' needs pytorch_optimizer: pip install 'convexlift[soap]'",
    ),
    refused(
        "`averaging=1`",
        lambda: fit(averaging=1.0),
        ValueError,
        "averaging must be a number of at least 0 and below 1; got 1.0",
    ),
    refused(
        '`schedule="linear"`',
        lambda: fit(schedule="linear"),
        ValueError,
        "schedule must be 'cosine', 'constant' or a function of t; got 'linear'",
    ),
    refused(
        "a schedule that returns -1",
        lambda: fit(schedule=lambda t: -1.0),
        ValueError,
        "schedule(0) must be a finite number of at least 0; got -1.0",
    ),
    refused(
        "`patience` without validation data",
        lambda: fit(patience=3),
        ValueError,
        "patience needs validation data",
    ),
    refused(
        "`resume=True` without a folder", lambda: fit(resume=True), ValueError, "resume=True needs run_dir"
    ),
    refused(
        "`compile=None`", lambda: fit(compile=None), TypeError, "compile must be True or False; got None"
    ),
    refused(
        '`device="abacus"`',
        lambda: fit(device="abacus"),
        ValueError,
        "device 'abacus' is unknown or not available",
    ),
    refused(
        "`dtype=torch.int64`",
        lambda: fit(dtype=torch.int64),
        ValueError,
        "dtype must be a floating dtype; got int64",
    ),
    refused(
        "a callback that is a number",
        lambda: fit(callbacks=[3]),
        TypeError,
        "callbacks must be functions of a FitEvent; got int",
    ),
    refused(
        '`patience="soon"`',
        lambda: fit(patience="soon", validation=rows()),
        ValueError,
        "patience must be a number of evaluations, 'rising' or None; got 'soon'",
    ),
]


def resumed(change: Any, **options: Any) -> Any:
    """To begin a run, change something in its folder, and go on with it."""

    def do() -> Any:
        begun()
        change()
        return fit(run_dir="run", resume=True, **options)

    return do


def config(change: Any) -> Any:
    """To change the description of a run."""

    def do() -> None:
        file = Path("run/config.json")
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return do


def state(change: Any) -> Any:
    """To change the checkpoint of a run."""

    def do() -> None:
        held = torch.load("run/state.pt", weights_only=True)
        change(held)
        torch.save(held, "run/state.pt")

    return do


FOLDERS: list[Case] = [
    refused(
        "a folder that holds a run already",
        lambda: (begun(), begun()),
        FileExistsError,
        "run already holds a run; pass resume=True or another run_dir",
    ),
    refused(
        "a run folder inside a file",
        lambda: (text("", "run"), fit(run_dir="run/a")),
        NotADirectoryError,
        "cannot write run/a: Not a directory",
    ),
    refused(
        "a run to resume with another rate",
        resumed(lambda: None, lr=0.5),
        ValueError,
        "cannot resume run: lr was 0.001 and is now 0.5",
    ),
    refused(
        "a run to resume with another module",
        resumed(lambda: None, module=flow()),
        ValueError,
        "cannot resume run: module was 'Mean with 1 parameter tensors ...' and is now "
        "'ConvexPotentialFlow with 9 parameter tensors ...'",
        kin="of the module",
    ),
    refused(
        "a run to resume without its config.json",
        resumed(lambda: Path("run/config.json").unlink()),
        ValueError,
        "run/config.json is missing, so nothing says which run run holds",
    ),
    refused(
        "a run whose config.json is cut short",
        resumed(lambda: text('{"a', "run/config.json")),
        ValueError,
        "run/config.json is not readable JSON",
    ),
    refused(
        "a run whose config.json is a list",
        resumed(config(lambda found: [])),
        ValueError,
        "run/config.json is not the configuration of a run",
    ),
    refused(
        "a run whose state.pt is cut short",
        resumed(lambda: text(b"PK", "run/state.pt")),
        ValueError,
        "run/state.pt is not a readable checkpoint (truncated, or something else)",
    ),
    refused(
        "a run whose state.pt is of another program",
        resumed(lambda: torch.save({"a": 1}, "run/state.pt")),
        ValueError,
        "run/state.pt is not a checkpoint of a convexlift run",
    ),
    refused(
        "a run of version 0.1.0",
        resumed(state(lambda held: held.update(format="convexlift run 1"))),
        ValueError,
        "run/state.pt was written by convexlift 0.1.0, whose runs only that version can resume: go "
        "on there, or begin a new run in another folder",
    ),
    refused(
        "a history of another program",
        lambda: History.from_dict({"a": 1}),
        ValueError,
        "not a history: field 'a' is unknown",
    ),
    refused(
        "a run to resume that is in progress",
        taken,
        BlockingIOError,
        "run is in use by another process: wait until that ends, or choose another folder",
    ),
    answered(
        "a folder whose run diverged, for another run",
        after_divergence,
        2,
        "it is begun anew",
        "convexlift.training.run_folder",
        ('if not self.started or self._stopped() == "diverged":', "if not self.started:"),
    ),
    answered(
        "a run that is refused before its first step",
        after_refusal,
        False,
        "nothing is written",
        "convexlift.training.run_folder.RunFolder.open",
        lambda self, config, *, resume: self.begin(config),
    ),
]

TASKS: list[Case] = [
    refused(
        "a flow of numpy rows",
        lambda: flow().initialise(rows().numpy()),
        TypeError,
        "expected a tensor of samples; got ndarray",
    ),
    refused(
        "a flow of three columns for two",
        lambda: flow(3).initialise(rows()),
        ValueError,
        "expected (N, 3) samples; got (60, 2)",
    ),
    refused(
        "a network in float32 of float64 rows",
        lambda: net().emit()(rows().double()),
        TypeError,
        "expected float32 samples; got float64",
    ),
    refused(
        "a flow to be trained on one row",
        lambda: flow().initialise(rows(1)),
        ValueError,
        "need at least 2 rows to standardise samples; got 1",
    ),
    refused(
        "a constant column",
        lambda: flow().initialise(with_column(1.0)),
        ValueError,
        "column 1 is constant (every value is 1): remove it",
    ),
    refused(
        "a column of 1e38 in float32",
        lambda: flow().initialise(with_column(1e38 * rows()[:, 0].sign())),
        ValueError,
        "column 1 is too large for float32 (up to 1e+38)",
    ),
    refused(
        "a column of 1e-40 in float32",
        lambda: flow().initialise(with_column(1e-40 * rows()[:, 0])),
        ValueError,
        "column 1 is too small for float32 (deviation 9.33e-41)",
    ),
    refused(
        "a column that is the sum of others",
        lambda: density(3).initialise(torch.cat([rows(), rows().sum(1, keepdim=True)], 1)),
        ValueError,
        "column 2 is a linear combination of the others: remove it",
    ),
    refused(
        "a density of three columns on three rows",
        lambda: density(3).initialise(rows(3, 3)),
        ValueError,
        "need at least 4 rows to whiten 3 columns; got 3",
    ),
    refused(
        "a density of a column that is 0 in nine rows of ten",
        lambda: density(2).initialise(with_column(rows()[:, 0] * (torch.arange(60) < 2))),
        ValueError,
        "column 1 is 0 in nine rows of ten, which no density is: remove it or add noise to it",
    ),
    refused(
        "a density of rows with an entry of 1e9",
        lambda: density(2).initialise(with_entry(1e9)),
        ValueError,
        "row 3, column 1 is 1e+09, 2.6e+08 times the width of the middle 90 % of its column away "
        "from the median: remove or clip it",
    ),
    refused(
        "`preflight` of a table of one row",
        lambda: flow().preflight(rows(1)),
        ValueError,
        "the table has one row; training needs at least two",
    ),
    refused(
        "`preflight` of a constant column with a name",
        lambda: flow().preflight(with_column(2.0), ["a", "b"]),
        ValueError,
        "column 'b' is constant (every value is 2)",
    ),
    refused(
        "the loss of no rows, of a flow",
        lambda: flow().loss(rows()[:0]),
        ValueError,
        "a mean over no samples is not defined: the batch is empty",
    ),
    refused(
        "the loss of no rows, of a regression",
        lambda: regression().loss((rows()[:0], rows()[:0, 0])),
        ValueError,
        "a mean over no samples is not defined: the batch is empty",
    ),
    refused(
        "a regression without targets",
        lambda: regression().loss(rows()),
        TypeError,
        "expected a pair (x, y); got Tensor",
    ),
    refused(
        "a regression of 60 rows and 59 targets",
        lambda: regression().loss((rows(), rows()[1:, 0])),
        ValueError,
        "expected as many targets as inputs; got 59 and 60",
    ),
    refused(
        "a density whose weights are all zero",
        lambda: density(2).initialise((rows(), torch.zeros(60))),
        ValueError,
        "every weight is zero",
    ),
    refused(
        "a density with a negative weight",
        lambda: density(2).initialise((rows(), -torch.ones(60))),
        ValueError,
        "weights must not be negative; row 0 has -1",
    ),
    refused(
        "a conditional density of an `ICNN`",
        lambda: cl.ConditionalDensity(cl.ICNN(2)),
        TypeError,
        "expected a PICNN or a weight source of one; got ICNN",
    ),
    refused(
        "validation data whose weights are all zero",
        lambda: fit(density(2), (rows(), torch.ones(60)), validation=(rows(), torch.zeros(60))),
        ValueError,
        "every weight of the validation data is zero: nothing could be chosen by them",
    ),
    warned(
        "a task initialised on other data",
        again,
        UserWarning,
        "this task was initialised on other data: column 0 of the samples is now 107 deviations "
        "away and 1 times as wide; its scales stay as they are: make a new task to start anew",
    ),
]

CASES = [*DATA, *MODULES, *SETTINGS, *FOLDERS, *TASKS]
