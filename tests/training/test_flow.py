"""`fit` on the library's own models: a convex potential flow on a bent two-dimensional sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlift as cl
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.training import FitEvent, fit


def bent(n: int, seed: int) -> torch.Tensor:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([z[:, 0], 0.3 * z[:, 1] + z[:, 0].square()], 1)


TRAIN, VALID = bent(600, 0), bent(300, 1)
ARMS = {
    "bare": lambda net: net,
    "projected": cl.Projected,
    "softplus": cl.Softplus,
    "squared": cl.Squared,
    "lift": lambda net: cl.Lift(net, seed=0),
}


def flow(make: Any, blocks: int = 1) -> ConvexPotentialFlow:
    return ConvexPotentialFlow([make(cl.ICNN(2, hidden=(16, 16), seed=k)) for k in range(blocks)])


@pytest.mark.parametrize("arm", [name for name in ARMS if name != "bare"])
def test_every_arm_learns_and_the_reported_validation_is_that_of_the_frozen_flow(arm: str) -> None:
    model = flow(ARMS[arm])
    history = fit(
        model, TRAIN, validation=VALID, steps=120, lr=0.02, batch_size=200, evaluate_every=40, progress=False
    )
    gaussian = torch.distributions.MultivariateNormal(TRAIN.mean(0), TRAIN.T.cov())
    assert history.best_validation < -gaussian.log_prob(VALID).mean() - 0.1
    frozen = model.freeze(TRAIN)
    assert -float(frozen.log_prob(VALID).mean()) == pytest.approx(history.best_validation, abs=1e-5)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_settled_lift_freezes_to_what_it_was_validated_as() -> None:
    model = flow(ARMS["lift"], blocks=2)
    frozen = []

    def remember(event: FitEvent) -> None:
        frozen.append(event.frozen)

    fit(model, TRAIN, steps=40, batch_size=200, evaluate_every=20, progress=False, callbacks=[remember])
    assert all(bool(block.settled) for block in model.blocks)
    torch.testing.assert_close(frozen[-1].log_prob(VALID), model.freeze().log_prob(VALID))


@pytest.mark.parametrize(
    "options", [{"coupling": "independent"}, {"coupling": "noise"}, {"body": "constant"}]
)
def test_the_ablations_train(options: dict[str, Any]) -> None:
    model = flow(lambda net: cl.Lift(net, seed=0, **options))
    history = fit(model, TRAIN, validation=VALID, steps=20, batch_size=100, evaluate_every=10, progress=False)
    assert math.isfinite(history.best_validation)


def test_a_second_fit_goes_on_where_the_first_ended() -> None:
    model = flow(ARMS["lift"])
    first = fit(model, TRAIN, validation=VALID, steps=60, lr=0.02, batch_size=200, progress=False)
    scale = model.standardiser.scale.clone()
    how = {"steps": 60, "lr": 0.01, "batch_size": 200, "seed": 1, "progress": False}
    with pytest.warns(UserWarning, match="initialised on other data"):
        second = fit(model, 2 * TRAIN, validation=VALID, **how)
    assert torch.equal(model.standardiser.scale, scale)
    assert second.steps[0] == first.steps[0] and second.loss[0] != first.loss[0]


def test_a_flow_resumes_in_float64_from_a_run_folder(tmp_path: Path) -> None:
    def train(path: Path, stop: bool, resume: bool = False) -> ConvexPotentialFlow:
        def callback(event: FitEvent) -> None:
            if stop and event.step == 18:
                raise KeyboardInterrupt

        model = flow(ARMS["lift"])
        fit(
            model,
            TRAIN,
            validation=VALID,
            steps=20,
            evaluate_every=6,
            batch_size=100,
            dtype=torch.float64,
            run_dir=path,
            resume=resume,
            progress=False,
            callbacks=[callback],
        )
        return model

    whole = train(tmp_path / "whole", stop=False)
    train(tmp_path / "broken", stop=True)
    resumed = train(tmp_path / "broken", stop=False, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
