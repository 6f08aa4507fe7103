"""A search chooses what is better on held-out rows, repeats, stays within its budget and goes on again."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlift as cl
from convexlift.data import hold_out
from convexlift.tuning.progress import Standing
from convexlift.tuning.rungs import _FEW, _MANY, Plan, held_out, plan_for
from convexlift.tuning.space import draw, price
from convexlift.tuning.table import cost_of, table_of

SPACE = {"kind": ("good", "given", "poor", "broken"), "lr": (0.1, 0.2)}
BASE = {"kind": "given", "lr": 0.1}
HOW: dict[str, Any] = {"steps": 160, "progress": False}


class Mean(nn.Module):
    """The mean of the rows, and a loss that is higher by a height of its own, on each row another one."""

    def __init__(self, height: float, noise: float = 0.0) -> None:
        super().__init__()
        self.mean, self.height, self.noise = nn.Parameter(torch.zeros(2)), height, noise

    def loss(self, batch: Tensor) -> Tensor:
        rest = (batch - self.mean).square().sum(1)
        return (rest + self.height + self.noise * torch.sin(1e4 * batch[:, 0])).mean()

    def freeze(self, data: object) -> nn.Module:
        return self


def make(kind: str, better: float = 0.5, noise: float = 0.0) -> nn.Module:
    if kind == "good":
        return Mean(-better, noise)
    return Mean({"given": 0.0, "poor": 0.2, "broken": math.nan}[kind])


def rows(n: int = 60) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [60, 1200])
def test_the_best_setting_is_chosen(n: int) -> None:
    found = cl.search(make, rows(n), SPACE, BASE, **HOW)
    assert found.setting["kind"] == "good"
    assert {run["loss"] for run in found.runs if run["kind"] == "broken"} == {None}
    assert all("the loss is nan" in run["message"] for run in found.runs if run["kind"] == "broken")
    longest = max(run["steps"] for run in found.runs)
    assert {run["kind"] for run in found.runs if run["steps"] == longest} >= {"good", "given"}
    assert found.of_task == {"kind": "good"} and set(found.of_fit) == {"lr", "steps"}


@pytest.mark.parametrize(
    ("better", "noise", "kind"), [(0.01, 0.0, "good"), (0.01, 1.0, "given"), (0.0, 0.0, "given")]
)
def test_what_is_given_is_kept_unless_another_is_clearly_better(
    better: float, noise: float, kind: str
) -> None:
    def like(kind: str) -> nn.Module:
        return make(kind, better, noise)

    assert cl.search(like, rows(), {"kind": SPACE["kind"]}, BASE, **HOW).setting["kind"] == kind


def test_short_schedules_are_chosen_where_long_ones_overfit() -> None:
    class Late(Mean):
        """Its loss on held-out rows rises with every step."""

        def loss(self, batch: Tensor) -> Tensor:
            return super().loss(batch) + (0.0 if self.training else 1.0) * self.steps_made

        def __init__(self) -> None:
            super().__init__(0.0)
            self.register_buffer("steps_made", torch.zeros(()))

        def set_progress(self, t: float) -> None:
            self.steps_made += 1.0

        def freeze(self, data: object) -> nn.Module:
            return copy.deepcopy(self).eval()

    found = cl.search(lambda kind: Late(), rows(1200), {"kind": ("given", "good")}, BASE, **HOW)
    assert found.setting["steps"] == min(run["steps"] for run in found.runs) == 10
    assert {run["steps"] for run in found.runs} == {10, 27}  # longer runs are not tried
    better = cl.search(make, 3 + rows(1200), {"kind": ("given", "good")}, {**BASE, "lr": 0.02}, **HOW)
    assert better.setting["steps"] == 160  # a mean that is still on its way goes all of it


def test_the_same_again_and_another_seed() -> None:
    one, again = (cl.search(make, rows(), SPACE, BASE, **HOW) for _ in range(2))
    timeless = [[{**run, "seconds": 0} for run in found.runs] for found in (one, again)]
    assert timeless[0] == timeless[1] and one.setting == again.setting
    other = cl.search(make, rows(), SPACE, BASE, seed=1, **HOW)
    assert [run["loss"] for run in other.runs] != [run["loss"] for run in one.runs]


@pytest.mark.parametrize("plan", [_FEW, _MANY])
@pytest.mark.parametrize("kind", ["flow", "density", "regression"])
def test_no_search_costs_more_than_five_fits(plan: Plan, kind: str) -> None:
    """Whatever survives: the last run included, of whatever is dearest."""
    base = {"sharpness": 2.0, "weight_decay": 0.0, "whiten": False, "blocks": 1, "slopes": False, "lr": 0.03}
    n = 500 if plan is _FEW else 5000
    assert plan_for(torch.zeros(n, 1), 0.1) is plan
    space = cl.quick_space(kind, base, rows=n, columns=3)
    for seed in range(5):
        drawn = draw(space, base, plan.rungs[0].settings, seed)
        prices = sorted((price(setting, base) for setting in drawn), reverse=True)
        cost = prices[0]
        for rung in plan.rungs:
            dearest = prices if rung is plan.rungs[0] else [1.0, *prices[: rung.settings - 1]]
            cost += rung.share * rung.holds * sum(dearest)
        assert cost <= 5


def test_draws_are_balanced_and_begin_with_what_is_given() -> None:
    base = {"sharpness": 2.0, "weight_decay": 0.0, "whiten": False, "lr": 0.03}
    drawn = draw(cl.quick_space("flow", base, rows=500, columns=3), base, 10, seed=0)
    assert drawn[0] == base and len(drawn) == 10
    assert len({tuple(sorted(setting.items())) for setting in drawn}) == 10
    assert sum(setting["whiten"] for setting in drawn) in (4, 5)
    assert {setting["sharpness"] for setting in drawn if setting["whiten"]} >= {2.0, 4.0}
    everything = draw({"whiten": (False, True)}, base, 10, seed=0)
    assert [setting["whiten"] for setting in everything] == [False, True]


def test_what_is_of_no_use_is_not_tried() -> None:
    base = {"sharpness": 2.0, "whiten": False, "blocks": 3}
    assert "whiten" not in cl.quick_space("flow", base, rows=5000, columns=1)
    assert "whiten" not in cl.quick_space("density", base, rows=5000, columns=3, likelihood=False)
    assert "blocks" not in cl.quick_space("flow", base, rows=999, columns=3)
    assert cl.quick_space("flow", base, rows=1000, columns=3)["blocks"] == (1, 2, 3)
    with pytest.raises(ValueError, match="^unknown kind 'flows'; known: .*; did you mean 'flow'[?]$"):
        cl.quick_space("flows", base, rows=10, columns=1)


def test_few_rows_are_held_out_in_turn_and_many_as_in_training() -> None:
    few, many = rows(60), rows(1200)
    holds = [held_out(few, 0.1, 0, _FEW, hold) for hold in range(2)]
    for train, held in holds:
        assert len(train) == 45 and len(held) == 15
        assert {*map(tuple, train.tolist()), *map(tuple, held.tolist())} == {*map(tuple, few.tolist())}
    assert not torch.isin(holds[0][1][:, 0], holds[1][1][:, 0]).any()
    train, held = held_out(many, 0.1, 0, _MANY, 0)
    assert torch.equal(held, hold_out(many, 0.1, 0)[1])


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    calls = itertools.count()

    def interrupted(kind: str) -> nn.Module:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return make(kind)

    whole = cl.search(make, rows(), SPACE, BASE, **HOW)
    with pytest.raises(KeyboardInterrupt):
        cl.search(interrupted, rows(), SPACE, BASE, folder=tmp_path, **HOW)
    assert len(json.loads((tmp_path / "search.json").read_text())["trials"]) == 5
    again = cl.search(interrupted, rows(), SPACE, BASE, folder=tmp_path, resume=True, **HOW)
    assert again.setting == whole.setting and len(again.runs) == len(whole.runs)
    assert next(calls) == len(whole.runs) + 1  # the one that was interrupted was made twice
    cl.search(interrupted, rows(), SPACE, BASE, folder=tmp_path, resume=True, **HOW)
    assert next(calls) == len(whole.runs) + 2  # nothing was made again


def searched_in(folder: Path, **change: Any) -> None:
    cl.search(make, rows(), SPACE, BASE, folder=folder, **{**HOW, **change})


@pytest.mark.parametrize(
    ("do", "kind", "message"),
    [
        (
            lambda folder: searched_in(folder),
            FileExistsError,
            "search.json is there already; pass resume=True",
        ),
        (
            lambda folder: searched_in(folder, resume=True, steps=320),
            ValueError,
            "holds another search: its steps is 160, here 320$",
        ),
        (
            lambda folder: (folder / "search.json").write_text("{") and searched_in(folder, resume=True),
            ValueError,
            "search.json is not readable as a search: ",
        ),
    ],
)
def test_records_of_another_search_are_refused(
    do: Callable[[Path], None], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    searched_in(tmp_path)
    with pytest.raises(kind, match=message):
        do(tmp_path)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"rows": rows(39)}, ValueError, "^a search needs at least 40 rows to choose settings by; got 39$"),
        ({"space": {"width": (1, 2)}}, ValueError, "^base has no value of 'width', which the space has$"),
        ({"jobs": 0}, ValueError, "^jobs must be at least 1; got 0$"),
        ({"steps": 0}, ValueError, "^steps must be at least 1; got 0$"),
        ({"base": {**BASE, "lr": -1.0}}, ValueError, "^lr must be a positive number; got -1.0$"),
        (
            {"base": {**BASE, "kind": "broken"}, "space": {"lr": (0.1, 0.2)}},
            RuntimeError,
            "^every run of the search failed at last; with the settings given: training diverged .*",
        ),
    ],
)
def test_what_cannot_be_searched(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    how = {"rows": rows(), "space": SPACE, "base": BASE, **HOW, **change}
    with pytest.raises(kind, match=message):
        cl.search(make, **how)


def test_progress_and_table() -> None:
    told: list[Standing] = []
    found = cl.search(make, 3 + rows(), SPACE, {**BASE, "lr": 0.02}, steps=160, progress=told.append)
    assert [at.runs for at in told] == list(range(1, len(found.runs) + 1))
    assert told[-1].share == 1 and told[-1].seconds_left == 0
    assert all(before.share < after.share for before, after in itertools.pairwise(told))
    text = table_of(found)
    assert "kind" in text.splitlines()[0] and "20 steps" in text.splitlines()[0]
    assert len(text.splitlines()) == 1 + len({(run["kind"], run["lr"]) for run in found.runs})
    (chosen,) = [line for line in text.splitlines() if line.endswith("chosen")]
    assert chosen.startswith("good")
    (failed,) = [line for line in text.splitlines() if line.startswith("broken  0.1 ")]
    assert failed.split()[2] == "-"
    assert cost_of(found, 1.0).startswith("search and training took ")
