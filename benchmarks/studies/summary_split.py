"""What in a lift's summary acts: its constant part, or its fluctuation from batch to batch.

    python benchmarks/studies/summary_split.py --out results/summary_split.json

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
again. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import common
import torch
from common import Ledger, Outcome, or_inf, train_and_score
from timing import Result, arguments, markdown, parsed, write
from torch import Tensor, nn

import convexlift as cl
from convexlift.data import Batches, whole
from convexlift.mechanism import coupling, emission_noise, step_amplification
from convexlift.problems import Problem, problem
from convexlift.sources.readout import Factored
from convexlift.study.arms import build
from convexlift.study.protocol import best_rate
from convexlift.study.statistics import paired_difference, summary
from convexlift.training import FitEvent
from convexlift.training.optimisation import Group, parameter_groups


@dataclass(frozen=True)
class Plan:
    """How long, with which batches and at which rates the runs on a kind of problem train."""

    steps: int
    batch: int
    small_batch: int
    rates: tuple[float, ...]
    adam: tuple[float, ...]
    sgd: tuple[float, ...]


Options = tuple[tuple[str, Any], ...]  # of a lift

PROBLEMS = ("gumbel", "laplace", "uniform", "regression-square", "collider")
PLANS = {
    "density": Plan(400, 256, 32, (0.032, 0.128, 0.512), (0.001, 0.008), (0.1,)),
    "flow": Plan(200, 128, 32, (0.008, 0.032, 0.128), (0.008,), (0.01,)),
    "regression": Plan(400, 500, 50, (0.002, 0.008, 0.032), (0.001, 0.008), (0.01,)),
}
SELECTION_SEED, SEEDS = 1_000, (0, 1, 2)
EVALUATIONS = 20
PROBES = 24
MEASURES = ("trace", "trace_error", "norm", "p_value")
READOUTS = ("factored", "dense")
LIFTS: dict[str, Options] = {
    "factored": (("readout", "factored"),),
    "dense": (("readout", "dense"),),
    "dense, body held": (("readout", "dense"), ("held", True)),
}
FIRST_STEP = "factored, first step"
# Which lift's curve is compared with softplus at which factor.
PREDICTIONS = {**{kind: kind.split(",")[0] for kind in LIFTS}, FIRST_STEP: FIRST_STEP}
SIDES = ("lift", "softplus", "multiplied")
NOISE_SCALES = (1.0, 10.0)
COUPLINGS = ("batch", "independent")
STANDARDISATIONS = ("features", "centred", None)
SCALES = (0.1, 1.0)


@dataclass(frozen=True)
class Cell:
    """One run; `options` are the lift's, None for softplus, whose latents' rate `factor_of` multiplies."""

    problem: str
    options: Options | None
    optimizer: str
    lr: float
    seed: int
    batch: int
    factor_of: str | None = None
    probed: bool = False


Study = Callable[[Cell], Outcome]  # runs a cell, unless its outcome is kept


subject = lru_cache(problem)


def train(cell: Cell) -> Outcome:
    """Train, freeze and score; the validation curve, and in the middle of the run what the probes say."""
    chosen = subject(cell.problem)
    plan = PLANS[chosen.task]
    factor = 1.0 if cell.factor_of is None else rate_factor(cell, cell.factor_of)
    notes: Outcome = {"factor": factor}

    def probe(event: FitEvent) -> None:
        if cell.probed and "trace" not in notes and event.step >= plan.steps / 2:
            notes.update(probed(event.module, chosen, cell))

    task, rule = task_of(chosen, cell.options, cell.seed), partial(optimiser, cell.optimizer, cell.lr, factor)
    how = {"steps": plan.steps, "evaluations": EVALUATIONS, "batch_size": cell.batch, "optimizer": rule}
    noted = {"callbacks": [probe], "also": lambda frozen, history: {"curve": history.validation, **notes}}
    return train_and_score(task, chosen, seed=cell.seed, **how, **noted)


def task_of(chosen: Problem, options: Options | None, seed: int) -> Any:
    """The task of a lift with these options, or of softplus, started on the training rows."""
    given = dict(options or ())
    held = given.pop("held", False)
    make: Callable[[nn.Module], nn.Module] = (
        cl.Softplus if options is None else partial(cl.Lift, **common.WEIGHTS_ALONE, **given)
    )
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
        v2 = v.square()
        if u is None:
            parts.append(1 + q.sum() + energy * v2.sum(1))
        else:
            u2 = u.square()
            parts.append((1 + (v2 @ q)[None, :] + (u2 @ q)[:, None] + energy * (u2 @ v2.T)).flatten())
    return float(torch.cat(parts).median())


def probed(task: Any, chosen: Problem, cell: Cell) -> dict[str, Any]:
    """Emission noise and coupling over fresh probe batches."""
    here, there = (common.probes(chosen, cell.batch, cell.seed, PROBES, name) for name in ("probe", "emit"))
    independent = dict(cell.options or ()).get("coupling") == "independent"
    found = coupling(task, task.loss, here, emit_from=there if independent else None, permutations=199)
    measures = {key: getattr(found.batch, key) for key in MEASURES}
    noise = emission_noise(task, here)
    return {"emission_noise": noise, **measures, "curvature_trace": found.curvature.trace}


def prediction(study: Study, name: str) -> list[dict[str, Any]]:
    """Curve against curve: lift, softplus, and softplus at the predicted multiple of its latents' rate."""
    plan, rows = PLANS[subject(name).task], []
    tried = [("adam", lr, kind) for lr in plan.adam for kind in PREDICTIONS]
    tried += [("sgd", lr, kind) for lr in plan.sgd for kind in PREDICTIONS if kind != FIRST_STEP]
    for optimizer, lr, kind in tried:
        gaps, factors, tests = [], [], []
        options = LIFTS["factored" if kind == FIRST_STEP else kind]
        for seed in SEEDS:
            place = (optimizer, lr, seed, plan.batch)
            cells = [Cell(name, options, *place), Cell(name, None, *place)]
            runs = [study(cell) for cell in (*cells, Cell(name, None, *place, factor_of=PREDICTIONS[kind]))]
            if any(run["test"] is None for run in runs):
                continue
            lift, softplus, predicted = (torch.tensor(run["curve"]).double() for run in runs)
            gaps.append(float(rms(lift - predicted) / rms(lift - softplus)))
            factors.append(runs[2]["factor"])
            tests.append([run["test"] for run in runs])
        by_side = {side: [by_seed[k] for by_seed in tests] for k, side in enumerate(SIDES)}
        factor = math.fsum(factors) / len(factors) if factors else None
        about = {"problem": name, "optimizer": optimizer, "lr": lr, "lift": kind}
        rows.append({**about, "factor": factor, "relative_gap": gaps, "test": by_side})
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
    for standardise, readout, scale in itertools.product(STANDARDISATIONS, READOUTS, SCALES):
        options = (("standardise", standardise), ("readout", readout), ("readout_scale", scale))
        found = tuned(study, name, options, plan.batch, base)
        told = {"standardise": standardise, "readout": readout, "scale": scale}
        rows.append({"problem": name, "trained_by": "lift", **told, **found})
    return rows


