"""The moving average of the parameters: its values, where it is used, and that training does not see it."""

from __future__ import annotations

import copy
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convexlift as cl
from convexlift.testing import check_convex, check_nonnegative
from convexlift.training import FitEvent, TrainingDiverged, fit
from convexlift.training.averaging import Average

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
Y = X.square().sum(1) + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(1))
QUICK: dict[str, Any] = {"batch_size": 16, "schedule": "constant", "progress": False}
DECAYS = (0.2, 0.9, 0.99)


def averaged(path: list[Tensor], decay: float) -> Tensor:
    """The average after path[0] (the start) to path[-1], in float64."""
    a = path[0].double()
    for step, p in enumerate(path[1:], start=1):
        a = a + max(1.0 - decay, 9.0 / (step + 9.0)) * (p.double() - a)
    return a


class Linear(nn.Module):
    """A loss with gradient one: plain SGD takes p_0 to p_0 - lr t."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))

    def loss(self, batch: Tensor) -> Tensor:
        return self.p.sum()


class Mean(nn.Module):
    """The mean of noisy rows; it writes down its parameter at the start of each step."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.ones(width))
        self.register_buffer("seen", torch.tensor(0))
        self.path: list[Tensor] = []

    def loss(self, batch: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.path.append(self.m.detach().clone())
            batch = batch + 0.5 * torch.randn_like(batch)
        return (batch - self.m).square().sum(1).mean()

    def __deepcopy__(self, memo: dict[int, Any]) -> Mean:
        other = Mean(len(self.m))
        other.load_state_dict(self.state_dict())
        return other


def plain_sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01)


# The average itself.


@pytest.mark.parametrize("decay", [1e-20, *DECAYS, 0.999])
def test_a_known_path_gives_a_known_average(decay: float) -> None:
    module = Linear()
    start = module.p.detach().clone()
    fit(module, X, steps=50, optimizer=plain_sgd, averaging=decay, **QUICK)
    expected = averaged([start - 0.01 * t for t in range(51)], decay)
    torch.testing.assert_close(module.p.detach(), expected, rtol=1e-13, atol=1e-13)


