"""The tables of the report page: a caption, a head and rows, whose first cell names an arm or a problem."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
from convexlift.study.report.numbers import interval_text, score_text, score_texts, short, spent

PHASES = ("start", "middle", "end")
_SMALL = Markup("{}\n<small>{}</small>")
_NORMALISER = {
    "log_z_error": "log Z",
    "log_z_share": "effective share\nof annealed particles",
    "training_share": "effective share\nof draws in training",
}
_DISTANCES = {"kl": "Kullback-Leibler divergence", "hellinger": "Hellinger distance"}
_WEIGHTS = {
    "shoulder": "on the\nflat part",
    "at_zero": "exactly\nzero",
    "fan_in_weight": "fan-in × W",
    "relative_speed": "relative\nspeed",
    "step_amplification": "step\namplification",
    "emission_noise": "batch\nnoise",
}
_PERCENT = ("shoulder", "at_zero", "emission_noise")


class Table(NamedTuple):
    """Cells are texts, or HTML as ``Markup``."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def overview_table(results: Sequence[Result]) -> Table:
    """Every problem's losses, each linked to the problem's own section."""
    names = sorted(dict.fromkeys(name for result in results for name in result["arms"]), key="lift".__ne__)
    rows = []
    for place, result in enumerate(results, 1):
        link = Markup('<a href="#problem-{}">{}</a>').format(place, result["problem"])
        about, best = [str(result.get("metric", "loss")), *spent(result)], tied_with_best(result)
        cells = [_standing(result, name, best) if name in result["arms"] else "–" for name in names]
        rows.append([_SMALL.format(link, ", ".join(about)), *cells])
    caption = "Test loss ± standard error; under it the difference from the lowest with its 95 % interval"
    return Table(caption, ["problem", *names], rows)


def _standing(result: Result, name: str, best: Sequence[str]) -> str:
    """An arm's loss, and how far it is from the lowest."""
    loss = test_cells(result, best)[name]
    if name not in ranking(result):
        return loss
    found = difference(result, name, best[0]) if name != best[0] else None
    gap = f"+{interval_text(found)}" if found else "lowest" if name == best[0] else "no common seed"
    tie = "tied: " if found and name in best else ""
    return _SMALL.format(loss, f"{tie}{gap}".replace("+−", "−").replace(" (", "\n("))


Columns = Iterable[tuple[str, Callable[[str, Any], str]]]


def _by_arm(caption: str, arms: Mapping[str, Any], columns: Columns) -> Table | None:
    """A row for each of the arms; columns by title, without those that hold nothing; none without columns."""
    cells = {title: [cell(*each) for each in arms.items()] for title, cell in columns}
    shown = {title: column for title, column in cells.items() if any(text != "–" for text in column)}
    rows = list(zip(arms, *shown.values(), strict=True))
    return Table(caption, ["trained by", *shown], rows) if shown else None


def arms_table(section: Result, caption: str) -> Table | None:
    """The losses of every arm, lowest first, and what they cost."""
    base, best, order = reference_arm(section), tied_with_best(section), ranking(section)
    tests = test_cells(section, best)

    def gap(name: str, _: Any) -> str:
        found = difference(section, name, base) if base and name in order else None
        return "reference" if name == base else interval_text(found) if found else "–"

    def rate(_: str, arm: Any) -> str:
        return f"{arm['lr']:g}" if finite(arm.get("lr")) and "lr" not in section else "–"

    def factor(_: str, arm: Any) -> str:  # how many times the common rate the latent weights are given
        times = finite(arm.get("source_factor"))
        return "–" if times in (None, 1.0) else f"× {short(times, 3)}"

    columns: Columns = (
        ("test loss\n± s.e.", lambda name, _: tests[name]),
        (_SMALL.format(f"minus {base}", "95 % interval"), gap),
        ("half the\nsteps", lambda _, arm: _mean_only(arm.get("half_budget"))),
        ("equal\ntime", lambda _, arm: _mean_only(arm.get("equal_seconds"))),
        (_SMALL.format("best on\nvalidation", "and at which step"), lambda _, arm: _best_so_far(arm)),
        ("rate", rate),
        ("rate of the\nweights", factor),
        ("ms a\nstep", lambda _, arm: short(arm.get("ms_per_step"), 3)),
        ("trained\nparameters", lambda _, arm: f"{arm['parameters']:,.0f}" if arm.get("parameters") else "–"),
    )
    return _by_arm(caption, _arms(section), columns)


