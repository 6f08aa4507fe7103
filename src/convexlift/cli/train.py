"""``convexlift train flow`` and ``train density``: from a table to a frozen model in a run folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from convexlift import saving
from convexlift.architectures import ICNN
from convexlift.cli.files import check_device, check_output_folder, check_training_table
from convexlift.files import write_whole
from convexlift.mechanism import Recorder, probe_batches
from convexlift.objectives import OBJECTIVES
from convexlift.plots import plot_density, plot_history
from convexlift.plots.svg import svg_file
from convexlift.study.arms import ARMS
from convexlift.study.scoring import normalised
from convexlift.tables import read_table
from convexlift.tasks import ConvexPotentialFlow, LogConcaveDensity
from convexlift.tasks.density import check_outliers
from convexlift.tasks.standardise import Standardiser, Whitener
from convexlift.tensorboard import TensorBoard
from convexlift.training import History, fit
from convexlift.training.optimisation import SCHEDULES

app = typer.Typer(rich_markup_mode=None)

Data = Annotated[Path, typer.Option(help="Table of rows: .csv, .npy or .npz.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder of the run; made if need be.", show_default=False)]
Source = Annotated[str, typer.Option(help=f"Where the non-negative weights come from: {', '.join(ARMS)}.")]
Hidden = Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")]
Depth = Annotated[int, typer.Option(min=1, help="Number of hidden layers.")]
Sharpness = Annotated[float, typer.Option(help="k of the activation softplus(k u) / k.")]
Blocks = Annotated[int, typer.Option(min=1, help="Number of convex potentials, one after another.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
Rate = Annotated[float, typer.Option(help="Learning rate of Adam, to begin with.")]
# For squared weights and each kind of task the rate that did best over eight problems, see docs/mechanism.md.
FLOW_RATE, DENSITY_RATE = 0.032, 0.064
Decay = Annotated[
    float,
    typer.Option(help="Decoupled decay of the unconstrained matrices; more for few or noisy rows."),
]
WEIGHT_DECAY = 0.0
Averaging = Annotated[
    float,
    typer.Option(help="Decay of a moving average of the parameters, say 0.99; for a constant schedule."),
]
AVERAGING = 0.0
RateSchedule = Annotated[
    str, typer.Option("--schedule", help="What the rate does: cosine, which lowers it to 0, or constant.")
]
SCHEDULE = "cosine"
# Twice as sharp units helped flows, see docs/potential-search.md.
FLOW_SHARPNESS, DENSITY_SHARPNESS = 2.0, 1.0
BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a step.")]
Fraction = Annotated[float, typer.Option(help="Share of the rows kept aside to choose the best step by.")]
Seed = Annotated[int, typer.Option(help="Of split, initial weights and batches.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")]
Key = Annotated[str | None, typer.Option(help="Which array of an .npz file.")]
Columns = Annotated[str | None, typer.Option(help='Columns to use, by name or number: "pt,eta" or "1-5,8".')]
Objective = Annotated[
    str, typer.Option(help=f"What training minimises: {', '.join(OBJECTIVES)}; mle is maximum likelihood.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
Board = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        help="Folder for TensorBoard: losses, weights, and what the mechanism's instruments show.",
    ),
]


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


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a call of ``train`` asks for, whatever the model."""

    data: Path
    out: Path
    source: str
    steps: int
    lr: float
    weight_decay: float
    averaging: float
    schedule: str
    batch_size: int
    validation_fraction: float
    seed: int
    device: str
    key: str | None
    columns: str | None
    resume: bool


@app.command()
def flow(
    data: Data,
    out: Out,
    source: Source = "squared",
    hidden: Hidden = 64,
    depth: Depth = 4,
    sharpness: Sharpness = FLOW_SHARPNESS,
    blocks: Blocks = 1,
    steps: Steps = 2000,
    lr: Rate = FLOW_RATE,
    weight_decay: Decay = WEIGHT_DECAY,
    averaging: Averaging = AVERAGING,
    schedule: RateSchedule = SCHEDULE,
    batch_size: BatchSize = 256,
    validation_fraction: Fraction = 0.1,
    seed: Seed = 0,
    device: Device = "cpu",
    key: Key = None,
    columns: Columns = None,
    resume: Resume = False,
    tensorboard: Board = None,
) -> None:
    """Train a convex potential flow.

    A density with exact likelihood and sampling, in any dimension.

    \b
    Examples:
      convexlift train flow --data rows.csv --out runs/flow
      convexlift train flow --data rows.npz --key train --out runs/deep --blocks 4 --steps 5000
      convexlift evaluate runs/flow --data test.csv
    """

    def build(dim: int) -> nn.Module:
        nets = [
            ICNN(dim, hidden=(hidden,) * depth, sharpness=sharpness, seed=seed + place)
            for place in range(blocks)
        ]
        return ConvexPotentialFlow([ARMS[source](net) for net in nets])

    order = Order(
        data=data,
        out=out,
        source=source,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        averaging=averaging,
        schedule=schedule,
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
        device=device,
        key=key,
        columns=columns,
        resume=resume,
    )
    _train("flow", order, build, tensorboard)


