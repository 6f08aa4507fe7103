"""The report page: one self-contained HTML file about one or several comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from convexlift.files import write_whole
from convexlift.plots.lines import Style, style_sheet, styles, swatch
from convexlift.study.report.answers import (
    Result,
    complete,
    difference,
    duration,
    finite,
    interval_text,
    listed,
    ranking,
    reference_arm,
    score_text,
    short,
    tied_with_best,
    verdicts,
)
from convexlift.study.report.figures import figures
from convexlift.study.report.glossary import ARMS, CONTROLS, glossary
from convexlift.study.report.portraits import pictures, weights
from convexlift.study.report.traces import traces

SCHEMA = 1
PHASES = ("start", "middle", "end")
NORMALISER = {
    "log_z_error": "log Z",
    "log_z_share": "effective share<br>of annealed particles",
    "training_share": "effective share<br>of draws in training",
}

_TERMS = '<a href="#terms">What the terms mean</a>.'


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
    look = styles(name for result in results for name in _all_arms(result))
    many = len(results) > 1
    title = "convexlift: a comparison" if many else f"convexlift: {results[0]['problem']}"
    anchors = [f"problem-{number}" for number in range(1, len(results) + 1)]
    body = [_overview(results, anchors, look)] if many else []
    body += [_section(result, anchor, look, many) for result, anchor in zip(results, anchors, strict=True)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style_sheet("charts")}
{style_sheet("report")}
</style>
</head>
<body>
<main>
{"".join(body)}
{glossary()}
</main>
</body>
</html>
"""


def _overview(results: Sequence[Result], anchors: Sequence[str], look: dict[str, Style]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result["arms"]))
    names.sort(key=lambda name: name != "lift")
    rows, items = [], []
    alone, shared = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for result, anchor in zip(results, anchors, strict=True):
        best = tied_with_best(result)
        for name in best:
            (alone if len(best) == 1 else shared)[name] += 1
        link = f'<a href="#{anchor}">{escape(str(result["problem"]))}</a>'
        about = [str(result.get("metric", "loss")), *_spent(result)]
        cells = [_standing(result, name, best) if name in result["arms"] else "–" for name in names]
        rows.append([f"{link}<br><small>{escape(', '.join(about))}</small>", *cells])
        items.append(f"<li><b>{link}</b>: {escape(verdicts(result)[0][1])}</li>")
    told = []
    for name in sorted(names, key=lambda name: (alone[name], shared[name]), reverse=True):
        counts = [
            f"{how} the lowest on {count}"
            for how, count in (("is", alone[name]), ("ties for", shared[name]))
            if count
        ]
        told += [f"{name} {listed(counts)}"] if counts else []
    sentence = f"Over {len(results)} problems, each arm at its own best rate: {'; '.join(told)}."
    head = ["problem", *(_arm(name, look[name]) for name in names)]
    caption = "Test loss ± standard error; under it the difference from the lowest with its 95 % interval"
    return f"""<section id="overview">
<header><p class="brand">convexlift</p><h1>Ways of training an input-convex network, compared</h1></header>
<p class="lead">{escape(sentence)}</p>
{_table(head, rows, caption)}
<p class="note">Bold: the lowest, and whatever ties with it. Below: the verdict on each problem.</p>
<ul class="verdicts">{"".join(items)}</ul>
</section>"""


def _standing(result: Result, name: str, best: Sequence[str]) -> str:
    """An arm's loss, and how far it is from the lowest."""
    loss = _test_cell(result["arms"][name], name in best)
    if name not in ranking(result):
        return loss
    found = difference(result, name, best[0]) if name != best[0] else None
    gap = f"+{interval_text(found)}" if found else "lowest" if name == best[0] else "no common seed"
    tie = "tied: " if found and name in best else ""
    return f"{loss}<br><small>{tie}{gap}</small>".replace("+−", "−").replace(" (", "<br>(")


