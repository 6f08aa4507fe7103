"""The mixture of frozen flows: its density, its draws, its file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import convexlift as cl
from convexlift.saving import load, save
from convexlift.tasks.ensemble import Ensemble


def flow(seed: int, dim: int = 2, shift: float = 0.0, dtype: torch.dtype = torch.float32):
    made = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(dim, hidden=(8, 8), seed=seed))]).to(dtype)
    draws = torch.randn(300, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    made.initialise(draws + shift)
    return made.freeze()


def gaussian(mean: float, scale: float):
    """A flow that is exactly N(mean, scale^2) in one dimension: a quadratic potential."""
    network = cl.ICNN(1, hidden=(4,), strong_convexity=1.0, init="identity", seed=0).double()
    made = cl.ConvexPotentialFlow([network]).double()
    with torch.no_grad():
        network.outer.zero_()
        network.linear.zero_()
        network.raw_alpha.fill_(math.log(math.expm1(1.0)))
        made.standardiser.mean.fill_(mean)
        made.standardiser.scale.fill_(scale)
    return made.freeze()


def test_it_is_the_mixture_of_known_gaussians() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)[:, None]
    means, scales = torch.tensor([[-1.0, 2.0], [0.5, 1.5]], dtype=torch.float64)
    law = torch.distributions.Normal(means, scales)
    mixture = Ensemble([gaussian(-1.0, 0.5), gaussian(2.0, 1.5)])
    exact = law.log_prob(x).exp().mean(1).log()
    torch.testing.assert_close(mixture.log_prob(x), exact, rtol=1e-12, atol=1e-12)


def test_the_density_integrates_to_one() -> None:
    mixture = Ensemble(
        [flow(seed, dim=1, shift=shift, dtype=torch.float64) for seed, shift in ((0, 0.0), (1, 3.0))]
    )
    x = torch.linspace(-15, 20, 20_001, dtype=torch.float64)
    assert torch.trapezoid(mixture.log_prob(x[:, None]).exp(), x).item() == pytest.approx(1, abs=1e-3)


def test_its_loss_is_at_most_the_mean_of_the_members() -> None:
    members = [flow(seed, shift=0.3 * seed) for seed in range(4)]
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    apart = torch.stack([member.log_prob(x) for member in members])
    found = Ensemble(members).log_prob(x)
    assert bool((found >= apart.mean(0) - 1e-5).all())
    assert bool((found <= apart.amax(0) + 1e-5).all())


def test_a_single_member_is_itself() -> None:
    member = flow(0)
    x = torch.randn(20, 2)
    torch.testing.assert_close(Ensemble([member]).log_prob(x), member.log_prob(x))


def test_far_from_all_members_nothing_underflows() -> None:
    mixture = Ensemble([flow(0), flow(1)])
    assert bool(mixture.log_prob(torch.full((1, 2), 1e3)).isfinite().all())


def test_draws_come_from_every_member_in_equal_shares() -> None:
    mixture = Ensemble([gaussian(-10.0, 1.0), gaussian(10.0, 2.0)])
    x = mixture.sample(4_000, seed=1)[:, 0]
    right = x > 0
    assert abs(right.double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(4_000)
    assert x[right].mean().item() == pytest.approx(10, abs=0.2)
    assert x[right].std().item() == pytest.approx(2, abs=0.15)
    assert x[~right].std().item() == pytest.approx(1, abs=0.08)
    # neither the order of the draws nor their values tell of each other
    assert abs(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1].item()) < 4 / math.sqrt(4_000)


def test_the_seed_decides_the_draws() -> None:
    mixture = Ensemble([flow(0), flow(1)])
    assert torch.equal(mixture.sample(10, seed=3), mixture.sample(10, seed=3))
    assert not torch.equal(mixture.sample(10, seed=3), mixture.sample(10, seed=4))
    assert mixture.sample(0, seed=0).shape == (0, 2)
    assert not torch.equal(mixture.sample(10), mixture.sample(10))


def test_equal_members_of_one_seed_do_not_repeat_draws() -> None:
    member = flow(0)
    draws = Ensemble([member, member]).sample(200, seed=0)
    assert len(draws.unique(dim=0)) == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_holds_it(tmp_path: Path, dtype: torch.dtype) -> None:
    mixture = Ensemble([flow(seed, dtype=dtype) for seed in range(3)])
    save(mixture, tmp_path / "mixture.safetensors")
    again = load(tmp_path / "mixture.safetensors")
    x = torch.randn(30, 2, dtype=dtype)
    assert isinstance(again, Ensemble) and len(again.members) == 3
    assert torch.equal(mixture.log_prob(x), again.log_prob(x))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_bad_members_are_refused() -> None:
    with pytest.raises(ValueError, match="an ensemble needs at least one member"):
        Ensemble([])
    with pytest.raises(ValueError, match="one dimension; got 2, 3"):
        Ensemble([flow(0), flow(1, dim=3)])
    with pytest.raises(ValueError, match="one dtype; got float32, float64"):
        Ensemble([flow(0), flow(1, dtype=torch.float64)])
    with pytest.raises(TypeError, match="expected frozen convex-potential flows; got Linear"):
        Ensemble([torch.nn.Linear(2, 1)])
    with pytest.raises(ValueError, match="still in training: freeze it first"):
        Ensemble([flow(0).requires_grad_(True)])


def test_bad_rows_are_refused() -> None:
    mixture = Ensemble([flow(0), flow(1)])
    with pytest.raises(ValueError, match=r"expected \(N, 2\) samples; got \(4, 3\)"):
        mixture.log_prob(torch.zeros(4, 3))
    with pytest.raises(TypeError, match="floating-point samples; got int64"):
        mixture.log_prob(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        mixture.log_prob(torch.full((4, 2), math.nan))
    with pytest.raises(ValueError, match="cannot draw -1 samples"):
        mixture.sample(-1)
