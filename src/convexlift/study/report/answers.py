"""What a comparison says: one plain sentence for each question of a reader."""

from __future__ import annotations

from convexlift.counting import counted
from convexlift.mechanism import DETERMINISTIC_BELOW
from convexlift.study.ranking import (
    Result,
    difference,
    finite,
    interval,
    is_clear,
    ranking,
    reversed_difference,
    tied_with_best,
)
from convexlift.study.report.numbers import (
    decimals,
    fixed,
    interval_text,
    listed,
    range_text,
    score_text,
    short,
    unit_of,
)


def verdicts(result: Result) -> list[tuple[str, str]]:
    """Questions a reader asks of a comparison, each with a plain sentence or two as the answer."""
    if not ranking(result):
        return [("Which way of training reached the lowest loss?", "None: every run failed.")]
    answers = {
        "Which way of training reached the lowest loss, each at its own best rate?": _lowest,
        "Is that so at half the budget and at equal training time?": _other_budgets,
        "Did every way have its best rate?": _edges,
        "Did the lift help?": _lift_helps,
        "What does it cost?": _cost,
        "And at one common rate?": _common_rate,
        "Was the lift random in effect?": _noise,
        "How well are the densities normalised?": _normalised,
        "What do the baselines reach?": _baselines,
    }
    return [(question, told) for question, answer in answers.items() if (told := answer(result))]


def _above(found: Result, unit: str) -> str:
    """``0.12 nats above it (95 % interval 0.05 to 0.19 over 5 seeds, 0.04 to 0.20 over test rows)``."""
    bounds = interval(found)
    if bounds is None:
        return f"{short(found['mean'], 3)}{unit} above it (no interval)"
    places, rows = decimals((bounds[1] - bounds[0]) / 2), interval(found, "rows_ci95")
    also = f", {range_text(rows, places)} over test rows" if rows else ""
    over = f"95 % interval {range_text(bounds, places)} over {counted(found['n'], 'seed')}{also}"
    return f"{fixed(found['mean'], places)}{unit} above it ({over})"


def _lowest(result: Result) -> str:
    unranked = [name for name in result["arms"] if name not in ranking(result)]
    left_out = f" Not ranked, for seeds that diverged or failed: {listed(unranked)}." if unranked else ""
    return _lowest_ranked(result) + left_out


def _lowest_ranked(result: Result) -> str:
    order, tied, unit = ranking(result), tied_with_best(result), unit_of(result)
    best = order[0]
    loss = f"{score_text(result['arms'][best]['test'])}{unit}"
    if len(order) == 1:
        return f"Only {best} finished, at {loss}."
    second = difference(result, order[1], best)
    if second is None or interval(second) is None:
        return f"{best} has the lowest loss, {loss}, but one seed gives no interval: this is no verdict."
    behind = f"the next, {order[1]}, is {_above(second, unit)}"
    if len(tied) == 1:
        lasting = ranking(result, "half_budget")[:1] == [best]
        return f"{best} reached the lowest {'final loss' if lasting else 'loss'}: {loss}; {behind}."
    mean = f"The lowest mean is {best} at {loss}; {behind}."
    if len(tied) == len(order) > 2:
        return f"A tie: no way is clearly below the others. {mean}"
    beaten = [name for name in order if name not in tied]
    rest = f"; {best} is clearly below {listed(beaten)}" if beaten else ""
    return f"A tie between {listed(tied)}{rest}. {mean}"


def _other_budgets(result: Result) -> str:
    best, told, same, half = ranking(result)[0], [], [], ranking(result, "half_budget")
    for key, name in (("half_budget", "half the steps"), ("equal_seconds", "equal training time")):
        order = ranking(result, key)
        if order and best not in order:
            told.append(f"At {name} {best} has no mean: seeds diverged or failed.")
        elif len(order) > 1 and order[0] == best:
            same.append(name)
        elif len(order) > 1:
            how = "clearly" if is_clear(difference(result, order[0], best, key)) else "within the interval"
            told.append(f"At {name} {order[0]} has the lowest mean ({how}).")
    if same:
        told.insert(0, f"{best} has the lowest mean at {listed(same)} too.")
    if half and half[0] != best and len(tied_with_best(result)) == 1:
        told.append("The ranking depends on the budget, so no way can be said to end lower.")
    return " ".join(told)


def _edges(result: Result) -> str:
    """Said only where the grid of rates ended too early."""
    edges = (result.get("protocol") or {}).get("on_edge") or {}
    sides = {side: [name for name in edges if edges[name] == side] for side in ("lowest", "highest")}
    told = [
        f"{'every way' if len(names) == len(result['arms']) else listed(names)} did best at the {side} rate"
        for side, names in sides.items()
        if names
    ]
    return f"Not surely: {' and '.join(told)} tried, so another rate may do better." if told else ""


