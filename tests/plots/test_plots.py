"""The figures that users draw: what is on the axes, whose axes they are, and what they leave alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import convexlift as cl
from convexlift.plots import plot_density, plot_flow, plot_history, plot_potential
from convexlift.plots.corner import corner
from convexlift.plots.drawing import COLOURS
from convexlift.plots.svg import as_svg, svg_file


def rows(dim: int, n: int = 60) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def density(dim: int) -> cl.LogConcaveDensity:
    return cl.LogConcaveDensity(cl.ICNN(dim, hidden=(4,), strong_convexity=1.0, seed=0)).freeze()


def flow(dim: int) -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([cl.ICNN(dim, hidden=(4,), strong_convexity=1.0, seed=0)]).freeze()


HISTORY = cl.History(
    steps=[10, 20, 30, 40], loss=[50.0, 2.0, 1.5, 1.2], validation=[60.0, 2.5, 1.5, 1.6], best_step=30
)

POTENTIAL = cl.ICNN(2, hidden=(4,), seed=0).emit()

Plot = Callable[..., Axes]
PLOTS: dict[str, Plot] = {
    **{
        f"density {dim}": lambda ax=None, dim=dim: plot_density(density(dim), rows(dim), ax=ax)
        for dim in (1, 2, 3)
    },
    **{f"flow {dim}": lambda ax=None, dim=dim: plot_flow(flow(dim), rows(dim), ax=ax) for dim in (1, 2, 3)},
    "history": lambda ax=None: plot_history(HISTORY, ax=ax),
    "curve": lambda ax=None: plot_potential(lambda x: x.square().sum(1), [(-1, 1)], ax=ax),
    "levels": lambda ax=None: plot_potential(
        cl.ICNN(2, hidden=(4,), seed=0).emit(), [(-1, 1), (0, 9)], ax=ax
    ),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_a_plot_is_on_the_axes_it_was_given_else_on_its_own(plot: Plot) -> None:
    before = dict(matplotlib.rcParams)
    ax = Figure().add_subplot()
    assert plot(ax) is ax and ax.has_data()
    own = plot()
    assert own.figure is not None and own.figure.axes[0] is own
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_loaded() -> None:
    program = (
        "import sys, torch, convexlift as cl; from convexlift.plots import plot_history\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_history(cl.History(steps=[1], loss=[1.0])).figure.savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, "/dev/null"], check=True, env=environment())


def test_a_report_s_figures_are_loaded_when_one_is_written() -> None:
    program = (
        "import sys, convexlift.study.comparison, convexlift.cli.compare, convexlift.plots\n"
        "assert {'matplotlib', 'jinja2', 'markupsafe'}.isdisjoint(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(cl.__file__).parents[1]), "PATH": "/usr/bin:/bin"}


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.style"):
        monkeypatch.setitem(sys.modules, name, None)
    for plot in PLOTS.values():
        with pytest.raises(ImportError, match=r"^plots need matplotlib: pip install 'convexlift\[plots\]'$"):
            plot()
    with pytest.raises(ImportError, match="plots need matplotlib"):
        as_svg(PLOTS["history"], "losses")


# What is on them.


def test_a_curve_lies_over_a_histogram_of_the_rows() -> None:
    ax = plot_density(density(1), rows(1), names=["energy"])
    assert ax.get_legend_handles_labels()[1] == ["data", "model"] and ax.get_xlabel() == "energy"
    x, p = ax.lines[0].get_data()
    assert p == pytest.approx(density(1).log_prob(torch.tensor(x)[:, None].float()).exp().numpy(), rel=1e-4)
    assert plot_density(density(1)).get_legend_handles_labels()[1] == ["model"]


def test_three_regions_lie_over_the_rows_and_far_ones_are_counted() -> None:
    far = torch.cat([rows(2, 300), torch.tensor([[99.0, 0.0]])])
    ax = plot_density(density(2), far)
    assert len(ax.lines) == 5 and [text.get_text() for text in ax.texts] == ["1 outside"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column 0", "column 1")
    assert len(plot_density(density(2)).lines) == 4  # three regions and the mode
    many = plot_density(density(2), rows(2, 2500))
    assert "2,000 of 2,500 rows" in [text.get_text() for text in many.texts]


@pytest.mark.parametrize("plot", [lambda x: plot_density(density(3), x), lambda x: plot_flow(flow(3), x)])
def test_more_columns_make_a_corner_plot_with_or_without_rows(plot: Plot) -> None:
    for given in (rows(3), None):
        ax = plot(given)
        assert len(ax.child_axes) == 6
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "draws of the model"]


def test_a_flow_shows_its_samples_and_the_images_of_its_latent_grid() -> None:
    model = flow(2)
    ax = plot_flow(model, rows(2))
    grid = [line for line in ax.lines if line.get_color() == COLOURS["edge"]]
    assert len(grid) == 26
    latent = model(torch.tensor(np.array(grid[0].get_data()).T))[0]
    assert torch.allclose(latent[:, 0], torch.tensor(-3.0), atol=1e-3)
    assert ax.get_legend_handles_labels()[1][1:] == ["data", "samples of the model"]
    assert "data" not in plot_flow(model).get_legend_handles_labels()[1]


def test_the_best_step_is_ringed_and_losses_above_the_frame_are_arrow_heads() -> None:
    ax = plot_history(HISTORY, label="nats")
    ring = next(line for line in ax.lines if line.get_label() == "best: 1.5 at step 30")
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (30, 1.5) and ax.get_ylabel() == "nats"
    heads = [line for line in ax.lines if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in heads] == [[10], [10]]
    assert all(line.get_ydata()[0] == pytest.approx(ax.get_ylim()[1]) for line in heads)
    alone = plot_history(cl.History(steps=[1, 2], loss=[2.0, 1.0], best_step=2))
    assert alone.get_legend_handles_labels()[1] == ["training batches"]


def test_arrows_point_up_the_gradient() -> None:
    ax = plot_potential(lambda x: x[:, 0] ** 2 + 3 * x[:, 1], [(-1, 1), (-1, 1)])
    arrows = next(part for part in ax.collections if type(part).__name__ == "Quiver")
    assert arrows.U == pytest.approx(2 * arrows.XY[:, 0], abs=1e-3) and arrows.V == pytest.approx(
        3.0, abs=1e-3
    )
    flat = plot_potential(lambda x: 0 * x[:, 0], [(-1, 1)])
    assert flat.get_xlim() == (-1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_density(density(2), rows(3)), r"expected \(N, 2\) rows; got \(60, 3\)"),
        (lambda: plot_flow(flow(2), names=["a"]), "expected 2 names of columns; got 1"),
        (lambda: plot_history(cl.History()), "the history holds no evaluation that could be drawn"),
        (lambda: plot_potential(lambda x: x, [(0, 1)] * 3), r"expected one or two \(low, high\)"),
        (lambda: plot_potential(lambda x: x, [(1, 1)]), r"with low below high; got \[\(1, 1\)\]"),
        (
            lambda: plot_potential(lambda x: x, [(0, 1)]),
            r"expected 121 values, one for each row; got \(121",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Plot, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# As SVG.


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_a_figure_becomes_an_svg_in_the_colours_of_its_page(plot: Plot) -> None:
    text = as_svg(plot, 'a "title" & more')
    root = ElementTree.fromstring(text)
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", 'a "title" & more')
    assert root[0].text == 'a "title" & more'
    assert not re.search(r"#[0-9a-f]{6}[;\"]|xlink|font-family|<metadata|<style", text)
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(COLOURS)
    assert text == as_svg(plot, 'a "title" & more')
    ids = re.findall(r'id="(\w+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r"#(\w+)", text)) <= set(ids)
    ElementTree.fromstring(svg_file(plot, "alone"))


def test_the_ids_of_two_charts_of_a_page_differ() -> None:
    one, two = (
        set(re.findall(r'id="(\w+)"', as_svg(lambda box=box: plot_potential(torch.ravel, [box]), "f")))
        for box in ((0, 1), (0, 2))
    )
    assert one and two and one.isdisjoint(two)


def test_the_user_s_settings_do_not_reach_the_page() -> None:
    plain = as_svg(PLOTS["history"], "losses")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert as_svg(PLOTS["history"], "losses") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_any_name_can_be_written() -> None:
    names = ["cost $ and $ gain", "a < b & c", "\N{HIRAGANA LETTER A}"]
    text = as_svg(lambda: corner(rows(3), rows(3), names), "names")
    assert all(f">{name}</text>" in text for name in ("cost $ and $ gain", "a &lt; b &amp; c", names[2]))


def test_many_points_are_one_path_and_tooltips_stay() -> None:
    def draw() -> Axes:
        ax = Figure().add_subplot()
        ax.plot(range(50), range(50), "o", markeredgewidth=0, markersize=4)
        ax.scatter([1.0, 2.0], [1.0, 2.0]).set_urls(["first: 0.12345", "<second>"])
        return ax

    text = as_svg(draw, "points")
    path = next(found for found in re.findall(r'<path d="([^"]*h0)"', text))
    assert path.count("M") == 50 and "stroke-width: 4;" in text
    assert re.findall(r'<g class="tip"><title>(.*?)</title>', text) == ["first: 0.12345", "&lt;second&gt;"]


def test_a_file_of_its_own_has_a_background_and_both_palettes() -> None:
    text = svg_file(PLOTS["curve"], "f")
    assert 'fill="var(--panel)"' in text and "prefers-color-scheme: dark" in text
    assert all(f"--{name}:" in text for name in COLOURS)
