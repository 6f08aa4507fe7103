"""Gradient health, against networks whose numbers are known."""

from __future__ import annotations

import math

import pytest
import torch

from convexlift import ICNN, Centred, ConvexPotentialFlow, Lift, Projected, Softplus
from convexlift.calculus.derivatives import preactivations
from convexlift.mechanism import gradient_health


def square(source):
    return lambda x: source(x).square().mean()


def network(inner):
    net = ICNN(2, hidden=(3, 3), seed=0).double()
    with torch.no_grad():
        net.inner[0].copy_(torch.as_tensor(inner))
        net.outer.fill_(math.log(2.0))
    return net


@pytest.mark.parametrize(
    ("inner", "ratio"),
    [
        ([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], 2.0),
        ([[1.0, 2.0, 0.0]] * 3, math.inf),
        # A_ij = 1 + 2 [i = j]: eigenvalues 5 and 2.
        ([[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.0]], 2.5),
    ],
)
def test_perron_ratio(inner, ratio):
    source = Projected(network(inner))
    found = gradient_health(source, square(source), torch.randn(20, 2).double())
    assert found["0.inner.0"].perron_ratio == pytest.approx(ratio) or found["0.inner.0"].perron_ratio > 1e15
    assert found["0.outer"].perron_ratio is None


def test_attenuation_is_the_slope_of_psi_and_the_gradient_is_autograds():
    x = torch.randn(20, 2).double()
    net = network([[1.0, 2.0, 0.5]] * 3)
    direct, softplus, scaled = Projected(net), Softplus(net), Softplus(net, fan_in=True)
    found = gradient_health(direct, square(direct), x)["0.outer"]
    assert found.attenuation == 1
    (gradient,) = torch.autograd.grad(square(direct)(x), direct.latents[-1])
    assert found.gradient == pytest.approx(float(gradient.norm()))
    # softplus(0) = log 2, where the slope is 1/2; with W = softplus(v) / 3 the slope at 3 log 2 is 7/8.
    found = gradient_health(softplus, square(softplus), x)["0.outer"]
    assert found.attenuation == pytest.approx(0.5) and found.gradient == pytest.approx(float(gradient.norm()))
    assert gradient_health(scaled, square(scaled), x)["0.outer"].attenuation == pytest.approx(7 / 8 / 3)
    (latent,) = torch.autograd.grad(square(softplus)(x), softplus.latents[0])
    inner = gradient_health(softplus, square(softplus), x)["0.inner.0"]
    assert inner.attenuation * inner.gradient == pytest.approx(float(latent.norm()))


def test_correlation_of_units():
    net = network([[1.0, 2.0, 0.5]] * 3)
    with torch.no_grad():
        net.skips[0].copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))  # equal, equal, constant
        net.skips[1].zero_()
    source = Softplus(net)
    x = torch.randn(50, 2).double()
    found = gradient_health(source, square(source), x)
    assert found["0.inner.0"].correlation == pytest.approx(1) and found[
        "0.outer"
    ].correlation == pytest.approx(1)
    with torch.no_grad():
        source.architecture.skips[0].copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    known = torch.corrcoef(x.T)[0, 1]
    expected = float((known - 1 - known) / 3)
    assert gradient_health(source, square(source), x)["0.inner.0"].correlation == pytest.approx(expected)
    with torch.no_grad():
        source.architecture.skips[0].zero_()
    assert gradient_health(source, square(source), x)["0.outer"].correlation is None


def test_a_flow_of_lifts_and_a_module_of_ones_own(linear):
    flow, x = (
        ConvexPotentialFlow([Lift(ICNN(2, hidden=(8, 8)), targets="all") for _ in range(2)]),
        torch.randn(50, 2),
    )
    found = gradient_health(flow, flow.loss, x)
    assert list(found) == ["0.inner.0", "0.outer", "1.inner.0", "1.outer"]
    assert all(0 < layer.attenuation <= 1 and layer.gradient > 0 for layer in found.values())
    lift = Lift(linear(2))
    assert gradient_health(lift, square(lift), x.double())["0.weight"].correlation is None


def test_a_centred_source_is_read_as_the_network_it_emits():
    x = torch.randn(200, 2)
    centred = Centred(Softplus(ICNN(2, hidden=(8, 8, 8), seed=0)), slopes=True)
    centred.initialise(x)
    with torch.no_grad():
        for latent in centred.source.parameters():
            latent.add_(0.1 * torch.randn_like(latent))
    found = gradient_health(centred, square(centred), x)
    known = _correlations(centred.freeze(), x)
    assert [layer.correlation for layer in found.values()] == pytest.approx(known, abs=1e-5)


def _correlations(net, x):
    units = preactivations(x, net.layers(net.emit().tensors), net.activation)
    pairs = [torch.corrcoef(u.T)[*torch.triu_indices(8, 8, 1)] for u in units]
    return [pair.mean().item() for pair in pairs]


def test_errors(linear):
    x = torch.randn(5, 2).double()
    with pytest.raises(TypeError, match="expected a weight source or a task of weight sources; got Linear"):
        gradient_health(linear(2), square(linear(2)), x)
    flow = ConvexPotentialFlow([ICNN(2)])
    with pytest.raises(ValueError, match="gradient_health needs a model with a weight source"):
        gradient_health(flow, flow.loss, x.float())
    source = Softplus(linear(2))
    with pytest.raises(ValueError, match="loss does not depend on the weights of the model"):
        gradient_health(source, square(Softplus(linear(2))), x)
    dead = gradient_health(source, lambda x: (source(x) * 0).sum(), x)["0.weight"]
    assert dead.gradient == 0 and math.isnan(dead.attenuation)
