"""The report page: one self-contained HTML file about one or several comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convexlift.counting import counted
from convexlift.files import make_folder, write_whole
from convexlift.study.ranking import Result, finite, tied_with_best
from convexlift.study.report import glossary
from convexlift.study.report.advice import after_comparison
from convexlift.study.report.answers import verdicts
from convexlift.study.report.numbers import duration, listed, short, spent

SCHEMA = 1


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read one comparison from its ``result.json`` or from the folder that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a comparison, or a newer version of convexlift wrote it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "result.json"
    if not file.is_file():
        raise FileNotFoundError(f"no comparison at {path}: {file} does not exist")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable JSON") from error
    if not isinstance(result, dict) or not isinstance(result.get("arms"), dict) or "problem" not in result:
        raise ValueError(
            f"{file} is not the result of a comparison: it has no problem or no ways of training"
        )
    schema = result.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}; this version of convexlift reads schema {SCHEMA}")
    return result


def write_report(results: Sequence[Result], path: str | os.PathLike[str]) -> Path:
    """Write one page about one or several comparisons; it needs no network, no script and no other file.

    Args:
        results: comparisons as in ``result.json``; several are preceded by an overview.
        path: the HTML file to write, in one piece; an existing one is replaced.

    Returns:
        The path.

    Raises:
        ValueError: there is nothing to report.
        ImportError: jinja2 or matplotlib is missing.
        OSError: the file cannot be written.
    """
    if not results:
        raise ValueError("there is no comparison to report")
    return write_page(page(results), path)


def write_page(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page in one piece, its folder made if need be; return the path."""
    target = Path(path)
    make_folder(target.parent)
    write_whole(target, text.encode())
    return target


def check_installed() -> None:
    """Refuse to begin what ends in a page without the packages that write one.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise ImportError("a report needs jinja2 and matplotlib: pip install 'convexlift[report]'") from error
    del jinja2, matplotlib


def page(results: Sequence[Result]) -> str:
    """The HTML text of the report."""
    check_installed()
    from convexlift.study.report import figures, tables

    names = [n for r in results for n in (*r["arms"], *((r.get("fixed_rate") or {}).get("arms") or {}))]
    text = render(
        "page.html",
        names,
        results=results,
        glossary=glossary,
        standings=_standings(results),
        tables=tables,
        figures=figures,
        facts=_facts,
        verdicts=verdicts,
        after_comparison=after_comparison,
        short=short,
    )
    return glossary.linked(text)


def render(template: str, names: Iterable[str], **values: Any) -> str:
    """A page from its template, with the style sheet and the looks of series; see `check_installed` first."""
    import jinja2

    from convexlift.plots.drawing import STYLE_SHEET
    from convexlift.plots.svg import themed
    from convexlift.study.report.chart_parts import styles

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    templates.filters |= {"themed": themed, "plain": _plain}
    return templates.get_template(template).render(look=styles(names), style_sheet=STYLE_SHEET, **values)


def _standings(results: Sequence[Result]) -> str:
    """How often each arm is the lowest, alone or tied."""
    best = [tied_with_best(result) for result in results]
    names = sorted(dict.fromkeys(name for result in results for name in result["arms"]), key="lift".__ne__)
    counts = {n: (best.count([n]), sum(n in tied and tied != [n] for tied in best)) for n in names}
    told = []
    for name in sorted(names, key=lambda name: counts[name], reverse=True):
        ways = zip(("is", "ties for"), counts[name], strict=True)
        if parts := [f"{how} the lowest on {count}" for how, count in ways if count]:
            told.append(f"{name} {listed(parts)}")
    return "; ".join(told)


def _facts(result: Result) -> list[str]:
    """What stands under the heading: arms, seeds, budget, time and date."""
    arms, seconds = result["arms"].values(), finite(result.get("seconds"))
    seeds = max((len((arm.get("test") or {}).get("per_seed") or []) for arm in arms), default=0)
    facts = [
        f"{counted(len(arms), 'way')} of training",
        counted(seeds, "seed"),
        *spent(result),
        f"about {duration(seconds)} in all" if seconds else "",
        str((result.get("environment") or {}).get("date") or "")[:10],
    ]
    return [fact for fact in facts if fact]


def _plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
