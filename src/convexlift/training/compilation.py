"""The loss through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same function through ``torch.compile``, for batches of one shape; compiled when first called."""
    return torch.compile(loss, dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where what ``torch.compile`` calls is missing.

    Raises:
        RuntimeError: there is no C++ compiler, or for a GPU no Triton.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "compile=True needs a C++ compiler and found none: install g++ or clang++, or name one in CXX"
        ) from error
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise RuntimeError("compile=True needs Triton on a GPU and found none: pip install triton")
