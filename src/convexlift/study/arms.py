"""The arms of a comparison: ways of training one network, all from the same start."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast, final

from torch import Tensor, nn

from convexlift.architectures import ICNN
from convexlift.data import Batches, Rows, whole
from convexlift.mechanism import step_amplification
from convexlift.mechanism.observing import parts
from convexlift.names import CONTROLS, SOURCES, check_name
from convexlift.problems import Problem
from convexlift.seeds import seed_of, seeded
from convexlift.sources import Lift, Softplus
from convexlift.sources.named import Source, source_named

Arm = Source

FIXED_ROWS = 512


@final
class FixedBatchLift(Lift):
    """The full lift, but the batch that it reads is always the first training rows, at most 512.

        theta = b + R s(X_0),   X_0 fixed.

    Slack, body and readout learn as in the full lift, with the same number of parameters, and nothing
    fluctuates: what is left of the lift is its over-parametrisation. An ablation arm, not a way of training.

    Args: as for `Lift`.

    Shapes: batch (N, dim) with N >= 1; its rows are not read.

    Raises:
        ValueError: as `Lift`.

    Example:
        >>> import torch
        >>> import convexlift as cl
        >>> lift, x = FixedBatchLift(cl.ICNN(2, hidden=(8, 8), seed=0), seed=0), torch.randn(600, 2)
        >>> lift.initialise(x)
        >>> one, two = lift.weights(x[:100]), lift.weights(x[100:200])
        >>> all(bool((one[name] == two[name]).all()) for name in one)
        True
    """

    fixed: Tensor | None = None

    def initialise(self, x: Tensor) -> None:
        """Keep the first rows, and start as any lift."""
        self.fixed = x[:FIXED_ROWS].detach().clone()
        super().initialise(x)

    def summary(self, batch: Tensor | None) -> Tensor:
        """The summary of the fixed rows; in eval mode and before `initialise` that of the batch."""
        reads_fixed = self.training and self.fixed is not None and batch is not None
        return super().summary(self.fixed if reads_fixed else batch)


ARMS: Mapping[str, Arm] = {name: source_named(name) for name in SOURCES}

SCATTERED, MULTIPLIED = CONTROLS
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
_AMPLIFIED = 2.0**-5


def check_arms(names: Iterable[str], known: Mapping[str, Arm] = ARMS) -> tuple[str, ...]:
    """The names of arms, each once; raises a ValueError for an unknown one and for none.

    Example:
        >>> check_arms(["lift", "softplus"])
        ('lift', 'softplus')
        >>> check_arms(["lfit"])
        Traceback (most recent call last):
        ...
        ValueError: unknown way of training 'lfit'; known: projected, softplus, ...
    """
    chosen = tuple(dict.fromkeys(names))
    all_known = (*known, *CONTROLS) if known is ARMS or known is ALL_ARMS else tuple(known)
    for name in chosen:
        check_name("way of training", name, all_known)
    if not chosen:
        raise ValueError(f"no ways of training to compare; known: {', '.join(all_known)}")
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
        with seeded(seed_of(seed, "source", k)):
            blocks.append(make(net))
    return _task(problem, blocks)


def rate_scale(problem: Problem, arm: str, arms: Mapping[str, Arm] = ARMS) -> float:
    """What the rates of the shared grid are multiplied by for one arm.

    1, or 1/32 where a lift's gains of 40 are in its steps, so that all arms are offered about the same steps.

    Example:
        >>> from convexlift.problems import problem
        >>> rate_scale(problem("gumbel"), "softplus"), rate_scale(problem("gumbel"), "lift")
        (1.0, 0.03125)
    """
    try:
        built = build(problem, arm, seed=0, arms=arms)
    except Exception:  # whatever an arm of one's own raises is told of its runs
        return 1.0
    return _AMPLIFIED if any(getattr(part, "amplified", False) for part in built.modules()) else 1.0


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
    return step_amplification(lift, first_batches(problem, batch_size, seed, AMPLIFICATION_BATCHES))


def first_batches(problem: Problem, batch_size: int, seed: int, count: int = 16) -> list[Rows]:
    """The first batches that a run of this seed draws."""
    batches = Batches(problem.train, batch_size, seed)
    return [batches.at(step).data for step in range(count)]


def _network(problem: Problem, seed: int) -> nn.Module:
    if problem.network is not None:
        return problem.network(seed)
    return ICNN(problem.dim, **problem.architecture, seed=seed)


def _task(problem: Problem, blocks: list[nn.Module]) -> nn.Module:
    if problem.build is not None:
        return problem.build(blocks)
    return problem.kind.build(blocks, problem.density_objective)


def _scattered_networks(problem: Problem, seed: int) -> list[nn.Module]:
    rows = whole(problem.train)
    reference = cast(Any, build(problem, "lift-reference", seed))
    reference.initialise(rows)
    frozen = reference.freeze(rows)
    return [copy.deepcopy(block).requires_grad_(True).train() for block in parts(frozen)]
