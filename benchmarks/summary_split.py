"""What in a lift's summary acts: its constant part, or its fluctuation from batch to batch.

    python benchmarks/summary_split.py --out results/summary_split.json

Three parts, on five, four and two problems:

- prediction: at one rate the lift follows softplus whose latents' rate is multiplied. With s_bar the mean
  summary and c the readout's scale, the factor for a dense readout is 1 + c |s_bar|_1 with Adam and
  1 + c^2 |s_bar|^2 with SGD; for a factored readout it is the median over latents of
  1 + sum_p |d theta / d p|^q, q = 1 or 2, over the readout's parameters p. With "body held" phi keeps its
  random start, so that b and R alone learn. The sum is what an Adam step reaches where all its signs agree,
  which factors share between latents seldom do; so for the factored readout the factor of the first step,
  median |change of theta| / rate, is tried too. The gap is the RMS distance of two validation curves,
  relative to softplus's own distance from the lift: 0 where the factor explains all, 1 where nothing.
- fluctuation: a centred summary leaves the fluctuation only; two sizes of it, two batch sizes, coupled and
  independent.
- settings: standardisation x readout scale x kind of readout.

The last two at each setting's best of three rates, chosen on validation with one seed that is not used
again. Finished runs are kept beside the result (``*.cells.json``): an interrupted study goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.data import whole
from convexlift.files import write_json
from convexlift.mechanism import coupling, emission_noise, step_amplification
from convexlift.problems import Problem, problem
from convexlift.seeds import seed_of
from convexlift.sources.readout import Factored
from convexlift.study.arms import build
from convexlift.study.protocol import best_rate
from convexlift.study.statistics import paired_difference, summary
from convexlift.training.batches import Batches
from convexlift.training.environment import environment
from convexlift.training.optimisation import Group, parameter_groups
from convexlift.training.run import FitEvent, TrainingDiverged


@dataclass(frozen=True)
class Plan:
    """How long, with which batches and at which rates the runs on a kind of problem train."""

    steps: int
    batch: int
    small_batch: int
    rates: tuple[float, ...]
    adam: tuple[float, ...]
    sgd: tuple[float, ...]


PROBLEMS = ("gumbel", "laplace", "uniform", "regression-square", "collider")
PLANS = {
    "density": Plan(400, 256, 32, (0.032, 0.128, 0.512), (0.001, 0.008), (0.1,)),
    "flow": Plan(200, 128, 32, (0.008, 0.032, 0.128), (0.008,), (0.01,)),
    "regression": Plan(400, 500, 50, (0.002, 0.008, 0.032), (0.001, 0.008), (0.01,)),
}
SELECTION_SEED, SEEDS = 1_000, (0, 1, 2)
EVALUATIONS = 20
PROBES = 24
READOUTS = ("factored", "dense")
LIFTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "factored": (("readout", "factored"),),
    "dense": (("readout", "dense"),),
    "dense, body held": (("readout", "dense"), ("held", True)),
}
FIRST_STEP = "factored, first step"
# Which lift's curve is compared with softplus at which factor.
PREDICTIONS = {**{kind: kind.split(",")[0] for kind in LIFTS}, FIRST_STEP: FIRST_STEP}
NOISE_SCALES = (1.0, 10.0)
COUPLINGS = ("batch", "independent")
STANDARDISATIONS = ("features", "centred", None)
SCALES = (0.1, 1.0)


@dataclass(frozen=True)
class Cell:
    """One run; `options` are the lift's, None for softplus, whose latents' rate `factor_of` multiplies."""

    problem: str
    options: tuple[tuple[str, Any], ...] | None
    optimizer: str
    lr: float
    seed: int
    batch: int
    factor_of: str | None = None
    probed: bool = False


class Study:
    """Runs cells once; their outcomes are kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = (
            json.loads(path.read_text()) if path is not None and path.exists() else {}
        )
        self.seconds = 0.0

    def __call__(self, cell: Cell) -> dict[str, Any]:
        key = json.dumps(asdict(cell))
        if key not in self.known:
            started = time.process_time()
            self.known[key] = train(cell)
            self.known[key]["cpu_seconds"] = time.process_time() - started
            if self.path is not None:
                write_json(self.path, self.known)
        self.seconds += self.known[key]["cpu_seconds"]
        return self.known[key]


@lru_cache
def subject(name: str) -> Problem:
    return problem(name)


