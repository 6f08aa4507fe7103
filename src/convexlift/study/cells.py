"""Cells: one arm at one rate and seed, trained, frozen and scored; stored when finished and run in parallel.

A cell computes with one thread, whatever else runs, so its result does not depend on how many run at once.
Its file appears whole or not at all, and its name holds a digest of everything the outcome depends on, the
library's own code included: outcomes of an earlier version are never mixed with those of this one.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch

from convexlift.data import describe, place, whole
from convexlift.files import write_json
from convexlift.mechanism import emission_noise, shoulder, step_amplification, weight_histogram
from convexlift.objectives import objective_named
from convexlift.problems import Problem, problem
from convexlift.seeds import one_thread
from convexlift.sources import Lift, is_lifted
from convexlift.study.arms import ARMS, Arm, build, probe_batches, source_factor
from convexlift.study.digest import code_digest
from convexlift.study.protocol import SELECTION_SEED, Budget
from convexlift.study.scoring import is_multivariate, normalised, quick_losses
from convexlift.study.snapshots import picture_of_model
from convexlift.study.tracing import Trace
from convexlift.training.fit import fit
from convexlift.training.optimisation import Group
from convexlift.training.run import FitEvent, TrainingDiverged

Outcome = dict[str, Any]
Subject = tuple[Problem, Mapping[str, Arm]]


EVALUATIONS = 20  # a run is frozen and validated this often
PICTURED_SEED = 0  # the seed whose model is drawn beside the data
MEASURES = ("shoulder", "at_zero", "fan_in_weight", "relative_speed", "step_amplification", "weights")


@dataclass(frozen=True)
class Named:
    """Makes the problem of that name with the library's arms, in whichever process asks.

    `task` None is the problem's own; `objective` is that of densities.
    """

    name: str
    data: str | None = None
    task: str | None = None
    objective: str = "mle"

    def __call__(self) -> Subject:
        named = problem(self.name, self.data)
        chosen = named if self.task is None else named.as_task(self.task)
        return dataclasses.replace(chosen, density_objective=self.objective), ARMS


@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison share: the subject (a function that makes problem and arms), budget and
    device."""

    make: Callable[[], Subject]
    budget: Budget
    device: str = "cpu"


@dataclass(frozen=True)
class Cell:
    """One training run; `scored` ones also follow the test loss along the run, for the score at equal
    seconds."""

    arm: str
    lr: float
    seed: int
    steps: int
    scored: bool = True


@lru_cache(maxsize=1)
def subject(setting: Setting) -> tuple[Problem, Mapping[str, Arm], str]:
    """The problem (with the budget's architecture), its arms, and a digest that tells settings apart."""
    from convexlift import __version__

    chosen, arms = setting.make()
    if setting.budget.architecture:
        chosen = dataclasses.replace(chosen, architecture=dict(setting.budget.architecture))
    told = (
        chosen.name,
        *(describe(split) for split in (chosen.train, chosen.validation, chosen.test)),
        sorted(chosen.architecture.items()),
        chosen.blocks,
        chosen.task,
        chosen.density_objective,
        setting.budget.batch_size,
        setting.budget.clip,
        setting.budget.optimizer,
        setting.budget.traced,
        torch.device(setting.device).type,
        __version__,
        code_digest(),
    )
    return chosen, arms, hashlib.sha256(repr(told).encode()).hexdigest()[:10]


def cell_path(folder: Path, setting: Setting, cell: Cell) -> Path:
    """Where the outcome of a cell is kept."""
    arm = re.sub(r"[^\w.-]+", "_", cell.arm)
    return folder / f"{arm}-lr{cell.lr:.6g}-seed{cell.seed}-steps{cell.steps}-{subject(setting)[2]}.json"


def read_outcome(path: Path) -> Outcome | None:
    """The stored outcome; None where there is none or the file is not readable as one."""
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        outcome if isinstance(outcome, dict) and outcome.get("status") in ("finished", "diverged") else None
    )


def train_cell(setting: Setting, cell: Cell) -> Outcome:
    """Train, freeze and score one cell in this process, with one thread.

    Divergence, and a test loss that is not finite, are outcomes; every other error is raised.
    """
    chosen, arms, _ = subject(setting)
    started = time.perf_counter()
    with one_thread():
        outcome = _train(setting, cell, chosen, arms)
    return {"cell": dataclasses.asdict(cell), **outcome, "seconds": time.perf_counter() - started}


