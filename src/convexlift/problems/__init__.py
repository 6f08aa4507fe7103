"""Problems with fixed splits, their metrics, and what is known exactly about them."""

from .catalogue import NAMES, problem
from .problem import Problem, gaussian_baseline

__all__ = ["NAMES", "Problem", "gaussian_baseline", "problem"]