def _section(result: Result, anchor: str, look: dict[str, Style], many: bool) -> str:
    level = "h2" if many else "h1"
    brand = "" if many else '<p class="brand">convexlift</p>'
    back = '<p class="meta"><a href="#overview">Back to the overview</a></p>' if many else ""
    (question, answer), *others = verdicts(result)
    answers = "".join(f"<dt>{escape(asked)}</dt><dd>{escape(told)}</dd>" for asked, told in others)
    metric = str(result.get("metric", "loss"))
    caption = (
        f"{metric[0].upper()}{metric[1:]} on the test rows, each arm at its own best rate; lower is better"
    )
    protocol, environment = result.get("protocol") or {}, result.get("environment") or {}
    command = str(protocol.get("command") or f"convexlift compare {result['problem']}")
    settings = [(name, value) for name, value in protocol.items() if name not in ("command", "on_edge")]
    return f"""<section id="{anchor}">
<header>{brand}<{level}>{escape(str(result["problem"]))}</{level}>
<p>{escape(str(result.get("description") or ""))}</p>
<p class="meta">{escape(" · ".join(_key_facts(result)))}</p></header>
<div class="verdict"><p class="question">{escape(question)}</p><p class="lead">{escape(answer)}</p>
<dl class="answers">{answers}</dl></div>
{_arms_table(result, look, caption)}
<p class="note">Bold: the lowest mean and every arm that is not clearly above it. {_TERMS}</p>
<div class="figures">{"".join(figures(result, look))}</div>
{_metrics(result, look)}
{_normalisers(result, look)}
{_weights(result, look)}
{_common_rate(result, look)}
{_failures(result)}
<h3>Run it again</h3>
<div class="scroll"><pre>{escape(command)}</pre></div>
<div class="pair"><div><h4>Protocol</h4>{_definitions(settings)}</div>
<div><h4>Environment</h4>{_definitions(environment.items())}</div></div>
{back}
</section>"""


def _common_rate(result: Result, look: dict[str, Style]) -> str:
    """The second table: every arm at one rate, with the controls that only it has."""
    section = result.get("fixed_rate") or {}
    if not section.get("arms"):
        return ""
    rate = short(section.get("lr"), 1)
    controls = [f"<li><b>{name}</b>: {ARMS[name]}.</li>" for name in section["arms"] if name in CONTROLS]
    told = f' It also holds:</p><ul class="controls">{"".join(controls)}</ul>' if controls else "</p>"
    drawn = "".join(
        [
            pictures(section, result.get("picture"), look),
            weights(section, look, full=True),
            *traces(result, "fixed_rate", look),
        ]
    )
    more = f'<div class="figures">{drawn}</div>' if drawn else ""
    inside = _weights(section, look, heading=False) + more
    details = f"<details><summary>The weights and models at this rate</summary>{inside}</details>"
    return f"""<h3>Every arm at the one rate {rate}</h3>
<p>Here no rate is chosen: the table shows how far each arm gets at one rate, and favours those that this rate
happens to suit.{told}
{_arms_table(section, look, f"Test loss at the rate {rate}; lower is better")}
{details if inside else ""}"""


def _all_arms(result: Result) -> list[str]:
    return [*result["arms"], *((result.get("fixed_rate") or {}).get("arms") or {})]


def _key_facts(result: Result) -> list[str]:
    seeds = max((len(_per_seed(arm)) for arm in result["arms"].values()), default=0)
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


def _per_seed(arm: Result) -> list[Any]:
    return (arm.get("test") or {}).get("per_seed") or []


def _failures(result: Result) -> str:
    items = [
        f"<li>{escape(name)}: {escape(str(message))}</li>"
        for name, arm in result["arms"].items()
        for message in arm.get("failed") or []
    ]
    return f"<h3>What failed</h3><ul>{''.join(items)}</ul>" if items else ""


# Tables.


def _arms_table(section: Result, look: dict[str, Style], caption: str) -> str:
    arms, order, base = section["arms"], ranking(section), reference_arm(section)
    best = tied_with_best(section)
    columns: list[tuple[str, Callable[[Result], str]]] = [
        ("half the<br>steps", lambda arm: _mean_only(arm.get("half_budget"))),
        ("equal<br>time", lambda arm: _mean_only(arm.get("equal_seconds"))),
        ("rate", lambda arm: f"{arm['lr']:g}" if finite(arm.get("lr")) and "lr" not in section else "–"),
        ("rate of the<br>weights", lambda arm: _factor(arm.get("source_factor"))),
        ("ms a<br>step", lambda arm: short(arm.get("ms_per_step"), 3)),
        (
            "trained<br>parameters",
            lambda arm: f"{int(arm['parameters']):,}" if arm.get("parameters") else "–",
        ),
    ]
    shown = [(title, cell) for title, cell in columns if any(cell(arm) != "–" for arm in arms.values())]
    rows = []
    for name in complete(section):
        found = (
            difference(section, name, base) if base is not None and name in order and name != base else None
        )
        gap = "reference" if name == base else interval_text(found) if found else "–"
        cells = [cell(arms[name]) for _, cell in shown]
        rows.append([_arm(name, look[name]), _test_cell(arms[name], name in best), gap, *cells])
    gap_title = f"minus {escape(str(base))}<br><small>95 % interval</small>"
    return _table(["arm", "test loss<br>± s.e.", gap_title, *(title for title, _ in shown)], rows, caption)


def _factor(value: Any) -> str:
    """How many times the common rate the latent weights are given; nothing for once."""
    return f"× {short(value, 3)}" if finite(value) not in (None, 1.0) else "–"


