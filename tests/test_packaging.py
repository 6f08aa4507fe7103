"""What is installed, and what is said of it: extras, versions, the citation, what tests need."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import convexlift

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NEEDED = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
OURS = {"convexlift", "tests"}


def plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def distribution(line: str) -> str:
    """The package that a line of requirements or of constraints is about."""
    return plain(re.split(r"[\[<>=!~ ;]", line, maxsplit=1)[0])


HELD = {
    distribution(line): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
}


def imported(folder: Path) -> set[str]:
    """The first words of what the files of a folder import."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in folder.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - OURS


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_what_is_imported_is_installed_with_the_dev_extra(folder: str) -> None:
    makers = packages_distributions()
    names = imported(ROOT / folder) - {file.stem for file in (ROOT / folder).rglob("*.py")}
    assert {name for name in names if HELD.keys().isdisjoint(map(plain, makers.get(name, [name])))} == set()


def test_every_requirement_has_a_lower_bound_that_is_not_above_its_held_version() -> None:
    for line in NEEDED:
        if distribution(line) != "convexlift":
            bound = re.fullmatch(r"[\w-]+>=([\d.]+)", line)
            assert bound, f"{line} has no lower bound"
            assert numbers(bound[1]) <= numbers(HELD[distribution(line)]), line


def numbers(version: str) -> list[int]:
    """2.13.0 as [2, 13, 0]."""
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]


def test_all_holds_every_extra_for_users() -> None:
    (line,) = EXTRAS["all"]
    inside = set(line.removeprefix("convexlift[").removesuffix("]").split(","))
    if "report" in inside:
        inside.add("plots")  # part of it
    assert inside == set(EXTRAS) - {"all", "dev", "benchmarks"}


def test_the_table_of_extras_names_each_with_what_it_brings() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `?(\(none\)|\w+)`? \| ([^|]*) \|", page, re.MULTILINE))
    assert set(rows) - {"extra", "(none)"} == set(EXTRAS) - {"benchmarks"}
    for name, lines in {"(none)": PROJECT["dependencies"], **EXTRAS}.items():
        brought = [line for line in lines if not line.startswith("convexlift")]
        if name not in ("all", "dev", "benchmarks"):
            assert {distribution(line) for line in brought} <= set(map(plain, rows[name].split(", "))), name


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == convexlift.__version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert "doi" not in citation  # none is registered
