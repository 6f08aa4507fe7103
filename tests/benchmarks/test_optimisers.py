"""The study of optimisers: what is run, what is drawn, and schedule-free Adam with projected weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlift as cl

pytest.importorskip("pytorch_optimizer")

X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))


def test_the_study_goes_on_from_finished_cells(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("optimisers")
    monkeypatch.setattr(study, "BLOCKS", 1)
    monkeypatch.setattr(study, "BLOCK", 1)
    grids = {"adam": (0.01, 0.02), "prodigy": (1.0,)}
    monkeypatch.setattr(study, "RATES", {"density": grids})
    out = tmp_path / "optimisers.json"
    options = ["--problems", "gumbel", "logistic", "power", "--sources", "squared", "--seeds", "1"]
    options += ["--optimisers", "adam", "prodigy", "--steps", "1", "--out", str(out)]
    first = study.main(options)
    cells = out.with_suffix(".cells.jsonl").read_text()
    assert study.main(options) == first and out.with_suffix(".cells.jsonl").read_text() == cells
    written = json.loads(out.read_text())
    assert written["setting"]["left_out"] == ["power"] and written["setting"]["pytorch_optimizer"]
    sides = written["problems"]["gumbel"]["sides"]
    assert list(sides) == ["adam, squared", "prodigy, squared"]
    assert all({*study.MEASURES} < {*side} for side in sides.values())
    other = written["problems"]["logistic"]["sides"]["adam, squared"]["validation"]
    assert sides["adam, squared"]["untuned"]["lr"] == float(min(other, key=other.get))


def test_as_many_rates_are_drawn_as_the_hours_allow(script: Any) -> None:
    study = script("optimisers")
    made = object.__new__(study.Study)
    made.names, made.kind, made.sides = ["a"], {"a": "flow"}, [("adam", "lift"), ("prodigy", "lift")]
    made.ms = {"a": {"adam, lift": 36.0, "prodigy, lift": 36.0}}
    chosen = {"steps": 1_000, "seeds": 1, "selection": 1, "optimisers": ["adam", "prodigy"]}
    hour = study.EVALUATIONS * 0.01  # of one run
    for runs, drawn in ((3 + 3 + 4, 3), (100, 6)):
        made.options = argparse.Namespace(**chosen, hours=(runs + 0.5) * hour)
        rates = made.drawn()["flow"]
        assert len(rates["adam"]) == drawn and set(rates["adam"]) <= set(study.RATES["flow"]["adam"])
        assert rates["prodigy"] == [1.0]
    made.options = argparse.Namespace(**chosen, hours=hour)
    with pytest.raises(SystemExit, match=r"^one rate a side takes about 0\.1 hours: raise --hours$"):
        made.drawn()


def test_the_rate_for_all_is_of_the_least_mean_rank(script: Any) -> None:
    for_all = script("optimisers").for_all
    assert for_all([{1.0: 5.0, 2.0: 4.0, 3.0: 9.0}, {1.0: 0.3, 2.0: 0.2, 3.0: 0.1}]) == 2.0
    assert for_all([]) is None


def test_schedule_free_freezes_the_average_of_projected_steps(script: Any) -> None:
    task: Any = cl.ConvexPotentialFlow([cl.Projected(cl.ICNN(2, hidden=(4, 4), seed=0))])
    make = script("optimisers").ScheduleFree(task, 0.3)
    latent, steps = task.blocks[0].latents[-1], []

    def note(event: cl.FitEvent) -> None:
        own = latent.detach().clone()
        steps.append(make.optimizer.state[latent]["z"].clone())
        frozen = task.freeze(X).blocks[0].get_parameter(task.blocks[0].names[-1])
        torch.testing.assert_close(frozen, torch.stack(steps).mean(0), rtol=1e-4, atol=1e-5)
        assert torch.equal(latent, own)

    options: dict[str, Any] = {"steps": 8, "evaluate_every": 1, "schedule": "constant", "progress": False}
    cl.fit(task, X, optimizer=make, callbacks=[note], **options)
    assert len(steps) == 8 and min(z.min().item() for z in steps) == 0.0
