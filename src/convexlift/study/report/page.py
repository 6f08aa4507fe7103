"""The report page: one self-contained HTML file about one or several comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convexlift.files import write_whole
from convexlift.study.ranking import Result, finite, tied_with_best
from convexlift.study.report.answers import verdicts
from convexlift.study.report.glossary import ABLATIONS, ARMS, CONTROLS
from convexlift.study.report.numbers import duration, listed, short

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
        raise ValueError(f"{file} is not the result of a comparison: it has no problem or no arms")
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
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page(results).encode())
    return target


def page(results: Sequence[Result]) -> str:
    """The HTML text of the report."""
    try:
        import jinja2

        from convexlift.plots.drawing import STYLE_SHEET
        from convexlift.plots.svg import themed
        from convexlift.study.report.chart_parts import styles
    except ImportError as error:
        raise ImportError("a report needs jinja2 and matplotlib: pip install 'convexlift[report]'") from error
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    templates.filters["themed"] = themed
    look = styles(name for result in results for name in _all_arms(result))
    sections = [_section(result, f"problem-{place}", look) for place, result in enumerate(results, 1)]
    return templates.get_template("page.html").render(
        look=look,
        style_sheet=STYLE_SHEET,
        overview=_overview(results, sections) if len(results) > 1 else None,
        sections=sections,
        arms=ARMS,
        ablations=ABLATIONS,
    )


def _overview(results: Sequence[Result], sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from convexlift.study.report.tables import overview_table

    standings = [tied_with_best(result) for result in results]
    names = sorted(dict.fromkeys(name for result in results for name in result["arms"]), key="lift".__ne__)
    counts = {n: (standings.count([n]), sum(n in best and best != [n] for best in standings)) for n in names}
    told = []
    for name in sorted(names, key=lambda name: counts[name], reverse=True):
        ways = zip(("is", "ties for"), counts[name], strict=True)
        if parts := [f"{how} the lowest on {count}" for how, count in ways if count]:
            told.append(f"{name} {listed(parts)}")
    about = [
        (result, section["anchor"], ", ".join([str(result.get("metric", "loss")), *_spent(result)]))
        for result, section in zip(results, sections, strict=True)
    ]
    return {
        "sentence": f"Over {len(results)} problems, each arm at its own best rate: {'; '.join(told)}.",
        "table": overview_table(about),
    }


def _section(result: Result, anchor: str, look: Any) -> dict[str, Any]:
    """What the page says of one comparison."""
    from convexlift.study.report import figures, tables

    metric = str(result.get("metric", "loss"))
    caption = (
        f"{metric[:1].upper()}{metric[1:]} on the test rows, each arm at its own best rate; lower is better"
    )
    protocol = dict(result.get("protocol") or {})
    command = str(protocol.pop("command", None) or f"convexlift compare {result['problem']}")
    protocol.pop("on_edge", None)
    return {
        "problem": result["problem"],
        "anchor": anchor,
        "description": result.get("description") or "",
        "facts": _key_facts(result),
        "answers": verdicts(result),
        "table": tables.arms_table(result, caption),
        "figures": figures.figures(result, look),
        "distances": tables.distances_table(result),
        "normalisers": tables.normalisers_table(result),
        "weights": tables.weights_table(result),
        "common": _common_rate(result, look),
        "failures": [(name, m) for name, arm in result["arms"].items() for m in arm.get("failed") or []],
        "command": command,
        "protocol": _definitions(protocol),
        "environment": _definitions(result.get("environment") or {}),
    }


def _common_rate(result: Result, look: Any) -> dict[str, Any] | None:
    """Every arm at one rate, with the controls that only this table has."""
    from convexlift.study.report import figures, tables

    section = result.get("fixed_rate") or {}
    if not section.get("arms"):
        return None
    rate = short(section.get("lr"), 1)
    drawn = [
        figures.pictures(section, result.get("picture"), look),
        figures.weights(section, look, full=True),
    ]
    return {
        "rate": rate,
        "controls": [name for name in section["arms"] if name in CONTROLS],
        "table": tables.arms_table(section, f"Test loss at the rate {rate}; lower is better"),
        "weights": tables.weights_table(section),
        "figures": [one for one in (*drawn, *figures.traces(result, "fixed_rate", look)) if one],
    }


def _all_arms(result: Result) -> list[str]:
    return [*result["arms"], *((result.get("fixed_rate") or {}).get("arms") or {})]


def _key_facts(result: Result) -> list[str]:
    seeds = max(
        (len((arm.get("test") or {}).get("per_seed") or []) for arm in result["arms"].values()), default=0
    )
    seconds = finite(result.get("seconds"))
    facts = [
        f"{len(result['arms'])} arms",
        f"{seeds} seed{'s' if seeds != 1 else ''}",
        *_spent(result),
        f"about {duration(seconds)} in all" if seconds else "",
        str((result.get("environment") or {}).get("date") or "")[:10],
    ]
    return [fact for fact in facts if fact]


def _spent(result: Result) -> list[str]:
    protocol = result.get("protocol") or {}
    steps = [f"{protocol['steps']:,} steps"] if isinstance(protocol.get("steps"), int) else []
    return [*steps, f"{protocol['budget']} budget"] if protocol.get("budget") else steps


def _definitions(settings: dict[str, Any]) -> Iterable[tuple[str, str]]:
    return [(k.replace("_", " "), _plain(v)) for k, v in settings.items() if v not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