def train(cell: Cell) -> dict[str, Any]:
    """Train, freeze and score."""
    chosen = subject(cell.problem)
    plan = PLANS[chosen.task]
    task = task_of(chosen, cell.options, cell.seed)
    rows = whole(chosen.train)
    factor = 1.0 if cell.factor_of is None else rate_factor(cell, cell.factor_of)
    notes: dict[str, Any] = {}

    def probe(event: FitEvent) -> None:
        if cell.probed and not notes and event.step >= plan.steps / 2:
            notes.update(probed(event.module, chosen, cell))

    try:
        history = cl.fit(
            task,
            chosen.train,
            validation=chosen.validation,
            steps=plan.steps,
            batch_size=cell.batch,
            optimizer=partial(optimiser, cell.optimizer, cell.lr, factor),
            evaluate_every=plan.steps // EVALUATIONS,
            seed=cell.seed,
            progress=False,
            callbacks=[probe],
        )
    except TrainingDiverged:
        return {"diverged": True}
    losses = chosen.evaluate(task.freeze(rows)).double()
    return {
        "diverged": not bool(losses.isfinite().all()),
        "test": float(losses.mean()),
        "validation": history.best_validation,
        "curve": history.validation,
        "factor": factor,
        **notes,
    }


def task_of(chosen: Problem, options: Sequence[tuple[str, Any]] | None, seed: int) -> Any:
    given = dict(options or ())
    held = given.pop("held", False)
    make: Callable[[nn.Module], nn.Module] = cl.Softplus if options is None else partial(cl.Lift, **given)
    task: Any = build(chosen, "arm", seed, {"arm": make})
    if held:  # phi keeps its random start; b and R learn
        for part in task.modules():
            if isinstance(part, cl.Lift):
                part.phi.requires_grad_(False)
    task.initialise(whole(chosen.train))
    return task


def optimiser(name: str, lr: float, factor: float, groups: list[Group]) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9, the rate of the latents multiplied by a factor."""
    scaled = [{**group, "lr": lr * (factor if group["name"] == "source" else 1.0)} for group in groups]
    return torch.optim.Adam(scaled) if name == "adam" else torch.optim.SGD(scaled, momentum=0.9)


def rate_factor(cell: Cell, readout: str) -> float:
    """The predicted factor for the lift with this readout, of the same problem and seed, at its start."""
    chosen = subject(cell.problem)
    task = task_of(chosen, LIFTS[readout.split(",")[0]], cell.seed)
    if readout == FIRST_STEP:
        return first_step(task, Batches(chosen.train, cell.batch, cell.seed).at(0).data)
    batches = Batches(chosen.train, cell.batch, cell.seed)
    if cell.optimizer == "adam":
        return step_amplification(task, [batches.at(k).data for k in range(8)])
    return squared_amplification(next(part for part in task.modules() if isinstance(part, cl.Lift)))


def first_step(task: Any, batch: Any, lr: float = 1e-3) -> float:
    """The median over latents of |change of theta| / lr in one Adam step."""
    lift = next(part for part in task.modules() if isinstance(part, cl.Lift))

    def theta() -> Tensor:
        with torch.no_grad():
            return torch.cat([latent.flatten() for latent in lift.latents(lift.anchor)])

    before = theta()
    step = torch.optim.Adam(parameter_groups(task), lr=lr)
    task.train()
    task.loss(batch).backward()
    step.step()
    return float((theta() - before).abs().median()) / lr


@torch.no_grad()
def squared_amplification(lift: cl.Lift) -> float:
    """The median over latents of 1 + sum_p (d theta / d p)^2, over the readout's parameters, at the start."""
    code = lift.readout.scale * lift.anchor
    energy = code.square().sum()
    if not isinstance(lift.readout, Factored):
        return float(1 + energy)
    parts: list[Tensor] = []
    gates = (lift.readout.code @ code).view(-1, lift.readout.rank).square()
    for q, u, v in zip(gates, lift.readout.rows, lift.readout.columns, strict=True):
        u2, v2 = u.square(), v.square()
        parts.append((1 + (v2 @ q)[None, :] + (u2 @ q)[:, None] + energy * (u2 @ v2.T)).flatten())
    return float(torch.cat(parts).median())


def probed(task: Any, chosen: Problem, cell: Cell) -> dict[str, Any]:
    """Emission noise and coupling over fresh probe batches."""
    probes, others = (
        [Batches(chosen.train, cell.batch, seed_of(cell.seed, name, k)).at(0).data for k in range(PROBES)]
        for name in ("probe", "emit")
    )
    independent = dict(cell.options or ()).get("coupling") == "independent"
    found = coupling(task, task.loss, probes, emit_from=others if independent else None, permutations=199)
    return {
        "emission_noise": emission_noise(task, probes),
        "trace": found.batch.trace,
        "trace_error": found.batch.trace_error,
        "norm": found.batch.norm,
        "p_value": found.batch.p_value,
        "curvature_trace": found.curvature.trace,
    }


