"""Which ingredient of the lift matters: a comparison of the lift with each ingredient removed in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convexlift.files import write_json
from convexlift.locks import owned
from convexlift.study.arms import ABLATION_ARMS
from convexlift.study.cells import Cell, Named, Outcome, Setting, load
from convexlift.study.comparison import Comparison, run
from convexlift.study.outcomes import Event
from convexlift.study.protocol import Budget, budget_for
from convexlift.study.ranking import complete, difference, interval, is_clear
from convexlift.study.report.numbers import interval_text, score_texts, short
from convexlift.study.statistics import common_difference, summary
from convexlift.study.workers import Workers

REFERENCE = "lift"
SIGNIFICANT = 0.05
FLUCTUATION = "sigma_batch"
MEASURES = (FLUCTUATION, "norm", "dwell", "occupancy")


def ablate(
    problem: str,
    *,
    optimizer: str = "adam",
    budget: str | Budget = "quick",
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    data: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    out: str | os.PathLike[str],
    resume: bool = True,
    command: str | None = None,
    progress: Callable[[Event], object] | None = None,
    forecast: Callable[[float], object] | None = None,
) -> Comparison:
    """Remove the lift's ingredients one at a time, and write `result.json` into the folder `out`.

    A comparison under equal tuning, with the table at the one rate 0.001 beside it, of the full lift, the
    lift without slack, with a constant in place of the summary, emitting from an independent batch, with
    noise of the same mean and covariance in place of the batch, reading one fixed batch (as many parameters,
    no randomness), softplus from the reference lift's scattered start, softplus, and projection. Along each
    scored run the coupling Sigma_batch of weights and gradient is measured on fresh batches, and the stays on
    the shoulder are followed. The effect of an ingredient is

        (arm without it) - (full lift),

    paired by seed, with a 95 % t-interval, for the test loss of the frozen model, tr Sigma_batch (its mean
    over the measurements) and the dwell (the mean stay on the shoulder until the end, as a share of the run).

    Args:
        problem: a name known to `convexlift.problems.problem`.
        optimizer: "adam", "sgd" (momentum 0.9) or "soap".
        budget: "quick", "standard", "full", or a `Budget`.
        rates: the grid, used as it is: it does not grow.
        seeds: number of evaluation seeds, in place of the budget's.
        steps: steps of a run, in place of the budget's.
        data: the file that the problem reads.
        jobs: cells at a time; see `compare`.
        out: folder for `result.json` and `cells/`.
        resume: use the finished cells in `out`, or run them all again.
        command: the shell command that gives the result again; kept in it.
        progress, forecast: as those of `compare`.

    Returns:
        What `compare` returns, with the effects under "ablation" in the result.

    Raises:
        ValueError: an unknown name, or a setting that makes no sense.
        OSError, RuntimeError, KeyboardInterrupt: as `compare`.

    Example:
        >>> import tempfile
        >>> tiny = Budget("tiny", 2, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (4,)),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = ablate("regression-square", budget=tiny, out=folder, jobs=1)
        >>> effects = found.result["ablation"]["tuned"]
        >>> effects["lift-constant"]["sigma_batch"]["mean"], effects["lift"]["sigma_batch"]["mean"] != 0
        (0.0, True)
    """
    make = Named(problem, None if data is None else os.fspath(data))
    chosen, _ = load(make)
    spend = budget_for(
        chosen.task,
        budget,
        chosen.dim,
        rates=rates,
        evaluation_seeds=seeds,
        steps=steps,
        optimizer=optimizer,
        traced=True,
        fixed_rate=True,
    )
    with Workers(Setting(make, spend), Path(out) / "cells", jobs=jobs, resume=resume) as workers, owned(out):
        arms, may_grow = ABLATION_ARMS, rates is None
        found = run(
            workers, arms, arms, may_grow=may_grow, command=command, progress=progress, forecast=forecast
        )
        result = found.result
        for title, section in (("tuned", result), ("fixed_rate", result["fixed_rate"])):
            outcomes = {
                name: [
                    found.outcomes.get(Cell(name, arm["lr"], seed, spend.steps), {})
                    for seed in spend.evaluation
                ]
                for name, arm in section["arms"].items()
            }
            result.setdefault("ablation", {"reference": REFERENCE})[title] = _effects(section, outcomes)
        write_json(Path(out) / "result.json", result)
    return found


def effects_table(result: dict[str, Any], section: str = "tuned") -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of effects, under "tuned" or at the "fixed_rate"; lowest loss first.

    Intervals that leave out zero are starred; the number of permutation tests that found a coupling at the
    5 % level stands with the number of tests.
    """
    scores = result if section == "tuned" else result["fixed_rate"]
    effects = result["ablation"][section]
    head = ["trained by", "rate", "test loss", "minus lift (95 %)", "tr Σ_batch", "minus lift (95 %)"]
    head += ["tests p ≤ 0.05", "dwell", "minus lift (95 %)"]
    tests = score_texts({name: arm["test"] for name, arm in scores["arms"].items()})
    rows = []
    for name in complete(scores):
        arm, effect = scores["arms"][name], effects[name]
        loss = difference(scores, name, REFERENCE) if name != REFERENCE else None
        rate = scores.get("lr") if section == "fixed_rate" else arm["lr"]
        rows.append(
            [
                name,
                "–" if rate is None else f"{rate:g}",
                tests[name],
                _text(loss),
                _score(effect[FLUCTUATION]),
                _text(effect[f"{FLUCTUATION}_minus_{REFERENCE}"]),
                f"{effect['significant']} of {effect['tests']}" if effect["tests"] else "–",
                _score(effect["dwell"]),
                _text(effect[f"dwell_minus_{REFERENCE}"]),
            ]
        )
    return head, rows


