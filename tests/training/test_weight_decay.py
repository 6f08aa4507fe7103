"""Decoupled weight decay: what it falls on, by how much, and that nothing changes without it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.training import fit
from convexlift.training.optimisation import (
    attach_weight_decay,
    decayed_matrices,
    make_optimizer,
    parameter_groups,
)

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
LR, DECAY = 0.1, 0.5
QUICK: dict[str, Any] = {"batch_size": 16, "progress": False}


class Flat(nn.Module):
    """A loss that reaches every parameter with gradient zero."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def loss(self, batch: Tensor) -> Tensor:
        return torch.stack([0.0 * p.sum() for p in self.parameters() if p.requires_grad]).sum()


class Cubic(nn.Module):
    """A module of a user's own: with W >= 0 in ``lift``, it is convex in x >= 0."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Parameter(torch.rand(5, 3))
        self.read = nn.Parameter(torch.randn(3, 2))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x @ self.read.T + self.bias) ** 3 @ self.lift.T).sum(1)


def net(**options: Any) -> cl.ICNN:
    return cl.ICNN(2, hidden=(4, 1, 4), seed=0, **options)


def changed(module: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


SOURCES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "projected": (lambda: cl.Projected(net()), ["architecture.skips."]),
    "softplus": (lambda: cl.Softplus(net()), ["architecture.skips."]),
    "softplus by fan-in": (lambda: cl.Softplus(net(), fan_in=True), ["architecture.skips."]),
    "squared": (lambda: cl.Squared(net()), ["architecture.skips."]),
    "lift": (lambda: cl.Lift(net(), seed=0), ["slack.3", "slack.4", "slack.5"]),  # of the skips
    "lift of weights": (lambda: cl.Lift(net(), targets="nonnegative", seed=0), ["architecture.skips."]),
    "dense lift": (lambda: cl.Lift(net(), readout="dense", seed=0), ["slack.5", "slack.6", "slack.7"]),
    "centred": (lambda: cl.Centred(cl.Squared(net())), ["source.architecture.skips."]),
    "centred with slopes": (
        lambda: cl.Centred(cl.Squared(net()), slopes=True),
        ["source.architecture.skips."],
    ),
    "a lifted module": (lambda: cl.Lift(Cubic(), ["lift"], seed=0), ["slack.1"]),
    "a projected module": (lambda: cl.Projected(Cubic(), ["lift"]), ["architecture.read"]),
    "convolutional": (
        lambda: cl.Squared(cl.ConvICNN((1, 4, 4), channels=(2, 3), pooling="none", seed=0)),
        ["architecture.skips."],
    ),
    "partial": (
        lambda: cl.Squared(cl.PICNN(2, 3, hidden=(4, 4), context_hidden=(5,), seed=0)),
        [
            "architecture.convex.skips.",
            "architecture.context_weights.",
            "architecture.gates.",
            "architecture.scales.",
            "architecture.offsets.",
            "architecture.tilt",
        ],
    ),
    "learned quadratic": (lambda: cl.Squared(net(quadratic_rank=2)), ["architecture.skips."]),
    "without a source": (net, ["skips."]),
    "without skips": (lambda: net(skip=False), ["skips.0"]),
    "flow": (
        lambda: cl.ConvexPotentialFlow([cl.Softplus(net()) for _ in range(2)]),
        ["blocks.0.architecture.skips.", "blocks.1.architecture.skips."],
    ),
    "regression": (lambda: cl.ConvexRegression(cl.Centred(cl.Squared(net()))), ["architecture.skips."]),
    "torch's own": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Conv2d(1, 2, 3)), ["0.weight", "1.weight"]),
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "soap"])
@pytest.mark.parametrize("case", SOURCES)
def test_one_step_without_gradient_shrinks_the_free_matrices_alone(case: str, optimizer: str) -> None:
    make, names = SOURCES[case]
    part = make()
    module = Flat(part)
    before = values(part)
    options: dict[str, Any] = {"steps": 1, "lr": LR, "optimizer": optimizer, **QUICK}
    fit(module, X, weight_decay=DECAY, **options)
    moved = changed(part, before)
    for name, now in moved.items():
        assert any(known in name for known in names), name
        assert torch.equal(now, before[name] * (1 - LR * DECAY)), name
    for known in names:
        assert any(known in name for name in moved), known
    assert len(moved) == sum(any(known in name for known in names) for name in before)

    still = Flat(make())
    before = values(still)
    fit(still, X, **options)
    assert not changed(still, before)


@pytest.mark.parametrize(
    "case", [case for case in SOURCES if case not in ("flow", "regression", "torch's own")]
)
def test_the_frozen_non_negative_weights_stay(case: str) -> None:
    part: Any = SOURCES[case][0]()
    names = getattr(part, "names", None) or getattr(part, "nonnegative", None) or part.source.names
    data = torch.randn(30, 5 if case == "partial" else 16 if case == "convolutional" else 2)
    before = values(part.freeze(data))
    fit(Flat(part), X, steps=3, lr=LR, weight_decay=DECAY, **QUICK)
    after = values(part.freeze(data))
    assert all(torch.equal(after[name], before[name]) for name in names)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_matrix_that_a_lift_emits_shrinks_towards_the_readouts_share_of_it() -> None:
    lift, x = cl.Lift(net(), readout_scale=0.01, seed=0), torch.randn(30, 2)
    lift.initialise(x)
    before = lift.freeze(x).skips[1].clone()  # type: ignore[union-attr]
    (share,) = (
        r for name, r in zip(lift.emitted, lift._offsets(lift.slack), strict=True) if name == "skips.1"
    )
    fit(Flat(lift), X, steps=50, lr=LR, schedule="constant", weight_decay=DECAY, **QUICK)
    kept = (1 - LR * DECAY) ** 50
    assert kept < 0.7
    torch.testing.assert_close(lift.freeze(x).skips[1], kept * (before - share) + share)  # type: ignore[union-attr]


def test_shared_matrices_decay_once() -> None:
    shared = nn.Linear(3, 3)
    assert len(decayed_matrices(nn.Sequential(shared, shared))) == 1
    shared.weight.requires_grad_(False)
    assert decayed_matrices(shared) == []


@pytest.mark.parametrize("schedule", ["cosine", "constant", lambda t: 1.5 - t])
def test_the_rate_is_the_scheduled_one(schedule: Any) -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    fit(Flat(layer), X, steps=4, lr=LR, schedule=schedule, weight_decay=DECAY, **QUICK)
    factor = 1.0
    for t in (0.0, 0.25, 0.5, 0.75):
        at = {"cosine": 0.5 * (1 + torch.tensor(torch.pi * t).cos().item()), "constant": 1.0}
        factor *= 1 - LR * DECAY * (schedule(t) if callable(schedule) else at[schedule])
    torch.testing.assert_close(layer.weight.detach(), before * factor)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(2, 8).double(), nn.Linear(8, 1).double()
        self.unused = nn.Linear(2, 2).double()

    def loss(self, batch: Tensor) -> Tensor:
        return (self.last(torch.tanh(self.first(batch)))[:, 0] - batch.prod(1)).square().mean()


@pytest.mark.parametrize("choice", ["adam", "sgd"])
def test_steps_are_those_of_torchs_decoupled_decay(choice: str) -> None:
    ours, theirs = Regression(), Regression()
    one = make_optimizer(choice, parameter_groups(ours), LR)
    attach_weight_decay(one, ours, DECAY)
    matrices, rest = ([p for p in theirs.parameters() if (p.ndim >= 2) == pick] for pick in (True, False))
    if choice == "adam":
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        other: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=LR)
    else:
        other = torch.optim.SGD(theirs.parameters(), lr=LR, momentum=0.9)
    for _ in range(20):
        for module, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad(set_to_none=True)
            module.loss(X.double()).backward()
            if module is theirs and choice == "sgd":
                with torch.no_grad():
                    for p in (theirs.first.weight, theirs.last.weight):
                        p *= 1 - LR * DECAY
            optimizer.step()
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    for (name, p), q in pairs:
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12, msg=name)
    assert torch.equal(ours.unused.weight, Regression().unused.weight)  # it has no gradient


def flow(source: Callable[[nn.Module], nn.Module] = cl.Squared) -> cl.ConvexPotentialFlow:
    torch.manual_seed(0)
    return cl.ConvexPotentialFlow([source(cl.ICNN(2, hidden=(4, 4), seed=0))])


@pytest.mark.parametrize("choice", ["adam", "sgd"])
def test_without_decay_the_optimiser_is_as_before(choice: str) -> None:
    module = flow()
    optimizer = make_optimizer(choice, parameter_groups(module), LR)
    attach_weight_decay(optimizer, module, 0.0)
    assert not optimizer._optimizer_step_pre_hooks
    assert [g["name"] for g in optimizer.param_groups] == ["source", "free"]
    assert all(g["weight_decay"] == 0 and g["fused"] for g in optimizer.param_groups)
    attach_weight_decay(optimizer, module, DECAY)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert all(g["weight_decay"] == 0 and g["fused"] for g in optimizer.param_groups)


def test_decay_leaves_smaller_skips_and_a_valid_density() -> None:
    sizes = []
    for decay in (0.0, 5.0):
        module = flow(cl.Projected)
        fit(module, X, steps=60, lr=0.03, weight_decay=decay, clip=1.0, **QUICK)
        sizes.append(sum(p.detach().square().sum().item() for p in decayed_matrices(module)))
        assert module.freeze(X).log_prob(X).isfinite().all()
    assert sizes[1] < 0.6 * sizes[0]


def run(folder: Path, *, stop: int | None = None, resume: bool = False, **more: Any) -> dict[str, Tensor]:
    def interrupt(event: Any) -> None:
        if event.step == stop:
            raise KeyboardInterrupt

    module = flow(cl.Lift)
    options: dict[str, Any] = {**QUICK, "steps": 8, "lr": 0.02, "evaluate_every": 2, "weight_decay": 2.0}
    fit(module, X, run_dir=folder, resume=resume, callbacks=[interrupt], **{**options, **more})
    return copy.deepcopy(module.state_dict())


def test_a_run_with_decay_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=4)
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["weight_decay"] == 2.0
    resumed = run(tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    plain = run(tmp_path / "plain", weight_decay=0.0)
    assert not all(torch.equal(plain[name], whole[name]) for name in whole)


def test_another_decay_is_not_resumed_and_a_run_from_before_the_option_is(tmp_path: Path) -> None:
    run(tmp_path / "with", stop=4)
    run(tmp_path / "old", stop=4, weight_decay=0.0)
    # What a run without decay writes is what was written before there was the option.
    assert "weight_decay" not in json.loads((tmp_path / "old" / "config.json").read_text())
    for folder, asked, message in (
        ("with", 1.0, "weight_decay was 2.0 and is now 1.0"),
        ("with", 0.0, "weight_decay was 2.0 and is now not set"),
        ("old", 1.0, "weight_decay was not set and is now 1.0"),
    ):
        named = re.escape(f"cannot resume {tmp_path / folder}: {message}")
        with pytest.raises(ValueError, match=f"^{named}$"):
            run(tmp_path / folder, resume=True, weight_decay=asked)
    resumed, whole = (
        run(tmp_path / "old", resume=True, weight_decay=0.0),
        run(tmp_path / "x", weight_decay=0.0),
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_schedule_that_would_turn_the_sign_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the scheduled rate times weight_decay must be below 1; got 0.4 \* 5"
    ):
        fit(Flat(nn.Linear(2, 1)), X, steps=2, lr=0.1, weight_decay=5, schedule=lambda t: 4.0, **QUICK)
