"""Which gains, readout scale, rank and body should a lift have by default?

    python benchmarks/studies/lift_gain.py --out results/lift_gain.json

theta = g b + R s, with a gain g of the constrained weights and one of the free tensors. Adam at 0.001,
cosine, on problems that no comparison in results/ scores: a density in one dimension from the folded-normal
start, two flows and two regressions. Gains first, then scale, rank and body at the gains that are best so
far; what is chosen has the least mean regret over problems, (loss - least) / (softplus - least), with one
value for all. Beside the lifts stand softplus and projection. Finished runs are kept beside the result: run
it again to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from common import Ledger, Outcome, mean, train_and_score
from timing import Result, arguments, given, markdown, parsed, write
from torch import Tensor

import convexlift as cl
from convexlift.data import Simulator
from convexlift.problems import Problem
from convexlift.study.arms import ARMS, Arm, build

GAINS = ((1, 1), (1, 20), (1, 40), (4, 40), (20, 20), (40, 40), (1, 10), (4, 20), (1, 80))
VARIED: Mapping[str, dict[str, Any]] = {
    "scale 0.1": {"readout_scale": 0.1},
    "scale 1": {"readout_scale": 1.0},
    "scale 3": {"readout_scale": 3.0},
    "rank 4": {"rank": 4},
    "without body": {"body": "constant"},
}
CONTROLS = ("softplus", "projected")
FOLDED: dict[str, Any] = {
    "hidden": (128, 128, 128),
    "strong_convexity": 0.02,
    "learn_strong_convexity": False,
    "init": "folded_normal",
}
PLAIN: dict[str, Any] = {"hidden": (64, 64, 64)}
FLAT = {**PLAIN, "strong_convexity": 0.0, "learn_strong_convexity": False}
ABOUT: dict[str, Any] = {"description": "", "source": "", "licence": ""}


def settings() -> dict[str, dict[str, Any]]:
    """The lifts by name: their options, beside what is the default."""
    gains = {f"gains {w} and {f}": {"weight_gain": float(w), "free_gain": float(f)} for w, f in GAINS}
    return {name: {"readout_scale": 0.3, "rank": 1, **options} for name, options in gains.items()}


def problems() -> dict[str, Callable[[], Problem]]:
    """Those of the search by name."""
    return {
        "skew normal": skew_normal,
        "copula": lambda: flow("copula", copula()),
        "breast cancer": lambda: flow("breast cancer", breast_cancer()),
        "hyperbolic cosines": partial(regression, "hyperbolic cosines"),
        "cone": partial(regression, "cone"),
    }


def skew_normal() -> Problem:
    """The density 2 phi(x) Phi(4 x), whose draws are fresh."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        delta, z = 4 / math.sqrt(17), torch.randn(n, 2, generator=generator)
        return delta * z[:, :1].abs() + math.sqrt(1 - delta**2) * z[:, 1:]

    def log_prob(x: Tensor) -> Tensor:
        x = x.double().squeeze(1)
        return 0.5 * math.log(2 / math.pi) - 0.5 * x.square() + torch.special.log_ndtr(4 * x)

    rows = [draw(n, torch.Generator().manual_seed(n)) for n in (2_000, 5_000)]
    return Problem(
        name="skew normal", task="density", dim=1, train=Simulator(draw), validation=rows[0], test=rows[1],
        architecture=FOLDED, log_prob=log_prob, **ABOUT,
    )  # fmt: skip


def copula() -> Tensor:
    """2,500 rows of 10 columns with exponential margins under a Gaussian copula."""
    draws = torch.Generator().manual_seed(15)
    mixed = torch.randn(2_500, 10, generator=draws) @ torch.randn(10, 10, generator=draws)
    return -torch.special.log_ndtr(-mixed / mixed.std(0))


def breast_cancer() -> Tensor:
    """The ten means of scikit-learn's table of 569 rows, in a fixed order."""
    from sklearn.datasets import load_breast_cancer

    rows = torch.from_numpy(load_breast_cancer().data[:, :10]).float()
    rows = (rows - rows.mean(0)) / rows.std(0)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(15))]


