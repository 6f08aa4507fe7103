"""The figures of the report page: what each shows of a comparison, and the words above it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from convexlift.mechanism import HISTOGRAM_EDGES
from convexlift.plots.corner import MOST_COLUMNS, corner
from convexlift.plots.drawing import COLOURS, DATA, Limits, limits, points, robust_range, tell_outside, tick
from convexlift.plots.svg import as_svg
from convexlift.study.ranking import Result, complete, difference, finite, interval, ranking, reference_arm
from convexlift.study.report.chart_parts import (
    Line,
    Row,
    Style,
    line_chart,
    panel,
    row_chart,
    tips,
    twice,
    words,
)
from convexlift.study.report.numbers import interval_text, listed, score_text, short, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Look = Mapping[str, Style]
Draw = Callable[..., object]

_ERRORS = 2.0  # standard errors that a whisker reaches
_SIGNIFICANT = 0.05
_DATA = Style(DATA, "-", "o", "●")


class Figure(NamedTuple):
    """A box of the page: its words, one chart or several panels, and a legend."""

    title: str
    note: str
    charts: Sequence[Markup]
    legend: Sequence[str] = ()
    full: bool = False


def figures(result: Result, look: Look) -> list[Figure]:
    """The figures that the result has data for; ``look`` gives each arm's style."""
    drawn = [
        _differences(result, look),
        _seeds(result, look),
        pictures(result, result.get("picture"), look),
        _rates(result, look, "validation", "Mean over the selection seeds; the rates were chosen on this."),
        _rates(result, look, "test", "The same runs on the test rows; the rates were not chosen on this."),
        _curves(result, look, "steps", "Validation loss of the frozen model, by step", "steps"),
        _curves(result, look, "seconds", "The same, by training time", "training seconds (median seed)"),
        *traces(result, "tuned", look),
        weights(result, look),
        _cost(result, look),
    ]
    return [one for one in drawn if one]


# Losses, rates and costs.


def _rows(
    title: str, note: str, rows: Sequence[Row], x_label: str, x_range: Limits, rule: Any = None
) -> Figure | None:
    """A figure with one row an arm; the rule (name, value) is drawn where it lies within the range."""
    if not rows:
        return None
    rule = rule if rule and x_range[0] <= rule[1] <= x_range[1] else None
    told = f"{x_label}: {', '.join(row.name for row in rows)}"
    return Figure(title, note, [twice(partial(row_chart, rows, x_label, x_range, rule), told)])


def _seed_row(name: str, style: Style, score: Result, digits: int) -> Row | None:
    """A dot for every seed, and the mean."""
    seeds = [(k, v) for k, v in enumerate(map(finite, score.get("per_seed") or []), 1) if v is not None]
    titles = [f"{name}, seed {seed}: {short(value, digits)}" for seed, value in seeds]
    dots = [value for _, value in seeds]
    mean = finite(score.get("mean")) or (statistics.fmean(dots) if dots else None)
    return None if mean is None else Row(name, style, mean, dots, text=score_text(score), titles=titles)


def _differences(result: Result, look: Look) -> Figure | None:
    base = str(reference_arm(result))
    rows, values = [], [0.0]
    for name in ranking(result):
        found = difference(result, name, base) if name != base else None
        over_seeds = interval(found) if found else None
        if found and over_seeds:
            over_rows, mean = interval(found, "rows_ci95"), float(found["mean"])
            rows.append(Row(name, look[name], mean, (), over_rows, over_seeds, interval_text(found)))
            values += [mean, *over_seeds, *(over_rows or ())]
    thick = "; thick: over test rows" if any(row.interval for row in rows) else ""
    return _rows(
        f"Difference from {base}",
        f"Paired by seed. Thin: 95 % interval over seeds{thick}. An interval across zero is a tie.",
        rows,
        f"difference from {base} (right of zero: worse than {base})",
        robust_range(values),
        (base, 0.0),
    )


