"""``convexlift compare`` and ``report``: run a comparison, and put comparisons on one page."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from convexlift.cli.errors import Interrupted, load_torch
from convexlift.cli.options import one_argument_of, one_of
from convexlift.cli.outputs import check_writable
from convexlift.names import CONTROLS, DEFAULT_ARMS, OBJECTIVES, OPTIMIZERS, SOURCES, check_name
from convexlift.problems.catalogue import DENSITIES, FROM_FILES, NAMES, check_problem
from convexlift.study.protocol import BUDGETS

if TYPE_CHECKING:
    from rich.table import Table

    from convexlift.study.outcomes import Event

GALLERY = "gallery"


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What ``compare`` and ``ablate`` both ask for."""

    rates: Annotated[
        str | None, typer.Option(help="Learning rates to try, in place of the growing grid of the budget.")
    ] = None
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds to score on the test rows.")] = None
    data: Annotated[Path | None, typer.Option(help=f"The file or folder of {', '.join(FROM_FILES)}.")] = None
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. [default: one for each core]")] = (
        None
    )
    resume: Annotated[bool, typer.Option(help="Use the finished runs in the folder.")] = True

    def told(self, *names: str) -> dict[str, Any]:
        """The options of these names as `convexlift.study` takes them."""
        read = {"arms": items, "rates": numbers}
        return {name: read.get(name, lambda given: given)(getattr(self, name)) for name in names}


@final
@dataclass(frozen=True, kw_only=True)
class Compare(Comparing):
    """Compare ways of training, all tuned alike.

    A way of training is a way of keeping the constrained weights of an input-convex network at or above zero.
    Each trains the same network at the same learning rates; its best rate on validation rows is scored on
    test rows over several seeds. Leaves result.json and report.html in the folder.

    \b
    Examples:
      convexlift compare
      convexlift compare gumbel --budget standard --out results/gumbel
      convexlift compare digits21 --arms softplus lift --rates 0.008 0.016 0.032 --seeds 5
      convexlift compare hepmass --data hepmass.npz --jobs 4
      convexlift compare miniboone --data MiniBooNE_PID.txt --task density
      convexlift compare gallery --task density --budget standard --out results/gallery
    """

    problem: Annotated[
        str | None,
        one_argument_of(
            (*NAMES, GALLERY),
            f"One of: {', '.join(NAMES)}; or {GALLERY}, the {len(DENSITIES)} densities of one dimension "
            "one after the other. [default: digits21]",
        ),
    ] = None
    arms: Annotated[
        str | None,
        one_of(
            SOURCES,
            f"The ways of training to compare, of: {', '.join(SOURCES)}. [default: {' '.join(DEFAULT_ARMS)}]",
        ),
    ] = None
    budget: Annotated[
        str, one_of(BUDGETS["density"], "quick (minutes), standard, full, or for densities paper.")
    ] = "quick"
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")] = "cpu"
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison. [default: runs/PROBLEM]")] = None
    own: Annotated[
        str | None,
        typer.Option(
            help="MODULE:FUNCTION that returns your own (problem, {name: way of training}) to compare."
        ),
    ] = None
    fixed_rate: Annotated[
        bool | None, typer.Option(help="Add the table at the one rate 0.001. [default: as the budget says]")
    ] = None
    task: Annotated[
        str | None,
        one_of(("density",), "density: fit one log-concave density to the rows of a problem of flows."),
    ] = None
    objective: Annotated[
        str, one_of(OBJECTIVES, f"What densities are trained by: {', '.join(OBJECTIVES)}.")
    ] = "mle"
    optimizer: Annotated[str | None, one_of(OPTIMIZERS, "adam, sgd or soap. [default: adam]")] = None

    def __call__(self) -> None:
        chosen = self.problem or (None if self.own else "digits21")
        name = self.own.replace(":", "-") if self.own else str(chosen)
        folder = self.out or Path("runs") / (name if self.task is None else f"{name}-{self.task}")
        places = {name: folder / name for name in DENSITIES} if chosen == GALLERY else {chosen: folder}
        if self.own is not None:
            sys.path.insert(0, "")  # the module may lie in the current folder
        for target, place in places.items():
            if self.own is None:
                check_problem(str(target))
            check_folder(place, str(target), self.own, self.task)
        if self.own is None:
            for arm in items(self.arms) or ():
                check_name("way of training", arm, (*SOURCES, *CONTROLS))
        check_name("budget", self.budget, BUDGETS["density"])
        check_name("objective", self.objective, OBJECTIVES)
        if self.optimizer is not None:
            check_name("optimizer", self.optimizer, OPTIMIZERS)
        options = self.told("arms", "rates", "seeds", "budget", "task", "objective", "data", "fixed_rate")
        options |= self.told("optimizer")
        said = {**options, "objective": None} if self.objective == "mle" else options

        load_torch()
        from convexlift.study.comparison import compare
        from convexlift.study.report.answers import verdicts
        from convexlift.study.report.page import check_installed, write_report

        check_installed()
        for place in places.values():
            check_writable(place)
        results = []
        for target, place in places.items():
            words = ["compare", *(["--own", self.own] if self.own else [str(target)])]
            with going_on_from(folder), shown() as show:
                result = compare(
                    target,
                    **options,
                    **self.told("own", "jobs", "device", "resume"),
                    out=place,
                    command=command(words, said),
                    progress=show.progress,
                    forecast=show.forecast,
                ).result
            typer.echo(f"{summary(result)}\n\n{verdicts(result)[0][1]}")
            results.append(result)
        typer.echo(f"report: {write_report(results, folder / 'report.html')}")


