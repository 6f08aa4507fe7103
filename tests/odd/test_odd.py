"""Every case of the table happens as it says, and otherwise once its check is taken out."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from traceback import walk_stack
from types import FrameType

import pytest

from .case import Case, Outcome, difference, happened, outcome
from .removal import changed, without
from .table import CASES, PAGE, page

pytestmark = pytest.mark.skipif(os.name == "nt", reason="alarms, links and messages of POSIX")
LONGEST = 2.0  # seconds: without its check a search may go on for ever


class TooLong(BaseException):
    """No error of the package's: nothing catches it."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the alarm, in a finaliser
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_it_happens_because_of_its_check(case: Case) -> None:
    found = happened(case)
    assert difference(case, found) == ""
    if case.owed_to:
        assert case.instead is not None
        with changed(case.owed_to, case.instead):
            assert otherwise(case), f"nothing changes without {case.owed_to}"
    else:
        assert found.check is not None, "no statement of the package raised it: say what it is owed to"
        with without(found.check):
            assert otherwise(case), f"nothing changes without {found.check}"


def otherwise(case: Case) -> bool:
    """Whether a case does not happen as it says, or takes longer than it may."""

    def stop(_: int, frame: FrameType | None) -> None:
        importing = any(
            inner.f_code.co_filename.startswith("<frozen importlib") for inner, _ in walk_stack(frame)
        )
        if not importing:  # half a module would stay behind
            raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST, LONGEST)  # and again, where an error cannot be raised
    try:
        return difference(case, outcome(case)) != ""
    except TooLong:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cause(case: Case) -> object:
    return (case.owed_to, case.instead) if case.owed_to else happened(case).check


def test_causes_are_distinct() -> None:
    of = {case: cause(case) for case in CASES}
    counts = Counter(of.values())
    shared = [case.title for case in CASES if counts[of[case]] > 1 and not case.kin]
    again = Counter(of[case] for case in CASES if not case.kin)
    assert max(again.values()) == 1, f"one check decides several: {shared}"
    assert len(counts) >= 120
    assert len({case.title for case in CASES}) == len(CASES)


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/what_happens.py"


@pytest.mark.parametrize(
    "wrong",
    [{"said": "another message"}, {"kind": OSError}, {"kind": None, "value": 1}],
    ids=["message", "kind", "ending"],
)
def test_a_wrong_case_fails(wrong: dict[str, object]) -> None:
    for case in CASES:
        if case.kind is not None and not issubclass(case.kind, OSError):
            assert difference(dataclasses.replace(case, **wrong), happened(case)) != ""  # type: ignore[arg-type]
    assert difference(dataclasses.replace(CASES[0], kind=ValueError), Outcome(value=1)) != ""


def test_a_check_that_decides_nothing_is_noticed() -> None:
    case = next(case for case in CASES if case.title == "`lr=0`")
    with changed("convexlift.checks.check_finite", lambda x, **_: x):
        assert not otherwise(case)


def test_a_check_comes_back() -> None:
    case = next(case for case in CASES if case.title == "`lr=0`")
    check = happened(case).check
    assert check is not None
    with without(check):
        assert outcome(case).kind is None
    assert difference(case, outcome(case)) == ""
