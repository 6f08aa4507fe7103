"""What a quick search chooses from, what a step of a choice costs, and draws of it that are balanced."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from convexlift.names import check_name
from convexlift.seeds import generator_of

Setting = dict[str, Any]
Space = dict[str, tuple[Any, ...]]

# The values of each setting, by the kind of task; of a rate, factors of that which was given.
_VALUES: dict[str, Space] = {
    "flow": {
        "sharpness": (1.0, 2.0, 4.0, 8.0),
        "weight_decay": (0.0, 0.1, 1.0),
        "whiten": (False, True),
        "blocks": (1, 2),
        "lr": (1 / 3, 1.0),
    },
    "density": {
        "sharpness": (1.0, 2.0, 4.0, 8.0),
        "weight_decay": (0.0, 0.1, 1.0),
        "whiten": (False, True),
        "lr": (1 / 3, 1.0),
    },
    "regression": {
        "sharpness": (0.5, 1.0, 3.0, 10.0),
        "weight_decay": (0.0, 1.0, 4.0),
        "slopes": (False, True),
        "lr": (1.0, 3.0, 10.0),
    },
}
# Rows from which a second block is tried.
_BLOCKS_FROM = 1000
# Designs of which the best balanced is taken.
_DESIGNS = 200


def quick_space(
    kind: str, base: Mapping[str, Any], *, rows: int, columns: int, likelihood: bool = True
) -> Space:
    """What a quick search tries for a "flow", "density" or "regression", around the settings ``base``.

    Names that ``base`` lacks are left out, and the values of ``base`` are always there.

    Args:
        kind: of the task.
        base: settings by name, see ``search``.
        rows: how many there are: fewer than 1,000 do not feed a second block.
        columns: how many: one is not whitened.
        likelihood: whether the loss is a negative log-likelihood; others depend on the scale of the columns,
            so that whitening cannot be judged by them.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> quick_space("density", {"sharpness": 3.0, "lr": 0.03}, rows=500, columns=2)
        {'sharpness': (1.0, 2.0, 3.0, 4.0, 8.0), 'lr': (0.01, 0.03)}
    """
    check_name("kind", kind, _VALUES)
    idle = {"blocks": rows < _BLOCKS_FROM, "whiten": columns == 1 or not likelihood}
    space: Space = {}
    for name, values in _VALUES[kind].items():
        if name in base and not idle.get(name, False):
            found = [float(f"{base[name] * factor:.3g}") for factor in values] if name == "lr" else values
            space[name] = tuple(sorted({*found, base[name]}))
    return space


def price(setting: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """What a step costs beside one of the settings ``base``: a flow passes its blocks one after another.

    It is counted, not measured, so that a search does not depend on how busy the machine is.

    >>> price({"blocks": 2, "whiten": True}, {"blocks": 1, "whiten": False})
    2.0
    """
    return float(setting.get("blocks", 1) / base.get("blocks", 1))


def draw(space: Space, base: Mapping[str, Any], count: int, seed: int) -> list[Setting]:
    """At most so many different settings, the first of them ``base``; the same for the same seed.

    They are balanced: of a name each value occurs about as often as every other, and of two names each pair
    of values, as far as so few settings allow.

    >>> draw({"sharpness": (1.0, 2.0)}, {"sharpness": 2.0, "lr": 0.1}, 3, seed=0)
    [{'sharpness': 2.0, 'lr': 0.1}, {'sharpness': 1.0, 'lr': 0.1}]
    """
    generator = generator_of(seed, "settings of a search")
    count = min(count, math.prod(map(len, space.values())))
    designs = [_design(space, base, count, generator) for _ in range(_DESIGNS)]
    return min(designs, key=lambda design: (-len(design), _unbalanced(design, space)))


def _design(space: Space, base: Mapping[str, Any], count: int, generator: torch.Generator) -> list[Setting]:
    """Settings in which each name goes through its values again and again, in orders of chance."""
    columns: dict[str, list[Any]] = {}
    for name, values in space.items():
        column = columns.setdefault(name, [])
        while len(column) < count - 1:
            column += [values[k] for k in torch.randperm(len(values), generator=generator).tolist()]
    design = [dict(base)]
    for k in range(count - 1):
        setting = {**base, **{name: column[k] for name, column in columns.items()}}
        if setting not in design:
            design.append(setting)
    return design


def _unbalanced(design: list[Setting], space: Space) -> int:
    """How often pairs of values, of two names, meet again."""
    pairs = Counter(
        (one, setting[one], other, setting[other])
        for setting in design
        for one, other in combinations(space, 2)
    )
    return sum(times * times for times in pairs.values())
