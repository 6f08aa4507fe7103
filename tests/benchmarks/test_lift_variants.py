"""The variants of the lift are what they claim, and their study goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convexlift as cl

VARIANTS = ("centred", "annealed", "learned scale", "activations", "gradients", "per layer", "antithetic")


@pytest.fixture
def study(script: Any) -> Any:
    return script("lift_variants")


def points(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> cl.ICNN:
    return cl.ICNN(3, hidden=(8, 6), seed=0).double()


def made(study: Any, name: str, x: Tensor) -> Any:
    """A variant that has seen its first rows, in train mode."""
    torch.manual_seed(0)
    lift = study.VARIANTS[name](network())
    lift.initialise(x)
    return lift.train()


def offsets(lift: Any, batch: Tensor) -> Tensor:
    """theta - b for this batch."""
    latents = lift.latents(lift.summary(batch))
    return torch.cat([(theta - b).flatten() for theta, b in zip(latents, lift.slack, strict=True)])


def test_every_variant_is_here(study: Any) -> None:
    assert tuple(study.VARIANTS) == VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_starts_as_its_network_and_reads_the_batch(study: Any, name: str) -> None:
    x, net = points(200), network()
    lift = made(study, name, x)
    assert float(lift.anchor.abs().max()) == 0.0
    torch.testing.assert_close(lift.freeze(x)(x), net(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        one, two = offsets(lift, points(16, 1)), offsets(lift, points(16, 2))
    assert float((one - two).abs().max()) > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_a_trained_variant_freezes_to_a_plain_network(study: Any, name: str) -> None:
    x = points(256)
    y = x.square().sum(1)
    torch.manual_seed(0)
    task = cl.ConvexRegression(study.VARIANTS[name](network()))
    before = {key: p.detach().clone() for key, p in task.named_parameters()}
    cl.fit(task, (x, y), validation=(x, y), steps=20, batch_size=32, lr=0.01, progress=False)
    still = [key for key, p in task.named_parameters() if torch.equal(p, before[key])]
    assert still == []
    frozen = task.freeze((x, y))
    assert type(frozen.block) is cl.ICNN
    assert min(float(w.min()) for w in (*frozen.block.inner, frozen.block.outer)) >= 0
    torch.testing.assert_close(task.predict(x, batch=x), frozen.predict(x))


def test_annealed_noise_shrinks_with_progress(study: Any) -> None:
    lift = made(study, "annealed", points(200))
    with torch.no_grad():
        full = offsets(lift, points(16, 1))
        lift.set_progress(0.25)
        torch.testing.assert_close(offsets(lift, points(16, 1)), 0.75 * full)


def test_the_learned_scale_multiplies_the_fluctuation_of_its_tensor(study: Any) -> None:
    lift = made(study, "learned scale", points(200))
    with torch.no_grad():
        first, second = (t - b for t, b in zip(lift.latents(lift.phi(points(1))[0]), lift.slack, strict=True))
        lift.raw_scales[0] = torch.log(torch.expm1(torch.tensor(3.0)))
        after = [t - b for t, b in zip(lift.latents(lift.phi(points(1))[0]), lift.slack, strict=True)]
    torch.testing.assert_close(after, [3.0 * first, second])


def test_antithetic_steps_come_in_pairs(study: Any) -> None:
    lift = made(study, "antithetic", points(200))
    first, second = offsets(lift, points(16, 1)), offsets(lift, points(16, 2))
    torch.testing.assert_close(second, -first)
    third = offsets(lift, points(16, 3))
    assert (third + first).abs().max().item() > 1e-4
    with torch.no_grad():  # looking does not take a turn
        offsets(lift, points(16, 4))
    torch.testing.assert_close(offsets(lift, points(16, 5)), -third)


def test_what_the_bodies_read(study: Any) -> None:
    x, net = points(200), network()
    rest = net.emit()
    torch.testing.assert_close(made(study, "gradients", x).read(x), rest.gradient(x))
    read = made(study, "activations", x).read(x)
    assert not read.requires_grad
    s, tensors = net.activation, rest.tensors
    u = x @ tensors["skips.0"].T + tensors["biases.0"]
    last = s.value(u) @ tensors["inner.0"].T + x @ tensors["skips.1"].T + tensors["biases.1"]
    torch.testing.assert_close(read, last)


def test_each_tensor_has_a_body_of_its_own(study: Any) -> None:
    lift = made(study, "per layer", points(200))
    with torch.no_grad():
        before = lift.latents(lift.summary(points(16, 1)))
        for parameter in lift.phi.parts[0].parameters():
            parameter.mul_(2.0)
        lift.eval()
        after = lift.latents(lift.summary(points(16, 1)))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_the_study_goes_on_from_finished_cells(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ("softplus", "lift-fixed-batch", "centred", "centred, independent")
    monkeypatch.setattr(study, "ARMS", {name: study.ARMS[name] for name in arms})
    monkeypatch.setattr(study, "SELECTION_SEEDS", (1_000,))
    out = tmp_path / "variants.json"
    options = ["--settings", "gumbel-32", "--steps", "2", "--rates", "0.01", "--seeds", "1"]
    found = study.main([*options, "--out", str(out)])
    cells = out.with_suffix(".cells.jsonl").read_text()
    assert study.main([*options, "--out", str(out)]) == found
    assert out.with_suffix(".cells.jsonl").read_text() == cells
    rows = {row["arm"]: row for row in json.loads(out.read_text())["rows"]}
    assert tuple(rows) == arms
    centred = rows["centred"]
    assert centred["p_value"][0] > 0 and centred["emission_noise"][0] > 0
    gap = centred["test"]["mean"] - rows["centred, independent"]["test"]["mean"]
    assert centred["minus_independent"]["mean"] == pytest.approx(gap)
    assert rows["lift-fixed-batch"]["emission_noise"] == [None]