@app.command()
def density(
    data: Data,
    out: Out,
    source: Source = "squared",
    hidden: Hidden = 64,
    depth: Depth = 3,
    sharpness: Sharpness = DENSITY_SHARPNESS,
    steps: Steps = 2000,
    lr: Rate = DENSITY_RATE,
    weight_decay: Decay = WEIGHT_DECAY,
    averaging: Averaging = AVERAGING,
    schedule: RateSchedule = SCHEDULE,
    batch_size: BatchSize = 256,
    validation_fraction: Fraction = 0.1,
    seed: Seed = 0,
    objective: Objective = "mle",
    device: Device = "cpu",
    key: Key = None,
    columns: Columns = None,
    resume: Resume = False,
    tensorboard: Board = None,
) -> None:
    """Train a log-concave density.

    Normalised by quadrature on one or two columns; above, by annealed importance sampling with a standard
    error. Draws density.svg: the density, its regions of 50, 90 and 99 %, or a corner plot, with the data.
    Whole numbers are read as numbers: a count has no density, so add uniform noise of one step to it first.

    \b
    Examples:
      convexlift train density --data rows.csv --columns energy --out runs/energy
      convexlift train density --data rows.npy --source lift --objective mle --out runs/density
    """

    def build(dim: int) -> nn.Module:
        block = ARMS[source](ICNN(dim, hidden=(hidden,) * depth, sharpness=sharpness, seed=seed))
        return LogConcaveDensity(block, objective)

    order = Order(
        data=data,
        out=out,
        source=source,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        averaging=averaging,
        schedule=schedule,
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
        device=device,
        key=key,
        columns=columns,
        resume=resume,
    )
    _train("density", order, build, tensorboard)


