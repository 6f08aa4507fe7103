"""The names that help and refusals give are those of what there is."""

from __future__ import annotations

from convexlift import names
from convexlift.objectives import objective_named
from convexlift.problems.published import fetch
from convexlift.sources.named import SOURCES
from convexlift.study.arms import ARMS, MULTIPLIED, SCATTERED
from convexlift.training.optimisation import SCHEDULES


def test_sources_and_arms() -> None:
    assert sorted(names.SOURCES) == sorted(SOURCES)
    assert names.SOURCES == tuple(ARMS) and names.CONTROLS == (SCATTERED, MULTIPLIED)
    assert set(names.DEFAULT_ARMS) < set(ARMS)


def test_objectives_and_schedules() -> None:
    assert len({type(objective_named(name, 3)).__name__ for name in names.OBJECTIVES}) >= 5
    assert sorted(names.SCHEDULES) == sorted(SCHEDULES)


def test_downloads() -> None:
    assert sorted(names.DOWNLOADS) == sorted(fetch.DOWNLOADS)
