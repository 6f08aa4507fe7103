"""What makes a run repeat: seeds mixed from all that a draw depends on, and one thread."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2**63) mixed from all the parts, e.g. ``seed_of(seed, "step", 12)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(device: torch.device, *parts: object) -> None:
    """Seed the global generators that a module on this device draws from (quicker than torch.manual_seed)."""
    torch.default_generator.manual_seed(seed_of(*parts))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed_of(*parts))


def generator_of(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of` the parts."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's global CPU generator as if just seeded, and leave it as it was; None changes nothing.

    Example:
        >>> with seeded(0):
        ...     one = torch.randn(2)
        >>> with seeded(0):
        ...     torch.equal(one, torch.randn(2))
        True
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for a while, so that the bits do not depend on how many there are.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