def prediction(study: Study, name: str) -> list[dict[str, Any]]:
    """Curve against curve: lift, softplus, and softplus at the predicted multiple of its latents' rate."""
    plan, rows = PLANS[subject(name).task], []
    for optimizer, rates in (("adam", plan.adam), ("sgd", plan.sgd)):
        for lr in rates:
            for kind, readout in PREDICTIONS.items():
                if (kind, optimizer) == (FIRST_STEP, "sgd"):
                    continue
                gaps, factors, tests = [], [], []
                options = LIFTS["factored" if kind == FIRST_STEP else kind]
                for seed in SEEDS:
                    place = (optimizer, lr, seed, plan.batch)
                    runs = [
                        study(Cell(name, options, *place)),
                        study(Cell(name, None, *place)),
                        study(Cell(name, None, *place, factor_of=readout)),
                    ]
                    if any(run["diverged"] for run in runs):
                        continue
                    lift, softplus, multiplied = (torch.tensor(run["curve"]).double() for run in runs)
                    gaps.append(float(rms(lift - multiplied) / rms(lift - softplus)))
                    factors.append(runs[2]["factor"])
                    tests.append([run["test"] for run in runs])
                rows.append(
                    {
                        "problem": name,
                        "optimizer": optimizer,
                        "lr": lr,
                        "lift": kind,
                        "factor": mean(factors),
                        "relative_gap": gaps,
                        "test": {
                            side: [by_seed[k] for by_seed in tests]
                            for k, side in enumerate(("lift", "softplus", "multiplied"))
                        },
                    }
                )
                print(name, optimizer, lr, kind, [round(gap, 2) for gap in gaps], flush=True)
    return rows


def fluctuation(study: Study, name: str) -> list[dict[str, Any]]:
    """The centred lift at several sizes of its fluctuation, against softplus at the same batch size."""
    plan, rows = PLANS[subject(name).task], []
    for batch in (plan.small_batch, plan.batch):
        base = tuned(study, name, None, batch)
        rows.append({"problem": name, "batch": batch, "trained_by": "softplus", **base})
        for scale in NOISE_SCALES:
            for kind in COUPLINGS:
                options = (("standardise", "centred"), ("readout_scale", scale), ("coupling", kind))
                found = tuned(study, name, options, batch, base)
                rows.append({"problem": name, "batch": batch, "trained_by": kind, "scale": scale, **found})
    return rows


def settings(study: Study, name: str) -> list[dict[str, Any]]:
    """Standardisation x readout scale x kind of readout, at the usual batch size."""
    plan, rows = PLANS[subject(name).task], []
    base = tuned(study, name, None, plan.batch)
    rows.append({"problem": name, "trained_by": "softplus", **base})
    for standardise in STANDARDISATIONS:
        for readout in READOUTS:
            for scale in SCALES:
                options = (("standardise", standardise), ("readout", readout), ("readout_scale", scale))
                found = tuned(study, name, options, plan.batch, base)
                told = {"standardise": standardise, "readout": readout, "scale": scale}
                rows.append({"problem": name, "trained_by": "lift", **told, **found})
    return rows


def tuned(
    study: Study,
    name: str,
    options: tuple[tuple[str, Any], ...] | None,
    batch: int,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Test loss at the best rate on validation, difference to softplus, and the mechanism at mid-training."""
    plan = PLANS[subject(name).task]
    selection = {
        lr: study(Cell(name, options, "adam", lr, SELECTION_SEED, batch)).get("validation", math.inf)
        for lr in plan.rates
    }
    lr = best_rate(selection) or plan.rates[0]
    runs = [study(Cell(name, options, "adam", lr, seed, batch, probed=True)) for seed in SEEDS]
    losses = [math.inf if run["diverged"] else run["test"] for run in runs]
    found: dict[str, Any] = {"lr": lr, "test": summary(losses)}
    if options is not None:
        for key in ("emission_noise", "trace", "trace_error", "norm", "p_value", "curvature_trace"):
            found[key] = [run.get(key) for run in runs]
    if base is not None:
        against = [math.inf if loss is None else loss for loss in base["test"]["per_seed"]]
        found["minus_softplus"] = paired_difference(losses, against)
    print(name, options, batch, lr, found["test"]["mean"], found.get("trace"), flush=True)
    return found


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


PARTS: dict[str, tuple[Callable[[Study, str], list[dict[str, Any]]], tuple[str, ...]]] = {
    "prediction": (prediction, PROBLEMS),
    "fluctuation": (fluctuation, ("gumbel", "laplace", "uniform", "regression-square")),
    "settings": (settings, ("laplace", "regression-square")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(None if options.out is None else options.out.with_suffix(".cells.json"))
    rows = {}
    for part in options.parts:
        of, names = PARTS[part]
        rows[part] = [row for name in names for row in of(study, name)]
    if options.out is not None:
        write_json(
            options.out,
            {
                "command": "python benchmarks/summary_split.py",
                "plans": {task: asdict(plan) for task, plan in PLANS.items()},
                "selection_seed": SELECTION_SEED,
                "seeds": SEEDS,
                **rows,
                "cpu_seconds": study.seconds,
                "environment": environment(),
            },
        )
        print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
