"""Can the lift be changed so that the noise of its batch helps?

    python benchmarks/studies/lift_variants.py --out results/lift_variants.json

Six changes of the centred lift, whose summary is the batch's fluctuation ds alone, against the plain centred
lift, the default lift, the lift that reads one fixed batch, and softplus:

- annealed: ds times 1 - t, t the fraction of training done;
- learned scale: ds times a positive number for each tensor, softplus of a parameter, started at 1;
- activations: the body reads u_L, the last hidden layer of the network with the weights psi(b), at the batch;
- gradients: the body reads grad f, of the same network, at the batch;
- per layer: a body of its own for each emitted tensor;
- antithetic: steps come in pairs; the second reads the rows of the first again and flips the sign of ds.

All start as the network they are given and freeze to a plain one. Each, the plain and the default lift too,
also emits from an independent batch, at the rate chosen for the coupled one: what is then left of a
difference is the coupling.
Every other arm runs at its own best of three rates, on validation over two seeds that are not scored. The
coupling is measured at 30 % of training, the emission noise at half. Finished runs are kept beside the
result: run it again to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, final

import common
import torch
from common import WEIGHTS_ALONE, Ledger, Outcome, finite, mean, or_inf, train_and_score
from timing import Result, arguments, markdown, parsed, write
from torch import Tensor, nn

import convexlift as cl
from convexlift.architectures import Potential
from convexlift.calculus.derivatives import preactivations
from convexlift.mechanism import coupling, emission_noise
from convexlift.problems import problem
from convexlift.sources.body import DeepSets, pool
from convexlift.sources.readout import Factored
from convexlift.study.arms import ALL_ARMS, Arm, FixedBatchLift, build
from convexlift.study.protocol import best_rate
from convexlift.study.statistics import paired_difference, summary
from convexlift.training import FitEvent

BODY = (64,)
FEATURES = 32
SCALE = 1.0


@final
class Annealed(cl.Lift):
    """theta = b + (1 - t) R ds."""

    t = 0.0

    def set_progress(self, t: float) -> None:
        self.t = t
        super().set_progress(t)

    def latents(self, summary: Tensor) -> list[Tensor]:
        return super().latents((1 - self.t) * summary)


@final
class LearnedScale(cl.Lift):
    """theta_j = b_j + softplus(v_j) R_j ds for the tensors j, v_j learned from softplus(v_j) = 1."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.raw_scales = nn.Parameter(self.anchor.new_full((len(self.slack),), math.log(math.expm1(1.0))))

    def latents(self, summary: Tensor) -> list[Tensor]:
        offsets = self.readout(summary, [torch.zeros_like(b) for b in self.slack], [1.0] * len(self.slack))
        scales = nn.functional.softplus(self.raw_scales).unbind()
        return [b + c * offset for b, c, offset in zip(self.slack, scales, offsets, strict=True)]


class Reading(cl.Lift):
    """A lift whose body reads something that its network makes of the batch, with the weights psi(b)."""

    ready = False

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.ready = True
        reference = torch.randn(512, self.dim, generator=torch.Generator().manual_seed(0)).to(self.anchor)
        self.phi = DeepSets(self.read(reference).shape[1], BODY, FEATURES).to(self.anchor)
        self._set_anchor(reference)

    def look(self, network: Potential, x: Tensor) -> Tensor:
        """What the body reads, (N, k)."""
        raise NotImplementedError

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """What the body reads of the rows x, detached; x itself while the lift is being made."""
        if not self.ready:
            return x
        tensors = {**dict(self.architecture.named_parameters()), **dict(self.architecture.named_buffers())}
        tensors.update(self._weights_from(torch.zeros_like(self.anchor)))
        return self.look(Potential(self.architecture, tensors), x)  # type: ignore[arg-type]

    def _pooled(self, batch: Tensor) -> Tensor:
        total, count = pool(self.phi, self.read(self._rows(batch)))
        return total / count

    def _set_anchor(self, x: Tensor) -> None:
        super()._set_anchor(self.read(x))


@final
class ReadsActivations(Reading):
    """The body reads u_L."""

    def look(self, network: Potential, x: Tensor) -> Tensor:
        net: Any = network.architecture
        return preactivations(x, net.layers(network.tensors), net.activation)[-1]


@final
class ReadsGradients(Reading):
    """The body reads grad f."""

    def look(self, network: Potential, x: Tensor) -> Tensor:
        return network.gradient(x)