def _lift_helps(result: Result) -> str:
    order = ranking(result)
    told: dict[str, list[str]] = {"below": [], "above": [], "tied with": []}
    for name in order if "lift" in order else ():
        found = difference(result, name, "lift") if name != "lift" else None
        if found and not is_clear(found):
            told["tied with"].append(name)
        elif found and found["mean"] > 0:
            told["below"].append(f"{name} by {interval_text(found)}")
        elif found:
            told["above"].append(f"{name} by {interval_text(reversed_difference(found))}")
    units = {"below": unit_of(result), "above": unit_of(result), "tied with": ""}
    parts = [f"{how} {listed(names)}{units[how]}" for how, names in told.items() if names]
    if not parts:
        return ""
    if not told["below"]:
        word = "No" if told["above"] else "Not clearly"
    else:
        word = "Yes" if len(parts) == 1 else "In part"
    return f"{word}: it is {'; '.join(parts)}."


def _cost(result: Result) -> str:
    order, arms = ranking(result), result["arms"]
    times = {name: time for name in order if (time := finite(arms[name].get("ms_per_step")))}
    if not times:
        return ""
    base = "softplus" if "softplus" in times else min(times, key=times.__getitem__)
    told = []
    for name in dict.fromkeys(name for name in (base, "lift", order[0]) if name in times):
        ratio = "" if name == base else f" ({times[name] / times[base]:.2f} times {base})"
        size = arms[name].get("parameters")
        trains = f" and trains {int(size):,} parameters" if size else ""
        told.append(f"{name} takes {short(times[name], 3)} ms a step{ratio}{trains}")
    same = " After training, each is the same plain network." if len(told) > 1 else ""
    return f"{'; '.join(told)}.{same}"


def _common_rate(result: Result) -> str:
    section = result.get("fixed_rate") or {}
    order = ranking(section) if section.get("arms") else []
    if len(order) < 2:
        return ""
    best, tied, unit = order[0], tied_with_best(section), unit_of(result)
    loss = f"{score_text(section['arms'][best]['test'])}{unit}"
    who = f"{listed(tied)} tie, with the lowest mean {best}'s" if len(tied) > 1 else f"{best} is the lowest,"
    nearest = difference(section, order[1], best)
    behind = f"; the next, {order[1]}, is {_above(nearest, unit)}" if nearest else ""
    return (
        f"At {short(section.get('lr'), 1)} {who} {loss}{behind}. "
        "One common rate favours the ways that it happens to suit, so this is not the verdict."
    )


def _noise(result: Result) -> str:
    told = []
    for name, arm in result["arms"].items():
        noise = arm.get("emission_noise") or {}
        phases = {at: value for at in ("start", "middle") if (value := finite(noise.get(at))) is not None}
        levels = [f"{short(100 * value)} % at the {at}" for at, value in phases.items()]
        varies = f"Its weights vary from batch to batch by {listed(levels)}" if levels else ""
        random = [at for at, value in phases.items() if value >= DETERMINISTIC_BELOW]
        if phases and not random:
            told.append(
                f"{name}: no. Its batch noise ({listed(levels)}) is below 0.1 %: deterministic in effect, "
                "so whatever it gains does not come from the batch."
            )
        elif len(random) < len(phases):
            below = "below 0.1 % it is deterministic in effect"
            told.append(f"{name}: only at the {random[0]}. {varies}; {below}.")
        elif phases:
            told.append(f"{name}: yes. {varies} (median over weights).")
    return " ".join(told)


def _normalised(result: Result) -> str:
    """The worst log Z, and the draws that training went by; "" but for multivariate densities."""

    def by_seed(key: str) -> list[tuple[float, str]]:
        return [
            (value, name)
            for name in ranking(result)
            for seed in ((result["arms"][name].get("metrics") or {}).get(key) or {}).get("per_seed") or []
            if (value := finite(seed)) is not None
        ]

    errors, shares = by_seed("log_z_error"), by_seed("training_share")
    if not errors:
        return ""
    worst, name = max(errors)
    kind = "a standard error" if by_seed("log_z_share") else "a bound"
    told = f"log Z is known to ± {short(worst)} nats at worst ({name}; {kind})."
    least, name = min(shares, default=(0.0, ""))
    ended = f" The draws of training ended worth at least {short(100 * least)} % of their number ({name})."
    return told + ended if shares else told


def _baselines(result: Result) -> str:
    unit, best = unit_of(result), ranking(result)[0]
    mean, told = result["arms"][best]["test"]["mean"], []
    facts = {name: finite(fact) for name, fact in (result.get("facts") or {}).items()}
    for name, value in facts.items():
        if value is not None:
            way = "below" if mean < value else "above"
            gap = "" if "entropy" in name else f" ({best} is {short(abs(value - mean), 3)} {way} it)"
            told.append(f"{name[0].upper()}{name[1:].replace('_', ' ')}: {short(value, 4)}{unit}{gap}")
    return f"{'; '.join(told)}." if told else ""
