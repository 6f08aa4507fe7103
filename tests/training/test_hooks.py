from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import convexlift as cl
from convexlift.training import Simulator, Unpaired, fit
from convexlift.training.optimisation import clip_gradients, parameter_groups

DATA = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))


class Hooked(nn.Module):
    """Writes down every hook that `fit` calls."""

    def __init__(self, settle_at: float | None = 0.5) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
        self.settle_at = settle_at
        self.calls: list[tuple[str, Any]] = []

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls.append(("loss", len(batch)))
        return (batch - self.m).square().mean()

    def initialise(self, data: Any) -> None:
        self.calls.append(("initialise", data))

    def set_progress(self, t: float) -> None:
        self.calls.append(("progress", t))

    def settle(self, data: Any) -> None:
        self.calls.append(("settle", data))

    def freeze(self, data: Any) -> nn.Module:
        self.calls.append(("freeze", data))
        frozen = Hooked()
        frozen.m.data.copy_(self.m.detach())
        return frozen.eval()

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def given(self, hook: str) -> list[Any]:
        return [argument for name, argument in self.calls if name == hook]


def test_a_module_is_told_which_rows_each_batch_is() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.zeros(2))
            self.told: tuple[torch.Tensor, ...] = ()
            self.sides: list[int] = []

        def at_rows(self, indices: tuple[torch.Tensor, ...]) -> None:
            self.told = indices

        def loss(self, batch: Any) -> torch.Tensor:
            sides = batch if isinstance(batch, tuple) else (batch,)
            self.sides.append(len(self.told))
            for rows, which, whole in zip(sides, self.told, (DATA, DATA[:40] + 1), strict=False):
                assert torch.equal(rows, whole[which])
            return (sides[0] - self.m).square().mean()

    module = Told()
    for data in (DATA, Unpaired(DATA, DATA[:40] + 1), Simulator(lambda n, generator: torch.randn(n, 2))):
        fit(module, data, steps=3, batch_size=20, progress=False)
    assert module.sides == [1] * 3 + [2] * 3 + [0] * 3


def test_the_order_of_the_hooks() -> None:
    module = Hooked()
    fit(module, DATA, validation=DATA, steps=4, evaluate_every=2, batch_size=20, progress=False)
    assert [(name, x if isinstance(x, float) else None) for name, x in module.calls] == [
        ("initialise", None),
        ("progress", 0.0),
        ("loss", None),
        ("progress", 0.25),
        ("loss", None),
        ("progress", 0.5),
        ("settle", None),
        ("freeze", None),
        ("progress", 0.5),
        ("loss", None),
        ("progress", 0.75),
        ("loss", None),
        ("progress", 1.0),
        ("freeze", None),
        ("progress", 1.0),  # the best state is that of the end
    ]
    assert all(
        torch.equal(data, DATA) for hook in ("initialise", "settle", "freeze") for data in module.given(hook)
    )


@pytest.mark.parametrize(("settle_at", "before"), [(0.3, 3), (0.31, 4), (1.0, 10)])
def test_settling_happens_once_as_soon_as_it_is_due(settle_at: float, before: int) -> None:
    module = Hooked(settle_at)
    fit(module, DATA, steps=10, evaluate_every=10, progress=False)
    names = module.names()
    assert names.count("settle") == 1
    assert names[: names.index("settle")].count("loss") == before


def test_nothing_settles_where_nothing_asks_for_it() -> None:
    module = Hooked(None)
    fit(module, DATA, steps=3, progress=False)
    assert "settle" not in module.names()


def test_the_model_is_frozen_only_where_somebody_looks() -> None:
    module = Hooked()
    fit(module, DATA, steps=4, evaluate_every=1, progress=False)
    assert "freeze" not in module.names()
    fit(module, DATA, steps=4, evaluate_every=1, progress=False, callbacks=[lambda event: None])
    assert module.names().count("freeze") == 4


def test_progress_goes_back_with_the_best_state() -> None:
    module = Hooked(None)
    history = fit(module, DATA + 5, validation=torch.zeros(3, 2), steps=8, evaluate_every=2, progress=False)
    assert history.best_step == 2
    assert module.calls[-1] == ("progress", 0.25)


def test_hooks_receive_all_rows_in_the_form_of_a_batch() -> None:
    class Pair(Hooked):
        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch[0]) + super().loss(batch[1])

    module = Pair()
    fit(module, Unpaired(DATA, DATA[:7]), steps=2, progress=False)
    assert [len(x) for x in module.given("initialise")[0]] == [60, 7]
    module = Pair()
    fit(module, (DATA, DATA), steps=2, progress=False)
    assert [len(x) for x in module.given("initialise")[0]] == [60, 60]
    module = Hooked()
    simulator = Simulator(lambda n, generator: torch.randn(n, 2, generator=generator))
    fit(module, simulator, steps=2, progress=False)
    assert torch.equal(module.given("initialise")[0], simulator.fixed())


