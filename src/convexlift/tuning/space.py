"""What a quick search chooses from, what a step of a choice costs, and draws of it that are balanced."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        "lr": (1 / 3, 1.0, 2.0),
    },
    "density": {
        "sharpness": (1.0, 2.0, 4.0, 8.0),
        "weight_decay": (0.0, 0.1, 1.0),
        "whiten": (False, True),
        "lr": (1 / 3, 1.0, 2.0),
    },
    "regression": {
        "sharpness": (0.5, 1.0, 3.0, 10.0),
        "weight_decay": (0.0, 1.0, 4.0),
        "slopes": (False, True),
        "lr": (1.0, 3.0, 10.0),
    },
}


def quick_space(kind: str, base: Mapping[str, Any]) -> Space:
    """What a quick search tries for a "flow", "density" or "regression", around the settings ``base``.

    Names that ``base`` lacks are left out, and the values of ``base`` are always there.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> quick_space("density", {"sharpness": 3.0, "lr": 0.03})
        {'sharpness': (1.0, 2.0, 3.0, 4.0, 8.0), 'lr': (0.01, 0.03, 0.06)}
    """
    check_name("kind", kind, _VALUES)
    space: Space = {}
    for name, values in _VALUES[kind].items():
        if name in base:
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

    They are balanced: every value of a name occurs as often as every other, give or take one.

    >>> draw({"sharpness": (1.0, 2.0)}, {"sharpness": 2.0, "lr": 0.1}, 3, seed=0)
    [{'sharpness': 2.0, 'lr': 0.1}, {'sharpness': 1.0, 'lr': 0.1}]
    """
    kinds = math.prod(map(len, space.values()))
    drawn, turn = [dict(base)], 0
    while len(drawn) < min(count, kinds):
        columns = {}
        for name, values in space.items():
            order: list[Any] = []
            generator = generator_of(seed, "search", turn, name)
            while len(order) < count - 1:
                order += [values[k] for k in torch.randperm(len(values), generator=generator).tolist()]
            columns[name] = order
        for k in range(count - 1):
            setting = {**base, **{name: order[k] for name, order in columns.items()}}
            if setting not in drawn and len(drawn) < count:
                drawn.append(setting)
        turn += 1
    return drawn
