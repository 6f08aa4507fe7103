"""What every weight source promises: same start, non-negativity, ownership, copies, freezing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convexlift import ICNN, Lift, Potential, Projected, Softplus, Squared
from convexlift.sources import WeightSource
from convexlift.testing import check_convex, check_nonnegative

SOURCES: dict[str, Callable[[nn.Module], WeightSource]] = {
    "projected": Projected,
    "softplus": Softplus,
    "softplus-fan-in": lambda net: Softplus(net, fan_in=True),
    "squared": Squared,
    "lift": lambda net: Lift(net, seed=0),
    "lift-dense": lambda net: Lift(net, readout="dense", readout_scale=1.0, seed=0),
    "lift-fan-in": lambda net: Lift(net, readout="dense", readout_scale="fan_in", seed=0),
    "lift-moments": lambda net: Lift(net, summary="moments", seed=0),
    "lift-centred": lambda net: Lift(net, standardise="centred", seed=0),
    "lift-raw": lambda net: Lift(net, standardise=None, seed=0),
    "lift-square": lambda net: Lift(net, psi="square", seed=0),
    "lift-no-slack": lambda net: Lift(net, slack=False, seed=0),
    "lift-constant": lambda net: Lift(net, body="constant", seed=0),
    "lift-all": lambda net: Lift(net, targets="all", seed=0),
}
EVERY = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())


def network(seed: int = 0, **options: object) -> ICNN:
    return ICNN(3, hidden=(16, 12), seed=seed, **options)  # type: ignore[arg-type]


def data(rows: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def train(source: WeightSource, steps: int = 30, lr: float = 0.1) -> None:
    """Push the weights down, so that every source meets its boundary."""
    optimizer = torch.optim.Adam((p for p in source.parameters() if p.requires_grad), lr=lr)
    if isinstance(source, Projected):
        source.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        batch = data(32, step)
        source(batch, batch).sum().backward()
        optimizer.step()


@EVERY
@pytest.mark.parametrize("init", ["fan_in", "folded_normal", "principled"])
def test_the_effective_start_is_the_networks(make: Callable[[nn.Module], WeightSource], init: str) -> None:
    net, x = network(init=init), data()
    source = make(net)
    source.initialise(x)
    emitted = source.emit(x)
    assert isinstance(emitted, Potential)
    own = dict(net.named_parameters())
    for name in net.nonnegative:
        assert float((emitted.tensors[name] - own[name]).detach().abs().max()) < 1e-6
    torch.testing.assert_close(source(x, x), net(x), atol=1e-5, rtol=1e-5)


@EVERY
def test_trained_weights_are_nonnegative_and_the_function_convex(
    make: Callable[[nn.Module], WeightSource],
) -> None:
    source, x = make(network(strong_convexity=0.0)), data()
    source.initialise(x)
    train(source)
    frozen = source.freeze(x)
    check_nonnegative(frozen)
    assert check_convex(frozen.double(), dim=3).convex


@EVERY
def test_freezing_gives_the_plain_network_that_was_emitted(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = make(network()), data()
    source.initialise(x)
    train(source, steps=3)
    frozen = source.freeze(x)
    assert type(frozen) is ICNN and not any(p.requires_grad for p in frozen.parameters())
    source.eval()
    assert torch.equal(frozen(x), source(x, x).detach())


@EVERY
def test_weights_that_are_not_numbers_do_not_freeze(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = make(network()), data()
    with torch.no_grad():
        for latent in source.slack if isinstance(source, Lift) else source.latents:  # type: ignore[union-attr]
            latent.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="'inner.0' must be non-negative; its smallest entry is nan"):
        source.freeze(x)


@EVERY
def test_the_source_owns_a_copy_without_the_constrained_tensors(
    make: Callable[[nn.Module], WeightSource],
) -> None:
    net = network()
    source = make(net)
    held = {name for name, _ in source.architecture.named_parameters()}
    assert held.isdisjoint(net.nonnegative)
    before = copy.deepcopy(net.state_dict())
    train(source, steps=2)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@EVERY
def test_copies_and_state_dicts_give_the_same_function(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = make(network()), data()
    source.initialise(x)
    train(source, steps=3)
    twin = copy.deepcopy(source)
    other = make(network(seed=5))
    other.load_state_dict(source.state_dict())
    for again in (twin, other):
        again.eval()
    source.eval()
    assert torch.equal(twin(x, x), source(x, x)) and torch.equal(other(x, x), source(x, x))


@EVERY
def test_double_precision(make: Callable[[nn.Module], WeightSource]) -> None:
    source = make(network()).double()
    x = data().double()
    source.initialise(x)
    assert source(x, x).dtype == torch.float64
    source(x, x).sum().backward()
    assert source.freeze(x)(x).dtype == torch.float64


@EVERY
def test_a_state_loads_in_another_precision(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = make(network()), data()
    source.initialise(x)
    train(source, steps=3)
    double, single = make(network(seed=5)).double(), make(network(seed=6))
    double.load_state_dict(source.state_dict())
    single.load_state_dict(double.state_dict())
    for each in (source, double, single):
        each.eval()
    given = double(x.double(), x.double())
    assert given.dtype == torch.float64
    torch.testing.assert_close(given.float(), source(x, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(single(x, x), source(x, x))


@EVERY
def test_every_trainable_parameter_gets_a_gradient(make: Callable[[nn.Module], WeightSource]) -> None:
    source, x = make(network(quadratic_rank=1)), data()
    source.initialise(x)
    source(x, x).square().mean().backward()
    for name, parameter in source.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("weight", "make"),
    [(0.0, Softplus), (0.0, Squared), (0.0, Projected), (1e-4, Softplus), (30.0, Softplus)],
)
def test_small_zero_and_large_starting_weights(
    weight: float, make: Callable[[nn.Module], WeightSource]
) -> None:
    net = network()
    with torch.no_grad():
        net.outer.fill_(weight)
    assert abs(float(make(net).weights()["outer"].detach()[0]) - weight) < 1e-6 * max(1, weight)


def test_squared_moves_by_exponentiated_gradient_to_first_order() -> None:
    """One small gradient step in v multiplies W by exp(-lr g) up to second order, g the gradient on W."""
    net, x, lr = network().double(), data().double(), 1e-4
    source = Squared(net)
    before = source.weights()["outer"].detach().clone()
    weights = source.weights()["outer"]
    loss = source(x).mean()
    (gradient,) = torch.autograd.grad(loss, source.latents[-1])
    with torch.no_grad():
        source.latents[-1] -= lr * gradient
    on_weight = gradient / (source.latents[-1].detach() / 2)
    torch.testing.assert_close(
        source.weights()["outer"], before * torch.exp(-lr * on_weight), rtol=1e-6, atol=0
    )
    assert weights.shape == before.shape


def test_projected_refuses_negative_weights_until_projected() -> None:
    source, x = Projected(network()), data()
    with torch.no_grad():
        source.latents[0][0, 0] = -0.25
    with pytest.raises(
        ValueError, match=r"'inner.0' must be non-negative; its smallest entry is -0.25: attach\(optimizer\)"
    ):
        source(x)
    source.project()
    assert float(source.weights()["inner.0"].detach()[0, 0]) == 0.0


def test_projection_follows_the_optimizer_until_detached() -> None:
    source = Projected(network())
    optimizer = torch.optim.SGD(source.parameters(), lr=10.0)
    handle = source.attach(optimizer)
    source(data()).sum().backward()
    optimizer.step()
    assert float(source.latents[-1].detach().min()) == 0.0
    handle.remove()
    optimizer.step()
    assert float(source.latents[-1].detach().min()) < 0.0


class Monotone(nn.Module):
    """A user's own module: one hidden layer, non-negative weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        with torch.no_grad():
            self.first.weight.abs_()
            self.last.weight.abs_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))).squeeze(1)


