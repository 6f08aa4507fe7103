"""What a cell does: train one arm, freeze it and score it; and what is watched along the run."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, cast, final

import torch

from convexlift.ambient import guarded
from convexlift.data import place_for, whole
from convexlift.mechanism import emission_noise, shoulder, step_amplification, weight_histogram
from convexlift.names import SCREENS
from convexlift.objectives import objective_named
from convexlift.problems import Problem
from convexlift.seeds import one_thread, reseed
from convexlift.sources import Lift, is_lifted
from convexlift.study.arms import Arm, build, first_batches, source_factor
from convexlift.study.cells import Cell, Outcome, Setting, subject
from convexlift.study.scoring import is_multivariate, quick_losses
from convexlift.study.snapshots import picture_of_model
from convexlift.study.statistics import finite_or_none
from convexlift.study.tracing import Trace
from convexlift.tasks.density import normalised
from convexlift.training.fit import fit
from convexlift.training.history import FitEvent, TrainingDiverged

EVALUATIONS = 20  # a run is frozen and validated this often
MEASURES = ("shoulder", "at_zero", "fan_in_weight", "relative_speed", "step_amplification", "weights")


@guarded(training=True)
def train_cell(setting: Setting, cell: Cell) -> Outcome:
    """Train, freeze and score one cell in this process, with one thread.

    Divergence, and a test loss that is not finite, are outcomes; every other error is raised.
    """
    chosen, arms, _ = subject(setting)
    started, device = time.perf_counter(), torch.device(setting.device)
    with one_thread(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        reseed(device, cell.seed, "initialise")  # as `fit` does
        outcome = _train(setting, cell, chosen, arms)
    return {"cell": dataclasses.asdict(cell), **outcome, "seconds": time.perf_counter() - started}


def _train(setting: Setting, cell: Cell, chosen: Problem, arms: Mapping[str, Arm]) -> Outcome:
    budget, device = setting.budget, torch.device(setting.device)
    task = cast(Any, build(chosen, cell.arm, cell.seed, arms).to(device))
    rows = cast(Any, place_for(task, whole(chosen.train)))
    test = cast(Any, place_for(task, chosen.test))
    if hasattr(task, "initialise"):
        task.initialise(rows)
    watch = _Watch(chosen, budget.batch_size, cell, task, rows, test)
    factor = source_factor(chosen, cell.arm, cell.seed, budget.batch_size)
    trace = None
    if budget.traced and cell.scored:
        trace = Trace(chosen, task, rows, batch_size=budget.batch_size, seed=cell.seed, steps=cell.steps)
        trace.begin(task)
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=cell.steps,
            batch_size=budget.batch_size,
            optimizer=budget.optimizer,
            lr=cell.lr,
            rates=None if factor == 1 else {"source": factor},
            clip=budget.clip,
            patience=None,  # equal steps
            evaluate_every=max(1, cell.steps // EVALUATIONS),
            seed=cell.seed,
            progress=False,
            allow=SCREENS,  # every arm trains on what the problem is
            callbacks=[watch] if trace is None else [watch, trace],
        )
    except TrainingDiverged as error:
        return _diverged(str(error))
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    frozen = task.freeze(rows) if hasattr(task, "freeze") else copy.deepcopy(task).eval()
    metrics = chosen.metrics(frozen) if chosen.metrics is not None and cell.scored else {}
    if is_multivariate(chosen) and cell.scored:
        metrics |= normalised(frozen)
        metrics |= {} if task.effective_share is None else {"training_share": task.effective_share}
    score = quick_losses if cell.selects else Problem.evaluate  # annealing is kept for what is reported
    try:
        losses = score(chosen, frozen, test).double().cpu()
    except FloatingPointError as error:
        return _diverged(f"the frozen model fails on test rows ({error})")
    if not bool(losses.isfinite().all()):
        return _diverged(f"the loss of {int((~losses.isfinite()).sum())} test rows is not finite")
    offset, unit = _exact_validation_loss(chosen), getattr(task, "loss_unit", 1.0)
    pictured = cell.scored and cell.seed == budget.first_seed
    return {
        "status": "finished",
        "validation": unit * cast(float, history.best_validation) - offset,
        "best_step": history.best_step,
        "test": float(losses.mean()),
        "rows": [float(f"{loss:.7g}") for loss in losses.tolist()],
        "metrics": metrics,
        "steps": history.steps,
        "curve": [unit * value - offset for value in history.validation],
        "ms_per_step": history.ms_per_step,
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "source_factor": factor,
        "picture": picture_of_model(chosen, frozen) if pictured else None,
        "trace": trace.seen() if trace is not None else None,
        **watch.seen(float(losses.mean())),
    }


def _diverged(message: str) -> Outcome:
    return {"status": "diverged", "message": message}


@final
class _Watch:
    """Follows a run at its evaluations: test loss of the model that is best on validation, and the
    mechanism."""

    def __init__(self, chosen: Problem, batch_size: int, cell: Cell, task: Any, rows: Any, test: Any) -> None:
        self.chosen, self.cell, self.task, self.rows, self.test = chosen, cell, task, rows, test
        self.instrumented = hasattr(task, "block_inputs") and cell.scored
        self.best, self.scores = math.inf, list[float]()
        self.noise: list[tuple[float, float]] = []
        self.batches: list[Any] = []
        self.start: dict[str, Any] = {}
        self.middle: dict[str, Any] = {}
        if self.instrumented:
            seen = first_batches(chosen, batch_size, cell.seed)
            self.batches = [place_for(task, batch) for batch in seen]
            self.start = self._weights()
            self._note_noise(0.0)

    def __call__(self, event: FitEvent) -> None:
        if not self.cell.scored:
            return
        validation = math.inf if event.validation is None else event.validation
        if validation < self.best or not self.scores:
            self.best = min(self.best, validation)
            losses = quick_losses(self.chosen, event.frozen, self.test)
            self.scores.append(float(losses.double().mean()))
        else:
            self.scores.append(self.scores[-1])
        if self.instrumented and event.step >= self.cell.steps / 2:
            self.middle = self.middle or self._weights()
            self._note_noise(event.step / self.cell.steps)

    def seen(self, test: float) -> Outcome:
        """What was noted, in the form in which outcomes keep it; `test` is the loss of the final model."""
        if self.scores:  # the final model is the one that was best: its loss is known better now
            last = self.scores[-1]
            self.scores = [test if score == last else score for score in self.scores]
        noise = [value for _, value in self.noise]
        middle = next((value for t, value in self.noise if t >= 0.5), None)
        found: Outcome = {
            "test_curve": self.scores,
            "emission_noise": {"start": noise[0], "middle": middle, "end": noise[-1]} if noise else None,
        }
        end = self._weights() if self.instrumented else {}
        stands = {"start": self.start, "middle": self.middle, "end": end}
        for key in MEASURES:
            known = {at: stand.get(key) for at, stand in stands.items()}
            found[key] = known if known["end"] is not None else None
        return found

    def _note_noise(self, t: float) -> None:
        """Note the emission noise while a lift still reads the batch; after settling it is zero by
        construction."""
        lifts = [part for part in self.task.modules() if isinstance(part, Lift)]
        if any(not bool(lift.settled) for lift in lifts):
            self.noise.append((t, emission_noise(self.task, self.batches)))

    def _weights(self) -> dict[str, Any]:
        stand = shoulder(self.task, self.rows)
        lifted = is_lifted(self.task)
        return {
            "shoulder": stand.share,
            "at_zero": stand.at_zero,
            "fan_in_weight": stand.fan_in_weight,
            "relative_speed": finite_or_none(stand.relative_speed),
            "step_amplification": step_amplification(self.task, self.batches) if lifted else None,
            "weights": [float(f"{share:.4g}") for share in weight_histogram(self.task, self.rows)],
        }


def _exact_validation_loss(chosen: Problem) -> float:
    """The mean loss of the exact density on the validation split, where it is known and validation is by
    likelihood, as some objectives' is not: curves then show the excess."""
    likely = not chosen.kind.objectives or objective_named(chosen.density_objective, chosen.dim).likelihood
    if chosen.log_prob is None or chosen.losses is not None or not likely:
        return 0.0
    return -float(chosen.log_prob(cast(torch.Tensor, chosen.validation)).double().mean())
