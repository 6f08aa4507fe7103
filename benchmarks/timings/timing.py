"""Timing of several sides in one run, interleaved, so that a drifting machine is the same for all.

Also the options, results and tables of all scripts, those of the studies too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convexlift.files import write_whole
from convexlift.training.environment import environment

Result = Mapping[str, Any]
Side = Callable[[], object]

_UNTOLD = ("help", "out", "figure", "figures")  # options that change no figure
# What the profiler calls a matrix product.
_PRODUCTS = {f"aten::{name}" for name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "addmv")}


def interleaved(sides: Mapping[str, Side], repeats: int, warmup: int = 3) -> dict[str, list[float]]:
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


def matrix_seconds(side: Side, repeats: int = 10) -> tuple[float, float]:
    """Seconds of one run spent in matrix products, and in all operations together, by the profiler."""
    side()
    with torch.profiler.profile() as profile:
        for _ in range(repeats):
            side()
    spent = {row.key: row.self_device_time_total or row.self_cpu_time_total for row in profile.key_averages()}
    products = sum(time for name, time in spent.items() if name in _PRODUCTS)
    return products / repeats / 1e6, sum(spent.values()) / repeats / 1e6


def peak_bytes(side: Side) -> int:
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


def arguments(script: str, doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring: an option for every default, and ``--out``."""
    form, file = argparse.RawDescriptionHelpFormatter, Path(script)
    prog = f"python benchmarks/{file.parent.name}/{file.name}"
    parser = argparse.ArgumentParser(prog, description=doc, formatter_class=form)
    for name, value in defaults.items():
        shown = "default: %(default)s"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=shown)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser


def parsed(parser: argparse.ArgumentParser, line: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with the ``command`` that runs the script like this again; ``threads`` (or one) are set.

    The command names no files: a path is told by its option.
    """
    options = parser.parse_args(line)
    torch.set_num_threads(getattr(options, "threads", 1))
    told = [parser.prog]
    for action in sorted(parser._actions, key=lambda action: action.option_strings):
        values, default = (
            [*each] if isinstance(each, list | tuple) else [each]
            for each in (vars(options).get(action.dest), action.default)
        )
        if values != default and action.dest not in _UNTOLD:
            words = [action.dest.upper() if isinstance(v, Path) else shlex.quote(str(v)) for v in values]
            told += [*action.option_strings[-1:], *(words if action.nargs != 0 else [])]
    options.command = " ".join(told)
    return options


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those options by name, as a result records them."""
    return {name: getattr(options, name) for name in names}


def write(options: argparse.Namespace, result: Result, *tables: Callable[[Result], str]) -> None:
    """Print tables of a result, and write it with its command and environment, whole or not at all."""
    for table in tables:
        print(table(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"command": options.command, **result, "environment": environment()}
        write_whole(options.out, (json.dumps(about, indent=1) + "\n").encode())
        print(f"written to {options.out}")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def columns(rows: Iterable[Result], cells: Mapping[str, str | Callable[[Any], str]]) -> str:
    """A table with a line for every row; its columns are formats of the row's figures, or functions."""
    forms = [form.format_map if isinstance(form, str) else form for form in cells.values()]
    return markdown(tuple(cells), ([form(row) for form in forms] for row in rows))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
