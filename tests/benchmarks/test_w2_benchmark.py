"""The study of transport maps runs, tiny, and goes on from its finished cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_the_study_of_transport_maps(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    rng = np.random.default_rng(0)
    held: dict[str, Any] = {
        "input/centers": rng.normal(size=(3, 2)),
        "input/maps": np.eye(2) + 0.1 * rng.normal(size=(3, 2, 2)),
        "input/std": np.float32(0.4),
        "standardize/shift": rng.normal(size=2),
        "standardize/scale": np.float64(0.7),
    }
    for network in ("v1", "v2"):
        held[f"{network}/quadratic_layers.0.quadratic_decomposed"] = rng.normal(size=(2, 1, 4))
        held[f"{network}/quadratic_layers.0.weight"] = rng.normal(size=(4, 2))
        held[f"{network}/quadratic_layers.0.bias"] = rng.normal(size=4)
        held[f"{network}/final_layer.weight"] = rng.uniform(0, 1, size=(1, 4))
    np.savez(tmp_path / "mix3tomix10_2.npz", **held)
    study, out = script("w2_benchmark"), tmp_path / "w2.json"
    monkeypatch.setattr(study, "TRIAL", 4)
    options = ["--data", str(tmp_path), "--dims", "2", "--rows", "600", "--held", "200", "--out", str(out)]
    first = study.main([*options, "--seconds", "0.01"])
    (cell,) = first["cells"]
    assert cell["affine"]["uvp"] < 1.0  # this pair's map is affine: one layer, quadratic
    assert cell["uvp"] < 100.0 and cell["steps"] == 4 and len(cell["validation"]) >= 1
    written = json.loads(out.read_text())
    assert str(tmp_path) not in json.dumps(written) and "torch" in written["environment"]
    assert study.main([*options, "--seconds", "0.01"]) == first  # from the cell that is kept
    assert "affine map" in study.table_transport(written)
