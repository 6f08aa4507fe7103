"""``convexlift compare`` and ``report``: run a comparison, and put comparisons on one page."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from convexlift.cli.files import check_output_file
from convexlift.objectives import OBJECTIVES
from convexlift.problems import FROM_FILES, NAMES
from convexlift.problems.simulated.gallery import DENSITIES
from convexlift.study.arms import ARMS, DEFAULT_ARMS
from convexlift.study.comparison import compare as run_comparison
from convexlift.study.outcomes import Event
from convexlift.study.ranking import difference, ranking, reference_arm
from convexlift.study.report.answers import verdicts
from convexlift.study.report.numbers import interval_text, score_text, short
from convexlift.study.report.page import read_result, write_report

GALLERY = "gallery"

Problem = Annotated[
    str | None,
    typer.Argument(
        help=f"One of: {', '.join(NAMES)}; or {GALLERY}, the {len(DENSITIES)} densities of one dimension one "
        "after the other. [default: digits21]"
    ),
]
Arms = Annotated[
    str | None,
    typer.Option(help=f"Ways of training, of: {', '.join(ARMS)}. [default: {' '.join(DEFAULT_ARMS)}]"),
]


def compare(
    problem: Problem = None,
    arms: Arms = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates to try, in place of the growing grid of the budget.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds to score on the test rows.")] = None,
    budget: Annotated[
        str, typer.Option(help="quick (minutes), standard, full, or for densities paper.")
    ] = "quick",
    data: Annotated[Path | None, typer.Option(help=f"The file or folder of {', '.join(FROM_FILES)}.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison. [default: runs/PROBLEM]")
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(help="MODULE:FUNCTION that returns your own (problem, {arm: ...}) to compare."),
    ] = None,
    fixed_rate: Annotated[
        bool | None, typer.Option(help="Add the table at the one rate 0.001. [default: as the budget says]")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="density: fit one log-concave density to the rows of a problem of flows."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help=f"What densities are trained by: {', '.join(OBJECTIVES)}.")
    ] = "mle",
    resume: Annotated[bool, typer.Option(help="Use the finished runs in the folder.")] = True,
) -> None:
    """Compare ways of training, all tuned alike.

    Every arm trains the same input-convex network at the same learning rates; its best rate on validation
    rows is scored on test rows over several seeds. Leaves result.json and report.html in the folder.

    \b
    Examples:
      convexlift compare
      convexlift compare gumbel --budget standard --out results/gumbel
      convexlift compare digits21 --arms softplus lift --rates 0.008 0.016 0.032 --seeds 5
      convexlift compare hepmass --data hepmass.npz --jobs 4
      convexlift compare miniboone --data MiniBooNE_PID.txt --task density
      convexlift compare gallery --task density --budget standard --out results/gallery
    """
    name = own.replace(":", "-") if own else problem or "digits21"
    folder = out if out is not None else Path("runs") / f"{name}{'' if task is None else f'-{task}'}"
    if own is not None:
        sys.path.insert(0, "")  # the module may lie in the current folder
    targets = [problem] if problem != GALLERY else list(DENSITIES)
    places = [folder] if problem != GALLERY else [folder / name for name in DENSITIES]
    for target, place in zip(targets, places, strict=True):
        check_folder(place, target or "digits21", own, task)

    def run(target: str | None, place: Path) -> dict[str, Any]:
        with shown() as show:
            result = run_comparison(
                target,
                arms=None if arms is None else items(arms),
                rates=None if rates is None else [rate(text) for text in items(rates)],
                seeds=seeds,
                budget=budget,
                data=data,
                jobs=jobs,
                device=device,
                out=place,
                resume=resume,
                fixed_rate=fixed_rate,
                own=own,
                task=task,
                objective=objective,
                progress=show,
            )
        typer.echo(f"{summary(result)}\n\n{verdicts(result)[0][1]}")
        return result

    try:
        results = [run(target, place) for target, place in zip(targets, places, strict=True)]
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; {folder} keeps every finished run: the same command goes on from there", err=True
        )
        raise typer.Exit(130) from None
    typer.echo(f"report: {write_report(results, folder / 'report.html')}")


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of comparisons, or their result.json.")],
    out: Annotated[
        Path | None, typer.Option(help="The page. [default: report.html, in a lone folder]")
    ] = None,
) -> None:
    """Put comparisons on one page.

    Several comparisons get an overview.

    \b
    Examples:
      convexlift report runs/digits21
      convexlift report results/* --out all.html
    """
    results = [read_result(folder) for folder in folders]
    if out is None:
        lone = folders[0] if folders[0].is_dir() else folders[0].parent
        out = (lone if len(folders) == 1 else Path()) / "report.html"
    check_output_file(out, force=True, suffixes=(".html",))
    typer.echo(f"report: {write_report(results, out)}")


def check_folder(folder: Path, problem: str, own: str | None, task: str | None = None) -> None:
    """Leave alone a folder that holds something else than a comparison on this problem."""
    if (folder / "result.json").exists():
        try:
            found = read_result(folder)
            held, fitted = str(found["problem"]), str(found.get("task"))
            other_task = "--task" in str((found.get("protocol") or {}).get("command"))
        except ValueError as error:
            raise FileExistsError(
                f"{folder} holds the result of something else; choose another --out"
            ) from error
        if own is None and held != problem:
            raise FileExistsError(f"{folder} holds a comparison on {held}; choose another --out")
        if own is None and (fitted != task if task is not None else other_task):
            raise FileExistsError(f"{folder} holds a comparison of the task {fitted}; choose another --out")


def items(text: str) -> list[str]:
    """The items of a list given as "a,b" or, by `main.join_lists`, as "a b"."""
    return text.replace(",", " ").split()


def rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--rates: {text!r} is not a number") from None


def summary(result: dict[str, Any]) -> str:
    """The table of a comparison as aligned text."""
    base, order = reference_arm(result), ranking(result)
    rows = [("arm", "test ± s.e.", f"minus {base} (95 %)", "rate", "ms/step", "parameters")]
    for name in [*order, *(name for name in result["arms"] if name not in order)]:
        arm = result["arms"][name]
        found = (
            difference(result, name, base) if base is not None and name in order and name != base else None
        )
        rows.append(
            (
                name,
                score_text(arm["test"]),
                interval_text(found) if found else "–",
                "–" if arm["lr"] is None else f"{arm['lr']:g}",
                short(arm["ms_per_step"], 3),
                f"{arm['parameters']:,}" if arm["parameters"] else "–",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [f"{row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    return f"{result['problem']}: {result['metric']} of frozen models on test rows\n" + "\n".join(lines)


@contextmanager
def shown() -> Iterator[Callable[[Event], None]]:
    """Show how far a comparison is: live on a terminal, else a line for every run."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: console.print(
            f"[{event.done}/{event.total}] {event.phase}: {event.message}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    bar = Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs, about"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
    task = bar.add_task("selection", total=None)
    losses: dict[tuple[str, str, float], list[float]] = {}
    with Live(Group(bar), console=console, refresh_per_second=4) as live:

        def show(event: Event) -> None:
            bar.update(task, description=event.phase, completed=event.done, total=event.total)
            loss = math.inf if event.loss is None else event.loss
            losses.setdefault((event.phase, event.arm, event.lr), []).append(loss)
            live.update(Group(bar, _standing(losses, event.phase)))

        yield show


def _standing(losses: dict[tuple[str, str, float], list[float]], phase: str) -> Table:
    """The best mean loss of every arm so far, in this phase."""
    table = Table(box=None, padding=(0, 2))
    for title in ("arm", "best so far", "at rate", "runs"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm in dict.fromkeys(arm for at, arm, _ in losses if at == phase):
        means = {lr: sum(v) / len(v) for (at, name, lr), v in losses.items() if (at, name) == (phase, arm)}
        best = min(means, key=lambda lr: means[lr])
        runs = sum(len(v) for (at, name, _), v in losses.items() if (at, name) == (phase, arm))
        shown = f"{means[best]:.4f}" if math.isfinite(means[best]) else "diverged"
        table.add_row(arm, shown, f"{best:g}", str(runs))
    return table
