"""Figures as the text of an ``<svg>``, in the colours of the page that they stand on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from hashlib import sha256
from html import escape
from io import StringIO
from typing import Any

from convexlift.plots.drawing import COLOURS, STYLE_SHEET, Axes, needed

_LOOK = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "convexlift",  # the same ids every time
    "text.parse_math": False,
    "font.size": 12,
    "axes.titlesize": 12,
    "text.color": COLOURS["ink"],
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["muted"]),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), COLOURS["edge"]),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "ytick.left"), False),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
}


def as_svg(draw: Callable[[], Axes], title: str, margin: int = 0) -> str:
    """The chart that a function draws, as ``<svg class="chart">`` to stand in a page with `STYLE_SHEET`.

    Colours of the sheet become its variables, so that one drawing serves light and dark pages. Links of
    artists (``set_urls``) become tooltips. The user's matplotlib settings do not matter.

    Args:
        draw: makes a figure and returns its axes.
        title: what a screen reader says.
        margin: around the figure, in points.

    Example:
        >>> from convexlift.plots import plot_potential
        >>> text = as_svg(lambda: plot_potential(lambda x: x[:, 0] ** 2, [(-1, 1)]), "a parabola")
        >>> text[:17], "var(--series-0)" in text, "url(http" in text
        ('<svg class="chart', True, False)
    """
    with needed():
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = StringIO()
    with style.context(_LOOK, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a page has more fonts than matplotlib
        figure: Any = draw().figure
        FigureCanvasSVG(figure).print_svg(file)
    width, height = 72 * figure.get_size_inches() + 2 * margin
    return (
        f'<svg class="chart" viewBox="{-margin} {-margin} {width:g} {height:g}" role="img" '
        f'style="--width:{width:g}px" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>\n'
        f"{_inside(file.getvalue())}\n</svg>"
    )


def svg_file(draw: Callable[[], Axes], title: str) -> str:
    """The same as the text of a file of its own, with colours and a background."""
    head, rest = as_svg(draw, title, margin=12).split("\n", 1)
    ground = '<rect x="-12" y="-12" width="100%" height="100%" fill="var(--panel)"/>'
    return f"{head}<style>{STYLE_SHEET}</style>{ground}\n{rest}\n"


def themed(text: str) -> str:
    """The text with the sheet's variables in place of its light colours."""
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _inside(text: str) -> str:
    """What matplotlib drew, without what a page need not or must not hold."""
    text = text[text.index('<g id="figure_1">') : text.rindex("</svg>")]
    key = sha256(text.encode()).hexdigest()[:6]  # keeps the charts of a page apart
    for pattern, new in (
        (r'<g id="(?!m)\w*">', "<g>"),
        (r'<a xlink:href="([^"]*)"[^>]*>', r'<g class="tip"><title>\1</title>'),
        (r"</a>", "</g>"),
        (r"xlink:href", "href"),
        (r"font-family: [^;\"<]*;? ?", ""),
        (r' transform="rotate\(-0 [^"]*"', ""),
        (r"(\.\d)\d+(?=[^<>]*>)", r"\1"),  # in tags, a tenth of a pixel
        (r'(\bid="|#)(?=[mpC]\w*[0-9a-f]{10}\b)', rf"\g<1>{key}"),
        (r"\s*\n\s*", "\n"),
    ):
        text = re.sub(pattern, new, text)
    text = themed(text)
    return re.sub(r'(?:<use href="#(\w+)"[^>]*/>\n){9,}', lambda found: _dots(found, text), text)


def _dots(found: re.Match[str], text: str) -> str:
    """Many equal round markers as one path, at a tenth of the length."""
    radius = re.search(rf'id="{found[1]}" d="M 0 ([\d.]+) ?\nC', text)
    paint = re.search(r'style="fill: ([^;"]*)(?:; fill-opacity: ([\d.]+))?', found[0])
    if radius is None or paint is None:
        return found[0]
    places = re.findall(r' x="([-\d.]+)" y="([-\d.]+)"', found[0])
    path = "".join(f"M{x} {y}h0" for x, y in places)
    width = f"stroke-width: {2 * float(radius[1]):g}; stroke-opacity: {paint[2] or 1}"
    return f'<path d="{path}" style="stroke: {paint[1]}; stroke-linecap: round; {width}"/>\n'
