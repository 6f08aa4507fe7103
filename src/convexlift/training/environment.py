"""What a figure was computed with."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from convexlift.version import __version__


def environment() -> dict[str, Any]:
    """Return versions, hardware, threads and date, as plain values for JSON.

    Example:
        >>> sorted(environment())
        ['accelerator', 'convexlift', 'cores', 'cpu', 'date', 'python', 'threads', 'torch']
    """
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "convexlift": __version__,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
