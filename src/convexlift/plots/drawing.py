"""What the figures share: axes, colours, frames that hold the bulk of the data, and marks for what lies beyond."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limits = tuple[float, float]

STYLE_SHEET = resources.files(__package__).joinpath("charts.css").read_text(encoding="utf-8")
COLOURS = dict(re.findall(r"--([\w-]+): (#\w{6});", STYLE_SHEET.split("@media")[0]))
"""The light colours of the style sheet by name; `as_svg` turns them back into the sheet's variables."""

DATA, MODEL, OTHER = COLOURS["muted"], COLOURS["series-0"], COLOURS["series-1"]
_BINS = 32


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, else those of a new figure of so many points (72 to the inch), unknown to pyplot.

    Raises:
        ImportError: matplotlib is missing.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'convexlift[plots]'") from error
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure.add_subplot()


def limits(values: ArrayLike, spare: float = 0.06) -> Limits:
    """A range that holds all values but those far outside the middle 98 %, which would squash the others.

    >>> limits([0.0, 1.0, 2.0], spare=0.0)
    (0.0, 2.0)
    """
    ordered = np.sort(np.asarray(values, float), axis=None)
    if not len(ordered):
        return 0.0, 1.0
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.01, 0.99))
    reach = 0.5 * (high - low)
    low, high = max(float(ordered[0]), low - reach), min(float(ordered[-1]), high + reach)
    pad = spare * (high - low) or 0.01 * abs(high) or 1.0
    return (low - pad, high + pad) if spare else (low, high)


def robust_range(values: ArrayLike, spare: float = 0.06) -> Limits:
    """Limits that hold the bulk of the values; outliers above (beyond thrice the middle spread) stay out.

    >>> robust_range([1.0, 1.5, 2.0, 500.0], spare=0.0)
    (1.0, 2.0)
    """
    ordered = np.sort(np.asarray(values, float), axis=None)
    if not len(ordered):
        return 0.0, 1.0
    low, middle = float(ordered[0]), float(ordered[round(0.75 * (len(ordered) - 1))])
    within = ordered[ordered <= middle + 3.0 * (middle - low)] if middle > low else ordered
    high = float(within[-1])
    pad = spare * (high - low) or abs(high) * 0.01 or 1.0
    return (low - pad, high + pad) if spare else (low, high)


def histogram(values: ArrayLike, within: Limits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density heights of 32 bins between two limits, and their 33 edges; values outside count as rows only.

    >>> heights, edges = histogram([0.1, 0.1, 0.9], (0.0, 1.0))
    >>> len(edges), float(heights.sum() / 32)
    (33, 1.0)
    """
    values = np.asarray(values, float)
    counts, edges = np.histogram(values, _BINS, within)
    return counts / (max(values.size, 1) * np.diff(edges)), edges


def points(ax: Axes, rows: ArrayLike, colour: str, size: float = 3.2, label: str = "") -> None:
    """Rows (N, 2) as round dots."""
    x, y = np.reshape(np.asarray(rows, float), (-1, 2)).T
    ax.plot(x, y, "o", color=colour, alpha=0.6, markersize=size, markeredgewidth=0, label=label or None)


def outside(ax: Axes, rows: ArrayLike) -> int:
    """How many of the rows (N, 2) the frame leaves out."""
    x, y = np.reshape(np.asarray(rows, float), (-1, 2)).T
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    return int(((x < left) | (x > right) | (y < low) | (y > high)).sum())


def tell_outside(ax: Axes, rows: ArrayLike) -> None:
    """Write into the frame's corner how many rows it leaves out, if any."""
    if count := outside(ax, rows):
        ax.text(0.98, 0.03, f"{count} outside", transform=ax.transAxes, ha="right", color=DATA)


def arrow_heads(ax: Axes, x: ArrayLike, y: ArrayLike, colour: str) -> None:
    """Triangles on the frame's upper edge for what lies above it."""
    above = np.asarray(x, float)[np.asarray(y, float) > ax.get_ylim()[1]]
    edge = ax.get_xaxis_transform()
    ax.plot(above, np.ones_like(above), "^", color=colour, alpha=0.55, clip_on=False, transform=edge)


def tick_text(value: float, _: object = None) -> str:
    """A short axis label with a true minus sign.

    >>> tick_text(0.001), tick_text(-25.0), tick_text(2000.0)
    ('0.001', '−25', '2,000')
    """
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.0e}" if 0 < size < 1e-4 else f"{value:.6g}"
    return text.replace("-", "−")


def tick(ax: Axes, count: int = 5) -> None:
    """Round ticks on both axes, about so many, with short labels."""
    ax.locator_params(nbins=count, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(tick_text)
    ax.yaxis.set_major_formatter(tick_text)
