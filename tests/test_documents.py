"""The documents: their examples run, and their tables are those that the results make."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlift as cl
from convexlift.cli.main import main
from convexlift.study.comparison import compare
from convexlift.study.protocol import Budget

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)


def code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_tables_are_those_that_the_results_make() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tables.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_examples_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, density, regressor, transport, own = code("README.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(flow.replace("validation=valid", "validation=valid, steps=20"), names)
    assert (tmp_path / "flow.safetensors").stat().st_size > 0
    exec(density.replace("validation=valid", "validation=valid, steps=20"), names)
    assert float(names["density"].log_z.isfinite())
    assert "tensor" in capsys.readouterr().out
    exec(regressor.replace("random_state=0", "random_state=0, steps=50"), names)
    assert names["model"].score(names["x"].numpy(), names["cost"].numpy()) > 0.5
    exec(transport.replace("steps=200", "steps=20"), names)
    assert names["map"](names["test"]).shape == names["test"].shape
    exec(own, names)
    net = names["net"]
    assert type(net).__name__ == "Mine" and float(net.between.min()) >= 0 and float(net.out.min()) >= 0
    with torch.no_grad():
        x, cost = names["x"][1600:], names["cost"][1600:]
        assert float((net(x) - cost).square().mean()) < 0.2 * float(cost.var())


def test_the_example_of_the_command_line_runs() -> None:
    names: dict[str, Any] = {}
    (example,) = code("docs/command-line.md")
    exec(example.replace("random_state=0", "random_state=0, steps=3"), names)
    assert names["search"].best_params_["learning_rate"] in (0.01, 0.03, 0.1)


def test_the_example_of_regressions_runs() -> None:
    names: dict[str, Any] = {}
    (example,) = code("docs/regression.md")
    exec(example.replace("steps=500", "steps=3"), names)
    assert isinstance(names["regression"], cl.ConvexRegression)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_example_of_densities_runs() -> None:
    names: dict[str, object] = {}
    (example,) = code("docs/density.md")
    exec(example.replace("steps=200", "steps=10"), names)
    assert names["draws"].converged and names["region"].level == 0.9  # type: ignore[attr-defined]


def test_a_loop_of_ones_own_gains_by_the_lift_and_the_pitfall_is_named() -> None:
    names: dict[str, Any] = {}
    (example,) = code("docs/own-loop.md")
    exec(example.replace("steps=1000", "steps=150").replace("randint(len(x), (256,))", "arange(64)"), names)
    x, y, new = (names[key] for key in ("x", "y", "new"))
    before, after = (names["error"](names[key], x[new], y[new]) for key in ("before", "after"))
    assert after < before / 2 and type(names["after"]) is names["Plain"]
    with pytest.raises(ValueError, match="a module that takes softplus of a parameter must use it as it is"):
        cl.Lift(names["ByHand"](5), names=["passes.0", "passes.1", "passes.2"], dim=5)


def test_a_comparison_of_ones_own_runs(tmp_path: Path) -> None:
    names: dict[str, object] = {"__name__": "mine"}
    exec(code("docs/comparison.md")[0], names)
    budget = Budget("tiny", 4, 64, (0.01,), 1, 1, extensions=0)
    result = compare(own=names["comparison"], budget=budget, out=tmp_path, jobs=1).result  # type: ignore[arg-type]
    assert result["problem"] == "mine" and result["metric"] == "loss"
    assert all(arm["test"]["mean"] is not None for arm in result["arms"].values())


def test_the_page_of_every_result_is_made_from_its_figures(tmp_path: Path) -> None:
    folders = sorted(str(file.parent) for file in ROOT.glob("results/*/result.json"))
    assert len(folders) >= 28
    folders = folders[::2]  # each takes seconds
    page = tmp_path / "all.html"
    assert main(["report", *folders, "--out", str(page)]) == 0
    assert f"Over {len(folders)} problems" in page.read_text(encoding="utf-8")
