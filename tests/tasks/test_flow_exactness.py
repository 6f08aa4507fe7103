"""A frozen flow is one normalised density: it integrates to one, its draws agree, it is restored exactly."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import convexlift as cl
from convexlift import ICNN, Lift, Projected, Softplus, Squared
from convexlift.tasks import ConvexPotentialFlow

SOURCES = {
    "icnn": lambda net: net,
    "projected": Projected,
    "softplus": Softplus,
    "squared": Squared,
    "lift": partial(Lift, weight_gain=1.0, free_gain=1.0),  # at a large rate
}


def ring(n: int = 2000, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return (torch.stack([angle.cos(), angle.sin()], dim=1) * 2 + noise + 5).to(dtype)


def bent(n: int = 2000, dtype: torch.dtype = torch.float64) -> Tensor:
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([10 + a, -5 + a**2 + 0.5 * b], dim=1).to(dtype)


def bumps(n: int = 2000, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.rand(n, 1, generator=generator) < 0.3, -2.0, 1.0).double()
    return (side + 0.4 * torch.randn(n, 1, generator=generator, dtype=torch.float64)).to(dtype)


def wild(name: str, data: Tensor, blocks: int = 1) -> ConvexPotentialFlow:
    """A frozen flow of sharp random potentials, twice as strong as they start."""
    torch.manual_seed(0)
    dim = data.shape[1]
    nets = [ICNN(dim, hidden=(12, 12), sharpness=3.0, strong_convexity=1.0, seed=k) for k in range(blocks)]
    for net in nets:
        with torch.no_grad():
            net.outer.mul_(2.0)
    flow = ConvexPotentialFlow([SOURCES[name](net) for net in nets]).double()
    flow.initialise(data)
    with torch.no_grad():
        for norm in flow.norms:
            norm.shift += 0.3
    return flow.freeze(data)


def trained(train, name: str, data: Tensor, blocks: int, steps: int = 60) -> ConvexPotentialFlow:
    torch.manual_seed(0)
    nets = [ICNN(data.shape[1], hidden=(12, 12), seed=k) for k in range(blocks)]
    flow = ConvexPotentialFlow([SOURCES[name](net) for net in nets])
    train(flow, data.float(), steps=steps)
    return flow.freeze(data.float()).double()


def box(flow: ConvexPotentialFlow, margin: float = 0.3) -> tuple[Tensor, Tensor]:
    """The corners of a box around 2000 draws, widened."""
    x = flow.sample(2000, seed=7)
    low, high = x.amin(0), x.amax(0)
    return low - margin * (high - low), high + margin * (high - low)


def grid(low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, float]:
    """Midpoints of equal cells of the box, the last coordinate fastest, and a cell's volume."""
    step = (high - low) / cells
    sides = [a + h * (torch.arange(cells, dtype=low.dtype) + 0.5) for a, h in zip(low, step, strict=True)]
    points = torch.cartesian_prod(*sides)
    return points.reshape(-1, len(low)), step.prod().item()


def mass(flow: ConvexPotentialFlow, cells: int = 200) -> float:
    points, volume = grid(*box(flow), cells)
    return flow.log_prob(points).exp().sum().item() * volume


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", SOURCES)
def test_flows_of_sharp_potentials_integrate_to_one(name, blocks):
    assert mass(wild(name, bent(), blocks)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("name", "data", "blocks"), [("squared", ring, 2), ("lift", bent, 2)])
def test_trained_flows_integrate_to_one(train, name, data, blocks):
    flow = trained(train, name, data(), blocks)
    assert mass(flow) == pytest.approx(1, abs=1e-3)


def test_the_integral_sees_a_wrong_log_determinant():
    flow = wild("softplus", bent())
    assert mass(flow) == pytest.approx(1, abs=1e-3)
    points, volume = grid(*box(flow), 200)
    z, logdet = flow(points)
    wrong = logdet + 0.01 - 0.5 * z.square().sum(1) - math.log(2 * math.pi)
    assert abs(wrong.exp().sum().item() * volume - 1) > 5e-3


def disagreement(flow: ConvexPotentialFlow, x: Tensor, cells: int, inside: int) -> float:
    """The chi-square tail probability of draws x against the expected numbers of the cells.

    A cell's probability is the integral of exp(log_prob) over it, by `inside` midpoints a side; cells that
    expect fewer than 10 draws, and the outside of the box, are taken together.
    """
    n = len(x)
    low, high = box(flow, 0.0)
    points, volume = grid(low, high, cells * inside)
    density = flow.log_prob(points).exp() * volume
    dim = flow.dim
    blocks = density.reshape((cells, inside) * dim)
    expected = blocks.sum(tuple(range(1, 2 * dim, 2))).flatten() * n
    place = ((x - low) / (high - low) * cells).floor().long()
    within = ((place >= 0) & (place < cells)).all(1)
    flat = torch.zeros(len(x), dtype=torch.long)
    for axis in range(dim):
        flat = flat * cells + place[:, axis]
    observed = torch.bincount(flat[within], minlength=cells**dim).double()
    big = expected >= 10
    rest = n - expected[big].sum(), n - observed[big].sum()
    statistic = ((observed - expected)[big].square() / expected[big]).sum() + (rest[1] - rest[0]) ** 2 / rest[
        0
    ]
    return float(chi2.sf(statistic.item(), int(big.sum())))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", SOURCES)
