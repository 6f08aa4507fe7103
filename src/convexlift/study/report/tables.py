"""The tables of the report page: a caption, a head and rows, whose first cell names an arm or a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from convexlift.study.ranking import (
    Result,
    complete,
    difference,
    finite,
    ranking,
    reference_arm,
    tied_with_best,
)
from convexlift.study.report.numbers import interval_text, score_text, short

PHASES = ("start", "middle", "end")
_BREAK = Markup("<br>")
_SMALL = Markup("{}<br><small>{}</small>")
_NORMALISER = {
    "log_z_error": "log Z",
    "log_z_share": Markup("effective share<br>of annealed particles"),
    "training_share": Markup("effective share<br>of draws in training"),
}
_DISTANCES = {"kl": "Kullback-Leibler divergence", "hellinger": "Hellinger distance"}
_WEIGHTS = (
    (Markup("on the<br>shoulder"), "shoulder", True),
    (Markup("exactly<br>zero"), "at_zero", True),
    ("fan-in × W", "fan_in_weight", False),
    (Markup("relative<br>speed"), "relative_speed", False),
    (Markup("step<br>amplification"), "step_amplification", False),
    (Markup("emission<br>noise"), "emission_noise", True),
)


class Table(NamedTuple):
    """Cells are texts, or HTML as ``Markup``."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def overview_table(results: Sequence[tuple[Result, str, str]]) -> Table:
    """Every problem's losses; of each the result, a link target and what is said under its name."""
    names = list(dict.fromkeys(name for result, _, _ in results for name in result["arms"]))
    names.sort(key=lambda name: name != "lift")
    rows = []
    for result, anchor, about in results:
        link = Markup('<a href="#{}">{}</a>').format(anchor, result["problem"])
        best = tied_with_best(result)
        cells = [_standing(result, name, best) if name in result["arms"] else "–" for name in names]
        rows.append([_SMALL.format(link, about), *cells])
    caption = "Test loss ± standard error; under it the difference from the lowest with its 95 % interval"
    return Table(caption, ["problem", *names], rows)


def _standing(result: Result, name: str, best: Sequence[str]) -> str:
    """An arm's loss, and how far it is from the lowest."""
    loss = _test_cell(result["arms"][name], name in best)
    if name not in ranking(result):
        return loss
    found = difference(result, name, best[0]) if name != best[0] else None
    gap = f"+{interval_text(found)}" if found else "lowest" if name == best[0] else "no common seed"
    tie = "tied: " if found and name in best else ""
    parts = f"{tie}{gap}".replace("+−", "−").replace(" (", "\n(").split("\n")
    return _SMALL.format(loss, _BREAK.join(parts))


def arms_table(section: Result, caption: str) -> Table:
    """The losses of every arm, lowest first, and what they cost."""
    arms, order, base = section["arms"], ranking(section), reference_arm(section)
    best = tied_with_best(section)
    columns: list[tuple[str, Callable[[Result], str]]] = [
        (Markup("half the<br>steps"), lambda arm: _mean_only(arm.get("half_budget"))),
        (Markup("equal<br>time"), lambda arm: _mean_only(arm.get("equal_seconds"))),
        ("rate", lambda arm: f"{arm['lr']:g}" if finite(arm.get("lr")) and "lr" not in section else "–"),
        (Markup("rate of the<br>weights"), lambda arm: _factor(arm.get("source_factor"))),
        (Markup("ms a<br>step"), lambda arm: short(arm.get("ms_per_step"), 3)),
        (
            Markup("trained<br>parameters"),
            lambda arm: f"{arm['parameters']:,.0f}" if arm.get("parameters") else "–",
        ),
    ]
    shown = [(title, cell) for title, cell in columns if any(cell(arm) != "–" for arm in arms.values())]
    rows = []
    for name in complete(section):
        found = difference(section, name, base) if base and name in order and name != base else None
        gap = "reference" if name == base else interval_text(found) if found else "–"
        cells = [cell(arms[name]) for _, cell in shown]
        rows.append([name, _test_cell(arms[name], name in best), gap, *cells])
    head = ["arm", Markup("test loss<br>± s.e."), _SMALL.format(f"minus {base}", "95 % interval")]
    return Table(caption, [*head, *(title for title, _ in shown)], rows)


