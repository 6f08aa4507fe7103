"""``convexlift train KIND``: from a table to a frozen model in a run folder."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import typer

import convexlift as cl
from convexlift.cli.errors import Interrupted, load_torch
from convexlift.cli.options import Reading, one_of
from convexlift.cli.outputs import check_output_folder, check_writable
from convexlift.cli.screening import allowed, in_words_of_options, warnings_told, without_missing
from convexlift.cli.yardstick import beside_gaussian, compared
from convexlift.counting import counted
from convexlift.defaults import ANY, DENSITY, FLOW, Defaults
from convexlift.files import write_json, write_whole
from convexlift.names import (
    DTYPES,
    LIKELIHOODS,
    OBJECTIVES,
    OPTIMIZERS,
    SCHEDULES,
    SCREENS,
    SEARCHES,
    SOURCES,
    check_name,
)

if TYPE_CHECKING:
    from torch import Tensor

    from convexlift.table_files import Table
    from convexlift.tensorboard import TensorBoard
    from convexlift.tuning import Found

ORDERS = "train.json"
# What has nothing to do with the model.
_NOT_ASKED = ("out", "resume", "device", "tensorboard")

# Options whose default depends on the kind of model.
Depth = Annotated[int, typer.Option(min=1, help="Number of hidden layers, where --hidden is one width.")]
Sharpness = Annotated[float, typer.Option(help="k of the activation softplus(k u) / k.")]
Whiten = Annotated[
    bool, typer.Option("--whiten", help="Take the principal components of the columns at unit deviation.")
]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]

# What `fit` is told as the options say it.
_OF_FIT = (
    "steps",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "averaging",
    "schedule",
    "warmup",
    "seed",
)


def rate_of(usual: Defaults) -> Any:
    """The option of the learning rate, for a kind of model with these defaults."""
    told = f"{usual.lr}; with soap {usual.soap_lr}, with sgd {ANY.lr}"
    return typer.Option(help=f"Learning rate, to begin with. [default: {told}]")


# What a search may change, and what it decides itself.
_SEARCHED = ("sharpness", "weight_decay", "whiten", "blocks", "slopes", "lr")
_OF_SEARCH = ("steps", "seed", "patience", "allow")


def widths(text: str) -> str:
    """The option --hidden as it is, if it is a list of widths.

    >>> widths("64,64,32")
    '64,64,32'
    """
    for word in text.split(","):
        if not (word.strip().isdecimal() and int(word) > 0):
            raise typer.BadParameter(
                f"{word!r} is not a width; give one, as in 64, or several, as in 64,64,32"
            )
    return text


@final
@dataclass(frozen=True)
class Rows:
    """What a run trains on: rows as its task takes them, the names of their columns, the table they are of,
    and what else the run should remember of them."""

    data: Any
    names: list[str]
    table: Table
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training(Reading):
    """What a call of ``train`` asks for, whatever the kind of model; calling it trains.

    A kind of model is a subclass: its docstring, its defaults, the options that it alone has, how it is built
    from the number of columns, and what there is to say of its frozen model.
    """

    usual: ClassVar[Defaults] = ANY

    out: Annotated[Path, typer.Option(help="Folder of the run; made if need be.", show_default=False)]
    source: Annotated[
        str, one_of(SOURCES, f"Weight source, which keeps weights at or above zero: {', '.join(SOURCES)}.")
    ] = ANY.source
    hidden: Annotated[
        str,
        typer.Option(
            metavar="WIDTHS", callback=widths, help="Width of the hidden layers, or of each: 64,64,32."
        ),
    ] = str(ANY.width)
    depth: Depth
    sharpness: Sharpness
    steps: Steps = ANY.steps
    optimizer: Annotated[
        str, one_of(OPTIMIZERS, "adam, sgd, or soap, which often fits better and needs convexlift[soap].")
    ] = "adam"
    lr: Annotated[float | None, rate_of(ANY)] = None
    free_rate: Annotated[
        float, typer.Option(help="Multiplies the rate of the unconstrained weights: biases, skips, ...")
    ] = 1.0
    warmup: Annotated[int, typer.Option(min=0, help="Steps over which the rate is raised from 0.")] = 0
    weight_decay: Annotated[
        float,
        typer.Option(help="Decoupled decay of the unconstrained matrices; it helps some tables only."),
    ] = ANY.weight_decay
    averaging: Annotated[
        float,
        typer.Option(help="Decay of a moving average of the parameters, say 0.99; for a constant schedule."),
    ] = ANY.averaging
    schedule: Annotated[
        str, one_of(SCHEDULES, "What the rate does: cosine, which lowers it to 0, or constant.")
    ] = ANY.schedule
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = ANY.batch_size
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the rows kept aside to choose the best step by.")
    ] = ANY.validation_fraction
    patience: Annotated[
        str,
        typer.Option(
            help="How many evaluations, of 25 a run, without a better one end it; none: never; rising: "
            "validation rises for half of the run."
        ),
    ] = "rising"
    seed: Annotated[int, typer.Option(min=0, help="Of split, initial weights and batches.")] = 0
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")] = "cpu"
    dtype: Annotated[
        str,
        one_of(
            DTYPES, f"To train in: {', '.join(DTYPES)}; columns are centred and scaled in float64 before."
        ),
    ] = "float32"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False
    allow: Annotated[
        str | None, typer.Option(help=f"Checks of the data to leave out, by commas: {', '.join(SCREENS)}.")
    ] = None
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Add noise of a step's width to columns of few values.")
    ] = False
    search: Annotated[
        str | None,
        one_of(
            SEARCHES,
            "quick: first choose sharpness, decay, rate, steps, and a flow's blocks and whitening, by "
            "rows kept aside, at the cost of some five runs.",
        ),
    ] = None
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs of a search at a time. [default: one for each core]")
    ] = None
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Folder for TensorBoard: losses, weights, and what the mechanism's instruments show."
        ),
    ] = None

    def __call__(self) -> None:
        """Read, check, train, freeze, save; nothing is written before everything is checked."""
        self.check()
        with _interruption_told(self.out):
            self.run()

    def run(self) -> None:
        """Do what was asked, once the options are found to make sense."""
        load_torch()
        from convexlift.checks import check_device
        from convexlift.data import hold_out
        from convexlift.tuning.table import cost_of, table_of

        check_device(self.device)
        rows = self.read()
        model = self.untrained(rows)
        with warnings_told():  # rows are numbered as in the file
            self.preflight(model, rows.data, rows, allow=allowed(self.allow), where=rows.table.where)
        self.tell_reading(rows.table.how, str(rows.table))
        train, validation = hold_out(rows.data, self.validation_fraction, self.seed)
        self.preflight(model, train, rows)
        with ExitStack() as stack:
            boards = [stack.enter_context(board) for board in self.boards(train)]
            stack.enter_context(_run_folder(self.out, self.resume))
            if self.search is None:
                return self.train(model, train, validation, rows, boards)
            found = self.found(rows)
            typer.echo(table_of(found))
            chosen, begun = replace(self, **found.setting), time.process_time()
            chosen.train(chosen.untrained(rows), train, validation, rows, boards)
            typer.echo(cost_of(found, time.process_time() - begun))

    def found(self, rows: Rows) -> Found:
        """What a search chooses in place of the options."""

        from convexlift.data import count_rows
        from convexlift.training.fit import usual_settings
        from convexlift.tuning import quick_space, search

        base = {name: getattr(self, name) for name in _SEARCHED if hasattr(self, name)}
        columns = len(rows.names)
        if self.lr is None:
            base["lr"] = usual_settings(self.untrained(rows)).rate(self.optimizer)
        return search(
            partial(_built, self, columns),
            rows.data,
            quick_space(
                type(self).__name__.lower(),
                base,
                rows=count_rows(rows.data),
                columns=columns,
                likelihood=getattr(self, "objective", "mle") in LIKELIHOODS,
            ),
            base,
            steps=self.steps,
            share=self.validation_fraction,
            seed=self.seed,
            jobs=self.jobs,
            folder=self.out,
            resume=self.resume,
            **{name: told for name, told in self.how_to_fit.items() if name not in (*base, *_OF_SEARCH)},
        )

    def train(
        self, model: Any, train: Any, validation: Any, rows: Rows, boards: Sequence[TensorBoard]
    ) -> None:
        """Train the model, freeze and save it."""

        told: dict[str, Any] = {}

        def conclude(history: cl.History) -> dict[str, Any]:
            told.update(self.conclude(model, history, train, validation, rows))
            return told

        history = cl.fit(
            model,
            train,
            validation=validation,
            run_dir=self.out,
            callbacks=[lambda _: write_orders(self, rows), *boards],
            conclude=conclude,
            resume=self.resume,
            **self.how_to_fit,
        )
        if history.stopped == "interrupted":
            raise _interrupted(self.out, begun=True)
        self.tell(told, history)

    @property
    def rates(self) -> dict[str, float]:
        """Multipliers of the rate by group of parameters."""
        return {} if self.free_rate == 1 else {"free": self.free_rate}

    @property
    def how_to_fit(self) -> dict[str, Any]:
        """What `fit` is told, whatever the rows; these have been looked at."""
        import torch

        return {
            "dtype": getattr(torch, self.dtype),
            "device": self.device,
            "patience": _patience(self.patience),
            "allow": SCREENS,
            "rates": self.rates,
            **{option: getattr(self, option) for option in _OF_FIT},
        }

    def read(self) -> Rows:
        """The rows to train on."""
        table = self.table()
        rows = cl.dequantise(table.rows, self.seed) if self.dequantise else table.rows
        return Rows(rows, list(table.names), table)

    def table(self, target: str | None = None) -> Table:
        """The table as the file has it, in float64, a target last."""
        import torch

        from convexlift.table_files import read_table

        table = read_table(self.data, **self.how, target=target, dtype=torch.float64)
        return without_missing(table) if self.drop_missing else table

    def untrained(self, rows: Rows) -> Any:
        """The task for such rows, before training."""
        from convexlift.seeds import seeded

        with seeded(self.seed):
            model = self.build(len(rows.names))
        model.columns = self.columns_of(rows)
        return model

    def columns_of(self, rows: Rows) -> dict[str, Any] | None:
        """What the model remembers of its columns."""
        return {"x": rows.table.columns} if rows.table.columns else None

    def preflight(
        self,
        model: Any,
        data: Any,
        rows: Rows,
        *,
        allow: Iterable[str] = SCREENS,
        where: Callable[[int], str] | None = None,
    ) -> None:
        """Refuse rows that the task cannot start from, in words of the file and the command."""
        try:
            model.preflight(data, rows.names, allow=allow, where=where)
        except ValueError as error:
            text = in_words_of_options(str(error))
            if text.startswith("the table "):
                raise ValueError(f"{self.data}{text.removeprefix('the table')}") from None
            advice = ": leave it out with --columns" if re.match("column .* is constant", text) else ""
            counted = " (counted from 0)" if re.search(r"column \d", text) else ""
            raise ValueError(f"{self.data}: {text}{advice}{counted}") from None

    def build(self, dim: int) -> Any:
        """The untrained task for rows of so many columns."""
        raise NotImplementedError

    def further(self, frozen: Any) -> dict[str, Any]:
        """What else there is to say of a frozen model of this kind; here nothing."""
        return {}

    def draw(self, frozen: Any, train: Any, names: Sequence[str]) -> None:
        """Draw a frozen model of this kind; here nothing."""

    def network(self, dim: int, place: int = 0) -> Any:
        """The input-convex network of one block, with its source of weights."""
        from convexlift.sources.named import source_named

        net = cl.ICNN(
            dim,
            hidden=self.layers,
            sharpness=self.sharpness,
            strong_convexity=self.strong_convexity,
            seed=self.seed + place,
        )
        return source_named(self.source)(net)

    @property
    def layers(self) -> tuple[int, ...]:
        """The width of each hidden layer."""
        given = tuple(map(int, self.hidden.split(",")))
        return given if len(given) > 1 else given * self.depth

    def check(self) -> None:
        """Refuse what no run could use, before anything is loaded."""
        check_name("source", self.source, SOURCES)
        if self.search is not None:
            check_name("search", self.search, SEARCHES)
            if self.warmup:
                raise ValueError("--search trains for other numbers of steps too: leave --warmup out")
        allowed(self.allow)
        usual = next(option.default for option in fields(self) if option.name == "depth")
        if self.depth not in (len(self.layers), usual):
            raise ValueError(f"--hidden {self.hidden} has {len(self.layers)} layers; leave --depth out")
        if not (self.sharpness > 0 and math.isfinite(self.sharpness)):
            raise ValueError(f"--sharpness must be positive; got {self.sharpness}")
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        rate = self.usual.rate(self.optimizer) if self.lr is None else self.lr
        for option, given in (("lr", rate), ("free-rate", self.free_rate)):
            if not (given > 0 and math.isfinite(given)):
                raise ValueError(f"--{option} must be positive; got {given}")
        if self.warmup > self.steps:
            raise ValueError(f"--warmup must be at most --steps, {self.steps}; got {self.warmup}")
        rate *= self.free_rate
        if not (self.weight_decay >= 0 and rate * self.weight_decay < 1):
            what = "lr" if self.free_rate == 1 else "(lr * free-rate)"
            limit = f"below 1 / {what} = {1 / rate:g}"
            raise ValueError(f"--weight-decay must be at least 0 and {limit}; got {self.weight_decay}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"--averaging must be at least 0 and below 1; got {self.averaging}")
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("dtype", self.dtype, DTYPES)
        _patience(self.patience)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--validation-fraction must lie between 0 and 1; got {self.validation_fraction}"
            )

    @property
    def strong_convexity(self) -> float:
        """Where the learned alpha starts."""
        return ANY.strong_convexity

    def conclude(
        self, model: Any, history: cl.History, train: Any, validation: Any, rows: Rows
    ) -> dict[str, Any]:
        """Freeze, save and draw the trained model; return what joins the result of the run."""
        from convexlift.data import count_rows

        frozen = self.freeze(model, train)
        more = self.further(frozen)
        scored = self.score(frozen, validation, train)
        self.save(frozen, rows)
        _write_chart(self.out / "loss.svg", lambda: _loss_chart(history, self.unit(model)))
        self.draw(frozen, train, rows.names)
        return {
            "kind": f"train {type(self).__name__.lower()}",
            "data": self.data.name,
            "columns": rows.names,
            **rows.more,
            "rows": {"train": count_rows(train), "validation": count_rows(validation)},
            "source": self.source,
            "validation": scored,
            **more,
        }

    def freeze(self, model: Any, train: Any) -> Any:
        """The frozen model, on the CPU."""
        from convexlift.data import place_for

        return model.freeze(place_for(model, train)).to("cpu")

    def save(self, frozen: Any, rows: Rows) -> None:
        """Write the frozen model into the folder of the run."""
        from convexlift.training.run_folder import MODEL

        cl.save(frozen, self.out / MODEL)

    def score(self, frozen: Any, validation: Any, train: Any) -> dict[str, Any]:
        """How well the frozen model does on validation rows: here in nats, with a standard error.

        And how far that is from a Gaussian that is fitted to the training rows.
        """
        import torch

        with torch.no_grad():
            losses = -frozen.log_prob(validation).double()
        error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
        beside = beside_gaussian(losses, train, validation)
        return {"mean": float(losses.mean()), "sem": error, "less_gaussian": beside}

    def scored(self, score: dict[str, Any]) -> str:
        """The same in words."""
        within = "" if score["sem"] is None else f" ± {score['sem']:.4f}"
        return f"negative log-likelihood: {score['mean']:.4f}{within} nats"

    def compared(self, score: dict[str, Any]) -> str | None:
        """The same beside the simplest model, in words; None where that cannot be fitted."""
        return score["less_gaussian"] and compared(**score["less_gaussian"])

    def unit(self, model: Any) -> str:
        """What the loss of training is."""
        return "negative log-likelihood (nats)"

    def tell(self, found: dict[str, Any], history: cl.History) -> None:
        """Print the outcome of a finished run."""
        from convexlift.table_columns import listed
        from convexlift.training.run_folder import MODEL

        rows = counted(found["rows"]["validation"], "row")
        typer.echo(
            f"validation {self.scored(found['validation'])} "
            f"({rows}, best step {history.best_step:,} of {self.steps:,})"
        )
        beside = self.compared(found["validation"])
        if beside:
            typer.echo(f"that is {beside}")
        if history.best_step == self.steps:
            typer.echo(
                "the last step was the best: a higher --lr or more --steps may do better, or --search quick"
            )
        less = found["validation"].get("less_gaussian")
        if less and less["high"] >= 0 and self.search is None:
            typer.echo("other settings may do better: --search quick tries some")
        if history.stopped == "patience":
            typer.echo(
                f"stopped after step {history.steps[-1]:,}: validation has not been better since step "
                f"{history.best_step:,} (--patience none trains to the end)"
            )
        if "log_z" in found:
            typer.echo(f"log-densities are normalised to within {found['log_z']['error']:.2g} nats")
            most = [
                f"{name} {value:.5g}" for name, value in zip(found["columns"], found["mode"], strict=True)
            ]
            typer.echo(f"mode: {listed(most)}")
        drawn = [file.name for file in sorted(self.out.glob("*.svg"))]
        typer.echo(
            f"trained model: {self.out / MODEL}" + (f"; pictures: {', '.join(drawn)}" if drawn else "")
        )
        typer.echo("validation rows chose the step, which flatters a little; score other rows, and use it:")
        for command in self.next_commands():
            typer.echo(f"  convexlift {command}")
        if self.tensorboard is not None:
            typer.echo(f"for its curves: tensorboard --logdir {self.tensorboard}")

    def next_commands(self) -> tuple[str, ...]:
        """What to do with the model."""
        other, here = (f"evaluate {self.out} --data {file}{self.marks}" for file in ("other.csv", self.data))
        apart = f"{here} --folds 5 --out {self.out}/scores.csv"
        return other, apart, f"sample {self.out} -n 1000 --out new.csv"

    def boards(self, train: Any) -> list[TensorBoard]:
        """The TensorBoard callback, if any, with the instruments' numbers; nothing is written yet."""
        folder = self.tensorboard
        if folder is None:
            return []
        from convexlift.mechanism import Recorder, probe_batches
        from convexlift.tensorboard import TensorBoard
        from convexlift.training.run_folder import RunFolder

        check_writable(folder)
        anew = RunFolder(self.out).replaceable  # what it wrote here is replaced, too
        if not self.resume and not anew and any(folder.glob("events.out.tfevents.*")):
            raise FileExistsError(
                f"{folder} holds a TensorBoard run already; pass --resume to go on in it, or another folder"
            )
        return [TensorBoard(folder, Recorder(train, probe_batches(train, self.batch_size)))]