@final
class PerLayer(cl.Lift):
    """theta_j = b_j + R_j ds_j, each ds_j of a body of its own."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        count = len(getattr(module, "nonnegative", ()))
        super().__init__(module, **{**options, "features": count * FEATURES})
        self.phi = Bodies(self.dim, count).to(self.anchor)  # type: ignore[assignment]
        self.readout = Readouts([b.shape for b in self.slack]).to(self.anchor)  # type: ignore[assignment]
        reference = torch.randn(512, self.dim, generator=torch.Generator().manual_seed(0)).to(self.anchor)
        self._set_anchor(reference)


@final
class Bodies(nn.Module):
    """Several bodies side by side: (N, d) -> (N, count * features)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([DeepSets(dim, BODY, FEATURES) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


@final
class Readouts(nn.Module):
    """A readout for each tensor, of its own part of the summary."""

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Factored([shape], FEATURES, SCALE, 4) for shape in shapes])

    def forward(self, summary: Tensor, slack: Sequence[Tensor], gains: Sequence[float]) -> list[Tensor]:
        each = zip(self.parts, summary.chunk(len(self.parts)), slack, gains, strict=True)
        return [part(code, [b], [g])[0] for part, code, b, g in each]


@final
class Antithetic(cl.Lift):
    """Steps in pairs: +ds(X_1), then -ds(X_1), of the body at each step and the mean at the first."""

    first: tuple[Tensor, Tensor] | None = None

    def summary(self, batch: Tensor | None) -> Tensor:
        stepping = self.training and torch.is_grad_enabled()
        if batch is None or bool(self.settled) or not stepping:
            return super().summary(batch)
        mean = self.pooled_mean.clone()
        own = super().summary(batch)  # moves the running mean
        if self.first is None:
            self.first = (batch.detach(), mean)
            return own
        (rows, mean), self.first = self.first, None
        return torch.lerp(mean - self._pooled(rows), self.running_mean, self._blend)


OPTIONS: dict[str, Any] = {"standardise": "centred", "readout_scale": SCALE}
LIFTS: Mapping[str, Callable[..., nn.Module]] = {
    "centred": cl.Lift,
    "annealed": Annealed,
    "learned scale": LearnedScale,
    "activations": ReadsActivations,
    "gradients": ReadsGradients,
    "per layer": PerLayer,
    "antithetic": Antithetic,
}
VARIANTS = {name: partial(lift, **OPTIONS, **WEIGHTS_ALONE) for name, lift in LIFTS.items()}
BASE = "softplus"
FIXED = "lift-fixed-batch"
CONTROLS: Mapping[str, Arm] = {
    BASE: ALL_ARMS[BASE],
    "lift": partial(cl.Lift, **WEIGHTS_ALONE),
    FIXED: partial(FixedBatchLift, **WEIGHTS_ALONE),
}
COUPLED: Mapping[str, Callable[..., nn.Module]] = {**VARIANTS, "lift": CONTROLS["lift"]}
INDEPENDENT = ", independent"
ARMS: Mapping[str, Arm] = {
    **CONTROLS,
    **VARIANTS,
    **{name + INDEPENDENT: partial(make, coupling="independent") for name, make in COUPLED.items()},
}


@final
@dataclass(frozen=True)
class Setting:
    """A problem, and how it is trained."""

    problem: str
    batch: int
    steps: int
    rates: tuple[float, ...]


DENSITY_RATES = (0.032, 0.128, 0.512)
SETTINGS = (
    *(Setting(name, batch, 300, DENSITY_RATES) for name in ("gumbel", "laplace") for batch in (256, 32)),
    Setting("regression-square", 500, 200, (0.002, 0.008, 0.032)),
    Setting("collider", 128, 200, (0.008, 0.032, 0.128)),
)
SELECTION_SEEDS, SEEDS = (1_000, 1_001), (0, 1, 2, 3, 4)
EVALUATIONS = 10
PROBES = 16
MEASURES = ("trace", "trace_error", "norm", "p_value")
COUPLING_AT, NOISE_AT = 0.3, 0.5


subject = lru_cache(problem)


def train(setting: Setting, arm: str, lr: float, seed: int, probed: bool) -> Outcome:
    """Train, freeze and score one run; None for what is not finite."""
    chosen, notes = subject(setting.problem), Outcome()
    task: Any = build(chosen, arm, seed, ARMS)

    def probe(event: FitEvent) -> None:
        if not probed or arm in (BASE, FIXED):
            return
        t, fresh = event.step / setting.steps, partial(common.probes, chosen, setting.batch, seed, PROBES)
        if t >= COUPLING_AT and "trace" not in notes and not arm.endswith(INDEPENDENT):
            found = coupling(event.module, task.loss, fresh(), permutations=199).batch
            notes.update({key: getattr(found, key) for key in MEASURES})
        if t >= NOISE_AT and "emission_noise" not in notes:
            notes["emission_noise"] = emission_noise(event.module, fresh())

    how = {"steps": setting.steps, "evaluations": EVALUATIONS, "batch_size": setting.batch}
    noted = {"callbacks": [probe], "also": lambda frozen, history: notes}
    return train_and_score(task, chosen, lr=lr, seed=seed, **how, **noted)


