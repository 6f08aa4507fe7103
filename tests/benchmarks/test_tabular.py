"""The tabular benchmark: baselines and regularisers are what they say, and it goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift.problems import Problem
from convexlift.training.optimisation import parameter_groups


def draws(n: int, seed: int, dim: int = 2) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return x @ torch.tensor([[1.0, 0.8], [0.0, 0.3]]) + 1 if dim == 2 else x


@pytest.fixture
def small() -> Problem:
    return Problem(
        name="small",
        task="flow",
        dim=2,
        train=draws(200, 0),
        validation=draws(50, 1),
        test=draws(80, 2),
        description="normal rows",
        source="made here",
        licence="none needed",
    )


def test_the_gaussian_is_the_maximum_likelihood_fit(script: Any) -> None:
    rows = draws(500, 0).double()
    model = script("zuko_models").Gaussian(rows)
    d, covariance = 2, rows.T.cov(correction=0)
    # at the maximum the mean squared Mahalanobis distance of the fitted rows is d
    expected = -0.5 * (d * math.log(2 * math.pi) + torch.logdet(covariance) + d)
    assert model.log_prob(rows).mean().item() == pytest.approx(expected.item(), rel=1e-12)
    assert model.size == 5


@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_a_zuko_flow_is_a_density_that_trains(script: Any, kind: str) -> None:
    pytest.importorskip("zuko")
    make = script("zuko_models").Autoregressive
    flow = make(kind, 1, transforms=1, hidden=(8,), seed=0)
    x = torch.linspace(-12, 12, 4_001)
    with torch.no_grad():
        assert torch.trapezoid(flow.log_prob(x[:, None]).exp(), x).item() == pytest.approx(1, abs=1e-3)
    two = make(kind, 2, transforms=2, hidden=(8,), seed=0)
    same, other = (make(kind, 2, transforms=2, hidden=(8,), seed=seed) for seed in (0, 1))
    rows = draws(64, 0)
    assert torch.equal(two.log_prob(rows), same.log_prob(rows))
    assert not torch.equal(two.log_prob(rows), other.log_prob(rows))
    before = two.loss(rows).item()
    cl.fit(two, rows, steps=30, lr=0.01, progress=False)
    frozen = two.freeze()
    assert frozen.loss(rows).item() < before - 0.1
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("front", ["columns", "covariance"])
def test_the_jacobian_of_the_front_is_counted(script: Any, front: str) -> None:
    """A Gaussian of the standardised rows must be the Gaussian of the rows."""
    parts, rows = script("tabular_regularisers"), draws(400, 0)
    gaussian = script("zuko_models").Gaussian(parts.FRONTS[front](2).fit(rows)(rows))
    prepared = parts.Prepared(gaussian, 2, front=front)
    prepared.front.fit(rows)
    exact = script("zuko_models").Gaussian(rows).log_prob(rows)
    torch.testing.assert_close(prepared.log_prob(rows), exact, rtol=1e-4, atol=1e-4)


def test_marginals_are_increasing_exact_and_nearly_normal(script: Any) -> None:
    marginals = script("tabular_marginals").Marginals(3).double()
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(5_000, 3, generator=generator, dtype=torch.float64)
    rows[:, 1] = -torch.log(rows[:, 1])  # skewed
    rows[:, 2] = torch.where(rows[:, 2] < 0.4, 1.0, rows[:, 2])  # half of it one value: fewer knots
    marginals.fit(rows)
    t, jacobian = marginals(rows)
    assert t[:, :2].mean(0).abs().max().item() < 0.02 and (t[:, :2].std(0) - 1).abs().max().item() < 0.1
    x = torch.linspace(-3, 12, 2_001, dtype=torch.float64)[:, None].expand(-1, 3).contiguous()
    assert bool((marginals(x)[0].diff(dim=0) > 0).all())
    points = rows[:50].clone().requires_grad_(True)
    slopes = torch.autograd.grad(marginals(points)[0].sum(), points)[0]
    torch.testing.assert_close(slopes.log().sum(1), marginals(points)[1], rtol=1e-9, atol=1e-9)
    far = torch.tensor([[-50.0, 90.0, 40.0]], dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(marginals(far)[0].sum(), far)[0]
    torch.testing.assert_close(slopes.log().sum(1), marginals(far)[1], rtol=1e-9, atol=1e-9)


def test_marginals_refuse_a_column_without_quantiles(script: Any) -> None:
    with pytest.raises(ValueError, match="a column is constant in most of the training rows"):
        script("tabular_marginals").Marginals(1).fit(torch.zeros(100, 1))


def test_the_noise_is_in_training_steps_alone(script: Any) -> None:
    task = script("tabular").density(script("tabular").Recipe(hidden=(8,), jitter=0.5), 2, 0)
    rows = draws(100, 0)
    task.initialise(rows)
    task.train()
    assert task.loss(rows).item() != task.loss(rows).item()
    task.eval()
    assert task.loss(rows).item() == task.loss(rows).item()
    frozen = task.freeze()
    assert frozen.loss(rows).item() == pytest.approx(-frozen.log_prob(rows).mean().item(), rel=1e-5)


def test_dropped_units_keep_the_potential_convex_and_come_back(script: Any) -> None:
    source = cl.Squared(cl.ICNN(2, hidden=(16, 16), seed=0))
    dropped = script("tabular_regularisers").DroppedUnits(source, 0.5)
    torch.manual_seed(0)
    whole, masked = source.emit(None), dropped.train().emit(None)
    assert any(bool((masked.tensors[name] != whole.tensors[name]).any()) for name in masked.tensors)
    column = masked.tensors["inner.0"] / whole.tensors["inner.0"]
    assert set(column.unique().tolist()) == {0.0, 2.0}
    assert bool((column == column[0]).all()), "a unit is out for all that read it, or for none"
    x = draws(20, 3)
    assert torch.linalg.eigvalsh(masked.hessian(x)).min().item() > 0
    mean = torch.stack([dropped.emit(None).tensors["outer"].detach() for _ in range(4_000)]).mean(0)
    torch.testing.assert_close(mean, whole.tensors["outer"].detach(), rtol=0.1, atol=0)
    with torch.no_grad():
        assert torch.equal(dropped.emit(None).value(x), whole.value(x))
    assert torch.equal(dropped.freeze().emit().value(x), source.freeze().emit().value(x))


def test_averaged_weights_are_the_mean_of_the_first_steps(script: Any) -> None:
    task = script("tabular").density(script("tabular").Recipe(hidden=(8,), averaging=0.9), 2, 0)
    rows = draws(100, 0)
    task.initialise(rows)
    start = task.freeze().log_prob(rows)
    t, jacobian = task.map(rows)
    assert torch.equal(start, task.density.freeze().log_prob(t) + jacobian)
    cl.fit(task, rows, steps=20, lr=0.05, progress=False)
    averaged, last = task.freeze(), task.density.freeze()
    assert not torch.equal(averaged.density.log_prob(rows), last.log_prob(rows))
    assert bool(averaged.log_prob(rows).isfinite().all())


def test_the_decay_falls_on_free_matrices_alone(script: Any) -> None:
    tabular = script("tabular")
    recipe = tabular.Recipe(hidden=(8, 8), weight_decay=0.1)
    task = tabular.density(recipe, 2, 0)
    decayed, rest = tabular.optimiser(recipe, task, parameter_groups(task)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(8, 2), (8, 2)] and rest["weight_decay"] == 0.0


def test_the_mixture_of_losses(script: Any) -> None:
    mixture = script("tabular").mixture
    densities = torch.tensor([[0.1, 0.5], [0.3, 0.1]], dtype=torch.float64)
    found = mixture((-densities.log()).tolist())
    torch.testing.assert_close(found, -densities.mean(0).log())


def test_the_grid_grows_while_the_best_is_on_an_edge(script: Any, small: Problem) -> None:
    tabular = script("tabular")
    truth = {0.01: 3.0, 0.04: 2.0, 0.16: 1.0, 0.64: 0.5, 2.56: 0.7}

    class Known(tabular.Plan):
        def cell(self, recipe: Any, seed: int, *, scored: bool) -> dict[str, Any]:
            assert seed == tabular.SELECTION_SEED and not scored
            return {"validation": [truth[round(recipe.lr, 4)]]}

    plan = Known(small, None, (0,), 2)
    found = tabular.rates(plan, tabular.Side(tabular.Recipe(), (0.01, 0.04, 0.16)))
    assert [round(lr, 4) for lr in found] == [0.01, 0.04, 0.16, 0.64, 2.56]
    assert len(tabular.rates(plan, tabular.Side(tabular.Recipe(), (0.16, 0.64, 2.56)))) == 3


def test_fields_are_chosen_in_turn_after_the_rate(script: Any, small: Problem) -> None:
    tabular = script("tabular")

    class Known(tabular.Plan):
        def cell(self, recipe: Any, seed: int, *, scored: bool) -> dict[str, Any]:
            loss = abs(recipe.lr - 0.04) + abs(recipe.jitter - 0.1) + (recipe.sharpness != 2) * recipe.jitter
            return {"validation": None if recipe.jitter > 0.15 else [loss]}

    choices = (("jitter", (0.0, 0.1, 0.2)), ("sharpness", (None, 2.0)))
    side = tabular.Side(tabular.Recipe(), (0.01, 0.04, 0.16), choices)
    recipe, trials = tabular.select(Known(small, None, (0,), 2), side)
    assert (recipe.lr, recipe.jitter, recipe.sharpness) == (0.04, 0.0, None)
    assert {"jitter": 0.2, "validation": None} in trials
    assert [next(iter(trial)) for trial in trials] == ["lr"] * 3 + ["jitter"] * 3 + ["sharpness"] * 2 + [
        "lr"
    ] * 3


def test_the_rate_is_chosen_again_after_the_rest(script: Any, small: Problem) -> None:
    tabular = script("tabular")

    class Known(tabular.Plan):
        def cell(self, recipe: Any, seed: int, *, scored: bool) -> dict[str, Any]:
            return {"validation": [abs(recipe.lr - (0.16 if recipe.jitter else 0.04)) - recipe.jitter]}

    side = tabular.Side(tabular.Recipe(), (0.01, 0.04, 0.16), (("jitter", (0.0, 0.5)),))
    recipe, _ = tabular.select(Known(small, None, (0,), 2), side)
    assert (recipe.lr, recipe.jitter) == (0.16, 0.5)


def test_the_study_runs_and_goes_on(
    script: Any, small: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tabular: ModuleType = script("tabular")
    monkeypatch.setattr(tabular, "problem", lambda name, data: small)
    tiny = {
        "flow": tabular.Side(tabular.Recipe(hidden=(4,), batch_size=16), (0.01, 0.04, 0.16)),
        "flow-regularised": tabular.Side(tabular.Recipe(hidden=(4,), jitter=0.1, batch_size=16), (0.04,)),
    }
    if importlib.util.find_spec("zuko") is not None:
        tiny["nsf"] = tabular.Side(
            tabular.Recipe(kind="nsf", hidden=(4,), transforms=1, batch_size=16), (0.01,)
        )
    monkeypatch.setattr(tabular, "SIDES", tiny)
    out = tmp_path / "tabular-small.json"
    options = ["small", "--seeds", "2", "--steps", "3", "--out", str(out)]
    first = tabular.main(options)
    cells = out.with_suffix(".cells.jsonl").read_text()
    again = tabular.main(options)
    assert out.with_suffix(".cells.jsonl").read_text() == cells
    assert again["sides"] == first["sides"] and again["pairs"] == first["pairs"]
    written = json.loads(out.read_text())
    row = written["sides"]["flow"]
    assert written["setting"]["rows"] == [200, 50, 80]
    assert row["ensemble"]["test"] <= row["test"]["mean"] + 1e-4 and row["parameters"] > 0
    pair = written["pairs"]["flow-regularised - flow"]
    difference = written["sides"]["flow-regularised"]["test"]["mean"] - row["test"]["mean"]
    assert pair["mean"] == pytest.approx(difference, abs=1e-9)
    assert pair["rows_ci95"][0] <= pair["mean"] <= pair["rows_ci95"][1]
    assert written["gaussian"]["parameters"] == 5 and math.isfinite(written["gaussian"]["test"])
    assert written["rows_per_cpu_second"]["flow"] > 0 and written["peak_mib"] > 0


def test_the_cost_of_many_rows_is_extrapolated_from_steps(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "tabular-full.json"
    options = ["--rows", "300", "--batches", "16", "32", "--steps", "2", "--out", str(out)]
    script("tabular_full").main(options)
    written = json.loads(out.read_text())
    assert [row["batch_size"] for row in written["batches"]] == [16, 32]
    for row in written["batches"]:
        expected = 300 / row["rows_per_second"]
        assert row["seconds_per_epoch"] == pytest.approx(expected, rel=1e-9)
        hours = 100 * (expected + row["seconds_per_validation"]) / 3600
        assert row["hours_extrapolated"] == pytest.approx(hours, rel=1e-9)
