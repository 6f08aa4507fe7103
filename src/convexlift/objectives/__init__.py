"""Objectives of a log-concave density: what a training step minimises."""

from __future__ import annotations

from collections.abc import Callable

from convexlift.names import OBJECTIVES, check_name
from convexlift.objectives.chains import Chains
from convexlift.objectives.contrast import NoiseContrastive
from convexlift.objectives.importance import ImportanceSampling
from convexlift.objectives.objective import Known, Objective
from convexlift.objectives.quadrature import Quadrature
from convexlift.objectives.score import Denoising, ScoreMatching

__all__ = [
    "OBJECTIVES",
    "Chains",
    "Denoising",
    "ImportanceSampling",
    "Known",
    "NoiseContrastive",
    "Objective",
    "Quadrature",
    "ScoreMatching",
    "objective_named",
]


def objective_named(name: str, dim: int) -> Objective:
    """The objective of that name for densities of dimension d, with its default options.

    "mle" is maximum likelihood: by quadrature where d <= 2, by persistent chains above.

    >>> objective_named("mle", 21)
    Chains(chains=256, moves=4)
    >>> objective_named("map", 2)
    Traceback (most recent call last):
    ...
    ValueError: unknown objective 'map'; known: mle, importance, ...
    """
    made: dict[str, Callable[[], Objective]] = {
        "mle": lambda: Quadrature(dim) if dim <= 2 else Chains(dim),
        "importance": lambda: ImportanceSampling(dim),
        "importance-flow": lambda: ImportanceSampling(dim, proposal="flow"),
        "chains": lambda: Chains(dim),
        "score": ScoreMatching,
        "denoising": Denoising,
        "nce": lambda: NoiseContrastive(dim),
        "known": Known,  # not to be chosen: a density in a file is left with it
    }
    if name not in made:
        check_name("objective", name, OBJECTIVES)
    return made[name]()
