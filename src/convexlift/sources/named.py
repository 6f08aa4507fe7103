"""The weight sources by name, for all who choose one by a word: estimators, command line, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from convexlift.names import check_name
from convexlift.sources.lift import Lift
from convexlift.sources.projected import Projected
from convexlift.sources.softplus import Softplus
from convexlift.sources.squared import Squared

Source = Callable[[nn.Module], nn.Module]

SOURCES: Mapping[str, Source] = {
    "squared": Squared,
    "softplus": Softplus,
    "softplus-fan-in": partial(Softplus, fan_in=True),
    "projected": Projected,
    "lift": Lift,
    "lift-reference": Lift.reference,  # its own, scattered start, as in the method's reference code
}


def source_named(name: str) -> Source:
    """What makes a weight source of that name from an architecture, with its default options.

    >>> from convexlift import ICNN
    >>> type(source_named("squared")(ICNN(2))).__name__
    'Squared'
    >>> source_named("clamped")
    Traceback (most recent call last):
    ...
    ValueError: unknown source 'clamped'; known: squared, softplus, ...
    """
    check_name("source", name, SOURCES)
    return SOURCES[name]
