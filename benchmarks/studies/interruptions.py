"""Runs that are killed, or that find the file system full: whether they go on to the same end, bit for bit.

    python benchmarks/studies/interruptions.py --out results/interruptions.json

`convexlift train flow` is called in a forked process (so that torch is imported once) and sent SIGKILL at a
random moment, up to six times a run, its writes slowed down so that many kills fall into one; then the same
command with --resume has to end as a run does that was left alone: the same model, checkpoint, metrics and
result, but for times. Then the same command runs on a real file system of so many KiB, a tmpfs that is made
in a user namespace of its own; when it is full the message has to say so, and once there is room the run has
to end alike. It exits with 1 where one does not. Needs Linux; `--sizes 0` leaves the file systems out.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import timing

from convexlift.cli.main import main as convexlift

STEPS = 60
PHASES = ("starting", "training", "in a write", "concluding")
FULL = "No space left on device; the last complete checkpoint stands"


def call(root: Path, folder: Path) -> list[str]:
    """The command."""
    how = ["--steps", str(STEPS), "--hidden", "8", "--depth", "2", "--batch-size", "32", "--patience", "none"]
    return ["train", "flow", "--data", str(root / "rows.csv"), "--out", str(folder), *how, "--resume"]


def write_rows(root: Path) -> None:
    rows = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)).exp()
    lines = [",".join(f"{value:.6g}" for value in row) for row in rows.tolist()]
    (root / "rows.csv").write_text("\n".join(["a,b", *lines]) + "\n")


class Child:
    """The command in a forked process, which notes in shared memory what it is at; its stderr is kept."""

    def __init__(self, root: Path, folder: Path, slowed: float = 0.0) -> None:
        self.phase = mmap.mmap(-1, 1)
        self.said = root / "stderr"
        self.id = os.fork()
        if self.id == 0:
            code = 1
            with open(self.said, "w") as stream, contextlib.redirect_stderr(stream):
                with contextlib.redirect_stdout(io.StringIO()):
                    note_phases(self.phase, slowed)
                    code = convexlift(call(root, folder))
            os._exit(code)

    def kill(self) -> str:
        """Send SIGKILL; what it was at."""
        os.kill(self.id, signal.SIGKILL)
        return PHASES[self.phase[0]]

    def end(self) -> tuple[int | None, str]:
        """Wait for it: the exit code, None after a kill, and what it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
        return None if code == -signal.SIGKILL else code, self.said.read_text()


def note_phases(phase: mmap.mmap, slowed: float) -> None:
    """Note in the first byte what the process is at; every call of a write takes so much longer."""

    def noted(
        function: Callable[..., Any], during: int, after: int | None, pause: float
    ) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            before = phase[0]
            phase[0] = during
            time.sleep(pause)
            found = function(*arguments, **options)
            phase[0] = before if after is None else after
            return found

        return instead

    os.fsync = noted(os.fsync, 2, None, slowed)
    os.replace = noted(os.replace, 2, None, slowed)
    adam: Any = torch.optim.Adam
    adam.step = noted(adam.step, 1, 1, 0.0)
    from convexlift.cli.train import Training

    training: Any = Training
    training.conclude = noted(training.conclude, 3, 3, 0.0)