def _test_cell(arm: Result, bold: bool) -> str:
    seeds = _per_seed(arm)
    missing = sum(1 for value in seeds if finite(value) is None)
    if missing == 0 or finite((arm.get("test") or {}).get("mean")) is not None:
        failed = f" <small>({missing} failed)</small>" if missing else ""
        return _bold(score_text(arm.get("test")), bold) + failed
    return f"{missing} of {len(seeds)} seeds failed"


def _metrics(result: Result, look: dict[str, Style]) -> str:
    """Other figures of the frozen models than the loss, where the problem has some."""
    seen = dict.fromkeys(key for arm in result["arms"].values() for key in arm.get("metrics") or {})
    names = [key for key in seen if key not in NORMALISER]
    if not names:
        return ""
    rows = [
        [
            _arm(arm, look[arm]),
            *(score_text((result["arms"][arm].get("metrics") or {}).get(key)) for key in names),
        ]
        for arm in ranking(result)
    ]
    titles = {"kl": "Kullback-Leibler divergence", "hellinger": "Hellinger distance"}
    head = ["arm", *(escape(titles.get(name, name.replace("_", " "))) for name in names)]
    return _table(head, rows, "Other distances from the exact answer, mean ± standard error over seeds")


def _normalisers(result: Result, look: dict[str, Style]) -> str:
    """How well the multivariate densities of each arm are normalised, where they are."""
    metrics = {name: result["arms"][name].get("metrics") or {} for name in ranking(result)}
    names = [key for key in NORMALISER if any(key in found for found in metrics.values())]
    if not names:
        return ""
    rows = [
        [_arm(arm, look[arm]), *(_normaliser(found.get(key), key) for key in names)]
        for arm, found in metrics.items()
    ]
    how = "a standard error" if "log_z_share" in names else "a bound"
    return _table(
        ["arm", *(NORMALISER[name] for name in names)],
        rows,
        f"How well log Z of the frozen densities is known ({how}, in nats), means over seeds",
    )


def _normaliser(score: Result | None, key: str) -> str:
    mean = finite((score or {}).get("mean"))
    if mean is None:
        return "–"
    return f"± {short(mean)}" if key == "log_z_error" else short(mean)


def _weights(section: Result, look: dict[str, Style], heading: bool = True) -> str:
    """What happened to the constrained weights of each arm."""
    arms = section["arms"]
    columns = (
        ("on the<br>shoulder", "shoulder", True),
        ("exactly<br>zero", "at_zero", True),
        ("fan-in × W", "fan_in_weight", False),
        ("relative<br>speed", "relative_speed", False),
        ("step<br>amplification", "step_amplification", False),
        ("emission<br>noise", "emission_noise", True),
    )
    head, shown = ["arm"], []
    for title, key, percent in columns:
        seen = [arm[key] for arm in arms.values() if arm.get(key)]
        phases = [at for at in PHASES if any(at in by_phase for by_phase in seen)]
        if phases:
            head.append(f"{title}<br><small>{' → '.join(phases)}</small>")
            shown.append((key, phases, percent))
    if not shown:
        return ""
    rows = [
        [_arm(name, look[name]), *(_phases(arms[name].get(key), at, percent) for key, at, percent in shown)]
        for name in complete(section)
    ]
    table = _table(head, rows, "The constrained weights through training; medians over seeds")
    return f'{"<h3>What happened to the weights</h3>" if heading else ""}{table}<p class="note">{_TERMS}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table in a box of its own that scrolls; cells are HTML, the first of each row is its heading."""
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    lines = [
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    ]
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">
<table><caption><span>{escape(caption)}</span></caption>
<thead><tr>{titles}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>"""


def _definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    items = [
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in pairs
        if value not in (None, "", [], {})
    ]
    return f"<dl>{''.join(items)}</dl>"


def _arm(name: str, style: Style) -> str:
    return f'<span class="arm">{swatch(style)}{escape(name)}</span>'


def _bold(text: str, bold: bool) -> str:
    return f"<b>{text}</b>" if bold else text


def _mean_only(score: Result | None) -> str:
    """The mean to the digits that its standard error allows; the error is the cell's tooltip."""
    text = score_text(score)
    return f'<span title="{text}">{text.split(" ± ")[0]}</span>' if score else "–"


def _phases(values: Result | None, phases: Sequence[str], percent: bool = False) -> str:
    """``0.031 → 0.028 → 0``, one figure for each phase."""
    numbers = [finite((values or {}).get(phase)) for phase in phases]
    if all(number is None for number in numbers):
        return "–"
    texts = [short(None if number is None else number * (100 if percent else 1)) for number in numbers]
    return " → ".join(texts) + (" %" if percent else "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
