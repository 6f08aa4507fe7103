"""The comparison from end to end, on problems of milliseconds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys

import pytest

from convexlift.problems import KINDS, Kind
from convexlift.study import Budget, compare
from convexlift.study.ablation import ablate
from convexlift.study.cells import Cell
from convexlift.study.comparison import _load
from convexlift.study.protocol import SELECTION_SEED

from . import toy

LONE = Budget("lone", 4, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
LINE = Budget("line", 40, 16, (0.05, 0.1), 2, 3, extensions=2)
GUMBEL = Budget("tiny", 4, 32, (0.01, 0.02), 1, 2, extensions=1, architecture=(("hidden", (4, 4)),))


def compared(*arguments, **options):
    """The result of a comparison."""
    return compare(*arguments, **options).result


def timeless(result):
    """The result without what depends on the clock."""
    kept = json.loads(json.dumps(result))
    for part in ("seconds", "environment"):
        del kept[part]
    for arm in kept["arms"].values():
        for part in ("ms_per_step", "equal_seconds", "curves"):
            del arm[part]
    return kept


def test_result_has_the_stated_form(tmp_path):
    events = []
    command = "convexlift compare gumbel --arms projected lift --budget tiny"
    result = compared(
        "gumbel",
        arms=["projected", "lift"],
        budget=GUMBEL,
        out=tmp_path,
        jobs=1,
        command=command,
        progress=events.append,
    )
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result) >= {
        *("schema", "problem", "task", "metric", "description", "facts", "protocol", "arms", "fixed_rate"),
        *("pairs", "environment", "seconds"),
    }
    assert result["problem"] == "gumbel" and result["schema"] == 1 and result["fixed_rate"] is None
    assert set(result["facts"]) == {"gaussian", "exact", "entropy"}
    protocol = result["protocol"]
    assert protocol["selection_seeds"] == [1000] and protocol["evaluation_seeds"] == [0, 1]
    assert len(protocol["rates"]) == 3 and protocol["half_steps"] == 2
    assert protocol["command"] == command
    lift = result["arms"]["lift"]
    assert set(lift) >= {
        *("lr", "test", "half_budget", "equal_seconds", "ms_per_step", "parameters", "emission_noise"),
        *("step_amplification", "shoulder", "at_zero", "fan_in_weight", "relative_speed", "rates", "curves"),
        *("failed", "metrics"),
    }
    assert protocol["rate_scales"] == {name: 1 / 32 if name == "lift" else 1.0 for name in result["arms"]}
    assert lift["lr"] in [rate / 32 for rate in protocol["rates"]] and lift["failed"] == []
    assert len(lift["test"]["per_seed"]) == len(lift["half_budget"]["per_seed"]) == 2
    assert set(lift["metrics"]) == {"total_variation", "hellinger", "kl"}
    assert len(lift["curves"]["validation"]) == 2
    assert (
        len(lift["curves"]["validation"][0]) == len(lift["curves"]["steps"]) == len(lift["curves"]["seconds"])
    )
    assert set(lift["emission_noise"]) == {"start", "middle", "end"}
    assert result["arms"]["projected"]["emission_noise"] is None
    pair = result["pairs"]["lift-projected"]
    assert set(pair) == {"mean", "ci95", "n", "seeds_ci95", "rows_ci95", "half_budget", "verdict"}
    losses = [result["arms"][name]["test"]["per_seed"] for name in ("lift", "projected")]
    assert pair["mean"] == pytest.approx(sum(a - b for a, b in zip(*losses, strict=True)) / 2)
    assert pair["ci95"][0] <= pair["seeds_ci95"][0] and pair["seeds_ci95"][1] <= pair["ci95"][1]
    assert result["environment"]["threads_per_cell"] == 1

    assert [event.done for event in events] == list(range(1, len(events) + 1))
    assert events[-1].done == events[-1].total == 2 * 3 + 2 * 4
    assert events[0].total == 2 * 2 + 2 * 4  # what comes after the selection is counted, a third rate not yet
    assert {event.phase for event in events} == {"selection", "evaluation"}
    assert events[0].message.startswith("projected, rate 0.01, seed 1000, 4 steps: validation ")


def test_resuming_repeats_no_cell_and_changes_nothing(tmp_path, monkeypatch):
    first = compared(own=toy.two_arms, budget=LINE, out=tmp_path, jobs=1)
    monkeypatch.setattr("convexlift.study.workers.train_cell", None)
    again = compared(own=toy.two_arms, budget=LINE, out=tmp_path, jobs=1)
    assert timeless(first) == timeless(again)


def test_data_are_loaded_once(tmp_path):
    loads = []

    def counted():
        loads.append(os.getpid())
        return toy.two_arms()

    result = compared(own=counted, budget=LINE, out=tmp_path / "one", jobs=1, fixed_rate=True)
    assert loads == [os.getpid()] and result["fixed_rate"] is not None
    compared(own=counted, budget=LINE, out=tmp_path / "one", jobs=1)
    assert len(loads) == 2  # a comparison begins with what its files hold now


def test_a_comparison_returns_its_outcomes(tmp_path):
    found = compare(own=toy.two_arms, budget=LINE, rates=[0.1], seeds=2, out=tmp_path, jobs=1)
    assert set(found.outcomes) == {
        Cell(arm, 0.1, seed, steps, steps == 40)
        for arm in ("one", "two")
        for seed in (0, 1)
        for steps in (20, 40)
    }
    losses = [found.outcomes[Cell("one", 0.1, seed, 40)]["test"] for seed in (0, 1)]
    assert losses == found.result["arms"]["one"]["test"]["per_seed"]


def test_identical_arms_tie_and_a_handicapped_one_is_found(tmp_path):
    result = compared(own=toy.two_arms, budget=LINE, out=tmp_path / "same", jobs=1)
    pair = result["pairs"]["one-two"]
    assert pair["mean"] == 0 and pair["ci95"][0] <= 0 <= pair["ci95"][1] and pair["verdict"] == "undecided"
    found = compared(own=toy.handicapped, budget=LINE, out=tmp_path / "bad", jobs=1)["pairs"]["good-bad"]
    assert found["mean"] == pytest.approx(-1, abs=0.4) and found["verdict"] == "lower"


def test_rates_are_shared_and_grow_together(tmp_path):
    result = compared(own=toy.two_arms, budget=LINE, out=tmp_path, jobs=1)
    grids = [[entry["lr"] for entry in arm["rates"]] for arm in result["arms"].values()]
    assert grids[0] == grids[1] == result["protocol"]["rates"]
    assert len(grids[0]) > 2
    fixed = compared(own=toy.two_arms, budget=LINE, rates=[0.1, 0.02], out=tmp_path, jobs=1)
    assert fixed["protocol"]["rates"] == [0.02, 0.1]
    single = compared(own=toy.two_arms, budget=LINE, rates=[0.1], seeds=1, out=tmp_path, jobs=1)
    assert single["arms"]["one"]["lr"] == 0.1 and single["arms"]["one"]["rates"] == [
        {"lr": 0.1, "validation": None, "test": None}
    ]
    assert single["pairs"]["one-two"]["ci95"] is None


def test_diverged_and_failed_cells_are_reported(tmp_path):
    result = compared(own=toy.troubled, budget=LINE, out=tmp_path, jobs=1)
    assert result["arms"]["good"]["test"]["mean"] < 1
    for name, said in (
        ("explosive", "training diverged after 0 steps: the loss is "),
        ("broken", "LookupError: no such thing"),
    ):
        arm = result["arms"][name]
        assert arm["lr"] is None and arm["test"] == {"mean": None, "sem": None, "per_seed": []}
        assert all(entry["validation"] is None for entry in arm["rates"])
        assert arm["failed"] and all(said in message for message in arm["failed"]), arm["failed"]
    assert "good-broken" not in result["pairs"]


def test_failed_cells_are_tried_again(tmp_path):
    compared(own=toy.troubled, budget=LINE, out=tmp_path, jobs=1)
    names = {path.name.split("-")[0] for path in (tmp_path / "cells").iterdir()}
    assert names == {"good", "explosive"}


def test_a_new_task_is_one_entry(tmp_path, monkeypatch):
    kind = Kind(lambda blocks, _: toy.LeastSquares(blocks[0]), toy.toy().losses, "squared error")
    monkeypatch.setitem(KINDS, "line", kind)
    line = dataclasses.replace(toy.toy(), task="line", build=None, losses=None)
    arms = {"one": toy.identity, "two": toy.identity}
    result = compared(own=lambda: (line, arms), budget=LINE, rates=[0.1], out=tmp_path, jobs=1)
    assert (result["task"], result["metric"], result["picture"]) == ("line", "squared error", None)
    assert result["facts"] == {} and "objective" not in result["protocol"]
    usual = compared(own=toy.two_arms, budget=LINE, rates=[0.1], out=tmp_path / "own", jobs=1)
    assert result["arms"]["one"]["test"] == usual["arms"]["one"]["test"]


def test_a_comparison_without_any_result_is_an_error(tmp_path):
    with pytest.raises(
        RuntimeError,
        match="^no way could be evaluated; the first failure: broken, rate .*LookupError: no such thing$",
    ):
        compared(own=toy.hopeless, budget=LINE, out=tmp_path, jobs=1)
    assert not (tmp_path / "result.json").exists()


def test_diverged_evaluation_seeds_count_as_infinitely_bad(tmp_path, monkeypatch):
    from convexlift.study import workers

    train = workers.train_cell

    def unlucky(setting, cell: Cell):
        if cell.arm == "two" and cell.seed == 1 and cell.steps == LINE.steps:
            return {"cell": dataclasses.asdict(cell), "status": "diverged", "message": "boom", "seconds": 0.0}
        return train(setting, cell)

    monkeypatch.setattr(workers, "train_cell", unlucky)
    result = compared(own=toy.two_arms, budget=LINE, out=tmp_path, jobs=1)
    two = result["arms"]["two"]
    assert two["test"]["mean"] is None and [v is None for v in two["test"]["per_seed"]] == [
        False,
        True,
        False,
    ]
    assert result["pairs"]["one-two"]["mean"] is None and result["pairs"]["one-two"]["verdict"] == "undecided"
    assert two["failed"][0].endswith("seed 1, 40 steps: boom")


def test_the_optimiser_is_that_of_the_cells(tmp_path):
    found = {}
    for name in (None, "soap"):
        result = compared("gumbel", arms=["squared"], budget=LONE, optimizer=name, out=tmp_path, jobs=1)
        found[result["protocol"]["optimizer"]] = result["arms"]["squared"]["test"]["per_seed"]
    assert list(found) == ["adam", "soap"] and found["adam"] != found["soap"]


def test_without_its_package_soap_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for make in (compare, ablate):
        with pytest.raises(ImportError, match="^optimizer 'soap' needs pytorch_optimizer: pip install"):
            make("gumbel", budget=GUMBEL, optimizer="soap", out=tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_common_rate_table_with_its_controls(tmp_path):
    budget = dataclasses.replace(GUMBEL, rates=(0.01,), evaluation_seeds=2, extensions=0)
    result = compared("gumbel", arms=["lift"], budget=budget, fixed_rate=True, out=tmp_path, jobs=1)
    table = result["fixed_rate"]
    assert table["lr"] == 0.001
    assert list(table["arms"]) == [
        *("lift", "lift-reference", "projected", "softplus", "softplus-scattered", "softplus-multiplied"),
    ]
    assert all(arm["failed"] == [] for arm in table["arms"].values()), [
        a["failed"] for a in table["arms"].values()
    ]
    assert table["arms"]["softplus-multiplied"]["source_factor"] > 1
    assert table["arms"]["softplus"]["source_factor"] == 1
    assert set(table["pairs"]) == {f"lift-{name}" for name in table["arms"] if name != "lift"}
    assert result["protocol"]["command"] is None  # the command line alone puts one together


def test_equal_seconds_stops_slower_arms_earlier(tmp_path, monkeypatch):
    module = sys.modules["convexlift.study.comparison"]  # the package exports the function of that name
    monkeypatch.setattr(module, "step_times", lambda setting, arms: {"one": 1.0, "two": 4.0})
    result = compared(own=toy.two_arms, budget=LINE, rates=[0.1], out=tmp_path, jobs=1)
    one, two = result["arms"]["one"], result["arms"]["two"]
    assert one["equal_seconds"]["seconds"] == two["equal_seconds"]["seconds"] == pytest.approx(0.04)
    assert one["equal_seconds"]["mean"] == pytest.approx(one["test"]["mean"], rel=1e-6)
    assert two["equal_seconds"]["mean"] > two["test"]["mean"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"problem": "digit21"}, ValueError, "^unknown problem 'digit21'; did you mean 'digits21'"),
        ({"problem": "gumbel", "arms": ["lfit"]}, ValueError, "^unknown way of training 'lfit'; known: "),
        (
            {"problem": "gumbel", "budget": "huge"},
            ValueError,
            "^unknown budget 'huge' for a density problem; known: quick",
        ),
        ({"problem": "gumbel", "rates": [0.0]}, ValueError, r"^learning rates must lie in \(0, 1\]; got 0$"),
        ({"problem": "gumbel", "seeds": 0}, ValueError, "^evaluation seeds must be at least 1; got 0$"),
        ({"problem": "gumbel", "jobs": 0}, ValueError, "^jobs must be at least 1; got 0$"),
        (
            {"problem": "gumbel", "device": "abacus"},
            ValueError,
            "^device 'abacus' is unknown or not available$",
        ),
        (
            {"problem": "gumbel", "own": toy.two_arms},
            ValueError,
            "^own brings its own problem and data: leave out",
        ),
        (
            {"own": toy.two_arms, "task": "density"},
            ValueError,
            "^own brings its own task: leave out task and",
        ),
        (
            {"problem": "moon", "objective": "score"},
            ValueError,
            "^an objective is for densities; problem 'moon' has task 'flow': add the task density$",
        ),
        ({"problem": "gumbel", "objective": "map"}, ValueError, "^unknown objective 'map'; known: mle, imp"),
        (
            {"problem": "moon", "task": "density", "budget": "paper"},
            ValueError,
            "^unknown budget 'paper' for a multivariate density problem; known: quick, standard, full$",
        ),
        ({"own": "nothing"}, ValueError, "^own must be MODULE:FUNCTION; got 'nothing'$"),
        (
            {"own": "math:nothing"},
            ValueError,
            "^cannot load 'math:nothing': module 'math' has no attribute 'nothing'$",
        ),
        (
            {"own": lambda: 3},
            TypeError,
            r"^own must return \(Problem, {name: way}\), a way of training being a function of a network$",
        ),
        (
            {"own": lambda: (toy.toy(), {})},
            TypeError,
            "^own must return at least one way of training, each a function of a network$",
        ),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        compared(**arguments, out=tmp_path)


def test_an_unwritable_folder_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write into .*file: Not a directory"):
        compared("gumbel", out=tmp_path / "file")


def test_own_by_name_is_loaded():
    assert _load("math:sqrt") is math.sqrt


def test_selection_seeds_are_not_evaluation_seeds():
    assert SELECTION_SEED > 100


def test_how_long_it_takes_is_told_before_the_first_cell(tmp_path):
    told = []
    compared(
        "gumbel",
        arms=["softplus", "lift"],
        budget=GUMBEL,
        out=tmp_path,
        jobs=1,
        progress=lambda event: told.append(event.left),
        forecast=lambda seconds: told.append(("in all", seconds)),
    )
    first, *left = told
    assert first[0] == "in all" and 0 < first[1] < 600
    assert all(seconds >= 0 for seconds in left) and left[-1] == 0
