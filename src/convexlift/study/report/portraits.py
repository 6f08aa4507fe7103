"""The figures of trained models: the model beside the data, and where its weights stand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from convexlift.mechanism import HISTOGRAM_EDGES
from convexlift.plots.corner import MOST_COLUMNS, corner_chart, corner_size
from convexlift.plots.lines import Style
from convexlift.plots.panels import Frame, Panel, Points, figure, panel_grid
from convexlift.plots.scatter import DATA, Layer, chart, limits
from convexlift.study.report.answers import Result, complete, finite, listed, short

_DATA = Style("var(--muted)", "", "circle")


def pictures(section: Result, data: Result | None, look: dict[str, Style]) -> str:
    """The frozen models beside the data; "" without pictures of them."""
    known = {name: section["arms"][name].get("picture") for name in complete(section)}
    made = {name: picture for name, picture in known.items() if picture}
    drawn = [picture for picture in (data, *made.values()) if picture and picture["kind"] != "failed"]
    if not made or not drawn:
        return ""
    kind = drawn[0]["kind"]
    if kind == "regions":
        return _regions(made, data or {}, look)
    if kind == "corner":
        return _corners(made, data or {}, look)
    title, note, frame = {"density": _density, "samples": _samples, "fit": _fit}[kind](data or {}, drawn)
    panels = [Panel("the data", _DATA, points=_pairs(data["points"]))] if data and kind == "samples" else []
    panels += [_panel(name, look[name], picture, data or {}, frame) for name, picture in made.items()]
    without = [name for name, picture in known.items() if not picture]
    missing = f" Without a finished run of seed 0: {listed(without)}." if without else ""
    return figure(title, note + missing, panel_grid(panels, frame), full=True)


def _regions(made: dict[str, Result], data: Result, look: dict[str, Style]) -> str:
    """The regions of each density of two columns, over test rows."""
    points = _pairs(data.get("points", ()))
    curves = {
        name: [_pairs(curve) for curve in picture.get("outlines", ())] for name, picture in made.items()
    }
    every = [*points, *(point for outlines in curves.values() for curve in outlines[-1:] for point in curve)]
    x_range, y_range = limits([x for x, _ in every]), limits([y for _, y in every])
    panels = [
        chart(
            [Layer(DATA, points=points), Layer(look[name], lines=outlines)],
            x_range,
            y_range,
            width=190,
            height=200,
            x_label="column 0",
            title=[(name, look[name])],
        )
        for name, outlines in curves.items()
        if outlines
    ]
    failed = [
        f" No picture of {name}: {picture['message']}."
        for name, picture in made.items()
        if picture["kind"] == "failed"
    ]
    return figure(
        "Where the models' densities lie",
        f"Lines: the smallest regions that hold 50, 90 and 99 % of the mass of each frozen model (seed 0). "
        f"Points: {len(points)} test rows, column 1 up.{''.join(failed)}",
        f'<div class="panels" style="--count:{len(panels)}">{"".join(panels)}</div>',
        full=True,
    )


def _corners(made: dict[str, Result], data: Result, look: dict[str, Style]) -> str:
    """A corner plot of the first arm, which is the best, and the others' folded away."""
    names = [f"column {column}" for column in data.get("columns", ())]
    rows = data.get("points", ())
    drawn = {name: picture for name, picture in made.items() if picture["kind"] == "corner"}
    width = corner_size(len(names))[0]
    plots = {
        name: f'<div style="max-width:{width:g}px">'
        f"{corner_chart(rows, picture['points'], names, f'draws of {name}', look[name])}</div>"
        for name, picture in drawn.items()
    }
    best = next(iter(plots), "")
    others = "".join(
        f"<details><summary>The same of {escape(name)}</summary>{plot}</details>"
        for name, plot in plots.items()
        if name != best
    )
    failed = [
        f" No picture of {name}: {picture['message']}."
        for name, picture in made.items()
        if picture["kind"] == "failed"
    ]
    if not plots:
        return figure("The data, and draws of the densities", "".join(failed).strip(), "", full=True)
    mixing = listed([f"{short(picture['r_hat'], 4)} ({name})" for name, picture in drawn.items()])
    chosen = "" if len(names) < MOST_COLUMNS else f", the {len(names)} columns farthest from normal"
    return figure(
        f"The data, and draws of the density by {best}",
        f"{len(rows)} test rows and as many draws of the frozen model of seed 0{chosen}. The largest R-hat "
        f"of the chains that drew: {mixing}.{''.join(failed)}",
        plots[best] + others,
        full=True,
    )