def _seeds(result: Result, look: Look) -> Figure | None:
    found = [_seed_row(name, look[name], result["arms"][name]["test"], 5) for name in ranking(result)]
    rows = [row for row in found if row]
    gaussian = finite((result.get("facts") or {}).get("gaussian"))
    return _rows(
        "Test loss of every seed",
        "One dot a seed; the bar is the mean. Further left is better.",
        rows,
        str(result.get("metric", "loss")),
        robust_range([value for row in rows for value in (*row.dots, row.value)]),
        None if gaussian is None else ("Gaussian", gaussian),
    )


def _cost(result: Result, look: Look) -> Figure | None:
    rows = []
    for name in ranking(result):
        arm = result["arms"][name]
        if (time := finite(arm.get("ms_per_step"))) is not None:
            size = f", {int(arm['parameters']):,} parameters" if arm.get("parameters") else ""
            rows.append(Row(name, look[name], time, (), (0.0, time), text=f"{short(time, 3)} ms{size}"))
    return _rows(
        "What a training step costs",
        "Median milliseconds of one step, and the parameters that are trained.",
        rows,
        "milliseconds a step",
        (0.0, 1.05 * max((row.value for row in rows), default=1.0)),
    )


def _lines(
    title: str, note: str, lines: Sequence[Line], x_label: str, y_label: str, y_range: Limits
) -> Figure:
    rates = sorted({rate for line in lines for rate in line.x}) if x_label == "learning rate" else ()
    names = [line.name for line in lines]
    told = f"{y_label} against {x_label}: {', '.join(names)}"
    return Figure(
        title, note, [twice(partial(line_chart, lines, x_label, y_label, y_range, rates), told)], names
    )


def _rates(result: Result, look: Look, split: str, told: str) -> Figure | None:
    lines = []
    for name, arm in result["arms"].items():
        tried = sorted(arm.get("rates") or [], key=lambda rate: rate["lr"])
        rates = [float(rate["lr"]) for rate in tried]
        losses = [finite(rate.get(split)) for rate in tried]
        chosen = rates.index(arm["lr"]) if arm.get("lr") in rates else None
        lines.append(Line(name, look[name], rates, losses, chosen=chosen))
    values = [value for line in lines for value in line.y if value is not None]
    if not values:
        return None
    y_range = robust_range(values)
    note = f"{told} A ring marks the rate that an arm was given."
    note += " Crosses diverged." if any(value is None for line in lines for value in line.y) else ""
    note += " Arrow heads lie above the frame." if max(values) > y_range[1] else ""
    title, y_label = f"{split.capitalize()} loss against learning rate", f"{split} {_loss(result, split)}"
    return _lines(title, note, lines, "learning rate", y_label, y_range)


def _loss(result: Result, split: str = "validation") -> str:
    """The axis label of a loss on validation rows, which need not be the metric of the test rows."""
    objective = (result.get("protocol") or {}).get("objective")
    if split == "validation" and objective in ("score", "denoising", "nce"):
        return f"loss of the objective {objective}"
    unit = unit_of(result).strip()
    return f"loss ({unit})" if unit else "loss"


def _curves(result: Result, look: Look, against: str, title: str, x_label: str) -> Figure | None:
    found = [_curve(name, arm, look[name], against) for name, arm in result["arms"].items()]
    lines = [line for line in found if line]
    lows = _numbers([value for line in lines for value in line.low])
    tails = [
        _numbers([high for x, high in zip(line.x, line.high, strict=True) if x >= 0.1 * line.x[-1]])
        for line in lines
    ]
    tops = [max(tail) for tail in tails if tail]
    if not lows or not tops:
        return None
    low, high = min(lows), robust_range(tops, 0.0)[1]  # a frame for what follows the fall of the first tenth
    pad = 0.05 * (high - low) or abs(high) * 0.01 or 1.0
    cut = any(value is not None and value > high + pad for line in lines for value in line.y)
    note = "Mean over seeds; the band runs from the best to the worst seed."
    note += " The steep first part runs off the top." if cut else ""
    return _lines(title, note, lines, x_label, f"validation {_loss(result)}", (low - pad, high + pad))


