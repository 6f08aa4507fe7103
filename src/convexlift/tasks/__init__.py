"""Tasks: losses on potentials, and what the trained model is for."""

from convexlift.integration.line import Normaliser
from convexlift.tasks.conditional import ConditionalDensity, ConditionalNormaliser
from convexlift.tasks.density import LogConcaveDensity
from convexlift.tasks.ensemble import Ensemble
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.tasks.region import CredibleRegion
from convexlift.tasks.regression import ConvexRegression
from convexlift.tasks.standardise import Principal, Standardiser, Whitener

__all__ = [
    "ConditionalDensity",
    "ConditionalNormaliser",
    "ConvexPotentialFlow",
    "ConvexRegression",
    "CredibleRegion",
    "Ensemble",
    "LogConcaveDensity",
    "Normaliser",
    "Principal",
    "Standardiser",
    "Whitener",
]