def _train(kind: str, order: Order, build: Callable[[int], nn.Module], board: Path | None) -> None:
    """Read, check, train, freeze, save; nothing is written before everything is checked."""
    if order.source not in ARMS:
        raise ValueError(f"unknown source '{order.source}'; known: {', '.join(ARMS)}")
    if not (order.lr > 0 and math.isfinite(order.lr)):
        raise ValueError(f"--lr must be positive; got {order.lr}")
    if not (order.weight_decay >= 0 and order.lr * order.weight_decay < 1):
        raise ValueError(
            f"--weight-decay must be at least 0 and below 1 / lr = {1 / order.lr:g}; got {order.weight_decay}"
        )
    if not 0 <= order.averaging < 1:
        raise ValueError(f"--averaging must be at least 0 and below 1; got {order.averaging}")
    if order.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule '{order.schedule}'; known: {', '.join(sorted(SCHEDULES))}")
    check_device(order.device)
    rows, names = read_table(order.data, order.key, order.columns)
    check_training_table(rows, names, order.data)
    train, validation = split(rows, order.validation_fraction, order.seed)
    if kind == "density":
        _check_density_rows(rows, train, order.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(order.seed)
        model: Any = build(rows.shape[1])
    with ExitStack() as stack:
        callbacks = [] if board is None else [stack.enter_context(_board(board, train, order))]
        _check_run_folder(order.out, order.resume)
        history = fit(
            model,
            train,
            validation=validation,
            steps=order.steps,
            batch_size=order.batch_size,
            lr=order.lr,
            weight_decay=order.weight_decay,
            averaging=order.averaging,
            schedule=order.schedule,
            seed=order.seed,
            device=order.device,
            run_dir=order.out,
            resume=order.resume,
            callbacks=callbacks,
        )
    if history.stopped == "interrupted":
        typer.echo(
            f"interrupted; {order.out} keeps the run: the same command with --resume goes on", err=True
        )
        raise typer.Exit(130)

    frozen = model.freeze(train.to(order.device)).to("cpu")
    known = normalised(frozen)["log_z_error"] if kind == "density" else None
    with torch.no_grad():
        losses = -frozen.log_prob(validation).double()
    mean, error = float(losses.mean()), float(losses.std()) / math.sqrt(max(len(losses), 2))
    saving.save(frozen, order.out / "model.safetensors")
    _write_result(
        order.out,
        {
            "kind": f"train {kind}",
            "data": order.data.name,
            "columns": names,
            "rows": {"train": len(train), "validation": len(validation)},
            "source": order.source,
            "validation": {"mean": mean, "sem": error if len(losses) > 1 else None},
            **({} if known is None else {"log_z": {"value": float(frozen.log_z), "error": known}}),
        },
    )
    name = "negative log-likelihood (nats)" if _is_likelihood(model) else "loss of the objective"
    _draw(loss_chart, history, name, file=order.out / "loss.svg")
    if kind == "density":
        _draw(density_chart, frozen, train.to(frozen.dtype), names, file=order.out / "density.svg")
    within = f" ± {error:.4f}" if len(losses) > 1 else ""
    typer.echo(
        f"validation negative log-likelihood: {mean:.4f}{within} nats "
        f"({len(validation):,} rows, best step {history.best_step:,} of {order.steps:,})\n"
        + ("" if known is None else f"log Z: {float(frozen.log_z):.4f} ± {known:.2g}\n")
        + f"frozen model: {order.out / 'model.safetensors'}"
        + (f"\nfor its curves: tensorboard --logdir {board}" if board is not None else "")
    )


def split(rows: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation rows, drawn without replacement.

    Raises:
        ValueError: the fraction is not between 0 and 1, or leaves fewer than two rows to train on.

    >>> [len(part) for part in split(torch.zeros(100, 2), 0.1, seed=0)]
    [90, 10]
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--validation-fraction must lie between 0 and 1; got {fraction}")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    kept = max(1, round(fraction * len(rows)))
    if len(rows) - kept < 2:
        raise ValueError(f"{len(rows)} rows are too few: {len(rows) - kept} would be left to train on")
    return rows[order[kept:]], rows[order[:kept]]


def _check_density_rows(rows: Tensor, train: Tensor, data: Path) -> None:
    """Refuse rows that a density could not be standardised by, before anything is written."""
    try:
        check_outliers(rows)
        (Standardiser(1) if rows.shape[1] == 1 else Whitener(rows.shape[1])).fit(train)
    except ValueError as error:
        counted = " (counted from 0)" if re.search(r"column \d", str(error)) else ""
        raise ValueError(f"{data}: {error}{counted}") from None


def _is_likelihood(model: nn.Module) -> bool:
    return not isinstance(model, LogConcaveDensity) or model.objective.likelihood


def _board(folder: Path, train: Tensor, order: Order) -> TensorBoard:
    """The TensorBoard callback, with the instruments' numbers; nothing is written yet."""
    if not order.resume and any(folder.glob("events.out.tfevents.*")):
        raise FileExistsError(
            f"{folder} holds a TensorBoard run already; pass --resume to go on in it, or another folder"
        )
    return TensorBoard(folder, Recorder(train, probe_batches(train, order.batch_size)))


def _check_run_folder(out: Path, resume: bool) -> None:
    names = ("config.json", "state.pt", "result.json", "model.safetensors")
    held = [name for name in names if (out / name).exists()]
    if held and not resume:
        raise FileExistsError(
            f"{out} holds {held[0]} already; pass --resume to go on with that run, or another --out"
        )
    if held and "config.json" not in held:
        raise ValueError(f"{out} holds {held[0]} but no run that could be resumed")
    check_output_folder(out)


def _write_result(out: Path, found: dict[str, Any]) -> None:
    """Add to the result that ``fit`` wrote."""
    file = out / "result.json"
    result = {**json.loads(file.read_text(encoding="utf-8")), **found}
    write_whole(file, (json.dumps(result, indent=1) + "\n").encode())


def loss_chart(history: History, y_label: str = "negative log-likelihood (nats)") -> str:
    """The loss curves as the text of an ``.svg`` file."""
    return svg_file(lambda: plot_history(history, label=y_label), f"{y_label} by step")


def density_chart(density: LogConcaveDensity, rows: Tensor, names: list[str]) -> str:
    """The density and the rows as the text of an ``.svg`` file."""
    return svg_file(lambda: plot_density(density, rows, names=names), f"The density of {', '.join(names)}")


def _draw(chart: Callable[..., str], *what: Any, file: Path) -> None:
    """Write a chart; the model is kept where it cannot be drawn."""
    try:
        write_whole(file, chart(*what).encode())
    except (ImportError, RuntimeError) as error:
        typer.echo(f"no {file.name}: {error}", err=True)
