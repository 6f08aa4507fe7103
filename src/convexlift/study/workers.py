"""Workers: cells run in this process or in several, and their outcomes stored as each is finished.

A cell computes with one thread, whatever else runs, so its result does not depend on how many run at once.
Its file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import final

from convexlift.files import write_json
from convexlift.processes import finished, jobs_for, processes
from convexlift.study.cells import Cell, Outcome, Setting, cell_path, read_outcome
from convexlift.study.training import train_cell


@final
class Workers:
    """Runs cells, with one job in this process, else in `jobs` new ones that live until `close`.

    Use it as a context manager; leaving it ends the cells in progress at once.

    Args:
        setting: what the cells share.
        folder: where outcomes are stored.
        jobs: cells at a time; by default one for each core, one on an accelerator.
        resume: take the outcomes that are stored already, or run those cells again too.

    Raises:
        ValueError: an unknown device, or jobs that are not positive.
        OSError: the folder cannot be written.
    """

    def __init__(self, setting: Setting, folder: Path, *, jobs: int | None, resume: bool = True) -> None:
        self.setting, self.folder, self.resume = setting, folder, resume
        self.jobs = jobs_for(jobs, setting.device)
        _check_writable(folder)
        self._pool: ProcessPoolExecutor | None = None
        self._open = ExitStack()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Yield every cell with its outcome as it becomes known, stored ones first.

        A cell that raises an error has the outcome {"status": "failed", "message": ...}, which is not stored,
        so that a later call runs it again.

        Raises:
            RuntimeError: a worker process died.
        """
        waiting: dict[Cell, Path] = {}
        for cell in dict.fromkeys(cells):
            path = cell_path(self.folder, self.setting, cell)
            outcome = read_outcome(path) if self.resume else None
            if outcome is None:
                waiting[cell] = path
            else:
                yield cell, outcome
        if self.jobs == 1:
            for cell, path in waiting.items():
                yield cell, _run_and_store(self.setting, cell, path)
        elif waiting:
            yield from self._run_in_processes(waiting)

    def close(self) -> None:
        """End the worker processes, in the middle of a cell if need be."""
        self._open.close()
        self._pool = None

    def _run_in_processes(self, cells: Mapping[Cell, Path]) -> Iterator[tuple[Cell, Outcome]]:
        if self._pool is None:
            self._pool = self._open.enter_context(processes(self.jobs))
        yield from finished(
            self._pool,
            _run_and_store,
            {cell: (self.setting, cell, path) for cell, path in cells.items()},
            "a worker process died (out of memory, or killed); in a script call compare under "
            "`if __name__ == '__main__':`, or pass jobs=1",
        )


def _check_writable(cells: Path) -> None:
    """Fail before hours of work, not after."""
    probe = cells / f".probe.{os.getpid()}"
    try:
        cells.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {cells.parent}: {error.strerror}") from None


def _run_and_store(setting: Setting, cell: Cell, path: Path) -> Outcome:
    try:
        outcome = train_cell(setting, cell)
    except Exception as error:  # any bug in an arm or a user's own code: reported, not fatal
        return {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    write_json(path, outcome)
    return outcome