class Coupled(nn.Module):
    def __init__(self, coupling: str) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
        self.part = nn.Module()
        self.part.coupling = coupling
        self.batches: list[torch.Tensor] = []
        self.emitting: list[torch.Tensor | None] = []

    def loss(self, batch: torch.Tensor, emit_from: torch.Tensor | None = None) -> torch.Tensor:
        self.batches.append(batch)
        self.emitting.append(emit_from)
        return (batch - self.m).square().mean()


def test_an_independent_lift_emits_from_a_stream_of_its_own() -> None:
    module, coupled = Coupled("independent"), Coupled("batch")
    for each in (module, coupled):
        fit(each, DATA, steps=6, batch_size=20, progress=False)
    assert all(x is None for x in coupled.emitting)
    assert torch.equal(torch.cat(module.batches), torch.cat(coupled.batches))
    emitted = [x for x in module.emitting if x is not None]
    assert len(emitted) == 6 and all(x.shape == (20, 2) for x in emitted)
    assert torch.equal(torch.cat(emitted[:3]).sort(0).values, DATA.sort(0).values)
    assert not any(torch.equal(x, y) for x, y in zip(emitted, module.batches, strict=True))


@pytest.mark.parametrize("coupling", ["batch", "independent"])
def test_which_rows_a_lift_emits_from(coupling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An independent lift emits from other rows than those of the loss, which are the same in both runs."""
    losses, emitted = [], []

    class Flow(cl.ConvexPotentialFlow):
        def loss(self, batch: torch.Tensor, emit_from: torch.Tensor | None = None) -> torch.Tensor:
            losses.append(batch)
            return super().loss(batch, emit_from)

    def noted(lift: cl.Lift, batch: torch.Tensor | None) -> torch.Tensor:
        if batch is not None:  # it is once the lift has settled
            emitted.append(batch)
        return summary(lift, batch)

    summary = cl.Lift.summary
    flow = Flow([cl.Lift(cl.ICNN(2, hidden=(4,), seed=0), seed=0, coupling=coupling)])
    flow.initialise(DATA)
    monkeypatch.setattr(cl.Lift, "summary", noted)
    fit(flow, DATA, steps=3, batch_size=20, schedule="constant", lr=1e-12, progress=False)
    assert torch.equal(torch.cat(losses).sort(0).values, DATA.sort(0).values)
    first = [flow.norms[0](flow.standardiser(batch)) for batch in losses]
    same = [torch.allclose(x, y, atol=1e-5) for x, y in zip(emitted, first, strict=True)]
    assert same == [coupling == "batch"] * 3
    assert torch.allclose(torch.cat(emitted).sort(0).values, torch.cat(first).sort(0).values, atol=1e-5)


class Regression(nn.Module):
    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.offset = nn.Parameter(torch.zeros(()))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.source(batch) + self.offset + batch.square().sum(1)).square().mean()


@pytest.mark.parametrize("make", [cl.Softplus, cl.Squared, cl.Projected, cl.Lift])
def test_parameters_that_make_constrained_weights_are_one_group(make: Any) -> None:
    source = make(cl.ICNN(2, hidden=(4, 4), seed=0))
    module = Regression(source)
    groups = {group["name"]: group["params"] for group in parameter_groups(module)}
    assert list(groups) == ["source", "free"]
    free = {id(p) for p in [*source.free_tensors().values(), module.offset]}
    assert {id(p) for p in groups["free"]} == free
    assert {id(p) for p in groups["source"]} == {id(p) for p in module.parameters()} - free
    assert len(groups["source"]) + len(groups["free"]) == len(list(module.parameters()))


def test_an_empty_group_is_left_out_and_what_asks_for_no_gradient_too() -> None:
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    assert [(g["name"], len(g["params"])) for g in parameter_groups(layer)] == [("free", 1)]


def test_projection_is_attached_to_the_optimiser() -> None:
    source = cl.Projected(cl.ICNN(2, hidden=(4, 4), seed=0))
    fit(Regression(source), DATA, steps=30, lr=0.3, optimizer="sgd", clip=1.0, progress=False)
    weights = torch.cat([w.detach().flatten() for w in source.weights().values()])
    assert float(weights.min()) == 0.0


def test_gradients_are_clipped_group_by_group() -> None:
    one, other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other]}], lr=1.0)
    one.grad, other.grad = torch.full((3,), 10.0), torch.full((4,), 0.1)
    assert clip_gradients(optimizer, 1.0) == pytest.approx(10 * 3**0.5)
    assert float(one.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(other.grad, torch.full((4,), 0.1))
    one.grad = torch.full((3,), 10.0)
    assert clip_gradients(optimizer, None) == pytest.approx(10 * 3**0.5)
    assert torch.equal(one.grad, torch.full((3,), 10.0))
    one.grad, other.grad = torch.full((3,), torch.nan), None
    assert clip_gradients(optimizer, None) != clip_gradients(optimizer, None)  # NaN comes out
