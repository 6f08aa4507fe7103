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
        assert noise[size] > 0.001, size
    for small, large in ((32, 256), (256, 2048)):
        assert 0.75 < noise[small] / noise[large] / 8**0.5 < 1.35


def test_gradient_reaches_slack_and_body_but_not_the_batch() -> None:
    source = lift()
    x = data(40).requires_grad_(True)
    source.weights(x)["outer"].sum().backward()
    assert x.grad is None
    for part in (source.slack[-1], *source.phi.parameters(), *source.readout.parameters()):
        if part is source.slack[-1] or part.grad is not None:
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
    assert step_amplification(source, [data(500)]) < 1.001


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


def test_a_lifted_net_of_512_by_5_is_not_much_larger_than_the_net() -> None:
    net = ICNN(21, hidden=(512,) * 5, seed=0)
    own = sum(p.numel() for p in net.parameters())
    assert own > 1_000_000
    trainable = sum(p.numel() for p in Lift(net).parameters() if p.requires_grad)
    assert trainable <= 1.5 * own


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


def test_step_amplification_of_a_dense_readout_is_one_plus_the_summarys_norm() -> None:
    source, x = lift(readout="dense", readout_scale=0.5), data(100)
    source.eval()
    with torch.no_grad():
        exact = 1 + 0.5 * float(source.summary(x).abs().sum())
    assert abs(step_amplification(source, [x]) - exact) < 1e-4


def test_step_amplification_of_a_factored_readout_is_what_a_sign_step_does() -> None:
    source, x = lift().double().eval(), data(100).double()
    parameters = [*source.slack, *source.readout.parameters()]
    reach = []
    with torch.no_grad():
        summary = source.summary(x)
    for index in range(16):
        theta = source.latents(summary)[-1][index]
        gradients = torch.autograd.grad(theta, parameters, allow_unused=True)
        reach.append(sum(float(g.abs().sum()) for g in gradients if g is not None))
    given = 1 + source.readout.amplification(summary)[-1].detach()
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
