"""Multivariate densities in comparisons: what is scored by which log Z, and what is drawn."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import convexlift as cl
from convexlift.integration.annealing import UnreliableEstimate
from convexlift.plots.corner import corner_chart, least_normal
from convexlift.plots.density import density_chart
from convexlift.plots.scatter import histogram, limits
from convexlift.problems import Problem, problem
from convexlift.study import cells, training
from convexlift.study import scoring as densities
from convexlift.study.arms import ARMS
from convexlift.study.cells import Cell, Named, Setting
from convexlift.study.comparison import compare
from convexlift.study.protocol import SELECTION_SEED, Budget
from convexlift.study.report import page as report
from convexlift.study.report.answers import verdicts
from convexlift.study.scoring import quick_losses
from convexlift.study.snapshots import picture_of_data, picture_of_model
from convexlift.study.training import train_cell
from convexlift.study.workers import Workers
from convexlift.tasks.density import normalised
from convexlift.tasks.region import region_outlines

TINY = Budget("tiny", 6, 64, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (8,)),))


def logistics() -> Problem:
    """A product of three logistic densities, rotated, whose log-density is known."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q

    def draw(n: int, seed: int) -> torch.Tensor:
        u = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)
        return torch.logit(u) @ turn

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        z = x @ turn.T
        return (-z - 2 * torch.nn.functional.softplus(-z)).sum(1)

    return dataclasses.replace(
        problem("moon").as_task("density"),
        name="logistics",
        dim=3,
        train=draw(400, 1),
        validation=draw(200, 2),
        test=draw(300, 3),
        log_prob=log_prob,
    )


def subject() -> tuple[Problem, dict]:
    return logistics(), {"softplus": ARMS["softplus"], "lift": ARMS["lift"]}


def gaussian(dim: int) -> cl.LogConcaveDensity:
    """The frozen standard normal, but for a hidden layer that adds next to nothing."""
    net = cl.ICNN(dim, hidden=(4,), strong_convexity=1.0, learn_strong_convexity=False, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e-4)
    return cl.LogConcaveDensity(net).freeze()


def test_a_cell_reports_how_well_log_z_is_known() -> None:
    outcome = train_cell(Setting(subject, TINY), Cell("softplus", 0.1, 0, 20))
    assert outcome["status"] == "finished"
    assert set(outcome["metrics"]) == {"log_z_error", "log_z_share", "training_share"}
    assert 0 < outcome["metrics"]["log_z_error"] < 0.05
    assert outcome["metrics"]["log_z_share"] > 0.1 and 0 < outcome["metrics"]["training_share"] <= 1
    assert outcome["test_curve"][-1] == outcome["test"]
    assert outcome["picture"]["kind"] == "corner" and len(outcome["picture"]["points"][0]) == 3
    assert 0 < outcome["test"] < 0.5 and min(outcome["curve"]) > -0.2  # the excess over the exact density
    json.dumps(outcome, allow_nan=False)


def test_a_cell_of_chains_repeats_itself() -> None:
    setting, cell = Setting(subject, TINY), Cell("softplus", 0.1, SELECTION_SEED, 4, scored=False)
    one, two = (train_cell(setting, cell) for _ in range(2))
    assert one["curve"] == two["curve"] and one["rows"] == two["rows"]


