from .base import Problem
from .baselines import gaussian_baseline, kernel_baseline
from .catalogue import DENSITIES, FROM_FILES, NAMES, problem
from .images.latents import Latents, latents_of
from .kinds import KINDS, Kind

__all__ = [
    "DENSITIES",
    "FROM_FILES",
    "KINDS",
    "NAMES",
    "Kind",
    "Latents",
    "Problem",
    "gaussian_baseline",
    "kernel_baseline",
    "latents_of",
    "problem",
]
