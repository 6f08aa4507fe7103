"""convexlift: train input-convex neural networks and put them to work."""

from convexlift.architectures import ICNN, Potential
from convexlift.sources import Lift, Projected, Softplus, Squared

__version__ = "0.1.0"

__all__ = ["ICNN", "Lift", "Potential", "Projected", "Softplus", "Squared"]
