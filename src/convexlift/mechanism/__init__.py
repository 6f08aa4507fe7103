"""Instruments that show what a weight source does during training: pure observers, they change no state.

``Recorder`` is a callback of ``fit`` that notes most of them at every evaluation; ``ShoulderTrace`` is one
too. Any other becomes one as ``lambda event: notes.append(update_diffusion(event.module, ...))``.
"""

from convexlift.mechanism.coupling import Coupling, CrossCovariance, coupling
from convexlift.mechanism.diffusion import UpdateDiffusion, update_diffusion
from convexlift.mechanism.dwell import Dwell, ShoulderTrace, restricted_mean
from convexlift.mechanism.health import LayerHealth, gradient_health
from convexlift.mechanism.landscape import Landscape, Plateau, landscape, plateaus
from convexlift.mechanism.noise import DETERMINISTIC_BELOW, emission_noise, step_amplification
from convexlift.mechanism.recorder import (
    INSTRUMENTS,
    Probes,
    Recorder,
    coupling_notes,
    emission_notes,
    gradient_notes,
    probe_batches,
    shoulder_notes,
)
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
    "INSTRUMENTS",
    "SHOULDER_SLOPE",
    "Coupling",
    "CrossCovariance",
    "Dwell",
    "LayerHealth",
    "Landscape",
    "Plateau",
    "Probes",
    "Recorder",
    "Shoulder",
    "ShoulderTrace",
    "UpdateDiffusion",
    "coupling",
    "coupling_notes",
    "emission_noise",
    "emission_notes",
    "gradient_health",
    "gradient_notes",
    "landscape",
    "plateaus",
    "probe_batches",
    "restricted_mean",
    "shoulder",
    "shoulder_notes",
    "step_amplification",
    "update_diffusion",
    "weight_histogram",
]
