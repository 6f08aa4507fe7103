"""What was derived from weights or data holds no longer than they do."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift import sklearn as estimators
from convexlift.origins import Origin


def density(dim: int, seed: int = 0) -> cl.LogConcaveDensity:
    generator = torch.Generator().manual_seed(0)
    task = cl.LogConcaveDensity(cl.ICNN(dim, hidden=(6, 6), seed=seed))
    task.initialise(torch.randn(200, dim, generator=generator))
    frozen = task.freeze()
    frozen.normalise()
    return frozen


def mass(model: cl.LogConcaveDensity) -> float:
    """The integral of the density over its one column."""
    x = torch.linspace(-60, 60, 60_001, dtype=model.dtype)[:, None]
    return float(model.log_prob(x).double().exp().sum() * 120 / 60_000)


def steeper(model: cl.LogConcaveDensity) -> dict[str, Tensor]:
    """Other weights for its block."""
    return {name: 3 * t if name == "outer" else t.clone() for name, t in model.block.state_dict().items()}


def _three(model: Any) -> Tensor:
    return 3 * model.block.outer.detach()


def _in_place(model: Any) -> None:
    with torch.no_grad():
        model.block.outer.mul_(3)


def _replaced(model: Any) -> None:
    model.block.outer = torch.nn.Parameter(3 * model.block.outer, requires_grad=False)


def _trained(model: Any) -> None:
    """By a loop of the user's own, on a loss of the user's own."""
    model.block.requires_grad_(True)
    optimiser = torch.optim.SGD(model.block.parameters(), lr=0.01)
    model.block(torch.randn(9, 1)).square().mean().backward()
    optimiser.step()
    model.block.requires_grad_(False)


CHANGES: dict[str, Callable[[Any], object]] = {
    "loaded into the block": lambda model: model.block.load_state_dict(steeper(model)),
    "loaded in part": lambda model: model.load_state_dict(
        {"block.outer": 3 * model.block.outer}, strict=False
    ),
    "written to": _in_place,
    "written to through data": lambda model: model.block.outer.data.mul_(3),
    "one entry, through data": lambda model: model.block.outer.data[0].mul_(9),
    "data replaced": lambda model: setattr(model.block.outer, "data", 3 * model.block.outer.data),
    "a parameter replaced": _replaced,
    "the block replaced": lambda model: setattr(model, "block", density(1, seed=5).block),
    "trained": _trained,
    "curvature": lambda model: model.block.raw_alpha.data.add_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_log_z_is_that_of_the_block_as_it_is(change: str) -> None:
    model = density(1)
    before = float(model.log_z)
    CHANGES[change](model)
    assert mass(model) == pytest.approx(1, abs=1e-4)
    assert float(model.log_z) != before
    x = torch.zeros(4, 1)
    assert float(model.loss(x)) == pytest.approx(-float(model.log_prob(x).mean()), abs=1e-5)
    assert float(model.normaliser().log_z) == pytest.approx(float(model.log_z), abs=1e-5)


@pytest.mark.parametrize("change", ["loaded into the block", "written to"])
def test_a_saved_model_has_the_log_z_of_what_it_was_when_saved(change: str, tmp_path: Path) -> None:
    model = density(1)
    CHANGES[change](model)
    cl.save(model, tmp_path / "model.safetensors")
    again = cl.load(tmp_path / "model.safetensors")
    assert mass(again) == pytest.approx(1, abs=1e-4)
    CHANGES[change](again)
    assert mass(again) == pytest.approx(1, abs=1e-4)


def _pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def _loaded(model: Any) -> Any:
    other = density(3, seed=8)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("same", [copy.deepcopy, _pickled, _loaded, lambda model: model.to("cpu")])
def test_log_z_is_kept_where_nothing_changed(same: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above two columns it takes seconds to find."""
    model = density(3)
    again = same(model)

    def found_anew(*_: object, **__: object) -> None:
        raise AssertionError("log Z was known")

    monkeypatch.setattr(cl.LogConcaveDensity, "_normaliser", found_anew)
    assert torch.equal(again.log_prob(torch.zeros(2, 3)), model.log_prob(torch.zeros(2, 3)))


def test_another_dtype_has_a_log_z_of_its_own() -> None:
    model = density(1)
    wide = copy.deepcopy(model).double()
    exact = float(wide.normaliser().log_z)
    wide.log_prob(torch.zeros(1, 1, dtype=torch.float64))
    assert float(wide.log_z) == exact and float(model.log_z) != exact


def test_a_region_keeps_the_density_as_it_was() -> None:
    model = density(1)
    region = model.credible_region(0.5)
    x = torch.linspace(-3, 3, 61)[:, None]
    inside = region.contains(x)
    _in_place(model)
    model.standardiser.mean.add_(10)
    assert torch.equal(region.contains(x), inside)