@final
@dataclass(frozen=True, kw_only=True)
class Flow(Training):
    """Train a convex potential flow.

    A density with exact likelihood and sampling, in any dimension.

    \b
    Examples:
      convexlift train flow --data rows.csv --out runs/flow
      convexlift train flow --data rows.npz --key train --out runs/deep --blocks 4 --steps 5000
      convexlift evaluate runs/flow --data test.csv
    """

    usual: ClassVar[Defaults] = FLOW

    depth: Depth = FLOW.depth
    sharpness: Sharpness = FLOW.sharpness
    steps: Steps = FLOW.steps
    lr: Annotated[float | None, rate_of(FLOW)] = None
    blocks: Annotated[int, typer.Option(min=1, help="Number of convex potentials, one after another.")] = 1
    whiten: Whiten = False

    def build(self, dim: int) -> cl.ConvexPotentialFlow:
        blocks = [self.network(dim, place) for place in range(self.blocks)]
        return cl.ConvexPotentialFlow(blocks, whiten=self.whiten)


@final
@dataclass(frozen=True, kw_only=True)
class Density(Training):
    """Train a log-concave density.

    Normalised by quadrature on one or two columns; above, by annealed importance sampling with a standard
    error. Draws density.svg: the density, its regions of 50, 90 and 99 %, or a corner plot, with the data.
    Whole numbers are read as numbers: a count has no density, so pass --dequantise.

    \b
    Examples:
      convexlift train density --data rows.csv --columns energy --out runs/energy
      convexlift train density --data rows.npy --source lift --objective mle --out runs/density
    """

    usual: ClassVar[Defaults] = DENSITY

    depth: Depth = DENSITY.depth
    sharpness: Sharpness = DENSITY.sharpness
    steps: Steps = DENSITY.steps
    lr: Annotated[float | None, rate_of(DENSITY)] = None
    objective: Annotated[
        str,
        one_of(OBJECTIVES, f"What training minimises: {', '.join(OBJECTIVES)}; mle is maximum likelihood."),
    ] = "mle"
    whiten: Whiten = False

    def check(self) -> None:
        super().check()
        check_name("objective", self.objective, OBJECTIVES)

    def build(self, dim: int) -> cl.LogConcaveDensity:
        return cl.LogConcaveDensity(self.network(dim), self.objective, whiten=self.whiten)

    def further(self, frozen: Any) -> dict[str, Any]:
        from convexlift.tasks.density import normalised

        error = normalised(frozen)["log_z_error"]
        log_z = {"value": float(frozen.log_z), "error": error}
        return {"log_z": log_z, "mode": frozen.mode().tolist()}

    def unit(self, model: Any) -> str:
        return super().unit(model) if model.objective.likelihood else "loss of the objective"

    def draw(self, frozen: Any, train: Any, names: Sequence[str]) -> None:
        _write_chart(self.out / "density.svg", lambda: _density_chart(frozen, train, names))


