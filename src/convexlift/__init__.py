"""convexlift: train input-convex neural networks and put them to work."""

from convexlift.architectures import ICNN, PICNN, ConvICNN, PartialPotential, Potential
from convexlift.distribution import FlowDistribution, FlowTransform
from convexlift.freezing import freeze
from convexlift.saving import load, save
from convexlift.sources import Centred, Lift, Projected, Softplus, Squared
from convexlift.tasks import (
    ConditionalDensity,
    ConvexPotentialFlow,
    ConvexRegression,
    Ensemble,
    LogConcaveDensity,
)
from convexlift.training import History, Sampler, TrainingDiverged, Unpaired, fit

__version__ = "0.1.0"

__all__ = [
    "ICNN",
    "PICNN",
    "Centred",
    "ConditionalDensity",
    "ConvICNN",
    "ConvexPotentialFlow",
    "ConvexRegression",
    "Ensemble",
    "FlowDistribution",
    "FlowTransform",
    "History",
    "Lift",
    "LogConcaveDensity",
    "PartialPotential",
    "Potential",
    "Projected",
    "Sampler",
    "Softplus",
    "Squared",
    "TrainingDiverged",
    "Unpaired",
    "fit",
    "freeze",
    "load",
    "save",
]