def content(folder: Path) -> dict[str, Any]:
    """What must be the same to the last bit: everything but times and the environment."""
    state = torch.load(folder / "state.pt", weights_only=True)
    for part in (state["progress"], state["progress"]["history"]):
        del part["seconds"]
    del state["progress"]["history"]["ms_per_step"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    for record in [result, *metrics]:
        for name in ("seconds", "ms_per_step", "environment"):
            record.pop(name, None)
    files = {name: (folder / name).read_bytes() for name in ("best.safetensors", "model.safetensors")}
    names = sorted(path.name for path in folder.iterdir())
    return {"state": plain(state), "metrics": metrics, "result": result, "names": names, **files}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def killed_runs(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """So many kills in as many runs as they take; how the runs ended."""
    moments = random.Random(seed)
    started = time.perf_counter()
    Child(root, root / "whole").end()
    fast = time.perf_counter() - started
    wanted = content(root / "whole")
    found: dict[str, Any] = {
        "kills": 0,
        "by_phase": dict.fromkeys(PHASES, 0),
        "runs": 0,
        "same": 0,
        "said": [],
    }
    while found["kills"] < kills:
        folder = root / f"run{found['runs']}"
        for _ in range(moments.randint(1, 6)):
            slowed = moments.choice((0.0, 0.01))
            child = Child(root, folder, slowed)
            time.sleep(moments.uniform(0.0, fast if slowed == 0 else 2.0 * fast))
            phase = child.kill()
            code, said = child.end()
            if code is None and found["kills"] < kills:
                found["kills"] += 1
                found["by_phase"][phase] += 1
            elif code:
                found["said"].append(said)
        code, said = Child(root, folder).end()
        found["runs"] += 1
        if code == 0 and content(folder) == wanted:
            found["same"] += 1
        else:
            found["said"].append(f"run {found['runs'] - 1}: {said or 'it ended otherwise'}")
        shutil.rmtree(folder)
    return found


@contextlib.contextmanager
def file_system(root: Path) -> Iterator[Path]:
    """A small file system of its own, empty at first."""
    place = root / "small"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def full_file_systems(root: Path, sizes: list[int]) -> dict[str, Any]:
    """A run in a file system of each size, and again once there is room; how the runs ended."""
    if not (root / "whole").exists():
        Child(root, root / "whole").end()
    wanted = content(root / "whole")
    found: dict[str, Any] = {"sizes": sizes, "filled": 0, "told": 0, "same": 0, "said": []}
    for size in sizes:
        with file_system(root) as place:
            folder = place / "run"
            subprocess.run(["mount", "-o", f"remount,size={size}k", place], check=True)
            code, said = Child(root, folder).end()
            if code:
                found["filled"] += 1
                message = said.strip()
                begun = "cannot make the folder" in message or "cannot write" in message
                found["told"] += begun and "No space left on device" in message and "\n" not in message
                found["said"] += [] if "No space left on device" in message else [f"{size} KiB: {message}"]
            subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
            code, said = Child(root, folder).end()
            if code == 0 and content(folder) == wanted:
                found["same"] += 1
            else:
                found["said"].append(f"{size} KiB, with room again: {said or 'it ended otherwise'}")
    return found


def in_own_namespace(options: Any) -> dict[str, Any] | None:
    """`full_file_systems` in a process that may mount; None where none may."""
    if not options.sizes or shutil.which("unshare") is None:
        return None
    asked = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, __file__]
    done = subprocess.run(
        [*asked, "--sizes", str(options.sizes), "--within"], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {"impossible": done.stderr.strip()[-300:]}


def table_interruptions(result: timing.Result) -> str:
    """How many kills and full file systems there were, and how many runs ended as one left alone."""
    killed, full = result["killed"], result["full"] or {}
    phases = ", ".join(f"{count} {phase}" for phase, count in killed["by_phase"].items())
    rows = [[f"{killed['kills']} times SIGKILL ({phases})", str(killed["runs"]), str(killed["same"])]]
    if "filled" in full:
        what = f"a file system of {min(full['sizes'])} to {max(full['sizes'])} KiB"
        count = str(len(full["sizes"]))
        rows.append([f"{what}, full in {full['filled']} of {count}", count, str(full["same"])])
    return timing.markdown(("what happened", "runs", "ended bit for bit as if it had not"), rows)


def main() -> int:
    parser = timing.arguments(__file__, __doc__, kills=200, sizes=40, seed=0)
    parser.add_argument(
        "--within", action="store_true", help="in a process that may mount: file systems alone"
    )
    options = timing.parsed(parser)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_rows(root)
        with contextlib.redirect_stdout(io.StringIO()):
            convexlift(call(root, root / "warm"))  # all that is imported late is imported before the forks
        if options.within:
            print(json.dumps(full_file_systems(root, [4 * k for k in range(1, options.sizes + 1)])))
            return 0
        killed = killed_runs(root, options.kills, options.seed)
    full = in_own_namespace(options)
    result = {
        **timing.given(options, "kills", "sizes", "seed"),
        "steps": STEPS,
        "killed": killed,
        "full": full,
    }
    timing.write(options, result, table_interruptions)
    for part in (killed, full or {}):
        for said in part.get("said", []):
            print(said, file=sys.stderr)
    fine = killed["same"] == killed["runs"] and not killed["said"]
    if full and "filled" in full:
        fine &= full["same"] == len(full["sizes"]) and full["told"] == full["filled"]
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
