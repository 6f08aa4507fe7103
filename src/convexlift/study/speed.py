"""What a training step of every arm costs, measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch

from convexlift.ambient import guarded
from convexlift.data import place_for
from convexlift.seeds import one_thread
from convexlift.study.arms import build
from convexlift.study.cells import Setting, subject
from convexlift.training.fit import Run
from convexlift.training.settings import Settings

WARM_UP, ROUNDS = 5, 31
# Any rate will do: time does not depend on it, and a small one cannot diverge.
_RATE = 1e-4


@guarded(training=True)
def step_times(
    setting: Setting, arms: Iterable[str], *, warm_up: int = WARM_UP, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median milliseconds of one training step of each arm, taken in turn (A B C A B C ...) with one thread.

    Whatever else the machine does then slows all arms alike, which the cells of a comparison, trained at
    different times, cannot promise.

    Example:
        >>> from convexlift.study.cells import Named
        >>> from convexlift.study.protocol import budget_for
        >>> setting = Setting(Named("logistic"), budget_for("density", "quick"))
        >>> times = step_times(setting, ["softplus", "lift"])
        >>> sorted(times), min(times.values()) > 0
        (['lift', 'softplus'], True)
    """
    chosen, known, _ = subject(setting)
    budget, device = setting.budget, torch.device(setting.device)
    steps = warm_up + rounds
    settings = Settings(
        steps, budget.batch_size, budget.optimizer, _RATE, "constant", budget.clip, None, steps, seed=0
    )
    with one_thread(), torch.random.fork_rng():
        runs = {}
        for arm in dict.fromkeys(arms):
            task = build(chosen, arm, seed=0, arms=known).to(device)
            runs[arm] = Run(task, place_for(task, chosen.train), None, settings, (), None, None)
        for _ in range(steps):
            for run in runs.values():
                run.train_step()
    return {arm: 1000 * statistics.median(run.durations[warm_up:]) for arm, run in runs.items()}


def first_guess(setting: Setting, arms: Iterable[str]) -> dict[str, float]:
    """Seconds of a step of each arm from three of them: enough to say how long a comparison may take.

    An arm that fails has none; why is told when its cells fail.
    """
    found: dict[str, float] = {}
    for arm in arms:
        try:
            found |= step_times(setting, [arm], warm_up=1, rounds=3)
        except Exception:  # any bug in a user's own arm
            continue
    return {arm: milliseconds / 1000 for arm, milliseconds in found.items()}
