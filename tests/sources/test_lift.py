"""The lift: what it reads, how much it moves, how it settles, and that each ingredient can be taken away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, Lift
from convexlift.mechanism import emission_noise, shoulder, step_amplification


def network(dim: int = 3, hidden: tuple[int, ...] = (16, 16)) -> ICNN:
    return ICNN(dim, hidden=hidden, seed=0)


def data(rows: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def lift(**options: object) -> Lift:
    made = Lift(network(), seed=0, **options)  # type: ignore[arg-type]
    made.initialise(data(500))
    return made


def outer(source: Lift, batch: Tensor | None) -> Tensor:
    return source.weights(batch)["outer"].detach()


@pytest.mark.parametrize(
    "options", [{}, {"summary": "moments"}, {"readout": "dense"}, {"standardise": "centred"}]
)
def test_the_emission_depends_on_the_batch_but_not_on_its_order(options: dict[str, object]) -> None:
    source = lift(**options).double().eval()
    x = data(50).double()
    shuffled = x[torch.randperm(50)]
    torch.testing.assert_close(outer(source, x), outer(source, shuffled), rtol=1e-12, atol=1e-12)
    assert float((outer(source, x) - outer(source, x + 1)).abs().max()) > 1e-6


@pytest.mark.parametrize("dim", [1, 21])
def test_emission_noise_of_the_default_falls_like_one_over_the_root_of_the_batch(dim: int) -> None:
    source = Lift(network(dim, (64, 64, 64)), seed=0)
    source.initialise(data(4000, dim))
    noise = {}
    for size in (32, 256, 2048):
        noise[size] = emission_noise(source, (data(size, dim, seed) for seed in range(60)))
        assert noise[size] > 0.01 / size**0.5, size
    for small, large in ((32, 256), (256, 2048)):
        assert 0.75 < noise[small] / noise[large] / 8**0.5 < 1.35


def test_gradient_reaches_slack_and_body_but_not_the_batch() -> None:
    source = lift()
    x = data(40).requires_grad_(True)
    source.weights(x)["outer"].sum().backward()
    assert x.grad is None
    outer = source.emitted.index("outer")
    for part in (source.slack[outer], *source.phi.parameters(), *source.readout.parameters()):
        if part is source.slack[outer] or part.grad is not None:
            assert float(part.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in source.phi.parameters())


def test_derivatives_in_x_treat_the_weights_as_constant() -> None:
    source = lift().double()
    x = data(6).double()
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(source(leaf, leaf).sum(), leaf)
    torch.testing.assert_close(gradient, source.emit(x).gradient(x))  # type: ignore[union-attr]


def test_train_mode_needs_a_batch_and_eval_mode_a_stored_summary() -> None:
    source, x = lift(), data(30)
    message = "an unfrozen lift has no weights of its own: freeze on training data or pass batch="
    for mode in (True, False):
        source.train(mode)
        with pytest.raises(ValueError, match=message):
            source.emit(None)
    with pytest.raises(ValueError, match=message):
        source.freeze()
    source.eval()
    with pytest.raises(ValueError, match=message):
        source(x)
    source.settle(x)
    assert torch.equal(source(x), source(x, data(5, seed=9)))


def test_a_batch_of_one_emits_and_an_empty_or_wrong_one_is_refused() -> None:
    for options in ({}, {"summary": "moments"}, {"standardise": "centred"}, {"coupling": "noise"}):
        source = lift(**options)
        source(data(1)).sum().backward()
        assert bool(torch.isfinite(outer(source, data(1))).all())
    for read in ("emit", "freeze", "settle", "initialise"):
        with pytest.raises(ValueError, match="cannot compute weights from an empty batch"):
            getattr(Lift(network(), seed=0), read)(data(0))
        with pytest.raises(ValueError, match=r"expected a batch of 3 columns; got \(5, 2\)"):
            getattr(Lift(network(), seed=0), read)(data(5, 2))


def test_freezing_equals_emission_from_the_whole_training_set_in_chunks() -> None:
    source, x = lift().double(), data(40_000).double()
    frozen = source.freeze(x)
    source.eval()
    torch.testing.assert_close(frozen.outer.detach(), outer(source, x.flip(0)), rtol=1e-12, atol=1e-14)  # type: ignore[union-attr]


def test_settling_anneals_to_the_running_mean_then_holds_the_training_summary() -> None:
    source, x = lift(), data(500)
    one, two = data(8, seed=1), data(8, seed=2)

    def spread() -> float:
        with torch.no_grad():
            return float((source.summary(one) - source.summary(two)).abs().max())

    source.set_progress(0.5)
    full = spread()
    source.set_progress(0.775)
    assert abs(spread() / full - 0.5) < 1e-4
    source.set_progress(0.85)
    assert spread() == 0.0
    source.settle(x)
    kept = source.stored.clone()
    source.settle(data(500, seed=7))
    assert torch.equal(source.stored, kept)
    before = outer(source, one)
    assert torch.equal(before, source.freeze().outer)  # type: ignore[arg-type]
    source(one, one).sum().backward()
    assert all(parameter.grad is None for parameter in source.phi.parameters())
    assert all(parameter.grad is not None for parameter in source.slack)


def test_running_statistics_move_only_in_training_and_are_persistent() -> None:
    source = lift()
    before = source.running_mean.clone()
    with torch.no_grad():
        source.emit(data(16, seed=3))
    source.eval()
    source.emit(data(16, seed=3))
    assert torch.equal(source.running_mean, before)
    source.train()
    source.emit(data(16, seed=3))
    assert not torch.equal(source.running_mean, before)
    other = lift()
    other.load_state_dict(source.state_dict())
    assert torch.equal(other.running_mean, source.running_mean)


def test_centring_leaves_the_fluctuation_only() -> None:
    source = lift(standardise="centred")
    with torch.no_grad():
        assert float(source.summary(data(500)).abs().max()) < 1e-5
    assert step_amplification(source, [data(500)]) < 40.001


def test_initialise_moves_the_start_once() -> None:
    source = Lift(network(), seed=0)
    first, later = data(300) + 2, data(300) - 2
    source.initialise(first)
    source.initialise(later)
    source.eval()
    torch.testing.assert_close(outer(source, first), network().outer.detach(), atol=1e-6, rtol=0)


# The ablations.


def test_without_slack_the_start_is_held_and_not_learned() -> None:
    source = lift(slack=False)
    assert not any(b.requires_grad for b in source.slack)
    torch.testing.assert_close(outer(source.eval(), data(500)), network().outer.detach(), atol=1e-6, rtol=0)


def test_a_constant_body_does_not_read_the_batch() -> None:
    source = lift(body="constant")
    assert torch.equal(outer(source, data(9)), outer(source, None))
    assert emission_noise(source, [data(9, seed=s) for s in range(5)]) == 0.0


def test_matched_noise_has_the_summaries_mean_and_covariance() -> None:
    """The draw ignores the batch at hand, and its law matches the running moments of the summaries."""
    torch.manual_seed(0)
    source = lift(coupling="noise", features=4)
    with torch.enable_grad():
        for seed in range(400):
            source.summary(data(16, seed=seed))
    with torch.no_grad():
        draws = torch.stack([source.summary(data(16)) for _ in range(4000)])
        source.eval()
        real = torch.stack([source.summary(data(16, seed=s)) for s in range(1000, 3000)])
    torch.testing.assert_close(draws.mean(0), source.running_mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), source.running_covariance, atol=0.02, rtol=0.1)
    ratio = torch.cov(draws.T).trace() / torch.cov(real.T).trace()
    assert 0.6 < float(ratio) < 1.6


def test_the_reference_emits_everything_from_a_scattered_start() -> None:
    net = network()
    source = Lift.reference(net, seed=0)
    assert set(source.emitted) == {name for name, _ in net.named_parameters()}
    assert not list(source.architecture.parameters())
    assert all(float(b.detach().mean()) == -2.0 for b in list(source.slack)[: len(source.names)])
    weights = outer(source.eval(), data(100))
    assert 0.05 < float(weights.median()) < 0.3 and float(weights.std()) > 0.01


@pytest.mark.parametrize(
    ("dim", "hidden", "largest"),
    [
        (21, (512,) * 5, 1.5),
        (21, (128,) * 3, 1.5),
        (1, (128,) * 3, 1.5),
        (1, (64,) * 3, 1.5),
        (784, (64,) * 3, 1.5),
        (3, (16, 16), 3.0),
        (2, (8, 8), 3.0),
    ],
)
def test_a_lifted_net_is_not_much_larger_than_the_net(
    dim: int, hidden: tuple[int, ...], largest: float
) -> None:
    net = ICNN(dim, hidden=hidden, seed=0)
    own, lifted = (
        sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (net, Lift(net, seed=0))
    )
    assert (own >= 4_000) == (largest == 1.5)
    assert own < lifted <= largest * own


# Gains.


@pytest.mark.parametrize("readout", ["factored", "dense"])
def test_gains_multiply_the_slack_and_leave_the_start(readout: str) -> None:
    source = Lift(network(), readout=readout, weight_gain=3.0, free_gain=40.0, seed=0).double()
    x = data(500).double()
    source.initialise(x)
    for name, tensor in source.eval().weights(x).items():
        torch.testing.assert_close(tensor, network().double().get_parameter(name), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        before = source.latents(source.anchor)
        for b in source.slack:
            b += 0.5
        after = source.latents(source.anchor)
    for name, old, new in zip(source.emitted, before, after, strict=True):
        moved = 1.5 if name in source.names else 20.0
        torch.testing.assert_close(new - old, torch.full_like(old, moved))


def test_under_adam_a_gain_is_a_rate() -> None:
    """The same tensors after three steps, whether the gain is in the lift or in the rate of its slack."""
    x, ends = data(200).double(), []
    for gain, rate in ((40.0, 0.001), (1.0, 0.04)):
        source = Lift(network(), weight_gain=1.0, free_gain=gain, seed=0).double()
        source.initialise(x)
        free = list(source.free_tensors().values())
        weights = [b for b in source.slack if not any(b is other for other in free)]
        optimizer = torch.optim.Adam([{"params": weights}, {"params": free, "lr": rate}], lr=0.001)
        for _ in range(3):
            optimizer.zero_grad()
            source(x).square().mean().backward()
            optimizer.step()
        ends.append(source.freeze(x))
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_all_that_trains_is_emitted_and_what_is_held_stays() -> None:
    net = network()
    net.biases[0].requires_grad_(False)
    source = Lift(net, seed=0)
    assert [name for name, _ in source.architecture.named_parameters()] == ["biases.0"]
    assert {*source.emitted, "biases.0"} == {name for name, _ in net.named_parameters()}


def test_a_state_brings_its_gains_and_one_without_has_none() -> None:
    x = data(100)
    source = lift(weight_gain=2.0).eval()
    other = Lift(network(), free_gain=7.0, seed=1).eval()
    other.load_state_dict(source.state_dict())
    assert all(torch.equal(source.weights(x)[name], tensor) for name, tensor in other.weights(x).items())
    assert other.gain.tolist() == [2.0, 40.0]

    before = Lift.reference(network(), seed=0).eval()
    state = {name: tensor for name, tensor in before.state_dict().items() if name != "gain"}
    other = Lift(
        network(), body_hidden=(64, 64), features=96, readout="dense", readout_scale=1.0, seed=1
    ).eval()
    other.load_state_dict(state)
    assert all(torch.equal(before.weights(x)[name], tensor) for name, tensor in other.weights(x).items())


@pytest.mark.parametrize("dim", [1, 2])
def test_the_emission_of_a_tiny_network_is_not_silenced(dim: int) -> None:
    noises = []
    for seed in range(5):
        source = Lift(network(dim, (8, 8)), seed=seed)
        source.initialise(data(2000, dim))
        noises.append(emission_noise(source, (data(256, dim, s) for s in range(20))))
    assert sorted(noises)[2] > 0.0005


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summary": "mean"}, "unknown summary 'mean'; known: 'deepsets', 'moments'"),
        ({"standardise": "batch"}, "unknown standardise 'batch'; known: 'features', 'centred', None"),
        ({"readout": "conv"}, "unknown readout 'conv'; known: 'factored', 'dense'"),
        ({"body": "none"}, "unknown body 'none'"),
        ({"coupling": "weak"}, "unknown coupling 'weak'; known: 'batch', 'independent', 'noise'"),
        ({"targets": "some"}, "unknown targets 'some'"),
        ({"psi": "exp"}, "unknown psi 'exp'; known: softplus, square"),
        ({"free_gain": 0.0}, "free_gain must be positive and finite; got 0.0"),
        ({"weight_gain": float("inf")}, "weight_gain must be positive and finite; got inf"),
        ({"readout_scale": -1.0}, 'readout_scale must be positive or "fan_in"; got -1.0'),
        ({"readout_scale": "width"}, "readout_scale must be positive or \"fan_in\"; got 'width'"),
        (
            {"settle_window": (0.9, 0.5)},
            r"settle_window must be two increasing fractions of training; got \(0.9, 0.5\)",
        ),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lift(network(), **options)  # type: ignore[arg-type]


def test_a_module_without_dim_needs_one() -> None:
    with pytest.raises(ValueError, match="Linear does not declare its number of inputs: pass dim="):
        linear = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(linear.weight, 1.0)
        Lift(linear, ["weight"])


# Instruments.


def test_step_amplification_of_a_dense_readout_is_the_gain_plus_the_summarys_norm() -> None:
    source, x = lift(readout="dense", readout_scale=0.5, weight_gain=3.0), data(100)
    source.eval()
    with torch.no_grad():
        exact = 3 + 0.5 * float(source.summary(x).abs().sum())
    assert abs(step_amplification(source, [x]) - exact) < 1e-4


def test_step_amplification_of_a_factored_readout_is_what_a_sign_step_does() -> None:
    source, x = lift().double().eval(), data(100).double()
    parameters = [*source.slack, *source.readout.parameters()]
    outer = source.emitted.index("outer")
    reach = []
    with torch.no_grad():
        summary = source.summary(x)
    for index in range(16):
        theta = source.latents(summary)[outer][index]
        gradients = torch.autograd.grad(theta, parameters, allow_unused=True)
        reach.append(sum(float(g.abs().sum()) for g in gradients if g is not None))
    given = 40 + source.readout.amplification(summary)[outer].detach()
    torch.testing.assert_close(given, torch.tensor(reach, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_shoulder_counts_known_weights() -> None:
    net = network(hidden=(2,))
    with torch.no_grad():
        net.outer.copy_(torch.tensor([0.01, 3.0]))
    source = Lift(net, standardise="centred", seed=0)
    found = shoulder(source, data(2000))
    assert found.share == 0.5 and found.at_zero == 0.0
    assert abs(found.fan_in_weight - 0.02) < 0.01


def test_emission_noise_needs_two_batches() -> None:
    with pytest.raises(ValueError, match="emission_noise needs at least 2 batches; got 1"):
        emission_noise(lift(), [data(10)])