def _factor(value: Any) -> str:
    """How many times the common rate the latent weights are given; nothing for once."""
    return f"× {short(value, 3)}" if finite(value) not in (None, 1.0) else "–"


def _test_cell(arm: Result, bold: bool) -> str:
    score = arm.get("test") or {}
    seeds = score.get("per_seed") or []
    missing = sum(1 for value in seeds if finite(value) is None)
    if missing and finite(score.get("mean")) is None:
        return f"{missing} of {len(seeds)} seeds failed"
    text = Markup("<b>{}</b>").format(score_text(score)) if bold else score_text(score)
    return Markup("{} <small>({} failed)</small>").format(text, missing) if missing else text


def _mean_only(score: Result | None) -> str:
    """The mean to the digits that its standard error allows; the error is the cell's tooltip."""
    text = score_text(score)
    return Markup('<span title="{}">{}</span>').format(text, text.split(" ± ")[0]) if score else "–"


def distances_table(result: Result) -> Table | None:
    """Other figures of the frozen models than the loss, where the problem has some."""
    metrics = _metrics(result)
    keys = dict.fromkeys(key for found in metrics.values() for key in found if key not in _NORMALISER)
    rows = [[arm, *(score_text(found.get(key)) for key in keys)] for arm, found in metrics.items()]
    head = ["arm", *(_DISTANCES.get(key, key.replace("_", " ")) for key in keys)]
    caption = "Other distances from the exact answer, mean ± standard error over seeds"
    return Table(caption, head, rows) if keys else None


def normalisers_table(result: Result) -> Table | None:
    """How well the multivariate densities of each arm are normalised, where they are."""
    metrics = _metrics(result)
    keys = [key for key in _NORMALISER if any(key in found for found in metrics.values())]
    rows = [[arm, *(_normaliser(found.get(key), key) for key in keys)] for arm, found in metrics.items()]
    how = "a standard error" if "log_z_share" in keys else "a bound"
    caption = f"How well log Z of the frozen densities is known ({how}, in nats), means over seeds"
    return Table(caption, ["arm", *(_NORMALISER[key] for key in keys)], rows) if keys else None


def _metrics(result: Result) -> dict[str, Result]:
    return {name: result["arms"][name].get("metrics") or {} for name in ranking(result)}


def _normaliser(score: Result | None, key: str) -> str:
    mean = finite((score or {}).get("mean"))
    return "–" if mean is None else f"± {short(mean)}" if key == "log_z_error" else short(mean)


def weights_table(section: Result) -> Table | None:
    """What happened to the constrained weights of each arm."""
    arms = section["arms"]
    head, shown = ["arm"], []
    for title, key, percent in _WEIGHTS:
        seen = [arm[key] for arm in arms.values() if arm.get(key)]
        if phases := [at for at in PHASES if any(at in by_phase for by_phase in seen)]:
            head.append(_SMALL.format(title, " → ".join(phases)))
            shown.append((key, phases, percent))
    rows = [
        [name, *(_phases(arms[name].get(key), at, percent) for key, at, percent in shown)]
        for name in complete(section)
    ]
    return (
        Table("The constrained weights through training; medians over seeds", head, rows) if shown else None
    )


def _phases(values: Result | None, phases: Sequence[str], percent: bool) -> str:
    """``0.031 → 0.028 → 0``, one figure for each phase."""
    numbers = [finite((values or {}).get(phase)) for phase in phases]
    if all(number is None for number in numbers):
        return "–"
    texts = [short(None if number is None else number * (100 if percent else 1)) for number in numbers]
    return " → ".join(texts) + (" %" if percent else "")
