"""Names that a user chooses from, kept where help and refusals find them without importing torch.

What they name is elsewhere; a test holds the two together.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

SOURCES = ("projected", "softplus", "softplus-fan-in", "squared", "lift", "lift-reference")
OBJECTIVES = ("mle", "importance", "importance-flow", "chains", "score", "denoising", "nce")
# Of a transport map.
TRANSPORT_OBJECTIVES = ("semidual",)
OPTIMIZERS = ("adam", "sgd", "soap")
# Of them, those whose loss is a negative log-likelihood.
LIKELIHOODS = ("mle", "importance", "importance-flow", "chains")
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "float64")
SEARCHES = ("quick",)
# Checks of data that can be switched off; see `convexlift.screening`.
SCREENS = ("outliers", "repeats", "spikes", "ties", "counters", "duplicates", "few-rows", "overlap")

# Arms of a comparison are sources, and two controls that no user would train by.
DEFAULT_ARMS = ("projected", "softplus", "softplus-fan-in", "squared", "lift")
CONTROLS = ("softplus-scattered", "softplus-multiplied")
DOWNLOADS = ("hepmass", "miniboone", "power", "gas")


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Raise a ValueError unless the name is one of those known.

    >>> check_name("source", "lfit", SOURCES)
    Traceback (most recent call last):
    ...
    ValueError: unknown source 'lfit'; known: projected, softplus, ...
    """
    if name not in known:
        hint = "".join(f"; did you mean '{close}'?" for close in close_names(name, known))
        raise ValueError(f"unknown {kind} '{name}'; known: {', '.join(known)}{hint}")


def close_names(name: str, known: Collection[str]) -> list[str]:
    """The known name that looks most like this one, if any does.

    >>> close_names("lfit", SOURCES), close_names("parquet", SOURCES)
    (['lift'], [])
    """
    return difflib.get_close_matches(name, known, n=1)
