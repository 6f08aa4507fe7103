"""``convexlift train``: the kinds of model; and ``freeze``, for a run of one that did not end."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, final

import typer

from convexlift.cli.errors import load_torch
from convexlift.cli.options import add_commands
from convexlift.cli.regression import Regression
from convexlift.cli.train import ORDERS, Density, Flow, Training

KINDS: dict[str, type[Training]] = {kind.__name__.lower(): kind for kind in (Flow, Density, Regression)}

app = typer.Typer(rich_markup_mode=None)
add_commands(app, *KINDS.values())


@app.callback(invoke_without_command=True)
def train_command(context: typer.Context) -> None:
    """Train a model on the rows of a file.

    \b
    Examples:
      convexlift train flow --data rows.csv --out runs/flow
      convexlift train density --data rows.csv --out runs/density
      convexlift train regression --data rows.csv --target cost --out runs/cost
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@final
@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Make a model of the best step so far of a run that did not end.

    Its weights are fixed (frozen), which makes it one convex function. Reads the table that the run was
    trained on again, and leaves model.safetensors in the folder of the run, for evaluate, sample, transform
    and predict. The run can go on from there as before.

    \b
    Example:
      convexlift freeze runs/flow
    """

    run: Annotated[Path, typer.Argument(help="Folder that `convexlift train` wrote.")]
    data: Annotated[
        Path | None, typer.Option(help="The table, where it has moved. [default: as in training]")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace the model of an earlier freeze.")] = False

    def __call__(self) -> None:
        training = training_of(self.run, self.data)
        load_torch()
        import torch

        from convexlift.data import describe, hold_out
        from convexlift.training.run_folder import BEST, MODEL, RunFolder

        if (self.run / MODEL).exists() and not self.force:
            raise FileExistsError(f"{self.run} holds {MODEL} already; pass --force to replace it")
        run = RunFolder(self.run)
        state, step = run.read_model()
        rows = training.read()
        train, _ = hold_out(rows.data, training.validation_fraction, training.seed)
        if describe(train) != run.read_config().get("data"):
            raise ValueError(f"{training.data} does not hold the rows that {self.run} was trained on")
        model = training.untrained(rows).to(getattr(torch, training.dtype))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{self.run / BEST} does not fit the run: {error}") from error
        model.set_progress(step / training.steps)
        training.save(training.freeze(model, train), rows)
        typer.echo(f"frozen model of step {step:,} of {training.steps:,}: {self.run / MODEL}")


def training_of(run: Path, data: Path | None = None) -> Training:
    """The call of ``train`` that made a run, with the table where it is now.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no run that has been evaluated, or does not say how it was made.
    """
    file = run / ORDERS
    if not run.is_dir():
        found = "is a file; give the folder of a run" if run.exists() else "does not exist"
        raise FileNotFoundError(f"{run} {found}")
    if not file.exists():
        raise ValueError(
            f"{run} holds no run of `convexlift train` that has been evaluated: it has no {ORDERS}"
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        kind, options = KINDS[told["kind"]], told["options"]
        known = {field.name for field in fields(kind)}
        options = {name: value for name, value in options.items() if name in known}
        return kind(**{**options, "data": data or Path(options["data"]), "out": run})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not say how the run was made: {error}") from error


def training_rows(run: Path) -> Any:
    """The rows that a run was trained on, if its table is still there and the same; else None."""
    from convexlift.data import describe, hold_out
    from convexlift.training.run_folder import RunFolder

    try:
        training = training_of(run)
        train, _ = hold_out(training.read().data, training.validation_fraction, training.seed)
        known = RunFolder(run).read_config().get("data")
    except (OSError, ValueError, ImportError):
        return None
    return train if describe(train) == known else None
