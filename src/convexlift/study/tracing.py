"""What a traced run notes along training: the coupling of weights and gradient, and stays on the shoulder."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from convexlift.data import place_for
from convexlift.mechanism import ShoulderTrace, coupling, probe_batches, restricted_mean
from convexlift.mechanism.observing import emissions
from convexlift.problems import Problem
from convexlift.sources import is_lifted
from convexlift.study.statistics import finite_or_none
from convexlift.tasks.task import evaluating
from convexlift.training.history import FitEvent

COUPLED_AT = (0.0, 0.3, 0.6)
"""Fractions of training at which the coupling is measured: all before a lift settles at its default."""

PROBES = 16
PERMUTATIONS = 199


@final
class Trace:
    """Observes a run and changes nothing: call `begin` before `fit`, and give it to `fit` as a callback.

    Args:
        problem: where the probe batches come from: drawn anew, each by a seed of its own.
        model: the initialised task.
        rows: the training rows, from which an unsettled lift's frozen weights are emitted.
        batch_size: of the probes.
        seed: of the run.
        steps: of the run.
    """

    def __init__(
        self, problem: Problem, model: Any, rows: Any, *, batch_size: int, seed: int, steps: int
    ) -> None:
        self.steps = steps
        self.shoulder = ShoulderTrace(rows)
        self.rows = rows
        self.weights = 0
        self.couplings: list[dict[str, Any]] = []
        self._due = list(COUPLED_AT)

        def drawn(stream: str) -> list[Any]:
            batches = probe_batches(problem.train, batch_size, PROBES, seed, stream)
            return [place_for(model, batch) for batch in batches]

        self.probes = drawn("probe")
        independent = any(getattr(part, "coupling", None) == "independent" for part in model.modules())
        self.emitting = drawn("probe emitting") if independent else None

    def begin(self, model: Any) -> None:
        """Note the start."""
        with evaluating(model), torch.no_grad():
            self.weights = sum(w.numel() for _, ws in emissions(model, self.rows) for w in ws.values())
        self._note(0, model)

    def __call__(self, event: FitEvent) -> None:
        """Note an evaluation."""
        self._note(event.step, event.module)

    def seen(self) -> dict[str, Any]:
        """The couplings, and the dwell: the mean stay on the shoulder until the end of the run, in shares of
        the run; its Kaplan-Meier median (None: more than half of the stays do not end); the share of weights
        there, averaged over the run. None for the two of stays where no weight was ever there."""
        stays = self.shoulder.dwell()
        entries, exits = (
            np.sum(list(by_layer.values()), 0) for by_layer in (self.shoulder.entries, self.shoulder.exits)
        )
        there = np.cumsum(entries - exits)
        return {
            "coupling": self.couplings,
            "dwell": restricted_mean(stays, self.steps) / self.steps if len(stays.times) else None,
            "median_dwell": finite_or_none(stays.median / self.steps),
            "occupancy": float(there.mean()) / self.weights,
            "entries": int(entries.sum()),
            "exits": int(exits.sum()),
        }

    def _note(self, step: int, model: Any) -> None:
        self.shoulder.record(step, model)
        if self._due and step >= self._due[0] * self.steps:
            while self._due and step >= self._due[0] * self.steps:
                self._due.pop(0)
            self.couplings.append({"t": step / self.steps, **self._coupling(model)})

    def _coupling(self, model: Any) -> dict[str, float]:
        """Sigma_batch and Sigma_curv; exactly zero where no source reads a batch."""
        if not is_lifted(model):
            return {"trace": 0.0, "trace_error": 0.0, "norm": 0.0, "p_value": 1.0, "curvature": 0.0}
        found = coupling(model, model.loss, self.probes, emit_from=self.emitting, permutations=PERMUTATIONS)
        return {
            "trace": found.batch.trace,
            "trace_error": found.batch.trace_error,
            "norm": found.batch.norm,
            "p_value": found.batch.p_value,
            "curvature": found.curvature.trace,
        }
