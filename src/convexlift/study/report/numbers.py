"""Figures of a comparison as text: a few digits, as many decimals as their errors allow, true minus signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from convexlift.study.ranking import Result, finite, interval


def short(value: Any, digits: int = 2) -> str:
    """A few significant digits, without exponents between 0.0001 and a million.

    >>> short(0.03125), short(-12.34, 3), short(None)
    ('0.031', '−12.3', '–')
    """
    number = finite(value)
    if number is None:
        return "–"
    if number == 0:
        return "0"
    if not 1e-4 <= abs(number) < 1e6:
        return f"{number:.{digits - 1}e}".replace("-", "−")
    return fixed(number, max(digits - 1 - math.floor(math.log10(abs(number))), 0))


def score_text(score: Result | None, places: int = 0) -> str:
    """Mean and standard error; the mean alone for a single seed. With at least so many decimals.

    >>> score_text({"mean": 22.41378, "sem": 0.0213}), score_text({"mean": None})
    ('22.414 ± 0.021', 'failed')
    """
    if not score or finite(score.get("mean")) is None:
        return "failed"
    error = finite(score.get("sem"))
    if not error:
        alone = short(score["mean"], 5)
        return fixed(score["mean"], places) if places > _places(alone) else alone
    places = max(places, decimals(error))
    return f"{fixed(score['mean'], places)} ± {fixed(error, places)}"


def score_texts(scores: Mapping[str, Result | None]) -> dict[str, str]:
    """`score_text` of each, with digits enough that no mean looks larger than one above it.

    >>> score_texts({"a": {"mean": 22.0361, "sem": 0.12}, "b": {"mean": 22.038, "sem": 0.011}})
    {'a': '22.036 ± 0.120', 'b': '22.038 ± 0.011'}
    """
    texts = {name: score_text(score) for name, score in scores.items()}
    means = {
        name: float(score["mean"]) for name, score in scores.items() if score and texts[name] != "failed"
    }
    order = sorted(means, key=means.__getitem__)
    changed = True
    while changed:
        changed = False
        for lower, higher in combinations(order, 2):
            if _shown(texts[lower]) > _shown(texts[higher]):
                coarse = min(lower, higher, key=lambda name: _places(texts[name]))
                texts[coarse] = score_text(scores[coarse], _places(texts[coarse]) + 1)
                changed = True
    return texts


def _shown(text: str) -> float:
    """The mean as it is written."""
    return float(text.split(" ± ")[0].replace("−", "-").replace(",", ""))


def _places(text: str) -> int:
    """How many decimals the mean is written with."""
    return len(text.split(" ± ")[0].partition(".")[2])


def interval_text(found: Result) -> str:
    """A difference with its interval over seeds.

    >>> interval_text({"mean": 0.1234, "ci95": [0.05, 0.19]}), interval_text({"mean": 0.1234, "ci95": None})
    ('0.123 (0.050 to 0.190)', '0.123 (no interval)')
    """
    bounds = interval(found)
    if bounds is None:
        return f"{short(found['mean'], 3)} (no interval)"
    places = decimals((bounds[1] - bounds[0]) / 2)
    return f"{fixed(found['mean'], places)} ({range_text(bounds, places)})"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(42), duration(540), duration(9000)
    ('42 s', '9 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["lift", "softplus", "squared"])
    'lift, softplus and squared'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def fixed(value: float, places: int) -> str:
    return f"{value:,.{places}f}".replace("-", "−")


def decimals(error: float) -> int:
    """Decimals that show two significant digits of an error."""
    return min(max(1 - math.floor(math.log10(error)), 0), 6) if error > 0 else 3


def range_text(bounds: tuple[float, float], places: int) -> str:
    return f"{fixed(bounds[0], places)} to {fixed(bounds[1], places)}"


def unit_of(result: Result) -> str:
    """The unit that the metric names in brackets, after a space."""
    metric = str(result.get("metric", ""))
    return f" {metric.rsplit('(', 1)[1].rstrip(')')}" if metric.endswith(")") and "(" in metric else ""


def spent(result: Result) -> list[str]:
    """Steps and budget, where they are recorded."""
    protocol = result.get("protocol") or {}
    steps = [f"{protocol['steps']:,} steps"] if isinstance(protocol.get("steps"), int) else []
    return [*steps, f"{protocol['budget']} budget"] if protocol.get("budget") else steps
