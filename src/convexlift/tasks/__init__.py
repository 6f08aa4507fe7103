"""Tasks: losses on potentials, and what the trained model is for."""

from convexlift.integration.line import Normaliser
from convexlift.tasks.density import LogConcaveDensity
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.tasks.regression import ConvexRegression
from convexlift.tasks.standardise import Standardiser

__all__ = ["ConvexPotentialFlow", "ConvexRegression", "LogConcaveDensity", "Normaliser", "Standardiser"]
