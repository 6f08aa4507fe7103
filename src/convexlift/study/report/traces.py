"""The figures of an ablation's traced runs: the coupling along training, and the stays on the shoulder."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from convexlift.plots.lines import Row, Style, row_chart
from convexlift.plots.panels import Frame, Panel, Reading, figure, panel_grid
from convexlift.study.report.answers import Result, complete, finite, listed, score_text, short

_WIDE, _NARROW = 560.0, 352.0
_ERRORS = 2.0  # standard errors that a whisker reaches
_SIGNIFICANT = 0.05


def traces(result: Result, section: str, look: dict[str, Style]) -> list[str]:
    """The figures of the runs under "tuned" or at the "fixed_rate"; none where no run was traced."""
    effects = (result.get("ablation") or {}).get(section) or {}
    scores = result if section == "tuned" else result.get("fixed_rate") or {}
    names = [name for name in complete(scores) if name in effects] if scores.get("arms") else []
    drawn = [
        _couplings(effects, look),
        _stays(
            "How long weights stay on the shoulder",
            "The mean stay of a weight there, until it leaves or the run ends, as a share of the run.",
            effects,
            "dwell",
            "mean stay (share of the run)",
            names,
            look,
        ),
        _stays(
            "How many weights are on the shoulder",
            "Their share, averaged over the run. Under projection, which has no shoulder, both figures are "
            "of weights that are exactly zero.",
            effects,
            "occupancy",
            "share of the weights",
            names,
            look,
        ),
    ]
    return [one for one in drawn if one]


def _couplings(effects: Result, look: dict[str, Style]) -> str:
    """tr Sigma_batch of every seed along training, a panel for each arm that reads a batch."""
    along = {name: [_points(seed) for seed in effect.get("along") or []] for name, effect in effects.items()}
    reading = {name: seeds for name, seeds in along.items() if _norms(seeds)}
    silent = [name for name, seeds in along.items() if any(seeds) and name not in reading]
    if not reading:
        return ""
    every = [point for seeds in reading.values() for seed in seeds for point in seed]
    unit = _unit([point["trace_error"] for point in every])
    reach = max(abs(bound) for point in every for bound in _whisker(point, unit))
    times = sorted({point["t"] for point in every})
    gap = min((b - a for a, b in zip(times, times[1:], strict=False)), default=1.0)
    panels = [
        Panel(
            name,
            look[name],
            readings=[
                _reading(point, unit, gap * 0.6 * ((seed + 0.5) / len(seeds) - 0.5), f"seed {seed + 1}")
                for seed, points in enumerate(seeds)
                for point in points
            ],
        )
        for name, seeds in reading.items()
    ]
    frame = Frame(
        (times[0] - gap / 2, times[-1] + gap / 2),
        (-1.08 * reach, 1.08 * reach),
        "share of training",
        [(t, f"{100 * t:.0f} %") for t in times],
        y_ticks=_ticks(unit, reach),
        level=0.0,
    )
    zero = f" Exactly zero for {listed(silent)}: no batch is read." if silent else ""
    return figure(
        "Do the weights fluctuate together with the gradient?",
        f"tr Σ_batch (up), one mark a seed; whiskers: {_ERRORS:g} standard errors each way. Filled: the "
        f"permutation test of Σ_batch = 0, which looks at the whole matrix and not only at its trace, has "
        f"p ≤ {_SIGNIFICANT:g}; hollow: it has not. The scale is linear within ± {_power(unit)} and "
        f"logarithmic beyond.{zero}",
        panel_grid(panels, frame),
        full=True,
    )


def _points(seed: Any) -> list[dict[str, float]]:
    """The measurements of one run whose figures are all finite."""
    return [
        point
        for point in seed or []
        if all(finite(point.get(key)) is not None for key in ("t", "trace", "trace_error", "p_value"))
    ]


def _norms(seeds: Sequence[Sequence[dict[str, float]]]) -> bool:
    """Whether a batch was read in any of these runs."""
    return any(point.get("norm", 0) > 0 for seed in seeds for point in seed)


def _unit(errors: Sequence[float]) -> float:
    """Where the scale turns from linear to logarithmic: a power of ten near the smaller errors."""
    there = sorted(error for error in errors if error > 0)
    return 10.0 ** round(math.log10(there[len(there) // 4])) if there else 1.0


def _scaled(value: float, unit: float) -> float:
    """Linear near zero; far from it the logarithm of |value| / unit in decades, with the sign of value."""
    return math.asinh(value / (2 * unit)) / math.log(10)


def _whisker(point: dict[str, float], unit: float) -> tuple[float, float]:
    spread = _ERRORS * point["trace_error"]
    return _scaled(point["trace"] - spread, unit), _scaled(point["trace"] + spread, unit)


def _reading(point: dict[str, float], unit: float, shift: float, whose: str) -> Reading:
    low, high = _whisker(point, unit)
    told = f"{short(point['trace'])} ± {short(point['trace_error'])}, p = {point['p_value']:.2g}"
    filled = point["p_value"] <= _SIGNIFICANT
    return Reading(
        point["t"] + shift,
        _scaled(point["trace"], unit),
        low,
        high,
        filled,
        f"{whose} at {point['t']:g}: {told}",
    )


def _ticks(unit: float, reach: float) -> list[tuple[float, str]]:
    """Zero, and on each side one or two powers of ten; none so near zero that their labels would collide."""
    last = int(reach)
    powers = {last, last // 2} - ({0} if last else set())
    sides = [
        (sign * unit * 10.0**k, "−" * (sign < 0) + _power(unit * 10.0**k)) for k in powers for sign in (-1, 1)
    ]
    return sorted([(0.0, "0"), *((_scaled(value, unit), text) for value, text in sides)])


def _power(value: float) -> str:
    return f"1e{round(math.log10(value))}".replace("-", "−")


def _stays(
    title: str,
    note: str,
    effects: Result,
    key: str,
    x_label: str,
    names: Sequence[str],
    look: dict[str, Style],
) -> str:
    """One row an arm: a dot for every seed, and the mean."""
    rows, values = [], []
    for name in names:
        score = effects[name].get(key) or {}
        seeds = [(k, v) for k, v in enumerate(map(finite, score.get("per_seed") or []), 1) if v is not None]
        dots = [value for _, value in seeds]
        if not dots:
            continue
        titles = [f"{name}, seed {seed}: {short(value, 3)}" for seed, value in seeds]
        mean = statistics.fmean(dots)
        rows.append(Row(name, look[name], mean, dots, text=score_text(score), titles=titles))
        values += dots
    if not rows:
        return ""
    pad = 0.05 * (max(values) - min(values)) or 0.05
    limits = max(min(values) - pad, 0.0), min(max(values) + pad, 1.0)

    def draw(width: float) -> str:
        return row_chart(rows, width=width, x_label=x_label, x_range=limits)

    charts = f'<div class="wide">{draw(_WIDE)}</div><div class="narrow">{draw(_NARROW)}</div>'
    return figure(title, f"One dot a seed; the bar is the mean. {note}", charts)
