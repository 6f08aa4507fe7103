"""The recorder: the same numbers as its instruments, by step, and a run that does not notice it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from convexlift import (
    ICNN,
    ConditionalDensity,
    ConvexPotentialFlow,
    ConvexRegression,
    Lift,
    LogConcaveDensity,
    Projected,
    Softplus,
    Squared,
    fit,
)
from convexlift.architectures import PICNN
from convexlift.mechanism import (
    INSTRUMENTS,
    Probes,
    Recorder,
    coupling,
    coupling_notes,
    emission_noise,
    gradient_health,
    probe_batches,
    shoulder,
    step_amplification,
)
from convexlift.training import FitEvent

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).exp()
SMALL = {"steps": 8, "batch_size": 64, "lr": 0.01, "evaluate_every": 4, "progress": False}
SMALL["allow"] = ("outliers",)  # of squares of normal numbers


def net(dim=2, seed=0):
    return ICNN(dim, hidden=(8, 8), seed=seed)


def regression(source=Softplus, **options):
    return ConvexRegression(source(net(), **options)), (X, X.square().sum(1))


def lifted_flow():
    flow = ConvexPotentialFlow([Lift(net(seed=k), coupling="noise", seed=k) for k in range(2)])
    return flow, X


def conditional():
    lift = Lift(PICNN(1, 1, hidden=(8, 8), seed=0), seed=0)
    return ConditionalDensity(lift, "score"), (X[:, :1].contiguous(), X[:, 1:].contiguous())


MODELS = {
    "flow of lifts": lifted_flow,
    "projected": lambda: regression(Projected),
    "squared density": lambda: (LogConcaveDensity(Squared(net(1))), X[:, :1].contiguous()),
    "lifted density": lambda: (
        LogConcaveDensity(Lift(net(1), standardise="centred", seed=0)),
        X[:, :1].contiguous(),
    ),
    "conditional": conditional,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training_is_the_same_to_the_bit(make):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        task, rows = make()
        batches = probe_batches(rows, 64, count=4)
        recorder = Recorder(rows, batches, instruments=(*INSTRUMENTS, coupling_notes))
        callbacks = [recorder] if watched else []
        history = fit(task, rows, validation=rows, callbacks=callbacks, **SMALL)
        ends.append((history.loss, history.validation, task.state_dict()))
    assert recorder.steps == [4, 8] and recorder.notes
    assert ends[0][:2] == ends[1][:2]
    assert all(
        torch.equal(value, ends[1][2][name]) for name, value in ends[0][2].items() if not value.isnan().any()
    )


def test_notes_are_the_numbers_of_the_instruments():
    task, rows = regression(Lift, seed=0)
    task.initialise(rows)
    batches = probe_batches(rows, 64, count=5)
    recorder = Recorder(rows, batches, instruments=(*INSTRUMENTS, coupling_notes))
    recorder.record(0, task)
    found = recorder.notes
    assert found["emission_noise"] == [(0, emission_noise(task, batches))]
    assert found["step_amplification"] == [(0, step_amplification(task, batches))]
    for layer, health in gradient_health(task, task.loss, batches[0]).items():
        for figure, value in dataclasses.asdict(health).items():
            assert found.get(f"{layer}/{figure}") == (None if value is None else [(0, value)]), figure
    pairs = coupling(task, task.loss, batches, permutations=199)
    assert found["coupling/trace"] == [(0, pairs.batch.trace)]
    assert found["coupling/p_value"] == [(0, pairs.batch.p_value)]
    assert found["coupling/curvature"] == [(0, pairs.curvature.trace)]


def test_the_shoulder_of_a_known_network():
    source = Softplus(ICNN(1, hidden=(4,), seed=0))
    values = torch.tensor([0.0, 1.0, -5.0, -6.0])
    with torch.no_grad():
        source.latents[0].copy_(values)
    recorder = Recorder(X[:, :1], loss=lambda x: source(x).mean())
    recorder.record(3, source)
    (step, share), *_ = recorder.notes["0.outer/shoulder"]
    assert (step, share) == (3, 0.5) and recorder.notes["0.outer/at_zero"] == [(3, 0.0)]
    speeds = torch.sigmoid(values) / torch.nn.functional.softplus(values)
    assert recorder.notes["0.outer/relative_speed"][0][1] == pytest.approx(speeds.median().item())
    assert recorder.notes["0.outer/relative_speed"][0][1] == pytest.approx(shoulder(source).relative_speed)
    assert recorder.notes["0.outer/fan_in_weight"][0][1] == pytest.approx(
        4 * torch.nn.functional.softplus(values).median().item()
    )


def test_what_does_not_apply_is_left_out():
    task, rows = regression(Softplus)
    task.initialise(rows)
    recorder = Recorder(rows, instruments=(*INSTRUMENTS, coupling_notes))
    recorder.record(0, task)
    assert not {"emission_noise", "step_amplification", "coupling/trace"} & recorder.notes.keys()
    assert "0.inner.0/perron_ratio" in recorder.notes and "0.outer/perron_ratio" not in recorder.notes
    task, rows = regression(Projected)
    recorder = Recorder(rows)
    recorder.record(0, task)
    assert "0.outer/at_zero" in recorder.notes and "0.outer/shoulder" not in recorder.notes


def test_what_is_not_finite_is_left_out_at_its_step():
    source = Projected(ICNN(1, hidden=(3,), seed=0))
    recorder = Recorder(X[:, :1], loss=lambda x: source(x).mean())
    with torch.no_grad():
        source.latents[0].zero_()
        recorder.record(0, source)
        source.latents[0].fill_(2.0)
        recorder.record(5, source)
    assert recorder.notes["0.outer/at_zero"] == [(0, 1.0), (5, 0.0)]
    assert recorder.notes["0.outer/relative_speed"] == [(5, 0.5)]
    assert all(math.isfinite(value) for series in recorder.notes.values() for _, value in series)


def test_instruments_of_your_own_get_the_probes_and_leave_no_trace():
    task, rows = regression(Softplus)

    def careless(model, probes):
        assert isinstance(probes, Probes) and len(probes.batches) == 16
        model.eval()
        torch.rand(1)
        with torch.no_grad():
            model.block.latents[0].add_(1.0)
        return {"mine": probes.loss(probes.batches[0])}

    before = task.block.latents[0].clone()
    state = torch.get_rng_state()
    recorder = Recorder(rows, instruments=(careless,))
    recorder.record(1, task)
    assert list(recorder.notes) == ["mine"] and isinstance(recorder.notes["mine"][0][1], float)
    assert torch.equal(task.block.latents[0], before) and task.training
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_follow_the_model_s_dtype_and_an_independent_lift_is_given_its_batches():
    task, rows = regression(Lift, coupling="independent", seed=0)
    task.double()
    batches, emitting = (probe_batches(rows, 64, count=4, seed=seed) for seed in (0, 1))
    recorder = Recorder(rows, batches, emit_from=emitting, instruments=(*INSTRUMENTS, coupling_notes))
    fit(task, rows, dtype=torch.float64, callbacks=[recorder], **SMALL)
    assert len(recorder.notes["coupling/trace"]) == 2
    with pytest.raises(ValueError, match="reads independent batches in training: pass emit_from"):
        Recorder(rows, batches, instruments=(coupling_notes,)).record(0, task)


def test_probe_batches_are_draws_of_their_own():
    x = torch.arange(100.0)[:, None]
    batches = probe_batches(x, 10, count=8)
    assert all(len(set(batch[:, 0].tolist())) == 10 for batch in batches)
    assert len({frozenset(batch[:, 0].tolist()) for batch in batches}) == 8
    assert all(map(torch.equal, batches, probe_batches(x, 10, count=8)))
    assert not torch.equal(batches[0], probe_batches(x, 10, count=8, seed=1)[0])


def test_an_evaluation_is_noted_once_and_runs_are_not_mixed():
    task, rows = regression(Softplus)
    recorder = Recorder(rows)
    for _ in range(2):
        recorder(FitEvent(4, 1.0, None, task, task))
    assert recorder.steps == [4] and len(recorder.notes["0.outer/shoulder"]) == 1
    with pytest.raises(ValueError, match="got step 2 after step 4: use one Recorder for each run"):
        recorder.record(2, task)


def test_errors(linear):
    with pytest.raises(ValueError, match="^Recorder needs at least one probe batch$"):
        Recorder(X, [])
    with pytest.raises(ValueError, match="^Recorder needs a model with a weight source$"):
        Recorder(X).record(0, ConvexRegression(net()))
    with pytest.raises(ValueError, match="^Softplus has no loss of its own: pass loss=$"):
        Recorder(X).record(0, Softplus(net()))
    with pytest.raises(ValueError, match="^emission_noise needs at least 2 batches; got 1$"):
        lift = Lift(net(), seed=0)
        Recorder(X, [X[:64]], loss=lambda x: lift(x).mean()).record(0, lift)
