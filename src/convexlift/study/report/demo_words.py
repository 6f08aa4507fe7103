"""What a demonstration says, computed from its figures: who did best, by how much, how surely, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from convexlift.counting import counted
from convexlift.study.ranking import (
    Result,
    complete,
    difference,
    finite,
    interval,
    is_clear,
    ranking,
    tied_with_best,
)
from convexlift.study.report.numbers import decimals, fixed, listed, range_text, score_text, short, unit_of
from convexlift.study.report.tables import Table, test_cells

CHECKS = ("smallest_weight", "smallest_curvature")
LIFTS, USUAL = ("lift", "lift-reference"), ("projected", "softplus")
_MORE = 1.25  # times as much is more; less than that may be chance
AHEAD, BEHIND, LEVEL, UNSURE, MISSING = "ahead", "behind", "level", "unsure", "missing"
_HEADLINE = {
    AHEAD: "the better lift beats both usual ways",
    BEHIND: "the better lift is behind the better usual way",
    LEVEL: "the better lift and the better usual way cannot be told apart",
    UNSURE: "one seed gives no verdict",
    MISSING: "too many runs failed for a verdict",
}


class Standing(NamedTuple):
    """How the better lift stands to the better of the usual two ways."""

    how: str
    lift: str
    usual: str
    found: Result | None

    def gap(self, unit: str) -> str:
        """How far apart the two are, in brackets; "" where one seed gives no interval."""
        if self.how == UNSURE or self.found is None:
            return ""
        return f" ({self.lift} minus {self.usual}: {_by(self.found, unit, '{}, {}')})"


def standing(section: Result) -> Standing | None:
    """The better of each kind by its mean, and whether they differ clearly; None where a kind has none."""
    order = ranking(section)
    better = [next((name for name in order if name in kind), None) for kind in (LIFTS, USUAL)]
    lift, usual = better
    if lift is None or usual is None:
        return None
    found = difference(section, lift, usual)
    if found is None or interval(found) is None:
        how = UNSURE
    elif is_clear(found):
        how = AHEAD if found["mean"] < 0 else BEHIND
    else:
        how = LEVEL
    return Standing(how, lift, usual, found)


def sections(part: Result) -> dict[str, Result]:
    """Both choices of rates, by how they are told."""
    return {
        f"at the usual rate {part['fixed_rate']['lr']:g}": part["fixed_rate"],
        "at the library's rates": part,
    }


def verdicts(result: Result) -> list[str]:
    """A sentence for each choice of rates: where a lift beats the usual two, by how much."""
    told = []
    for place in range(2):
        found: dict[str, list[str]] = {}
        for part in result["parts"]:
            at, section = list(sections(part).items())[place]
            stands = standing(section)
            how, gap = (stands.how, stands.gap(unit_of(part))) if stands else (MISSING, "")
            found.setdefault(how, []).append(f"{part['problem']}{gap}")
        where = [f"{_HEADLINE[how]} on {listed(names)}" for how, names in found.items()]
        told.append(f"{at[:1].upper()}{at[1:]} {'; '.join(where)}.")
    return told


def answers(part: Result) -> list[tuple[str, str]]:
    """Questions a reader asks of one problem, each with its answer."""
    unit, both = unit_of(part), sections(part).items()
    told = [
        *((f"Which way did best {at}?", best(section, unit)) for at, section in both),
        ("What mattered more, the rate or the way?", rate_or_way(part)),
        ("How far is that from the best known?", distance(part)),
    ]
    return [(question, answer) for question, answer in told if answer]


def best(section: Result, unit: str) -> str:
    """The lowest loss, what ties with it, and how far the next is."""
    order, tied = ranking(section), tied_with_best(section)
    lost = [name for name in section["arms"] if name not in order]
    failed = f" Not ranked, for seeds that diverged or failed: {listed(lost)}." if lost else ""
    if not order:
        return f"None: no way finished all its runs.{failed}"
    loss = f"{order[0]} has the lowest mean test loss, {score_text(section['arms'][order[0]]['test'])}{unit}"
    if len(order) == 1:
        return f"{loss}.{failed}"
    gap = difference(section, order[1], order[0])
    if gap is None or interval(gap) is None:
        return f"{loss}; one seed gives no interval, so this is no verdict.{failed}"
    next_best = f"the next, {order[1]}, is {_by(gap, unit)} above it"
    if len(tied) > 1:
        return f"A tie between {listed(tied)}: {loss}; {next_best}, which may be chance.{failed}"
    return f"{loss}, and clearly so: {next_best}.{failed}"


def rate_or_way(part: Result) -> str:
    """What the library's rates gained, beside how far apart the ways are with them."""
    before, after = (
        {name: section["arms"][name] for name in ranking(section)} for section in (part["fixed_rate"], part)
    )
    changed = [name for name in after if name in before and after[name]["lr"] != before[name]["lr"]]
    if len(changed) < 2:
        return ""
    gains = [before[name]["test"]["mean"] - after[name]["test"]["mean"] for name in changed]
    gain, losses = math.fsum(gains) / len(gains), [after[name]["test"]["mean"] for name in changed]
    spread, unit = max(losses) - min(losses), unit_of(part)
    if gain <= 0:
        return (
            f"The way: the library's rates did not help, the loss was on average {short(-gain)}{unit} higher "
            f"than at {part['fixed_rate']['lr']:g}; with them the best and the worst way lie "
            f"{short(spread)}{unit} apart."
        )
    more = "The rate" if gain > _MORE * spread else "The way" if spread > _MORE * gain else "Both about alike"
    return (
        f"{more}: the library's rates took {short(gain)}{unit} off the loss on average over "
        f"{listed(changed)}; with them the best and the worst of these lie {short(spread)}{unit} apart."
    )