def test_draws_on_the_line_agree_with_the_density(name, blocks):
    flow = wild(name, bumps(), blocks)
    x = flow.sample(8000, seed=1)
    assert 1e-3 < disagreement(flow, x, 60, 20) < 0.999
    assert disagreement(flow, x + 0.1 * flow.standardiser.scale, 60, 20) < 1e-6


@pytest.mark.parametrize("name", SOURCES)
def test_draws_in_the_plane_agree_with_the_density(name):
    flow = wild(name, bent(), blocks=2)
    x = flow.sample(8000, seed=1)
    assert 1e-3 < disagreement(flow, x, 24, 6) < 0.999
    assert disagreement(flow, x + 0.1 * flow.standardiser.scale, 24, 6) < 1e-6


@pytest.mark.parametrize(("data", "cells", "inside"), [(bumps, 60, 20), (ring, 24, 6)])
def test_draws_of_a_trained_flow_agree_with_its_density(train, data, cells, inside):
    flow = trained(train, "squared", data(), 2)
    assert 1e-3 < disagreement(flow, flow.sample(8000, seed=1), cells, inside) < 0.999


# Restored exactly.


def copy_of(flow: ConvexPotentialFlow, name: str) -> ConvexPotentialFlow:
    """A flow of that make with other weights, never initialised."""
    torch.manual_seed(99)
    nets = [ICNN(2, hidden=(12, 12), seed=50 + k) for k in range(len(flow.blocks))]
    return ConvexPotentialFlow([SOURCES[name](net) for net in nets]).to(flow.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOURCES)
def test_a_state_dict_restores_log_probabilities_bit_for_bit(name, dtype, tmp_path):
    x = bent(300, dtype)
    torch.manual_seed(0)
    flow = ConvexPotentialFlow([SOURCES[name](ICNN(2, hidden=(12, 12), seed=k)) for k in range(2)]).to(dtype)
    flow.initialise(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        flow.loss(x).backward()
        optimizer.step()
        for block in flow.blocks:
            if isinstance(block, ICNN):  # nobody projects a bare network
                for weight in block.nonnegative:
                    block.get_parameter(weight).data.clamp_(0)
            elif isinstance(block, Projected):
                block.project()
    batch = x if name == "lift" else None
    torch.save(flow.state_dict(), tmp_path / "state.pt")
    again = copy_of(flow, name)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert bool(again.standardiser.fitted) and all(bool(norm.initialised) for norm in again.norms)
    assert torch.equal(again.log_prob(x, batch=batch), flow.log_prob(x, batch=batch))
    assert again.loss(x).item() == flow.loss(x).item()
    before = again.log_prob(x, batch=batch)
    with pytest.warns(UserWarning, match="initialised on other data"):
        again.initialise(x + 100)
    assert torch.equal(again.log_prob(x, batch=batch), before)

    frozen = flow.freeze(x)
    blank = copy_of(flow, "icnn")
    blank.load_state_dict(frozen.state_dict())
    assert torch.equal(blank.freeze().log_prob(x), frozen.log_prob(x))
    cl.save(frozen, tmp_path / "flow.safetensors")
    loaded = cl.load(tmp_path / "flow.safetensors")
    assert torch.equal(loaded.log_prob(x), frozen.log_prob(x))
    assert torch.equal(loaded.sample(20, seed=0), frozen.sample(20, seed=0))
    assert bool(loaded.standardiser.fitted) and all(bool(norm.initialised) for norm in loaded.norms)


@pytest.mark.parametrize("settled", [False, True])
def test_a_lift_restored_in_the_middle_of_training_goes_on_alike(settled):
    x = bent(200, torch.float32)
    torch.manual_seed(0)
    flow = ConvexPotentialFlow([Lift(ICNN(2, hidden=(12, 12), seed=k)) for k in range(2)])
    flow.initialise(x)
    if settled:
        flow.set_progress(0.9)
        flow.settle(x)
    again = copy_of(flow, "lift")
    if settled:
        again.set_progress(0.9)
    again.load_state_dict(flow.state_dict())
    assert torch.equal(again.freeze(x).log_prob(x), flow.freeze(x).log_prob(x))
    if settled:
        assert torch.equal(again.freeze().log_prob(x), flow.freeze().log_prob(x))
