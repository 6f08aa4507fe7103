"""Work in several processes: new ones with one thread each, which end with the process that began them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from convexlift.checks import check_count, check_device

K = TypeVar("K")
R = TypeVar("R")


def jobs_for(jobs: int | None, device: str = "cpu") -> int:
    """So many jobs at a time; by default one for each core, one on an accelerator.

    Raises:
        ValueError: an unknown device, or jobs that are not positive.

    >>> jobs_for(3)
    3
    """
    kind = check_device(device).type
    if jobs is not None:
        return check_count("jobs", jobs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if kind == "cpu" else 1


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes; leaving it ends their work at once, in the middle of it if need be.

    Every process computes with one thread, so results do not depend on how many there are.
    """
    context = multiprocessing.get_context("spawn")
    ends = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(ends[0],))
    try:
        yield pool
    finally:
        for end in ends:
            end.close()
        pool.shutdown(wait=True, cancel_futures=True)


def finished(
    pool: ProcessPoolExecutor, function: Callable[..., R], calls: Mapping[K, tuple[Any, ...]], died: str
) -> Iterator[tuple[K, R]]:
    """Each key with function(*arguments), as it is finished.

    Raises:
        RuntimeError: ``died``, where a process of the pool was killed.
    """
    try:
        futures = {pool.submit(function, *arguments): key for key, arguments in calls.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(died) from error


def _begin(lifeline: Connection) -> None:
    """Ctrl-C is the parent's affair; a worker leaves when the parent closes its end of the lifeline or is
    gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def leave() -> None:
        wait([lifeline])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
