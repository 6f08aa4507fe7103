"""The demonstration: what it trains and keeps, what it says of every outcome, and its page."""

from __future__ import annotations

import copy
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import convexlift as cl
from convexlift.cli.main import main
from convexlift.cli.train import Density, Flow
from convexlift.defaults import DENSITY, FLOW
from convexlift.locks import owned
from convexlift.study import Budget
from convexlift.study import demonstration as demo
from convexlift.study.outcomes import Outcomes, Pace
from convexlift.study.report import demo_words as words
from convexlift.study.report.chart_parts import styles
from convexlift.study.report.demo_page import WAYS, demo_page
from convexlift.study.report.figures import images
from convexlift.study.statistics import common_difference, summary
from convexlift.training.fit import usual_settings

TINY = {"laplace": Budget("tiny", 4, 32, (0.001,), 1, 1, extensions=0, architecture=(("hidden", (4, 4)),))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """A demonstration of four steps and one seed: its folder, its result and how its progress was told."""
    told: list[Any] = []
    folder = tmp_path_factory.mktemp("demo")
    result = demo.demonstrate(
        folder, seeds=1, seed=7, jobs=1, budgets=TINY, progress=told.append, forecast=told.append
    )
    return folder, result, told


def part(usual: dict[str, list[float]], own: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """A problem with made-up test losses of every seed, by way."""

    def section(losses: dict[str, list[float]], lr: float) -> dict[str, Any]:
        checks = {key: summary([0.0] * len(next(iter(losses.values())))) for key in words.CHECKS}
        arms = {
            name: {"lr": lr, "test": summary(values), "metrics": copy.deepcopy(checks), "seconds": 2.0}
            for name, values in losses.items()
        }
        if "lift-reference" in arms:
            arms["lift-reference"] |= {"lr": 0.001, "step_amplification": {"start": 80.0}}
        pairs = {f"lift-{n}": common_difference(losses["lift"], v) for n, v in losses.items() if n != "lift"}
        return {"arms": arms, "pairs": pairs if "lift" in losses else {}}

    return {
        "problem": "toy",
        "task": "density",
        "metric": "negative log-likelihood (nats)",
        "description": "invented figures",
        "facts": {"gaussian": 9.0},
        "protocol": {"steps": 10, "batch_size": 4, "seeds": [0, 1, 2]},
        **section(own, 0.032),
        "fixed_rate": {"lr": 0.001, **section(usual, 0.001)},
        **more,
    }


def three(mean: float) -> list[float]:
    return [mean - 0.1, mean, mean + 0.1 + 0.01 * mean]


def losses(projected: float, softplus: float, lift: float, reference: float) -> dict[str, list[float]]:
    means = {"projected": projected, "softplus": softplus, "lift": lift, "lift-reference": reference}
    return {name: three(mean) for name, mean in means.items()}


AHEAD, BEHIND = losses(6.0, 7.0, 6.5, 5.0), losses(5.0, 7.0, 6.5, 6.0)
LEVEL = {"projected": [5.0, 5.2, 5.4], "softplus": three(7.0), "lift": [5.3, 5.0, 5.35]}
ONE_SEED = {name: values[:1] for name, values in AHEAD.items()}


# What is trained.


def test_the_rates_are_those_of_train_and_of_the_measured_recipe() -> None:
    recipe = json.loads((Path(__file__).parents[2] / "results" / "recipe.json").read_text())["ranked"]
    best = {task: {found["arm"]: found["lr"] for found in recipe[task]} for task in ("flow", "density")}
    for task, command, ours in (("flow", Flow, FLOW), ("density", Density, DENSITY)):
        rates = demo.RATES[task]
        assert set(rates) == set(demo.WAYS) == set(WAYS)
        assert rates["squared"] == rates["softplus"] == ours.lr == best[task]["squared"]
        assert command.lr is None and "unless told otherwise" in WAYS[ours.source]
        lifted = cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4,)))])
        assert rates["lift"] == rates["lift-reference"] == usual_settings(lifted).lr == 0.001
    assert demo.RATES["flow"]["projected"] == best["flow"]["projected"]
    assert demo.RATES["density"]["projected"] == best["density"]["projected"]


def test_every_way_is_trained_at_both_rates_checked_and_drawn(made) -> None:
    folder, result, _ = made
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    (one,) = result["parts"]
    for section in (one, one["fixed_rate"]):
        assert list(section["arms"]) == list(demo.WAYS)
        for arm in section["arms"].values():
            assert arm["test"]["per_seed"][0] > 0 and arm["failed"] == []
            assert all(arm["metrics"][key]["mean"] >= 0 for key in words.CHECKS)
            assert arm["picture"]["kind"] == "density" and len(arm["picture"]["draws"]) == 400
            assert len(arm["curves"]["validation"]) == 1
    assert {arm["lr"] for arm in one["fixed_rate"]["arms"].values()} == {0.001}
    assert {name: arm["lr"] for name, arm in one["arms"].items()} == demo.RATES["density"]
    assert one["arms"]["lift-reference"] == one["fixed_rate"]["arms"]["lift-reference"]
    assert one["protocol"]["seeds"] == [7] and result["environment"]["seed"] == 7
    assert len(list((folder / "cells" / "laplace").glob("*.json"))) == 8


