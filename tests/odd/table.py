"""The table of all cases, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

from . import ambient, arrays, checks, commands, doubts, estimators, files, models, networks, training, units
from .case import Case

PAGE = Path(__file__).parents[2] / "docs" / "what-happens-when.md"

PARTS: dict[str, list[Case]] = {
    "Numbers and arrays": arrays.CASES,
    "Units, offsets and weights": units.CASES,
    "Doubtful data": doubts.CASES,
    "What torch is set to, and random numbers": ambient.CASES,
    "Estimators": estimators.CASES,
    "Tables in files": [*files.CASES, *files.WRITING],
    "Data of `fit` and of the tasks": [*training.DATA, *training.TASKS],
    "Modules and settings of `fit`": [*training.MODULES, *training.SETTINGS],
    "Runs that go on": training.FOLDERS,
    "Networks and where their weights come from": [*networks.ARCHITECTURES, *networks.SOURCES],
    "Flows, densities, regressions": [*networks.TASKS, *networks.OBJECTIVES],
    "Models in files": models.CASES,
    "Checks of a network of your own": checks.TESTING,
    "Integrals": checks.INTEGRALS,
    "Instruments and pictures": [*checks.INSTRUMENTS, *checks.PLOTS],
    "Commands": [*commands.TRAINING, *commands.USE],
    "Comparisons": commands.STUDIES,
    "Published data": commands.DATA,
}

CASES = [case for part in PARTS.values() for case in part]

HEAD = """# What happens when

What this library does with input that is bad or odd. Each line is tried by a test, which also takes out the
check behind it and sees that the outcome changes. `...` stands for more. Written by
`python scripts/what_happens.py` from the table in `tests/odd/`.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for title, cases in PARTS.items():
        parts.append(f"\n## {title}\n\n| what you do | what happens |\n|---|---|\n")
        parts += [f"| {escaped(case.title)} | {escaped(ending(case))} |\n" for case in cases]
    return "".join(parts)


def ending(case: Case) -> str:
    """What happens, in a cell of the page."""
    if case.kind is None:
        return case.said
    ticks = "``" if "`" in case.said else "`"
    return f"{case.kind.__name__}: {ticks}{case.said}{ticks}"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