def _curve(name: str, arm: Result, style: Style, against: str) -> Line | None:
    """The mean over seeds with its range, up to where every seed has been evaluated."""
    curves = arm.get("curves") or {}
    x = [finite(value) or 0.0 for value in curves.get(against) or []]
    seeds = [[finite(value) for value in seed] for seed in curves.get("validation") or [] if seed]
    length = min([len(x), *map(len, seeds)]) if seeds else 0
    if length < 2:
        return None
    there = [[value for seed in seeds if (value := seed[at]) is not None] for at in range(length)]
    mean, low, high = (
        [of(column) if column else None for column in there] for of in (statistics.fmean, min, max)
    )
    return Line(name, style, x[:length], mean, low, high)


# Trained models.


def pictures(section: Result, data: Result | None, look: Look) -> Figure | None:
    """The frozen models beside the data; none without pictures of them."""
    known = {name: section["arms"][name].get("picture") for name in complete(section)}
    made = {name: picture for name, picture in known.items() if picture}
    drawn = [picture for picture in (data, *made.values()) if picture and picture["kind"] != "failed"]
    if not made or not drawn:
        return None
    kind = drawn[0]["kind"]
    if kind == "corner":
        return _corners(made, data or {}, look)
    kinds = {"density": _density, "samples": _samples, "fit": _fit, "regions": _regions}
    title, note, frame, draw = kinds[kind](data or {}, drawn)
    without = [name for name, picture in known.items() if not picture]
    note += f" Without a finished run of seed 0: {listed(without)}." if without else ""
    panels = []
    if kind == "samples" and data:
        panels.append(panel("the data", _DATA, "", frame, partial(draw, data, DATA)))
    for name, picture in made.items():
        if picture["kind"] == "failed":
            text = f"No picture: {picture.get('message')}"
            panels.append(panel(name, look[name], f": {text}", partial(words, text)))
        else:
            panels += _panels(look, title, draw, {name: picture}, frame)
    return Figure(title, note, panels, full=True)


def _panels(look: Look, told: str, draw: Draw, marks: Mapping[str, Any], *frame: Draw) -> list[Markup]:
    """A panel for each arm: the common frame, and its marks in its colour."""
    return [
        panel(name, look[name], f", {told}", *frame, partial(draw, mark, look[name].colour))
        for name, mark in marks.items()
    ]


def _frame(x_range: Limits, y_range: Limits, x_label: str, ax: Axes) -> None:
    """What the panels of a figure have in common."""
    ax.set(xlim=x_range, ylim=y_range, xlabel=x_label)
    tick(ax, 4, 4)


Kind = tuple[str, str, Draw, Draw]


def _density(data: Result, drawn: Sequence[Result]) -> Kind:
    x = [value for picture in drawn for value in picture["x"]]
    peaks = [max(_numbers(picture["y"]), default=0.0) for picture in drawn]
    top = 1.1 * min(max(peaks), 2 * peaks[0]) or 1.0

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        if data:
            ax.fill_between(data["x"], _array(data["y"]), color=DATA, alpha=0.28, linewidth=0)
        ax.plot(picture["x"], _array(picture["y"]), color=colour)
        if (peak := max(_numbers(picture["y"]), default=0.0)) > top:
            _notes(ax, f"peak at {short(peak)}")

    return (
        "The models' densities and the data's",
        "Line: the frozen model of seed 0. Shaded: the data, by its exact density where that is known, else "
        "by a histogram of the test rows.",
        partial(_frame, (min(x), max(x)), (0.0, top), "x"),
        draw,
    )


def _samples(data: Result, drawn: Sequence[Result]) -> Kind:
    rows = [row for picture in (drawn[:1] if data else drawn) for row in picture["points"]]
    across, up = data.get("columns") or (0, 1)
    chosen = "" if (across, up) == (0, 1) else ", the two farthest from normal"

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        points(ax, _array(picture["points"]), colour)
        tell_outside(ax, _array(picture["points"]))

    return (
        "The data, and what the models generate",
        f"{len(drawn[0]['points'])} test rows beside as many samples of each frozen model (seed 0). "
        f"Shown are column {across} (across) and column {up} (up), counted from 0{chosen}.",
        partial(_frame, _roomy([x for x, _ in rows]), _roomy([y for _, y in rows]), f"column {across}"),
        draw,
    )


