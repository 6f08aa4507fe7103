"""Type checkers see what programs of somebody else's use; `scripts/smoke` runs these against the wheel."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convexlift

HERE = Path(__file__).parent
PACKAGE = Path(convexlift.__file__).parent
PROGRAMS = ("core.py", "extras.py")
PARTS = "architectures mechanism objectives plots problems sources study tasks tensorboard testing training"


def mypy(*files: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What mypy says of files that import the package, without this repository's settings."""
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={cwd / 'cache'}"]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, files)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent)},
        check=False,
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_programs_are_typed_and_no_public_name_is_untyped(tmp_path: Path) -> None:
    names = tmp_path / "names.py"
    parts = {part: importlib.import_module(f"convexlift.{part}") for part in PARTS.split()}
    used = [f"convexlift.{name}" for name in convexlift.__all__]
    used += [f"convexlift.{part}.{name}" for part, module in parts.items() for name in module.__all__]
    lines = ["import convexlift", *(f"import convexlift.{part}" for part in PARTS.split())]
    names.write_text("\n".join([*lines, *(f"reveal_type({name})" for name in used)]), encoding="utf-8")
    done = mypy(*(HERE / program for program in PROGRAMS), names, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    seen = re.findall(r'^names.py:(\d+): note: Revealed type is "(.*)"$', done.stdout, re.MULTILINE)
    assert len(seen) == len(used)
    untyped = [used[int(line) - len(lines) - 1] for line, kind in seen if re.search(r"^Any$|\| Any$", kind)]
    assert untyped == []
