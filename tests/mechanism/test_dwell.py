"""Entries, exits and dwell times on the shoulder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from convexlift import ICNN, ConvexRegression, Lift, Projected, Softplus, fit
from convexlift.mechanism import Dwell, ShoulderTrace, shoulder, weight_histogram


def test_kaplan_meier_of_the_leukaemia_remissions():
    """The 6-MP arm of Freireich et al. (1963), the textbook's case."""
    ended = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    going = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    stays = Dwell(np.array(ended + going), np.arange(21) >= 9)
    known = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    times, share = stays.survival()
    found = dict(zip(times.tolist(), share.tolist(), strict=True))
    assert {t: round(found[t], 3) for t in known} == known
    assert found[9] == found[7] and found[35] == found[23]  # nothing ends there
    assert stays.median == 23


def test_a_median_that_is_not_reached_and_no_stay_at_all():
    assert Dwell(np.array([5, 5, 9]), np.array([True, True, False])).median == 9
    assert Dwell(np.array([5, 7, 9]), np.array([False, True, True])).median == math.inf
    none = Dwell(np.empty(0), np.empty(0, dtype=bool))
    assert math.isnan(none.median) and none.survival()[0].shape == (0,)


def outer_at(values, source):
    with torch.no_grad():
        source.latents[-1].copy_(torch.tensor(values))
    return source


def test_entries_exits_and_stays_of_a_known_course():
    source = Softplus(ICNN(1, hidden=(3,), seed=0))
    trace = ShoulderTrace()
    off, on = 0.0, -5.0
    for step, values in ((0, [on, off, off]), (10, [on, on, off]), (30, [off, on, off]), (60, [on, on, off])):
        trace.record(step, outer_at(values, source))
    assert trace.steps == [0, 10, 30, 60]
    assert trace.entries == {"0.outer": [1, 1, 0, 1]} and trace.exits == {"0.outer": [0, 0, 1, 0]}
    stays = trace.dwell("0.outer")
    assert sorted(zip(stays.times.tolist(), stays.censored.tolist(), strict=True)) == [
        (0, True),
        (30, False),
        (50, True),
    ]
    assert trace.dwell().times.tolist() == stays.times.tolist()


def test_under_projection_the_shoulder_is_zero():
    source, trace = Projected(ICNN(1, hidden=(3,), seed=0)), ShoulderTrace()
    trace.record(0, outer_at([0.0, 1e-12, 2.0], source))
    trace.record(5, outer_at([0.0, 0.0, 2.0], source))
    assert trace.entries == {"0.outer": [1, 1]}


def test_a_lift_is_followed_through_fit_from_its_training_rows():
    x = torch.randn(200, 2)
    net = ICNN(2, hidden=(16, 16), init="fan_in", seed=0)
    task = ConvexRegression(Lift(net, weight_gain=1.0, free_gain=1.0, seed=0))
    rows = (x, x.square().sum(1))
    task.initialise(rows)
    trace = ShoulderTrace(rows)
    trace.record(0, task)
    fit(task, rows, steps=20, lr=0.1, evaluate_every=5, progress=False, callbacks=[trace])
    assert trace.steps == [0, 5, 10, 15, 20] and list(trace.entries) == ["0.inner.0", "0.outer"]
    for layer in trace.entries:
        stays = trace.dwell(layer)
        assert len(stays.times) == sum(trace.entries[layer])
        assert int((~stays.censored).sum()) == sum(trace.exits[layer])
    assert sum(trace.exits["0.inner.0"]) > 0


def test_errors(linear):
    source, trace = Softplus(ICNN(1, hidden=(3,))), ShoulderTrace()
    with pytest.raises(ValueError, match="unknown layer 'outer'; known: none yet"):
        trace.dwell("outer")
    assert math.isnan(trace.dwell().median)
    trace.record(10, source)
    with pytest.raises(ValueError, match="records must go forward; got step 10 after step 10"):
        trace.record(10, source)
    with pytest.raises(ValueError, match="unknown layer 'outer'; known: 0.outer"):
        trace.dwell("outer")
    with pytest.raises(ValueError, match="ShoulderTrace needs a model with a weight source"):
        ShoulderTrace().record(0, ConvexRegression(ICNN(1)))
    with pytest.raises(TypeError, match="expected a weight source or a task of weight sources; got Linear"):
        ShoulderTrace().record(0, linear(1))


@pytest.mark.parametrize("instrument", [shoulder, weight_histogram])
def test_an_instrument_needs_a_weight_source(instrument):
    with pytest.raises(ValueError, match=f"{instrument.__name__} needs a model with a weight source"):
        instrument(ConvexRegression(ICNN(1)))
