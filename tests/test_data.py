from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexlift.data import Batches, chunks, describe, mean_loss, place, whole
from convexlift.seeds import seed_of
from convexlift.training import Simulator, Unpaired


def rows(n: int, d: int = 2) -> torch.Tensor:
    return torch.arange(n * d, dtype=torch.float32).reshape(n, d)


def normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 3, generator=generator)


def test_an_epoch_visits_every_row_once_and_drops_the_short_batch() -> None:
    batches = Batches(rows(11), 3, seed=4)
    assert batches.steps_per_epoch() == 3
    seen = [i for step in range(3) for i in batches.at(step).rows()]
    assert len(seen) == len(set(seen)) == 9
    again = [i for step in range(3, 6) for i in batches.at(step).rows()]
    assert seen != again


@given(n=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 9))
def test_every_epoch_is_a_permutation_less_a_short_batch(n: int, size: int, seed: int, epoch: int) -> None:
    batches = Batches(rows(n), size, seed)
    steps = batches.steps_per_epoch()
    seen = [i for step in range(steps) for i in batches.at(epoch * steps + step).rows()]
    assert len(set(seen)) == len(seen) == min(n, steps * size) and set(seen) <= set(range(n))
    assert n - len(seen) < size


@pytest.mark.parametrize(
    "data", [rows(50), (rows(50), rows(50, 1)), Unpaired(rows(50), rows(70)), Simulator(normal)]
)
def test_a_batch_depends_on_seed_and_step_only(data) -> None:
    forward = [Batches(data, 8, seed=1).at(step).data for step in range(20)]
    batches = Batches(data, 8, seed=1)
    for step in reversed(range(20)):
        torch.testing.assert_close(batches.at(step).data, forward[step], rtol=0, atol=0)
    other = Batches(data, 8, seed=2).at(0).data
    first = forward[0][0] if isinstance(forward[0], tuple) else forward[0]
    assert not torch.equal(first, other[0] if isinstance(other, tuple) else other)


def test_the_rows_of_a_tuple_stay_together() -> None:
    x = rows(30)
    for step in range(9):
        batch = Batches((x, x.sum(1)), 4, seed=0).at(step)
        assert torch.equal(batch.data[0].sum(1), batch.data[1])
        assert torch.equal(x[batch.rows()], batch.data[0])


def test_unpaired_sides_are_drawn_independently_and_epochs_follow_the_longer() -> None:
    batches = Batches(Unpaired(rows(20), rows(30)), 5, seed=0)
    assert batches.steps_per_epoch() == 6
    sources, targets = zip(*(batches.at(step).rows() for step in range(4)), strict=True)
    assert sorted(i for part in sources for i in part) == list(range(20))
    assert sources != targets


def test_data_smaller_than_a_batch_come_whole() -> None:
    batches = Batches(rows(3), 512, seed=0)
    assert batches.steps_per_epoch() == 1
    assert sorted(batches.at(7).rows()) == [0, 1, 2]


def test_fresh_draws_have_no_rows_and_no_epochs() -> None:
    batches = Batches(Simulator(normal), 6, seed=0)
    assert batches.at(0).data.shape == (6, 3) and batches.at(0).rows() is None
    with pytest.raises(ValueError, match="^a Simulator has no epochs; give steps$"):
        batches.steps_per_epoch()


def test_fixed_draws_are_cached_and_depend_on_the_samplers_seed() -> None:
    calls = []
    simulator = Simulator(lambda n, generator: calls.append(n) or normal(n, generator), seed=3)
    assert simulator.fixed() is simulator.fixed() and calls == [20_000]
    assert torch.equal(simulator.fixed(9), Simulator(normal, seed=3).fixed(9))
    assert not torch.equal(simulator.fixed(9), Simulator(normal, seed=4).fixed(9))


def test_placing_a_sampler_casts_what_it_draws() -> None:
    simulator = Simulator(normal)
    assert place(simulator, torch.device("cpu"), torch.float32) is simulator
    double = place(simulator, torch.device("cpu"), torch.float64)
    assert whole(double).dtype == torch.float64
    assert torch.equal(whole(double).float(), simulator.fixed())
    assert Batches(double, 4, seed=0).at(0).data.dtype == torch.float64


@given(n=st.integers(1, 40), size=st.integers(1, 50))
def test_chunks_are_the_rows_in_order(n: int, size: int) -> None:
    parts = list(chunks((rows(n), rows(n, 1)), size))
    assert all(len(x) == len(y) == count <= size for (x, y), count in parts)
    assert torch.equal(torch.cat([x for (x, _), _ in parts]), rows(n))


@pytest.mark.parametrize("size", [1, 4, 10, 11, 100])
def test_the_mean_over_chunks_weights_rows_equally(size: int) -> None:
    x = torch.randn(11, 2, generator=torch.Generator().manual_seed(0)).double()
    loss = mean_loss(lambda batch: batch.square().mean(), x, size)
    assert loss == pytest.approx(x.square().mean().item(), rel=1e-14)
    paired = mean_loss(lambda batch: (batch[0] * batch[1]).mean(), (x, x), size)
    assert paired == pytest.approx(loss, rel=1e-14)


def test_unpaired_validation_comes_in_one_piece() -> None:
    assert [n for _, n in chunks(Unpaired(rows(5), rows(9)), 2)] == [5]


def test_descriptions_tell_data_apart() -> None:
    x = rows(6)
    changed = x.clone()
    changed[5, 1] += 1e-3
    kinds = [x, changed, x.double(), x.reshape(4, 3), (x, x), Unpaired(x, x), Simulator(normal), x[:, 0]]
    assert len({describe(data) for data in kinds}) == len(kinds)
    assert describe(x) == describe(x.clone())
    assert describe(x).startswith("rows 6 x 2 ")


@given(st.lists(st.integers() | st.text() | st.floats(), min_size=1, max_size=4))
def test_a_seed_is_a_function_of_its_parts(parts: list[object]) -> None:
    seed = seed_of(*parts)
    assert 0 <= seed < 2**63 and seed == seed_of(*parts)
    assert seed != seed_of(*parts, 0) and seed != seed_of(0, *parts)


def test_seeds_are_spread_and_fit_a_generator() -> None:
    seeds = {seed_of(seed, "step", step) for seed in range(10) for step in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == 1000


def test_a_column_of_a_table_is_described_as_its_copy_is() -> None:
    """A view of one column has strides that say nothing."""
    table = torch.arange(6.0).reshape(3, 2)
    assert describe(table[:, :1]) == describe(table[:, :1].clone(memory_format=torch.contiguous_format))
