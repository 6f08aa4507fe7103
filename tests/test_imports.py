"""Imports run one way: core <- weight sources <- objectives <- tasks <- training <- study <- cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convexlift

SOURCE = Path(convexlift.__file__).parent
STUB = "__init__.pyi"  # what the package loads when it is asked for
_GROUND = {
    "ambient",
    "arrays",
    "names",
    "defaults",
    "version",
    "checks",
    "files",
    "locks",
    "origins",
    "seeds",
    "processes",
    "data",
    "screening",
    "counting",
    "table_columns",
    "table_text",
    "table_files",
    "freezing",
}
_CORE = {*_GROUND, "calculus", "architectures"}
_SOURCES = {*_CORE, "sources"}
_OBJECTIVES = {*_SOURCES, "integration", "objectives"}
_TASKS = {*_OBJECTIVES, "tasks"}
_TRAINING = {*_TASKS, "training"}
_LIBRARY = {
    *_TRAINING,
    "tuning",
    "mechanism",
    "distribution",
    "export",
    "saving",
    "freezing",
    "problems",
    "tensorboard",
    "testing",
    "plots",
}

# What each part of the package may import from the package.
MAY: dict[str, set[str]] = {
    "ambient": set(),
    "arrays": {"checks"},
    "names": set(),
    "defaults": set(),
    "origins": set(),
    "version": set(),
    "checks": set(),
    "files": set(),
    "locks": {"files"},
    "seeds": {"checks"},
    "processes": {"checks"},
    "data": {"arrays", "checks", "seeds"},
    "screening": {"ambient", "names", "seeds"},
    "counting": set(),
    "table_columns": {"counting", "names"},
    "table_text": {"table_columns"},
    "table_files": {"checks", "files", "table_columns", "table_text"},
    "freezing": {"ambient"},
    "testing": {"ambient", "checks", "seeds", "testing"},
    "calculus": {*_GROUND, "calculus"},
    "architectures": _CORE,
    "sources": _SOURCES,
    "integration": {*_GROUND, "integration"},
    "objectives": _OBJECTIVES,
    "mechanism": {*_TRAINING, "mechanism"},
    "tasks": _TASKS,
    "training": _TRAINING,
    "distribution": _TASKS,
    "export": _TASKS,
    "saving": _TRAINING,
    "tuning": {*_TRAINING, "tuning"},
    "sklearn": {*_TRAINING, "tuning"},
    "tensorboard": {*_TRAINING, "mechanism"},
    "plots": {*_TRAINING, "plots"},
    "problems": {*_TASKS, "problems"},
    "study": {*_LIBRARY, "study", "__version__"},
    "cli": {*_LIBRARY, "study", "cli", ""},
    "__main__": {"cli"},
    "": _LIBRARY,
    STUB: {*_LIBRARY, "sklearn"},
}


def imported(part: str, text: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it, without the package's name."""
    names: set[str] = set()
    package = "convexlift" if part in ("", STUB) else f"convexlift.{part}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["", package, "convexlift"][node.level]
            module = ".".join(filter(None, (base, node.module)))
            inside = {f"{module}.{alias.name}" for alias in node.names}
            names |= inside if module == "convexlift" else {module}
    return {name.partition(".")[2] for name in names if name.split(".")[0] == "convexlift"}


def violations(part: str, text: str) -> list[str]:
    allowed = MAY[part]
    return sorted(name for name in imported(part, text) if not {name, name.split(".")[0]} & allowed)


def part_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    if file == SOURCE / STUB:
        return STUB
    return "" if parts == ("__init__",) else parts[0]


FILES = sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi")])


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(SOURCE)) for file in FILES])
def test_a_module_imports_from_below_only(file: Path) -> None:
    assert violations(part_of(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "text", "found"),
    [
        ("calculus", "from convexlift.architectures.icnn import ICNN", ["architectures.icnn"]),
        ("architectures", "import convexlift.sources", ["sources"]),
        ("sources", "def f():\n    from convexlift.tasks import flow", ["tasks"]),
        ("tasks", "from convexlift import training", ["training"]),
        ("tasks", "import torch, convexlift as cl", [""]),
        (
            "training",
            "if TYPE_CHECKING:\n    from convexlift.study.arms import ARMS",
            ["study.arms"],
        ),
        ("problems", "from convexlift.data import Simulator", []),
        ("problems", "from convexlift.training import Simulator", ["training"]),
        ("problems", "from .problem import Problem\nfrom . import toys", []),
        ("problems", "from ..training import Simulator", ["training"]),
        ("tasks", "from .. import training", ["training"]),
        ("study", "from convexlift.cli.outputs import read_table", ["cli.outputs"]),
        ("sklearn", "from convexlift.study.arms import ARMS", ["study.arms"]),
        ("sklearn", "from sklearn.base import BaseEstimator\nfrom convexlift import tasks", []),
        ("", "from convexlift.cli import main", ["cli"]),
        ("", "from convexlift.sklearn import LogConcaveDensity", ["sklearn"]),
        ("cli", "from convexlift.study.arms import ARMS\nimport torch", []),
        ("", "from . import tasks, cli", ["cli"]),
        (STUB, "from . import problems, sklearn\nfrom .tasks import Ensemble as Ensemble", []),
        (STUB, "from . import study\nfrom .cli.main import main as main", ["cli.main", "study"]),
    ],
)
def test_a_violation_is_found(part: str, text: str, found: list[str]) -> None:
    assert violations(part, text) == found


def loaded(program: str) -> set[str]:
    """The packages that a fresh process has loaded when the program is done."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{program}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCE.parent), "PATH": "/usr/bin:/bin"},
    )
    return set(run.stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    assert {"torch", "numpy", "scipy"}.isdisjoint(loaded("import convexlift; convexlift.__version__"))


def test_the_library_does_not_load_what_only_the_command_line_and_the_extras_need() -> None:
    found = loaded("import convexlift as cl; [getattr(cl, name) for name in cl.__all__]")
    assert {"torch", "convexlift"} <= found
    assert {"typer", "rich", "sklearn", "matplotlib", "pandas", "scipy"}.isdisjoint(found)
