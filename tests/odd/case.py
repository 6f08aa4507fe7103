"""A case: what somebody does, and what happens then."""

from __future__ import annotations

import functools
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from .removal import Check, check_behind

# What other packages say to programmers.
_OF_OTHERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@final
@dataclass(frozen=True, eq=False)
class Case:
    """What somebody does, and what happens: an error, a warning or a value.

    The check that decides it is found by itself where an error or a warning is raised by this package.

    Attributes:
        title: what is done, in plain words.
        do: does it, in an empty folder.
        kind: of the error or warning; None where there is a value.
        said: the message, "..." for anything. With a value: what it is, in plain words.
        value: what `do` returns.
        owed_to: where the decision is made otherwise: a function, as "convexlift.module.function", or a
            module.
        instead: what stands for that function when it is taken out; in a module, the text (old, new) of one
            line.
        kin: in what it differs from the case that the same check decides, where there is one.
    """

    title: str
    do: Callable[[], Any]
    kind: type[Exception] | None
    said: str
    value: Any = None
    owed_to: str = ""
    instead: Callable[..., Any] | tuple[str, str] | None = None
    kin: str = ""


def refused(title: str, do: Callable[[], Any], kind: type[Exception], said: str, **others: Any) -> Case:
    """A case that ends in an error."""
    return Case(title, do, kind, said, **others)


def warned(title: str, do: Callable[[], Any], kind: type[Warning], said: str, **others: Any) -> Case:
    """A case that ends well, with a warning."""
    return Case(title, do, kind, said, **others)


def answered(
    title: str, do: Callable[[], Any], value: Any, said: str, owed_to: str, instead: Any, kin: str = ""
) -> Case:
    """A case with a right value, though one might have feared another."""
    return Case(title, do, None, said, value, owed_to, instead, kin)


@final
@dataclass(frozen=True)
class Outcome:
    """What happened: the kind of the error or else of the first warning, its message and check; the value."""

    kind: type[Warning | Exception] | None = None
    text: str = ""
    check: Check | None = None
    value: Any = None

    @classmethod
    def of(cls, found: Warning | Exception) -> Outcome:
        said = found.strerror if isinstance(found, OSError) and found.strerror else str(found)
        return cls(type(found), " ".join(said.split()), check_behind(found))


def outcome(case: Case) -> Outcome:
    """Do it, in an empty folder and with torch's generator at a fixed state."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _done(case)
    said = [each.category for each in caught if not issubclass(each.category, _OF_OTHERS)]
    if found.kind is None and said:
        with warnings.catch_warnings():  # once more: as an error it has a traceback
            warnings.simplefilter("error", said[0])
            return _done(case)
    return found


happened = functools.cache(outcome)


def _done(case: Case) -> Outcome:
    torch.manual_seed(0)
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return Outcome(value=case.do())
        except Exception as error:
            return Outcome.of(error)
        finally:
            os.chdir(here)


def difference(case: Case, found: Outcome) -> str:
    """How what happened differs from what the case says; empty where it does not.

    >>> case = refused("the logarithm of a name", lambda: float("a"), ValueError, "could not ...: 'a'")
    >>> difference(case, outcome(case)), difference(case, Outcome(value=1.0))
    ('', 'there was no error and no warning')
    """
    if case.kind is None:
        if found.kind is not None:
            return f"{found.kind.__name__}: {found.text}"
        return "" if alike(found.value, case.value) else f"{found.value!r} is not {case.value!r}"
    if found.kind is None:
        return "there was no error and no warning"
    pattern = ".*".join(map(re.escape, case.said.split("...")))
    right = issubclass(found.kind, case.kind) and re.fullmatch(pattern, found.text)
    return "" if right else f"{found.kind.__name__}: {found.text}"


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers up to a millionth.

    >>> alike([0.1 + 0.2], [0.3]), alike("a", ["a"])
    (True, False)
    """
    try:
        return bool(np.allclose(one, other, rtol=1e-6, atol=1e-12))
    except (TypeError, ValueError):
        return bool(one == other)
