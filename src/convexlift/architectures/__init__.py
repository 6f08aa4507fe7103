"""Input-convex architectures and the potentials they make."""

from convexlift.architectures.base import Architecture
from convexlift.architectures.conv import ConvICNN
from convexlift.architectures.icnn import ICNN
from convexlift.architectures.picnn import PICNN, ConditionedPotential, PartialPotential
from convexlift.architectures.potential import BoundModule, Calculus, Potential

__all__ = [
    "ICNN",
    "PICNN",
    "Architecture",
    "BoundModule",
    "Calculus",
    "ConditionedPotential",
    "ConvICNN",
    "PartialPotential",
    "Potential",
]
