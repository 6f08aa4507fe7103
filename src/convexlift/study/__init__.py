"""Comparisons of ways to train a network, under equal tuning."""

from convexlift.study.arms import ARMS, DEFAULT_ARMS, build
from convexlift.study.comparison import compare
from convexlift.study.outcomes import Event
from convexlift.study.protocol import BUDGETS, Budget

__all__ = ["ARMS", "BUDGETS", "DEFAULT_ARMS", "Budget", "Event", "build", "compare"]