@pytest.mark.parametrize(
    "make", [Projected, Softplus, Squared, lambda m, names: Lift(m, names, dim=3, seed=0)]
)
def test_any_module_can_be_lifted(make: Callable[..., WeightSource]) -> None:
    module, x = Monotone(), data()
    names = ["first.weight", "last.weight"]
    source = make(module, names)
    source.initialise(x)
    torch.testing.assert_close(source(x, x), module(x), atol=1e-5, rtol=1e-5)
    train(source, steps=5)
    frozen = source.freeze(x)
    assert type(frozen) is Monotone
    check_nonnegative(frozen, names=names)
    assert copy.deepcopy(source)(x, x).shape == (200,)


@pytest.mark.parametrize(
    ("module", "names", "message"),
    [
        (Monotone(), None, "Monotone does not declare which parameters must be non-negative: pass names="),
        (Monotone(), [], "names is empty: nothing to keep non-negative"),
        (Monotone(), ["first.wait"], "'first.wait' is not a parameter of Monotone; it has: first.weight"),
        (
            nn.Linear(3, 1),
            ["bias", "weight"],
            "must be non-negative; its smallest entry is -.*: a source gives the module the weight itself, "
            "so a module that takes softplus of a parameter must use it as it is",
        ),
    ],
)
def test_bad_modules(module: nn.Module, names: list[str] | None, message: str) -> None:
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.weight, -1.0)
        nn.init.constant_(module.bias, 1.0)
    with pytest.raises(ValueError, match=message):
        Softplus(module, names)
