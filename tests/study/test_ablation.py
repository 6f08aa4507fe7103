"""Ablations: what each arm leaves out, what is traced, and the effects that are told."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import convexlift as cl
from convexlift.data import whole
from convexlift.mechanism import Dwell, restricted_mean
from convexlift.problems import problem
from convexlift.sources import Lift
from convexlift.study import Budget, ablation, speed, tracing
from convexlift.study.ablation import ablate, effects_table, effects_text
from convexlift.study.arms import (
    ABLATION_ARMS,
    ALL_ARMS,
    FIXED_ROWS,
    SCATTERED,
    WITHOUT,
    FixedBatchLift,
    build,
)
from convexlift.study.cells import Cell, Named, Setting
from convexlift.study.report.page import read_result, write_report
from convexlift.study.tracing import COUPLED_AT, Trace
from convexlift.study.training import train_cell

TINY = Budget("tiny", 4, 32, (0.01,), 1, 2, extensions=0, architecture=(("hidden", (4, 4)),))
PROBLEM = "regression-square"  # its runs are the shortest


@pytest.fixture(scope="module", autouse=True)
def _small_instruments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "PROBES", 8)
        patch.setattr(tracing, "PERMUTATIONS", 19)
        patch.setattr(speed, "ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return ablate(PROBLEM, budget=TINY, out=folder, jobs=1, command="convexlift ablate").result, folder


def started(arm: str, seed: int = 0):
    """The initialised task of an arm on a small regression, and its rows."""
    chosen = problem(PROBLEM)
    chosen = dataclasses.replace(
        chosen,
        architecture={**chosen.architecture, "hidden": (8, 8)},
        train=tuple(x[:1000] for x in whole(chosen.train)),
    )
    task = build(chosen, arm, seed, ALL_ARMS)
    task.initialise(chosen.train)
    return chosen, task


def test_every_arm_without_an_ingredient_starts_as_the_lift():
    x = started("lift")[0].train[0][:50]
    outputs = {}
    for name in ("lift", *WITHOUT):
        chosen, task = started(name)
        outputs[name] = task.freeze(chosen.train).predict(x)
    for name, output in outputs.items():
        assert torch.allclose(output, outputs["lift"], rtol=1e-5, atol=1e-5), name


def test_what_each_arm_leaves_out():
    lifts = {name: ALL_ARMS[name](cl.ICNN(2, hidden=(4, 4))) for name in WITHOUT}
    assert all(isinstance(lift, Lift) for lift in lifts.values())
    assert not any(b.requires_grad for b in lifts["lift-no-slack"].slack)
    assert lifts["lift-constant"].code is not None
    assert [lifts[f"lift-{kind}"].coupling for kind in ("independent", "noise")] == ["independent", "noise"]


def test_fixed_batch_lift_has_the_parameters_of_the_full_lift_and_reads_one_batch():
    net, x = cl.ICNN(2, hidden=(8, 8), seed=0), torch.randn(700, 2)
    fixed, full = FixedBatchLift(net, seed=0), Lift(net, seed=0)
    shapes = [[p.shape for p in lift.parameters() if p.requires_grad] for lift in (fixed, full)]
    assert shapes[0] == shapes[1]
    fixed.initialise(x)
    full.initialise(x)
    first, other = (fixed.weights(batch) for batch in (x[:64], 5 + x[64:128]))
    assert all(torch.equal(first[name], other[name]) for name in first)
    expected = full.weights(x[:FIXED_ROWS])
    assert all(torch.equal(first[name], expected[name]) for name in first)
    loss = fixed(x[:64]).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fixed.phi.parameters())


def test_sigma_batch_vanishes_where_the_batch_is_not_read():
    figures = {}
    for name in ("lift", "lift-constant", "lift-fixed-batch", "softplus"):
        chosen, task = started(name)
        trace = Trace(chosen, task, chosen.train, batch_size=32, seed=0, steps=100)
        trace.begin(task)
        figures[name] = trace.seen()["coupling"][0]
    assert figures["lift"]["norm"] > 0 and figures["lift"]["trace"] != 0
    for name in ("lift-constant", "lift-fixed-batch", "softplus"):
        assert figures[name]["norm"] == figures[name]["trace"] == 0, name


def test_an_independent_batch_has_a_coupling_of_zero_within_its_error():
    chosen, task = started("lift-independent")
    z = []
    for seed in range(12):
        trace = Trace(chosen, task, chosen.train, batch_size=32, seed=seed, steps=100)
        assert trace.emitting is not None and len(trace.emitting) == len(trace.probes) == 8
        trace.begin(task)
        point = trace.seen()["coupling"][0]
        z.append(point["trace"] / point["trace_error"])
    assert abs(sum(z) / math.sqrt(len(z))) < 3.5


@pytest.mark.parametrize("arm", ["lift", "lift-noise", "lift-independent", "projected"])
def test_a_traced_run_is_the_same_run(arm):
    plain, traced = (
        train_cell(Setting(Named(PROBLEM), dataclasses.replace(TINY, traced=on)), Cell(arm, 0.01, 0, 10))
        for on in (False, True)
    )
    for key in ("rows", "curve", "test_curve", "validation"):
        assert plain[key] == traced[key], key
    assert plain["trace"] is None
    assert [point["t"] for point in traced["trace"]["coupling"]] == pytest.approx(COUPLED_AT)
    assert 0 <= traced["trace"]["occupancy"] <= 1


def test_the_optimiser_decides_the_run():
    adam, sgd = (
        train_cell(
            Setting(Named(PROBLEM), dataclasses.replace(TINY, optimizer=name)),
            Cell("softplus", 0.01, 0, 10, scored=False),
        )
        for name in ("adam", "sgd")
    )
    assert adam["curve"] != sgd["curve"] and adam["trace"] is None
    with pytest.raises(ValueError, match="^unknown optimizer 'muon'; known: adam, sgd, soap$"):
        dataclasses.replace(TINY, optimizer="muon")


def test_restricted_mean_of_stays():
    uncensored = Dwell(np.array([1, 2, 3]), np.array([False] * 3))
    assert restricted_mean(uncensored, 3) == pytest.approx(2.0)
    assert restricted_mean(uncensored, 2) == pytest.approx((1 + 2 + 2) / 3)
    lasting = Dwell(np.array([5, 5]), np.array([True, True]))
    assert restricted_mean(lasting, 5) == pytest.approx(5.0)
    assert math.isnan(restricted_mean(Dwell(np.empty(0), np.empty(0, bool)), 5))
    with pytest.raises(ValueError, match="^horizon must be positive; got 0$"):
        restricted_mean(lasting, 0)


def test_occupancy_and_dwell_of_weights_that_never_leave():
    chosen, task = started("softplus")
    for latent in task.block.latents:
        latent.detach().fill_(-8.0)
    trace = Trace(chosen, task, chosen.train, batch_size=32, seed=0, steps=20)
    trace.begin(task)
    trace.shoulder.record(20, task)
    seen = trace.seen()
    assert seen["occupancy"] == seen["dwell"] == 1.0 and seen["median_dwell"] is None
    assert seen["exits"] == 0 and seen["entries"] == trace.weights


def test_a_result_holds_every_arm_and_its_effects(result):
    made, folder = result
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(made))
    assert tuple(made["arms"]) == tuple(made["fixed_rate"]["arms"]) == ABLATION_ARMS
    assert SCATTERED in made["arms"]
    assert made["protocol"]["optimizer"] == "adam"
    assert made["protocol"]["command"] == "convexlift ablate"
    for section in ("tuned", "fixed_rate"):
        effects = made["ablation"][section]
        assert effects["lift"]["sigma_batch"]["mean"] != 0 and effects["lift"]["tests"] == 2 * len(COUPLED_AT)
        assert effects["lift"]["sigma_batch_minus_lift"] is None
        constant = effects["lift-constant"]
        assert constant["sigma_batch"]["mean"] == 0 and constant["tests"] == 0
        found = constant["sigma_batch_minus_lift"]
        assert found["mean"] == pytest.approx(-effects["lift"]["sigma_batch"]["mean"]) and found["n"] == 2


def test_a_report_can_be_written_and_effects_are_told(result, tmp_path):
    made, folder = result
    write_report([read_result(folder)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "lift-fixed-batch" in page
    assert "Do the weights fluctuate together with the gradient?" in page
    assert (
        "Exactly zero for lift-constant, lift-fixed-batch, softplus-scattered, softplus and projected" in page
    )
    head, rows = effects_table(made)
    assert len(rows) == len(ABLATION_ARMS) and all(len(row) == len(head) for row in rows)
    text = effects_text(made)
    assert text.startswith(f"# Ablation of the lift on {PROBLEM}") and "nan" not in text.lower()


def test_an_ablation_goes_on_from_its_finished_cells(result):
    made, folder = result
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    events = []
    again = ablate(PROBLEM, budget=TINY, out=folder, jobs=1, progress=events.append).result
    assert again["ablation"] == made["ablation"] and len(events) > 0
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_options_decide_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ABLATION_ARMS", ("lift", "softplus"))
    made = ablate(
        PROBLEM, optimizer="sgd", budget=TINY, rates=[0.002], seeds=1, steps=3, out=tmp_path, jobs=1
    ).result
    assert made["protocol"]["steps"] == 3 and made["protocol"]["optimizer"] == "sgd"
    assert made["ablation"]["tuned"]["lift"]["sigma_batch"]["sem"] is None


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="^unknown problem 'gambel'; did you mean 'gumbel'"):
        ablate("gambel", out=tmp_path)
    with pytest.raises(ValueError, match="^unknown optimizer 'lbfgs'; known: adam, sgd, soap$"):
        ablate("gumbel", optimizer="lbfgs", out=tmp_path)
