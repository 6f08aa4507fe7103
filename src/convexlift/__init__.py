"""convexlift: train input-convex neural networks and put them to work."""

from convexlift.architectures import ICNN, PICNN, PartialPotential, Potential
from convexlift.freezing import freeze
from convexlift.saving import load, save
from convexlift.sources import Lift, Projected, Softplus, Squared
from convexlift.tasks import ConditionalDensity, ConvexPotentialFlow, ConvexRegression, LogConcaveDensity
from convexlift.training import History, Sampler, TrainingDiverged, Unpaired, fit

__version__ = "0.1.0"

__all__ = [
    "ICNN",
    "PICNN",
    "ConditionalDensity",
    "ConvexPotentialFlow",
    "ConvexRegression",
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
