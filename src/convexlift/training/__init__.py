"""Training of any module with a scalar loss."""

from convexlift.data import Simulator, Unpaired
from convexlift.training.environment import environment
from convexlift.training.fit import fit
from convexlift.training.history import History
from convexlift.training.run import FitEvent, TrainingDiverged
from convexlift.training.run_folder import RunFolder

__all__ = [
    "FitEvent",
    "History",
    "RunFolder",
    "Simulator",
    "TrainingDiverged",
    "Unpaired",
    "environment",
    "fit",
]
