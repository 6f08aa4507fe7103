"""What a caller's torch may be set to, and the library computes without: autocast, default devices, modes.

Every public entry is guarded: inside, autocast is off, float32 products are whole, factories make tensors on
the CPU unless told otherwise, and tensors are no inference tensors, so that models made or trained here work
elsewhere. Whether gradients are asked for is left to the caller, but where training needs them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, final, overload

import torch

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

_DTYPE: ContextVar[torch.dtype | None] = ContextVar("dtype of new networks", default=None)


@contextmanager
def guard(*, training: bool = False, making: bool = False) -> Iterator[None]:
    """Compute for a while as if torch were as it is at import.

    Args:
        training: gradients are recorded, whatever the caller's mode.
        making: new modules go to the caller's default device, unless that is "meta", which holds no numbers.

    Example:
        >>> a = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), guard():
        ...     (a @ a).dtype
        torch.float32
    """
    with ExitStack() as stack:
        for kind in _autocasting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if training:
            stack.enter_context(torch.enable_grad())
        device = torch.get_default_device().type
        if device == "meta" or (device != "cpu" and not making):
            stack.enter_context(torch.device("cpu"))
        if torch.get_float32_matmul_precision() != "highest":
            stack.enter_context(_WHOLE_PRODUCTS)
        yield


@overload
def guarded(function: F, /, *, training: bool = False, making: bool = False) -> F: ...
@overload
def guarded(*, training: bool = False, making: bool = False) -> Callable[[F], F]: ...
def guarded(function: Any = None, *, training: bool = False, making: bool = False) -> Any:
    """Run a function inside ``guard``, which costs nothing where torch is as it is at import; a decorator.

    Example:
        >>> @guarded
        ... def product(a):
        ...     return a @ a
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.ones(2, 2)).dtype
        torch.float32
    """
    if function is None:
        return functools.partial(guarded, training=training, making=making)

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
                return function(*args, **kwargs)
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return function(*args, **kwargs)
        if not _ambient(training):
            return function(*args, **kwargs)
        with guard(training=training, making=making):
            return function(*args, **kwargs)

    return inside


@contextmanager
def new_networks_in(dtype: torch.dtype) -> Iterator[None]:
    """Make new networks in this dtype for a while, whatever torch's default is."""
    token = _DTYPE.set(dtype)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def new_dtype() -> torch.dtype:
    """The dtype of a new network: torch's default, unless ``new_networks_in`` says another."""
    return _DTYPE.get() or torch.get_default_dtype()


def guard_methods(kind: C) -> C:
    """Guard the constructor, ``forward`` and the public methods that a class defines; a class decorator."""
    for name, member in list(vars(kind).items()):
        making = name == "__init__"
        if not making and name.startswith("_"):
            continue
        if isinstance(member, classmethod):
            setattr(kind, name, classmethod(guarded(member.__func__, making=making)))
        elif callable(member) and not isinstance(member, type | staticmethod):
            setattr(kind, name, guarded(member, making=making))
    return kind


def _ambient(training: bool) -> bool:
    """Whether there is anything to guard against; a fraction of a microsecond."""
    return (
        torch._C._is_any_autocast_enabled()
        or torch.is_inference_mode_enabled()
        or torch._C._len_torch_function_stack() > 0
        or torch.get_float32_matmul_precision() != "highest"
        or (training and not torch.is_grad_enabled())
    )


def _autocasting() -> list[str]:
    kinds = {"cpu", "cuda", *([found.type] if (found := torch.accelerator.current_accelerator()) else [])}
    return [kind for kind in sorted(kinds) if torch.is_autocast_enabled(kind)]


@final
class _WholeProducts:
    """Float32 products in float32, while anybody is inside: torch keeps one setting for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = "highest"

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.set_float32_matmul_precision(self._before)


_WHOLE_PRODUCTS = _WholeProducts()