def _train(setting: Setting, cell: Cell, chosen: Problem, arms: Mapping[str, Arm]) -> Outcome:
    budget, device = setting.budget, torch.device(setting.device)
    task = cast(Any, build(chosen, cell.arm, cell.seed, arms).to(device))
    dtype = next(p.dtype for p in task.parameters() if p.is_floating_point())
    rows = cast(Any, place(whole(chosen.train), device, dtype))
    test = cast(Any, place(chosen.test, device, dtype))
    if hasattr(task, "initialise"):
        task.initialise(rows)
    watch = _Watch(chosen, budget, cell, task, rows, test)
    factor = source_factor(chosen, cell.arm, cell.seed, budget.batch_size)
    callbacks: list[Callable[[FitEvent], object]] = [watch]
    trace = None
    if budget.traced and cell.scored:
        trace = Trace(chosen, task, rows, batch_size=budget.batch_size, seed=cell.seed, steps=cell.steps)
        trace.begin(task)
        callbacks.append(trace)
    try:
        history = fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=cell.steps,
            batch_size=budget.batch_size,
            optimizer=_multiplied(budget.optimizer, cell.lr, factor) if factor != 1 else budget.optimizer,
            lr=cell.lr,
            clip=budget.clip,
            evaluate_every=max(1, cell.steps // EVALUATIONS),
            seed=cell.seed,
            progress=False,
            callbacks=callbacks,
        )
    except TrainingDiverged as error:
        return {"status": "diverged", "message": str(error)}
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    frozen = task.freeze(rows) if hasattr(task, "freeze") else copy.deepcopy(task).eval()
    metrics = chosen.metrics(frozen) if chosen.metrics is not None and cell.scored else {}
    if is_multivariate(chosen) and cell.scored:
        metrics |= normalised(frozen)
        metrics |= {} if task.ess is None else {"training_share": task.ess}
    if is_multivariate(chosen) and cell.seed >= SELECTION_SEED:  # annealing is kept for what is reported
        losses = quick_losses(chosen, frozen, test).double().cpu()
    else:
        try:
            losses = chosen.score(frozen, test).double().cpu()
        except FloatingPointError as error:
            return {"status": "diverged", "message": f"the frozen model fails on test rows ({error})"}
    if not bool(losses.isfinite().all()):
        return {
            "status": "diverged",
            "message": f"the loss of {int((~losses.isfinite()).sum())} test rows is not finite",
        }
    offset = _exact_validation_loss(chosen)
    return {
        "status": "finished",
        "validation": cast(float, history.best_validation) - offset,
        "best_step": history.best_step,
        "test": float(losses.mean()),
        "rows": [float(f"{loss:.7g}") for loss in losses.tolist()],
        "metrics": metrics,
        "steps": history.steps,
        "curve": [value - offset for value in history.validation],
        "ms_per_step": history.ms_per_step,
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "source_factor": factor,
        "picture": picture_of_model(chosen, frozen) if cell.scored and cell.seed == PICTURED_SEED else None,
        "trace": trace.seen() if trace is not None else None,
        **watch.seen(float(losses.mean())),
    }


class _Watch:
    """Follows a run at its evaluations: test loss of the model that is best on validation, and the
    mechanism."""

    def __init__(self, chosen: Problem, budget: Budget, cell: Cell, task: Any, rows: Any, test: Any) -> None:
        self.chosen, self.cell, self.task, self.rows, self.test = chosen, cell, task, rows, test
        self.instrumented = hasattr(task, "block_inputs") and cell.scored
        self.best, self.scores = math.inf, list[float]()
        self.noise: list[tuple[float, float]] = []
        self.batches: list[Any] = []
        self.start: dict[str, Any] = {}
        self.middle: dict[str, Any] = {}
        if self.instrumented:
            first = rows[0] if isinstance(rows, tuple) else rows
            probes = probe_batches(chosen, budget.batch_size, cell.seed)
            self.batches = [place(batch, first.device, first.dtype) for batch in probes]
            self.start = self._weights()
            self._note_noise(0.0)

    def __call__(self, event: FitEvent) -> None:
        if not self.cell.scored:
            return
        validation = math.inf if event.validation is None else event.validation
        if validation < self.best or not self.scores:
            self.best = min(self.best, validation)
            self.scores.append(float(self._losses(event.frozen).double().mean()))
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

    def _losses(self, frozen: Any) -> torch.Tensor:
        if is_multivariate(self.chosen):
            return quick_losses(self.chosen, frozen, self.test)
        return self.chosen.score(frozen, self.test)

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
            "relative_speed": _finite(stand.relative_speed),
            "step_amplification": step_amplification(self.task, self.batches) if lifted else None,
            "weights": [float(f"{share:.4g}") for share in weight_histogram(self.task, self.rows)],
        }