def tuned(
    study: Study, name: str, options: Options | None, batch: int, base: Result | None = None
) -> dict[str, Any]:
    """Test loss at the best rate on validation, difference to softplus, and the mechanism at mid-training."""
    plan = PLANS[subject(name).task]
    selected = {lr: study(Cell(name, options, "adam", lr, SELECTION_SEED, batch)) for lr in plan.rates}
    lr = best_rate({lr: or_inf(run["validation"]) for lr, run in selected.items()}) or plan.rates[0]
    runs = [study(Cell(name, options, "adam", lr, seed, batch, probed=True)) for seed in SEEDS]
    losses = [or_inf(run["test"]) for run in runs]
    found: dict[str, Any] = {"lr": lr, "test": summary(losses)}
    if options is not None:
        for key in ("emission_noise", *MEASURES, "curvature_trace"):
            found[key] = [run.get(key) for run in runs]
    if base is not None:
        found["minus_softplus"] = paired_difference(losses, [or_inf(x) for x in base["test"]["per_seed"]])
    print(name, options, batch, lr, found["test"]["mean"], found.get("trace"), flush=True)
    return found


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def table_prediction(result: Result) -> str:
    """How far softplus at the predicted rate is from the lift."""
    kinds = list(dict.fromkeys(row["lift"] for row in result["prediction"]))
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in result["prediction"]:
        gaps = row["relative_gap"]  # a t-interval of their mean
        gap = common.interval_text(paired_difference(gaps, [0.0] * len(gaps))) if gaps else "diverged"
        factor = "" if row["factor"] is None else f"× {common.short(row['factor'], 2)}: "
        table.setdefault((row["problem"], row["optimizer"], row["lr"]), {})[row["lift"]] = factor + gap
    lines = [
        [name, optimizer, f"{lr:g}", *(cells.get(kind, "") for kind in kinds)]
        for (name, optimizer, lr), cells in table.items()
    ]
    return markdown(("problem", "optimiser", "rate", *kinds), lines)