def test_the_short_start_and_the_lag_of_the_average_in_closed_form() -> None:
    module = Linear()
    start = module.p.detach().clone()
    # While w = 9 / (step + 9), step s of t weighs as the binomial coefficient (s + 8 over 8): mean 0.9 t.
    fit(module, X, steps=100, optimizer=plain_sgd, averaging=0.999, **QUICK)
    torch.testing.assert_close(module.p.detach(), start - 0.01 * 90, rtol=1e-12, atol=0)
    # With a constant w the average is (1 - w) / w steps behind.
    module = Linear()
    fit(module, X, steps=400, optimizer=plain_sgd, averaging=0.75, **QUICK)
    torch.testing.assert_close(module.p.detach(), start - 0.01 * (400 - 3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_stands_still_is_its_own_average(dtype: torch.dtype) -> None:
    layer = nn.Linear(5, 7).to(dtype)
    layer.bias.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.bias.add_(1)  # no parameter of the training
    for step in range(1, 41):
        average.update(step)
    assert list(average.state()) == ["weight"]
    with average.in_place():
        assert torch.equal(layer.weight, before["weight"])
        assert torch.equal(layer.bias, before["bias"] + 1)


def test_an_average_of_non_negative_weights_is_non_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    part = nn.ParameterList([nn.Parameter(torch.rand(200, 50, generator=generator))])
    average = Average(part, 0.95)
    for step in range(1, 101):
        with torch.no_grad():
            scale = 10.0 ** torch.randint(-44, 30, part[0].shape, generator=generator)
            drawn = torch.randn(part[0].shape, generator=generator) * scale
            part[0].copy_(drawn.clamp_min(0))
        average.update(step)
        assert average.state()["0"].min() >= 0


def test_shared_parameters_have_one_average() -> None:
    shared = nn.Linear(2, 2)
    assert list(Average(nn.Sequential(shared, shared), 0.5).state()) == ["0.weight", "0.bias"]


def test_the_parameters_come_back_after_an_error() -> None:
    layer = nn.Linear(2, 3)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.normal_()
    own = copy.deepcopy(layer.state_dict())
    average.update(1)
    with pytest.raises(LookupError), average.in_place():
        assert not torch.equal(layer.weight, own["weight"])
        with torch.no_grad():
            layer.weight.zero_()  # written to the module, not to the average
        raise LookupError
    assert all(torch.equal(layer.state_dict()[name], own[name]) for name in own)
    average.take_place()
    assert torch.equal(layer.weight, average.state()["weight"]) and layer.weight.abs().min() > 0


def test_a_decay_of_zero_averages_nothing() -> None:
    layer = nn.Linear(2, 3)
    average = Average(layer, 0.0)
    own = copy.deepcopy(layer.state_dict())
    average.update(1)
    with average.in_place():
        assert average.state() == {}
    average.take_place()
    assert all(torch.equal(layer.state_dict()[name], own[name]) for name in own)


def test_averaging_narrows_the_spread_of_the_last_iterate() -> None:
    data = torch.zeros(64, 40)
    ends: dict[float, list[Tensor]] = {0.0: [], 0.98: []}
    for decay, found in ends.items():
        for seed in range(3):
            module = Mean(40)
            fit(module, data, steps=200, lr=0.02, optimizer="sgd", averaging=decay, seed=seed, **QUICK)
            found.append(module.m.detach())
    last, average = (torch.stack(found).square().mean().item() for found in ends.values())
    assert average < 0.2 * last


# Training goes on as without.


def net() -> cl.ICNN:
    return cl.ICNN(2, hidden=(6, 6), seed=0)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "projected": lambda: cl.Projected(net()),
    "softplus": lambda: cl.Softplus(net()),
    "softplus by fan-in": lambda: cl.Softplus(net(), fan_in=True),
    "squared": lambda: cl.Squared(net()),
    "lift": lambda: cl.Lift(net(), seed=0),
    "independent lift": lambda: cl.Lift(net(), coupling="independent", seed=0),
    "centred": lambda: cl.Centred(cl.Squared(net()), slopes=True),
}


def followed(module: nn.Module) -> dict[str, Tensor]:
    """What is averaged: parameters, and the moving averages of a centred block and its regression."""
    kinds = ("mean_", "slope_", "level")
    buffers = {
        name: buffer for name, buffer in module.named_buffers() if name.split(".")[-1].startswith(kinds)
    }
    return {**dict(module.named_parameters()), **buffers}


def test_the_steps_are_those_without_averaging() -> None:
    paths, histories = [], []
    for decay in (0.0, 0.9):
        module = Mean()
        options: dict[str, Any] = {"validation": X[:20], "callbacks": [lambda event: None]}
        histories.append(fit(module, X, steps=30, lr=0.1, averaging=decay, **options, **QUICK))
        paths.append(module.path)
    assert all(torch.equal(p, q) for p, q in zip(*paths, strict=True))
    assert histories[0].loss == histories[1].loss and histories[0].validation != histories[1].validation


@pytest.mark.parametrize("block", BLOCKS)
def test_the_model_is_that_of_the_averages_and_the_training_is_not(block: str, tmp_path: Path) -> None:
    modules, paths = [], []
    for folder, decay in (("plain", 0.0), ("averaged", 0.9)):
        torch.manual_seed(0)
        module = cl.ConvexRegression(BLOCKS[block]())
        path, loss = [], module.loss

        def noting(*batch: Any, module: Any = module, path: Any = path, loss: Any = loss, **more: Any) -> Any:
            path.append({name: t.detach().clone() for name, t in followed(module).items()})
            return loss(*batch, **more)

        module.loss = noting  # type: ignore[method-assign]
        options: dict[str, Any] = {"steps": 15, "lr": 0.02, "weight_decay": 1.0, "evaluate_every": 4}
        options |= {"callbacks": [lambda event: None], "run_dir": tmp_path / folder, "averaging": decay}
        fit(module, (X, Y), **options, **QUICK)
        del module.loss
        modules.append(module)
        paths.append(path)
    plain, module = modules

    # In training nothing changed: the last step's parameters, the buffers and the optimiser's moments.
    without, with_ = (torch.load(tmp_path / name / "state.pt") for name in ("plain", "averaged"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(without["module"][name], tensor), name
        assert torch.equal(with_["module"][name], tensor), name
    one, other = (state["optimizer"]["state"] for state in (without, with_))
    assert all(torch.equal(one[i][key], other[i][key]) for i in one for key in one[i])

    # The module is that of the averages, with all but a centred block's buffers those of the end.
    assert len(paths[0]) == len(paths[1]) == 15
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        for name, tensor in followed(expected).items():
            steps = [*(step[name] for step in paths[0]), tensor.detach().clone()]
            tensor.copy_(averaged(steps, 0.9))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    frozen, wanted, other_model = (part.freeze((X, Y)) for part in (module, expected, plain))
    torch.testing.assert_close(frozen.predict(X), wanted.predict(X), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(frozen.predict(X), other_model.predict(X), rtol=1e-3, atol=1e-3)

    check_nonnegative(frozen)
    check_convex(frozen.predict, dim=2, scales=(1.0,), starts=16)


# What is looked at and kept is the average.


def test_callbacks_and_the_file_hold_the_averages(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    ends: list[Tensor] = []  # the parameter after each step

    def noting(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.05)
        optimizer.register_step_post_hook(lambda *_: ends.append(module.m.detach().clone()))
        return optimizer

    def look(event: FitEvent) -> None:
        expected = averaged([torch.ones(2), *ends], 0.9).float()
        torch.testing.assert_close(event.module.m.detach(), expected)
        assert torch.equal(event.module.m, event.frozen.m)
        assert event.module.training and not event.frozen.training
        assert event.validation == pytest.approx(event.frozen.loss(X[:20]).item(), rel=1e-5)
        seen.append(event.module.m.detach().clone())
        with torch.no_grad():
            event.module.m.fill_(1e6)  # lost

    module = Mean()
    options: dict[str, Any] = {"validation": X[:20], "steps": 60, "evaluate_every": 5, "averaging": 0.9}
    history = fit(module, X, optimizer=noting, callbacks=[look], run_dir=tmp_path, **options, **QUICK)
    best = history.steps.index(history.best_step)
    assert len(seen) == 12 and 0 < best < 11
    assert torch.equal(module.m, seen[best]) and not torch.equal(module.m, ends[history.best_step - 1])
    assert torch.equal(load_file(tmp_path / "best.safetensors")["m"], seen[best])
    # Without validation it is the last.
    again = Mean()
    fit(
        again,
        X,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05),
        **{**options, "validation": None},
        **QUICK,
    )
    assert torch.equal(again.m, seen[-1])


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_leaves_the_last_parameters_and_an_interrupt_the_average(error: type[BaseException]) -> None:
    def stop(event: FitEvent) -> None:
        if event.step == 6:
            raise error

    plain, module = Mean(), Mean()
    options: dict[str, Any] = {"steps": 12, "evaluate_every": 3, "lr": 0.1, "validation": X[:20], **QUICK}
    with pytest.raises(LookupError) if error is LookupError else nullcontext():
        fit(plain, X, callbacks=[stop], **options)
    with pytest.raises(LookupError) if error is LookupError else nullcontext():
        fit(module, X, callbacks=[stop], averaging=0.9, **options)
    if error is LookupError:
        assert torch.equal(module.m, plain.m)
    else:
        expected = averaged([*plain.path, plain.m.detach()], 0.9).float()
        torch.testing.assert_close(module.m.detach(), expected)
        assert not torch.equal(module.m, plain.m)


@pytest.mark.parametrize("where", ["loss", "freeze", "parameter"])
def test_after_divergence_the_module_is_at_its_last_good_average(where: str) -> None:
    good: list[Tensor] = []

    class Spoilt(Mean):
        def loss(self, batch: Tensor) -> Tensor:
            loss = super().loss(batch)
            return loss * torch.nan if where == "loss" and self.seen == 8 else loss

        def freeze(self, data: Tensor) -> nn.Module:
            if where == "freeze" and self.seen == 9:
                raise FloatingPointError("no Cholesky factor")
            return copy.deepcopy(self).eval()

    def spoiling(groups: Any) -> torch.optim.Optimizer:
        def spoil(*_: Any) -> None:
            if where == "parameter" and module.seen == 9:
                with torch.no_grad():
                    module.m[0] = torch.inf

        optimizer = torch.optim.SGD(groups, lr=0.05)
        optimizer.register_step_post_hook(spoil)
        return optimizer

    module = Spoilt()
    done, what = {
        "loss": (7, "the loss is nan"),
        "freeze": (9, r"the frozen model fails \(no Cholesky factor\);"),
        "parameter": (9, "a parameter is not finite;"),
    }[where]
    options: dict[str, Any] = {"steps": 12, "evaluate_every": 3, "optimizer": spoiling, "averaging": 0.9}

    def keep(event: FitEvent) -> None:
        good.append(event.module.m.detach().clone())

    with pytest.raises(TrainingDiverged, match=f"^training diverged after {done} steps: {what}"):
        fit(module, X, callbacks=[keep], **options, **QUICK)
    assert len(good) == 2 and torch.equal(module.m, good[-1]) and module.seen == 6


# Resuming.


def flow(seed: int = 0) -> cl.ConvexPotentialFlow:
    torch.manual_seed(seed)
    return cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4, 4), seed=seed), seed=seed)])


