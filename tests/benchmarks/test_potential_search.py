"""The search of potentials: its prototypes are what they claim, and it goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(script: Any) -> Any:
    return script("potential_search")


def points(n: int, dim: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("pieces", "sharpness"), [(2, None), (3, 2.0)])
def test_gated_networks_have_the_derivatives_of_their_value(
    study: Any, pieces: int, sharpness: float | None
) -> None:
    net = study.Gated(3, (5, 4), pieces=pieces, sharpness=sharpness, quadratic_rank=3, seed=0).double()
    f, x = net.emit(), points(6, 3)
    gradient = torch.func.vmap(torch.func.grad(lambda row: f.value(row[None])[0]))(x)
    hessian = torch.func.vmap(torch.func.hessian(lambda row: f.value(row[None])[0]))(x)
    torch.testing.assert_close(f.gradient(x), gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f.hessian(x), hessian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f.logdet(x), hessian.logdet(), rtol=1e-12, atol=1e-12)


def test_a_gated_unit_with_a_piece_held_at_zero_is_a_softplus_unit(study: Any) -> None:
    gated = study.Gated(2, (3,), pieces=2, sharpness=2.0, strong_convexity=0.5, seed=0).double()
    with torch.no_grad():
        gated.skips[0][1::2] = 0.0
        gated.biases[0][1::2] = 0.0
    plain = study.ICNN(2, (3,), sharpness=2.0, strong_convexity=0.5, seed=0).double()
    with torch.no_grad():
        plain.skips[0].copy_(gated.skips[0][::2])
        plain.biases[0].copy_(gated.biases[0][::2])
        plain.outer.copy_(gated.outer)
        plain.linear.copy_(gated.linear)
    torch.testing.assert_close(gated(points(5, 2)), plain(points(5, 2)))


@pytest.mark.parametrize("root", ["symmetric", "principal"])
def test_the_other_roots_whiten_and_count_their_jacobian(study: Any, root: str) -> None:
    x = points(500, 3) @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]]).double()
    front = study.Rotated(3, root).double().fit(x)
    torch.testing.assert_close(front(x).T.cov(correction=0), torch.eye(3).double())
    torch.testing.assert_close(front.inverse(front(x)), x)
    torch.testing.assert_close(front.log_scale_jacobian, -x.T.cov(correction=0).logdet() / 2)
    if root == "symmetric":
        torch.testing.assert_close(front.factor, front.factor.T)


def test_the_linear_map_starts_as_a_scale_and_inverts(study: Any) -> None:
    linear, x = study.LinearMap(3).double(), 2 * points(100, 3) + 1
    linear.initialise(x)
    torch.testing.assert_close(linear(x).mean(0), torch.zeros(3).double())
    torch.testing.assert_close(linear(x).std(0, correction=0), torch.ones(3).double())
    with torch.no_grad():
        linear.lower.normal_()
        linear.upper.normal_()
    torch.testing.assert_close(linear.inverse(linear(x)), x)
    jacobian = torch.func.jacrev(lambda row: linear(row[None])[0])(x[0])
    torch.testing.assert_close(linear.logdet, jacobian.det().abs().log())


@pytest.mark.parametrize(
    "changes",
    [
        {"front": "whiten", "blocks": 2, "maps": "linear"},
        {"front": "whiten-symmetric", "quadratic": True},
        {"pieces": 2, "sharpness": 2.0},
    ],
)
def test_a_prototype_flow_counts_its_whole_jacobian_and_freezes(study: Any, changes: dict[str, Any]) -> None:
    flow = study.build(2, study.Candidate(depth=2, width=4, **changes), seed=0).double()
    x = points(50, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.3]]).double()
    flow.initialise(x)
    frozen = flow.freeze(x)
    torch.testing.assert_close(frozen.log_prob(x), flow.log_prob(x))
    jacobian = torch.func.jacrev(lambda row: frozen(row[None])[0][0])(x[0])
    torch.testing.assert_close(frozen(x[:1])[1][0], jacobian.det().abs().log())


def test_rates_go_on_from_an_edge(study: Any) -> None:
    assert study.beyond({0.1: 2.0, 0.05: 3.0}) == [0.2]
    assert study.beyond({0.1: 3.0, 0.05: 2.0}) == [0.025]
    assert study.beyond({0.1: 3.0, 0.05: 2.0, 0.025: 2.5}) == []
    assert study.beyond({0.1: math.inf, 0.05: math.inf}) == [0.025]
    assert study.beyond({study.LARGEST_RATE: 1.0, 0.05: 2.0}) == []


def test_the_search_goes_on_from_its_finished_cells(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "DEFAULT", study.Candidate(depth=2, width=4))
    small = {"depth": 2, "width": 4}
    monkeypatch.setattr(study, "FACTORS", {"front": ({**small, "front": "whiten"},)})
    monkeypatch.setattr(study, "FINALISTS", ({**small, "front": "whiten"},))
    monkeypatch.setattr(study, "LARGEST_RATE", 0.1)
    monkeypatch.setattr(study, "LEAST_RATE", 0.03)
    out = tmp_path / "search.json"
    options = ["--problems", "moon", "--steps", "2", "--seeds", "2", "--repeats", "1", "--out", str(out)]
    first = study.main(options)
    cells = out.with_suffix(".cells.jsonl").read_text().split("\n")
    again = study.main(options)
    assert again["search"] == first["search"]
    assert out.with_suffix(".cells.jsonl").read_text().split("\n")[: len(cells)] == cells
    found = json.loads(out.read_text())
    assert [row["candidate"] for row in found["search"]] == ["default", "front=whiten"]
    row = first["confirmed"]["moon"][-1]
    assert row["flow"] == "front=whiten"
    assert row["equal_steps"]["n"] == 2 and row["equal_steps"]["ci95"] is not None
    assert set(first["ms"]) == {"default", "front=whiten"}


def test_the_document_holds_the_tables_of_the_result(study: Any) -> None:
    result = json.loads((ROOT / "results" / "potential_search.json").read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "potential-search.md").read_text(encoding="utf-8")
    for table in study.tables(result).split("\n\n"):
        assert table in document, (
            "docs/potential-search.md is stale: paste the tables that the benchmark prints"
        )