def table_fluctuation(result: Result) -> str:
    """The lift with its fluctuation only, coupled and independent."""
    rows = result["fluctuation"]
    base = {(row["problem"], row["batch"]): row for row in rows if row["trained_by"] == "softplus"}
    pairs: dict[tuple[str, int, float], dict[str, Any]] = {}
    for row in rows:
        if row["trained_by"] != "softplus":
            pairs.setdefault((row["problem"], row["batch"], row["scale"]), {})[row["trained_by"]] = row
    lines = []
    for (name, batch, scale), by_kind in pairs.items():
        sides = [by_kind[kind] for kind in COUPLINGS]
        losses = [side["test"]["per_seed"] for side in sides]
        noise = [value and 100 * value for value in sides[0]["emission_noise"]]
        tests = [sum(p is not None and p <= 0.05 for p in side["p_value"]) for side in sides]
        lines.append(
            [
                *(name, str(batch), f"{scale:g}"),
                common.average_text(noise, "{} %", "–"),
                *(common.average_text(side["trace"], nothing="–") for side in sides),
                f"{tests[0]} and {tests[1]} of {len(losses[0])}",
                common.score_text(base[name, batch]["test"]),
                *(common.interval_text(side["minus_softplus"]) for side in sides),
                common.interval_text(paired_difference(*losses)) if None not in sum(losses, []) else "–",
            ]
        )
    head = (
        *("problem", "batch", "scale", "noise", "tr Σ_batch, coupled", "independent", "tests p ≤ 0.05"),
        *("softplus", "coupled minus it", "independent minus it", "coupled minus independent"),
    )
    return markdown(head, lines)


def table_settings(result: Result) -> str:
    """Standardisation, readout and its scale."""
    rows = result["settings"]
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in rows:
        if row["trained_by"] == "lift":
            key = (str(row["standardise"]), row["readout"], row["scale"])
            table.setdefault(key, {})[row["problem"]] = common.interval_text(row["minus_softplus"])
    names = list(dict.fromkeys(row["problem"] for row in rows))
    lines = [
        [kind, readout, f"{scale:g}", *(cells.get(name, "") for name in names)]
        for (kind, readout, scale), cells in table.items()
    ]
    return markdown(("summary", "readout", "scale", *names), lines)


PARTS: dict[str, tuple[Callable[[Study, str], list[dict[str, Any]]], tuple[str, ...]]] = {
    "prediction": (prediction, PROBLEMS),
    "fluctuation": (fluctuation, ("gumbel", "laplace", "uniform", "regression-square")),
    "settings": (settings, ("laplace", "regression-square")),
}


PARTS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "prediction": (prediction, table_prediction, PROBLEMS),
    "fluctuation": (fluctuation, table_fluctuation, ("gumbel", "laplace", "uniform", "regression-square")),
    "settings": (settings, table_settings, ("laplace", "regression-square")),
}


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parsed(parser, line)
    ledger, seconds = Ledger(options.out, __file__), {}

    def study(cell: Cell) -> Outcome:
        outcome = ledger.run(asdict(cell), lambda: train(cell))
        seconds[cell] = outcome["seconds"]
        return outcome

    plans = {task: asdict(plan) for task, plan in PLANS.items()}
    result: dict[str, Any] = {"plans": plans, "selection_seed": SELECTION_SEED, "seeds": SEEDS}
    for part in options.parts:
        rows_of, _, names = PARTS[part]
        result[part] = [row for name in names for row in rows_of(study, name)]
    result["seconds"] = math.fsum(seconds.values())
    write(options, result, *(PARTS[part][1] for part in options.parts))
    return result


if __name__ == "__main__":
    main()