def _fit(data: Result, drawn: Sequence[Result]) -> Kind:
    around = _roomy(drawn[0]["y"])

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        pairs = _array(list(zip(data.get("y", ()), picture["y"], strict=False)))
        ax.plot(around, around, ":", color=DATA)
        points(ax, pairs, colour)
        tell_outside(ax, pairs)

    return (
        "Fitted against true values",
        f"{len(drawn[0]['y'])} test rows: the true value (across) and the frozen model's, of seed 0 (up). "
        "On the dashed diagonal the fit is exact.",
        partial(_frame, around, around, "true value"),
        draw,
    )


def _regions(data: Result, drawn: Sequence[Result]) -> Kind:
    rows = _array(data.get("points", ())).reshape(-1, 2)
    edges = [_array(picture["outlines"][-1]) for picture in drawn if picture.get("outlines")]
    across, up = (limits(np.concatenate([rows, *edges])[:, k]) for k in (0, 1))

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        points(ax, rows, DATA)
        for outline in picture.get("outlines") or ():
            ax.plot(*_array(outline).T, color=colour)
        tell_outside(ax, rows)

    return (
        "Where the models' densities lie",
        "Lines: the smallest regions that hold 50, 90 and 99 % of the mass of each frozen model (seed 0). "
        f"Points: {len(rows)} test rows, column 1 up.",
        partial(_frame, across, up, "column 0"),
        draw,
    )


def _corners(made: Mapping[str, Result], data: Result, look: Look) -> Figure:
    """A corner plot of the first arm, which is the best, and the others' folded away."""
    drawn = {name: picture for name, picture in made.items() if picture["kind"] == "corner"}
    failed = [(name, picture["message"]) for name, picture in made.items() if picture["kind"] == "failed"]
    note = "".join(f" No picture of {name}: {message}." for name, message in failed)
    if not drawn:
        return Figure("The data, and draws of the densities", note.strip(), (), full=True)
    best = next(iter(drawn))
    rows = data.get("points", ())
    names = [f"column {k}" for k in data.get("columns") or range(len(drawn[best]["points"][0]))]
    folded = Markup("<details><summary>The same of {}</summary>{}</details>")
    charts: list[Markup] = []
    for name, picture in drawn.items():
        told, draws, colour = f"draws of {name}", _array(picture["points"]), look[name].colour
        draw = partial(corner, _array(rows), draws, names, model=told, colour=colour)
        chart = Markup(as_svg(draw, f"Corner plot of {', '.join(names)}: data and {told}"))
        charts.append(folded.format(name, chart) if charts else chart)
    mixing = listed([f"{short(picture['r_hat'], 4)} ({name})" for name, picture in drawn.items()])
    chosen = "" if len(names) < MOST_COLUMNS else f", the {len(names)} columns farthest from normal"
    return Figure(
        f"The data, and draws of the density by {best}",
        f"{len(rows)} test rows and as many draws of the frozen model of seed 0{chosen}. The largest R-hat "
        f"of the chains that drew: {mixing}.{note}",
        [Markup().join(charts)],
        full=True,
    )


