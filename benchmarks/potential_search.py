"""Which potential a convex-potential flow should have: one factor at a time, then the best together.

    python benchmarks/potential_search.py --data HEPMASS.npz --out results/potential_search.json

`collider` and 10,000 HEPMASS rows, squared weights. The search changes one factor of the default at a time
(sharpness and kind of activation, the linear map in front, maps around the blocks, depth, width, blocks,
initialisation, strong convexity, output quadratic, log-sum-exp gates), on one selection seed and validation
losses alone: at the rate 0.032 (several blocks at 0.016 too), and, where it is the best so far by 0.1 nats,
on by factors of 2 until the best rate has worse ones on both sides. What is 0.2 nats above the default on
`collider` is not tried on HEPMASS. The finalists are then set against the default on test, all at the rate
0.032, pair by pair of the evaluation seeds, at equal steps and, with as many steps as fit, at the default's
seconds. Finished cells are kept beside --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import timing
import torch
from rates import Ledger, Outcome, beside
from torch import Tensor, nn

from convexlift.architectures import ICNN, Calculus
from convexlift.calculus import derivatives
from convexlift.calculus.activations import Activation
from convexlift.calculus.derivatives import Layers
from convexlift.data import whole
from convexlift.problems import Problem, problem
from convexlift.seeds import seed_of
from convexlift.sources import Squared
from convexlift.study.statistics import paired_difference, summary
from convexlift.tasks import ConvexPotentialFlow
from convexlift.tasks.standardise import Standardiser, Whitener
from convexlift.training import fit
from convexlift.training.run import TrainingDiverged

PROBLEMS = ("collider", "hepmass")
RATE = 0.032
CLEAR, BEHIND = 0.1, 0.2  # nats
SAME_COST = 0.05  # costs that differ by less are taken as equal
LEAST_RATE, LARGEST_RATE = 0.001, 0.256
BATCH_SIZE, STEPS, SELECTION_SEED = 256, 600, 1000


@dataclass(frozen=True)
class Candidate:
    """One flow; the defaults are those of the library.

    ``front`` is the fixed map before the first block: "standardise", "whiten" (Cholesky), "whiten-symmetric"
    or "whiten-principal". ``maps`` is what stands around the blocks: "scale" (the library's activation
    normalisation) or "linear" (a learned matrix that starts as the scale). ``quadratic`` adds a learned
    quadratic of full rank to every potential. With more than one of ``pieces`` every unit is the log-sum-exp
    of that many pre-activations (see ``Gated``).
    """

    depth: int = 4
    width: int = 64
    blocks: int = 1
    init: str = "principled"
    front: str = "standardise"
    maps: str = "scale"
    quadratic: bool = False
    pieces: int = 1
    activation: str = "softplus"
    sharpness: float | None = None
    strong_convexity: float = 0.1

    def changes(self) -> dict[str, Any]:
        """The fields that are not the default's."""
        default = dataclasses.asdict(DEFAULT)
        return {key: value for key, value in dataclasses.asdict(self).items() if value != default[key]}


DEFAULT = Candidate()

FACTORS: dict[str, tuple[dict[str, Any], ...]] = {
    "sharpness": ({"sharpness": 2.0}, {"sharpness": 4.0}, {"sharpness": 8.0}),
    "front": ({"front": "whiten"}, {"front": "whiten-symmetric"}),
    "depth": ({"depth": 2}, {"depth": 6}, {"depth": 10}),
    "width": ({"width": 32}, {"width": 128}),
    "together": ({"sharpness": 4.0, "depth": 2},),
    "maps": ({"maps": "linear"},),
    "initialisation": ({"init": "identity", "strong_convexity": 1.0}, {"init": "fan_in"}),
    "strong convexity": ({"strong_convexity": 0.01},),
    "quadratic": ({"quadratic": True},),
    "blocks": ({"blocks": 2}, {"blocks": 3}),
    "gates": ({"pieces": 2},),
    "activation": ({"activation": "smooth_squared_relu"},),
}
FINALISTS: tuple[dict[str, Any], ...] = ({"sharpness": 2.0}, {"sharpness": 4.0})


