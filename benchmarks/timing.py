"""Timing of several sides in one run: interleaved, so that a drifting machine is the same for all."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from convexlift.training.environment import environment

# What the profiler calls a matrix product.
_PRODUCTS = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::addmm_",
    "aten::baddbmm",
    "aten::mv",
    "aten::addmv",
}


def interleaved(
    sides: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each side, ``repeats`` times in turn: A B C A B C ..."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            _synchronise()
            started = time.perf_counter()
            side()
            _synchronise()
            times[name].append(1e3 * (time.perf_counter() - started))
    return times


def ratio(times: Mapping[str, list[float]], side: str, reference: str) -> float:
    """Median over rounds of side / reference."""
    return statistics.median(a / b for a, b in zip(times[side], times[reference], strict=True))


def matrix_rate(device: str, size: int = 1024) -> float:
    """Measured GFLOP/s of a square float32 matrix product, the best of many."""
    a = torch.randn(size, size, device=device)
    times = interleaved({"product": lambda: a @ a}, repeats=20)["product"]
    return 2 * size**3 / min(times) / 1e6


def matrix_seconds(side: Callable[[], object], repeats: int = 10) -> tuple[float, float]:
    """Seconds of one run spent in matrix products, and in all operations together, by the profiler."""
    side()
    with torch.profiler.profile() as profile:
        for _ in range(repeats):
            side()
    spent = {row.key: row.self_device_time_total or row.self_cpu_time_total for row in profile.key_averages()}
    products = sum(time for name, time in spent.items() if name in _PRODUCTS)
    return products / repeats / 1e6, sum(spent.values()) / repeats / 1e6


def peak_bytes(side: Callable[[], object]) -> int:
    """The most memory that a run holds at one time beyond what it found."""
    side()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        side()
        return torch.cuda.max_memory_allocated() - held
    with torch.profiler.profile(profile_memory=True) as profile:
        side()
    kineto: Any = profile.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser


def write(path: Path | None, command: str, result: dict[str, Any]) -> None:
    """Write a result with the command and the environment that made it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"command": command, **result, "environment": environment()}, indent=1) + "\n"
        )
        print(f"\nwritten to {path}")


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