def _built(training: Training, dim: int, **setting: Any) -> Any:
    """The untrained task of other options, for rows of so many columns."""
    return replace(training, **setting).build(dim)


def write_orders(training: Training, rows: Rows) -> None:
    """Write down what was asked of a run, so that ``convexlift freeze`` can build its model again."""
    asked = {name: value for name, value in vars(training).items() if name not in _NOT_ASKED}
    asked["data"] = os.path.abspath(training.data)  # the command may be given elsewhere later
    kind = type(training).__name__.lower()
    told = {"kind": kind, "columns": rows.names, **rows.more, "options": asked}
    write_json(training.out / ORDERS, json.loads(json.dumps(told, default=str)))


@contextmanager
def _interruption_told(out: Path) -> Iterator[None]:
    """After Ctrl-C say what is kept and how to go on, and leave with the exit code of an interruption."""
    try:
        yield
    except KeyboardInterrupt:  # the name of the file is not taken from `training`, which loads torch
        begun = any((out / name).exists() for name in ("state.pt", "search.json"))
        raise _interrupted(out, begun=begun) from None


def _interrupted(out: Path, begun: bool) -> Interrupted:
    kept = f"{out} keeps the run: the same command with --resume goes on"
    return Interrupted(f"interrupted; {kept if begun else 'training had not begun'}")


