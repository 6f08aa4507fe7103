from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_run.py")
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert done.returncode == 0, done.stderr
    writes, kills = map(int, done.stdout.split())
    assert writes > 15 and kills >= 1