def why(part: Result) -> str:
    """The mechanism, as far as this run's figures show it."""
    (_, usual), (_, own) = sections(part).items()
    first, second = standing(usual), standing(own)
    if first is None or second is None or UNSURE in (first.how, second.how):
        return ""
    steps = finite(((usual["arms"][first.lift].get("step_amplification")) or {}).get("start"))
    longer = (
        f"one step of the optimiser moves a weight of {first.lift} up to {short(steps)} times as far as one "
        f"that is trained directly, at the same rate"
        if steps
        else f"{first.lift} takes longer steps at the same rate"
    )
    if first.how == AHEAD and second.how != AHEAD:
        then = "the lead is gone" if second.how == LEVEL else "they are ahead"
        return f"Longer steps: {longer}. Once the usual ways are given larger rates, {then}."
    if first.how == AHEAD:
        return f"In part longer steps: {longer}. But the lead stays when the usual ways step farther too."
    if second.how == AHEAD:
        return (
            "At the usual rate there is no lead to explain. With the library's rates there is one, on few "
            "seeds of one problem, and a rate suits some ways more than others: go by the full comparison."
        )
    return (
        f"There is no lead to explain, although {longer}: "
        "the usual ways get as far or farther with steps of their own, at both choices of rates."
    )


def convex(part: Result) -> str:
    """What the checks of all frozen models found."""
    weights, curvatures = (_found(part, key) for key in CHECKS)
    if not weights:
        return ""
    if min(weights) >= 0 and min(curvatures) >= 0:
        return (
            f"Yes, all {len(weights)} frozen models: no weight that must be non-negative is below zero "
            f"(the smallest is {short(min(weights))}), and a search for negative curvature found none."
        )
    bad = sum(w < 0 or c < 0 for w, c in zip(weights, curvatures, strict=True))
    return (
        f"No: {bad} of {len(weights)} frozen models failed a check (smallest weight {short(min(weights))}, "
        f"smallest curvature {short(min(curvatures))}). This should not happen: please report it."
    )


