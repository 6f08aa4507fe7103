"""The landscape of a loss that is known, and plateaus of curves drawn by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from convexlift import ICNN, History, LogConcaveDensity, Softplus, fit
from convexlift.mechanism import Plateau, landscape, plateaus

ZIGZAG = torch.tensor([[0.0, 0.0, 1.0], [3.0, 1.0, 1.0], [6.0, -1.0, 1.0], [9.0, 0.0, 1.0]])


@pytest.mark.parametrize("constrained", [False, True])
def test_a_quadratic(linear, constrained):
    model = linear(3)
    model.nonnegative = ("weight",) if constrained else ()
    target = torch.tensor([4.0, -2.0, 0.5], dtype=torch.float64)
    before = model.weight.detach().clone()
    found = landscape(model, lambda data: (model.weight - data).square().sum(), target, ZIGZAG, points=7)
    assert found.explained == pytest.approx(1) and found.path.shape == (4, 2)
    centre = ZIGZAG.double().mean(0)
    # The directions have either sign, so they are read off from the path.
    axes = torch.linalg.lstsq(found.path, ZIGZAG.double() - centre).solution
    points = centre + found.x[:, None, None] * axes[0] + found.y[None, :, None] * axes[1]
    points = points.clamp_min(0) if constrained else points
    torch.testing.assert_close(found.loss, (points - target).square().sum(2))
    chord = ZIGZAG[0].double() + found.line[:, None] * (ZIGZAG[-1] - ZIGZAG[0]).double()
    torch.testing.assert_close(found.line_loss, (chord - target).square().sum(1))
    assert found.x[0] < found.path[:, 0].min() and found.y[-1] > found.path[:, 1].max()
    assert torch.equal(model.weight, before) and model.weight.requires_grad


def test_a_frozen_density_is_normalised_anew_at_every_point():
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).exp()
    task, frozen = LogConcaveDensity(Softplus(ICNN(1, hidden=(4, 4), seed=0))), []
    fit(
        task,
        x,
        steps=12,
        lr=0.1,
        evaluate_every=4,
        progress=False,
        callbacks=[lambda event: frozen.append(event.frozen)],
    )
    path = torch.stack([parameters_to_vector(model.parameters()) for model in frozen])
    model = frozen[-1]
    found = landscape(model, model.loss, x, path, points=3)
    ends = torch.tensor([frozen[0].loss(x), model.loss(x)], dtype=torch.float64)
    torch.testing.assert_close(found.line_loss[[0, -1]], ends, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters()) and bool(found.loss.isfinite().all())


def test_what_cannot_be_computed_is_infinite(linear):
    model = linear(3)

    def loss(data):
        if float(model.weight.detach()[0]) > 4:
            raise FloatingPointError
        return model.weight[0] * (torch.nan if float(model.weight.detach()[0]) > 3 else 1.0)

    found = landscape(model, loss, None, ZIGZAG, points=4)
    assert found.line_loss.tolist() == [0.0, 3.0, float("inf"), float("inf")]


def test_errors_of_the_landscape(linear):
    model = linear(3)

    def refused(message, model=model, path=ZIGZAG):
        with pytest.raises(ValueError, match=message):
            landscape(model, lambda data: data, None, path)

    refused("landscape needs a frozen model", Softplus(linear(3)))
    refused(r"expected a \(T, 3\) trajectory, T >= 3; got \(4, 2\)", path=ZIGZAG[:, :2])
    refused(r"expected a \(T, 3\) trajectory, T >= 3; got \(2, 3\)", path=ZIGZAG[:2])
    refused("the trajectory has entries that are not finite", path=ZIGZAG / 0)
    refused("lie on a line: they span no plane", path=torch.arange(9.0).view(3, 3))
    refused("lie on a line: they span no plane", path=torch.ones(3, 3))


def history(*validation):
    return History(steps=[10 * (k + 1) for k in range(len(validation))], validation=list(validation))


@pytest.mark.parametrize(
    ("curve", "known"),
    [
        # Falls, rests, falls; then rests at the end, which is convergence.
        ((5.0, 3.0, 3.0, 2.99, 2.99, 1.0, 1.0, 1.0), [Plateau(20, 30, 1.99)]),
        # From the start; a bump is no improvement.
        ((5.0, 5.2, 4.99, 5.1, 1.0), [Plateau(10, 30, 3.99)]),
        # Two of them.
        ((6.0, 6.0, 4.0, 4.0, 4.0, 1.0), [Plateau(10, 10, 5.0), Plateau(30, 20, 3.0)]),
        # What falls after it is less than a tenth.
        ((5.0, 1.1, 1.1, 1.1, 1.1, 1.0), []),
        ((5.0, 4.0, 3.0, 2.0, 1.0), []),
        ((1.0, 1.0, 1.0), []),
        ((1.0, 2.0, 3.0), []),
        ((1.0,), []),
    ],
)
def test_plateaus(curve, known):
    found = plateaus(history(*curve))
    assert [(p.start, p.length) for p in found] == [(p.start, p.length) for p in known]
    assert [p.depth for p in found] == pytest.approx([p.depth for p in known])


def test_a_short_stretch_is_no_plateau():
    curve = [20.0 - k for k in range(10)] + [11.0] + [11.0 - k for k in range(1, 11)]
    assert plateaus(history(*curve)) == []
    assert len(plateaus(history(*curve), share=0.05)) == 1


def test_errors_of_plateaus():
    with pytest.raises(ValueError, match="plateaus needs a history with validation losses"):
        plateaus(History(steps=[1], loss=[1.0]))
    with pytest.raises(ValueError, match="share must lie between 0 and 1; got 1.5"):
        plateaus(history(2.0, 1.0), share=1.5)
