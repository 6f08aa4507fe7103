"""A few real SIGKILLs and full file systems; the study of them does hundreds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, kills and mounts as Linux does")


def study(tmp_path: Path, *options: str) -> dict[str, Any]:
    script, out = ROOT / "benchmarks" / "studies" / "interruptions.py", tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(script), *options, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_runs_that_are_killed_end_as_one_left_alone(tmp_path: Path) -> None:
    killed = study(tmp_path, "--kills", "5", "--sizes", "0")["killed"]
    assert killed["kills"] == sum(killed["by_phase"].values()) == 5
    assert killed["same"] == killed["runs"] > 1 and killed["said"] == []


def test_runs_that_find_the_file_system_full_end_as_one_left_alone(tmp_path: Path) -> None:
    mounts = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "tmpfs",
        str(tmp_path),
    ]
    if shutil.which("unshare") is None or subprocess.run(mounts, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system")
    full = study(tmp_path, "--kills", "0", "--sizes", "3")["full"]
    assert full["filled"] == full["told"] > 0
    assert full["same"] == len(full["sizes"]) == 3 and full["said"] == []
