"""The table of all cases, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

from . import ambient, arrays, checks, commands, doubts, estimators, files, models, networks, training, units
from .case import Case

PAGE = Path(__file__).parents[2] / "docs" / "what-happens-when.md"

PARTS: dict[str, list[Case]] = {
    "Tables in files": files.CASES,
    "Doubtful data": doubts.CASES,
    "Units, offsets and weights": units.CASES,
    "Numbers and arrays": arrays.CASES,
    "Estimators": estimators.CASES,
    "Commands": [*commands.TRAINING, *commands.USE],
    "Data of `fit` and of the tasks": [*training.DATA, *training.TASKS],
    "Modules and settings of `fit`": [*training.MODULES, *training.SETTINGS],
    "Runs that go on": training.FOLDERS,
    "Models in files": models.CASES,
    "Files that are written": files.WRITING,
    "What torch is set to, and random numbers": ambient.CASES,
    "Networks and where their weights come from": [*networks.ARCHITECTURES, *networks.SOURCES],
    "Flows, densities, regressions": [*networks.TASKS, *networks.OBJECTIVES],
    "Transport maps": networks.TRANSPORT,
    "Checks of a network of your own": checks.TESTING,
    "Integrals": checks.INTEGRALS,
    "Instruments and pictures": [*checks.INSTRUMENTS, *checks.PLOTS],
    "Comparisons": commands.STUDIES,
    "Published data": commands.DATA,
}

CASES = [case for part in PARTS.values() for case in part]

HEAD = """# What happens when

What this library does with input that is bad or odd: first what goes well, then what it warns of, then what
it refuses. `...` stands for more. Each line is tried by a test, which also takes out the check behind it and
sees that the outcome changes. Written by `python scripts/what_happens.py` from the table in `tests/odd/`.

A *weight source* keeps the constrained weights of a convex network at or above zero; the *lift* is one that
computes them from the batch. *Freezing* a trained model fixes its weights: it is one convex function then.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for title, cases in PARTS.items():
        parts.append(f"\n## {title}\n\n| what you do | what happens |\n|---|---|\n")
        parts += [
            f"| {escaped(case.title)} | {escaped(ending(case))} |\n" for case in sorted(cases, key=harm)
        ]
    return "".join(parts)


def harm(case: Case) -> int:
    """Where a case stands in its part: values before warnings before errors."""
    return 0 if case.kind is None else 1 if issubclass(case.kind, Warning) else 2


def ending(case: Case) -> str:
    """What happens, in a cell of the page."""
    if case.kind is None:
        return case.said
    ticks = "``" if "`" in case.said else "`"
    return f"{case.kind.__name__}: {ticks}{case.said}{ticks}"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