def _patience(text: str) -> int | str | None:
    """What `fit` takes for the option."""
    if text in ("none", "0"):
        return None
    if text == "rising":
        return text
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--patience must be a number of evaluations, rising or none; got {text}")
    return int(text)


@contextmanager
def _run_folder(out: Path, resume: bool) -> Iterator[None]:
    """Check the folder of a run; where that is not begun after all, leave no empty folder behind."""
    from convexlift.training.run_folder import BEST, CONFIG, MODEL, RESULT, STATE, RunFolder
    from convexlift.tuning.records import SEARCH

    held = [name for name in (CONFIG, STATE, RESULT, BEST, MODEL, SEARCH) if (out / name).exists()]
    if held and not resume and not RunFolder(out).replaceable:
        raise FileExistsError(
            f"{out} holds {held[0]} already; pass --resume to go on with that run, or another --out"
        )
    if held and CONFIG not in held and held != [SEARCH]:
        raise ValueError(f"{out} holds {held[0]} but no run that could be resumed")
    if held and not resume:
        typer.echo(f"{out}: the run there came to nothing: begun anew", err=True)
        (out / SEARCH).unlink(missing_ok=True)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    check_output_folder(out)
    try:
        yield
    finally:
        with suppress(OSError):  # those that hold something stay
            for folder in made:
                folder.rmdir()


def _write_chart(file: Path, chart: Callable[[], str]) -> None:
    """Write a chart; what is not drawn is said, and is no reason to lose the run."""
    try:
        write_whole(file, chart().encode())
    except (RuntimeError, ImportError) as error:
        typer.echo(f"no {file.name}: {error}", err=True)


def _loss_chart(history: cl.History, label: str) -> str:
    """The loss curves as the text of an ``.svg`` file."""
    from convexlift.plots.svg import svg_file

    return svg_file(lambda: cl.plots.plot_history(history, label=label), f"{label} by step")


def _density_chart(density: cl.LogConcaveDensity, rows: Tensor, names: Sequence[str]) -> str:
    """A density beside its rows as the text of an ``.svg`` file."""
    from convexlift.plots.svg import svg_file

    title = f"The density of {', '.join(names)}"
    return svg_file(lambda: cl.plots.plot_density(density, rows, names=names), title)
