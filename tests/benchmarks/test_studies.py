"""The scripts of the studies of benchmarks/ run, tiny, and go on from their finished cells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import convexlift as cl


def finished(out: Path) -> list[str]:
    return out.with_suffix(".cells.jsonl").read_text().split("\n")


def test_rates_go_on_from_finished_cells(script: Any, tmp_path: Path) -> None:
    out, options = tmp_path / "rates.json", ["--problems", "logistic", "--rates", "0.01"]
    options += ["--seeds", "1", "--steps", "2", "--results", str(tmp_path), "--out", str(out)]
    first = script("rates").main(options)
    cells = finished(out)
    assert script("rates").main(options) == first
    assert finished(out) == cells
    out.with_suffix(".cells.jsonl").write_text("\n".join(cells)[:-20])  # killed while it wrote
    assert script("rates").main(options) == first
    written = json.loads(out.read_text())
    assert written["setting"]["seeds"] == [0] and "torch" in written["environment"]
    assert set(written["problems"]["logistic"]) == {
        f"{arm}, {init}"
        for arm in ("projected", "softplus", "squared", "lift")
        for init in ("principled", "folded_normal")
    }


def test_the_band_is_where_the_loss_stays_below_the_ceiling(script: Any) -> None:
    band = script("rates").band
    low, high = band([0.01, 0.1, 1.0], [2.0, 1.0, 3.0], 1.5)
    assert low == pytest.approx(10**-1.5) and high == pytest.approx(10**-0.75)
    assert band([0.01, 0.1, 1.0], [1.2, 1.0, math.inf], 1.5) == (0.01, 0.1)
    assert band([0.01, 0.1], [2.0, 3.0], 1.5) is None


def test_depth(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "depth.json"
    options = ["--problems", "regression-square", "--depths", "2", "--widths", "--rates", "0.01", "0.02"]
    found = script("depth").main([*options, "--seeds", "1", "--steps", "1", "--out", str(out)])
    assert list(found["sizes"]["regression-square"]) == ["2 x 64"]
    recipes = json.loads(out.read_text())["recipes"]["regression-square"]
    assert recipes.keys() == script("depth").RECIPES.keys()
    again = ["--problems", "regression-square", "--depths", "1", "--widths", "--recipes", "centred", "--arms"]
    script("depth").main([*again, "--seeds", "1", "--steps", "1", "--out", str(out)])
    kept = json.loads(out.read_text())
    assert list(kept["recipes"]["regression-square"]["centred"]) == ["2 x 64", "1 x 64"]
    assert kept["sizes"] == json.loads(json.dumps(found["sizes"]))
    assert kept["command"].count("python benchmarks/studies/depth.py") == 2


def test_depth_chooses_rate_and_decay_on_validation(script: Any) -> None:
    depth = script("depth")

    class Known(depth.Plan):
        def cell(self, name: str, shape: Any, recipe: Any, seed: int) -> dict[str, Any]:
            loss = abs(recipe.lr - 0.01) - 0.5 * recipe.weight_decay * (recipe.lr == 0.04)
            return {"validation": loss, "train": 0.0, "test": seed + loss}

    plan = Known(depth.Ledger(None, depth.__file__), (0, 1), (0.0025, 0.01, 0.04), (0.0, 1.0), 1)
    row = depth.tuned("regression-square", depth.Shape((4, 4), False), "lift", plan)
    assert row["tuned"]["lr"] == 0.01 and row["tuned"]["seeds"] == [0.0, 1.0]
    assert (row["decayed"]["lr"], row["decayed"]["weight_decay"]) == (0.04, 1.0)
    assert row["decayed"]["test"] == pytest.approx(0.5 - 0.47)
    assert str(depth.Shape((4, 4), False)) == "2 x 4, no skips"


def test_depth_without_skips_trains_networks_without_skips(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "depth.json"
    options = ["--problems", "regression-square", "--depths", "2", "--widths", "--recipes", "smooth"]
    options += ["--arms", "--no-skips", "--seeds", "1", "--steps", "1", "--out", str(out)]
    found = script("depth").main(options)
    assert list(found["recipes"]["regression-square"]["smooth"]) == ["2 x 64, no skips"]
    cell = json.loads(finished(out)[-1])["cell"]
    assert cell["skip"] is False
    assert " --no-skips " in json.loads(out.read_text())["command"]


def test_regression_defaults(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults, out = script("regression_defaults"), tmp_path / "defaults.json"
    monkeypatch.setattr(defaults, "SIZES", ((1, 20, 0.0),))
    monkeypatch.setattr(
        defaults, "WAYS", {"plain": defaults.Way(0.01), "means": defaults.Way(0.01, "means", 0.1)}
    )
    options = ["--steps", "2", "--seeds", "1", "--ways", "plain", "means", "--out", str(out)]
    first = defaults.main(options)
    assert defaults.main(options) == first and len(finished(out)) == 1 + 2 * 4
    assert len(first["errors"]) == 4


def test_ratios_are_to_the_best_way_of_each_problem(script: Any) -> None:
    found = {"a": {"x": [1.0, 3.0], "y": [4.0, 4.0]}, "b": {"x": [8.0, 8.0], "y": [1.0, 1.0]}}
    ratios = script("regression_defaults").ratios(found)
    assert ratios["x"]["worst"] == 8 and ratios["x"]["worst_problem"] == "b" and ratios["x"]["best_on"] == 1
    assert ratios["y"]["geometric_mean"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("subject", ["monotone", "factorisation"])
def test_beyond_icnn(script: Any, tmp_path: Path, subject: str) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "beyond.json"
    options = ["--subjects", subject, "--rates", "0.02", "--extensions", "0", "--seeds", "1", "--steps", "2"]
    found = script("beyond_icnn").main([*options, "--out", str(out)])
    assert set(found[subject]["arms"]) == {"projected", "softplus", "squared", "lift"}
    assert all(row["test"]["mean"] is not None for row in found[subject]["arms"].values())


def test_the_monotone_network_is_monotone_however_it_is_trained(script: Any) -> None:
    beyond: ModuleType = script("beyond_icnn")
    chosen, arms = beyond.monotone()
    x, _ = chosen.test
    for make in arms.values():
        source = make(beyond.MonotoneNetwork(5, 8, seed=0))
        model = beyond.LeastSquares(source, beyond._distance)
        cl.fit(model, chosen.train, steps=3, lr=0.1, batch_size=64, progress=False)
        net = model.freeze(chosen.train).block
        assert bool((net(x + torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0])) >= net(x) - 1e-6).all())
    steps = torch.linspace(-1, 1, 50)[:, None].expand(50, 5)
    assert bool((beyond.monotone_truth(steps).diff() > 0).all())


def test_a_masked_factorisation_is_scored_on_its_own_pixels_only(script: Any) -> None:
    pytest.importorskip("sklearn")
    beyond: ModuleType = script("beyond_icnn")
    chosen, _ = beyond.factorisation()
    shown = [split[3] > 0 for split in (chosen.train, chosen.validation, chosen.test)]
    assert bool((sum(mask.int() for mask in shown) == 1).all())
    assert bool((chosen.train[0][~shown[0]] == 0).all())
    exact = beyond._masked_distance(lambda number: chosen.test[2], chosen.test)
    assert float(exact.abs().max()) == 0.0


def test_recipe_chooses_on_validation_and_compares_on_test(script: Any, tmp_path: Path) -> None:
    recipe = script("recipe")
    test = {"mean": 0.001, "per_seed": [0.001]}

    def arm(validation: list[float]) -> dict[str, Any]:
        rates = [{"lr": lr, "validation": v} for lr, v in zip((0.01, 0.02, 0.04), validation, strict=True)]
        return {"lr": 0.02, "rates": rates, "test": test}

    result = {
        "task": "density",
        "arms": {"squared": arm([0.01, 0.0, 0.5]), "lift": arm([0.5, 0.4, 0.3])},
        "protocol": {"steps": 2, "batch_size": 16},
    }
    ranked = recipe.choose({"logistic": result})
    assert [(row["arm"], row["lr"]) for row in ranked["density"]] == [("squared", 0.01), ("lift", 0.04)]
    (tmp_path / "logistic").mkdir()
    (tmp_path / "logistic" / "result.json").write_text(json.dumps(result))
    options = ["--results", str(tmp_path), "--searched", "logistic", "--confirmed", "--seeds", "1"]
    found = recipe.main([*options, "--out", str(tmp_path / "recipe.json")])
    row = found["figures"]["lift throughout"]["searched"]["logistic"]
    assert row["choice"] == ["lift", 0.04, 0.0] and not row["near"]
    # The candidates are run for regressions alone, and chosen on validation losses of their own runs.
    result = {**result, "task": "regression"}
    (tmp_path / "regression-square").mkdir()
    (tmp_path / "regression-square" / "result.json").write_text(json.dumps(result))
    options = ["--results", str(tmp_path), "--searched", "logistic", "regression-square", "--confirmed"]
    found = recipe.main([*options, "--seeds", "1", "--recipes", "centred"])
    steps = {row["arm"]: (row["lr"], row["weight_decay"]) for row in found["ranked"]["regression"]}
    assert steps["centred"] in recipe.CANDIDATES["centred"]["regression"]
    rows = found["figures"]["squared, centred for regressions"]["searched"]
    assert list(rows) == ["regression-square"]
    assert rows["regression-square"]["choice"] == ["centred", *steps["centred"]]
    assert rows["regression-square"]["test"] > 0


def test_quick_search(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "quick_search.json"
    options = ["--tables", "iris", "--truths", "--sides", "mixture", "--out", str(out)]
    first = script("quick_search").main(options)
    (row,) = first["tables"]
    assert (row["name"], row["rows"], row["columns"], row["kept"]) == ("iris", 100, 4, True)
    assert 1.0 < row["test"]["mixture"][0] < 3.0
    assert script("quick_search").main(options) == first
    rest = script("quick_search").main([*options, "--hours", "-1"])
    assert rest["tables"] == [] and len(finished(out)) == 2


def test_the_tables_of_a_quick_search_have_no_test_row_twice(script: Any) -> None:
    module = script("quick_search")
    rows, test = module.rows_of("wine", None, 0)
    assert len(rows) == 119 and len(test) == 59 and not torch.isin(rows[:, 0], test[:, 0]).any()
    x, y, held, truth = module.regression_rows("planes", 0)
    assert len(x) == len(y) == 1000 and len(held) == len(truth) == 5000
    assert 0.1 < float((y - module.TRUTHS["planes"][2](x)).std() / truth.std()) < 0.3
