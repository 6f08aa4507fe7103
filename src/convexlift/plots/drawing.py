"""What the figures share: axes, colours, frames that hold the bulk of the data, points and ticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
else:
    Axes = Any  # matplotlib is loaded when something is drawn

Limits = tuple[float, float]

STYLE_SHEET = resources.files(__package__).joinpath("charts.css").read_text(encoding="utf-8")
COLOURS = dict(re.findall(r"--([\w-]+):(#\w{6})", STYLE_SHEET.split("@media")[0]))
"""The light colours of the style sheet by name; `as_svg` turns them back into the sheet's variables."""

DATA, MODEL, OTHER = COLOURS["muted"], COLOURS["series-0"], COLOURS["series-1"]
_BINS = 32


@contextmanager
def needed(whom: str = "plots need") -> Iterator[None]:
    """Name the extra where an import of matplotlib fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{whom} matplotlib: pip install 'convexlift[plots]'") from error


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, else those of a new figure of so many points (72 to the inch), unknown to pyplot."""
    if ax is not None:
        return ax
    with needed():
        from matplotlib.figure import Figure
    return Figure(figsize=(width / 72, height / 72), layout="constrained").add_subplot()


def limits(values: ArrayLike, spare: float = 0.06) -> Limits:
    """A range that holds all values but those far outside the middle 98 %, which would squash the others.

    >>> limits([0.0, 1.0, 2.0], spare=0.0)
    (0.0, 2.0)
    """
    ordered = _sorted(values)
    if not len(ordered):
        return 0.0, 1.0
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.01, 0.99))
    reach = 0.5 * (high - low)
    return _padded(max(float(ordered[0]), low - reach), min(float(ordered[-1]), high + reach), spare)


def robust_range(values: ArrayLike, spare: float = 0.06) -> Limits:
    """Limits that hold the bulk of the values; outliers above (beyond thrice the middle spread) stay out.

    >>> robust_range([1.0, 1.5, 2.0, 500.0], spare=0.0)
    (1.0, 2.0)
    """
    ordered = _sorted(values)
    if not len(ordered):
        return 0.0, 1.0
    low, middle = float(ordered[0]), float(ordered[round(0.75 * (len(ordered) - 1))])
    within = ordered[ordered <= middle + 3.0 * (middle - low)] if middle > low else ordered
    return _padded(low, float(within[-1]), spare)


def _sorted(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, float)
    return np.sort(values[np.isfinite(values)])


def _padded(low: float, high: float, spare: float) -> Limits:
    pad = (spare * (high - low) or 0.01 * abs(high) or 1.0) if spare else 0.0
    return low - pad, high + pad


def histogram(values: ArrayLike, within: Limits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density heights of 32 bins between two limits, and their 33 edges; values outside count as rows only.

    >>> heights, edges = histogram([0.1, 0.1, 0.9], (0.0, 1.0))
    >>> len(edges), float(heights.sum() / 32)
    (33, 1.0)
    """
    values = np.asarray(values, float)
    counts, edges = np.histogram(values, _BINS, within)
    return counts / (max(values.size, 1) * np.diff(edges)), edges


def points(ax: Axes, rows: ArrayLike, colour: str, label: str | None = None, size: float = 3.2) -> None:
    """Rows (N, 2) as round dots."""
    x, y = np.reshape(np.asarray(rows, float), (-1, 2)).T
    ax.plot(x, y, "o", color=colour, alpha=0.6, markersize=size, markeredgewidth=0, label=label)


def tell_outside(ax: Axes) -> None:
    """Write into the frame's corner how many dots it leaves out, if any."""
    dots = [np.array(line.get_xydata()) for line in ax.lines if line.get_marker() == "o"]
    x, y = np.concatenate([np.empty((0, 2)), *dots]).T
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    if count := ((x < left) | (x > right) | (y < low) | (y > high)).sum():
        ax.text(0.98, 0.03, f"{count} outside", transform=ax.transAxes, ha="right", color=DATA)


def tick_text(value: float, _: object = None) -> str:
    """A short axis label with a true minus sign.

    >>> tick_text(0.001), tick_text(-25.0), tick_text(2000.0)
    ('0.001', '−25', '2,000')
    """
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.0e}" if 0 < size < 1e-4 else f"{value:.6g}"
    return text.replace("-", "−")


def tick(ax: Axes, across: int = 5, up: int = 5) -> None:
    """Round ticks on both axes, about so many, with short labels."""
    ax.locator_params("x", nbins=across, steps=[1, 2, 5, 10])
    ax.locator_params("y", nbins=up, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(tick_text)
    ax.yaxis.set_major_formatter(tick_text)
