"""``convexlift train KIND``: from a table to a frozen model in a run folder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

import convexlift as cl
from convexlift.cli.options import Reading, add_commands
from convexlift.cli.outputs import check_output_folder, check_writable
from convexlift.cli.screening import allowed, in_words_of_options, warnings_told, without_missing
from convexlift.files import write_whole
from convexlift.names import DTYPES, OBJECTIVES, SCHEDULES, SCREENS, SOURCES, check_name

if TYPE_CHECKING:
    from torch import Tensor

    from convexlift.tensorboard import TensorBoard

# Options whose default depends on the kind of model. For squared weights and each kind of task the rate is
# the one that did best over eight problems, see docs/mechanism.md; twice as sharp units helped flows, see
# docs/potential-search.md.
Depth = Annotated[int, typer.Option(min=1, help="Number of hidden layers.")]
Sharpness = Annotated[float, typer.Option(help="k of the activation softplus(k u) / k.")]
Rate = Annotated[float, typer.Option(help="Learning rate of Adam, to begin with.")]

# What `fit` is told as the options say it.
_OF_FIT = ("steps", "batch_size", "lr", "weight_decay", "averaging", "schedule", "seed", "device", "resume")


@dataclass(frozen=True, kw_only=True)
class Training(Reading):
    """What a call of ``train`` asks for, whatever the kind of model; calling it trains.

    A kind of model is a subclass: its docstring, the options that it alone has, how it is built from the
    number of columns, and what there is to say of its frozen model.
    """

    out: Annotated[Path, typer.Option(help="Folder of the run; made if need be.", show_default=False)]
    source: Annotated[
        str, typer.Option(help=f"Where the non-negative weights come from: {', '.join(SOURCES)}.")
    ] = "squared"
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")] = 64
    depth: Depth
    sharpness: Sharpness
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000
    lr: Rate
    weight_decay: Annotated[
        float, typer.Option(help="Decoupled decay of the unconstrained matrices; more for few or noisy rows.")
    ] = 0.0
    averaging: Annotated[
        float,
        typer.Option(help="Decay of a moving average of the parameters, say 0.99; for a constant schedule."),
    ] = 0.0
    schedule: Annotated[
        str, typer.Option(help="What the rate does: cosine, which lowers it to 0, or constant.")
    ] = "cosine"
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 256
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the rows kept aside to choose the best step by.")
    ] = 0.1
    patience: Annotated[
        str,
        typer.Option(
            help="How many evaluations, of 25 a run, without a better one end it; none: never; rising: "
            "validation rises for half of the run."
        ),
    ] = "rising"
    seed: Annotated[int, typer.Option(help="Of split, initial weights and batches.")] = 0
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")] = "cpu"
    dtype: Annotated[
        str,
        typer.Option(
            help=f"To train in: {', '.join(DTYPES)}; columns are centred and scaled in float64 before."
        ),
    ] = "float32"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False
    allow: Annotated[
        str | None, typer.Option(help=f"Checks of the data to leave out, by commas: {', '.join(SCREENS)}.")
    ] = None
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave rows with missing values out.")
    ] = False
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Add noise of a step's width to columns of few values.")
    ] = False
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Folder for TensorBoard: losses, weights, and what the mechanism's instruments show."
        ),
    ] = None

    def __call__(self) -> None:
        """Read, check, train, freeze, save; nothing is written before everything is checked."""
        self.check()
        import torch

        from convexlift.checks import check_device
        from convexlift.data import hold_out
        from convexlift.seeds import seeded
        from convexlift.table_files import read_table

        check_device(self.device)
        table = read_table(self.data, **self.how, missing=self.drop_missing, dtype=torch.float64)
        rows, names, where = table.rows, table.names, table.where
        if self.drop_missing:
            rows, where = without_missing(rows, where)
        if self.dequantise:
            rows = cl.dequantise(rows, self.seed)
        with seeded(self.seed):
            model = self.build(rows.shape[1])
        model.columns = {"x": table.columns} if table.columns else None
        with warnings_told():  # rows are numbered as in the file
            _preflight(model, rows, names, self.data, allowed(self.allow), where)
        train, validation = hold_out(rows, self.validation_fraction, self.seed)
        _preflight(model, train, names, self.data)
        told: dict[str, Any] = {}

        def conclude(history: cl.History) -> dict[str, Any]:
            told.update(self.conclude(model, history, train, validation, names))
            return told

        with ExitStack() as stack:
            callbacks = [stack.enter_context(board) for board in self.boards(train)]
            stack.enter_context(_run_folder(self.out, self.resume))
            history = cl.fit(
                model,
                train,
                validation=validation,
                run_dir=self.out,
                callbacks=callbacks,
                conclude=conclude,
                dtype=getattr(torch, self.dtype),
                patience=_patience(self.patience),
                allow=SCREENS,  # looked at above
                **{option: getattr(self, option) for option in _OF_FIT},
            )
        if history.stopped == "interrupted":
            typer.echo(
                f"interrupted; {self.out} keeps the run: the same command with --resume goes on", err=True
            )
            raise typer.Exit(130)
        self.tell(told, history)
        self.tell_reading(table)

    def build(self, dim: int) -> Any:
        """The untrained task for rows of so many columns."""
        raise NotImplementedError

    def further(self, frozen: Any) -> dict[str, Any]:
        """What else there is to say of a frozen model of this kind; here nothing."""
        return {}

    def draw(self, frozen: Any, train: Tensor, names: Sequence[str]) -> None:
        """Draw a frozen model of this kind; here nothing."""

    def network(self, dim: int, place: int = 0) -> Any:
        """The input-convex network of one block, with its source of weights."""
        from convexlift.sources.named import source_named

        net = cl.ICNN(
            dim, hidden=(self.hidden,) * self.depth, sharpness=self.sharpness, seed=self.seed + place
        )
        return source_named(self.source)(net)

    def check(self) -> None:
        """Refuse what no run could use, before anything is loaded."""
        check_name("source", self.source, SOURCES)
        allowed(self.allow)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"--lr must be positive; got {self.lr}")
        if not (self.weight_decay >= 0 and self.lr * self.weight_decay < 1):
            limit = f"below 1 / lr = {1 / self.lr:g}"
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

    def conclude(
        self, model: Any, history: cl.History, train: Tensor, validation: Tensor, names: Sequence[str]
    ) -> dict[str, Any]:
        """Freeze, save and draw the trained model; return what joins the result of the run."""
        import torch

        from convexlift.training.run_folder import MODEL

        frozen = model.freeze(train.to(self.device)).to("cpu")
        more = self.further(frozen)
        with torch.no_grad():
            losses = -frozen.log_prob(validation).double()
        error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
        cl.save(frozen, self.out / MODEL)
        _write_chart(self.out / "loss.svg", lambda: _loss_chart(history, model))
        self.draw(frozen, train, names)
        return {
            "kind": f"train {type(self).__name__.lower()}",
            "data": self.data.name,
            "columns": list(names),
            "rows": {"train": len(train), "validation": len(validation)},
            "source": self.source,
            "validation": {"mean": float(losses.mean()), "sem": error},
            **more,
        }

    def tell(self, found: dict[str, Any], history: cl.History) -> None:
        """Print the outcome of a finished run."""
        from convexlift.training.run_folder import MODEL

        mean, error = found["validation"]["mean"], found["validation"]["sem"]
        within = "" if error is None else f" ± {error:.4f}"
        typer.echo(
            f"validation negative log-likelihood: {mean:.4f}{within} nats "
            f"({found['rows']['validation']:,} rows, best step {history.best_step:,} of {self.steps:,})"
        )
        if history.stopped == "patience":
            typer.echo(
                f"stopped after step {history.steps[-1]:,}: validation has not been better since step "
                f"{history.best_step:,} (--patience none trains to the end)"
            )
        if "log_z" in found:
            typer.echo(f"log Z: {found['log_z']['value']:.4f} ± {found['log_z']['error']:.2g}")
        typer.echo(f"frozen model: {self.out / MODEL}")
        if self.tensorboard is not None:
            typer.echo(f"for its curves: tensorboard --logdir {self.tensorboard}")

    def boards(self, train: Tensor) -> list[TensorBoard]:
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

    depth: Depth = 4
    sharpness: Sharpness = 2.0
    lr: Rate = 0.032
    blocks: Annotated[int, typer.Option(min=1, help="Number of convex potentials, one after another.")] = 1

    def build(self, dim: int) -> cl.ConvexPotentialFlow:
        return cl.ConvexPotentialFlow([self.network(dim, place) for place in range(self.blocks)])


@final
@dataclass(frozen=True, kw_only=True)
class Density(Training):
    """Train a log-concave density.

    Normalised by quadrature on one or two columns; above, by annealed importance sampling with a standard
    error. Draws density.svg: the density, its regions of 50, 90 and 99 %, or a corner plot, with the data.
    Whole numbers are read as numbers: a count has no density, so add uniform noise of one step to it first.

    \b
    Examples:
      convexlift train density --data rows.csv --columns energy --out runs/energy
      convexlift train density --data rows.npy --source lift --objective mle --out runs/density
    """

    depth: Depth = 3
    sharpness: Sharpness = 1.0
    lr: Rate = 0.064
    objective: Annotated[
        str,
        typer.Option(help=f"What training minimises: {', '.join(OBJECTIVES)}; mle is maximum likelihood."),
    ] = "mle"

    def check(self) -> None:
        super().check()
        check_name("objective", self.objective, OBJECTIVES)

    def build(self, dim: int) -> cl.LogConcaveDensity:
        return cl.LogConcaveDensity(self.network(dim), self.objective)

    def further(self, frozen: Any) -> dict[str, Any]:
        from convexlift.tasks.density import normalised

        error = normalised(frozen)["log_z_error"]
        return {"log_z": {"value": float(frozen.log_z), "error": error}}

    def draw(self, frozen: Any, train: Tensor, names: Sequence[str]) -> None:
        _write_chart(self.out / "density.svg", lambda: _density_chart(frozen, train, names))


app = typer.Typer(rich_markup_mode=None)
add_commands(app, Flow, Density)


@app.callback(invoke_without_command=True)
def train_command(context: typer.Context) -> None:
    """Train a model on the rows of a file.

    \b
    Examples:
      convexlift train flow --data rows.csv --out runs/flow
      convexlift train density --data rows.csv --out runs/density
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _preflight(
    model: Any,
    rows: Tensor,
    names: Sequence[str],
    data: Path,
    allow: Iterable[str] = SCREENS,
    where: Callable[[int], str] | None = None,
) -> None:
    """Refuse rows that the task cannot start from, in words of the file and the command."""
    try:
        model.preflight(rows, names, allow=allow, where=where)
    except ValueError as error:
        text = in_words_of_options(str(error))
        if text.startswith("the table "):
            raise ValueError(f"{data}{text.removeprefix('the table')}") from None
        advice = ": leave it out with --columns" if "is constant" in text else ""
        counted = " (counted from 0)" if re.search(r"column \d", text) else ""
        raise ValueError(f"{data}: {text}{advice}{counted}") from None


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

    held = [name for name in (CONFIG, STATE, RESULT, BEST, MODEL) if (out / name).exists()]
    if held and not resume and not RunFolder(out).replaceable:
        raise FileExistsError(
            f"{out} holds {held[0]} already; pass --resume to go on with that run, or another --out"
        )
    if held and CONFIG not in held:
        raise ValueError(f"{out} holds {held[0]} but no run that could be resumed")
    if held and not resume:
        typer.echo(f"{out}: the run there came to nothing: begun anew", err=True)
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


def _loss_chart(history: cl.History, model: Any) -> str:
    """The loss curves as the text of an ``.svg`` file."""
    from convexlift.plots.svg import svg_file

    likelihood = not isinstance(model, cl.LogConcaveDensity) or model.objective.likelihood
    label = "negative log-likelihood (nats)" if likelihood else "loss of the objective"
    return svg_file(lambda: cl.plots.plot_history(history, label=label), f"{label} by step")


def _density_chart(density: cl.LogConcaveDensity, rows: Tensor, names: Sequence[str]) -> str:
    """A density beside its rows as the text of an ``.svg`` file."""
    from convexlift.plots.svg import svg_file

    title = f"The density of {', '.join(names)}"
    return svg_file(lambda: cl.plots.plot_density(density, rows, names=names), title)
