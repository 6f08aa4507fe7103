"""What makes a run repeat: seeds mixed from all that a draw depends on, own generators, and one thread.

Without a seed the library draws from torch's global generators, as torch's own modules do. With one it draws
from generators of its own, which travel in a context variable: threads do not see one another's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from numbers import Integral
from typing import Any, final

import torch
from torch import nn

from convexlift.checks import plain

# Modules of torch that a network of this library may hold, none of which draws anything after its start.
_QUIET: tuple[type[nn.Module], ...] = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_QUIET += (nn.Sequential, nn.Linear, nn.ReLU, nn.SiLU, nn.Softplus, nn.Identity)


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2**63) mixed from all the parts, e.g. ``seed_of(seed, "step", 12)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of` the parts."""
    return torch.Generator("cpu").manual_seed(seed_of(*parts))


@final
class _Stream:
    """Generators of our own, one for each device, seeded together: in a seed's place they draw the same."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made: dict[torch.device, torch.Generator] = {}

    def seed(self, seed: int) -> None:
        self._seed = seed
        for generator in self._made.values():
            generator.manual_seed(seed)

    def on(self, device: torch.device) -> torch.Generator:
        if device not in self._made:
            self._made[device] = torch.Generator(device).manual_seed(self._seed)
        return self._made[device]

    def copy(self) -> _Stream:
        copied = _Stream(self._seed)
        copied._made = {device: generator.clone_state() for device, generator in self._made.items()}
        return copied


_STREAM: ContextVar[_Stream | None] = ContextVar("stream", default=None)


def generator_on(device: torch.device | str = "cpu", seed: int | None = None) -> torch.Generator | None:
    """The generator to draw from: a seed's own, else the one in force, else None for torch's global one.

    Raises:
        TypeError: the seed is not a whole number.

    Example:
        >>> generator_on() is None
        True
        >>> with seeded(3):
        ...     inside = torch.rand(2, generator=generator_on())
        >>> torch.equal(inside, torch.rand(2, generator=generator_on(seed=3)))
        True
    """
    if seed is not None:
        return torch.Generator(device).manual_seed(_whole(seed))
    if torch.compiler.is_compiling():
        return None  # a compiled program draws from torch's own
    stream = _STREAM.get()
    return None if stream is None else stream.on(torch.device(device))


def fresh_seed() -> int:
    """A seed drawn from the generator in force, for what was given none."""
    return int(torch.randint(2**62, (), generator=generator_on(), device="cpu"))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let what this library draws without a seed come from a generator with this one; None changes nothing.

    Torch's global generator is neither read nor moved.

    Example:
        >>> with seeded(0):
        ...     one = torch.randn(2, generator=generator_on())
        >>> with seeded(0):
        ...     torch.equal(one, torch.randn(2, generator=generator_on()))
        True
    """
    if seed is None:
        yield
        return
    with _in_force(_Stream(_whole(seed))):
        yield


@contextmanager
def drawing_apart(module: nn.Module, *, globally: bool = False) -> Iterator[None]:
    """Let a module draw apart from the caller's random numbers, which are left as they are; see ``reseed``.

    A module of this library draws from generators of its own. Parts of other origin know torch's global ones
    only: then, and where ``globally`` says so, all draw from those, which are put back at the end. No other
    thread should draw from them meanwhile.
    """
    if not globally and all(_draws_with_us(part) for part in module.modules()):
        with seeded(0):
            yield
        return
    tensors = [*module.parameters(), *module.buffers()]
    with (
        _in_force(None),
        torch.random.fork_rng(devices={tensor.device for tensor in tensors if tensor.is_cuda}),
    ):
        yield


def reseed(device: torch.device, *parts: object) -> None:
    """Seed what a module on this device draws from by `seed_of` the parts; inside ``drawing_apart``."""
    seed, stream = seed_of(*parts), _STREAM.get()
    if stream is not None:
        stream.seed(seed)
        return
    torch.default_generator.manual_seed(seed)  # quicker than torch.manual_seed
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def replaying() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What ``torch.utils.checkpoint`` takes as ``context_fn``: draws are the same when it computes again."""
    stream = _STREAM.get()
    return nullcontext(), nullcontext() if stream is None else _in_force(stream.copy())


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A ``torch.nn.Linear`` with its own start, drawn in float32 from the generator in force.

    >>> with seeded(0):
    ...     layer = linear(3, 2)
    >>> layer.weight.shape, bool((layer.weight.abs() <= 3**-0.5).all())
    (torch.Size([2, 3]), True)
    """
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device="cpu", dtype=torch.float32)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator_on())
    nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator_on())
    return layer


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


@contextmanager
def _in_force(stream: _Stream | None) -> Iterator[None]:
    token = _STREAM.set(stream)
    try:
        yield
    finally:
        _STREAM.reset(token)


def _draws_with_us(part: nn.Module) -> bool:
    return type(part).__module__.partition(".")[0] == "convexlift" or type(part) in _QUIET


def _whole(seed: Any) -> int:
    number = plain(seed)
    if not isinstance(number, Integral):
        raise TypeError(f"seed must be an int; got {seed!r}")
    return int(number)
