"""Which arm of a comparison is lower, and whether that is clear: rankings and paired differences."""

from __future__ import annotations

import math
from typing import Any

from convexlift.study.statistics import common_difference

Result = dict[str, Any]


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is missing or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def ranking(section: Result, score: str = "test") -> list[str]:
    """Names of the arms that have a mean, lowest loss first."""
    means = {name: finite((arm.get(score) or {}).get("mean")) for name, arm in section["arms"].items()}
    return [name for mean, name in sorted((mean, name) for name, mean in means.items() if mean is not None)]


def complete(section: Result) -> list[str]:
    """Names of all arms: the ranking, then those without a mean."""
    order = ranking(section)
    return [*order, *(name for name in section["arms"] if name not in order)]


def reference_arm(section: Result) -> str | None:
    """The arm that differences are taken against: the lift, or the best arm where no lift finished."""
    order = ranking(section)
    return "lift" if "lift" in order else order[0] if order else None


def difference(section: Result, first: str, second: str, score: str = "test") -> dict[str, Any] | None:
    """The paired difference first minus second of a loss (negative: first is better).

    Taken from the section's ``pairs`` where it is recorded, in either direction, else computed over common
    seeds; None where there are none.
    """
    pairs = section.get("pairs") or {} if score == "test" else {}
    for key, sign in ((f"{first}-{second}", 1), (f"{second}-{first}", -1)):
        if finite((pairs.get(key) or {}).get("mean")) is not None:
            return pairs[key] if sign == 1 else reversed_difference(pairs[key])
    seeds = [(section["arms"][name].get(score) or {}).get("per_seed") or [] for name in (first, second)]
    return common_difference(*(list(map(finite, losses)) for losses in seeds))


def interval(found: Result, key: str = "ci95") -> tuple[float, float] | None:
    """The interval of a difference over seeds, or with "rows_ci95" over test rows; None if there is none."""
    low, high = (finite(bound) for bound in found.get(key) or (None, None))
    return None if low is None or high is None else (low, high)


def is_clear(found: Result | None) -> bool:
    """Whether the interval over seeds, and that over test rows if there is one, lie on one side of zero."""
    if found is None or (over_seeds := interval(found)) is None:
        return False
    both = [over_seeds, interval(found, "rows_ci95") or over_seeds]
    return all(low > 0 for low, _ in both) or all(high < 0 for _, high in both)


def tied_with_best(section: Result) -> list[str]:
    """The best arm and every arm that is not clearly above it, lowest mean first."""
    order = ranking(section)
    return [name for name in order if name == order[0] or not is_clear(difference(section, order[0], name))]


def reversed_difference(found: Result) -> Result:
    turned = {**found, "mean": -found["mean"]}
    for key in ("ci95", "rows_ci95"):
        bounds = interval(found, key)
        turned[key] = None if bounds is None else [-bounds[1], -bounds[0]]
    return turned
