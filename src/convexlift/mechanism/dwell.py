"""How long weights stay on the shoulder: entries, exits, and dwell times with those cut off by the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from convexlift.mechanism.observing import emissions
from convexlift.mechanism.shoulder import SHOULDER_SLOPE, speed
from convexlift.tasks.task import evaluating
from convexlift.training.run import FitEvent


@final
@dataclass(frozen=True, eq=False)
class Dwell:
    """Stays on the shoulder, from entry to exit, in optimiser steps.

    Attributes:
        times: (n,) lengths of the stays; of a censored one, its length until the last record.
        censored: (n,) whether the stay had not ended at the last record.

    Example:
        >>> stays = Dwell(np.array([10, 20, 30]), np.array([False, True, False]))
        >>> stays.survival()[1].round(3).tolist(), stays.median
        ([0.667, 0.667, 0.0], 30.0)
    """

    times: np.ndarray
    censored: np.ndarray

    def survival(self) -> tuple[np.ndarray, np.ndarray]:
        """The Kaplan-Meier estimate S(t) of the share of stays longer than t, at each observed time.

        Source: Kaplan and Meier, "Nonparametric estimation from incomplete observations", JASA 1958.

        Returns:
            Increasing times, and S there; both empty without a stay.
        """
        if not len(self.times):
            return np.empty(0), np.empty(0)
        from scipy.stats import CensoredData, ecdf  # slow to import, and seldom needed

        found = ecdf(CensoredData.right_censored(self.times, self.censored)).sf
        return found.quantiles, found.probabilities

    @property
    def median(self) -> float:
        """The first time at which S(t) <= 1/2; infinite where it stays above, nan without a stay."""
        if not len(self.times):
            return math.nan
        times, share = self.survival()
        below = times[share <= 0.5]
        return float(below[0]) if len(below) else math.inf


@final
class ShoulderTrace:
    """Follows which constrained weights enter and leave the shoulder; a callback of ``fit``.

    A weight is on the shoulder where psi' <= 0.05; under projection, whose slope is one, where it is exactly
    zero. Stays are seen at the records, so a dwell time is known up to their distance. A weight that is there
    at the first record counts as entering then: call ``record(0, model)`` before ``fit`` to begin at the
    start.

    Args:
        rows: what a lift emits from until it has settled, such as the training data; the same at every
            record.

    Attributes:
        steps: the step of each record.
        entries: by layer ("block.name"), how many weights entered between the record before and each record.
        exits: the same of those that left.

    Raises:
        ValueError: the model holds no weight source, or a step is not after the one before; from ``dwell``,
            an unknown layer.

    Example:
        >>> import convexlift as cl
        >>> source, trace = cl.Softplus(cl.ICNN(2, hidden=(64, 64), init="fan_in", seed=0)), ShoulderTrace()
        >>> trace.record(0, source)
        >>> for latent in source.latents:
        ...     _ = latent.detach().fill_(1.0)
        >>> trace.record(10, source)
        >>> trace.entries["0.outer"] == trace.exits["0.outer"][::-1], trace.dwell("0.outer").median
        (True, 10.0)
    """

    def __init__(self, rows: Any = None) -> None:
        self.rows = rows
        self.steps: list[int] = []
        self.entries: dict[str, list[int]] = {}
        self.exits: dict[str, list[int]] = {}
        self._since: dict[str, Tensor] = {}  # the step at which each weight entered, -1 off the shoulder
        self._ended: dict[str, list[Tensor]] = {}  # lengths of the stays that have ended

    def __call__(self, event: FitEvent) -> None:
        """Record the module of an evaluation."""
        self.record(event.step, event.module)

    @torch.no_grad()
    def record(self, step: int, model: nn.Module) -> None:
        """Note where the weights of a model stand after so many steps."""
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"records must go forward; got step {step} after step {self.steps[-1]}")
        with evaluating(model):
            found = {
                f"{k}.{name}": _on_shoulder_of(speed(source, name, weight)[0], weight, source.psi is None)
                for k, (source, emitted) in enumerate(emissions(model, self.rows))
                for name, weight in emitted.items()
            }
        if not found:
            raise ValueError("ShoulderTrace needs a model with a weight source")
        self.steps.append(step)
        for layer, now in found.items():
            since = self._since.setdefault(layer, torch.full_like(now, -1, dtype=torch.int64))
            entered, left = now & (since < 0), ~now & (since >= 0)
            self.entries.setdefault(layer, []).append(int(entered.sum()))
            self.exits.setdefault(layer, []).append(int(left.sum()))
            self._ended.setdefault(layer, []).append((step - since[left]).cpu())
            since[left], since[entered] = -1, step

    def dwell(self, layer: str | None = None) -> Dwell:
        """The stays of one layer, or of all."""
        if layer is not None and layer not in self._since:
            raise ValueError(f"unknown layer {layer!r}; known: {', '.join(self._since) or 'none yet'}")
        layers = list(self._since) if layer is None else [layer]
        ended = [times for name in layers for times in self._ended[name]]
        going = [self.steps[-1] - since[since >= 0].cpu() for since in (self._since[name] for name in layers)]
        done, cut = (torch.cat(parts) if parts else torch.empty(0) for parts in (ended, going))
        return Dwell(torch.cat([done, cut]).numpy(), np.arange(len(done) + len(cut)) >= len(done))


def restricted_mean(stays: Dwell, horizon: float) -> float:
    """The mean of min(stay, horizon): the area under the Kaplan-Meier estimate up to there.

        integral_0^horizon S(t) dt

    Unlike the median it is finite with any censoring. nan without a stay.

    Raises:
        ValueError: a horizon that is not positive.

    Source: Irwin, "The standard error of an estimate of expectation of life", Journal of Hygiene 1949.

    Example:
        >>> stays = Dwell(np.array([10, 20, 40]), np.array([False, False, True]))
        >>> round(restricted_mean(stays, 40), 3)
        23.333
    """
    if horizon <= 0:
        raise ValueError(f"horizon must be positive; got {horizon:g}")
    if not len(stays.times):
        return math.nan
    times, share = stays.survival()
    edges = np.minimum(np.concatenate([[0.0], times, [horizon]]), horizon)
    return float((np.diff(edges) * np.concatenate([[1.0], share])).sum())


def _on_shoulder_of(slope: Tensor, weight: Tensor, projected: bool) -> Tensor:
    return (weight == 0 if projected else slope <= SHOULDER_SLOPE).flatten()
