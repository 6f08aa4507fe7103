"""``convexlift evaluate``, ``sample``, ``transform`` and ``predict``: what a trained run is for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

import convexlift as cl
from convexlift.cli.errors import load_torch
from convexlift.cli.kinds import training_of, training_rows
from convexlift.cli.options import Reading
from convexlift.cli.outputs import check_output_file
from convexlift.cli.regression import beside_simple, errors_of, exact, in_words, simple_predictions
from convexlift.cli.screening import without_missing
from convexlift.cli.yardstick import compared, gaussian_losses, interval, share_below
from convexlift.counting import counted

if TYPE_CHECKING:
    from torch import Tensor

    from convexlift.table_files import Table

# Rows scored at a time, so that a large table fits.
_CHUNK = 4096
# Standard errors by which a loss is clearly above that of the validation rows.
_UNLIKE = 4.0
# How many of the oddest rows are shown, and the share of draws that tells whether shares can be believed.
_SHOWN, _LOW = 5, 0.1

Run = Annotated[
    Path, typer.Argument(help="Folder that `convexlift train` wrote, or a model.safetensors file.")
]


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A file to write."""

    out: Annotated[Path, typer.Option(help="File to write: .csv, .npy, .parquet, ...", show_default=False)]
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False


@dataclass(frozen=True, kw_only=True)
class _Rows(Reading):
    """A table for a trained model, whose columns are found by the names that the model knows."""

    run: Run

    def read(self, model: Any, target: str | None = None) -> Table:
        """The table with the columns of the model in its order, the target last if there is one.

        What was done for that goes to stderr.
        """
        import torch

        from convexlift.table_files import read_table

        expected = known_columns(self.run, model) or model.dim
        how = {**self.how, "expected": expected, "target": target}
        table = read_table(self.data, **how, dtype=torch.float64)
        if self.drop_missing:
            table = without_missing(table)
        for note in table.notes:
            if target is not None and note.startswith("columns are put in"):
                continue  # the target is last wherever it stood
            typer.echo(f"{self.data}: {note}", err=True)
        return table

    def warn_of_outside(self, table: Table, known: Any) -> None:
        """Say which inputs lie outside the range of the training rows of a regression, if these are known."""
        if known is None:
            return
        x, seen = table.rows[:, : known[0].shape[1]], known[0]
        low, high = seen.amin(0), seen.amax(0)
        outside = (x < low) | (x > high)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            count, name = counted(int(outside.any(1).sum()), "row"), table.names[column]
            there, least, most = float(x[row, column]), float(low[column]), float(high[column])
            typer.echo(
                f"warning: {count} outside the range of training, where nothing tells how good it "
                f"is: {table.where(row)}, column '{name}' is {there:.6g} and training had {least:.6g} to "
                f"{most:.6g}",
                err=True,
            )

    def each(self, function: Callable[[Tensor], Tensor], table: Table, rows: Tensor | None = None) -> Tensor:
        """function(rows) in parts; an error names the first row that it is about, as the file has it."""
        import torch

        rows, parts = table.rows if rows is None else rows, []
        for start in range(0, len(rows), _CHUNK):
            try:
                with torch.no_grad():
                    parts.append(function(rows[start : start + _CHUNK]))
            except (FloatingPointError, RuntimeError, ValueError) as error:
                named = re.search(r"( at)? \d+ of \d+ rows \((\d+).*?\)", str(error))
                if named is None:
                    raise
                where, what = table.where(start + int(named[2])), str(error).replace(named[0], "")
                raise type(error)(f"{self.data}: {where}: {what}") from error
        return torch.cat(parts)


