"""The report page, written from made-up comparisons (no figure here was measured)."""

from __future__ import annotations

import copy
import html.parser
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from convexlift.experiments import charts, report

MEANS = {"projected": 23.9, "softplus": 23.5, "softplus-fan-in": 23.48, "squared": 23.8, "lift": 23.3}


def made_up_result(
    problem: str = "made-up", means: dict[str, float] | None = None, *, noise: float = 0.02, seeds: int = 5
) -> dict[str, Any]:
    """A comparison in the form of result.json with invented figures."""
    draw = random.Random(problem)
    arms: dict[str, Any] = {}
    shared = [draw.gauss(0, 0.05) for _ in range(seeds)]
    rates = [0.001 * 2**k for k in range(8)]
    for name, mean in (means or MEANS).items():
        lift = name == "lift"
        per_seed = [mean + common + draw.gauss(0, noise) for common in shared]
        steps = list(range(0, 2001, 50))
        arms[name] = {
            "lr": 0.016,
            "test": _score(per_seed),
            "half_budget": _score([value + 0.15 for value in per_seed]),
            "equal_seconds": {
                **_score([value + (0.06 if lift else 0.01) for value in per_seed]),
                "seconds": 21.0,
            },
            "ms_per_step": 12.4 if lift else 10.9 if name != "projected" else 10.4,
            "parameters": 104_321 if lift else 81_234,
            "emission_noise": {"start": 0.031, "middle": 0.024, "end": 0.0} if lift else None,
            "step_amplification": {"start": 18.2, "end": 16.0} if lift else None,
            "shoulder": {"start": 0.02 if lift else 0.4, "end": 0.12 if lift else 0.55},
            "at_zero": {"start": 0.0, "end": 0.31 if name == "projected" else 0.0},
            "fan_in_weight": {"start": 1.0, "end": 0.83},
            "relative_speed": {"start": 0.97, "end": 0.9},
            "rates": [
                {
                    "lr": lr,
                    "validation": None if k > 6 else mean + 0.2 * (k - 4) ** 2 * (1 + draw.random() / 4),
                }
                for k, lr in enumerate(rates)
            ],
            "curves": {
                "steps": steps,
                "seconds": [step * (0.0124 if lift else 0.0109) for step in steps],
                "validation": [
                    [value + 6 * math.exp(-step / 180) + 0.4 * math.exp(-step / 700) for step in steps]
                    for value in per_seed
                ],
            },
            "failed": [],
        }
    return {
        "schema": 1,
        "problem": problem,
        "task": "flow",
        "metric": "negative log-likelihood (nats)",
        "description": "Invented figures, for looking at the page.",
        "facts": {"gaussian": 29.8},
        "protocol": {
            "budget": "standard",
            "steps": 2000,
            "batch_size": 512,
            "rates": rates,
            "selection_seeds": [100, 101],
            "evaluation_seeds": list(range(seeds)),
            "architecture": {"hidden": [64] * 5, "blocks": 1, "activation": "softplus"},
            "optimizer": "adam",
            "schedule": "cosine",
            "selection": "validation",
            "command": f"convexlift compare {problem} --budget standard --out results/{problem}",
        },
        "arms": arms,
        "pairs": {
            f"lift-{name}": _pair(arms["lift"]["test"]["per_seed"], arms[name]["test"]["per_seed"])
            for name in arms
            if "lift" in arms and name != "lift"
        },
        "fixed_rate": {
            "lr": 0.001,
            "arms": {
                name: {
                    key: copy.deepcopy(arms[base][key]) for key in ("test", "emission_noise", "parameters")
                }
                for name, base in (
                    ("softplus", "softplus"),
                    ("lift", "lift"),
                    ("lift-reference", "lift"),
                    ("softplus-scattered", "softplus"),
                    ("softplus-multiplied", "softplus"),
                )
                if base in arms
            },
            "pairs": {},
        },
        "environment": {"python": "3.11", "torch": "2.13.0", "cores": 2, "date": "2026-01-02", "seed": 0},
        "seconds": 521.0,
    }


def _score(per_seed: list[float]) -> dict[str, Any]:
    mean = sum(per_seed) / len(per_seed)
    if len(per_seed) < 2:
        return {"mean": mean, "sem": None, "per_seed": per_seed}
    variance = sum((value - mean) ** 2 for value in per_seed) / (len(per_seed) - 1)
    return {"mean": mean, "sem": math.sqrt(variance / len(per_seed)), "per_seed": per_seed}


def _pair(first: list[float], second: list[float]) -> dict[str, Any]:
    score = _score([a - b for a, b in zip(first, second, strict=True)])
    if score["sem"] is None:
        return {"mean": score["mean"], "ci95": None, "n": 1}
    reach, rows = 2.78 * score["sem"], 0.02
    return {
        "mean": score["mean"],
        "ci95": [score["mean"] - reach, score["mean"] + reach],
        "n": len(first),
        "rows_ci95": [score["mean"] - rows, score["mean"] + rows],
    }
