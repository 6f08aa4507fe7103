"""``convexlift ablate``: which ingredient of the lift matters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convexlift.cli.compare import (
    Data,
    Jobs,
    Rates,
    Resume,
    Seeds,
    check_folder,
    command,
    going_on_from,
    numbers,
    shown,
)
from convexlift.files import write_whole
from convexlift.names import check_name
from convexlift.problems.catalogue import NAMES, check_problem
from convexlift.study.protocol import BUDGETS, OPTIMIZERS


def ablate(
    problem: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")],
    optimizer: Annotated[str, typer.Option(help="adam, or sgd (momentum 0.9).")] = "adam",
    budget: Annotated[str, typer.Option(help="quick (minutes), standard or full.")] = "quick",
    seeds: Seeds = None,
    rates: Rates = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of a run, in place of the budget's.")
    ] = None,
    data: Data = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the ablation. [default: runs/ablate-PROBLEM-OPTIMIZER]")
    ] = None,
    resume: Resume = True,
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
    check_problem(problem)
    check_name("optimizer", optimizer, OPTIMIZERS)
    check_name("budget", budget, BUDGETS["density"])
    check_folder(folder, problem, None)
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "budget": budget,
        "rates": numbers(rates),
        "seeds": seeds,
        "steps": steps,
        "data": data,
    }

    from convexlift.study.ablation import ablate as run_ablation
    from convexlift.study.ablation import effects_text
    from convexlift.study.report.page import write_report

    with going_on_from(folder), shown() as show:
        result = run_ablation(
            problem,
            **options,
            jobs=jobs,
            out=folder,
            resume=resume,
            command=command(["ablate", problem], options),
            progress=show,
        ).result
    text = effects_text(result)
    write_whole(folder / "effects.md", text.encode())
    page = write_report([result], folder / "report.html")
    typer.echo(f"{text}\nreport: {page}")
