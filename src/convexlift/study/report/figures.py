"""The figures of the report page: what each shows of a comparison, and the words above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import AsinhLocator

from convexlift.mechanism import HISTOGRAM_EDGES
from convexlift.plots.corner import MOST_COLUMNS, corner
from convexlift.plots.drawing import COLOURS, DATA, Limits, limits, points, robust_range, tell_outside, tick
from convexlift.study.ranking import Result, complete, difference, finite, interval, ranking, reference_arm
from convexlift.study.report.chart_parts import Line, Row, Style, chart, line_chart, panel, row_chart, tips
from convexlift.study.report.numbers import interval_text, listed, score_text, short, unit_of

Look = Mapping[str, Style]
Draw = Callable[[Any, str, Axes], object]
Frame = tuple[Limits, Limits, str]

_ERRORS = 2.0  # standard errors that a whisker reaches
_SIGNIFICANT = 0.05
_ROOM = 0.15  # beside the data, for models that reach farther
_SEED = "the seed drawn"  # in notes, until it is known which that is
_MEASURED = ("t", "trace", "trace_error", "p_value")


_OF_DATA = Style(DATA, "-", "o", "●")


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
        images(result, result.get("picture"), look),
        _rates(result, look, "validation", "Mean over the selection seeds; the rates were chosen on this."),
        _rates(result, look, "test", "The same runs on the test rows; the rates were not chosen on this."),
        _curves(result, look, "steps", "Validation loss of the frozen model, by step", "steps"),
        _curves(result, look, "seconds", "The same, by training time", "training seconds (median seed)"),
        *traces(result, "tuned", look),
        weights(result, look),
        _cost(result, look),
    ]
    return [one for one in drawn if one]


def at_one_rate(result: Result, look: Look) -> list[Figure]:
    """The models and weights of the runs at the one rate."""
    section = result["fixed_rate"]
    drawn = pictures(section, result.get("picture"), look), weights(section, look, full=True)
    return [one for one in (*drawn, *traces(result, "fixed_rate", look)) if one]


# Losses, rates and costs.


def _rows(
    title: str, note: str, rows: Sequence[Row], x_label: str, x_range: Limits, rule: Any = None
) -> Figure | None:
    """A figure with one row an arm; the rule (name, value) is drawn where it lies within the range."""
    draw, names = partial(row_chart, rows, x_label, x_range, rule), ", ".join(row.name for row in rows)
    return Figure(title, note, [chart(draw, f"{x_label}: {names}")]) if rows else None


def _seed_rows(scores: Mapping[str, Result], look: Look, digits: int) -> list[Row]:
    """Of each arm a dot for every seed, and the mean."""
    rows = []
    for name, score in scores.items():
        seeds = {k: v for k, v in enumerate(map(finite, score.get("per_seed") or []), 1) if v is not None}
        titles = [f"{name}, seed {seed}: {short(value, digits)}" for seed, value in seeds.items()]
        dots, mean = list(seeds.values()), finite(score.get("mean"))
        if dots or mean is not None:
            mean = float(np.mean(dots)) if mean is None else mean
            rows.append(Row(name, look[name], mean, dots, text=score_text(score), titles=titles))
    return rows


def _differences(result: Result, look: Look) -> Figure | None:
    base, rows = str(reference_arm(result)), []
    for name in ranking(result):
        found = difference(result, name, base) if name != base else None
        if found and (over_seeds := interval(found)):
            over_rows = interval(found, "rows_ci95") or ()
            rows.append(Row(name, look[name], found["mean"], (), over_rows, over_seeds, interval_text(found)))
    thick = "; thick: over test rows" if any(row.interval for row in rows) else ""
    return _rows(
        f"Difference from {base}",
        f"Paired by seed. Thin: 95 % interval over seeds{thick}. An interval across zero is a tie.",
        rows,
        f"difference from {base} (right of zero: worse than {base})",
        robust_range([0.0, *(value for row in rows for value in (row.value, *row.outer, *row.interval))]),
        (base, 0.0),
    )


def _seeds(result: Result, look: Look) -> Figure | None:
    rows = _seed_rows({name: result["arms"][name]["test"] for name in ranking(result)}, look, 5)
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
        time, size = (finite(result["arms"][name].get(key)) for key in ("ms_per_step", "parameters"))
        if time is not None:
            told = f"{short(time, 3)} ms" + (f", {size:,.0f} parameters" if size else "")
            rows.append(Row(name, look[name], time, outer=(0.0, time), text=told))
    return _rows(
        "What a training step costs",
        "Median milliseconds of one step, and the parameters that are trained.",
        rows,
        "milliseconds a step",
        (0.0, 1.05 * max((row.value for row in rows), default=1.0)),
    )


def _lines(
    title: str,
    note: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_range: Limits,
    *rates: float,
    rules: Sequence[float] = (),
) -> Figure:
    names = [line.name for line in lines]
    draw = partial(line_chart, lines, x_label, y_label, y_range, rates, rules)
    return Figure(title, note, [chart(draw, f"{y_label} against {x_label}: {', '.join(names)}")], names)


def _rates(result: Result, look: Look, split: str, told: str) -> Figure | None:
    lines, tried = [], set()
    for name, arm in result["arms"].items():
        losses = {float(rate["lr"]): finite(rate.get(split)) for rate in arm.get("rates") or []}
        rates = sorted(losses)
        chosen = rates.index(arm["lr"]) if arm.get("lr") in rates else None
        lines.append(Line(name, look[name], rates, _array([losses[x] for x in rates]), chosen=chosen))
        tried |= {*rates}
    values = _array([value for line in lines for value in line.y])
    if not np.isfinite(values).any():
        return None
    y_range = robust_range(values)
    note = f"{told} A ring marks the rate that a way was given."
    note += " Crosses diverged." if np.isnan(values).any() else ""
    note += " Arrow heads lie above the frame." if (values > y_range[1]).any() else ""
    title, y_label = f"{split.capitalize()} loss against learning rate", f"{split} {_loss(result, split)}"
    return _lines(title, note, lines, "learning rate", y_label, y_range, *sorted(tried))


def _loss(result: Result, split: str = "validation") -> str:
    """The axis label of a loss on validation rows, which need not be the metric of the test rows."""
    objective = (result.get("protocol") or {}).get("objective")
    if split == "validation" and objective in ("score", "denoising", "nce"):
        return f"loss of the objective {objective}"
    unit = unit_of(result).strip()
    return f"loss ({unit})" if unit else "loss"


def _curves(result: Result, look: Look, against: str, title: str, x_label: str) -> Figure | None:
    lines = curve_lines(result, look, against)
    within = curve_frame(lines)
    return (
        None
        if within is None
        else _curves_within(within, lines, title, x_label, f"validation {_loss(result)}")
    )


def both_curves(
    result: Result, look: Look, titles: tuple[str, str], levels: Mapping[str, float]
) -> list[Figure]:
    """The losses by step at the one rate and at the arms' own, on one scale, beside known levels."""
    sections = [curve_lines(section, look, "steps") for section in (result["fixed_rate"], result)]
    within = curve_frame([line for lines in sections for line in lines])
    label = f"validation {_loss(result)}"
    pairs = zip(titles, sections, strict=True)
    return [
        _curves_within(within, lines, title, "steps", label, levels)
        for title, lines in pairs
        if within and lines
    ]