def test_rates_are_chosen_without_annealing(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("softplus", 0.01, SELECTION_SEED, 6, scored=False)
    monkeypatch.setattr(cells, "SELECTION_SEED", SELECTION_SEED + 1)
    trusted = train_cell(Setting(subject, TINY), cell)
    monkeypatch.setattr(cells, "SELECTION_SEED", SELECTION_SEED)
    monkeypatch.setattr(cl.LogConcaveDensity, "normaliser", None)
    monkeypatch.setattr(cl.LogConcaveDensity, "normalise", None)
    outcome = train_cell(Setting(subject, TINY), cell)
    assert outcome["metrics"] == trusted["metrics"] == {}
    assert outcome["test"] == pytest.approx(trusted["test"], abs=0.1)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("objective", ["mle", "score"])
def test_the_cheap_loss_is_near_the_exact_one(dim: int, objective: str) -> None:
    chosen = dataclasses.replace(problem("moon").as_task("density"), dim=dim)
    net = cl.ICNN(dim, hidden=(8,), seed=0)
    density = cl.LogConcaveDensity(net, objective)
    rows = torch.randn(400, dim, generator=torch.Generator().manual_seed(1)) * 3 + 5
    density.initialise(rows)
    frozen = density.freeze()
    exact = -frozen.log_prob(rows)
    found = quick_losses(chosen, frozen, rows)
    assert found.shape == (400,)
    assert float((found - exact).abs().max()) < 0.1
    assert float((found - exact).std()) < 1e-4


def test_log_z_of_a_gaussian_is_kept() -> None:
    density = gaussian(3)
    told = normalised(density)
    assert float(density.log_z) == pytest.approx(1.5 * math.log(2 * math.pi), abs=0.01)
    assert told["log_z_error"] < 0.01 and told["log_z_share"] > 0.9
    assert set(normalised(gaussian(2))) == {"log_z_error"}


def test_an_estimate_that_collapsed_is_a_failed_cell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def collapsed(density: object) -> None:
        raise UnreliableEstimate("the annealed weights collapsed")

    monkeypatch.setattr(training, "normalised", collapsed)
    setting = Setting(subject, TINY)
    with Workers(setting, tmp_path, jobs=1) as workers:
        ((_, outcome),) = workers.run([Cell("softplus", 0.01, 0, 6)])
    assert outcome == {"status": "failed", "message": "UnreliableEstimate: the annealed weights collapsed"}
    assert not list(tmp_path.iterdir())


def test_tasks_and_objectives_do_not_share_cells(tmp_path) -> None:
    cell = Cell("softplus", 0.01, 0, 6)
    names = {
        cells.cell_path(tmp_path, Setting(Named("moon", None, task, objective), TINY), cell).name
        for task, objective in (("flow", "mle"), ("density", "mle"), ("density", "score"))
    }
    assert len(names) == 3


def test_a_flow_s_rows_compared_as_densities(tmp_path) -> None:
    found = compare(
        "moon", task="density", arms=["softplus", "lift"], budget=TINY, out=tmp_path, jobs=1
    ).result
    assert (found["problem"], found["task"], found["protocol"]["objective"]) == ("moon", "density", "mle")
    assert found["protocol"]["architecture"]["blocks"] == 1 and "cheap estimate" in found["protocol"]["log_z"]
    assert found["picture"]["kind"] == "regions"
    for arm in found["arms"].values():
        assert len(arm["metrics"]["log_z_error"]["per_seed"]) == 1
        assert [len(curve) for curve in arm["picture"]["outlines"]] == [97, 97, 97]
    page = report.page([found])
    assert (
        "Where the models&#x27; densities lie" in page and "How well log Z" in page and "(a bound, in" in page
    )
    told = dict(verdicts(found))["How well are the densities normalised?"]
    assert told.startswith("log Z is known to ± ") and told.endswith("; a bound).")


def test_a_corner_plot_is_on_the_page() -> None:
    chosen, frozen = logistics(), gaussian(3)
    picture, data = picture_of_model(chosen, frozen), picture_of_data(chosen)
    assert picture is not None and data is not None
    assert picture["r_hat"] < 1.05 and len(picture["points"]) == 400 and data["columns"] == [0, 1, 2]
    score = {"mean": 1.0, "sem": None, "per_seed": [1.0]}
    metrics = {key: {"mean": 0.5, "sem": None, "per_seed": [0.5]} for key in ("log_z_error", "log_z_share")}
    arms = {
        name: {"lr": 0.1, "test": score, "picture": drawn, "metrics": metrics}
        for name, drawn in (
            ("lift", picture),
            ("softplus", picture),
            ("squared", {"kind": "failed", "message": "x"}),
        )
    }
    made = {"schema": 1, "problem": "logistics", "metric": "nats", "arms": arms, "picture": data}
    page = report.page([made])
    assert page.count("Corner plot of column 0, column 1, column 2") == 2
    assert "No picture of squared: x." in page and "The largest R-hat" in page
    assert "(a standard error, in nats)" in page and "± 0.50" in page
    arms["lift"]["picture"] = arms["softplus"]["picture"] = {"kind": "failed", "message": "not mixed"}
    assert "No picture of lift: not mixed." in report.page([made])


def test_regions_of_a_gaussian_are_circles() -> None:
    for curve, level in zip(region_outlines(gaussian(2)), (0.5, 0.9, 0.99), strict=True):
        radius = math.sqrt(-2 * math.log(1 - level))
        assert torch.allclose(curve.norm(dim=1), torch.tensor(radius), rtol=0.05)
        assert torch.allclose(curve[0], curve[-1], atol=1e-4)
    with pytest.raises(ValueError, match="^outlines are drawn in two dimensions; the density has 3$"):
        region_outlines(gaussian(3))


def test_outlines_follow_correlated_columns_far_from_zero() -> None:
    root = torch.tensor([[100.0, 99.0], [0.0, 1.0]])
    rows = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)) @ root + 1000
    density = cl.LogConcaveDensity(cl.ICNN(2, hidden=(4,), strong_convexity=1.0, seed=0))
    density.initialise(rows)
    frozen = density.freeze()
    curve = region_outlines(frozen, (0.9,))[0]
    assert float(frozen.log_prob(curve).std()) < 0.01
    assert frozen.log_prob(curve).mean() == pytest.approx(frozen.credible_region(0.9).threshold, abs=0.05)


def test_the_least_normal_columns_are_kept_in_order() -> None:
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 9, generator=draws)
    rows[:, [2, 7]] = rows[:, [2, 7]].exp()
    assert least_normal(rows, 2) == (2, 7) and len(least_normal(rows, 6)) == 6
    assert least_normal(rows[:, :3], 6) == (0, 1, 2)


def test_a_corner_plot_has_six_columns_at_most() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    chart = density_chart(gaussian(8), rows, [f"c{k}" for k in range(8)])
    assert sum(f">c{k}</text>" in chart for k in range(8)) == 6
    plain = corner_chart([[0.0, 1.0, 2.0]], [[1.0, 1.0, 0.0]], ["a", "b", "a rather long column's name"])
    assert "a rather long co…" in plain
    far = corner_chart([[0.0, 1.0], [2.0, 3.0]], [[1.0, 99.0]], ["a", "b"])
    assert ">1 beyond the frames</text>" in far


def test_a_histogram_integrates_to_the_share_within() -> None:
    outline = histogram([0.5, 1.5, 2.5, 9.0], (0.0, 4.0))
    area = sum((x2 - x1) * y for (x1, y), (x2, _) in zip(outline, outline[1:], strict=False))
    assert area == pytest.approx(0.75)
    assert limits([0.0] * 50 + [1.0] * 50 + [1e6], spare=0.0)[1] <= 2
    assert limits([]) == (0.0, 1.0) and limits([3.0])[0] < 3.0 < limits([3.0])[1]


def test_only_multivariate_densities_are_scored_so() -> None:
    assert not densities.is_multivariate(problem("gumbel")) and not densities.is_multivariate(problem("moon"))
    assert densities.is_multivariate(logistics())
    own = dataclasses.replace(logistics(), build=lambda blocks: blocks[0])
    assert not densities.is_multivariate(own)