class Workers:
    """Runs cells, with one job in this process, else in `jobs` new ones that live until `close`.

    Use it as a context manager; leaving it ends the cells in progress at once.

    Args:
        setting: what the cells share.
        folder: where outcomes are stored.
        jobs: cells at a time.
        resume: take the outcomes that are stored already, or run those cells again too.
    """

    def __init__(self, setting: Setting, folder: Path, *, jobs: int, resume: bool = True) -> None:
        self.setting, self.folder, self.jobs, self.resume = setting, folder, jobs, resume
        self._pool: ProcessPoolExecutor | None = None
        self._ends: tuple[Connection, ...] = ()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Yield every cell with its outcome as it becomes known, stored ones first.

        A cell that raises an error has the outcome {"status": "failed", "message": ...}, which is not stored,
        so that a later call runs it again.

        Raises:
            RuntimeError: a worker process died.
        """
        waiting: dict[Cell, Path] = {}
        for cell in dict.fromkeys(cells):
            path = cell_path(self.folder, self.setting, cell)
            outcome = read_outcome(path) if self.resume else None
            if outcome is None:
                waiting[cell] = path
            else:
                yield cell, outcome
        if self.jobs == 1:
            for cell, path in waiting.items():
                yield cell, _run_and_store(self.setting, cell, path)
        elif waiting:
            yield from self._run_in_processes(waiting)

    def close(self) -> None:
        """End the worker processes, in the middle of a cell if need be."""
        for end in self._ends:
            end.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._ends = None, ()

    def _run_in_processes(self, cells: Mapping[Cell, Path]) -> Iterator[tuple[Cell, Outcome]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._ends = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.jobs, mp_context=context, initializer=_begin_worker, initargs=(self._ends[0],)
            )
        try:
            futures = {
                self._pool.submit(_run_and_store, self.setting, cell, path): cell
                for cell, path in cells.items()
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died (out of memory, or killed); in a script call compare under "
                "`if __name__ == '__main__':`, or pass jobs=1"
            ) from error


def _begin_worker(lifeline: Connection) -> None:
    """Ctrl-C is the parent's affair; a worker leaves when the parent closes its end of the lifeline or is
    gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def leave() -> None:
        wait([lifeline])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _run_and_store(setting: Setting, cell: Cell, path: Path) -> Outcome:
    try:
        outcome = train_cell(setting, cell)
    except Exception as error:  # any bug in an arm or a user's own code: reported, not fatal
        return {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    write_json(path, outcome)
    return outcome


def _multiplied(name: str, lr: float, factor: float) -> Callable[[list[Group]], torch.optim.Optimizer]:
    """The optimiser of that name with the rate of the "source" group multiplied by a factor."""

    def make(groups: list[Group]) -> torch.optim.Optimizer:
        rates = [{**group, "lr": lr * (factor if group["name"] == "source" else 1.0)} for group in groups]
        return torch.optim.SGD(rates, momentum=0.9) if name == "sgd" else torch.optim.Adam(rates)

    return make


def _exact_validation_loss(chosen: Problem) -> float:
    """The mean loss of the exact density on the validation split, where it is known: curves then show the
    excess."""
    if chosen.log_prob is None or chosen.losses is not None or not _validates_by_likelihood(chosen):
        return 0.0
    return -float(chosen.log_prob(cast(torch.Tensor, chosen.validation)).double().mean())


def _validates_by_likelihood(chosen: Problem) -> bool:
    """Whether validation losses are those of the metric; some objectives of densities are not."""
    return chosen.task != "density" or objective_named(chosen.density_objective, chosen.dim).likelihood


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