def curve_lines(section: Result, look: Look, against: str) -> list[Line]:
    """The means over seeds with their ranges, up to where every seed has been evaluated."""
    lines = []
    for name, arm in section["arms"].items():
        curves = arm.get("curves") or {}
        x, seeds = curves.get(against) or [], [seed for seed in curves.get("validation") or [] if seed]
        if seeds and (length := min(map(len, [x, *seeds]))) > 1:
            losses = np.ma.masked_invalid(_array([seed[:length] for seed in seeds]))
            mean, low, high = (of.filled(np.nan) for of in (losses.mean(0), losses.min(0), losses.max(0)))
            lines.append(Line(name, look[name], np.nan_to_num(_array(x[:length])), mean, low, high))
    return lines


def curve_frame(lines: Sequence[Line]) -> Limits | None:
    """A frame for what follows the fall of the first tenth; None where there is nothing to frame."""
    tails = [line.high[line.x >= 0.1 * line.x[-1]] for line in lines]
    bulk = _array([value for part in (*tails, *(line.low for line in lines)) for value in part])
    return robust_range(bulk, 0.05) if np.isfinite(bulk).any() else None


def _curves_within(
    y_range: Limits,
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    note = "Mean over seeds; the band runs from the best to the worst seed."
    within = {name: y for name, y in (levels or {}).items() if y_range[0] <= y <= y_range[1]}
    if within:
        downwards = sorted(within, key=within.__getitem__, reverse=True)
        note += f" Dotted{', from above' if len(within) > 1 else ''}: {listed(downwards)}."
    note += (
        " The steep first part runs off the top."
        if any((line.y > y_range[1]).any() for line in lines)
        else ""
    )
    return _lines(title, note, lines, x_label, y_label, y_range, rules=[*within.values()])


# Trained models.


def pictures(section: Result, data: Result | None, look: Look, seed: int = 0) -> Figure | None:
    """The frozen models of a seed beside the data; none without pictures of them."""
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
    note = note.replace(_SEED, f"seed {seed}")
    without = [name for name, picture in known.items() if not picture]
    note += f" Without a finished run of seed {seed}: {listed(without)}." if without else ""
    if kind == "samples" and data:
        look, made = {**look, "the data": _OF_DATA}, {"the data": data, **made}
    return Figure(title, note, _panels(look, title, frame, draw, made), full=True)


def _panels(look: Look, told: str, frame: Frame, draw: Draw, marks: Mapping[str, Any]) -> list[Markup]:
    """A panel for each arm: the common frame, and its marks in its colour; words where they failed."""
    failure = Markup('<p class="note"><b>{}</b><br>No picture: {}</p>')

    def drawn(name: str, ax: Axes) -> None:
        ax.set(xlim=frame[0], ylim=frame[1], xlabel=frame[2])
        tick(ax, 4, 4)
        draw(marks[name], look[name].colour, ax)

    return [
        failure.format(name, mark["message"])
        if isinstance(mark, dict) and mark.get("kind") == "failed"
        else panel(name, look[name], told, partial(drawn, name))
        for name, mark in marks.items()
    ]


Kind = tuple[str, str, Frame, Draw]


def _density(data: Result, drawn: Sequence[Result]) -> Kind:
    x = [value for picture in drawn for value in picture["x"]]
    peaks = [_peak(picture) for picture in drawn]
    top = 1.1 * min(max(peaks), 2 * peaks[0]) or 1.0

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        if data:
            ax.fill_between(data["x"], _array(data["y"]), color=DATA, alpha=0.28, linewidth=0)
        ax.plot(picture["x"], _array(picture["y"]), color=colour)
        ax.plot(
            picture.get("draws") or [],
            [0.015 * top] * len(picture.get("draws") or []),
            "|",
            color=colour,
            alpha=0.35,
        )
        if _peak(picture) > top:
            _notes(ax, f"peak at {short(_peak(picture))}")

    return (
        "The models' densities and the data's",
        f"Line: the frozen model of {_SEED}; ticks on the axis: draws from it. Shaded: the data, by its "
        "exact density where that is known, else by a histogram of the test rows.",
        ((min(x), max(x)), (0.0, top), "x"),
        draw,
    )


def _peak(picture: Result) -> float:
    return max(map(float, filter(finite, picture["y"])), default=0.0)


def _cloud(rows: Any, colour: str, ax: Axes) -> None:
    """Points, and how many the frame leaves out."""
    points(ax, _array(rows), colour)
    tell_outside(ax)


def _samples(data: Result, drawn: Sequence[Result]) -> Kind:
    rows = _array([row for picture in (drawn[:1] if data else drawn) for row in picture["points"]])
    across, up = data.get("columns") or (0, 1)
    chosen = "" if (across, up) == (0, 1) else ", the two farthest from normal"
    return (
        "The data, and what the models generate",
        f"{len(drawn[0]['points'])} test rows beside as many samples of each frozen model ({_SEED}). "
        f"Shown are column {across} (across) and column {up} (up), counted from 0{chosen}.",
        (limits(rows[:, 0], _ROOM), limits(rows[:, 1], _ROOM), f"column {across}"),
        lambda picture, colour, ax: _cloud(picture["points"], colour, ax),
    )


def images(section: Result, data: Result | None, look: Look, seed: int = 0) -> Figure | None:
    """Rows that stand for images, the data's and every model's; none where they do not."""
    known = {name: section["arms"][name].get("picture") or {} for name in complete(section)}
    made = {"the data": data or {}, **known}
    tiled = {name: _tiled(picture["images"]) for name, picture in made.items() if picture.get("images")}
    if len(tiled) < 2:
        return None
    styles = {**look, "the data": _OF_DATA}
    panels = [panel(name, styles[name], "images", partial(_image, tiles)) for name, tiles in tiled.items()]
    note = f"The first test rows, and samples of each frozen model (seed {seed}), all from the same noise."
    return Figure("Real images, and what the models generate", note, panels, full=True)


def _tiled(pictures: Any) -> np.ndarray:
    """Images (N, h, w) in a square of tiles, with a gap around each."""
    grey = np.pad(_array(pictures), ((0, 0), (0, 1), (0, 1)))
    side = math.isqrt(len(grey))
    return np.vstack([np.hstack([*row]) for row in grey[: side * side].reshape(side, side, *grey.shape[1:])])


def _image(tiles: np.ndarray, ax: Axes) -> None:
    ink = np.zeros((*tiles.shape, 4))
    ink[..., 3] = tiles / 255
    ax.imshow(ink, interpolation="none", aspect="equal")
    ax.set_axis_off()


def _fit(data: Result, drawn: Sequence[Result]) -> Kind:
    around = limits(_array(drawn[0]["y"]), _ROOM)

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        ax.plot(around, around, ":", color=DATA)
        _cloud(list(zip(data.get("y", ()), picture["y"], strict=False)), colour, ax)

    return (
        "Fitted against true values",
        f"{len(drawn[0]['y'])} test rows: the true value (across) and the frozen model's, of {_SEED} (up). "
        "On the dashed diagonal the fit is exact.",
        (around, around, "true value"),
        draw,
    )


def _regions(data: Result, drawn: Sequence[Result]) -> Kind:
    rows = _array(data.get("points", ())).reshape(-1, 2)
    edges = [_array(picture["outlines"][-1]) for picture in drawn if picture.get("outlines")]
    across, up = map(limits, np.concatenate([rows, *edges]).T)

    def draw(picture: Result, colour: str, ax: Axes) -> None:
        for outline in picture.get("outlines") or ():
            ax.plot(*_array(outline).T, color=colour)
        _cloud(rows, DATA, ax)

    return (
        "Where the models' densities lie",
        f"Lines: the smallest regions that hold 50, 90 and 99 % of the mass of each frozen model ({_SEED}). "
        f"Points: {len(rows)} test rows, column 1 up.",
        (across, up, "column 0"),
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
    charts = Markup()
    for name, picture in drawn.items():
        told, draws, colour = f"draws of {name}", _array(picture["points"]), look[name].colour
        draw = partial(corner, _array(rows), draws, names, model=told, colour=colour)
        drawing = chart(draw, f"Corner plot of {', '.join(names)}: data and {told}")
        folded = "<details><summary>The same of {}</summary>{}</details>" if charts else "{1}"
        charts += Markup(folded).format(name, drawing)
    mixing = listed([f"{short(picture['r_hat'], 4)} ({name})" for name, picture in drawn.items()])
    chosen = "" if len(names) < MOST_COLUMNS else f", the {len(names)} columns farthest from normal"
    return Figure(
        f"The data, and draws of the density by {best}",
        f"{len(rows)} test rows and as many draws of the frozen model of seed 0{chosen}. The largest R-hat "
        f"of the chains that drew: {mixing}.{note}",
        [charts],
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
        ax.set_xticks([low + half, -3, 0, high - half], ["≤ −6", "−3", "0", "≥ 2"])
        ax.stairs(by_phase["start"], HISTOGRAM_EDGES, fill=True, color=DATA, alpha=0.28)
        ax.stairs(by_phase["end"], HISTOGRAM_EDGES, color=colour, linewidth=1.5)
        start, end = (short(100 * by_phase[at][0]) for at in ("start", "end"))
        _notes(ax, f"0 or below 1e-6:\n{start} → {end} %")

    frame = (low, high), (0.0, 1.35 * top), "log10(fan-in × W)"
    return Figure(
        "How large the constrained weights are",
        "Share of the weights (up) by log10(fan-in × W); mean over seeds. Shaded: at the start of training; "
        "line: at its end. The first bin holds the weights that are 0 or below 1e-6; its share is written "
        "out, and may run off the top.",
        _panels(look, f"by {frame[2]}", frame, draw, sizes),
        full=full,
    )


# Traced runs of an ablation.


def traces(result: Result, section: str, look: Look) -> list[Figure]:
    """The figures of the runs under "tuned" or at the "fixed_rate"; none where no run was traced."""
    effects = (result.get("ablation") or {}).get(section) or {}
    scores = result if section == "tuned" else result.get("fixed_rate") or {}
    names = [name for name in complete(scores) if name in effects] if scores.get("arms") else []
    drawn = [_couplings(effects, look)]
    for key, title, note, x_label in (
        (
            "dwell",
            "How long weights stay on the flat part",
            "The mean stay of a weight there, until it leaves or the run ends, as a share of the run.",
            "mean stay (share of the run)",
        ),
        (
            "occupancy",
            "How many weights are on the flat part",
            "Their share, averaged over the run. Under projection, which has no flat part, both figures are "
            "of weights that are exactly zero.",
            "share of the weights",
        ),
    ):
        rows = _seed_rows({name: effects[name].get(key) or {} for name in names}, look, 3)
        dots = [dot for row in rows for dot in row.dots] or [0.0]
        pad = 0.05 * (max(dots) - min(dots)) or 0.05
        x_range = max(min(dots) - pad, 0.0), min(max(dots) + pad, 1.0)
        drawn.append(_rows(title, f"One dot a seed; the bar is the mean. {note}", rows, x_label, x_range))
    return [one for one in drawn if one]


def _couplings(effects: Result, look: Look) -> Figure | None:
    """tr Sigma_batch of every seed along training, a panel for each arm that reads a batch."""
    along = {
        name: [
            (seed, point)
            for seed, run in enumerate(effect.get("along") or [], 1)
            for point in run or []
            if all(finite(point.get(key)) is not None for key in _MEASURED)
        ]
        for name, effect in effects.items()
    }
    reading = {n: read for n, read in along.items() if any(point.get("norm", 0) > 0 for _, point in read)}
    silent = [name for name, read in along.items() if read and name not in reading]
    if not reading:
        return None
    every = [point for read in reading.values() for _, point in read]
    errors = sorted(point["trace_error"] for point in every if point["trace_error"] > 0)
    # The scale turns from linear to logarithmic at a power of ten near the smaller errors.
    unit = 10.0 ** round(math.log10(errors[len(errors) // 4])) if errors else 1.0
    reach = 1.08 * max(abs(bound) for point in every for bound in _whisker(point)) or unit
    times = sorted({point["t"] for point in every})
    gap = min(np.diff(times), default=1.0)

    def draw(read: Sequence[tuple[int, Result]], colour: str, ax: Axes) -> None:
        ax.set_xticks(times, [f"{100 * t:.0f} %" for t in times])
        _signed(ax, unit)
        ax.axhline(0.0, color=DATA, linestyle=":")
        last = max(seed for seed, _ in read)
        x = [point["t"] + gap * 0.6 * ((seed - 0.5) / last - 0.5) for seed, point in read]
        y = [point["trace"] for _, point in read]
        inside = [COLOURS["panel"] if point["p_value"] > _SIGNIFICANT else colour for _, point in read]
        ax.vlines(x, *zip(*(_whisker(point) for _, point in read), strict=True), color=colour, linewidth=1.4)
        ax.scatter(x, y, s=36, c=inside, edgecolors=colour, zorder=2)
        told = (f"{short(p['trace'])} ± {short(p['trace_error'])}, p = {p['p_value']:.2g}" for _, p in read)
        at = (f"seed {seed} at {point['t']:g}" for seed, point in read)
        tips(ax, x, y, map("{}: {}".format, at, told))

    zero = f" Exactly zero for {listed(silent)}: no batch is read." if silent else ""
    frame = (times[0] - gap / 2, times[-1] + gap / 2), (-reach, reach), "share of training"
    return Figure(
        "Do the weights fluctuate together with the gradient?",
        f"tr Σ_batch (up), one mark a seed; whiskers: {_ERRORS:g} standard errors each way. Filled: the "
        f"permutation test of Σ_batch = 0, which looks at the whole matrix and not only at its trace, has "
        f"p ≤ {_SIGNIFICANT:g}; hollow: it has not. The scale is linear within ± {_power(unit)} and "
        f"logarithmic beyond.{zero}",
        _panels(look, "by share of training", frame, draw, reading),
        full=True,
    )


def _whisker(point: Mapping[str, float]) -> Limits:
    spread = _ERRORS * point["trace_error"]
    return point["trace"] - spread, point["trace"] + spread


def _signed(ax: Axes, unit: float) -> None:
    """A vertical scale that is linear near zero and far from it logarithmic, with few ticks."""
    ax.set_yscale("asinh", linear_width=2 * unit)
    ax.yaxis.set_major_locator(AsinhLocator(2 * unit, numticks=5))
    ax.yaxis.set_major_formatter(_power)


def _power(value: float, _: object = None) -> str:
    exponent = round(math.log10(abs(value))) if value else 0
    return f"{'−' if value < 0 else ''}1e{exponent}".replace("-", "−") if value else "0"


# Numbers for matplotlib.


def _array(values: Any) -> np.ndarray:
    """As floats, with NaN for None."""
    return np.array(values, float)


def _notes(ax: Axes, text: str) -> None:
    """Words in the frame's upper left corner."""
    ax.text(0.07, 0.98, text, va="top", color=DATA, transform=ax.transAxes)
