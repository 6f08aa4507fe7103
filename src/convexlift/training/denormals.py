"""Denormal numbers, flushed to zero while a network trains: many processors compute with them very slowly."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# A forked process has none of its parent's other threads, and asking for them would wait for ever.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def flushed() -> Iterator[None]:
    """Take numbers below the smallest normal one (1.2e-38 in float32) for zero, in all of torch's threads.

    As a small table is overfitted, units saturate: gradients, Adam's moments and squared weights underflow,
    and on processors that compute with denormals in microcode a step takes ten times as long. Every thread
    gets back the mode that it had. Threads other than the calling one are reached where torch computes with
    OpenMP, as on Linux; where a processor has no such mode, nothing changes.

    Example:
        >>> x = torch.tensor(1e-30)
        >>> with flushed():
        ...     bool(x * 1e-10 == 0)
        True
        >>> bool(x * 1e-10 == 0)
        False
    """
    before: dict[int, bool] = {}
    own = _flushes()

    def flush() -> None:
        before[threading.get_ident()] = _flushes()
        torch.set_flush_denormal(True)

    _in_every_thread(flush)
    try:
        yield
    finally:
        _in_every_thread(lambda: torch.set_flush_denormal(before.get(threading.get_ident(), own)))


def _flushes() -> bool:
    """Whether this thread takes denormals for zero now."""
    return sys.float_info.min * 0.5 == 0.0


def _in_every_thread(action: Callable[[], object]) -> None:
    """Call a function in the calling thread and in each of those with which torch computes for it."""
    threads, parallel = torch.get_num_threads(), None if _forked else _openmp_parallel()
    if threads == 1 or parallel is None:
        action()  # threads that are started later inherit the mode of this one
    else:
        parallel(_Call(lambda _: action()), None, threads, 0)


_Call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp_parallel() -> Any:
    """The function with which OpenMP code calls another in each of its threads, of the library torch uses."""
    try:
        return ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
