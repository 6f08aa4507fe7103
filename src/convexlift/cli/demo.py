"""``convexlift demo``: what the library is for, shown in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from convexlift.cli.compare import command, going_on_from, shown
from convexlift.cli.errors import load_torch
from convexlift.cli.outputs import check_writable


@final
@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train one convex network in several ways and see which does best.

    On a toy density and on bundled images of digits, at the usual learning rate and at the library's. Every
    trained model is one fixed convex function, and is checked for that. Leaves result.json and a page,
    demo.html, in the folder.

    \b
    Examples:
      convexlift demo
      convexlift demo --seeds 5 --jobs 4 --out runs/five-seeds
    """

    out: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("runs/demo")
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds; every way is trained with each.")] = 3
    seed: Annotated[int, typer.Option(min=0, max=900, help="The first of them.")] = 0
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")] = (
        None
    )
    resume: Annotated[bool, typer.Option(help="Use the finished runs in the folder.")] = True

    def __call__(self) -> None:
        check_writable(self.out)
        _check_folder(self.out)
        typer.echo("timing a few steps first, which tells how long the rest takes", err=True)
        load_torch()
        from convexlift.study.report.page import check_installed

        check_installed()
        from convexlift.study.demonstration import demonstrate
        from convexlift.study.report.demo_page import COMMANDS, write_demo
        from convexlift.study.report.demo_words import text_table, verdicts

        asked: dict[str, Any] = {"seeds": self.seeds, "seed": self.seed}
        with going_on_from(self.out), shown() as show:
            result = demonstrate(
                self.out,
                **asked,
                jobs=self.jobs,
                resume=self.resume,
                command=command(["demo"], {**asked, "out": self.out}),
                progress=show.progress,
                forecast=show.forecast,
            )
        page = write_demo(result, self.out / "demo.html")
        for part in result["parts"]:
            typer.echo(f"{text_table(part)}\n")
        typer.echo("\n".join([*verdicts(result), "", f"page: {page}", ""]))
        for what, how in COMMANDS.items():
            typer.echo(f"{what}:\n  {how}")


def _check_folder(folder: Path) -> None:
    """Leave alone a folder that holds the result of something else."""
    import json

    try:
        kind = json.loads((folder / "result.json").read_text(encoding="utf-8"))["kind"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != "demonstration":
        raise FileExistsError(f"{folder} holds the result of something else; choose another --out")