@final
@dataclass(frozen=True, kw_only=True)
class Evaluate(_Rows):
    """Score the rows of a file.

    Prints the mean negative log-likelihood with its standard error; of a regression the coefficient of
    determination and the root mean square error, in the units of the target. With --out it writes what each
    row has: its number, and its target less the prediction; or its log-density and the share of the model's
    own draws whose log-density is lower: 0.001 where one draw in 1,000 is as odd, 0.1 on the edge of the
    smallest region of 90 %; beside it the log-density of a Gaussian, where the table of training is there.
    The columns are those that the model was trained on, found by name in any order; other columns are
    ignored. A file without names has them in order.

    \b
    Examples:
      convexlift evaluate runs/flow --data test.csv
      convexlift evaluate runs/flow --data table.csv --folds 5 --out scores.csv
    """

    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Score each row by one of N models, trained as the run was but without its part.",
        ),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="File for the score of each row: .csv, .npy, .parquet, ...")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it exists.")] = False

    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Target of a regression. [default: that of training]"),
    ] = None

    def __call__(self) -> None:
        if self.out is not None:
            check_output_file(self.out, force=self.force)
        if self.folds is not None:
            return self.evaluate_anew(self.folds)
        model = load_model(self.run)
        if isinstance(model, cl.ConvexRegression):
            return self.evaluate_regression(model)
        if self.target is not None:
            raise ValueError(f"--target is for regressions; {self.run} holds a {type(model).__name__}")
        model = as_density(model, self.run)
        table = self.read(model)
        if len(table.rows) < 2:
            raise ValueError(f"{self.data} has one row; a standard error needs at least two")
        scores = self.each(model.log_prob, table).double()
        known = training_rows(self.run)
        gaussian = None if known is None else gaussian_losses(known, table.rows)
        self.tell_scores(scores, gaussian)
        self.tell_unlike(scores)
        self.warn_of_training_rows(table.rows, known)
        self.write_scores(table, scores, share_below(model, scores) if self.out else None, gaussian)
        self.tell_reading(table.how, str(table))

    def evaluate_regression(self, model: cl.ConvexRegression) -> None:
        """Print how far predictions are from the targets."""
        target = self.target or (model.columns or {}).get("y", [None])[0]
        if target is None:
            raise ValueError(f"{self.run} does not say which column its target is: pass --target COLUMN")
        table = self.read(model, str(target))
        x, y, name = table.rows[:, :-1], table.rows[:, -1], table.names[-1]
        predicted = self.each(exact(model).predict, table, x)
        known = training_rows(self.run)
        self.tell_predictions(predicted, y, name, {} if known is None else simple_predictions(known, x))
        self.warn_of_outside(table, known)
        self.warn_of_training_rows(table.rows, known)
        self.write(table, {f"{name}_residual": y - predicted})
        self.tell_reading(table.how, str(table))

    def evaluate_anew(self, folds: int) -> None:
        """Score every row by a model that has not seen it."""
        from convexlift.cli.folds import left_out

        told = {
            option.name: getattr(self, option.name) for option in fields(Reading) if option.name != "data"
        }
        how = {option: value for option, value in told.items() if value not in (None, False)}
        training = replace(training_of(self.run, self.data), **how)
        found = left_out(training, folds, shares=self.out is not None)
        rows = found.rows
        if isinstance(rows.data, tuple):
            self.tell_predictions(found.values, rows.data[1], rows.more["target"], found.simple)
            self.write(rows.table, {f"{rows.more['target']}_residual": rows.data[1] - found.values})
        else:
            self.tell_scores(found.values, found.simple.get("gaussian"))
            self.write_scores(rows.table, found.values, found.shares, found.simple.get("gaussian"))
        typer.echo(f"each row was scored by one of {folds} models, trained anew on other rows of this file")
        self.tell_reading(rows.table.how, str(rows.table))

    def tell_scores(self, scores: Tensor, gaussian: Tensor | None) -> None:
        """Print the mean of log-densities, beside what a Gaussian loses on the same rows."""
        mean, error = -float(scores.mean()), float(scores.std()) / math.sqrt(len(scores))
        typer.echo(
            f"mean negative log-likelihood: {mean:.4f} ± {error:.4f} nats ({counted(len(scores), 'row')})"
        )
        beside = None if gaussian is None else interval(-scores - gaussian)
        if beside is not None:
            typer.echo(f"that is {compared(*beside)}")

    def tell_unlike(self, scores: Tensor) -> None:
        """Say that rows are not of the law that the model was trained on, where they clearly are not."""
        try:
            result = json.loads((self.run / "result.json").read_text(encoding="utf-8"))
            mean, error = float(result["validation"]["mean"]), float(result["validation"]["sem"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        own = float(scores.std()) / math.sqrt(len(scores))
        if -float(scores.mean()) - mean > max(1.0, _UNLIKE * math.hypot(error, own)):
            typer.echo(f"these rows are unlike those of training, whose validation rows had {mean:.4f} nats")

    def tell_predictions(self, predicted: Tensor, y: Tensor, name: str, simple: dict[str, Tensor]) -> None:
        """Print how far predictions are from targets, beside the simplest models."""
        score = errors_of(predicted, y)
        typer.echo(f"{in_words(score)} ({counted(len(y), 'row')}, target {name})")
        if simple:
            errors = {kind: errors_of(values, y) for kind, values in simple.items()}
            typer.echo(f"that is {beside_simple(score, errors)}")

    def warn_of_training_rows(self, rows: Tensor, known: Any) -> None:
        """Say how many of the rows the model was trained on, if any."""
        import torch

        from convexlift.screening import shared_rows

        if known is None:
            return
        train = torch.cat([known[0], known[1][:, None]], 1) if isinstance(known, tuple) else known
        count = int(shared_rows(rows, train).sum())
        if count:
            typer.echo(
                f"warning: the model was trained on {count:,} of these {len(rows):,} rows: that flatters it "
                "and hides odd ones; --folds 5 scores each row by a model that has not seen it",
                err=True,
            )

    def write_scores(
        self, table: Table, scores: Tensor, shares: Tensor | None, gaussian: Tensor | None
    ) -> None:
        """Write log-densities, which share of the density's own draws has lower ones, and a Gaussian's."""
        if shares is None:
            return
        beside = {} if gaussian is None else {"gaussian_log_density": -gaussian}
        self.write(table, {"log_density": scores, "share_below": shares, **beside})
        oddest = [f"{table.where(int(k))}: {float(scores[k]):.4g}" for k in scores.argsort()[:_SHOWN]]
        typer.echo(f"lowest log-densities: {', '.join(oddest)}")
        found, expected = 100 * float((shares <= _LOW).double().mean()), 100 * _LOW
        typer.echo(
            f"{found:.0f} % of the rows are among the lowest {expected:.0f} % of the model's own draws: far "
            f"more than {expected:.0f} % means that it promises too little spread"
        )

    def write(self, table: Table, found: dict[str, Tensor]) -> None:
        """Write what each row has, if that was asked for, with the number of the row in the file."""
        import torch

        if self.out is not None:
            places = torch.arange(len(table.rows)) if table.kept is None else table.kept
            _write(self.out, torch.stack([places.double() + 1, *found.values()], 1), ["row", *found])


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
        known = known_columns(self.run, model) or range(1, model.dim + 1)
        names = [name if isinstance(name, str) else f"x{name}" for name in known]
        _write(self.out, model.sample(self.n, seed=self.seed), names)


@final
@dataclass(frozen=True, kw_only=True)
class Transform(_Output, _Rows):
    """Map rows to latent points of a flow.

    They are standard normal as far as the flow fits. Columns are found as in evaluate.

    \b
    Example:
      convexlift transform runs/flow --data test.csv --out latent.csv
    """

    def __call__(self) -> None:
        check_output_file(self.out, force=self.force)
        model = load_density(self.run)
        if not isinstance(model, cl.ConvexPotentialFlow):
            kind = type(model).__name__
            raise ValueError(f"{self.run} holds a {kind}; only a flow maps rows to latent points")
        table = self.read(model)
        latent = self.each(lambda rows: model(rows)[0], table)
        _write(self.out, latent, [f"z{place}" for place in range(1, model.dim + 1)])
        self.tell_reading(table.how, str(table))


@final
@dataclass(frozen=True, kw_only=True)
class Predict(_Output, _Rows):
    """Write the values of a regression at the rows of a file.

    Columns are found as in evaluate; the target need not be there.

    \b
    Example:
      convexlift predict runs/cost --data new.csv --out predicted.csv
    """

    def __call__(self) -> None:
        check_output_file(self.out, force=self.force)
        model = load_model(self.run)
        if not isinstance(model, cl.ConvexRegression):
            kind = type(model).__name__
            raise ValueError(f"{self.run} holds a {kind}; only a regression predicts a target")
        table = self.read(model)
        self.warn_of_outside(table, training_rows(self.run))
        target = (model.columns or {}).get("y", ["y"])[0]
        _write(self.out, self.each(exact(model).predict, table)[:, None], [f"{target}_predicted"])
        self.tell_reading(table.how, str(table))


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


def known_columns(run: Path, model: Any) -> list[str] | list[int] | None:
    """What is known of the columns of the model's samples: names, places in a file without names, or None.

    A model without names is asked after in the result of its run, where older versions kept them.
    """
    if model.columns:
        known: list[str] | list[int] | None = model.columns.get("x")
        return known
    folder = run if run.is_dir() else run.parent
    try:
        names = json.loads((folder / "result.json").read_text(encoding="utf-8"))["columns"]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    made_up = [f"x{place}" for place in range(1, model.dim + 1)]
    if not isinstance(names, list) or len(names) != model.dim or names == made_up:
        return None
    return [str(name) for name in names]


def _write(file: Path, rows: Any, names: list[str]) -> None:
    from convexlift.table_files import write_table

    write_table(file, rows, names)
    typer.echo(f"{counted(len(rows), 'row')} written to {file}")
