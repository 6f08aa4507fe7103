"""The benchmark's pairs: what is drawn, the true map, and scores that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convexlift.problems.published.w2_benchmark import TransportPair, score, transport_pair


def arrays(dim: int = 3, width: int = 5) -> dict[str, Any]:
    """A file of the benchmark's layout with small networks."""
    rng = np.random.default_rng(0)
    held: dict[str, Any] = {
        "input/centers": rng.normal(size=(3, dim)),
        "input/maps": np.eye(dim) + 0.1 * rng.normal(size=(3, dim, dim)),
        "input/std": np.float32(0.4),
        "standardize/shift": rng.normal(size=dim),
        "standardize/scale": np.float64(0.7),
        "standardize/final_type": np.array("both"),
    }
    for network in ("v1", "v2", "v1_conj"):
        for level in range(3):
            name = f"{network}/quadratic_layers.{level}"
            held[f"{name}.quadratic_decomposed"] = 0.3 * rng.normal(size=(dim, 1, width))
            held[f"{name}.weight"] = rng.normal(size=(width, dim))
            held[f"{name}.bias"] = rng.normal(size=width)
        for level in range(2):
            held[f"{network}/convex_layers.{level}.weight"] = rng.uniform(0, 0.3, size=(width, width))
        held[f"{network}/final_layer.weight"] = rng.uniform(0, 0.3, size=(1, width))
    return held


@pytest.fixture
def pair(tmp_path: Path) -> TransportPair:
    np.savez(tmp_path / "mix3tomix10_3.npz", **arrays())
    return transport_pair(tmp_path / "mix3tomix10_3.npz")


def test_the_map_is_the_gradient_of_a_convex_function(pair: TransportPair) -> None:
    x = pair.source(20, 0)
    jacobian = torch.func.vmap(torch.func.hessian(lambda p: pair.potential(p[None])[0]))(x)
    assert float(torch.linalg.eigvalsh(jacobian).min()) > 0.7 * 0.02 * 0.99
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([pair.potential(x + s) - pair.potential(x - s) for s in step], 1) / 2e-6
    torch.testing.assert_close(pair.map(x), differences, rtol=1e-6, atol=1e-6)


def test_the_network_by_hand(tmp_path: Path) -> None:
    held = {
        name: np.zeros_like(array, dtype=float) for name, array in arrays(1, 1).items() if "type" not in name
    }
    held |= {
        "input/maps": np.ones((3, 1, 1)),
        "standardize/scale": np.float64(2),
        "standardize/shift": np.ones(1),
    }
    held["v1/quadratic_layers.0.weight"][:] = 3.0
    held["v1/convex_layers.0.weight"][:] = held["v1/convex_layers.1.weight"][:] = 1.0
    held["v1/final_layer.weight"][:] = 5.0
    np.savez(tmp_path / "pair.npz", **held)
    x = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    # 5 celu(celu(3 x)) + 2 (0.01 / 2) x^2 + x, twice; no activation follows the first layer
    inner = float(np.expm1(np.expm1(-6.0)))
    expected = torch.tensor([2 * (30 + 0.04 + 2), 2 * (5 * inner + 0.04 - 2)], dtype=torch.float64)
    torch.testing.assert_close(transport_pair(tmp_path / "pair.npz").potential(x), expected)


def test_source_and_target_are_independent_draws_of_their_laws(pair: TransportPair) -> None:
    x = pair.source(40_000, 0)
    centres, maps = pair.tensors["input/centers"], pair.tensors["input/maps"]
    torch.testing.assert_close(x.mean(0), centres.mean(0), atol=0.02, rtol=0)
    within = 0.16 * (maps @ maps.mT).mean(0)
    between = (centres - centres.mean(0)).T @ (centres - centres.mean(0)) / 3
    torch.testing.assert_close(x.T.cov(), within + between, atol=0.03, rtol=0)
    assert torch.equal(x, pair.source(40_000, 0)) and not torch.equal(x, pair.source(40_000, 1))
    apart = pair.map(x[:100]) - pair.target(100, 0)
    assert float(apart.abs().min(1).values.max()) > 0.01


def test_scores_of_known_maps(pair: TransportPair) -> None:
    exact = score(pair.map, pair, rows=2000)
    assert exact["uvp"] == 0 and exact["cosine"] == pytest.approx(1.0)
    spread = pair.map(pair.source(2000, 0, "scored")).var(0).sum().sqrt()
    shift = torch.zeros(3, dtype=torch.float64)
    shift[0] = 0.1 * spread
    found = score(lambda x: pair.map(x) + shift, pair, rows=2000)
    assert found["uvp"] == pytest.approx(1.0) and found["uvp_error"] == pytest.approx(0.0, abs=1e-9)
    backward = score(lambda x: 2 * x - pair.map(x), pair, rows=2000)
    assert backward["cosine"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input/maps": None}, "is no pair of the benchmark: it has no array 'input/maps'"),
        ({"v2/final_layer.weight": None}, "it has no array 'v2/final_layer.weight'"),
    ],
)
def test_files_of_another_layout(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    held = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "pair.npz", **held)
    with pytest.raises(ValueError, match=message):
        transport_pair(tmp_path / "pair.npz")


def test_a_missing_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the pairs are files mix3tomix10_D.npz"):
        transport_pair(tmp_path / "none.npz")
    (tmp_path / "pair.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="is not a readable"):
        transport_pair(tmp_path / "pair.npz")
