"""The ICNN: convexity, initialisation, errors, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from convexlift import ICNN
from convexlift.architectures.initial import principled_moments
from convexlift.testing import check_convex, check_nonnegative


@pytest.mark.parametrize("init", ["fan_in", "folded_normal", "principled", "identity"])
@pytest.mark.parametrize("activation", ["softplus", "smooth_squared_relu", "relu"])
def test_every_start_is_convex(init: str, activation: str) -> None:
    alpha = 1.0 if init == "identity" else 0.0
    net = ICNN(3, hidden=(16, 16), init=init, activation=activation, strong_convexity=alpha, seed=0).double()
    check_nonnegative(net)
    assert check_convex(net, dim=3).convex


def pre_activations(net: ICNN, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    z = None
    with torch.no_grad():
        for level, bias in enumerate(net.biases):
            u = bias + (0 if z is None else z @ net.inner[level - 1].T)
            if level < len(net.skips):
                u = u + x @ net.skips[level].T
            seen.append(u)
            z = net.activation.value(u)
    return seen


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_principled_keeps_mean_zero_and_variance_one_through_sixteen_layers(
    skip: bool, activation: str
) -> None:
    means, variances = [], []
    for seed in range(30):
        net = ICNN(
            8, hidden=(64,) * 16, init="principled", activation=activation, skip=skip, seed=seed
        ).double()
        fresh = torch.randn(
            1024, 8, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64
        )
        layers = pre_activations(net, fresh)
        means.append([float(u.mean()) for u in layers])
        variances.append([float(u.var(0).mean()) for u in layers])
    assert float(torch.tensor(means).median(0).values.abs().max()) < 0.2
    assert float((torch.tensor(variances).median(0).values - 1).abs().max()) < 0.2


def test_principled_moments_keep_relu_statistics() -> None:
    """Without calibration: the derived mean, variance and bias give mean 0, variance 1, correlation 1/2 to
    a ReLU layer."""
    n, generator = 400, torch.Generator().manual_seed(0)
    shared = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(4000, n, generator=generator, dtype=torch.float64)
    z = ((shared + own) / 2**0.5).relu()
    mean, variance, bias = principled_moments(n)
    weights = mean + variance**0.5 * torch.randn(n, 4000, generator=generator, dtype=torch.float64)
    u = z @ weights + bias
    # Moments over samples and weights together: a unit's own mean over the samples is not zero.
    assert abs(float(u.mean())) < 0.05
    assert abs(float(u.square().mean()) - 1) < 0.05
    assert abs(float(u.mean(1).square().mean()) - 0.5) < 0.05  # of two units


def test_folded_normal_is_the_references() -> None:
    net = ICNN(3, hidden=(1000, 1000), init="folded_normal", seed=0)
    scale = (torch.pi / 2000) ** 0.5
    assert abs(float(net.inner[0].detach().square().mean().sqrt()) / scale - 1) < 0.01
    assert all(float(b.detach().abs().max()) == 0 for b in net.biases)


def test_fan_in_averages() -> None:
    net = ICNN(3, hidden=(500, 500), init="fan_in", seed=0)
    assert abs(float(net.inner[0].detach().mean()) * 500 - 1) < 0.01


def test_identity_starts_near_the_identity_map() -> None:
    net = ICNN(4, hidden=(32, 32), init="identity", strong_convexity=1.0, seed=0)
    x = torch.randn(20, 4)
    assert float((net.emit().gradient(x) - x).detach().abs().max()) < 0.01


def test_same_seed_same_network_in_both_precisions() -> None:
    default = torch.get_default_dtype()
    single = ICNN(2, hidden=(8, 8), seed=3)
    try:
        torch.set_default_dtype(torch.float64)
        double = ICNN(2, hidden=(8, 8), seed=3)
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(single.double().state_dict(), double.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"hidden": ()}, r"hidden must be a non-empty sequence of positive widths; got \(\)"),
        ({"hidden": (4, 0)}, r"hidden must be a non-empty sequence of positive widths; got \(4, 0\)"),
        ({"strong_convexity": -0.1}, "strong_convexity must be >= 0; got -0.1"),
        ({"strong_convexity": float("nan")}, "strong_convexity must be >= 0; got nan"),
        ({"init": "identity"}, 'init="identity" needs strong_convexity=1 and learn_strong_convexity=True'),
        (
            {"init": "identity", "strong_convexity": 1.0, "learn_strong_convexity": False},
            'init="identity" needs strong_convexity=1 and learn_strong_convexity=True',
        ),
        ({"init": "zeros"}, "unknown init 'zeros'; known: fan_in, folded_normal, principled, identity"),
        ({"quadratic_rank": -1}, "quadratic_rank must be >= 0; got -1"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICNN(**{"dim": 3, **options})  # type: ignore[arg-type]


def test_freeze_checks_and_asks_for_no_gradient() -> None:
    net = ICNN(2, hidden=(4, 4), seed=0)
    assert not any(p.requires_grad for p in net.freeze().parameters())
    with torch.no_grad():
        net.inner[0][1, 2] = -0.5
    with pytest.raises(ValueError, match="'inner.0' must be non-negative; its smallest entry is -0.5"):
        net.freeze()


def test_loading_a_negative_weight_is_refused_and_changes_nothing() -> None:
    net = ICNN(2, hidden=(4, 4), seed=0)
    state = copy.deepcopy(net.state_dict())
    state["outer"][0] = -1.0
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="'outer' must be non-negative; its smallest entry is -1"):
        net.load_state_dict(state)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"skip": False, "strong_convexity": 0.0}, {"quadratic_rank": 2, "learn_strong_convexity": False}],
)
def test_config_rebuilds_the_architecture(options: dict[str, object]) -> None:
    net = ICNN(3, hidden=(8, 8), seed=0, sharpness=2.0, **options)  # type: ignore[arg-type]
    again = ICNN(**net.config())
    again.load_state_dict(net.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(again(x), net(x))


def test_config_refuses_a_users_activation() -> None:
    from convexlift.calculus.activations import Activation

    own = Activation("own", lambda u: u * 1, torch.ones_like, torch.zeros_like)
    with pytest.raises(ValueError, match="activation 'own' is a user's own: save the state_dict"):
        ICNN(2, hidden=(4,), activation=own).config()


def test_strong_convexity_is_the_least_curvature() -> None:
    f = ICNN(3, hidden=(8, 8), strong_convexity=0.7, seed=0).double().emit()
    least = torch.linalg.eigvalsh(f.hessian(5 * torch.randn(100, 3, dtype=torch.float64))).min()
    assert float(least.detach()) >= 0.7 - 1e-6
