"""Every problem by its name."""

from __future__ import annotations

import difflib
from pathlib import Path

from .collider import collider
from .digits import digits21
from .gallery import DENSITIES, gallery_problem
from .hepmass import hepmass
from .problem import Problem
from .regression import regression_problem
from .toys import TOYS, toy_problem

REGRESSIONS = ("regression-square", "regression-logsumexp")
NAMES = ("digits21", "hepmass", "collider", *DENSITIES, *TOYS, *REGRESSIONS)


def problem(name: str, data: str | Path | None = None) -> Problem:
    """The problem of that name; `data` is the file that `hepmass` reads.

    Raises a ValueError for an unknown name, for a file given to a problem that reads none, and for `hepmass`
    without one; an ImportError for `digits21` without scikit-learn.

    Example:
        >>> problem("beta").entropy  # doctest: +ELLIPSIS
        -0.2349...
        >>> problem("gambel")
        Traceback (most recent call last):
        ...
        ValueError: unknown problem 'gambel'; did you mean 'gumbel'? known: digits21, hepmass, ...
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown problem '{name}'; {hint}known: {', '.join(NAMES)}")
    if name == "hepmass":
        return hepmass(data)
    if data is not None:
        raise ValueError(f"problem '{name}' reads no file; remove --data {data}")
    if name == "digits21":
        return digits21()
    if name == "collider":
        return collider()
    if name in DENSITIES:
        return gallery_problem(name)
    return toy_problem(name) if name in TOYS else regression_problem(name)