@final
@dataclass(frozen=True, kw_only=True)
class Report:
    """Put comparisons on one page.

    Several comparisons get an overview.

    \b
    Examples:
      convexlift report runs/digits21
      convexlift report results/* --out all.html
    """

    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders of comparisons, or their result.json.")
    ]
    out: Annotated[Path | None, typer.Option(help="The page. [default: report.html, in a lone folder]")] = (
        None
    )

    def __call__(self) -> None:
        from convexlift.cli.outputs import check_output_file
        from convexlift.study.report.page import read_result, write_report

        results = [read_result(folder) for folder in self.folders]
        lone = self.folders[0] if self.folders[0].is_dir() else self.folders[0].parent
        out = self.out or (lone if len(results) == 1 else Path()) / "report.html"
        check_output_file(out, force=True, suffixes=(".html",))
        typer.echo(f"report: {write_report(results, out)}")


def check_folder(folder: Path, problem: str, own: str | None, task: str | None = None) -> None:
    """Leave alone a folder that holds something else than a comparison on this problem."""
    if not (folder / "result.json").exists():
        return
    from convexlift.study.report.page import read_result

    try:
        found = read_result(folder)
        held, fitted = str(found["problem"]), str(found.get("task"))
        other_task = "--task" in str((found.get("protocol") or {}).get("command"))
    except ValueError as error:
        raise FileExistsError(f"{folder} holds the result of something else; choose another --out") from error
    if own is None and held != problem:
        raise FileExistsError(f"{folder} holds a comparison on {held}; choose another --out")
    if own is None and (fitted != task if task is not None else other_task):
        raise FileExistsError(f"{folder} holds a comparison of the task {fitted}; choose another --out")


def items(text: str | None) -> list[str] | None:
    """The items of a list given as "a,b" or, by `main.join_lists`, as "a b"; None where none is given."""
    return None if text is None else text.replace(",", " ").split()


def numbers(text: str | None) -> list[float] | None:
    """The same of learning rates."""
    found = []
    for word in items(text) or []:
        try:
            found.append(float(word))
        except ValueError:
            raise ValueError(f"--rates: {word!r} is not a number") from None
    return None if text is None else found


