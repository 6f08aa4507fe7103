"""Problems with fixed splits, their metrics, and what is known exactly about them."""

from .catalogue import FROM_FILES, NAMES, problem
from .problem import Problem, gaussian_baseline

__all__ = ["FROM_FILES", "NAMES", "Problem", "gaussian_baseline", "problem"]