def test_fixed_draws_follow_the_seed_of_their_simulator() -> None:
    simulator = cl.Simulator(lambda n, generator: torch.randn(n, 1, generator=generator), seed=0)
    one = simulator.fixed(3)
    simulator.seed = 1
    assert not torch.equal(one, simulator.fixed(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tensors", [[], [torch.zeros(())], [torch.tensor([math.nan])], [torch.ones(2).bfloat16()]]
)
def test_an_origin_of_anything(tensors: list[Tensor]) -> None:
    origin = Origin(tensors)
    assert origin.holds(tensors) and origin.holds([t.clone() for t in tensors])
    assert not origin.holds([*tensors, torch.ones(1)])


def test_an_origin_sees_what_its_norm_does_not() -> None:
    weight = torch.tensor([1.0, -2.0])
    origin = Origin([weight])
    for change in (weight.flip(0), -weight):
        assert not origin.holds([change])
    weight.neg_()
    assert not origin.holds([weight])


X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


def _flow() -> Any:
    return cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(4,), seed=0)]), lambda x: x


def _density() -> Any:
    # Uneven weights do not make the same data others.
    return cl.LogConcaveDensity(cl.ICNN(2, hidden=(4,), seed=0), "score"), lambda x: (x, x[:, 0].exp())


def _regression() -> Any:
    return cl.ConvexRegression(cl.ICNN(2, hidden=(4,), seed=0)), lambda x: (x, 5 + x.square().sum(1))


def _conditional() -> Any:
    return cl.ConditionalDensity(cl.PICNN(1, 1, hidden=(4,), seed=0)), lambda x: (x[:, :1], x[:, 1:])


@pytest.mark.parametrize("kind", [_flow, _density, _regression, _conditional])
def test_a_second_fit_on_other_data_says_what_it_keeps(kind: Callable[[], Any]) -> None:
    task, rows = kind()
    options: dict[str, Any] = {"steps": 2, "progress": False}
    cl.fit(task, rows(X), **options)
    cl.fit(task, rows(X), **options)  # goes on, and the tests take warnings for errors
    task.initialise(rows(X[torch.randperm(200, generator=torch.Generator().manual_seed(1))]))
    mean = task.standardiser.mean.clone()
    for other in (X + torch.tensor([0.0, 40.0]), X * torch.tensor([1.0, 9.0]), X * torch.tensor([1.0, 0.01])):
        with pytest.warns(UserWarning, match=r"^this task was initialised on other data: column \d of the"):
            cl.fit(task, rows(other), **options)
    assert torch.equal(task.standardiser.mean, mean)


def test_the_warning_says_how_far_and_what_to_do() -> None:
    task, _ = _flow()
    task.initialise(X)
    with pytest.warns(UserWarning) as caught:
        task.initialise(X * 2 * X.std(0) / X.std(0) + 100 * task.standardiser.scale)
    message = str(caught[0].message)
    assert "column 0 of the samples is now 100 deviations away and 2 times as wide" in message
    assert message.endswith("its scales stay as they are: make a new task to start anew")


def test_targets_on_another_scale_are_named() -> None:
    task, _ = _regression()
    task.initialise((X, X[:, 0]))
    with pytest.warns(UserWarning, match="column 0 of the targets"):
        task.initialise((X, 1000 * X[:, 0]))


ESTIMATORS = [estimators.ConvexPotentialFlow, estimators.LogConcaveDensity, estimators.ConvexRegressor]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_second_fit_of_an_estimator_starts_anew(kind: Any) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    far = 1000 + 50 * x
    options: dict[str, Any] = {"hidden": (4,), "steps": 4, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = kind(**options).fit(x, (x**2).sum(1)).fit(far, (x**2).sum(1))
    once = kind(**options).fit(far, (x**2).sum(1))
    assert twice.score(far, (x**2).sum(1)) == once.score(far, (x**2).sum(1))


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("source", ["squared", "lift"])
def test_a_warm_start_goes_on(kind: Any, source: str) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = (x**2).sum(1)
    options: dict[str, Any] = {"hidden": (4,), "steps": 40, "random_state": 0, "source": source}
    cold = kind(**options).fit(x, y)
    warm = kind(**options, warm_start=True).fit(x, y)
    assert warm.score(x, y) == cold.score(x, y)
    first = cold.history_.loss[0]
    assert warm.fit(x, y).history_.loss[0] < first == cold.fit(x, y).history_.loss[0]
    assert len(pickle.dumps(warm)) > len(pickle.dumps(cold))
    again = pickle.load(io.BytesIO(pickle.dumps(warm))).fit(x, y)
    assert again.history_.loss[0] == warm.fit(x, y).history_.loss[0]
    with pytest.warns(UserWarning, match="^this task was initialised on other data"):
        warm.fit(x + 100, y)


def test_a_warm_start_keeps_its_networks() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    flow = estimators.ConvexPotentialFlow(hidden=(4,), steps=2, warm_start=True, random_state=0).fit(x)
    with pytest.raises(ValueError, match=r"whose hidden was \(4,\) and is \(5,\) now: set warm_start=False"):
        flow.set_params(hidden=[5]).fit(x)
    with pytest.raises(ValueError, match="whose n_features_in_ was 2 and is 1 now"):
        flow.set_params(hidden=[4]).fit(x[:, :1])
    assert flow.set_params(warm_start=False).fit(x[:, :1]).n_features_in_ == 1
