"""Tasks: losses on potentials, and what the trained model is for."""

from convexlift.integration.line import Normaliser
from convexlift.tasks.conditional import ConditionalDensity, ConditionalNormaliser
from convexlift.tasks.density import LogConcaveDensity
from convexlift.tasks.ensemble import Ensemble
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.tasks.region import CredibleRegion
from convexlift.tasks.regression import ConvexRegression
from convexlift.tasks.standardise import Principal, Standardiser, Whitener
from convexlift.tasks.transport import Distance, TransportMap

__all__ = [
    "ConditionalDensity",
    "ConditionalNormaliser",
    "ConvexPotentialFlow",
    "ConvexRegression",
    "CredibleRegion",
    "Distance",
    "Ensemble",
    "LogConcaveDensity",
    "Normaliser",
    "Principal",
    "Standardiser",
    "TransportMap",
    "Whitener",
]
