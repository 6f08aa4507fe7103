"""``convexlift evaluate``, ``sample`` and ``transform``: what a trained run is for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

import convexlift as cl
from convexlift.cli.errors import load_torch
from convexlift.cli.options import Reading
from convexlift.cli.outputs import check_output_file
from convexlift.cli.train import ORDERS

# Rows scored at a time, so that a large table fits.
_CHUNK = 4096

Run = Annotated[
    Path, typer.Argument(help="Folder that `convexlift train` wrote, or a model.safetensors file.")
]


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A file to write."""

    out: Annotated[Path, typer.Option(help="File to write: .csv, .npy, .parquet, ...", show_default=False)]
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False


@final
@dataclass(frozen=True, kw_only=True)
class Evaluate(Reading):
    """Score the rows of a file.

    Prints the mean negative log-likelihood with its standard error; of a regression the coefficient of
    determination and the root mean square error, in the units of the target.

    \b
    Example:
      convexlift evaluate runs/flow --data test.csv
    """

    run: Run
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Target of a regression. [default: that of training]"),
    ] = None

    def __call__(self) -> None:
        load_torch()
        import torch

        from convexlift.table_files import read_table

        model = load_model(self.run)
        if isinstance(model, cl.ConvexRegression):
            return self.evaluate_regression(model)
        if self.target is not None:
            raise ValueError(f"--target is for regressions; {self.run} holds a {type(model).__name__}")
        model = as_density(model, self.run)
        table = read_table(self.data, **self.how)
        rows = table.rows.to(model.dtype)
        if len(rows) < 2:
            raise ValueError(f"{self.data} has one row; a standard error needs at least two")
        with torch.no_grad():
            scores = torch.cat([model.log_prob(chunk) for chunk in rows.split(_CHUNK)])
        mean, error = -float(scores.double().mean()), float(scores.double().std()) / math.sqrt(len(rows))
        typer.echo(f"mean negative log-likelihood: {mean:.4f} ± {error:.4f} nats ({len(rows):,} rows)")
        typer.echo(f"{self.data}: {table}")

    def evaluate_regression(self, model: cl.ConvexRegression) -> None:
        """Print how far predictions are from the targets."""
        import torch

        from convexlift.cli import regression

        told = about(self.run)
        target = self.target or told.get("target")
        if target is None:
            raise ValueError(f"{self.run} does not say which column its target is: pass --target COLUMN")
        pairs = regression.read_pairs(self, target, told.get("columns"), dtype=torch.float64)
        scores = regression.errors_of(regression.predictions(model, pairs.x), pairs.y)
        typer.echo(f"{regression.in_words(scores)} ({len(pairs.y):,} rows, target {pairs.target})")
        typer.echo(f"{self.data}: {pairs.table}")


@final
@dataclass(frozen=True, kw_only=True)
class Sample(_Output):
    """Draw rows from a trained model.

    \b
    Example:
      convexlift sample runs/flow -n 1000 --out samples.csv
    """

    run: Run
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many rows to draw.")] = 1000
    seed: Annotated[int, typer.Option(help="The same seed draws the same rows.")] = 0

    def __call__(self) -> None:
        check_output_file(self.out, force=self.force)
        model = load_density(self.run)
        _write(self.out, model.sample(self.n, seed=self.seed), column_names(self.run, model.dim))


@final
@dataclass(frozen=True, kw_only=True)
class Transform(_Output, Reading):
    """Map rows to latent points of a flow.

    They are standard normal as far as the flow fits.

    \b
    Example:
      convexlift transform runs/flow --data test.csv --out latent.csv
    """

    run: Run

    def __call__(self) -> None:
        load_torch()
        import torch

        from convexlift.table_files import read_table

        check_output_file(self.out, force=self.force)
        model = load_density(self.run)
        if not isinstance(model, cl.ConvexPotentialFlow):
            kind = type(model).__name__
            raise ValueError(f"{self.run} holds a {kind}; only a flow maps rows to latent points")
        table = read_table(self.data, **self.how)
        with torch.no_grad():
            chunks = table.rows.to(model.dtype).split(_CHUNK)
            latent = torch.cat([model(chunk)[0] for chunk in chunks])
        _write(self.out, latent, [f"z{place}" for place in range(1, model.dim + 1)])
        typer.echo(f"{self.data}: {table}")


@final
@dataclass(frozen=True, kw_only=True)
class Predict(_Output, Reading):
    """Write the values of a regression at the rows of a file.

    \b
    Example:
      convexlift predict runs/cost --data new.csv --out predicted.csv
    """

    run: Run

    def __call__(self) -> None:
        from convexlift.cli import regression

        check_output_file(self.out, force=self.force)
        model = load_model(self.run)
        if not isinstance(model, cl.ConvexRegression):
            kind = type(model).__name__
            raise ValueError(f"{self.run} holds a {kind}; only a regression predicts a target")
        told = about(self.run)
        table, x = regression.read_inputs(self, told.get("columns"))
        _write(self.out, regression.predictions(model, x)[:, None], [f"{told.get('target', 'y')}_predicted"])
        typer.echo(f"{self.data}: {table}")


def load_model(run: Path) -> Any:
    """The model of a run folder or model file."""
    load_torch()
    return cl.load(run)


def load_density(run: Path) -> Any:
    """The flow or density of a run folder or model file.

    Raises:
        ValueError: the run has not finished, or the model has no density.
    """
    return as_density(load_model(run), run)


def as_density(model: Any, run: Path) -> Any:
    """The model, if it is a flow or density."""
    if not isinstance(model, cl.ConvexPotentialFlow | cl.LogConcaveDensity):
        raise ValueError(f"{run} holds a {type(model).__name__}, which is not a density")
    return model


def about(run: Path) -> dict[str, Any]:
    """What the run has written of its table, empty where it has not."""
    folder = run if run.is_dir() else run.parent
    for name in ("result.json", ORDERS):
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(told, dict) and "columns" in told:
            return told
    return {}


def column_names(run: Path, dim: int) -> list[str]:
    """The names of the training table's columns, as far as the run knows them."""
    names = about(run).get("columns")
    if isinstance(names, list) and len(names) == dim:
        return [str(name) for name in names]
    return [f"x{place}" for place in range(1, dim + 1)]


def _write(file: Path, rows: Any, names: list[str]) -> None:
    from convexlift.table_files import write_table

    write_table(file, rows, names)
    typer.echo(f"{len(rows):,} rows written to {file}")