def _arms(section: Result) -> dict[str, Any]:
    return {name: section["arms"][name] for name in complete(section)}


def test_cells(section: Result, best: Sequence[str]) -> dict[str, str]:
    """The losses of all arms, told apart by their digits; the best ones are bold."""
    texts = score_texts({name: arm.get("test") for name, arm in section["arms"].items()})
    return {name: _test_cell(arm, texts[name], name in best) for name, arm in section["arms"].items()}


def _test_cell(arm: Result, told: str, bold: bool) -> str:
    score = arm.get("test") or {}
    seeds = score.get("per_seed") or []
    missing = sum(1 for value in seeds if finite(value) is None)
    if missing and finite(score.get("mean")) is None:
        return f"{missing} of {len(seeds)} seeds failed"
    text = Markup("<b>{}</b>").format(told) if bold else told
    return Markup("{} <small>({} failed)</small>").format(text, missing) if missing else text


def _mean_only(score: Result | None) -> str:
    """The mean to the digits that its standard error allows; the error is the cell's tooltip."""
    text = score_text(score)
    return Markup('<span title="{}">{}</span>').format(text, text.split(" ± ")[0]) if score else "–"


def _best_so_far(arm: Result) -> str:
    """The lowest validation loss of a run and its step: the mean and the median over seeds."""
    curves = arm.get("curves") or {}
    best = []
    for seed in curves.get("validation") or []:
        evaluated = zip(map(finite, seed or []), curves.get("steps") or [], strict=False)
        if known := [(loss, step) for loss, step in evaluated if loss is not None]:
            best.append(min(known))
    if not best:
        return "–"
    losses, steps = zip(*best, strict=True)
    return f"{short(statistics.fmean(losses), 4)} at {statistics.median_low(steps):,}"


def distances_table(result: Result) -> Table | None:
    """Other figures of the frozen models than the loss, where the problem has some."""
    metrics = {name: result["arms"][name].get("metrics") or {} for name in ranking(result)}
    keys = dict.fromkeys(key for found in metrics.values() for key in found if key not in _NORMALISER)
    titles = {key: _DISTANCES.get(key, key.replace("_", " ")) for key in keys}
    columns = [(title, lambda _, found, k=key: score_text(found.get(k))) for key, title in titles.items()]
    caption = "Other distances from the exact answer, mean ± standard error over seeds"
    return _by_arm(caption, metrics, columns)


def normalisers_table(result: Result) -> Table | None:
    """How well the multivariate densities of each arm are normalised, where they are."""
    metrics = {name: result["arms"][name].get("metrics") or {} for name in ranking(result)}
    how = "a standard error" if any("log_z_share" in found for found in metrics.values()) else "a bound"
    caption = f"How well log Z of the frozen densities is known ({how}, in nats), means over seeds"
    columns = [(title, lambda _, found, k=key: _normaliser(k, found)) for key, title in _NORMALISER.items()]
    return _by_arm(caption, metrics, columns)


def _normaliser(key: str, found: Any) -> str:
    mean = short((found.get(key) or {}).get("mean"))
    return f"± {mean}" if key == "log_z_error" and mean != "–" else mean


def weights_table(section: Result) -> Table | None:
    """What happened to the constrained weights of each arm, a figure for each phase."""
    columns = []
    for key, title in _WEIGHTS.items():
        seen = [arm[key] for arm in section["arms"].values() if arm.get(key)]
        phases = [at for at in PHASES if any(at in by_phase for by_phase in seen)]
        columns.append((_SMALL.format(title, " → ".join(phases)), partial(_phases, key, phases)))
    return _by_arm("The constrained weights through training; medians over seeds", _arms(section), columns)


def _phases(key: str, phases: Sequence[str], _: str, arm: Any) -> str:
    """``0.031 → 0.028 → 0``."""
    found = [finite((arm.get(key) or {}).get(phase)) for phase in phases]
    scale, unit = (100, " %") if key in _PERCENT else (1, "")
    texts = [short(None if value is None else value * scale) for value in found]
    return "–" if all(value is None for value in found) else " → ".join(texts) + unit
