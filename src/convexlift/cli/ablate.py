"""``convexlift ablate``: which ingredient of the lift matters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convexlift.cli.compare import check_folder, items, rate, shown
from convexlift.files import write_whole
from convexlift.problems import FROM_FILES, NAMES
from convexlift.study.ablation import ablate as run_ablation
from convexlift.study.ablation import effects_text
from convexlift.study.report.page import write_report


def ablate(
    problem: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")],
    optimizer: Annotated[str, typer.Option(help="adam, or sgd (momentum 0.9).")] = "adam",
    budget: Annotated[str, typer.Option(help="quick (minutes), standard or full.")] = "quick",
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds to score on the test rows.")] = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates to try, in place of the growing grid of the budget.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of a run, in place of the budget's.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help=f"The file or folder of {', '.join(FROM_FILES)}.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the ablation. [default: runs/ablate-PROBLEM-OPTIMIZER]")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Use the finished runs in the folder.")] = True,
) -> None:
    """Remove the lift's ingredients one at a time, all arms tuned alike.

    Shows what each does to the coupling of weights and gradient, to the time that weights spend on the
    shoulder, and to the test loss. Leaves result.json, effects.md and report.html in the folder.

    \b
    Examples:
      convexlift ablate gumbel
      convexlift ablate collider --optimizer sgd --budget standard --out results/ablate-collider-sgd
    """
    folder = out if out is not None else Path("runs") / f"ablate-{problem}-{optimizer}"
    check_folder(folder, problem, None)
    try:
        with shown() as show:
            result = run_ablation(
                problem,
                optimizer=optimizer,
                budget=budget,
                rates=None if rates is None else [rate(text) for text in items(rates)],
                seeds=seeds,
                steps=steps,
                data=data,
                jobs=jobs,
                out=folder,
                resume=resume,
                progress=show,
            )
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; {folder} keeps every finished run: the same command goes on from there", err=True
        )
        raise typer.Exit(130) from None
    text = effects_text(result)
    write_whole(folder / "effects.md", text.encode())
    page = write_report([result], folder / "report.html")
    typer.echo(f"{text}\nreport: {page}")
