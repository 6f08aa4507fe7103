"""Instruments that show what a weight source does during training: pure observers, they change no state.

``ShoulderTrace`` is a callback of ``fit``; any other instrument becomes one as
``lambda event: notes.append(coupling(event.module, event.module.loss, probes))``.
"""

from convexlift.mechanism.coupling import Coupling, CrossCovariance, coupling
from convexlift.mechanism.diffusion import UpdateDiffusion, update_diffusion
from convexlift.mechanism.dwell import Dwell, ShoulderTrace
from convexlift.mechanism.health import LayerHealth, gradient_health
from convexlift.mechanism.landscape import Landscape, Plateau, landscape, plateaus
from convexlift.mechanism.noise import DETERMINISTIC_BELOW, emission_noise, step_amplification
from convexlift.mechanism.shoulder import (
    HISTOGRAM_EDGES,
    SHOULDER_SLOPE,
    Shoulder,
    shoulder,
    weight_histogram,
)

__all__ = [
    "DETERMINISTIC_BELOW",
    "HISTOGRAM_EDGES",
    "SHOULDER_SLOPE",
    "Coupling",
    "CrossCovariance",
    "Dwell",
    "LayerHealth",
    "Landscape",
    "Plateau",
    "Shoulder",
    "ShoulderTrace",
    "UpdateDiffusion",
    "coupling",
    "emission_noise",
    "gradient_health",
    "landscape",
    "plateaus",
    "shoulder",
    "step_amplification",
    "update_diffusion",
    "weight_histogram",
]
