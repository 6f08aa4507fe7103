"""Which files a value passes through: a row of a CSV file on its way to the loss, a cell of a comparison.

    python scripts/walk.py [row|cell]

A file counts when one of its functions receives or returns the value: alone, or as what a tuple, a list, a
mapping or a dataclass holds. Calculus is left out, and so is the decorator of public entries. A row is
followed from ``convexlift train flow`` until the first loss returns; any table as long as the file, its
training part or a batch carries it. A cell is followed from ``convexlift compare`` until its outcome is
stored; the ``Cell`` or its outcome carries it.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import convexlift

PACKAGE = Path(convexlift.__file__).parent
FILE_ROWS, HELD_OUT, BATCH = 101, 10, 37


@dataclass
class Walk:
    """The files that the value passed, in order, and every call from one file of the package to another."""

    files: list[str] = field(default_factory=list)
    calls: set[tuple[str, str]] = field(default_factory=set)


class _Arrived(BaseException):
    """The walk is over; no handler of errors holds it up."""


def walk(
    run: Callable[[], object], carries: Callable[[object], bool], last: Callable[[FrameType, Any], bool]
) -> Walk:
    """Follow a value until the function for which ``last`` holds returns."""
    seen = Walk()

    def look(frame: FrameType, event: str, given: Any) -> None:
        place = _place(frame)
        if event not in ("call", "return") or place is None:
            return
        if event == "call" and (caller := _caller(frame)) not in (None, place):
            seen.calls.add((str(caller), place))
        values = list(frame.f_locals.values()) if event == "call" else [given]
        if place not in seen.files and not place.startswith("calculus/") and any(map(carries, values)):
            seen.files.append(place)
        if event == "return" and last(frame, given):
            sys.setprofile(None)
            raise _Arrived

    sys.setprofile(look)
    try:
        run()
    except _Arrived:
        return seen
    finally:
        sys.setprofile(None)
    raise RuntimeError("the value did not arrive")


def _place(frame: FrameType) -> str | None:
    """The file of a function of the package; None elsewhere, and for the body of a class or module."""
    return _inside(frame.f_code.co_filename) if frame.f_code.co_flags & inspect.CO_OPTIMIZED else None


@cache
def _inside(file: str) -> str | None:
    place = Path(file).relative_to(PACKAGE).as_posix() if Path(file).is_relative_to(PACKAGE) else None
    return None if place == "ambient.py" else place  # it stands around functions of all files


def _caller(frame: FrameType) -> str | None:
    """The file of the package whose function called, through whatever stands between."""
    above = frame.f_back
    while above is not None and _inside(above.f_code.co_filename) is None:
        above = above.f_back
    return None if above is None else _place(above)  # None too where a class or module is being made


def held(value: object) -> Iterator[object]:
    """The value, and what it holds directly."""
    yield value
    if isinstance(value, tuple | list):
        yield from value
    elif isinstance(value, Mapping):
        yield from (*value.keys(), *value.values())
    elif dataclasses.is_dataclass(value):
        yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))


def walk_of_a_row() -> Walk:
    """From ``convexlift train flow --data rows.csv`` to the return of the first loss."""
    from convexlift.cli.main import main

    sizes = {FILE_ROWS, FILE_ROWS - HELD_OUT, BATCH}

    def carries(value: object) -> bool:
        shapes = [getattr(part, "shape", None) for part in held(value)]
        return any(isinstance(shape, tuple) and shape[:1] and shape[0] in sizes for shape in shapes)

    draw = random.Random(0)
    lines = [",".join(f"{draw.gauss(0, 1):.4f}" for _ in "abc") for _ in range(FILE_ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.csv").write_text("\n".join(["a,b,c", *lines]), encoding="utf-8")
        options = f"--hidden 8 --depth 2 --steps 2 --batch-size {BATCH}".split()
        command = ["train", "flow", "--data", f"{folder}/rows.csv", "--out", f"{folder}/run", *options]

        def is_loss(frame: FrameType, given: object) -> bool:
            return frame.f_code.co_qualname == "ConvexPotentialFlow.loss"

        return walk(lambda: main(command), carries, is_loss)


def walk_of_a_cell() -> Walk:
    """From ``convexlift compare gumbel`` to its first cell's stored outcome."""
    from convexlift.cli.main import main
    from convexlift.study.cells import Cell

    def is_outcome(value: object) -> bool:
        return isinstance(value, dict) and "cell" in value and "status" in value

    def carries(value: object) -> bool:
        return any(isinstance(part, Cell) or is_outcome(part) for part in held(value))

    def is_stored(frame: FrameType, given: object) -> bool:
        return frame.f_code.co_name == "write_json" and is_outcome(frame.f_locals.get("value"))

    with tempfile.TemporaryDirectory() as folder:
        options = "--arms softplus --rates 0.01 --seeds 1 --jobs 1".split()
        return walk(lambda: main(["compare", "gumbel", "--out", folder, *options]), carries, is_stored)


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["row", "cell"]
    for name in chosen:
        files = {"row": walk_of_a_row, "cell": walk_of_a_cell}[name]().files
        sys.stdout.write(f"a {name} passes through {len(files)} files: {', '.join(files)}\n")
