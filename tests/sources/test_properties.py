"""Whatever the latents and the batch: weights are non-negative, and a lift sees a batch as a set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convexlift import ICNN, Lift, Softplus, Squared
from convexlift.sources import WeightSource

LIFTS = [{}, {"summary": "moments"}, {"readout": "dense"}, {"standardise": "centred"}, {"standardise": None}]


def rows(seed: int, count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lift(options: dict[str, object]) -> Lift:
    source = Lift(ICNN(2, hidden=(4, 3), seed=0), seed=0, **options).double()  # type: ignore[arg-type]
    source.initialise(rows(0, 50))
    return source.eval()


@pytest.mark.parametrize("options", LIFTS)
@given(seed=st.integers(0, 1000), order=st.permutations(range(7)), copies=st.integers(1, 3))
def test_the_order_of_a_batch_and_copies_of_it_change_nothing(
    options: dict[str, object], seed: int, order: list[int], copies: int
) -> None:
    source, batch = lift(options), rows(seed, 7)
    other = batch[order].repeat(copies, 1)
    for name, weight in source.weights(batch).items():
        torch.testing.assert_close(source.weights(other)[name], weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [Softplus, Squared, Lift])
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_no_latent_gives_a_negative_weight(make: type[WeightSource], seed: int, scale: float) -> None:
    source = make(ICNN(2, hidden=(4, 3), seed=0)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    weights = source.weights(rows(seed, 5))
    assert set(weights) >= set(source.names)
    assert all(bool((weights[name] >= 0).all()) for name in source.names)
    frozen = source.freeze(rows(seed, 5))
    assert float(torch.cat([frozen.inner[0].flatten(), frozen.outer]).min()) >= 0