def distance(part: Result) -> str:
    """The best loss beside the exact one, or the Gaussian's."""
    order = ranking(part)
    if not order:
        return ""
    loss, unit = finite(part["arms"][order[0]]["test"]["mean"]) or 0.0, unit_of(part)
    gaussian, exact = (finite(part["facts"].get(name)) for name in ("gaussian", "exact"))
    told = []
    if exact is not None:
        variation = part["arms"][order[0]]["metrics"].get("total_variation")
        shares = f"; total variation {score_text(variation)}" if variation else ""
        told.append(f"{order[0]} ends {short(loss - exact)}{unit} above the exact density{shares}.")
    if gaussian is not None:
        way = "below" if loss < gaussian else "above"
        gap = short(abs(loss - gaussian), 3)
        told.append(
            f"A Gaussian fitted to the training rows has {short(gaussian, 4)}{unit}; {order[0]} is {gap} "
            f"{way} it."
        )
    return " ".join(told)


def table(part: Result) -> Table:
    """Every way at both choices of rates: frozen test loss, the check, and what it took."""
    usual, rows = part["fixed_rate"], []
    tests = [test_cells(section, tied_with_best(section)) for section in (usual, part)]
    for name in complete(part):
        both = usual["arms"][name], part["arms"][name]
        gap = _from_known(part, both[1])
        seconds = [second for arm in both if (second := finite(arm.get("seconds"))) is not None]
        rows.append(
            [
                name,
                tests[0][name],
                f"{both[1]['lr']:g}",
                tests[1][name],
                gap,
                _checked(both),
                short(math.fsum(seconds) / len(seconds)) if seconds else "–",
            ]
        )
    known = "above the\nexact density" if "exact" in part["facts"] else "below a\nGaussian"
    head = [
        "trained by",
        f"test loss\nat {usual['lr']:g}",
        "library's\nrate",
        "test loss\nat that rate",
        known,
    ]
    metric = str(part["metric"])
    caption = f"{metric[:1].upper()}{metric[1:]} of frozen models on test rows, mean ± standard error"
    return Table(caption, [*head, "trained model\nis convex", "seconds\na run"], rows)


def text_table(part: Result) -> str:
    """The same as aligned text, without what a terminal has no room for."""
    found = table(part)
    keep = (0, 1, 2, 3, 5, 6)
    rows = [[str(row[k]).replace("<b>", "").replace("</b>", "") for k in keep] for row in found.rows]
    rows.insert(0, [found.head[k].replace("\n", " ") for k in keep])
    columns = list(zip(*rows, strict=True))
    widths = [f"<{max(map(len, columns[0]))}", *(f">{max(map(len, column))}" for column in columns[1:])]
    lines = ["  ".join(map(format, row, widths)) for row in rows]
    return f"{part['problem']}: {part['metric']} of the trained models on test rows\n" + "\n".join(lines)


def _by(found: Result, unit: str, form: str = "{} ({})") -> str:
    """A difference with its interval."""
    bounds = interval(found)
    if bounds is None:
        return f"{short(found['mean'], 3)}{unit}"
    places = decimals((bounds[1] - bounds[0]) / 2)
    mean = fixed(round(found["mean"], places) + 0.0, places)  # no negative zero
    return form.format(
        f"{mean}{unit}", f"95 % interval {range_text(bounds, places)} over {counted(found['n'], 'seed')}"
    )


def _found(part: Result, key: str) -> list[float]:
    """A metric of every frozen model of a problem."""
    arms: list[Any] = [arm for section in (part["fixed_rate"], part) for arm in section["arms"].values()]
    seen = [seed for arm in arms for seed in (arm["metrics"].get(key) or {}).get("per_seed") or []]
    return [value for seed in seen if (value := finite(seed)) is not None]


def _checked(arms: Sequence[Any]) -> str:
    metrics = [arm.get("metrics") or {} for arm in arms]
    seeds = [
        min(pair)
        for found in metrics
        for pair in zip(
            *((found.get(key) or {}).get("per_seed") or [] for key in CHECKS),
            strict=True,
        )
    ]
    good = sum(value >= 0 for value in seeds)
    return (
        "–"
        if not seeds
        else f"yes, {good} of {good}"
        if good == len(seeds)
        else f"no: {good} of {len(seeds)}"
    )


def _from_known(part: Result, arm: Any) -> str:
    loss, facts = finite((arm["test"] or {}).get("mean")), part["facts"]
    if loss is None:
        return "–"
    return short(loss - facts["exact"]) if "exact" in facts else short(facts["gaussian"] - loss, 3)
