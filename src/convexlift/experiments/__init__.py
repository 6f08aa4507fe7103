"""Comparisons of ways to train a network, under equal tuning."""

from convexlift.experiments.arms import ARMS, DEFAULT_ARMS, build
from convexlift.experiments.books import Event
from convexlift.experiments.compare import compare
from convexlift.experiments.protocol import BUDGETS, Budget

__all__ = ["ARMS", "BUDGETS", "DEFAULT_ARMS", "Budget", "Event", "build", "compare"]