def flow(name: str, rows: Tensor) -> Problem:
    """A density of rows: 70 % of them train, 10 % validate."""
    train, validation, test = rows.tensor_split([int(0.7 * len(rows)), int(0.8 * len(rows))])
    return Problem(
        name=name, task="flow", dim=rows.shape[1], train=train, validation=validation, test=test,
        architecture=PLAIN, **ABOUT,
    )  # fmt: skip


def regression(name: str) -> Problem:
    """sum cosh(x_i) in 10 dimensions, or the cone |A x| in 20, with noise of a fifth of the deviation."""
    dim = 10 if name == "hyperbolic cosines" else 20
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(15)) / math.sqrt(dim)

    def truth(x: Tensor) -> Tensor:
        return (x @ mixing).norm(dim=1) if name == "cone" else x.cosh().sum(1)

    def split(rows: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        x = 4 * torch.rand(rows, dim, generator=draws) - 2
        y = truth(x)
        return x, y + noise * y.std() * torch.randn(rows, generator=draws)

    return Problem(
        name=name, task="regression", dim=dim, train=split(2_000, 0.2, 1), validation=split(500, 0.2, 2),
        test=split(4_000, 0.0, 3), architecture=FLAT, **ABOUT,
    )  # fmt: skip


KNOWN = lru_cache(lambda name: problems()[name]())


def run(name: str, arm: str, options: Mapping[str, Any], seed: int, steps: int) -> Outcome:
    """Train one arm on one problem at the rate 0.001."""
    known = KNOWN(name)
    make: Arm = partial(cl.Lift, **options) if arm == "lift" else ARMS[arm]
    return train_and_score(
        build(known, arm, seed, {arm: make}),
        known,
        steps=steps,
        evaluations=5,
        batch_size=128 if known.task == "flow" else 256,
        lr=0.001,
        clip=1.0 if known.task == "density" else None,
        seed=seed,
    )


def regrets(losses: Mapping[str, Mapping[str, list[float | None]]]) -> dict[str, float]:
    """The mean over problems of (loss - least) / (softplus - least); ``losses`` by problem and arm."""
    found: dict[str, list[float]] = {}
    for by_arm in losses.values():
        means = {arm: mean(values) for arm, values in by_arm.items()}
        least = min(means.values())
        for arm, value in means.items():
            found.setdefault(arm, []).append((value - least) / (means["softplus"] - least))
    return {arm: mean(values) for arm, values in found.items()}


def table_lift_gain(result: Result) -> str:
    """Every way and problem, and the mean regret."""
    names = list(result["losses"])
    rows = []
    for arm, regret in sorted(result["regrets"].items(), key=lambda pair: pair[1]):
        values = [mean(result["losses"][name][arm]) for name in names]
        rows.append([arm, f"{regret:.2f}", *(f"{value:.4g}" for value in values)])
    return markdown(("trained by", "mean regret", *names), rows)


def main() -> None:
    parser = arguments(__file__, __doc__, seeds=1, steps=500)
    options = parsed(parser)
    ledger = Ledger(options.out, __file__)
    losses: dict[str, dict[str, list[float | None]]] = {name: {} for name in problems()}

    def train(title: str, arm: str, lift: Mapping[str, Any]) -> None:
        for name in losses:
            for seed in range(options.seeds):
                cell = {"problem": name, "arm": arm, "lift": dict(lift)}
                cell |= {"seed": seed, "steps": options.steps}
                found = ledger.run(cell, partial(run, name, arm, lift, seed, options.steps))
                losses[name].setdefault(title, []).append(found["test"])
        print(title, [f"{mean(losses[name][title]):.4g}" for name in losses], flush=True)

    for arm in CONTROLS:
        train(arm, arm, {})
    tried = settings()
    for title, lift in tried.items():
        train(title, "lift", lift)
    found = regrets(losses)
    best = min(tried, key=lambda title: found[title])
    for name, changed in VARIED.items():
        train(f"{best}, {name}", "lift", {**tried[best], **changed})
    result = {**given(options, "seeds", "steps"), "gains": best, "losses": losses, "regrets": regrets(losses)}
    write(options, result, table_lift_gain)


if __name__ == "__main__":
    main()
