#!/usr/bin/env python
"""Count a checkout's lines by area, its docstrings, and its tests: a table in Markdown.

    python scripts/count.py [CHECKOUT] [--no-tests]

All lines of the files count, blank ones and comments too. Earlier names stand with the areas they became,
so that two checkouts can be compared; a module of no area counts as "other", so nothing goes missing.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

TEMPLATES = {".css", ".html", ".j2", ".jinja", ".jinja2", ".js", ".svg"}
# Area: its modules and folders in the package, by earlier names too; the more particular areas first.
AREAS = {
    "plots": "plots experiments/charts experiments/corner experiments/density_chart experiments/panels "
    "experiments/scatter",
    "study/report": "study/report study/snapshots tasks/outlines experiments/report experiments/figures "
    "experiments/glossary experiments/portraits experiments/traces experiments/verdicts experiments/pictures "
    "experiments/outlines",
    "study": "study experiments",
    "ground": "names version checks files seeds data table_files tables freezing threads",
    "top level": "__init__ __main__ saving distribution export sklearn tensorboard",
    **{name: name for name in ("calculus", "architectures", "sources", "integration", "objectives")},
    **{name: name for name in ("testing", "tasks", "training", "mechanism", "problems", "cli")},
}


def area(module: str) -> str:
    """The area of a module of the package, named by its path in it without a suffix."""
    for name, places in AREAS.items():
        if any(module == place or module.startswith(f"{place}/") for place in places.split()):
            return name
    return "other"


def count(file: Path) -> Counter[str]:
    """Lines of code or template, docstrings and their lines, of one file."""
    text = file.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if file.suffix in TEMPLATES:
        return Counter(files=1, templates=lines)
    found = Counter(files=1, code=lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                written = node.body[0]
                found.update(docstrings=1, documented=written.end_lineno - written.lineno + 1)
    return found


def collected(root: Path) -> str:
    """How many tests and doctests pytest collects there."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) tests collected( .*)?", done.stdout)
    return found[0] if found and done.returncode == 0 else f"collection failed: {done.stdout[-300:]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--no-tests", action="store_true", help="leave out the slow count of tests")
    options = parser.parse_args()
    root, package = options.checkout.resolve(), options.checkout.resolve() / "src" / "convexlift"
    rows = {name: Counter() for name in (*AREAS, "other")}
    for file in sorted(package.rglob("*")):
        if file.suffix in {".py", ".pyi", *TEMPLATES}:
            rows[area(file.relative_to(package).with_suffix("").as_posix())] += count(file)
    rows["package"] = sum(rows.values(), Counter())
    rows["of it, report with its charts"] = rows["plots"] + rows["study/report"]
    benchmarks = [*(root / "benchmarks").rglob("*.py"), root / "scripts" / "tables.py"]
    rows["benchmarks and tables"] = sum(map(count, benchmarks), Counter())
    rows["tests"] = sum(map(count, (root / "tests").rglob("*.py")), Counter())
    print("| area | files | lines | of templates | docstrings | their lines |\n" + "| --- " * 6 + "|")
    for name, row in rows.items():
        total = row["code"] + row["templates"]
        cells = [row["files"], total, row["templates"], row["docstrings"], row["documented"]]
        print(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    if not options.no_tests:
        print(f"\n{collected(root)}")


if __name__ == "__main__":
    main()
