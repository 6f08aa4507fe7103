"""Every instrument leaves model, gradients and random state as they were: training has the same bits."""

from __future__ import annotations

import pytest
import torch

from convexlift import (
    ICNN,
    Centred,
    ConvexPotentialFlow,
    ConvexRegression,
    Lift,
    LogConcaveDensity,
    Projected,
    fit,
)
from convexlift.mechanism import ShoulderTrace, coupling, gradient_health, update_diffusion

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).exp()

NO_GAIN = {"weight_gain": 1.0, "free_gain": 1.0}  # for large rates


def flow():
    return ConvexPotentialFlow(
        [Lift(ICNN(2, hidden=(8, 8), seed=k), coupling="noise", seed=k, **NO_GAIN) for k in range(2)]
    )


def regression():
    return ConvexRegression(Lift(ICNN(2, hidden=(8, 8), seed=0), summary="moments", seed=0, **NO_GAIN))


def density():
    return LogConcaveDensity(Lift(ICNN(1, hidden=(8, 8), seed=0), standardise="centred", seed=0, **NO_GAIN))


def projected():
    return ConvexRegression(Projected(ICNN(2, hidden=(8, 8), seed=0)))


def centred():
    return ConvexRegression(Centred(Lift(ICNN(2, hidden=(8, 8), seed=0), seed=0)))


def rows_of(task):
    if isinstance(task, ConvexRegression):
        return X, X.square().sum(1)
    return X[:, : task.dim].contiguous()


def probes_of(rows):
    parts = rows if isinstance(rows, tuple) else (rows,)
    batches = list(zip(*(part.split(80) for part in parts), strict=True))
    return batches if isinstance(rows, tuple) else [batch[0] for batch in batches]


def instruments(task, rows):
    probes = probes_of(rows)
    return [
        ShoulderTrace(rows),
        lambda event: coupling(event.module, event.module.loss, probes, permutations=3),
        lambda event: update_diffusion(event.module, event.module.loss, probes, lr=0.1),
        lambda event: gradient_health(event.module, event.module.loss, probes[0]),
    ]


@pytest.mark.parametrize("make", [flow, regression, density, projected, centred])
def test_training_is_the_same_to_the_bit(make):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        task = make()
        rows = rows_of(task)
        callbacks = instruments(task, rows) if watched else []
        history = fit(
            task,
            rows,
            validation=rows,
            allow=("outliers",),
            steps=12,
            batch_size=64,
            lr=0.01,
            evaluate_every=3,
            progress=False,
            callbacks=callbacks,
        )
        ends.append((history.loss, history.validation, task.state_dict()))
        if watched:
            assert callbacks[0].steps == [3, 6, 9, 12]
    assert ends[0][:2] == ends[1][:2]
    assert all(
        torch.equal(value, ends[1][2][name]) for name, value in ends[0][2].items() if not value.isnan().any()
    )


@pytest.mark.parametrize("make", [flow, regression, density, projected, centred])
def test_modes_gradients_and_random_state_come_back(make):
    task = make()
    rows = rows_of(task)
    task.initialise(rows)
    probes = probes_of(rows)
    task.loss(probes[0]).backward()
    if isinstance(task, ConvexPotentialFlow):
        task.blocks[1].eval()
    waiting = task.loss(probes[1])  # a graph in use when an instrument is called
    before = {name: value.clone() for name, value in task.state_dict().items()}
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in task.parameters()]
    modes = [part.training for part in task.modules()]
    state = torch.get_rng_state()
    attributes = [set(vars(part)) for part in task.modules()]
    coupling(task, task.loss, probes, permutations=3)
    gradient_health(task, task.loss, probes[0])
    assert torch.equal(torch.get_rng_state(), state)
    waiting.backward()
    for p, (grad, _) in zip(task.parameters(), gradients, strict=True):
        p.grad = grad
    again = [None if p.grad is None else p.grad.clone() for p in task.parameters()]
    update_diffusion(task, task.loss, probes, lr=0.1)
    with pytest.raises(RuntimeError, match="in the loss"):
        coupling(task, fails, probes)
    assert [part.training for part in task.modules()] == modes
    assert [set(vars(part)) for part in task.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)
    for p, grad in zip(task.parameters(), again, strict=True):
        assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad))
    for name, value in task.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def fails(batch):
    raise RuntimeError("in the loss")