def run(folder: Path, *, seed: int = 0, **more: Any) -> dict[str, Tensor]:
    module = flow(seed)
    options: dict[str, Any] = {"steps": 6, "lr": 0.02, "evaluate_every": 2, "averaging": 0.9, **QUICK}
    fit(module, X, validation=X[:20], run_dir=folder, **{**options, **more})
    return copy.deepcopy(module.state_dict())


def interrupt(event: FitEvent) -> None:
    """Stops a run at its second evaluation: it goes on from its first."""
    if event.step == 4:
        raise KeyboardInterrupt


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Ctrl-C as in a terminal, pressed in the third step of a flow; the patch of its loss can be undone."""
    steps, loss = [], cl.ConvexPotentialFlow.loss

    def pressed(self: Any, *batch: Any, **more: Any) -> Tensor:
        if self.training:
            steps.append(1)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGINT)
        return loss(self, *batch, **more)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cl.ConvexPotentialFlow, "loss", pressed)
    yield monkeypatch
    signal.signal(signal.SIGINT, before)


def check_resumed(cut: Path, whole: Path) -> None:
    expected = run(whole)
    resumed = run(cut, resume=True, seed=3)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    one, other = (torch.load(folder / "state.pt") for folder in (whole, cut))
    for part in ("module", "average", "best"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])


def test_a_run_stopped_between_evaluations_resumes_bit_for_bit(
    ctrl_c: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = run(tmp_path / "cut")
    ctrl_c.undo()
    state = torch.load(tmp_path / "cut" / "state.pt")
    assert state["progress"]["step"] == 3
    # The module was left at the average; the checkpoint holds the parameters too.
    own, average = state["module"], state["average"]
    assert all(torch.equal(left[name], average[name]) for name in average)
    assert all(torch.equal(left[name], own[name]) for name in own.keys() - average.keys())
    assert not any(torch.equal(own[name], average[name]) for name in average if ".slack." in name)
    check_resumed(tmp_path / "cut", tmp_path / "whole")


def test_a_run_stopped_in_a_callback_resumes_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "cut", callbacks=[interrupt])
    assert torch.load(tmp_path / "cut" / "state.pt")["progress"]["step"] == 2
    check_resumed(tmp_path / "cut", tmp_path / "whole")
    expected = torch.load(tmp_path / "whole" / "state.pt")["best"]
    again = run(tmp_path / "cut", resume=True, seed=4)  # it is over
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_divergence_right_after_resuming_goes_back_to_the_average(tmp_path: Path) -> None:
    run(tmp_path, callbacks=[interrupt])
    average = torch.load(tmp_path / "state.pt")["average"]
    module = flow(seed=5)
    loss = module.loss
    module.loss = lambda *batch, **more: torch.nan * loss(*batch, **more)  # type: ignore[method-assign]
    options: dict[str, Any] = {"steps": 6, "lr": 0.02, "evaluate_every": 2, "averaging": 0.9, **QUICK}
    with pytest.raises(TrainingDiverged, match="its state after 2 steps, which is no good either"):
        fit(module, X, validation=X[:20], run_dir=tmp_path, resume=True, **options)
    assert all(torch.equal(module.state_dict()[name], average[name]) for name in average)


def test_another_decay_is_not_resumed_and_a_run_from_before_the_option_is(tmp_path: Path) -> None:
    run(tmp_path / "with", callbacks=[interrupt])
    run(tmp_path / "old", callbacks=[interrupt], averaging=0)
    # What a run without averaging writes is what was written before there was the option.
    assert "averaging" not in json.loads((tmp_path / "old" / "config.json").read_text())
    assert set(torch.load(tmp_path / "old" / "state.pt")) == {
        *("format", "progress", "module", "optimizer", "best")
    }
    for folder, asked, message in (
        ("with", 0.8, "averaging was 0.9 and is now 0.8"),
        ("with", 0.0, "averaging was 0.9 and is now not set"),
        ("old", 0.8, "averaging was not set and is now 0.8"),
    ):
        named = re.escape(f"cannot resume {tmp_path / folder}: {message}")
        with pytest.raises(ValueError, match=f"^{named}$"):
            run(tmp_path / folder, resume=True, averaging=asked)
    resumed = run(tmp_path / "old", resume=True, averaging=0.0)
    whole = run(tmp_path / "x", averaging=0.0)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


NAME = "blocks.0.slack.4"  # that of the linear term


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("average"), "it has no averaged parameters"),
        (lambda state: state.update(average=[1.0]), "it has no averaged parameters"),
        (lambda state: state["average"].pop(NAME), f"it has no average of the parameter {NAME!r}"),
        (
            lambda state: state["average"].update({NAME: torch.zeros(3)}),
            f"its average of the parameter {NAME!r} has shape (3,), here (2,)",
        ),
        (
            lambda state: state["average"].update(other=torch.zeros(3)),
            "it has an average of 'other', which is no trainable parameter here",
        ),
    ],
)
def test_a_checkpoint_without_a_fitting_average_is_named(
    damage: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    run(tmp_path, callbacks=[interrupt])
    state = torch.load(tmp_path / "state.pt")
    damage(state)
    torch.save(state, tmp_path / "state.pt")
    named = re.escape(f"{tmp_path / 'state.pt'} does not fit this run: {message}")
    with pytest.raises(ValueError, match=f"^{named}$"):
        run(tmp_path, resume=True)
