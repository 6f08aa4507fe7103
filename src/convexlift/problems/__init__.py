"""Problems with fixed splits, their metrics, and what is known exactly about them."""

from .baselines import gaussian_baseline, kernel_baseline
from .catalogue import FROM_FILES, NAMES, problem
from .images import draw_images
from .latents import Latents, latents_of
from .problem import Problem

__all__ = [
    "FROM_FILES",
    "NAMES",
    "Latents",
    "Problem",
    "draw_images",
    "gaussian_baseline",
    "kernel_baseline",
    "latents_of",
    "problem",
]
