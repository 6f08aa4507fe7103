"""The optimiser SOAP in `fit`: what its steps are, and that its runs go on bit for bit."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.training.optimisation import make_optimizer, parameter_groups

pytest.importorskip("pytorch_optimizer")

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"optimizer": "soap", "batch_size": 16, "progress": False}


class Quadratic(nn.Module):
    """sum_ij S_ij^2 (R' W Q - T)_ij^2 for a matrix W, in double precision."""

    def __init__(self, r: Tensor, q: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, 3).double())
        self.r, self.q = r, q

    def loss(self, batch: Tensor) -> Tensor:
        scales = torch.arange(1.0, 10.0).double().view(3, 3)
        return (scales * (self.r.T @ self.w @ self.q - rotation(3))).square().sum()


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double())[0]


def test_steps_turn_with_the_coordinates_on_both_sides_of_a_matrix() -> None:
    one, r, q = torch.eye(3).double(), rotation(1), rotation(2)
    plain, turned = Quadratic(one, one), Quadratic(r, q)
    for module in (plain, turned):
        cl.fit(module, X.double(), steps=60, lr=0.1, **QUICK)
    assert plain.loss(X).item() < 1.0
    torch.testing.assert_close(r.T @ turned.w.detach() @ q, plain.w.detach(), rtol=1e-4, atol=1e-5)


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v, self.s = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.ones(()).double())
        self.unused = nn.Parameter(torch.ones(2, 2).double())

    def loss(self, batch: Tensor) -> Tensor:
        return (self.v * torch.tensor([1.0, 2.0, 3.0])).square().sum() + (self.s - 3).square()


def test_vectors_are_adams_and_the_first_step_moves_nothing() -> None:
    ours, theirs = Vector(), Vector()
    cl.fit(ours, X.double(), steps=1, lr=0.05, **QUICK)
    assert torch.equal(ours.v, theirs.v) and torch.equal(ours.s, theirs.s)
    cl.fit(ours, X.double(), steps=21, lr=0.05, schedule="constant", **QUICK)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05, betas=(0.95, 0.95))
    for _ in range(20):
        adam.zero_grad()
        theirs.loss(X).backward()
        adam.step()
    torch.testing.assert_close(ours.v, theirs.v)
    torch.testing.assert_close(ours.s, theirs.s)
    assert torch.equal(ours.unused, torch.ones(2, 2).double())


def test_long_sides_have_no_basis() -> None:
    layer = nn.Linear(1025, 3)
    optimizer = make_optimizer("soap", parameter_groups(layer), 0.1)
    layer(torch.ones(2, 1025)).sum().backward()
    optimizer.step()
    assert [len(side) for side in optimizer.state[layer.weight]["Q"]] == [3, 0]


def net() -> cl.ICNN:
    return cl.ICNN(2, hidden=(4, 4), seed=0, quadratic_rank=1)


def flow(source: Callable[[cl.ICNN], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cl.ConvexPotentialFlow([source(net())])


def images() -> nn.Module:
    return cl.ConvexPotentialFlow(
        [cl.Squared(cl.ConvICNN((1, 1, 2), channels=(2, 3), pooling="none", seed=0))]
    )


MODULES: dict[str, Callable[[], nn.Module]] = {
    "projected": partial(flow, cl.Projected),
    "softplus": partial(flow, cl.Softplus),
    "squared": partial(flow, cl.Squared),
    "lift": partial(flow, partial(cl.Lift, seed=0)),
    "lift of everything": partial(flow, partial(cl.Lift, targets="all", readout="dense", seed=0)),
    "centred": partial(flow, lambda net: cl.Centred(cl.Squared(net))),
    "convolutional": images,
}


def trained(make: Callable[[], nn.Module], folder: Path, *, stop: int | None = None, **more: Any) -> Any:
    def interrupt(event: Any) -> None:
        if event.step == stop:
            raise KeyboardInterrupt

    module = make()
    options: dict[str, Any] = {"steps": 24, "lr": 0.02, "evaluate_every": 8, "averaging": 0.9, **QUICK}
    cl.fit(module, X, run_dir=folder, callbacks=[interrupt], weight_decay=2.0, **options, **more)
    return copy.deepcopy(module.state_dict())


@pytest.mark.parametrize("kind", MODULES)
def test_runs_resume_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = trained(MODULES[kind], tmp_path / "whole")
    trained(MODULES[kind], tmp_path / "cut", stop=16)
    resumed = trained(MODULES[kind], tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "cut")]
    assert repr(states[0]["optimizer"]) == repr(states[1]["optimizer"])
    assert states[0]["optimizer"]["param_groups"][0]["step"] == 24


def test_without_the_package_the_error_names_the_extra_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    module: Any = flow(cl.Squared)
    message = r"^optimizer 'soap' needs pytorch_optimizer: pip install 'convexlift\[soap\]'$"
    with pytest.raises(ImportError, match=message):
        cl.fit(module, X + 5.0, run_dir=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
    assert not module.standardiser.mean.any()


class Fails(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        torch.linalg.cholesky(-torch.eye(2))


def test_a_decomposition_that_fails_is_a_divergence() -> None:
    module: Any = flow(cl.Squared)
    with pytest.raises(
        cl.TrainingDiverged, match="^training diverged after 0 steps: a step of the optimiser fails"
    ):
        cl.fit(module, X, steps=2, optimizer=lambda groups: Fails(groups, lr=0.1), progress=False)
    assert module.freeze(X).log_prob(X).isfinite().all()