def test_time_left_is_told_before_the_first_run_and_goes_to_zero(made) -> None:
    _, _, told = made
    in_all, *runs = told
    assert 0 < in_all < 600 and runs[-1].left == 0
    assert [at.done for at in runs] == list(range(1, 9)) and {at.total for at in runs} == {8}
    assert {at.phase for at in runs} == {"laplace"} and all("test " in at.message for at in runs)
    assert {at.arm for at in runs} == {f"laplace: {way}" for way in demo.WAYS}


def test_finished_runs_are_kept(made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, result, _ = made
    monkeypatch.setattr("convexlift.study.workers.train_cell", None)
    again = demo.demonstrate(folder, seeds=1, seed=7, jobs=1, budgets=TINY)
    for name, arm in again["parts"][0]["arms"].items():
        assert arm["test"] == result["parts"][0]["arms"][name]["test"]


class TwoAtATime:
    """Workers whose runs all take six seconds."""

    jobs = 2

    def run(self, cells: list[demo.Cell]) -> Iterator[tuple[demo.Cell, dict[str, Any]]]:
        for cell in cells:
            yield cell, {"status": "finished", "seconds": 6.0, "test": 1.0}


def test_time_left_counts_the_problems_to_come_at_the_pace_of_the_finished_runs() -> None:
    cells = [demo.Cell("lift", 0.001, seed, 10) for seed in range(10)]
    workers: Any = TwoAtATime()
    pace, told = Pace(), list[Any]()
    now, later = (
        Outcomes(workers, None, step_seconds={"lift": 0.2}, ahead=list(cells), pace=pace) for _ in range(2)
    )
    assert demo._left([now, later]) == pytest.approx(1.5 * 2 * 10 * 2 / 2)  # runs take more than their steps
    demo._tell([now, later], told.append)
    now.ahead = []
    now.run("toy", cells)
    paces = [(2 * 1.5 + k * 3) / (2 + k) for k in range(1, 11)]  # the guess counts as two runs
    assert [event.left for event in told] == pytest.approx(
        [pace * 2 * left / 2 for pace, left in zip(paces, range(19, 9, -1), strict=True)]
    )
    assert [(event.done, event.total) for event in told] == [(k, 20) for k in range(1, 11)]


def test_a_folder_has_one_demonstration_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(BlockingIOError, match="is in use by another process"):
        demo.demonstrate(tmp_path, seeds=1, jobs=1, budgets=TINY)


def test_seeds_begin_where_they_are_told_to() -> None:
    assert list(Budget("b", 2, 1, (0.1,), 1, 3, 0, first_seed=5).evaluation) == [5, 6, 7]
    with pytest.raises(ValueError, match="evaluation seeds must lie between 0 and 999; got 3 from 998"):
        Budget("b", 2, 1, (0.1,), 1, 3, 0, first_seed=998)


# What is said.


@pytest.mark.parametrize(
    ("section", "how", "pair"),
    [
        (AHEAD, words.AHEAD, ("lift-reference", "projected")),
        (BEHIND, words.BEHIND, ("lift-reference", "projected")),
        (LEVEL, words.LEVEL, ("lift", "projected")),
        (ONE_SEED, words.UNSURE, ("lift-reference", "projected")),
    ],
)
def test_the_better_lift_stands_to_the_better_usual_way(section, how: str, pair: tuple[str, str]) -> None:
    stands = words.standing(part(section, section))
    assert stands is not None and (stands.how, stands.lift, stands.usual) == (how, *pair)


@pytest.mark.parametrize(
    ("usual", "own", "headline", "why"),
    [
        (AHEAD, LEVEL, "beats both usual ways on toy (lift-reference minus projected: −1.0", "Longer steps"),
        (AHEAD, BEHIND, "behind the better usual way on toy", "larger rates, they are ahead"),
        (AHEAD, AHEAD, "library's rates the better lift beats", "But the lead stays"),
        (LEVEL, AHEAD, "cannot be told apart on toy", "there is one, on few seeds"),
        (BEHIND, LEVEL, "0.001 the better lift is behind", "There is no lead to explain"),
        (ONE_SEED, ONE_SEED, "one seed gives no verdict on toy", ""),
        ({"lift": three(1.0)}, AHEAD, "too many runs failed for a verdict on toy", ""),
    ],
)
def test_every_outcome_has_its_words(usual, own, headline: str, why: str) -> None:
    one = part(usual, own)
    told = " ".join(words.verdicts({"parts": [one]}))
    assert (
        headline in told and told.startswith("At the usual rate 0.001 ") and "At the library's rates" in told
    )
    assert why in words.why(one) and bool(why) == bool(words.why(one))
    assert all(answer for _, answer in words.answers(one))


def test_problems_that_differ_are_told_apart() -> None:
    both = [part(AHEAD, LEVEL), {**part(BEHIND, LEVEL), "problem": "digits"}]
    first, second = words.verdicts({"parts": both})
    assert first.startswith("At the usual rate 0.001 ") and second.startswith("At the library's rates ")
    assert "beats both usual ways on toy (" in first and "behind the better usual way on digits (" in first
    assert "on toy (" in second and " and digits (" in second


def test_the_best_is_clear_or_a_tie_or_no_verdict() -> None:
    clear = words.best(part(AHEAD, AHEAD), " nats")
    assert clear.startswith("lift-reference has the lowest mean test loss, 5.0")
    assert "and clearly so: the next, projected, is 1.0" in clear
    tie = words.best(part(LEVEL, LEVEL), "")
    assert tie.startswith(("A tie between projected and lift: ", "A tie between lift and projected: "))
    assert "this is no verdict" in words.best(part(ONE_SEED, ONE_SEED), "")
    nothing = {name: [float("inf")] for name in AHEAD}
    assert words.best(part(nothing, nothing), "").startswith("None: no way finished all its runs.")


def test_rate_and_way_are_weighed() -> None:
    worse = {name: [value + 3 for value in values] for name, values in LEVEL.items()}
    assert words.rate_or_way(part(worse, LEVEL)).startswith("The rate: the library's rates took 3.0 nats off")
    assert words.rate_or_way(part(LEVEL, worse)).startswith("The way: the library's rates did not help")
    as_far = {name: [value + 2.1 for value in values] for name, values in LEVEL.items()}
    assert words.rate_or_way(part(as_far, LEVEL)).startswith("Both about alike: the library's rates took 2.1")
    near = {name: [value + 0.1 for value in values] for name, values in LEVEL.items()}
    assert words.rate_or_way(part(near, LEVEL)).startswith("The way: the library's rates took 0.100 nats off")


def test_a_model_that_is_not_convex_is_told() -> None:
    one = part(AHEAD, LEVEL)
    assert words.convex(one).startswith("Yes, all 21 frozen models")
    one["arms"]["lift"]["metrics"]["smallest_curvature"]["per_seed"][1] = -0.5
    assert words.convex(one).startswith(
        "No: 1 of 21 frozen models failed a check (smallest weight 0, smallest"
    )
    row = next(row for row in words.table(one).rows if row[0] == "lift")
    assert row[5] == "no: 5 of 6"


# The page and the command.


def test_the_page_holds_everything_and_needs_nothing_else(made) -> None:
    page = demo_page(made[1])
    for told in (*WAYS, "At the usual rate 0.001", "At the library&#39;s rates", "A toy density"):
        assert told in page
    for text in ("frozen model", "convexlift train flow --data your.csv", "convexlift compare digits21"):
        assert text in page
    assert page.count("<svg") >= 2 + 2 * len(WAYS) and "seed 7" in page and "seed 0" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "<script" not in page
    for jargon in (" arm ", " arms ", "emission", "shoulder"):
        assert jargon not in page


def test_images_stand_beside_the_real_ones() -> None:
    section = {"arms": {"lift": {"test": summary([1.0]), "picture": {"images": [[[0, 255], [255, 0]]] * 4}}}}
    data = {"images": [[[255, 0], [0, 255]]] * 4}
    drawn = images(section, data, styles(["lift"]), seed=3)
    assert drawn is not None and len(drawn.charts) == 2 and "seed 3" in drawn.note
    assert all("data:image/png" in chart for chart in drawn.charts)
    assert images(section, None, styles(["lift"])) is None


def test_the_command_tells_and_leaves_a_page(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def demonstrate(out: Path, **options: Any) -> dict[str, Any]:
        asked.update(options)
        in_all, *runs = made[2]
        options["forecast"](in_all)
        for at in runs:
            options["progress"](at)
        return made[1]

    monkeypatch.setattr(demo, "demonstrate", demonstrate)
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--out", str(out), "--seeds", "1", "--seed", "7", "--jobs", "1"]) == 0
    told = capsys.readouterr()
    assert (asked["seeds"], asked["seed"], asked["jobs"], asked["resume"]) == (1, 7, 1, True)
    assert asked["command"] == f"convexlift demo --seeds 1 --seed 7 --out {out}"
    assert re.search(r"^about 0:\d\d:\d\d in all$", told.err, re.MULTILINE)
    assert re.search(r"^\[8/8\] laplace: .*; about 0:00:00 left$", told.err, re.MULTILINE)
    assert "trained by" in told.out and "one seed gives no verdict" in told.out
    assert f"page: {out / 'demo.html'}" in told.out
    last = told.out.rstrip().splitlines()
    assert last[-1].strip() == "convexlift compare digits21"
    assert "  convexlift train flow --data your.csv --out runs/mine" in last
    page = out / "demo.html"
    (plain := tmp_path / "plain").touch()
    assert stat.S_IMODE(page.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text('{"problem": "gumbel", "arms": {}}')
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "holds the result of something else; choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]


def test_a_comparison_leaves_a_demonstration_alone(made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "laplace", "--out", str(made[0])]) == 1
    assert "holds the result of something else" in capsys.readouterr().err