def weights(section: Result, look: Look, full: bool = False) -> Figure | None:
    """The sizes of the constrained weights, at the start and at the end; none where they are not recorded."""
    sizes = {name: section["arms"][name].get("weights") or {} for name in complete(section)}
    bins = len(HISTOGRAM_EDGES) - 1
    sizes = {n: at for n, at in sizes.items() if all(len(at.get(k) or ()) == bins for k in ("start", "end"))}
    if not sizes:
        return None
    # The first bin is written out, so that it does not squash the others.
    top = max(max(by_phase[at][1:]) for by_phase in sizes.values() for at in ("start", "end")) or 1.0
    low, high, half = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], (HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0]) / 2

    def draw(by_phase: Result, colour: str, ax: Axes) -> None:
        _frame((low, high), (0.0, 1.35 * top), "log10(fan-in × W)", ax)
        ax.set_xticks([low + half, -3, 0, high - half], ["≤ −6", "−3", "0", "≥ 2"])
        ax.stairs(by_phase["start"], HISTOGRAM_EDGES, fill=True, color=DATA, alpha=0.28)
        ax.stairs(by_phase["end"], HISTOGRAM_EDGES, color=colour, linewidth=1.5)
        start, end = (short(100 * by_phase[at][0]) for at in ("start", "end"))
        _notes(ax, f"0 or below 1e-6:\n{start} → {end} %")

    return Figure(
        "How large the constrained weights are",
        "Share of the weights (up) by log10(fan-in × W); mean over seeds. Shaded: at the start of training; "
        "line: at its end. The first bin holds the weights that are 0 or below 1e-6; its share is written "
        "out, and may run off the top.",
        _panels(look, "by log10(fan-in × W)", draw, sizes),
        full=full,
    )


# Traced runs of an ablation.


def traces(result: Result, section: str, look: Look) -> list[Figure]:
    """The figures of the runs under "tuned" or at the "fixed_rate"; none where no run was traced."""
    effects = (result.get("ablation") or {}).get(section) or {}
    scores = result if section == "tuned" else result.get("fixed_rate") or {}
    names = [name for name in complete(scores) if name in effects] if scores.get("arms") else []
    drawn = [
        _couplings(effects, look),
        _stays(
            "How long weights stay on the shoulder",
            "The mean stay of a weight there, until it leaves or the run ends, as a share of the run.",
            {name: effects[name].get("dwell") or {} for name in names},
            "mean stay (share of the run)",
            look,
        ),
        _stays(
            "How many weights are on the shoulder",
            "Their share, averaged over the run. Under projection, which has no shoulder, both figures are "
            "of weights that are exactly zero.",
            {name: effects[name].get("occupancy") or {} for name in names},
            "share of the weights",
            look,
        ),
    ]
    return [one for one in drawn if one]


def _stays(title: str, note: str, scores: Mapping[str, Result], x_label: str, look: Look) -> Figure | None:
    found = [_seed_row(name, look[name], score, 3) for name, score in scores.items()]
    rows = [row for row in found if row]
    dots = [dot for row in rows for dot in row.dots] or [0.0]
    pad = 0.05 * (max(dots) - min(dots)) or 0.05
    x_range = max(min(dots) - pad, 0.0), min(max(dots) + pad, 1.0)
    return _rows(title, f"One dot a seed; the bar is the mean. {note}", rows, x_label, x_range)


