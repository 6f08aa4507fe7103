"""Every problem by its name; torch is imported when one is made, not before."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convexlift.names import close_names

if TYPE_CHECKING:
    from convexlift.problems.base import Problem

DENSITIES = ("gumbel", "laplace", "gamma", "beta", "logistic", "uniform")

# By name, the module and the function that makes the problem.
_PUBLISHED = {name: (f"published.{name}", name) for name in ("hepmass", "miniboone", "power", "gas")}
_ALONE = {"digits21": ("images.digits", "digits21"), "collider": ("simulated.collider", "collider")}
_NAMED = {
    **dict.fromkeys(DENSITIES, ("simulated.gallery", "gallery_problem")),
    **dict.fromkeys(
        ("rings", "eight-gaussians", "moon", "pinwheel", "checkerboard"), ("simulated.toys", "toy_problem")
    ),
    **dict.fromkeys(
        ("regression-square", "regression-logsumexp"), ("simulated.regression", "regression_problem")
    ),
}
_LATENTS = ("digits-latents", "mnist-latents")
FROM_FILES = (*_PUBLISHED, "mnist-latents")
NAMES = ("digits21", *FROM_FILES, "digits-latents", "collider", *_NAMED)


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
    check_problem(name)
    if name.partition(":")[0] in _LATENTS:
        return _made("images.latents", "latents_of", name, data).problem
    if name in _PUBLISHED:
        return _made(*_PUBLISHED[name], data)
    if data is not None:
        raise ValueError(f"problem '{name}' reads no file; remove --data {data}")
    return _made(*_ALONE[name]) if name in _ALONE else _made(*_NAMED[name], name)


def check_problem(name: str) -> None:
    """Refuse an unknown name with a ValueError, before anything is imported.

    >>> check_problem("digits-latents:3")
    """
    if name not in NAMES and name.partition(":")[0] not in _LATENTS:
        hint = "".join(f"did you mean '{close}'? " for close in close_names(name, NAMES))
        raise ValueError(f"unknown problem '{name}'; {hint}known: {', '.join(NAMES)}")


def _made(module: str, function: str, *arguments: object) -> Any:
    from convexlift.ambient import guarded  # imports torch

    return guarded(getattr(import_module(f"convexlift.problems.{module}"), function))(*arguments)