def study(setting: Setting, ledger: Ledger, seeds: Sequence[int]) -> list[Outcome]:
    """Every arm on one problem, with its differences from softplus and from its independent twin."""

    def run(arm: str, lr: float, seed: int, probed: bool) -> Outcome:
        cell = {**asdict(setting), "arm": arm, "lr": lr, "seed": seed, "probed": probed}
        return ledger.run(cell, lambda: train(setting, arm, lr, seed, probed))

    rows: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        if arm.endswith(INDEPENDENT):
            by_rate, lr = None, rows[arm.removesuffix(INDEPENDENT)]["lr"]
        else:
            found = {rate: [run(arm, rate, s, False) for s in SELECTION_SEEDS] for rate in setting.rates}
            by_rate = {rate: mean(o["validation"] for o in outcomes) for rate, outcomes in found.items()}
            lr = best_rate(by_rate) or setting.rates[0]
        runs = [run(arm, lr, seed, True) for seed in seeds]
        about = {"problem": setting.problem, "batch": setting.batch, "arm": arm, "lr": lr}
        rows[arm] = {
            **about,
            "validation": by_rate and {f"{k:g}": finite(v) for k, v in by_rate.items()},
            "test": summary([or_inf(outcome["test"]) for outcome in runs]),
            **{key: [outcome.get(key) for outcome in runs] for key in ("emission_noise", *MEASURES)},
            "seconds": sum(outcome["seconds"] for outcome in runs),
        }
        print(setting.problem, setting.batch, arm, lr, rows[arm]["test"]["mean"], flush=True)
    for arm, row in rows.items():
        row["minus_softplus"] = None if arm == BASE else _minus(row, rows[BASE])
        twin = rows.get(arm + INDEPENDENT)
        row["minus_independent"] = None if twin is None else _minus(row, twin)
    return list(rows.values())


def _minus(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    first, second = ([or_inf(x) for x in row["test"]["per_seed"]] for row in (one, other))
    return paired_difference(first, second)


def table_lift_variants(result: Result) -> str:
    """Changes of the centred lift against softplus and against their own independent batches."""
    rows = {(row["problem"], row["batch"], row["arm"]): row for row in result["rows"]}
    lines = []
    for (name, batch, arm), row in rows.items():
        if arm.endswith(INDEPENDENT):
            continue
        twin = rows.get((name, batch, arm + INDEPENDENT))
        tests = [p for p in row["p_value"] if p is not None]
        noise = [value and 100 * value for value in row["emission_noise"]]
        lines.append(
            [
                *(name, str(batch), arm, f"{row['lr']:g}"),
                *(common.average_text(noise, "{} %"), common.average_text(row["trace"])),
                f"{sum(p <= 0.05 for p in tests)} of {len(tests)}" if tests else "",
                common.score_text(row["test"]),
                common.starred(row["minus_softplus"]),
                common.starred(twin and twin["minus_softplus"]),
                common.starred(row["minus_independent"]),
            ]
        )
    head = (
        *("problem", "batch", "trained by", "rate", "noise", "tr Σ_batch", "tests p ≤ 0.05", "test loss"),
        *("minus softplus", "independent minus softplus", "coupled minus independent"),
    )
    return markdown(head, lines)


def main(line: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__file__, __doc__, seeds=len(SEEDS))
    named = {f"{setting.problem}-{setting.batch}": setting for setting in SETTINGS}
    parser.add_argument("--settings", nargs="+", default=list(named), choices=named, help="problem-batch")
    parser.add_argument("--steps", type=int, default=None, help="steps of every run, for a trial")
    parser.add_argument("--rates", nargs="+", type=float, default=None, help="in place of each setting's")
    options = parsed(parser, line)
    ledger = Ledger(options.out, __file__)
    changes = {"steps": options.steps, "rates": options.rates and tuple(options.rates)}
    changes = {key: value for key, value in changes.items() if value}
    settings = [replace(setting, **changes) for name, setting in named.items() if name in options.settings]
    seeds = tuple(range(options.seeds))
    rows = [row for setting in settings for row in study(setting, ledger, seeds)]
    result = {"settings": [asdict(setting) for setting in settings], "selection_seeds": SELECTION_SEEDS}
    result |= {"seeds": seeds, "scale": SCALE, "coupling_at": COUPLING_AT, "noise_at": NOISE_AT, "rows": rows}
    write(options, result, table_lift_variants)
    return result


if __name__ == "__main__":
    main()
