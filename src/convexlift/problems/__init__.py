"""Problems with fixed splits, their metrics, and what is known exactly about them."""

from convexlift.problems.baselines import gaussian_baseline, kernel_baseline
from convexlift.problems.catalogue import FROM_FILES, NAMES, problem
from convexlift.problems.images.latents import Latents, latents_of
from convexlift.problems.problem import Problem

__all__ = [
    "FROM_FILES",
    "NAMES",
    "Latents",
    "Problem",
    "gaussian_baseline",
    "kernel_baseline",
    "latents_of",
    "problem",
]