def weights(section: Result, look: dict[str, Style], full: bool = False) -> str:
    """The sizes of the constrained weights, at the start and at the end; "" where they are not recorded."""
    sizes = {name: section["arms"][name].get("weights") or {} for name in complete(section)}
    sizes = {name: by_phase for name, by_phase in sizes.items() if _is_histogram(by_phase)}
    if not sizes:
        return ""
    # The first bin is written out, so that it does not squash the others.
    top = max(max(by_phase[at][1:]) for by_phase in sizes.values() for at in ("start", "end")) or 1.0
    low, high, half = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], (HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0]) / 2
    inner = [(float(tick), f"{tick}".replace("-", "−")) for tick in (-3, 0)]
    ticks = [(low + half, "≤ −6"), *inner, (high - half, "≥ 2")]
    panels = [
        Panel(
            name,
            look[name],
            area=_steps(by_phase["start"]),
            line=_steps(by_phase["end"]),
            notes=("0 or below 1e-6:", _first_bin(by_phase)),
        )
        for name, by_phase in sizes.items()
    ]
    return figure(
        "How large the constrained weights are",
        "Share of the weights (up) by log10(fan-in × W); mean over seeds. Shaded: at the start of training; "
        "line: at its end. The first bin holds the weights that are 0 or below 1e-6; its share is written "
        "out, and may run off the top.",
        panel_grid(panels, Frame((low, high), (0.0, 1.35 * top), "log10(fan-in × W)", ticks)),
        full=full,
    )


def _density(data: Result, drawn: Sequence[Result]) -> tuple[str, str, Frame]:
    x = [value for picture in drawn for value in picture["x"]]
    peaks = [max(_finite(picture["y"]), default=0.0) for picture in drawn]
    top = min(max(peaks), 2 * peaks[0]) or 1.0
    return (
        "The models' densities and the data's",
        "Line: the frozen model of seed 0. Shaded: the data, by its exact density where that is known, else "
        "by a histogram of the test rows.",
        Frame((min(x), max(x)), (0.0, 1.1 * top), "x"),
    )


def _samples(data: Result, drawn: Sequence[Result]) -> tuple[str, str, Frame]:
    rows = [row for picture in (drawn[:1] if data else drawn) for row in _pairs(picture["points"])]
    across, up = data.get("columns") or (0, 1)
    chosen = "" if (across, up) == (0, 1) else ", the two farthest from normal"
    return (
        "The data, and what the models generate",
        f"{len(drawn[0]['points'])} test rows beside as many samples of each frozen model (seed 0). "
        f"Shown are column {across} (across) and column {up} (up), counted from 0{chosen}.",
        Frame(_roomy([x for x, _ in rows]), _roomy([y for _, y in rows]), f"column {across}"),
    )


def _fit(data: Result, drawn: Sequence[Result]) -> tuple[str, str, Frame]:
    limits = _roomy(_finite(drawn[0]["y"]))
    return (
        "Fitted against true values",
        f"{len(drawn[0]['y'])} test rows: the true value (across) and the frozen model's, of seed 0 (up). "
        "On the dashed diagonal the fit is exact.",
        Frame(limits, limits, "true value", diagonal=True),
    )


def _panel(name: str, style: Style, picture: Result, data: Result, frame: Frame) -> Panel:
    """One arm's picture."""
    kind = picture["kind"]
    if kind == "failed":
        return Panel(name, style, words=f"No picture: {picture.get('message')}")
    if kind == "samples":
        return Panel(name, style, points=_pairs(picture["points"]))
    if kind == "fit":
        return Panel(name, style, points=_pairs(list(zip(data.get("y", ()), picture["y"], strict=False))))
    line = _pairs(list(zip(picture["x"], picture["y"], strict=True)))
    peak = max((y for _, y in line), default=0.0)
    exact = _pairs(list(zip(data.get("x", ()), data.get("y", ()), strict=True)))
    notes = (f"peak at {short(peak)}",) if peak > frame.y_range[1] else ()
    return Panel(name, style, area=exact, line=line, notes=notes)


def _first_bin(by_phase: Result) -> str:
    start, end = (short(100 * by_phase[at][0]) for at in ("start", "end"))
    return f"{start} → {end} %"


def _is_histogram(by_phase: Result) -> bool:
    return all(len(by_phase.get(at) or ()) == len(HISTOGRAM_EDGES) - 1 for at in ("start", "end"))


def _steps(shares: Sequence[float]) -> Points:
    """The outline of a histogram."""
    bins = zip(HISTOGRAM_EDGES, HISTOGRAM_EDGES[1:], shares, strict=False)
    return [(edge, share) for left, right, share in bins for edge in (left, right)]


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    spare = 0.15 * (high - low) or 1.0
    return low - spare, high + spare


def _finite(values: Sequence[Any]) -> list[float]:
    return [number for value in values if (number := finite(value)) is not None]


def _pairs(rows: Sequence[Any]) -> Points:
    """The rows whose two numbers are finite."""
    return [(float(x), float(y)) for x, y in rows if finite(x) is not None and finite(y) is not None]
