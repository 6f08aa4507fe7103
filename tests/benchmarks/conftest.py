"""The scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A study or timing by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "timings"))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "studies"))
    return importlib.import_module