def effects_text(result: dict[str, Any]) -> str:
    """Both tables of effects, as Markdown."""
    protocol = result["protocol"]
    about = (
        f"# Ablation of the lift on {result['problem']}\n\n"
        f"{protocol['optimizer']}, {protocol['steps']} steps, {len(protocol['evaluation_seeds'])} seeds; "
        f"the loss is {result['metric']} of the frozen model. A star: the interval leaves out zero."
    )
    parts = [about]
    for section, title in (("tuned", "Each arm at its own best rate"), ("fixed_rate", "All at rate 0.001")):
        head, rows = effects_table(result, section)
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _effects(section: Mapping[str, Any], outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """What each arm shows, and its difference from the full lift over the seeds that both have."""
    seen = {name: [_measured(outcome) for outcome in found] for name, found in outcomes.items()}
    effects = {}
    for name, by_seed in seen.items():
        told: dict[str, Any] = {}
        for key in MEASURES:
            one, other = ([found.get(key) for found in seen.get(at, [])] for at in (name, REFERENCE))
            told[key] = summary(one)
            told[f"{key}_minus_{REFERENCE}"] = common_difference(one, other) if name != REFERENCE else None
        p_values = [p for measured in by_seed for p in measured.get("p_values", [])]
        effects[name] = {
            **told,
            "significant": sum(p <= SIGNIFICANT for p in p_values),
            "tests": len(p_values),
            "along": [measured.get("along") for measured in by_seed],
            "test": section["arms"][name]["test"],
        }
    return effects


def _measured(outcome: Outcome) -> dict[str, Any]:
    """The figures of one traced run; empty for one that diverged or failed."""
    trace = outcome.get("trace")
    if not trace:
        return {}
    along = trace["coupling"]
    read = [point for point in along if point["norm"] > 0]  # where a batch was read at all
    return {
        FLUCTUATION: sum(point["trace"] for point in along) / len(along),
        "norm": sum(point["norm"] for point in along) / len(along),
        "dwell": trace["dwell"],
        "occupancy": trace["occupancy"],
        "p_values": [point["p_value"] for point in read],
        "along": along,
    }


def _score(score: Mapping[str, Any]) -> str:
    """Mean ± standard error with two significant digits; a dash where there is none, 0 where all are."""
    mean, error = score["mean"], score["sem"]
    if mean is None:
        return "–"
    if mean == 0 and not error:
        return "0"
    return f"{short(mean)} ± {short(error)}" if error else short(mean)


def _text(found: Mapping[str, Any] | None) -> str:
    if found is None or found.get("mean") is None:
        return ""
    bounds = interval(dict(found))
    if bounds is not None and bounds[1] - bounds[0] < 1e-3:  # small figures need exponents
        text = f"{short(found['mean'])} ({short(bounds[0])} to {short(bounds[1])})"
    else:
        text = interval_text(dict(found))
    return f"{text}*" if is_clear(dict(found)) else text