def command(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """The shell command of these words and of the options that are not None.

    >>> command(["compare", "gumbel"], {"rates": [0.01, 0.02], "seeds": None, "fixed_rate": False})
    'convexlift compare gumbel --rates 0.01 0.02 --no-fixed-rate'
    """
    parts = ["convexlift", *words]
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            parts += [f"--{option}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return shlex.join(parts)


@contextmanager
def going_on_from(folder: Path) -> Iterator[None]:
    """After Ctrl-C say how to go on, and leave with the exit code of an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{folder} keeps every finished run: the same command goes on from there"
        raise Interrupted(f"interrupted; {kept}") from None


def summary(result: dict[str, Any]) -> str:
    """The table of a comparison as aligned text."""
    from convexlift.study.ranking import complete, difference, ranking, reference_arm
    from convexlift.study.report.numbers import interval_text, score_texts, short

    base, order = reference_arm(result), ranking(result)
    tests = score_texts({name: arm["test"] for name, arm in result["arms"].items()})
    rows = [("trained by", "test ± s.e.", f"minus {base} (95 %)", "rate", "ms/step", "parameters")]
    for name in complete(result):
        arm = result["arms"][name]
        found = difference(result, name, base) if base and name in order and name != base else None
        rows.append(
            (
                name,
                tests[name],
                interval_text(found) if found else "–",
                "–" if arm["lr"] is None else f"{arm['lr']:g}",
                short(arm["ms_per_step"], 3),
                f"{arm['parameters']:,}" if arm["parameters"] else "–",
            )
        )
    columns = list(zip(*rows, strict=True))
    widths = [f"<{max(map(len, columns[0]))}", *(f">{max(map(len, column))}" for column in columns[1:])]
    lines = ["  ".join(map(format, row, widths)) for row in rows]
    return f"{result['problem']}: {result['metric']} of the trained models on test rows\n" + "\n".join(lines)


@final
@dataclass(frozen=True)
class Showing:
    """What `convexlift.study` calls to have its progress shown."""

    progress: Callable[[Event], None]
    forecast: Callable[[float], None]


@contextmanager
def shown() -> Iterator[Showing]:
    """Show how far a comparison is: live on a terminal, else a line for every run."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        line = partial(console.print, markup=False, highlight=False, soft_wrap=True)

        def told(event: Event) -> None:
            left = "" if event.left is None else f"; about {timedelta(seconds=round(event.left))} left"
            line(f"[{event.done}/{event.total}] {event.phase}: {event.message}{left}")

        yield Showing(told, lambda seconds: line(f"about {timedelta(seconds=round(seconds))} in all"))
        return
    ends: list[float] = []  # when the comparison may end, by what is known so far

    @final
    class Left(ProgressColumn):
        def render(self, _: object) -> Text:
            seconds = round(max(ends[-1] - time.monotonic(), 0)) if ends else None
            return Text("runs" if seconds is None else f"runs, about {timedelta(seconds=seconds)} left")

    bar = Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        Left(),
        console=console,
    )
    task = bar.add_task("starting", total=None)
    standing = Standing()
    with Live(Group(bar), console=console, refresh_per_second=4) as live:

        def forecast(seconds: float) -> None:
            ends.append(time.monotonic() + seconds)

        def show(event: Event) -> None:
            if event.left is not None:
                forecast(event.left)
            bar.update(task, description=event.phase, completed=event.done, total=event.total)
            standing.note(event)
            live.update(Group(bar, standing.table()))

        yield Showing(show, forecast)


@final
class Standing:
    """The lowest loss of every arm in a single run so far, on validation and on test: neither ever rises."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.lowest: dict[tuple[str, str], tuple[float, float]] = {}  # of arm and split: loss, rate

    def note(self, event: Event) -> None:
        """Take notice of a run."""
        self.runs[event.arm] = self.runs.get(event.arm, 0) + 1
        place = event.arm, "validation" if event.phase == "selection" else "test"
        loss = math.inf if event.loss is None else event.loss
        self.lowest[place] = min(self.lowest.get(place, (math.inf, event.lr)), (loss, event.lr))

    def table(self) -> Table:
        """A row for each arm, a column for each split of which a loss is known."""
        from rich.table import Table

        table = Table("", box=None, padding=(0, 2))
        splits = [split for split in ("validation", "test") if any(seen == split for _, seen in self.lowest)]
        for title in (*(f"best run, {split} loss" for split in splits), "runs"):
            table.add_column(title, justify="right")
        for arm, runs in self.runs.items():
            table.add_row(arm, *(self._told(arm, split) for split in splits), str(runs))
        return table

    def _told(self, arm: str, split: str) -> str:
        if (arm, split) not in self.lowest:
            return "–"
        loss, rate = self.lowest[arm, split]
        return f"{loss:.4f} at rate {rate:g}" if math.isfinite(loss) else "diverged"
