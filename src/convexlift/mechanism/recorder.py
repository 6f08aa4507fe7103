"""A callback of ``fit`` that notes what the instruments show at every evaluation: plain numbers by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.data import Batches, Data, Rows, place_for, whole
from convexlift.mechanism.coupling import coupling
from convexlift.mechanism.health import gradient_health
from convexlift.mechanism.noise import emission_noise, step_amplification
from convexlift.mechanism.observing import Loss, emissions, observing, weight_sources
from convexlift.mechanism.shoulder import SHOULDER_SLOPE, speed
from convexlift.seeds import seed_of
from convexlift.sources import is_lifted
from convexlift.tasks.task import evaluating
from convexlift.training.history import FitEvent

_COUPLING_PERMUTATIONS = 199


@final
@dataclass(frozen=True, eq=False)
class Probes:
    """What an instrument of a ``Recorder`` looks at a model with; on the model's device, in its dtype.

    Attributes:
        rows: the training rows, from which a lift emits until it has settled.
        batches: probe batches, the same at every record.
        emit_from: as many batches to emit from instead, for a lift with ``coupling="independent"``, or None.
        loss: a scalar function of a batch.

    Example:
        >>> x = torch.randn(64, 2)
        >>> probes = Probes(rows=x, batches=[x[:32], x[32:]], emit_from=None, loss=lambda batch: batch.mean())
        >>> len(probes.batches)
        2
    """

    rows: Rows
    batches: Sequence[Rows]
    emit_from: Sequence[Rows] | None
    loss: Loss


Instrument = Callable[[nn.Module, Probes], Mapping[str, Any]]
"""Returns figures by name, each a number or a tensor of one."""


@guarded
def emission_notes(model: nn.Module, probes: Probes) -> dict[str, float]:
    """``emission_noise`` and ``step_amplification`` over the batches; nothing without a lift.

    Example:
        >>> import convexlift as cl
        >>> lift, x = cl.Lift(cl.ICNN(2, hidden=(8, 8), seed=0), seed=0), torch.randn(640, 2)
        >>> probes = Probes(x, x.split(64), None, lambda batch: lift(batch).mean())
        >>> list(emission_notes(lift, probes)), emission_notes(cl.Softplus(cl.ICNN(2)), probes)
        (['emission_noise', 'step_amplification'], {})
    """
    if not is_lifted(model):
        return {}
    return {
        "emission_noise": emission_noise(model, probes.batches),
        "step_amplification": step_amplification(model, probes.batches),
    }


@guarded
@torch.no_grad()
def shoulder_notes(model: nn.Module, probes: Probes) -> dict[str, float]:
    """Where the weights of each layer stand on psi: the figures of ``Shoulder`` by "block.name/figure".

    "shoulder" is left out for projection, which has none: see "at_zero".

    Example:
        >>> import convexlift as cl
        >>> source, x = cl.Projected(cl.ICNN(2, hidden=(8,), seed=0)), torch.randn(64, 2)
        >>> list(shoulder_notes(source, Probes(x, [], None, lambda batch: source(batch).mean())))
        ['0.outer/at_zero', '0.outer/fan_in_weight', '0.outer/relative_speed']
    """
    found: dict[str, float] = {}
    with evaluating(model):
        for k, (source, emitted) in enumerate(emissions(model, probes.rows)):
            for name, weight in emitted.items():
                slope, relative = speed(source, name, weight)
                if source.psi is not None:
                    found[f"{k}.{name}/shoulder"] = float((slope <= SHOULDER_SLOPE).double().mean())
                found[f"{k}.{name}/at_zero"] = float((weight == 0).double().mean())
                found[f"{k}.{name}/fan_in_weight"] = float(weight.median()) * weight.shape[-1]
                found[f"{k}.{name}/relative_speed"] = float(relative.median())
    return found


@guarded
def gradient_notes(model: nn.Module, probes: Probes) -> dict[str, float]:
    """``gradient_health`` of each layer at the first batch: "block.name/gradient" and so on.

    Example:
        >>> import convexlift as cl
        >>> source, x = cl.Softplus(cl.ICNN(2, hidden=(8,), seed=0)), torch.randn(64, 2)
        >>> list(gradient_notes(source, Probes(x, [x], None, lambda batch: source(batch).mean())))
        ['0.outer/gradient', '0.outer/attenuation', '0.outer/correlation']
    """
    return {
        f"{layer}/{figure}": value
        for layer, health in gradient_health(model, probes.loss, probes.batches[0]).items()
        for figure, value in vars(health).items()
        if value is not None
    }


@guarded
def coupling_notes(model: nn.Module, probes: Probes) -> dict[str, float]:
    """Sigma_batch and Sigma_curv of ``coupling`` over the batches; nothing without a lift.

    The p-value is that of 199 permutations, so 0.005 at the least. It costs one evaluation and two gradients
    of the loss for every batch.

    Example:
        >>> import convexlift as cl
        >>> lift, x = cl.Lift(cl.ICNN(2, hidden=(8, 8), seed=0), seed=0), torch.randn(640, 2)
        >>> probes = Probes(x, x.split(64), None, lambda batch: lift(batch).mean())
        >>> list(coupling_notes(lift, probes))
        ['coupling/trace', 'coupling/trace_error', 'coupling/p_value', 'coupling/curvature']
    """
    if not is_lifted(model):
        return {}
    found = coupling(
        model, probes.loss, probes.batches, emit_from=probes.emit_from, permutations=_COUPLING_PERMUTATIONS
    )
    return {
        "coupling/trace": found.batch.trace,
        "coupling/trace_error": found.batch.trace_error,
        "coupling/p_value": found.batch.p_value,
        "coupling/curvature": found.curvature.trace,
    }


INSTRUMENTS: tuple[Instrument, ...] = (emission_notes, shoulder_notes, gradient_notes)
"""What a ``Recorder`` notes when it is not told otherwise: all but ``coupling_notes``, which costs most."""


@guarded
def probe_batches(
    data: Data, batch_size: int = 256, count: int = 16, seed: int = 0, stream: str = "probe"
) -> list[Rows]:
    """Batches of the training data to look at a model with, each drawn for itself.

    Use the batch size of the run: the noise of a lift's weights falls as 1 / sqrt(batch size). Data smaller
    than a batch come whole, as in ``fit``.

    Args:
        data: what ``fit`` trains on.
        batch_size: rows of a batch.
        count: number of batches.
        seed: of the draws.
        stream: the name of the draws, another one for batches to emit from.

    Example:
        >>> [len(batch) for batch in probe_batches(torch.randn(100, 2), batch_size=32, count=3)]
        [32, 32, 32]
    """
    return [Batches(data, batch_size, seed_of(seed, stream, k)).at(0).data for k in range(count)]


@final
class Recorder:
    """Notes what the instruments show at every evaluation of a run; a callback of ``fit``.

    A pure observer: the run has the same bits with and without it. What does not exist for a model (the
    emission noise of softplus, the Perron ratio of a vector) is left out, and so is, at its step, what is not
    finite. Call ``record(0, model)`` before ``fit`` to begin at the start; use one recorder for each run.

    Args:
        rows: the training data, from which a lift emits until it has settled.
        batches: probe batches, each of its own memory; ``probe_batches(rows)`` by default.
        loss: a scalar function of a batch that evaluates the model; its ``loss`` by default.
        emit_from: as many batches to emit from, for the coupling of a lift with ``coupling="independent"``.
        instruments: functions of a model and ``Probes`` that return figures by name: ``INSTRUMENTS``, or
            ``(*INSTRUMENTS, coupling_notes)``, or your own.

    Attributes:
        notes: by name of a figure its ``(step, value)`` in order; "block.name/figure" where it is a layer's.
        steps: the step of each record.

    Raises:
        ValueError: no batch; the model holds no weight source or has no loss; a step is not after the one
            before.
        TypeError: the model is neither a weight source nor a task.

    Example:
        >>> import convexlift as cl
        >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
        >>> flow = cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(8, 8), seed=0), seed=0)])
        >>> recorder = Recorder(x, probe_batches(x, batch_size=64))
        >>> history = cl.fit(flow, x, steps=4, batch_size=64, evaluate_every=2, progress=False,
        ...                  callbacks=[recorder])
        >>> [step for step, noise in recorder.notes["emission_noise"] if noise > 0]
        [2]
        >>> sorted(recorder.notes)[:3]
        ['0.inner.0/at_zero', '0.inner.0/attenuation', '0.inner.0/correlation']
    """

    def __init__(
        self,
        rows: Data,
        batches: Iterable[Rows] | None = None,
        *,
        loss: Loss | None = None,
        emit_from: Iterable[Rows] | None = None,
        instruments: Sequence[Instrument] = INSTRUMENTS,
    ) -> None:
        self.rows = whole(rows)
        self.batches = probe_batches(rows) if batches is None else list(batches)
        if not self.batches:
            raise ValueError("Recorder needs at least one probe batch")
        self.emit_from = None if emit_from is None else list(emit_from)
        self.loss = loss
        self.instruments = tuple(instruments)
        self.notes: dict[str, list[tuple[int, float]]] = {}
        self.steps: list[int] = []

    def __call__(self, event: FitEvent) -> None:
        """Note an evaluation; once, should two callbacks ask for it."""
        if event.step not in self.steps[-1:]:
            self.record(event.step, event.module)

    def record(self, step: int, model: nn.Module) -> None:
        """Note what the instruments show of a model after so many steps."""
        if self.steps and step <= self.steps[-1]:
            raise ValueError(
                f"records must go forward; got step {step} after step {self.steps[-1]}: "
                "use one Recorder for each run"
            )
        weight_sources(model, "Recorder")
        probes = self._probes(model)
        found: dict[str, Any] = {}
        with observing(model):
            for instrument in self.instruments:
                found.update(instrument(model, probes))
        self.steps.append(step)
        for name, given in found.items():
            value = float(given.detach() if isinstance(given, Tensor) else given)
            if math.isfinite(value):
                self.notes.setdefault(name, []).append((step, value))

    def _probes(self, model: nn.Module) -> Probes:
        loss: Any = getattr(model, "loss", None) if self.loss is None else self.loss
        if not callable(loss):
            raise ValueError(f"{type(model).__name__} has no loss of its own: pass loss=")

        def placed(rows: Rows) -> Rows:
            return place_for(model, rows)  # type: ignore[return-value]  # rows stay rows

        return Probes(
            rows=placed(self.rows),
            batches=[placed(batch) for batch in self.batches],
            emit_from=None if self.emit_from is None else [placed(batch) for batch in self.emit_from],
            loss=loss,
        )
