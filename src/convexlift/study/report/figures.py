"""The figures of the report page: what each chart shows of a comparison, and the words above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convexlift.plots.lines import Line, Row, Style, line_chart, robust_range, row_chart
from convexlift.plots.panels import figure
from convexlift.study.report.answers import (
    Result,
    difference,
    finite,
    interval,
    interval_text,
    ranking,
    reference_arm,
    score_text,
    short,
    unit_of,
)
from convexlift.study.report.portraits import pictures, weights
from convexlift.study.report.traces import traces

WIDE, NARROW = 560.0, 352.0


def figures(result: Result, look: dict[str, Style]) -> list[str]:
    """The ``<figure>`` elements that the result has data for; ``look`` gives each arm's style."""
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


def _differences(result: Result, look: dict[str, Style]) -> str:
    base = reference_arm(result)
    rows, values = [], [0.0]
    for name in ranking(result):
        found = difference(result, name, str(base)) if name != base else None
        over_seeds = interval(found) if found else None
        if found is None or over_seeds is None:
            continue
        over_rows = interval(found, "rows_ci95")
        mean = float(found["mean"])
        rows.append(Row(name, look[name], mean, (), over_rows, over_seeds, interval_text(found)))
        values += [mean, *over_seeds, *(over_rows or ())]
    if not rows:
        return ""
    thick = "; thick: over test rows" if any(row.interval for row in rows) else ""
    return _figure(
        f"Difference from {base}",
        f"Paired by seed. Thin: 95 % interval over seeds{thick}. An interval across zero is a tie.",
        lambda width: row_chart(
            rows,
            width=width,
            x_label=f"difference from {base} (right of zero: worse than {base})",
            x_range=robust_range(values),
            rule=(str(base), 0.0),
        ),
    )


def _seeds(result: Result, look: dict[str, Style]) -> str:
    rows, values = [], []
    for name in ranking(result):
        test = result["arms"][name]["test"]
        scores = [
            (seed, value) for seed, value in enumerate(map(finite, test.get("per_seed") or []), start=1)
        ]
        there = [(seed, value) for seed, value in scores if value is not None]
        titles = [f"{name}, seed {seed}: {short(value, 5)}" for seed, value in there]
        dots = [value for _, value in there]
        rows.append(Row(name, look[name], float(test["mean"]), dots, text=score_text(test), titles=titles))
        values += [*dots, float(test["mean"])]
    if not rows:
        return ""
    limits = robust_range(values)
    gaussian = finite((result.get("facts") or {}).get("gaussian"))
    near = gaussian is not None and limits[0] <= gaussian <= limits[1]
    return _figure(
        "Test loss of every seed",
        "One dot a seed; the bar is the mean. Further left is better.",
        lambda width: row_chart(
            rows,
            width=width,
            x_label=str(result.get("metric", "loss")),
            x_range=limits,
            rule=("Gaussian", gaussian) if near and gaussian is not None else None,
        ),
    )


def _rates(result: Result, look: dict[str, Style], split: str, told: str) -> str:
    lines = []
    for name, arm in result["arms"].items():
        tried = sorted(arm.get("rates") or [], key=lambda rate: rate["lr"])
        rates = [float(rate["lr"]) for rate in tried]
        losses = [finite(rate.get(split)) for rate in tried]
        chosen = rates.index(arm["lr"]) if arm.get("lr") in rates else None
        lines.append(Line(name, look[name], rates, losses, chosen=chosen, markers=True))
    values = [value for line in lines for value in line.y if value is not None]
    if not values:
        return ""
    limits = robust_range(values)
    note = f"{told} A ring marks the rate that an arm was given."
    note += " Crosses diverged." if any(value is None for line in lines for value in line.y) else ""
    note += " Arrow heads lie above the frame." if max(values) > limits[1] else ""
    return _figure(
        f"{split.capitalize()} loss against learning rate",
        note,
        lambda width: line_chart(
            lines,
            width=width,
            height=330,
            x_label="learning rate",
            y_label=f"{split} {_loss(result, split)}",
            y_range=limits,
            rates=sorted({rate for line in lines for rate in line.x}),
            lost="diverged",
        ),
        lines,
    )


def _loss(result: Result, split: str = "validation") -> str:
    """The axis label of a loss on validation rows, which need not be the metric of the test rows."""
    objective = (result.get("protocol") or {}).get("objective")
    if split == "validation" and objective in ("score", "denoising", "nce"):
        return f"loss of the objective {objective}"
    unit = unit_of(result).strip()
    return f"loss ({unit})" if unit else "loss"


def _curves(result: Result, look: dict[str, Style], against: str, title: str, x_label: str) -> str:
    found = [_curve(name, arm, look[name], against) for name, arm in result["arms"].items()]
    lines = [line for line in found if line is not None]
    limits = _curve_limits(lines)
    if limits is None:
        return ""
    cut = any(value is not None and value > limits[1] for line in lines for value in line.y)
    note = "Mean over seeds; the band runs from the best to the worst seed."
    note += " The steep first part runs off the top." if cut else ""
    return _figure(
        title,
        note,
        lambda width: line_chart(
            lines,
            width=width,
            height=320,
            x_label=x_label,
            y_label=f"validation {_loss(result)}",
            y_range=limits,
        ),
        lines,
    )


def _cost(result: Result, look: dict[str, Style]) -> str:
    rows = []
    for name in ranking(result):
        arm = result["arms"][name]
        time = finite(arm.get("ms_per_step"))
        if time is not None:
            size = f", {int(arm['parameters']):,} parameters" if arm.get("parameters") else ""
            rows.append(Row(name, look[name], time, (), (0.0, time), text=f"{short(time, 3)} ms{size}"))
    if not rows:
        return ""
    longest = max(row.value or 0.0 for row in rows)
    return _figure(
        "What a training step costs",
        "Median milliseconds of one step, and the parameters that are trained.",
        lambda width: row_chart(
            rows, width=width, x_label="milliseconds a step", x_range=(0.0, 1.05 * longest)
        ),
    )


def _curve(name: str, arm: Result, style: Style, against: str) -> Line | None:
    """The mean over seeds with its range, up to where every seed has been evaluated."""
    curves = arm.get("curves") or {}
    x = [finite(value) or 0.0 for value in curves.get(against) or []]
    seeds = [[finite(value) for value in seed] for seed in curves.get("validation") or [] if seed]
    length = min([len(x), *map(len, seeds)]) if seeds else 0
    if length < 2:
        return None
    columns = [[seed[place] for seed in seeds if seed[place] is not None] for place in range(length)]
    there = [[value for value in column if value is not None] for column in columns]
    return Line(
        name,
        style,
        x[:length],
        [sum(column) / len(column) if column else None for column in there],
        [min(column, default=None) for column in there],
        [max(column, default=None) for column in there],
    )


def _curve_limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """A frame for what follows the steep fall of the first tenth."""
    lows = [value for line in lines for value in line.low if value is not None]
    tops = []
    for line in lines:
        tail = [high for x, high in zip(line.x, line.high, strict=True) if x >= 0.1 * line.x[-1]]
        tops += [max(there)] if (there := [high for high in tail if high is not None]) else []
    if not lows or not tops:
        return None
    low, high = min(lows), robust_range(tops, 0.0)[1]
    pad = 0.05 * (high - low) or abs(high) * 0.01 or 1.0
    return low - pad, high + pad


def _figure(title: str, note: str, draw: Callable[[float], str], lines: Sequence[Line] = ()) -> str:
    """The chart drawn for a wide and for a narrow screen, one of which is shown; lines get a legend."""
    charts = f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'
    return figure(title, note, charts, lines)
