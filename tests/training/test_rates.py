"""Multipliers of the rate by parameter group, and warm-up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.training.optimisation import decayed_matrices, parameter_groups

X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
SOURCES: dict[str, Callable[[nn.Module], Any]] = {
    "projected": cl.Projected,
    "softplus": cl.Softplus,
    "squared": cl.Squared,
    "lift": partial(cl.Lift, targets="nonnegative", seed=0),
    "lift of everything": partial(cl.Lift, targets="all", seed=0),
}


class Regression(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def loss(self, batch: Tensor) -> Tensor:
        return (self.source(batch) - batch.square().sum(1)).square().mean()


def moved(name: str, **options: Any) -> dict[str, Tensor]:
    """How far each parameter goes in one step of gradient descent."""
    module = Regression(SOURCES[name](cl.ICNN(2, hidden=(4, 4), seed=0)))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    cl.fit(module, X, steps=1, optimizer="sgd", lr=1e-3, batch_size=32, progress=False, **options)
    return {name: p.detach() - before[name] for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", SOURCES)
def test_every_group_takes_steps_of_its_own_size(name: str) -> None:
    source = SOURCES[name](cl.ICNN(2, hidden=(4, 4), seed=0))
    free = {id(p) for p in source.free_tensors().values()}
    group = {f"source.{n}": "free" if id(p) in free else "source" for n, p in source.named_parameters()}
    plain, multiplied = moved(name), moved(name, rates={"free": 3.0, "source": 0.5})
    for parameter, step in plain.items():
        factor = {"free": 3.0, "source": 0.5}[group[parameter]]
        torch.testing.assert_close(multiplied[parameter], factor * step, rtol=1e-3, atol=2e-7)
    assert {group[parameter] for parameter, step in plain.items() if step.any()} == {"free", "source"}


def decayed_names(source: Any) -> set[str]:
    decayed = {id(p) for p in decayed_matrices(source)}
    return {name for name, p in source.free_tensors().items() if id(p) in decayed}


def test_of_a_lift_of_everything_the_slack_of_the_free_tensors_is_free() -> None:
    for net in (
        cl.ICNN(2, hidden=(4, 4), quadratic_rank=2),
        cl.PICNN(2, 3, hidden=(4, 4), context_hidden=(5,)),
    ):
        plain, lift = cl.Squared(net), cl.Lift(net, targets="all", seed=0)
        assert lift.free_tensors().keys() == plain.free_tensors().keys()
        assert decayed_names(plain) == decayed_names(lift) != set()
        sourced, free = (group["params"] for group in parameter_groups(lift))
        assert len(free) == len(lift.free_tensors())
        assert any(p is lift.slack[0] for p in sourced)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "soap"])
def test_decay_follows_the_rate_of_the_free_group(optimizer: str) -> None:
    layer = nn.Linear(2, 3, bias=False)
    layer.loss = lambda batch: 0.0 * layer.weight.sum()  # type: ignore[assignment]
    before = layer.weight.detach().clone()
    options: dict[str, Any] = {"steps": 1, "lr": 0.1, "weight_decay": 0.5, "progress": False}
    cl.fit(layer, X, optimizer=optimizer, rates={"free": 4.0}, **options)
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.4 * 0.5))


def test_a_large_step_of_weights_that_do_not_decay_may_exceed_the_decay() -> None:
    moved("squared", rates={"source": 5e3}, weight_decay=0.5)


class Noted(torch.optim.SGD):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[float] = []

    def step(self, closure: Any = None) -> None:
        self.seen.append(self.param_groups[0]["lr"])


def test_warm_up_multiplies_the_schedule() -> None:
    layer, made = Regression(cl.Squared(cl.ICNN(2, hidden=(4,)))), []

    def make(groups: Any) -> Noted:
        made.append(Noted(groups, lr=0.5))
        return made[0]

    cl.fit(layer, X, steps=8, warmup=4, optimizer=make, progress=False)
    rates = [0.5 * min(1, (k + 1) / 4) * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert made[0].seen == pytest.approx(rates)


def test_another_multiplier_or_warm_up_is_not_resumed(tmp_path: Path) -> None:
    def run(resume: bool = False, **options: Any) -> None:
        module = Regression(cl.Squared(cl.ICNN(2, hidden=(4,), seed=0)))
        cl.fit(module, X, steps=2, lr=0.01, run_dir=tmp_path, resume=resume, progress=False, **options)

    run(rates={"free": 2}, warmup=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rates"] == {"free": 2.0} and config["warmup"] == 1
    run(resume=True, rates={"free": 2.0}, warmup=1)
    for options, told in (
        ({"warmup": 1}, "rates was {'free': 2.0} and is now not set"),
        ({"rates": {"free": 3.0}, "warmup": 1}, "rates was {'free': 2.0} and is now {'free': 3.0}"),
        ({"rates": {"free": 2.0}}, "warmup was 1 and is now not set"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(told)}$"):
            run(resume=True, **options)
