"""The arms of a comparison: ways of training one network, all from the same start."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from convexlift.architectures import ICNN
from convexlift.data import Rows, whole
from convexlift.mechanism import step_amplification
from convexlift.problems import Problem
from convexlift.seeds import seed_of
from convexlift.sources import Lift, Softplus
from convexlift.sources.named import SOURCES, Source
from convexlift.study.fixed_batch import FixedBatchLift
from convexlift.tasks import ConvexPotentialFlow, ConvexRegression, LogConcaveDensity
from convexlift.training.batches import Batches

Arm = Source

DEFAULT_ARMS = ("projected", "softplus", "softplus-fan-in", "squared", "lift")
ARMS: Mapping[str, Arm] = {**{name: SOURCES[name] for name in DEFAULT_ARMS}, **SOURCES}

SCATTERED = "softplus-scattered"
MULTIPLIED = "softplus-multiplied"
FIXED_RATE_ARMS = ("lift", "lift-reference", "projected", "softplus", SCATTERED, MULTIPLIED)

# The lift with one ingredient removed each; "lift-fixed-batch" keeps all but the randomness.
WITHOUT: Mapping[str, Arm] = {
    "lift-no-slack": partial(Lift, slack=False),
    "lift-constant": partial(Lift, body="constant"),
    "lift-independent": partial(Lift, coupling="independent"),
    "lift-noise": partial(Lift, coupling="noise"),
    "lift-fixed-batch": FixedBatchLift,
}
ALL_ARMS: Mapping[str, Arm] = {**ARMS, **WITHOUT}
ABLATION_ARMS = ("lift", *WITHOUT, SCATTERED, "softplus", "projected")

AMPLIFICATION_BATCHES = 8


def check_arms(names: Iterable[str], known: Mapping[str, Arm] = ARMS) -> tuple[str, ...]:
    """The names of arms, each once; raises a ValueError for an unknown one and for none.

    Example:
        >>> check_arms(["lift", "softplus"])
        ('lift', 'softplus')
        >>> check_arms(["lfit"])
        Traceback (most recent call last):
        ...
        ValueError: unknown arm 'lfit'; known: projected, softplus, ...
    """
    chosen = tuple(dict.fromkeys(names))
    controls = (SCATTERED, MULTIPLIED) if known is ARMS or known is ALL_ARMS else ()
    for name in chosen:
        if name not in known and name not in controls:
            raise ValueError(f"unknown arm '{name}'; known: {', '.join((*known, *controls))}")
    if not chosen:
        raise ValueError(f"no arms to compare; known: {', '.join((*known, *controls))}")
    return chosen


def build(problem: Problem, arm: str, seed: int, arms: Mapping[str, Arm] = ARMS) -> nn.Module:
    """The untrained task of one arm; for one problem and seed every arm starts as the same effective network.

    Two kinds of arm start elsewhere by design: "lift-reference", and its control "softplus-scattered",
    softplus from the very network that "lift-reference" emits at its start from the training rows.
    "softplus-multiplied" is softplus here; `source_factor` says what sets it apart.

    Example:
        >>> from convexlift.problems import problem
        >>> type(build(problem("gumbel"), "lift", seed=0)).__name__
        'LogConcaveDensity'
    """
    if arm == SCATTERED and arm not in arms:
        return _task(problem, [Softplus(net) for net in _scattered_networks(problem, seed)])
    make = ARMS["softplus"] if arm == MULTIPLIED and arm not in arms else arms[arm]
    blocks = []
    for k in range(problem.blocks):
        net = _network(problem, seed_of(seed, "network", k))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "source", k))
            blocks.append(make(net))
    return _task(problem, blocks)


def source_factor(problem: Problem, arm: str, seed: int, batch_size: int) -> float:
    """By what the rate of the latent weights is multiplied, next to that of all other parameters.

    1, but for "softplus-multiplied", where it is the step amplification of the lift of the same seed at its
    start.

    Example:
        >>> from convexlift.problems import problem
        >>> source_factor(problem("gumbel"), "softplus", seed=0, batch_size=64)
        1.0
    """
    if arm != MULTIPLIED:
        return 1.0
    lift = build(problem, "lift", seed)
    cast(Any, lift).initialise(whole(problem.train))
    return step_amplification(lift, probe_batches(problem, batch_size, seed)[:AMPLIFICATION_BATCHES])


def probe_batches(problem: Problem, batch_size: int, seed: int, count: int = 16) -> list[Rows]:
    """The first batches that a run of this seed draws."""
    batches = Batches(problem.train, batch_size, seed)
    return [batches.at(step).data for step in range(count)]


def _network(problem: Problem, seed: int) -> nn.Module:
    if problem.network is not None:
        return problem.network(seed)
    return ICNN(problem.dim, **problem.architecture, seed=seed)


def _task(problem: Problem, blocks: list[nn.Module]) -> nn.Module:
    if problem.objective is not None:
        return problem.objective(blocks)
    if problem.task == "flow":
        return ConvexPotentialFlow(blocks)
    if problem.task == "density":
        return LogConcaveDensity(blocks[0], problem.density_objective)
    if problem.task == "regression":
        return ConvexRegression(blocks[0])
    raise ValueError(f"problem '{problem.name}' has task '{problem.task}'; known: flow, density, regression")


def _scattered_networks(problem: Problem, seed: int) -> list[nn.Module]:
    rows = whole(problem.train)
    reference = cast(Any, build(problem, "lift-reference", seed))
    reference.initialise(rows)
    frozen = reference.freeze(rows)
    blocks = frozen.blocks if problem.task == "flow" else [frozen.block]
    return [copy.deepcopy(block).requires_grad_(True).train() for block in blocks]
