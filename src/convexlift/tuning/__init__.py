"""Settings chosen by held-out rows: a short successive-halving search around those that are given."""

from convexlift.tuning.halving import Found, search
from convexlift.tuning.space import quick_space

__all__ = ["Found", "quick_space", "search"]
