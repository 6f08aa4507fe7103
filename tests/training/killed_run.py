"""Kills training runs, resumes them, and compares them with one that was left alone; for `test_resume.py`.

It is a program of its own because it forks: the processes that are killed need not import torch again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import convexlift as cl
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.training import fit

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -2.0])


class Toy(nn.Module):
    """What a resumed run must bring back: parameters, buffers, random losses, settling."""

    settle_at = 0.6

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.rand(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("settled", torch.tensor(0.0))

    def initialise(self, data: torch.Tensor) -> None:
        if not self.mean.any():
            self.mean.copy_(data.mean(0))

    def settle(self, data: torch.Tensor) -> None:
        self.settled += 1

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(batch.mean(0), 0.1)
            batch = batch + 0.1 * torch.randn_like(batch)
        return (batch - self.m - 0.1 * self.mean).square().mean() + self.settled * self.m.square().sum()


def seed_weights(folder: Path) -> None:
    """A run begins with the same weights; a resumed one owes nothing to those of the module it is given."""
    torch.manual_seed(os.getpid() if (folder / "state.pt").exists() else 0)


def train_toy(folder: Path, resume: bool) -> None:
    seed_weights(folder)
    fit(
        Toy(),
        DATA,
        validation=DATA[:10],
        steps=4,
        evaluate_every=2,
        batch_size=24,
        lr=0.05,
        run_dir=folder,
        resume=resume,
        progress=False,
    )


def train_flow(folder: Path, resume: bool) -> None:
    seed_weights(folder)
    flow = ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(8, 8))) for _ in range(2)])
    fit(
        flow,
        DATA,
        validation=DATA[:10],
        steps=24,
        evaluate_every=3,
        batch_size=24,
        clip=1.0,
        run_dir=folder,
        resume=resume,
        progress=False,
    )


def in_child(action: Callable[[], None]) -> int:
    """Start the action in a forked process and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException as error:
        sys.stderr.write(repr(error))
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def finished(child: int) -> bool:
    """Wait for the process and return whether it ended by itself; anything but that or a kill is an error."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(f"the run failed with status {status}")
    return True


def content(folder: Path) -> tuple[object, ...]:
    """What must be the same to the last bit: everything but times and the environment."""
    state = torch.load(folder / "state.pt", weights_only=True)
    del state["progress"]["seconds"], state["progress"]["history"]["seconds"]
    del state["progress"]["history"]["ms_per_step"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        del record["seconds"]
    result = json.loads((folder / "result.json").read_text())
    for key in ("seconds", "ms_per_step", "environment"):
        del result[key]
    return flat(state), metrics, result, (folder / "best.safetensors").read_bytes()


def flat(value: object) -> object:
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [flat(part) for part in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def count_calls(counted: Callable[[str, int], None]) -> None:
    """Announce every fsync and rename, with its number, just before it is made."""
    calls = 0

    def announced(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            counted(f"{name} {calls}", arguments[0])  # type: ignore[arg-type]
            return function(*arguments)

        return call

    os.fsync = announced("fsync", os.fsync)  # type: ignore[assignment]
    os.replace = announced("replace", os.replace)  # type: ignore[assignment]


def die_at(k: int) -> Callable[[str, int], None]:
    """Kill this process at its k-th call; at an fsync half of the file is lost, too."""

    def counted(call: str, handle: int) -> None:
        if call.endswith(f" {k}"):
            if call.startswith("fsync") and not os.path.isdir(f"/proc/self/fd/{handle}"):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return counted


def at_every_write(root: Path) -> int:
    """Kill the toy's run at each fsync and rename in turn; return how many there are."""
    finished(in_child(lambda: train_toy(root / "whole", resume=False)))
    wanted = content(root / "whole")
    k = 0
    while True:
        k += 1
        folder = root / f"write{k}"

        def doomed(k: int = k, folder: Path = folder) -> None:
            count_calls(die_at(k))
            train_toy(folder, resume=False)

        if finished(in_child(doomed)):
            return k - 1
        assert finished(in_child(lambda folder=folder: train_toy(folder, resume=True)))
        assert content(folder) == wanted, f"killed at write {k}"


def at_random_moments(root: Path, kills: int) -> int:
    """Kill a flow's run again and again, its writes slowed so that many kills fall into one."""
    finished(in_child(lambda: train_flow(root / "flow", resume=False)))
    moments = random.Random(0)
    folder, done = root / "killed", 0

    def slowed() -> None:
        count_calls(lambda call, handle: time.sleep(0.02))
        train_flow(folder, resume=True)

    while done < kills:
        child = in_child(slowed)
        time.sleep(moments.uniform(0.05, 0.35))
        os.kill(child, signal.SIGKILL)
        if finished(child):
            break
        done += 1
    assert finished(in_child(lambda: train_flow(folder, resume=True)))
    assert content(folder) == content(root / "flow"), f"after {done} kills"
    return done


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(Toy(), DATA, steps=1, progress=False)  # what torch imports late is imported once, before the forks
    root = Path(sys.argv[1])
    sys.stdout.write(f"{at_every_write(root)} {at_random_moments(root, kills=5)}")