class Rotated(Whitener):
    """A whitener with another root of the covariance: the symmetric one, or that of the principal axes."""

    def __init__(self, dim: int, root: str) -> None:
        super().__init__(dim)
        self.root = root

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Whitener:
        super().fit(data, weights)
        lower = self.factor.double()
        values, axes = torch.linalg.eigh(lower @ lower.T)
        factor = axes * values.sqrt()
        self.factor.copy_(factor @ axes.T if self.root == "symmetric" else factor)
        self.inverse_factor.copy_(torch.linalg.inv(self.factor.double()))
        return self

    @property
    def log_scale_jacobian(self) -> Tensor:
        return -torch.linalg.slogdet(self.factor)[1]


class LinearMap(nn.Module):
    """z = U diag(exp(log_scale)) L x + shift, L and U unit triangular, in the place of ``ActNorm``.

    It starts as activation normalisation does, with L = U = I.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lower, self.upper = (nn.Parameter(torch.zeros(dim, dim)) for _ in range(2))
        self.log_scale, self.shift = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start so that x (N, d) is mapped onto zero mean and unit deviation; a no-op the second time."""
        if self.initialised:
            return
        scale = 1 / x.std(0, correction=0).clamp_min(1e-6)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-x.mean(0) * scale)
        cast(Tensor, self.initialised).fill_(True)

    def _triangles(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.shift), dtype=self.shift.dtype, device=self.shift.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + eye

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, d)."""
        lower, upper = self._triangles()
        return torch.addmm(self.shift, x, (upper @ (self.log_scale.exp()[:, None] * lower)).T)

    def inverse(self, z: Tensor) -> Tensor:
        """x, (N, d)."""
        lower, upper = self._triangles()
        y = torch.linalg.solve_triangular(upper, (z - self.shift).T, upper=True, unitriangular=True)
        y = (-self.log_scale).exp()[:, None] * y
        return torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True).T

    @property
    def logdet(self) -> Tensor:
        """log of the Jacobian's determinant, a scalar."""
        return self.log_scale.sum()


