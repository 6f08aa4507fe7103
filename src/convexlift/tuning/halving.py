"""Successive halving: many settings for a few steps, the better half for more, the best against the first."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, final

from convexlift.ambient import guarded
from convexlift.checks import check_count
from convexlift.data import Rows, describe, readable
from convexlift.locks import owned
from convexlift.processes import finished, jobs_for, processes
from convexlift.tuning.progress import Pace, Show, search_bar
from convexlift.tuning.records import Records
from convexlift.tuning.rungs import Plan, Rung, plan_for
from convexlift.tuning.space import Setting, Space, draw, price
from convexlift.tuning.trial import Make, Outcome, Trial, Work, named, split


@final
@dataclass(frozen=True)
class Found:
    """What a search chose, and what it tried.

    Attributes:
        setting: the chosen values by name, with the ``steps`` to train for.
        base: the settings that it began with.
        runs: a dict for every run: its settings, ``steps``, ``hold``, ``loss`` (None where it failed),
            ``best_step``, ``seconds`` and ``message``.
        price: of search and last run together, in runs of the settings ``base`` for all steps; counted.
        seconds: of the processor, for the search.
        base_seconds: that a run of ``base`` for all steps would take, by those that were short.
    """

    setting: Setting
    base: Setting
    runs: tuple[dict[str, Any], ...]
    price: float
    seconds: float
    base_seconds: float

    @property
    def of_task(self) -> Setting:
        """The chosen settings that build a task."""
        return split(self.setting)[0]

    @property
    def of_fit(self) -> Setting:
        """The chosen settings that ``fit`` is told."""
        return split(self.setting)[1]


@guarded(training=True)
def search(
    make: Make,
    rows: Rows,
    space: Mapping[str, Sequence[Any]],
    base: Mapping[str, Any],
    *,
    steps: int,
    share: float = 0.1,
    seed: int = 0,
    jobs: int | None = 1,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Show = True,
    **options: Any,
) -> Found:
    """Choose settings by held-out rows, at the cost of five runs of those given, the last run included.

    Successive halving: ``base`` and a balanced draw from ``space`` are trained for a sixteenth of the steps,
    ``base`` and the best others for a sixth or an eighth, and ``base`` and the best other for half of them,
    each time anew with a whole schedule, so that its length is chosen too: where longer runs are not clearly
    better they are not tried. Where fewer than 100 rows would be held out, two quarters of the rows are in
    turn. Another setting than ``base``, and fewer steps, are chosen where they are better by a standard error
    of the difference on the same rows.

    Everything is seeded and computed with one thread a run: with any number of jobs the choice is the same.
    The cost is counted in steps, a step of two blocks as two.

    Args:
        make: builds an untrained task from the settings that are not arguments of ``fit``, by keyword. With
            several jobs other processes must be able to import it.
        rows: those to train and validate on, as ``fit`` takes them; test rows stay elsewhere.
        space: the values that each setting may take, see ``quick_space``.
        base: the settings to start from, of all names in the space.
        steps: of the longest run, and of a run of ``base`` as it would be without a search.
        share: of the rows, held out to validate on.
        seed: of draws, splits, initial weights and batches.
        jobs: runs at a time, in processes of their own unless 1; None: one for each core.
        folder: where finished runs are kept, in ``search.json``.
        resume: go on with what is kept there.
        progress: show a bar where stderr is a terminal; or a function of a ``Standing``, called after each
            run.
        options: what every ``fit`` is told beside, such as ``batch_size``.

    Raises:
        ValueError: fewer than 40 rows, a name of the space without a value in ``base``, or kept runs of
            another search; what ``fit`` says of the settings ``base``.
        RuntimeError: every run failed, or a process died.
        FileExistsError: ``folder`` holds a search, and ``resume`` is False.
        KeyboardInterrupt: it was interrupted; what was finished is kept.

    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
    AISTATS 2016.

    Example:
        >>> import convexlift as cl, torch
        >>> def make(sharpness):
        ...     net = cl.ICNN(2, hidden=(4,), sharpness=sharpness, seed=0)
        ...     return cl.ConvexPotentialFlow([cl.Squared(net)])
        >>> rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> base = {"sharpness": 2.0, "lr": 0.03}
        >>> found = search(make, rows, {"sharpness": (1.0, 2.0, 4.0)}, base, steps=32, progress=False)
        >>> sorted(found.setting), found.price <= 5
        (['lr', 'sharpness', 'steps'], True)
        >>> history = cl.fit(make(**found.of_task), rows, **found.of_fit, progress=False)
    """
    steps, jobs = check_count("steps", steps), jobs_for(jobs, str(options.get("device") or "cpu"))
    for name in space:
        if name not in base:
            raise ValueError(f"base has no value of {name!r}, which the space has")
    rows = readable(rows, "rows")
    plan = plan_for(rows, share)
    values: Space = {name: tuple(those) for name, those in space.items()}
    asked = {
        "rows": describe(rows),
        "space": {name: list(those) for name, those in values.items()},
        "base": dict(base),
        "options": {name: str(value) for name, value in options.items()},
        "steps": steps,
        "share": share,
        "seed": seed,
    }
    parts = rows if isinstance(rows, tuple) else (rows,)
    arrays = tuple(part.detach().cpu().numpy() for part in parts)
    work = Work(make, arrays, isinstance(rows, tuple), share, seed, plan, options, named(base))
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if folder is None else owned(folder))
        records = Records(folder, asked, resume=resume)
        show = stack.enter_context(search_bar(progress))
        return _Halving(work, records, dict(base), values, steps, jobs, show).run()


@final
class _Halving:
    """A search in progress."""

    def __init__(
        self, work: Work, records: Records, base: Setting, space: Space, steps: int, jobs: int, show: Show
    ) -> None:
        self.work, self.records, self.base, self.space = work, records, base, space
        self.steps, self.jobs, self.show = steps, jobs, show
        self.plan: Plan = work.plan
        self.done: dict[Trial, Outcome] = {}
        self.trained: list[Rung] = []

    def run(self) -> Found:
        rungs = self.plan.rungs
        standing = draw(self.space, self.base, rungs[0].settings, self.work.seed)
        with ExitStack() as stack:
            pool = stack.enter_context(processes(self.jobs)) if self.jobs > 1 else None
            progress = Pace(self._planned(rungs, standing), self.show)
            for rung, after in zip(rungs, (*rungs[1:], None), strict=True):
                self._train(self._trials(rung, standing), pool, progress)
                self.trained.append(rung)
                if after is None or not self._is_worth_more_steps(standing):
                    break
                standing = self._best(rung, standing)[: after.settings]
                progress.left = self._planned(rungs[rungs.index(after) :], standing)
        return self._found(*self._chosen(standing))

    def _trials(self, rung: Rung, standing: Sequence[Setting]) -> list[Trial]:
        return [
            Trial(named(setting), self._steps(rung.share), hold)
            for setting in standing
            for hold in range(rung.holds)
        ]

    def _steps(self, share: float) -> int:
        return max(1, round(share * self.steps))

    def _price(self, setting: Mapping[str, Any], steps: int) -> float:
        return price(setting, self.base) * steps / self.steps

    def _planned(self, rungs: Sequence[Rung], standing: Sequence[Setting]) -> float:
        """What such rungs cost, if those that are left are as dear as those standing are now."""
        each = statistics.fmean(price(setting, self.base) for setting in standing)
        return sum(each * min(rung.settings, len(standing)) * rung.share * rung.holds for rung in rungs)

    def _train(self, trials: Sequence[Trial], pool: ProcessPoolExecutor | None, progress: Pace) -> None:
        """Run the trials whose outcomes are not kept."""
        waiting = []
        for trial in trials:
            if (outcome := self.records.get(trial)) is None:
                waiting.append(trial)
            else:
                self.done[trial] = outcome
                progress.skip(self._price(dict(trial.setting), trial.steps))
        for trial, outcome in _outcomes(self.work, waiting, pool):
            self.done[trial] = outcome
            self.records.add(trial, outcome)
            progress.tell(self._price(dict(trial.setting), trial.steps), trial, outcome)

    def _loss(self, setting: Setting, rung: Rung) -> float:
        """The mean loss of a setting on a rung's held-out rows; infinite where a run failed."""
        losses = [self.done[trial].loss for trial in self._trials(rung, [setting])]
        return statistics.fmean(math.inf if loss is None else loss for loss in losses)

    def _best(self, rung: Rung, standing: Sequence[Setting]) -> list[Setting]:
        """The settings: first those given, which stay to the end, then the others, the best one first."""
        return [self.base, *sorted(standing[1:], key=lambda setting: self._loss(setting, rung))]

    def _is_worth_more_steps(self, standing: Sequence[Setting]) -> bool:
        """Whether the setting given and the best of the last rung have both gained by longer training."""
        if len(self.trained) == 1:
            return True
        before, last = self.trained[-2:]
        best = min(standing, key=lambda setting: self._loss(setting, last))
        return all(self._clearly_better((each, last), (each, before), 1) for each in (self.base, best))

    def _chosen(self, standing: Sequence[Setting]) -> tuple[Setting, int]:
        """The setting that is best at the last rung, and the steps to train it for."""
        last = self.trained[-1]
        base, *others = self._best(last, standing)
        if all(self._loss(setting, last) == math.inf for setting in standing):
            told = self.done[self._trials(last, [base])[0]].message
            raise RuntimeError(f"every run of the search failed at last; with the settings given: {told}")
        chosen = base
        if others and self._clearly_better((others[0], last), (base, last), last.holds):
            chosen = others[0]
        share = 1.0 if last is self.plan.rungs[-1] else last.share
        for rung in self.trained[-2::-1]:  # compared on the rows that every rung has held out
            if self._clearly_better((chosen, rung), (chosen, last), 1):
                last, share = rung, rung.share
        return chosen, self._steps(share)

    def _clearly_better(self, one: tuple[Setting, Rung], other: tuple[Setting, Rung], holds: int) -> bool:
        """Whether the loss of a setting after a rung is lower than another by more than a standard error of
        the difference on the same rows."""
        losses, pieces = list[float](), list[list[float]]()
        for setting, rung in (one, other):
            outcomes = [self.done[trial] for trial in self._trials(replace(rung, holds=holds), [setting])]
            losses.append(max(math.inf if outcome.loss is None else outcome.loss for outcome in outcomes))
            pieces.append([piece for outcome in outcomes for piece in outcome.pieces])
        if math.inf in losses:
            return losses[0] < losses[1]
        gains = [b - a for a, b in zip(*pieces, strict=True)]
        return statistics.fmean(gains) > statistics.stdev(gains) / math.sqrt(len(gains))

    def _found(self, setting: Setting, steps: int) -> Found:
        mine = [(trial, out) for trial, out in self.done.items() if trial.setting == named(self.base)]
        of_a_step = sum(out.seconds for _, out in mine) / sum(trial.steps for trial, _ in mine)
        runs = sorted(self.done.items(), key=lambda pair: (pair[0].steps, str(pair[0].setting), pair[0].hold))
        return Found(
            {**setting, "steps": steps},
            self.base,
            tuple({**trial.values(), **outcome.figures()} for trial, outcome in runs),
            sum(self._price(dict(trial.setting), trial.steps) for trial in self.done)
            + self._price(setting, steps),
            sum(outcome.seconds for outcome in self.done.values()),
            self.steps * of_a_step,
        )


def _outcomes(
    work: Work, trials: Sequence[Trial], pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Trial, Outcome]]:
    """Every trial with what came of it, as it is finished."""
    if pool is None:
        for trial in trials:
            yield trial, work(trial)
        return
    yield from finished(
        pool,
        work,
        {trial: (trial,) for trial in trials},
        "a process of the search died (out of memory, or killed); in a script search under "
        "`if __name__ == '__main__':`, or one run at a time",
    )
