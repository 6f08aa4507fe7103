"""Arms: the same effective start, and the two controls."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from convexlift.data import whole
from convexlift.names import DEFAULT_ARMS, SOURCES
from convexlift.problems import problem
from convexlift.sources import Lift, Softplus
from convexlift.study.arms import (
    ARMS,
    MULTIPLIED,
    SCATTERED,
    build,
    check_arms,
    first_batches,
    source_factor,
)


def small(name: str, **changes):
    made = problem(name)
    return dataclasses.replace(made, architecture={**made.architecture, "hidden": (16, 16), **changes})


def started(chosen, arm: str, seed: int = 3):
    """The frozen network of an arm before its first step, emitted from the rows a lift starts from."""
    task = build(chosen, arm, seed)
    task.initialise(whole(chosen.train))
    return task.freeze(whole(chosen.train))


@pytest.mark.parametrize("name", ["digits21", "regression-square"])
@pytest.mark.parametrize("init", ["fan_in", "folded_normal", "principled"])
def test_every_arm_starts_as_the_same_network(name, init):
    chosen = small(name, init=init)
    if name == "regression-square":  # a lift starts from its first 4,096 rows
        chosen = dataclasses.replace(chosen, train=tuple(x[:4096] for x in chosen.train))
    rows = (chosen.train if name == "digits21" else chosen.train[0])[:200]
    outputs = []
    for arm in DEFAULT_ARMS:
        frozen = started(chosen, arm)
        outputs.append(frozen.log_prob(rows) if name == "digits21" else frozen.predict(rows))
    for arm, output in zip(DEFAULT_ARMS, outputs, strict=True):
        scale = 1 + outputs[0].abs().max()
        assert float((output - outputs[0]).abs().max() / scale) < 1e-5, arm


def test_every_arm_starts_with_the_same_weights():
    chosen = small("digits21")
    blocks = [started(chosen, arm).blocks[0] for arm in DEFAULT_ARMS]
    for arm, block in zip(DEFAULT_ARMS, blocks, strict=True):
        for name, tensor in block.named_parameters():
            assert torch.allclose(tensor, blocks[0].get_parameter(name), atol=1e-6, rtol=0), (arm, name)


def test_seeds_and_blocks_start_differently():
    chosen = dataclasses.replace(small("digits21"), blocks=2)
    one, two = started(chosen, "softplus", seed=0), started(chosen, "softplus", seed=1)
    assert not torch.equal(one.blocks[0].outer, two.blocks[0].outer)
    assert not torch.equal(one.blocks[0].outer, one.blocks[1].outer)
    projected = started(chosen, "projected", seed=0)
    assert torch.allclose(one.blocks[1].outer, projected.blocks[1].outer, atol=1e-6)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build(small("gumbel"), "lift", 0)
    assert torch.equal(before, torch.get_rng_state())


def test_scattered_softplus_starts_as_the_reference_lift():
    chosen = small("digits21")
    task = build(chosen, SCATTERED, 0)
    assert isinstance(task.blocks[0], Softplus)
    assert all(p.requires_grad for p in task.parameters())
    reference, scattered = started(chosen, "lift-reference", 0), started(chosen, SCATTERED, 0)
    for name, tensor in scattered.blocks[0].named_parameters():
        assert torch.allclose(tensor, reference.blocks[0].get_parameter(name), atol=1e-5)
    assert not torch.allclose(
        scattered.blocks[0].outer, started(chosen, "softplus", 0).blocks[0].outer, atol=1e-3
    )


def test_multiplied_softplus_starts_as_softplus_with_a_larger_rate():
    chosen = small("gumbel")
    one, two = started(chosen, MULTIPLIED, 0), started(chosen, "softplus", 0)
    assert torch.equal(one.block.outer, two.block.outer)
    assert source_factor(chosen, MULTIPLIED, 0, 64) > 1.5
    assert source_factor(chosen, "lift", 0, 64) == 1.0


def test_first_batches_are_those_of_a_run():
    chosen = problem("digits21")
    batches = first_batches(chosen, 32, seed=4, count=3)
    assert [tuple(batch.shape) for batch in batches] == [(32, 21)] * 3
    assert torch.equal(batches[0], first_batches(chosen, 32, seed=4, count=1)[0])


def test_a_users_arm_may_have_any_name():
    chosen = small("gumbel")
    task = build(chosen, SCATTERED, 0, arms={SCATTERED: Lift})
    assert isinstance(task.block, Lift)


def test_arm_names_are_checked():
    assert check_arms(["lift", "lift", SCATTERED]) == ("lift", SCATTERED)
    known = "projected, softplus, .*, softplus-multiplied"
    with pytest.raises(
        ValueError, match=rf"^unknown way of training 'lfit'; known: {known}; did you mean 'lift'\?$"
    ):
        check_arms(["lfit"])
    with pytest.raises(ValueError, match="^no ways of training to compare; known: mine$"):
        check_arms([], {"mine": ARMS["lift"]})
    with pytest.raises(ValueError, match="^unknown way of training 'lift'; known: mine$"):
        check_arms(["lift"], {"mine": ARMS["lift"]})


def test_the_names_that_a_user_chooses_from_are_those_of_the_arms():
    assert tuple(ARMS) == SOURCES and set(DEFAULT_ARMS) < set(ARMS)


def test_unknown_task():
    chosen = dataclasses.replace(problem("gumbel"), task="magic")
    with pytest.raises(
        ValueError, match="^problem 'gumbel' has task 'magic'; known: flow, density, regression"
    ):
        build(chosen, "lift", 0)
