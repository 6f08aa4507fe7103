"""``convexlift ablate``: which ingredient of the lift matters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer

from convexlift.cli.compare import Comparing, check_folder, command, going_on_from, shown
from convexlift.cli.errors import load_torch
from convexlift.cli.options import one_argument_of, one_of
from convexlift.cli.outputs import check_writable
from convexlift.files import write_whole
from convexlift.names import OPTIMIZERS, check_name
from convexlift.problems.catalogue import NAMES, check_problem
from convexlift.study.protocol import BUDGETS


@final
@dataclass(frozen=True, kw_only=True)
class Ablate(Comparing):
    """Remove the lift's ingredients one at a time, all arms tuned alike.

    Shows what each does to the coupling of weights and gradient, to the time that weights spend on the
    shoulder, and to the test loss. Leaves result.json, effects.md and report.html in the folder.

    \b
    Examples:
      convexlift ablate gumbel
      convexlift ablate collider --optimizer sgd --budget standard --out results/ablate-collider-sgd
    """

    problem: Annotated[str, one_argument_of(NAMES, f"One of: {', '.join(NAMES)}.")]
    optimizer: Annotated[str, one_of(OPTIMIZERS, "adam, sgd (momentum 0.9) or soap.")] = "adam"
    budget: Annotated[str, one_of(BUDGETS["flow"], "quick (minutes), standard or full.")] = "quick"
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of a run, in place of the budget's.")] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder of the ablation. [default: runs/ablate-PROBLEM-OPTIMIZER]")
    ] = None

    def __call__(self) -> None:
        folder = self.out or Path("runs") / f"ablate-{self.problem}-{self.optimizer}"
        check_problem(self.problem)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("budget", self.budget, BUDGETS["density"])
        check_folder(folder, self.problem, None)
        options = self.told("optimizer", "budget", "rates", "seeds", "steps", "data")

        load_torch()
        from convexlift.study.ablation import ablate, effects_text
        from convexlift.study.report.page import check_installed, write_report

        check_installed()
        check_writable(folder)
        with going_on_from(folder), shown() as show:
            result = ablate(
                self.problem,
                **options,
                **self.told("jobs", "resume"),
                out=folder,
                command=command(["ablate", self.problem], options),
                progress=show.progress,
                forecast=show.forecast,
            ).result
        text = effects_text(result)
        write_whole(folder / "effects.md", text.encode())
        typer.echo(f"{text}\nreport: {write_report([result], folder / 'report.html')}")
