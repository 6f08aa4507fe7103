"""Weight sources: where the non-negative weights of an architecture come from."""

from convexlift.sources.centred import Centred
from convexlift.sources.lift import Lift, is_lifted
from convexlift.sources.projected import Projected
from convexlift.sources.softplus import Softplus
from convexlift.sources.source import WeightSource
from convexlift.sources.squared import Squared

__all__ = ["Centred", "Lift", "Projected", "Softplus", "Squared", "WeightSource", "is_lifted"]
