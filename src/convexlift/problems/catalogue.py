"""Every problem by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from convexlift.problems.images.digits import digits21
from convexlift.problems.images.latents import LATENTS, latents_of, mnist_latents
from convexlift.problems.problem import Problem
from convexlift.problems.published.gas import gas
from convexlift.problems.published.hepmass import hepmass
from convexlift.problems.published.miniboone import miniboone
from convexlift.problems.published.power import power
from convexlift.problems.simulated.collider import collider
from convexlift.problems.simulated.gallery import DENSITIES, gallery_problem
from convexlift.problems.simulated.regression import regression_problem
from convexlift.problems.simulated.toys import TOYS, toy_problem

REGRESSIONS = ("regression-square", "regression-logsumexp")
FROM_FILES: dict[str, Callable[[str | Path | None], Problem]] = {
    "hepmass": hepmass,
    "miniboone": miniboone,
    "power": power,
    "gas": gas,
    "mnist-latents": lambda folder: mnist_latents(folder).problem,
}
NAMES = ("digits21", *FROM_FILES, "digits-latents", "collider", *DENSITIES, *TOYS, *REGRESSIONS)


def problem(name: str, data: str | Path | None = None) -> Problem:
    """The problem of that name; `data` is the file or folder that those of `FROM_FILES` read.

    Image latents of one class have it after a colon: "digits-latents:3", "mnist-latents:3".

    Raises a ValueError for an unknown name or class, for a file given to a problem that reads none, and for
    one that reads files without one or with an unfit one; a FileNotFoundError for a missing file; an
    ImportError for the digits without scikit-learn.

    Example:
        >>> problem("beta").entropy  # doctest: +ELLIPSIS
        -0.2349...
        >>> problem("gambel")
        Traceback (most recent call last):
        ...
        ValueError: unknown problem 'gambel'; did you mean 'gumbel'? known: digits21, hepmass, ...
    """
    if name.partition(":")[0] in LATENTS:
        return latents_of(name, data).problem
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown problem '{name}'; {hint}known: {', '.join(NAMES)}")
    if name in FROM_FILES:
        return FROM_FILES[name](data)
    if data is not None:
        raise ValueError(f"problem '{name}' reads no file; remove --data {data}")
    if name == "digits21":
        return digits21()
    if name == "collider":
        return collider()
    if name in DENSITIES:
        return gallery_problem(name)
    return toy_problem(name) if name in TOYS else regression_problem(name)
