"""Denormal numbers are flushed in every thread while a network trains, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import sys
import torch
from torch import nn
import convexlift as cl
from convexlift.training.denormals import flushed

threads = int(sys.argv[1])
torch.set_num_threads(threads)
small = torch.full((1000, 1000), 1e-30)
square = torch.full((512, 512), 1e-21)


def alive():
    """How many denormal results survive, of a loop and of a matrix product that all threads share."""
    return int((small * 1e-10).count_nonzero()) + int((square @ square).count_nonzero())


everything = 1000 * 1000 + 512 * 512
if alive() != everything:
    sys.exit("denormals are flushed before anything is done")


seen, frozen, evaluated = [], [], []


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.full((300_000,), 1e-19))

    def loss(self, batch):
        (seen if self.training else frozen).append(alive())
        return (self.m.square() * 1e-5).sum() + self.m.sum() * 1e-39


def train(**more):
    for noted in (seen, frozen, evaluated):
        noted.clear()
    cl.fit(Probe(), torch.ones(4, 1), steps=4, lr=1e-30, evaluate_every=2, progress=False, batch_size=2,
           validation=torch.ones(4, 1), callbacks=[lambda event: evaluated.append(alive())], **more)
    assert seen == [0] * 4, seen


train()
assert set(frozen) == set(evaluated) == {everything}, (frozen, evaluated)
assert alive() == everything, alive()

# An error on the way gives the mode back, too.
class Fails(Probe):
    def loss(self, batch):
        raise LookupError

try:
    cl.fit(Fails(), torch.ones(4, 1), steps=4, progress=False)
except LookupError:
    pass
assert alive() == everything, alive()

# A caller who flushes in all threads, or in one alone, finds that again.
with flushed():
    train()
    assert alive() == 0
assert alive() == everything
torch.set_flush_denormal(True)
mixed = alive()
assert (mixed > 0) == (threads > 1)
train()
assert alive() == mixed, (alive(), mixed)
torch.set_flush_denormal(False)

if threads == 1:  # those that are started later
    with flushed():
        torch.set_num_threads(2)
        assert alive() == 0, alive()
print("done")
'''

FORKED = """
import os, sys, torch
from torch import nn
import convexlift as cl

torch.set_num_threads(2)
torch.full((1000, 1000), 1.0).mul(2.0)  # starts the second thread


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))

    def loss(self, batch):
        return (batch - self.m).square().mean()


cl.fit(Mean(), torch.ones(4, 2), steps=3, progress=False)
child = os.fork()
if child == 0:
    cl.fit(Mean(), torch.ones(4, 2), steps=3, progress=False)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


def run(program: str, *arguments: str, timeout: float = 100) -> str:
    source = str(Path(__file__).parents[2] / "src")
    told = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**told, "PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


linux = pytest.mark.skipif(sys.platform != "linux", reason="torch's other threads are reached with OpenMP")


@linux
@pytest.mark.parametrize("threads", ["1", "2", "4"])
def test_every_thread_flushes_in_training_and_nowhere_else(threads: str) -> None:
    assert run(PROGRAM, threads) == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_trains(tmp_path: Path) -> None:
    assert run(FORKED) == "done"


@linux
def test_where_other_threads_cannot_be_reached_the_calling_one_flushes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from convexlift.training import denormals

    monkeypatch.setattr(denormals, "_openmp_parallel", lambda: None)
    x = torch.tensor(1e-30)
    with denormals.flushed():
        assert (x * 1e-10).item() == 0.0
    assert (x * 1e-10).item() > 0.0
