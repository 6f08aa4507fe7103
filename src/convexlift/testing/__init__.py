"""Checks of a trained or hand-written network: non-negative weights, convexity, closed-form derivatives.

They take anybody's network, not only this library's, and belong in a test suite: each raises ``CheckFailed``
with what it found, and returns a result otherwise.
"""

from convexlift.testing.convexity import check_convex
from convexlift.testing.derivatives import check_derivatives
from convexlift.testing.nonnegative import check_nonnegative
from convexlift.testing.results import CheckFailed, ConvexityResult, DerivativesResult, NonnegativeResult

__all__ = [
    "CheckFailed",
    "ConvexityResult",
    "DerivativesResult",
    "NonnegativeResult",
    "check_convex",
    "check_derivatives",
    "check_nonnegative",
]
