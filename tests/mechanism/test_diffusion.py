"""Drift and diffusion of one step, against steps done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from convexlift import Lift, Projected, Softplus
from convexlift.mechanism import update_diffusion


def normal(count, *shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_of_a_linear_loss_on_direct_weights_both_are_exact(linear):
    source, batches = Projected(linear(3, weight=5.0)), normal(6, 4, 3)
    found = update_diffusion(source, lambda x: source(x).mean(), batches, lr=0.1)
    steps = -0.1 * torch.stack([x.mean(0) for x in batches])
    assert found.drift == pytest.approx(float(steps.mean(0).norm()), rel=1e-10)
    assert found.diffusion == pytest.approx(float(torch.cov(steps.T).trace()), rel=1e-10)
    assert found.drift_error == pytest.approx((found.diffusion / 6) ** 0.5, rel=1e-10)
    assert found.emission == 0


def test_the_step_is_projected(linear):
    source = Projected(linear(2, weight=0.0))
    found = update_diffusion(source, lambda x: source(x.square()).mean(), normal(4, 4, 2), lr=0.1)
    assert (found.drift, found.diffusion) == (0, 0)


def test_of_a_lift_the_emission_adds_to_the_step(linear):
    """theta = b + r m with m in {-1, 1}, and a loss that reads W only: the step is that of the slack."""
    plainly = {"weight_gain": 1.0, "standardise": None, "readout": "dense", "readout_scale": 1.0}
    lift = Lift(linear(1), summary="moments", **plainly)
    direct, r, b, lr = Softplus(linear(1)), 0.5, 0.3, 1e-6
    with torch.no_grad():
        lift.slack[0].fill_(b)
        lift.readout.maps[0].copy_(torch.tensor([[r, 0.0]]))
    batches = [torch.full((2, 1), m, dtype=torch.float64) for m in (-1.0, 1.0, 1.0, -1.0)]
    found = update_diffusion(lift, lambda x: lift(x).square().mean(), batches, lr=lr)
    high, low = math.log1p(math.exp(b + r)), math.log1p(math.exp(b - r))
    assert found.emission == pytest.approx((high - low) ** 2 / 3, rel=1e-9)
    assert found.diffusion == pytest.approx(found.emission, rel=1e-4)
    assert found.drift > 0
    plain = update_diffusion(direct, lambda x: direct(x).square().mean(), batches, lr=lr)
    assert plain.emission == 0 and plain.diffusion < 1e-20 < plain.drift


def test_an_independent_lift_needs_its_batches(linear):
    lift = Lift(linear(1), coupling="independent")

    def loss(x, emit_from=None):
        return lift(x, emit_from).mean()

    batches = normal(6, 4, 1)
    with pytest.raises(ValueError, match="reads independent batches in training: pass emit_from"):
        update_diffusion(lift, loss, batches[:3], lr=0.1)
    assert update_diffusion(lift, loss, batches[:3], lr=0.1, emit_from=batches[3:]).emission > 0


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan])
def test_errors(linear, lr):
    source = Softplus(linear(1))
    with pytest.raises(ValueError, match=f"lr must be positive; got {lr}"):
        update_diffusion(source, lambda x: source(x).mean(), normal(3, 4, 1), lr=lr)
    with pytest.raises(ValueError, match="update_diffusion needs at least 3 probe batches; got 1"):
        update_diffusion(source, lambda x: source(x).mean(), normal(1, 4, 1), lr=0.1)
    with pytest.raises(ValueError, match="loss does not depend on the weights of the model"):
        other = Softplus(linear(1))
        update_diffusion(source, lambda x: other(x).mean(), normal(3, 4, 1), lr=0.1)