class Gated(ICNN):
    """An input-convex network whose units are log-sum-exps of several pre-activations, a smooth maxout.

    With m pieces and sharpness k, z_l = (1/k) log sum_i exp(k u_l^i), u_1^i = A_1^i x + b_1^i and
    u_{l+1}^i = W_l^i z_l + A_{l+1}^i x + b_{l+1}^i. A softplus unit is one of two pieces, the other 0. Closed
    forms: p = softmax(k u) are the slopes, and with T^i the Jacobian of piece i and T its mean under p every
    unit adds k g sum_i p_i (T^i - T)(T^i - T)' to the Hessian. Ordinary tensor expressions, no hand-written
    backward.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int], *, pieces: int, sharpness: float | None, **options: Any
    ):
        self.pieces = pieces
        self.sharpness = 1.0 if sharpness is None else sharpness
        super().__init__(dim, [width * pieces for width in hidden], **options)

    @property
    def calculus(self) -> Calculus:  # type: ignore[override]
        """The closed forms that a flow of a few dimensions asks for."""
        return dataclasses.replace(
            ICNN.calculus,
            value=self._value,
            gradient=lambda x, layers, s: self._derivatives(x, layers)[0],
            hessian=lambda x, layers, s: self._derivatives(x, layers)[1],
            gradient_and_logdet=self._gradient_and_logdet,
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> ICNN:
        """Keep as many weights as there are units; then pre-activations of mean 0 and variance 1 on x."""
        self.inner = nn.ParameterList([nn.Parameter(w[:, :: self.pieces].contiguous()) for w in self.inner])
        self.outer = nn.Parameter(self.outer[:: self.pieces].contiguous())
        z: Tensor | None = None
        for level, (skip, bias) in enumerate(zip(self.skips, self.biases, strict=True)):
            weights = [skip] if z is None else [skip, self.inner[level - 1]]
            u = x @ skip.T if z is None else x @ skip.T + z @ self.inner[level - 1].T
            deviation = u.std(0)
            for weight in weights:
                weight.div_(deviation[:, None])
            bias.copy_(-u.mean(0) / deviation)
            z = self._unit(u / deviation + bias)[0]
        self.outer.div_((cast(Tensor, z) @ self.outer).std())
        return self

    def _unit(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z, (N, h), and p, (N, h, m), from the pre-activations (N, h m)."""
        u = u.unflatten(1, (-1, self.pieces)) * self.sharpness
        return u.logsumexp(2) / self.sharpness, u.softmax(2)

    def _sweep(self, x: Tensor, layers: Layers) -> tuple[Tensor, list[Tensor]]:
        units: list[tuple[Tensor, Tensor]] = []
        for level, (skip, bias) in enumerate(zip(layers.skips, layers.biases, strict=True)):
            u = torch.addmm(bias, x, cast(Tensor, skip).T)
            units.append(
                self._unit(u if level == 0 else torch.addmm(u, units[-1][0], layers.inner[level - 1].T))
            )
        return units[-1][0], [p for _, p in units]

    def _value(self, x: Tensor, layers: Layers, s: Activation) -> Tensor:
        quadratic = (x * (x @ derivatives.base(x, layers))).sum(1) / 2
        linear = 0.0 if layers.linear is None else x @ layers.linear
        return self._sweep(x, layers)[0] @ layers.outer + linear + quadratic

    def _derivatives(self, x: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
        slopes = self._sweep(x, layers)[1]
        skips = [cast(Tensor, skip) for skip in layers.skips]
        base = derivatives.base(x, layers)
        gradient, outers = x @ base, [layers.outer.expand(len(x), -1)]
        if layers.linear is not None:
            gradient = gradient + layers.linear
        for level in reversed(range(len(slopes))):
            reverse = (slopes[level] * outers[0].unsqueeze(2)).flatten(1)
            gradient = gradient + reverse @ skips[level]
            if level:
                outers.insert(0, reverse @ layers.inner[level - 1])
        hessian, jacobian = base, skips[0].T.unsqueeze(0)
        mean = jacobian
        for level, (p, outer) in enumerate(zip(slopes, outers, strict=True)):
            if level:
                jacobian = mean @ layers.inner[level - 1].T + skips[level].T
            piecewise = jacobian.unflatten(2, (-1, self.pieces))
            mean = (piecewise * p.unsqueeze(1)).sum(3)
            apart = (piecewise - mean.unsqueeze(3)).flatten(2)
            bend = (self.sharpness * outer.unsqueeze(2) * p).flatten(1)
            hessian = hessian + (apart * bend.unsqueeze(1)) @ apart.mT
        return gradient, hessian

    def _gradient_and_logdet(self, x: Tensor, layers: Layers, s: Activation) -> tuple[Tensor, Tensor]:
        gradient, hessian = self._derivatives(x, layers)
        return gradient, 2 * torch.linalg.cholesky(hessian).diagonal(dim1=1, dim2=2).log().sum(1)


def network(dim: int, candidate: Candidate, seed: int) -> ICNN:
    """One potential of a candidate."""
    made = ICNN if candidate.pieces == 1 else partial(Gated, pieces=candidate.pieces)
    return made(
        dim,
        hidden=(candidate.width,) * candidate.depth,
        activation=candidate.activation,
        sharpness=candidate.sharpness,
        strong_convexity=candidate.strong_convexity,
        init=candidate.init,
        quadratic_rank=dim if candidate.quadratic else 0,
        seed=seed,
    )


def build(dim: int, candidate: Candidate, seed: int) -> ConvexPotentialFlow:
    """The untrained flow of a candidate."""
    networks = [network(dim, candidate, seed_of(seed, "network", k)) for k in range(candidate.blocks)]
    flow = ConvexPotentialFlow([Squared(net) for net in networks])
    if candidate.front != "standardise":
        kind = candidate.front.partition("-")[2]
        flow.standardiser = cast(Standardiser, Rotated(dim, kind) if kind else Whitener(dim))
    if candidate.maps == "linear":
        flow.norms = nn.ModuleList([LinearMap(dim) for _ in range(candidate.blocks + 1)])
    return flow


def train(chosen: Problem, candidate: Candidate, lr: float, seed: int, steps: int, test: bool) -> Outcome:
    """Train one flow; the frozen one's loss on validation and, if wanted, on test; None if it diverged."""
    flow = build(chosen.dim, candidate, seed)
    try:
        history = fit(
            flow,
            chosen.train,
            validation=chosen.validation,
            steps=steps,
            batch_size=BATCH_SIZE,
            lr=lr,
            evaluate_every=max(1, steps // 12),
            seed=seed,
            progress=False,
        )
    except TrainingDiverged:
        return {"validation": None, "test": None}
    outcome = {
        "validation": history.best_validation,
        "best_step": history.best_step,
        "ms_per_step": history.ms_per_step,
    }
    if test:
        loss = float(chosen.evaluate(flow.freeze(cast(Tensor, whole(chosen.train)))).double().mean())
        outcome["test"] = loss if math.isfinite(loss) else None
    return outcome


@dataclass(frozen=True)
class Plan:
    """What to run, and where finished cells are kept."""

    ledger: Ledger
    problems: Mapping[str, Problem]
    steps: int

    def cell(
        self, name: str, candidate: Candidate, lr: float, seed: int, steps: int, test: bool = False
    ) -> Outcome:
        """Run one cell, unless it is kept."""
        cell = {"problem": name, "lr": lr, "seed": seed, "steps": steps, "test": test, **candidate.changes()}
        return self.ledger.run(cell, lambda: train(self.problems[name], candidate, lr, seed, steps, test))

    def searched(self, name: str, candidate: Candidate, ceiling: float) -> dict[str, Any]:
        """A candidate on the selection seed; its rate is tuned where it is clearly below ``ceiling``."""
        found: dict[float, Outcome] = {}
        best, wanted = RATE, [RATE] if candidate.blocks == 1 else [RATE / 2, RATE]
        while wanted:
            for lr in wanted:
                found[lr] = self.cell(name, candidate, lr, SELECTION_SEED, self.steps)
            losses = {lr: _loss(outcome) for lr, outcome in found.items()}
            best = min(losses, key=lambda lr: losses[lr])
            clear = losses[best] <= ceiling - CLEAR
            wanted = beyond(losses) if clear else []
        return {
            "lr": best,
            "validation": found[best]["validation"],
            "best_step": found[best].get("best_step"),
            "ms_per_step": found[best].get("ms_per_step"),
            "rates": {f"{lr:g}": found[lr]["validation"] for lr in sorted(found)},
        }


def beyond(losses: Mapping[float, float]) -> list[float]:
    """The next rate where the least loss is on an edge of the tried rates; none where it is inside."""
    rates = sorted(losses)
    best = min(rates, key=lambda lr: losses[lr])
    if len(rates) == 1:
        return [best / 2, best * 2]
    if best == rates[-1] and math.isfinite(losses[best]):
        return [best * 2] if best * 2 <= LARGEST_RATE else []
    return [best / 2] if best == rates[0] and best / 2 >= LEAST_RATE else []


def _loss(outcome: Outcome) -> float:
    return math.inf if outcome["validation"] is None else float(outcome["validation"])


def title(candidate: Candidate) -> str:
    """A candidate by what sets it apart from the default."""
    return ", ".join(f"{key}={value}" for key, value in candidate.changes().items()) or "default"


def search(plan: Plan, factors: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The default and every change of it, problem by problem."""
    listed = [("default", DEFAULT)]
    listed += [(factor, Candidate(**changes)) for factor, options in factors.items() for changes in options]
    rows: list[dict[str, Any]] = []
    for factor, candidate in listed:
        row: dict[str, Any] = {"factor": factor, "candidate": title(candidate), "problems": {}}
        for name in plan.problems:
            before = [_loss(r["problems"][name]) for r in rows if name in r["problems"]]
            found = plan.searched(name, candidate, min(before, default=math.inf))
            row["problems"][name] = found
            print(told(row["candidate"], name, found), flush=True)
            if before and _loss(found) > before[0] + BEHIND:
                break  # no default any more: not tried on the other problems
        rows.append(row)
    return rows


def told(label: str, name: str, found: Mapping[str, Any]) -> str:
    """A line on one candidate."""
    loss = "diverged" if found["validation"] is None else f"{found['validation']:.3f}"
    rates = "  ".join(
        f"{lr}: {'-' if value is None else format(value, '.2f')}" for lr, value in found["rates"].items()
    )
    return f"{label:44}{name:10}{loss:>9} at {found['lr']:<7g}   {rates}"


def costs(candidates: Sequence[Candidate], dim: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a loss and its backward, every candidate in turn, so that the load is shared."""
    x = torch.randn(BATCH_SIZE, dim, generator=torch.Generator().manual_seed(0))
    sides = {}
    for candidate in candidates:
        flow = build(dim, candidate, 0)
        flow.initialise(x)
        sides[title(candidate)] = partial(_step, flow, x)
    return {name: statistics.median(each) for name, each in timing.interleaved(sides, repeats).items()}


def _step(flow: ConvexPotentialFlow, x: Tensor) -> None:
    flow.loss(x).backward()


def confirm(
    plan: Plan,
    searched: Sequence[Mapping[str, Any]],
    finalists: Sequence[Candidate],
    ms: Mapping[str, float],
    seeds: Sequence[int],
    steps: int,
) -> dict[str, Any]:
    """Finalists against the default on test, all at the common rate, by equal steps and by equal seconds.

    Where the search chose another rate for the default, its loss there is shown too.
    """
    found: dict[str, Any] = {}
    for name in plan.problems:

        def losses(candidate: Candidate, lr: float, steps: int, name: str = name) -> list[float]:
            outcomes = [plan.cell(name, candidate, lr, seed, steps, test=True) for seed in seeds]
            return [math.inf if outcome["test"] is None else outcome["test"] for outcome in outcomes]

        default = losses(DEFAULT, RATE, steps)
        rows: list[dict[str, Any]] = [{"flow": title(DEFAULT), "lr": RATE, "test": summary(default)}]
        chosen = float(searched[0]["problems"][name]["lr"])
        if chosen != RATE:
            there = losses(DEFAULT, chosen, steps)
            apart = paired_difference(there, default)
            row = {"flow": title(DEFAULT), "lr": chosen, "test": summary(there)}
            rows.append({**row, "equal_steps": apart, "equal_seconds": apart})
        for candidate in finalists:
            label = title(candidate)
            ratio = ms[title(DEFAULT)] / ms[label]
            fewer = steps if abs(ratio - 1) <= SAME_COST else max(1, round(steps * ratio))
            at_steps, at_seconds = (losses(candidate, RATE, count) for count in (steps, fewer))
            rows.append(
                {
                    "flow": label,
                    "lr": RATE,
                    "test": summary(at_steps),
                    "equal_steps": paired_difference(at_steps, default),
                    "steps_at_equal_seconds": fewer,
                    "test_at_equal_seconds": summary(at_seconds),
                    "equal_seconds": paired_difference(at_seconds, default),
                }
            )
        found[name] = rows
    return found


def tables(result: Mapping[str, Any]) -> str:
    """The search and the confirmation as the two tables of docs/potential-search.md."""
    names = list(result["search"][0]["problems"])
    default = result["search"][0]["problems"]
    lines = [
        f"| change of the default | {' | '.join(names)} | ms |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    for row in result["search"]:
        cells = [_searched(row["problems"].get(name), default[name], row["factor"]) for name in names]
        lines.append(f"| {row['candidate']} | {' | '.join(cells)} | {result['ms'][row['candidate']]:.0f} |")
    lines += [
        "",
        "| flow | problem | rate | test | equal steps | equal seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, rows in result["confirmed"].items():
        for row in rows:
            test = f"{row['test']['mean']:.3f} ± {row['test']['sem']:.3f}"
            apart = [_interval(row.get(key)) for key in ("equal_steps", "equal_seconds")]
            lines.append(f"| {row['flow']} | {name} | {row['lr']:g} | {test} | {' | '.join(apart)} |")
    return "\n".join(lines)


def _searched(found: Mapping[str, Any] | None, default: Mapping[str, Any], factor: str) -> str:
    if found is None:
        return "–"
    if found["validation"] is None:
        return "diverged"
    apart = "" if factor == "default" else f" ({found['validation'] - default['validation']:+.2f})"
    return f"{found['validation']:.2f}{apart} at {found['lr']:g}"


def _interval(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    if difference["mean"] is None:
        return "diverged"
    low, high = difference["ci95"]
    return f"{difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--data", type=Path, default=None, help="the HEPMASS rows")
    parser.add_argument("--factors", nargs="*", default=list(FACTORS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=3, help="evaluation seeds of the finalists")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of every candidate")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    problems = {name: problem(name, options.data if name == "hepmass" else None) for name in options.problems}
    plan = Plan(Ledger(beside(options.out)), problems, options.steps)
    factors = {name: FACTORS[name] for name in options.factors}
    searched = search(plan, factors)
    finalists = [Candidate(**changes) for changes in FINALISTS]
    candidates = [DEFAULT, *(Candidate(**changes) for options in factors.values() for changes in options)]
    ms = costs(
        list(dict.fromkeys([*candidates, *finalists])), next(iter(problems.values())).dim, options.repeats
    )
    result = {
        "setting": {
            "steps": options.steps,
            "batch_size": BATCH_SIZE,
            "selection_seed": SELECTION_SEED,
            "evaluation_seeds": list(range(options.seeds)),
            "default": dataclasses.asdict(DEFAULT),
        },
        "search": searched,
        "ms": ms,
        "confirmed": confirm(plan, searched, finalists, ms, range(options.seeds), options.steps),
    }
    print("\n" + tables(result))
    timing.write(options.out, "python benchmarks/potential_search.py --data HEPMASS.npz", result)
    return result


if __name__ == "__main__":
    main()
