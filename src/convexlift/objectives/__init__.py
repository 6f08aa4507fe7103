"""Objectives of a log-concave density: what a training step minimises."""

from __future__ import annotations

from convexlift.names import OBJECTIVES
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
    match name:
        case "mle":
            return Quadrature(dim) if dim <= 2 else Chains(dim)
        case "importance":
            return ImportanceSampling(dim)
        case "importance-flow":
            return ImportanceSampling(dim, proposal="flow")
        case "chains":
            return Chains(dim)
        case "score":
            return ScoreMatching()
        case "denoising":
            return Denoising()
        case "nce":
            return NoiseContrastive(dim)
        case "known":  # not to be chosen: a density in a file is left with it
            return Known()
    raise ValueError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
