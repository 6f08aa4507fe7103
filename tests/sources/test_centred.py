"""Centred activations: a plain convex network at every moment, from the same start, with other gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.sources import WeightSource
from convexlift.testing import check_convex, check_nonnegative

SOURCES: dict[str, Callable[[nn.Module], WeightSource]] = {
    "projected": cl.Projected,
    "softplus": cl.Softplus,
    "squared": cl.Squared,
    "lift": lambda net: cl.Lift(net, seed=0),
    "lift of weights": lambda net: cl.Lift(net, targets="nonnegative", seed=0),
}
EVERY = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())


def data(rows: int = 200, seed: int = 0) -> Tensor:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor([1.0, 0.5, 2.0]) + 0.3


def network(**options: object) -> cl.ICNN:
    return cl.ICNN(3, hidden=(8, 7, 6), seed=0, **options).double()  # type: ignore[arg-type]


def centred(
    make: Callable[[nn.Module], WeightSource] = cl.Squared, slopes: bool = True, **options: object
) -> cl.Centred:
    source = cl.Centred(make(network(**options)), slopes=slopes)
    source.initialise(data())
    return source


def train(source: cl.Centred, steps: int = 20) -> None:
    optimizer = torch.optim.Adam((p for p in source.parameters() if p.requires_grad), lr=0.05)
    if isinstance(source.source, cl.Projected):
        source.source.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        batch = data(32, step)
        (source(batch, batch) - batch.square().sum(1)).square().mean().backward()
        optimizer.step()


@EVERY
@pytest.mark.parametrize(("skip", "slopes"), [(True, True), (True, False), (False, True)])
def test_it_starts_as_the_given_network(
    make: Callable[[nn.Module], WeightSource], skip: bool, slopes: bool
) -> None:
    source, net, x = centred(make, slopes, skip=skip), network(skip=skip), data()
    emitted = source.emit(x).tensors
    for name, own in net.named_parameters():
        assert float((emitted[name] - own).detach().abs().max()) < 1e-6
    torch.testing.assert_close(source.freeze(x)(x), net(x), atol=1e-6, rtol=1e-6)


@EVERY
def test_what_it_emits_is_convex_with_the_weights_of_the_source(
    make: Callable[[nn.Module], WeightSource],
) -> None:
    source, x = centred(make, strong_convexity=0.0), data()
    train(source)
    source.eval()
    own, emitted = source.source.emit(x).tensors, source.emit(x).tensors
    for name in network().nonnegative:
        assert torch.equal(own[name], emitted[name])
        assert float(emitted[name].detach().min()) >= 0
    frozen = source.freeze(x)
    check_nonnegative(frozen)
    assert check_convex(frozen, dim=3).convex


@EVERY
def test_freezing_gives_the_plain_network_that_it_emits(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = centred(make), data()
    train(source)
    frozen = source.eval().freeze(x)
    assert type(frozen) is cl.ICNN
    assert not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen(x), source.emit(x).value(x))
    assert (frozen(x) - network()(x)).abs().max().item() > 0.1  # it has learned something


@pytest.mark.parametrize("slopes", [True, False])
def test_the_emitted_function_is_the_formula(slopes: bool) -> None:
    source, x = centred(slopes=slopes), data()
    train(source)
    tensors, s = source.source.emit().tensors, network().activation
    total = [tensors["skips.0"]]  # T_1 ... T_L and t
    for level, name in enumerate(("skips.1", "skips.2", "linear")):
        total.append(tensors[name] + source.get_buffer(f"skip_start_{level}").view_as(tensors[name]))
    u = x @ total[0].T + tensors["biases.0"]
    for level in range(3):
        inside = s.value(u) - source.get_buffer(f"slope_{level}") * (x @ total[level].T)
        if level == 2:
            break
        bias = tensors[f"biases.{level + 1}"] + source.get_buffer(f"bias_start_{level}")
        inside = inside - source.get_buffer(f"mean_{level}")
        u = inside @ tensors[f"inner.{level}"].T + x @ total[level + 1].T + bias
    alpha = source.architecture.alpha(tensors)
    assert alpha is not None
    value = inside @ tensors["outer"] + x @ total[3] + alpha / 2 * x.square().sum(1)
    torch.testing.assert_close(source.eval().emit().value(x), value)


def test_gradients_in_the_weights_see_no_mean_and_no_slope() -> None:
    """Means over the batch, of the next layer and of grad f, do not depend on the weights above them."""
    x = data(50)
    deep = cl.Centred(cl.Projected(cl.ICNN(3, hidden=(6, 6), seed=0).double()), slopes=True, momentum=1.0)
    deep.initialise(x)
    tensors = deep.emit(x).tensors
    z = deep.architecture.activation.value(x @ tensors["skips.0"].T + tensors["biases.0"])
    u = z @ tensors["inner.0"].T + x @ tensors["skips.1"].T + tensors["biases.1"]
    (gradient,) = torch.autograd.grad(u.mean(0).sum(), [deep.source.latents[0]])  # type: ignore[index]
    assert float(gradient.abs().max()) < 1e-12
    shallow = cl.Centred(cl.Projected(cl.ICNN(3, hidden=(6,), seed=0).double()), slopes=True, momentum=1.0)
    shallow.initialise(x)
    slope = shallow.emit(x).gradient(x).mean(0).sum()
    (gradient,) = torch.autograd.grad(slope, [shallow.source.latents[0]])  # type: ignore[index]
    assert float(gradient.abs().max()) < 1e-12
    plain = cl.Projected(cl.ICNN(3, hidden=(6,), seed=0).double())
    (gradient,) = torch.autograd.grad(plain.emit(x).gradient(x).mean(0).sum(), [plain.latents[0]])
    assert float(gradient.abs().max()) > 1e-2


def test_only_training_moves_the_averages() -> None:
    source = centred()
    before = copy.deepcopy(source.state_dict())
    source.eval()
    source.emit(data(seed=1))
    source.train()
    with torch.no_grad():
        source.emit(data(seed=1))
    source.emit()
    source.initialise(data(seed=1))  # once only
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    source.emit(data(seed=1))
    assert not torch.equal(before["mean_0"], source.state_dict()["mean_0"])


def test_it_is_copied_pickled_and_restored() -> None:
    source, x = centred(), data()
    train(source, 3)
    source.emit(x).value(x).sum().backward()
    value = source.eval().emit().value(x)
    other = cl.Centred(cl.Squared(network()), slopes=True)
    other.load_state_dict(source.state_dict())
    for copied in (copy.deepcopy(source), pickle.loads(pickle.dumps(source)), other.eval()):
        torch.testing.assert_close(copied.emit().value(x), value)


def test_a_batch_of_one_and_two_emissions_before_a_backward() -> None:
    source = centred()
    first, second = source.emit(data(1)), source.emit(data(1, seed=1))
    (first.value(data()).sum() + second.value(data()).sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in source.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "make", [cl.Squared, cl.Projected, lambda net: cl.Lift(net, weight_gain=1.0, free_gain=1.0, seed=0)]
)
@pytest.mark.parametrize("kind", ["flow", "density", "regression"])
def test_tasks_train_and_freeze_it(
    kind: str, make: Callable[[nn.Module], WeightSource], tmp_path: Path
) -> None:
    dim = 1 if kind == "density" else 2
    x = torch.randn(128, dim, generator=torch.Generator().manual_seed(0))
    rows = (x, x.square().sum(1)) if kind == "regression" else x

    def task(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        block = wrap(make(cl.ICNN(dim, hidden=(8, 8), seed=0)))
        if kind == "flow":
            return cl.ConvexPotentialFlow([block])
        return cl.LogConcaveDensity(block) if kind == "density" else cl.ConvexRegression(block)

    plain, model = task(lambda block: block), task(cl.Centred)
    for each in (plain, model):
        each.initialise(rows)  # type: ignore[operator]
    same, start = (each.freeze(rows).loss(rows) for each in (plain, model))  # type: ignore[operator]
    torch.testing.assert_close(same, start, atol=1e-4, rtol=1e-4)
    history = cl.fit(model, rows, validation=rows, steps=20, batch_size=64, lr=0.02, progress=False)
    frozen = model.freeze(rows)  # type: ignore[operator]
    assert history.best_validation is not None
    assert history.best_validation < start.item()
    assert frozen.loss(rows).item() == pytest.approx(history.best_validation, rel=1e-4)
    check_nonnegative(frozen)
    cl.save(frozen, tmp_path / "model.safetensors")
    torch.testing.assert_close(cl.load(tmp_path / "model.safetensors").loss(rows), frozen.loss(rows))


def test_curvature_is_learned_sooner_without_slopes() -> None:
    """On |x|^2 in 20 dimensions, at the same steps and rate, the error is at most half of the plain one."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(1_000, 20, generator=generator) - 1
    rows = (x, x.square().sum(1))
    losses = []
    for wrap in (lambda source: source, lambda source: cl.Centred(source, slopes=True)):
        net = cl.ICNN(20, hidden=(32, 32), strong_convexity=0.0, seed=0)
        regression = cl.ConvexRegression(wrap(cl.Squared(net)))
        cl.fit(regression, rows, steps=150, batch_size=250, lr=0.01, progress=False)
        losses.append(regression.freeze(rows).loss(rows).item())
    assert losses[1] < 0.5 * losses[0]


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match="expected a weight source of an ICNN; got ICNN"):
        cl.Centred(cl.ICNN(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a weight source of an ICNN; got Squared of Linear"):
        layer = nn.Linear(2, 1)
        nn.init.ones_(layer.weight)
        cl.Centred(cl.Squared(layer, ["weight"]))
    with pytest.raises(ValueError, match=r"momentum must lie in \(0, 1\]; got 0"):
        cl.Centred(cl.Squared(cl.ICNN(2)), momentum=0.0)
    with pytest.raises(ValueError, match="cannot compute weights from an empty batch"):
        cl.Centred(cl.Lift(cl.ICNN(2))).emit(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="cannot centre activations on an empty batch"):
        cl.Centred(cl.Squared(cl.ICNN(2))).emit(torch.zeros(0, 2))
