"""In which precision a callable can be looked at, and numbers in messages."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.testing.results import Function


def double(f: Any) -> Any:
    """A float64 copy of a module or of a potential; anything else as it is."""
    if isinstance(f, nn.Module):
        return copy.deepcopy(f).double()
    owner = getattr(f, "__self__", None)
    if isinstance(owner, nn.Module):
        return getattr(double(owner), f.__name__)
    tensors = getattr(f, "tensors", None)
    if dataclasses.is_dataclass(f) and not isinstance(f, type) and isinstance(tensors, Mapping):
        tensors = {name: t.detach().double() if t.is_floating_point() else t for name, t in tensors.items()}
        return dataclasses.replace(f, tensors=tensors)
    return f


def accepted_dtype(f: Function, x: Tensor, others: Iterable[Function] = ()) -> torch.dtype:
    """float64 if f and the others take it and make use of it, else float32; x (N, d) are points to try.

    Refuses an f that is not (N, d) -> (N,) by rows.
    """
    try:
        values = _differentiated(f, x)
        for other in others:
            other(x)
    except Exception:  # whatever float32 functions raise on float64 points; other faults return below
        x = x.float()
        values = f(x)
    if not isinstance(values, Tensor):
        raise TypeError(f"f must return a tensor; got {type(values).__name__}")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"f must return float32 or float64 values; got {values.dtype}")
    for rows, out in ((len(x), values), (1, f(x[:1]))):
        if out.shape != (rows,):
            sizes = [f"{size}" for size in out.shape]
            if sizes and out.shape[0] == rows:
                sizes[0] = "N"
            raise ValueError(f"expected (N,) values of f; got ({', '.join(sizes)}{',' * (len(sizes) == 1)})")
    dtype = torch.float32 if x.dtype == torch.float32 or _rounds(f, x) else values.dtype
    slack = (1e-9 if dtype == torch.float64 else 1e-4) * values.detach().abs().max()
    if bool((f(x[:1]) - values[:1]).abs() > slack):
        raise ValueError("f gives a point another value alone than in a batch: freeze it first")
    return dtype


def _differentiated(f: Function, x: Tensor) -> Any:
    """f(x), after its gradient was asked for, if it has one: some functions of mixed dtypes have none."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        values = f(x)
        if isinstance(values, Tensor) and values.requires_grad:
            torch.autograd.grad(values.sum(), x, allow_unused=True)
    return values


def _rounds(f: Function, x: Tensor) -> bool:
    """Whether f computes in single precision within: it does not see what double precision would."""
    x = torch.cat([x, 30 * x, 1000 * x])
    with torch.no_grad():
        values = f(x)
        unmoved, moved = (f(x * (1 + step)) == values for step in (1e-9, 0.5))
    seen = ~moved & values.isfinite()
    return bool(seen.any()) and bool(unmoved[seen].double().mean() > 0.5)


def digits(x: Tensor) -> str:
    """The first entries of a vector, for messages."""
    shown = [f"{entry:.4g}" for entry in x[:8].tolist()]
    return f"[{', '.join([*shown, '...'] if len(x) > 8 else shown)}]"
