"""An architecture from outside the package: every source, task, check and file takes it as it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift import saving
from convexlift.architectures import Architecture, Calculus
from convexlift.calculus.activations import Activation
from convexlift.calculus.cholesky import check_strongly_convex, factored_logdet, layers_in_float64
from convexlift.mechanism import gradient_health
from convexlift.testing import CheckFailed, check_convex, check_derivatives, check_nonnegative
from convexlift.training.optimisation import decayed_matrices


class Tensors(NamedTuple):
    weights: Tensor
    directions: Tensor
    offsets: Tensor
    alpha: Tensor | None


def value(x: Tensor, t: Tensors, s: Activation) -> Tensor:
    out = s.value(x @ t.directions.T + t.offsets) @ t.weights
    return out if t.alpha is None else out + t.alpha / 2 * x.square().sum(1)


def gradient(x: Tensor, t: Tensors, s: Activation) -> Tensor:
    out = (s.slope(x @ t.directions.T + t.offsets) * t.weights) @ t.directions
    return out if t.alpha is None else out + t.alpha * x


def bends(x: Tensor, t: Tensors, s: Activation) -> Tensor:
    assert s.curvature is not None
    return s.curvature(x @ t.directions.T + t.offsets) * t.weights


def hessian(x: Tensor, t: Tensors, s: Activation) -> Tensor:
    out = torch.einsum("nk,ki,kj->nij", bends(x, t, s), t.directions, t.directions)
    return out if t.alpha is None else out + t.alpha * torch.eye(x.shape[1]).to(x)


def laplacian(x: Tensor, t: Tensors, s: Activation) -> Tensor:
    out = bends(x, t, s) @ t.directions.square().sum(1)
    return out if t.alpha is None else out + t.alpha * x.shape[1]


def hvp(x: Tensor, v: Tensor, t: Tensors, s: Activation) -> Tensor:
    out = (bends(x, t, s) * (v @ t.directions.T)) @ t.directions
    return out if t.alpha is None else out + t.alpha * v


def gradient_and_logdet(x: Tensor, t: Tensors, s: Activation) -> tuple[Tensor, Tensor]:
    check_strongly_convex(t.alpha)
    return gradient(x, t, s), factored_logdet(
        hessian(x, t, s), lambda rows: hessian(x[rows].double(), layers_in_float64(t), s)
    )


class Ridges(Architecture[cl.Potential]):
    """f(x) = sum_k w_k s(a_k . x + b_k) + (alpha/2) |x|^2, w_k >= 0."""

    calculus = Calculus(value, gradient, hessian, laplacian, hvp, gradient_and_logdet)
    arguments = ("dim", "units")

    def __init__(self, dim: int, units: int = 12, seed: int | None = None, **options: Any) -> None:
        super().__init__(dim, **options)
        self.units = units
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.rand(units, generator=generator) / units)
        self.directions = nn.Parameter(torch.randn(units, dim, generator=generator))
        self.offsets = nn.Parameter(torch.randn(units, generator=generator))
        self.own_strong_convexity()

    @property
    def nonnegative(self) -> tuple[str, ...]:
        return ("weights",)

    def layers(self, tensors: Mapping[str, Tensor]) -> Tensors:
        return Tensors(tensors["weights"], tensors["directions"], tensors["offsets"], self.alpha(tensors))


SOURCES: dict[str, Callable[[nn.Module], Any]] = {
    "bare": lambda net: net,
    "projected": cl.Projected,
    "softplus": cl.Softplus,
    "squared": cl.Squared,
    "lift": lambda net: cl.Lift(net, seed=0),
    "lift of all": lambda net: cl.Lift(net, targets="all", seed=0),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"learn_strong_convexity": False},
    {"activation": "smooth_squared_relu", "sharpness": 2.0},
]
FIT: dict[str, Any] = {"steps": 4, "batch_size": 32, "lr": 0.01, "progress": False, "seed": 0}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "KINDS", dict(saving.KINDS))
    saving.register(Ridges)


def points(dim: int, n: int = 64) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_its_closed_forms_and_its_convexity(options: dict[str, Any]) -> None:
    net = Ridges(3, seed=0, **options).double()
    check_derivatives(net, dim=3)
    assert check_convex(net, dim=3, scales=(1.0, 10.0), starts=16).convex
    assert check_nonnegative(net).checked == 12
    f, x = net.emit(), points(3, 5).double()
    found = f.conjugate(f.gradient(x).detach())
    torch.testing.assert_close(found.x, x, rtol=1e-5, atol=1e-5)
    assert bool(found.converged.all())
    with pytest.raises(ValueError, match="^logdet cannot be estimated for this architecture"):
        f.logdet(x, method="estimated")


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_starts_as_the_network_trains_and_freezes(name: str) -> None:
    net, x = Ridges(2, seed=0), points(2)
    source = SOURCES[name](copy.deepcopy(net))
    source.initialise(x)
    torch.testing.assert_close(source(x), net(x), rtol=0, atol=1e-5)
    optimizer = torch.optim.Adam(source.parameters(), lr=0.01)
    if hasattr(source, "attach"):
        source.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (source(x) - x.square().sum(1)).square().mean().backward()
        optimizer.step()
    frozen = cl.freeze(source, x)
    assert type(frozen) is Ridges and not any(p.requires_grad for p in frozen.parameters())
    assert not torch.allclose(frozen(x), net(x))
    check_nonnegative(frozen)
    check_derivatives(frozen, dim=2)
    assert check_convex(frozen, dim=2, scales=(1.0, 10.0), starts=16).convex
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert torch.equal(other(x), frozen(x))


def test_only_a_network_of_dense_layers_is_centred() -> None:
    with pytest.raises(TypeError, match="^expected a weight source of an ICNN; got Squared of Ridges$"):
        cl.Centred(cl.Squared(Ridges(2)))


def flow(source: Callable[[nn.Module], Any]) -> tuple[Any, Any]:
    return cl.ConvexPotentialFlow([source(Ridges(2, seed=k)) for k in range(2)]), points(2)


def density(dim: int, objective: str) -> Callable[[Callable[[nn.Module], Any]], tuple[Any, Any]]:
    return lambda source: (cl.LogConcaveDensity(source(Ridges(dim, seed=0)), objective), points(dim))


def regression(source: Callable[[nn.Module], Any]) -> tuple[Any, Any]:
    x = points(3)
    return cl.ConvexRegression(source(Ridges(3, seed=0, strong_convexity=0.0))), (x, x.square().sum(1))


TASKS = {
    "flow": flow,
    "density of a line": density(1, "mle"),
    "density of a plane": density(2, "mle"),
    "density of a space": density(3, "score"),
    "regression": regression,
}


def values(model: Any, x: Tensor) -> Tensor:
    return model.predict(x) if hasattr(model, "predict") else model.log_prob(x)


@pytest.mark.parametrize("name", ["projected", "softplus", "squared", "lift"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_freezes_saves_and_loads(task: str, name: str, tmp_path: Path) -> None:
    model, data = TASKS[task](SOURCES[name])
    history = cl.fit(model, data, **FIT)
    assert bool(torch.tensor(history.loss).isfinite().all())
    frozen, x = model.freeze(data), (data[0] if isinstance(data, tuple) else data)[:7]
    check_nonnegative(frozen)
    cl.save(frozen, tmp_path / "model.safetensors")
    loaded = cl.load(tmp_path / "model.safetensors")
    assert type(loaded) is type(model)
    assert {type(part).__name__ for part in loaded.modules() if isinstance(part, Architecture)} == {"Ridges"}
    assert torch.equal(values(loaded, x), values(frozen, x))
    if task != "regression":
        assert torch.equal(loaded.sample(3, seed=0), frozen.sample(3, seed=0))


def test_a_mixture_of_its_flows_and_the_network_itself_are_saved(tmp_path: Path) -> None:
    model, data = flow(cl.Squared)
    model.initialise(data)
    mixture = cl.Ensemble([model.freeze(), model.freeze()])
    net = Ridges(3, units=5, seed=0, learn_strong_convexity=False).double().freeze()
    for kept, evaluate, x in ((mixture, values, data), (net, lambda f, x: f(x), points(3).double())):
        cl.save(kept, tmp_path / "model.safetensors")
        assert torch.equal(evaluate(cl.load(tmp_path / "model.safetensors"), x), evaluate(kept, x))


def test_a_file_is_read_only_where_its_class_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Ridges(2, seed=0).freeze()
    cl.save(net, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="^another class named Ridges is registered$"):
        saving.register(type("Ridges", (Ridges,), {}))
    monkeypatch.delitem(saving.KINDS, "Ridges")
    with pytest.raises(ValueError, match="unknown model 'Ridges': a class of your own is registered first"):
        cl.load(tmp_path / "net.safetensors")
    for model in (net, cl.ConvexPotentialFlow([net])):
        with pytest.raises(TypeError, match="^can save an ICNN, .* or what is registered; got Ridges$"):
            cl.save(model, tmp_path / "other.safetensors")


def test_a_negative_weight_is_found_when_frozen_and_when_loaded() -> None:
    net = Ridges(2, seed=0)
    with torch.no_grad():
        net.weights[3] = -20.0
    with pytest.raises(CheckFailed, match=r"'weights' must be non-negative; it is -20 at \(3,\)"):
        check_nonnegative(net)
    with pytest.raises(CheckFailed, match="f is not convex"):
        check_convex(net, dim=2)
    for refuses in (net.freeze, lambda: Ridges(2).load_state_dict(net.state_dict())):
        with pytest.raises(ValueError, match="^'weights' must be non-negative; its smallest entry is -20$"):
            refuses()


def test_weight_decay_and_instruments_ask_it_nothing_more() -> None:
    source, x = cl.Squared(Ridges(2, seed=0)), points(2)
    assert [id(p) for p in decayed_matrices(source)] == [id(source.architecture.directions)]
    assert decayed_matrices(Ridges(2))[0].shape == (12, 2)
    found = gradient_health(source, lambda x: source(x).square().mean(), x)
    assert list(found) == ["0.weights"] and found["0.weights"].correlation is None
