"""``convexlift evaluate``, ``sample`` and ``transform``: what a trained run is for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from convexlift import saving
from convexlift.cli.files import check_output_file
from convexlift.tables import read_table, write_table
from convexlift.tasks import ConvexPotentialFlow, LogConcaveDensity

# Rows scored at a time, so that a large table fits.
_CHUNK = 4096

Run = Annotated[
    Path, typer.Argument(help="Folder that `convexlift train` wrote, or a model.safetensors file.")
]
Data = Annotated[Path, typer.Option(help="Table of rows: .csv, .npy or .npz.", show_default=False)]
Key = Annotated[str | None, typer.Option(help="Which array of an .npz file.")]
Columns = Annotated[str | None, typer.Option(help='Columns to use, by name or number: "pt,eta" or "1-5,8".')]
Out = Annotated[Path, typer.Option(help="File to write: .csv, .npy or .npz.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def evaluate(run: Run, data: Data, key: Key = None, columns: Columns = None) -> None:
    """Score the rows of a file.

    Prints the mean negative log-likelihood with its standard error.

    \b
    Example:
      convexlift evaluate runs/flow --data test.csv
    """
    model = load_density(run)
    rows = read_table(data, key, columns).rows
    if len(rows) < 2:
        raise ValueError(f"{data} has one row; a standard error needs at least two")
    with torch.no_grad():
        losses = torch.cat([-model.log_prob(chunk) for chunk in rows.to(model.dtype).split(_CHUNK)]).double()
    error = float(losses.std()) / math.sqrt(len(losses))
    typer.echo(
        f"mean negative log-likelihood: {float(losses.mean()):.4f} ± {error:.4f} nats ({len(rows):,} rows)"
    )


def sample(
    run: Run,
    out: Out,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many rows to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same rows.")] = 0,
    force: Force = False,
) -> None:
    """Draw rows from a trained model.

    \b
    Example:
      convexlift sample runs/flow -n 1000 --out samples.csv
    """
    check_output_file(out, force=force)
    model = load_density(run)
    write_table(out, model.sample(n, seed=seed), column_names(run, model.dim))
    typer.echo(f"{n:,} rows written to {out}")


def transform(
    run: Run, data: Data, out: Out, key: Key = None, columns: Columns = None, force: Force = False
) -> None:
    """Map rows to latent points of a flow.

    They are standard normal as far as the flow fits.

    \b
    Example:
      convexlift transform runs/flow --data test.csv --out latent.csv
    """
    check_output_file(out, force=force)
    model = load_density(run)
    if not isinstance(model, ConvexPotentialFlow):
        raise ValueError(f"{run} holds a {type(model).__name__}; only a flow maps rows to latent points")
    rows = read_table(data, key, columns).rows
    with torch.no_grad():
        latent: Tensor = torch.cat([model(chunk)[0] for chunk in rows.to(model.dtype).split(_CHUNK)])
    write_table(out, latent, [f"z{place}" for place in range(1, model.dim + 1)])
    typer.echo(f"{len(latent):,} rows written to {out}")


def load_density(run: Path) -> Any:
    """The flow or density of a run folder or model file.

    Raises:
        ValueError: the run has not finished, or the model has no density.
    """
    file = run / "model.safetensors" if run.is_dir() else run
    if run.is_dir() and not file.exists():
        raise ValueError(f"{run} holds no trained model (there is no {file.name} in it)")
    model = saving.load(file)
    if not isinstance(model, ConvexPotentialFlow | LogConcaveDensity):
        raise ValueError(f"{file} holds a {type(model).__name__}, which is not a density")
    return model


def column_names(run: Path, dim: int) -> list[str]:
    """The names of the training table's columns, as far as the run knows them."""
    folder = run if run.is_dir() else run.parent
    try:
        names = json.loads((folder / "result.json").read_text(encoding="utf-8"))["columns"]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    if isinstance(names, list) and len(names) == dim:
        return [str(name) for name in names]
    return [f"x{place}" for place in range(1, dim + 1)]
