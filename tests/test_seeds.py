"""Seeds travel in generators of our own: the caller's are neither read nor moved, and threads do not meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, cross_val_score
from tests.test_ambient import ENTRIES, same
from torch import Tensor, nn

import convexlift as cl
from convexlift import sklearn as estimators
from convexlift.seeds import drawing_apart, fresh_seed, generator_on, linear, reseed, seeded


def states() -> list[Any]:
    numbers = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state(), numbers[1].tolist(), numbers[2:], random.getstate()]


@contextmanager
def untouched() -> Iterator[None]:
    before = states()
    yield
    assert all(same(one, other) for one, other in zip(before, states(), strict=True))


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_moves_or_reads_a_global_generator(entry: str) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        with untouched():
            found.append(ENTRIES[entry]())
    assert all(same(one, other) for one, other in zip(*found, strict=True))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "ICNN": lambda: cl.ICNN(2, hidden=(4, 4), quadratic_rank=1, seed=3),
    "folded": lambda: cl.ICNN(2, hidden=(4, 4), init="folded_normal", seed=3),
    "PICNN": lambda: cl.PICNN(2, 1, hidden=(4,), seed=3),
    "ConvICNN": lambda: cl.ConvICNN((1, 4, 4), channels=(2,), seed=3),
    "Lift": lambda: cl.Lift(cl.ICNN(2, hidden=(4,), seed=3), readout="dense", seed=3),
    "Lift.reference": lambda: cl.Lift.reference(cl.ICNN(2, hidden=(4,), seed=3), seed=3),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_start_depends_on_its_seed_alone(kind: str) -> None:
    torch.manual_seed(1)
    with untouched():
        one = MAKERS[kind]()
    torch.manual_seed(2)
    other = MAKERS[kind]()
    assert all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


def test_without_a_seed_torch_s_own_generator_decides() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append([cl.ICNN(2, hidden=(4,)).outer.detach(), linear(3, 2).weight.detach()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with seeded(0), untouched():  # not here
        cl.Lift(cl.ICNN(2, hidden=(4,)))
        fresh_seed()


def test_a_linear_layer_starts_as_torch_s_own() -> None:
    torch.manual_seed(4)
    own = nn.Linear(5, 3)
    torch.manual_seed(4)
    ours = linear(5, 3)
    assert torch.equal(own.weight, ours.weight) and torch.equal(own.bias, ours.bias)


class Noisy(nn.Module):
    """A user's own module, which draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))

    def loss(self, batch: Tensor) -> Tensor:
        return (batch + torch.randn(2) - self.m).square().mean()


def test_a_module_of_the_user_s_is_seeded_and_leaves_the_generator_as_it_was() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Noisy()
        with untouched():
            cl.fit(model, torch.zeros(8, 2), steps=5, lr=0.1, seed=9, progress=False)
        found.append(model.m.detach())
    assert torch.equal(*found) and bool(found[0].any())


def test_what_is_drawn_apart_follows_its_seed() -> None:
    module = cl.ICNN(2, hidden=(4,), seed=0)
    found = []
    with untouched(), drawing_apart(module):
        for _ in range(2):
            reseed(torch.device("cpu"), 3, "step")
            found.append(torch.randn(3, generator=generator_on()))
    assert torch.equal(*found) and generator_on() is None


@pytest.mark.parametrize("seed", [1.5, "0"])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(TypeError, match=f"^seed must be an int; got {seed!r}$"):
        cl.ICNN(2, seed=seed)


def test_what_is_computed_again_in_the_backward_pass_draws_what_it_drew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    gradients = []
    for again in (True, False):
        if not again:
            monkeypatch.setattr("convexlift.tasks.flow.checkpoint", lambda step, part, **_: step(part))
        net = cl.ICNN(6, hidden=(8,), seed=0)
        flow = cl.ConvexPotentialFlow([net], logdet="estimated", chunk=16)
        flow.initialise(x)
        with seeded(5):
            flow.loss(x).backward()
        gradients.append(net.outer.grad)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


KINDS: dict[str, Callable[[], Any]] = {
    "flow": lambda: estimators.ConvexPotentialFlow(hidden=(6,), steps=15, source="lift", random_state=0),
    "density": lambda: estimators.LogConcaveDensity(hidden=(6,), steps=15, objective="nce", random_state=0),
    "regressor": lambda: estimators.ConvexRegressor(hidden=(6,), steps=15, random_state=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_cross_validation_in_threads_is_that_in_sequence(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(90, 1 if kind == "density" else 2))
    y = (x**2).sum(1)
    expected = cross_val_score(KINDS[kind](), x, y, cv=4)
    with untouched():
        for _ in range(2):
            with joblib.parallel_backend("threading", n_jobs=4):
                found = cross_val_score(KINDS[kind](), x, y, cv=4)
            assert found.tolist() == expected.tolist()


def test_a_grid_search_in_threads_is_that_in_sequence() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    grid = {"learning_rate": [0.01, 0.03], "source": ["lift", "softplus"]}

    def run(jobs: int) -> list[float]:
        search = GridSearchCV(KINDS["regressor"](), grid, cv=2, n_jobs=jobs)
        with joblib.parallel_backend("threading", n_jobs=jobs), untouched():
            search.fit(x, (x**2).sum(1))
        return search.cv_results_["mean_test_score"].tolist()

    assert run(1) == run(3)