def _couplings(effects: Result, look: Look) -> Figure | None:
    """tr Sigma_batch of every seed along training, a panel for each arm that reads a batch."""
    along = {name: [_measured(seed) for seed in one.get("along") or []] for name, one in effects.items()}
    reading = {
        name: seeds
        for name, seeds in along.items()
        if any(p.get("norm", 0) > 0 for seed in seeds for p in seed)
    }
    silent = [name for name, seeds in along.items() if any(seeds) and name not in reading]
    if not reading:
        return None
    every = [point for seeds in reading.values() for seed in seeds for point in seed]
    unit = _unit([point["trace_error"] for point in every])
    reach = 1.08 * max(abs(bound) for point in every for bound in _whisker(point)) or unit
    times = sorted({point["t"] for point in every})
    gap = min((b - a for a, b in zip(times, times[1:], strict=False)), default=1.0)

    def framed(ax: Axes) -> None:
        _frame((times[0] - gap / 2, times[-1] + gap / 2), (-reach, reach), "share of training", ax)
        ax.set_xticks(times, [f"{100 * t:.0f} %" for t in times])
        ax.set_yscale("asinh", linear_width=2 * unit)
        ax.set_yticks(*zip(*_ticks(unit, reach), strict=True))
        ax.axhline(0.0, color=DATA, linestyle=":")

    def draw(seeds: Sequence[Sequence[Result]], colour: str, ax: Axes) -> None:
        shifts = [gap * 0.6 * ((seed + 0.5) / len(seeds) - 0.5) for seed in range(len(seeds))]
        x = [point["t"] + shift for shift, seed in zip(shifts, seeds, strict=True) for point in seed]
        told = [f"seed {place} at {_told(point)}" for place, seed in enumerate(seeds, 1) for point in seed]
        measured = [point for seed in seeds for point in seed]
        y = [point["trace"] for point in measured]
        inside = [COLOURS["panel"] if point["p_value"] > _SIGNIFICANT else colour for point in measured]
        ax.vlines(x, *zip(*map(_whisker, measured), strict=True), color=colour, linewidth=1.4)
        ax.scatter(x, y, s=36, c=inside, edgecolors=colour, zorder=2)
        tips(ax, x, y, told)

    zero = f" Exactly zero for {listed(silent)}: no batch is read." if silent else ""
    return Figure(
        "Do the weights fluctuate together with the gradient?",
        f"tr Σ_batch (up), one mark a seed; whiskers: {_ERRORS:g} standard errors each way. Filled: the "
        f"permutation test of Σ_batch = 0, which looks at the whole matrix and not only at its trace, has "
        f"p ≤ {_SIGNIFICANT:g}; hollow: it has not. The scale is linear within ± {_power(unit)} and "
        f"logarithmic beyond.{zero}",
        _panels(look, "by share of training", draw, reading, framed),
        full=True,
    )


def _measured(seed: Any) -> list[dict[str, float]]:
    """The measurements of one run whose figures are all finite."""
    keys = ("t", "trace", "trace_error", "p_value")
    return [point for point in seed or [] if all(finite(point.get(key)) is not None for key in keys)]


def _unit(errors: Sequence[float]) -> float:
    """Where the scale turns from linear to logarithmic: a power of ten near the smaller errors."""
    there = sorted(error for error in errors if error > 0)
    return 10.0 ** round(math.log10(there[len(there) // 4])) if there else 1.0


def _whisker(point: dict[str, float]) -> Limits:
    spread = _ERRORS * point["trace_error"]
    return point["trace"] - spread, point["trace"] + spread


def _told(point: dict[str, float]) -> str:
    return (
        f"{point['t']:g}: {short(point['trace'])} ± {short(point['trace_error'])}, p = {point['p_value']:.2g}"
    )


def _scaled(value: float, unit: float) -> float:
    """Linear near zero; far from it the logarithm of |value| / unit in decades, with the sign of value."""
    return math.asinh(value / (2 * unit)) / math.log(10)


def _ticks(unit: float, reach: float) -> list[tuple[float, str]]:
    """Zero, and on each side one or two powers of ten; none so near zero that their labels would collide."""
    last = int(_scaled(reach, unit))
    powers = {last, last // 2} - ({0} if last else set())
    sides = [
        (sign * unit * 10.0**k, "−" * (sign < 0) + _power(unit * 10.0**k)) for k in powers for sign in (-1, 1)
    ]
    return sorted([(0.0, "0"), *sides])


def _power(value: float) -> str:
    return f"1e{round(math.log10(value))}".replace("-", "−")


# Numbers for matplotlib.


def _array(values: Any) -> np.ndarray:
    """As floats, with NaN for None."""
    return np.array(values, float)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [number for value in values if (number := finite(value)) is not None]


def _roomy(values: Sequence[Any]) -> Limits:
    there = _numbers(values)
    low, high = min(there, default=0.0), max(there, default=1.0)
    spare = 0.15 * (high - low) or 1.0
    return low - spare, high + spare


def _notes(ax: Axes, text: str) -> None:
    """Words in the frame's upper left corner."""
    ax.text(0.07, 0.98, text, va="top", color=DATA, transform=ax.transAxes)
