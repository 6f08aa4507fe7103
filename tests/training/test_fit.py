from __future__ import annotations

import copy
import io
import json
import pickle
import signal
import time

import pytest
import torch
from rich import console
from rich.console import Console
from torch import nn

from convexlift.training import (
    FitEvent,
    History,
    Simulator,
    TrainingDiverged,
    Unpaired,
    environment,
    fit,
)

DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -2.0])
HELD_OUT = torch.randn(100, 2, generator=torch.Generator().manual_seed(1)) + torch.tensor([1.0, -2.0])


class Mean(nn.Module):
    """The mean of the data, by least squares; `noise` makes the loss random, `bad` spoils it at one step."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.tensor(0))
        self.noise = noise

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            if self.noise:
                batch = batch + self.noise * torch.randn_like(batch)
        return (batch - self.m).square().sum(1).mean()


class SpoiltAt(Mean):
    def __init__(self, step: int, how: str) -> None:
        super().__init__()
        self.step, self.how = step, how

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        loss = super().loss(batch)
        if self.training and self.seen == self.step + 1:
            if self.how == "error":
                raise FloatingPointError("no Cholesky factor")
            if self.how == "gradient":
                return loss + (self.m - self.m).abs().sqrt().sum()
            return loss * float(self.how)
        return loss


def test_it_finds_the_mean_and_records_what_it_did() -> None:
    model = Mean()
    history = fit(model, DATA, validation=HELD_OUT, steps=300, lr=0.1, batch_size=64, progress=False)
    torch.testing.assert_close(model.m.detach(), DATA.mean(0), atol=0.2, rtol=0)
    assert history.steps == list(range(12, 301, 12))
    assert len(history.loss) == len(history.validation) == len(history.seconds) == 25
    assert history.validation[-1] < history.validation[0]
    assert history.best_validation == min(history.validation)
    assert history.best_step == history.steps[history.validation.index(history.best_validation)]
    assert history.stopped == "finished" and history.ms_per_step > 0
    assert history.seconds == sorted(history.seconds)


def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone() -> None:
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + len(runs))
        before = torch.get_rng_state()
        model = Mean(noise=0.5)
        history = fit(model, DATA, validation=HELD_OUT, steps=20, batch_size=32, seed=seed, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append((model.m.tolist(), history.loss, history.validation))
    assert runs[0] == runs[1] != runs[2]


def test_evaluating_more_often_changes_no_step() -> None:
    models = [Mean(noise=0.5), Mean(noise=0.5)]
    for model, every in zip(models, (1, 10), strict=True):
        fit(
            model,
            DATA,
            steps=20,
            evaluate_every=every,
            progress=False,
            callbacks=[lambda event: torch.randn(3)],
        )
    assert torch.equal(models[0].m, models[1].m)


def test_without_validation_the_last_state_stays() -> None:
    model, states = Mean(), []
    history = fit(
        model,
        DATA,
        steps=7,
        evaluate_every=3,
        progress=False,
        callbacks=[lambda e: states.append(e.module.m.tolist())],
    )
    assert history.steps == [3, 6, 7] and history.validation == []
    assert history.best_validation is None and history.best_step == 7
    assert model.m.tolist() == states[-1]


def test_with_validation_the_best_state_is_loaded() -> None:
    model, seen = Mean(), []
    target = DATA.mean(0)
    history = fit(
        model,
        DATA,
        validation=torch.zeros(4, 2) + 0.25 * target,  # passed on the way
        steps=200,
        lr=0.05,
        schedule="constant",
        progress=False,
        callbacks=[lambda e: seen.append((e.step, e.module.m.tolist()))],
    )
    assert 0 < history.best_step < 200
    assert model.m.tolist() == dict(seen)[history.best_step]


def test_patience_counts_evaluations_without_improvement() -> None:
    model = Mean()
    history = fit(
        model,
        DATA,
        validation=torch.zeros(4, 2),
        steps=100,
        evaluate_every=5,
        patience=3,
        lr=0.1,
        progress=False,
    )
    assert history.stopped == "patience"
    assert history.steps == [5, 10, 15, 20] and history.best_step == 5


def test_epochs_are_turned_into_steps() -> None:
    assert fit(Mean(), DATA, epochs=3, batch_size=64, progress=False).steps[-1] == 9


def test_the_kinds_of_data() -> None:
    class Pair(Mean):
        def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return super().loss(batch[0]) + super().loss(batch[1])

    simulator = Simulator(lambda n, generator: 3.0 + 0.1 * torch.randn(n, 2, generator=generator))
    model = Mean()
    fit(model, simulator, validation=simulator, steps=200, lr=0.1, progress=False)
    torch.testing.assert_close(model.m.detach(), torch.full((2,), 3.0), atol=0.05, rtol=0)
    for data in ((DATA, DATA), Unpaired(DATA, HELD_OUT)):
        model = Pair()
        history = fit(model, data, validation=data, steps=200, lr=0.1, progress=False)
        torch.testing.assert_close(model.m.detach(), torch.tensor([1.0, -2.0]), atol=0.2, rtol=0)
        assert history.validation[-1] < history.validation[0]


def test_dtype_moves_module_and_data() -> None:
    model = Mean()
    fit(model, DATA, validation=HELD_OUT, steps=3, dtype=torch.float64, device="cpu", progress=False)
    assert model.m.dtype == torch.float64
    fit(model, DATA, steps=3, progress=False)  # float32 data follow the module
    assert model.m.dtype == torch.float64


def test_schedules() -> None:
    rates: dict[str, list[float]] = {}
    for name, schedule in {"cosine": "cosine", "constant": "constant", "own": lambda t: 1 - t}.items():
        rates[name] = []

        class Recording(torch.optim.SGD):
            def step(self, closure=None, found=rates[name]):
                found.append(self.param_groups[0]["lr"])
                return super().step(closure)

        fit(
            Mean(),
            DATA,
            steps=4,
            schedule=schedule,
            optimizer=lambda groups: Recording(groups, lr=0.5),
            progress=False,
        )
    assert rates["cosine"] == pytest.approx([0.5, 0.25 + 0.25 * 0.5**0.5, 0.25, 0.25 - 0.25 * 0.5**0.5])
    assert rates["constant"] == [0.5] * 4
    assert rates["own"] == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_sgd_makes_momentum_steps() -> None:
    model = Mean()
    fit(model, DATA, steps=2, batch_size=200, optimizer="sgd", lr=0.1, schedule="constant", progress=False)
    first = 0.2 * DATA.mean(0)
    second = 0.9 * first + 0.2 * (DATA.mean(0) - first)
    torch.testing.assert_close(model.m.detach(), first + second)


def test_the_frozen_model_of_a_plain_module_is_a_copy_in_eval_mode() -> None:
    model, events = Mean(), []
    model.eval()
    fit(model, DATA, steps=2, evaluate_every=1, progress=False, callbacks=[events.append])
    assert [(e.step, e.validation) for e in events] == [(1, None), (2, None)]
    assert all(not e.frozen.training and e.frozen is not model for e in events)
    assert not model.training  # as it was before
    with pytest.raises(AttributeError):
        events[0].step = 3


def test_the_time_of_evaluations_is_left_out() -> None:
    def slow(event: FitEvent) -> None:
        time.sleep(0.05)

    history = fit(Mean(), DATA, steps=4, evaluate_every=1, progress=False, callbacks=[slow])
    assert history.seconds[-1] < 0.1


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("nan", "the loss is nan"),
        ("inf", "the loss is inf"),
        ("error", "no Cholesky factor"),
        ("gradient", r"the loss is [\d.]+ but its gradient is not finite"),
    ],
)
def test_divergence_names_step_and_rows_and_goes_back_to_the_last_good_state(how: str, what: str) -> None:
    model, states = SpoiltAt(7, how), {}

    def remember(event: FitEvent) -> None:
        states[event.step] = event.module.m.tolist()

    with pytest.raises(
        TrainingDiverged, match=f"^training diverged after 7 steps: {what} on a batch"
    ) as caught:
        fit(model, DATA, steps=20, batch_size=50, evaluate_every=3, progress=False, callbacks=[remember])
    error = caught.value
    assert str(error).endswith("the module is back at its state after 6 steps")
    assert isinstance(error, FloatingPointError)
    assert model.m.tolist() == states[6]
    assert error.step == 7 and len(error.rows) == 50
    assert error.history.steps == [3, 6] and error.history.stopped == "diverged"
    assert model.training
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.step, copied.history) == (str(error), 7, error.history)


def test_divergence_before_the_first_evaluation_goes_back_to_the_start() -> None:
    model = SpoiltAt(2, "nan")
    with pytest.raises(TrainingDiverged, match="back at its state after 0 steps"):
        fit(model, DATA, steps=50, evaluate_every=10, progress=False)
    assert model.m.tolist() == [0.0, 0.0]


def test_an_update_that_overflows_is_caught_without_validation() -> None:
    model = Mean()
    with pytest.raises(TrainingDiverged, match="a parameter is not finite") as caught:
        fit(model, 1e15 * DATA, steps=1, lr=1e38, optimizer="sgd", progress=False)
    assert caught.value.rows is None
    assert model.m.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "what"),
    [(float("nan"), "the frozen model's validation loss is nan"), (None, r"the frozen model fails \(no\)")],
)
def test_a_frozen_model_that_is_not_finite_is_a_divergence(answer: float | None, what: str) -> None:
    class Brittle(Mean):
        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            if not self.training and self.seen == 4:
                if answer is None:
                    raise FloatingPointError("no")
                return super().loss(batch) * answer
            return super().loss(batch)

    model = Brittle()
    with pytest.raises(TrainingDiverged, match=what) as caught:
        fit(model, DATA, validation=HELD_OUT, steps=10, evaluate_every=2, progress=False)
    assert caught.value.history.steps == [2] and model.seen == 2


def test_ctrl_c_ends_after_the_step_and_keeps_the_last_state() -> None:
    class Pressed(Mean):
        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            if self.training and self.seen == 4:
                signal.raise_signal(signal.SIGINT)
            return super().loss(batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        model, whole = Pressed(), Mean()
        history = fit(
            model, DATA, validation=HELD_OUT, steps=10, evaluate_every=2, schedule="constant", progress=False
        )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    fit(whole, DATA, steps=5, schedule="constant", progress=False)
    assert history.stopped == "interrupted" and history.steps == [2, 4]
    assert torch.equal(model.m, whole.m)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    class PressedTwice(Mean):
        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            if self.training and self.seen == 4:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().loss(batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        model = PressedTwice()
        history = fit(model, DATA, steps=10, evaluate_every=2, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert history.stopped == "interrupted" and history.steps == [2, 4] and model.seen == 4


def test_an_exception_of_a_callback_comes_out() -> None:
    def stop(event: FitEvent) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fit(Mean(), DATA, steps=3, progress=False, callbacks=[stop])


def test_nothing_is_printed_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    fit(Mean(), DATA, steps=3)
    fit(Mean(), DATA, steps=3, progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_loss_validation_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(
        console,
        "Console",
        lambda stderr: Console(file=terminal, force_terminal=True, width=120, color_system=None),
    )
    fit(Mean(), DATA, validation=HELD_OUT, steps=5)
    shown = terminal.getvalue()
    assert (
        "5/5" in shown
        and "loss " in shown
        and "validation " in shown
        and "ms/step" in shown
        and "0:00:00" in shown
    )
    terminal.truncate(0)
    fit(Mean(), DATA, steps=5, progress=False)
    assert terminal.getvalue().strip("\0") == ""


def test_a_history_is_plain_data() -> None:
    history = fit(Mean(), DATA, validation=HELD_OUT, steps=5, progress=False)
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history
    fields = history.to_dict()
    del fields["loss"]
    with pytest.raises(ValueError, match="^not a history: field 'loss' is missing$"):
        History.from_dict(fields)
    with pytest.raises(ValueError, match="^not a history: field 'colour' is unknown$"):
        History.from_dict({**history.to_dict(), "colour": "red"})


def test_the_environment_is_plain_data() -> None:
    described = environment()
    assert json.loads(json.dumps(described)) == described
    assert described["torch"] == torch.__version__ and described["cores"] >= 1 and described["cpu"]


def test_a_trained_module_can_be_copied_and_trained_on() -> None:
    model = Mean()
    fit(model, DATA, steps=5, progress=False)
    other = copy.deepcopy(model)
    fit(other, DATA, steps=5, progress=False)
    assert not torch.equal(model.m, other.m)
