"""Are all weights that must be non-negative so?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.testing.results import CheckFailed, NonnegativeResult


@guarded
def check_nonnegative(
    weights: nn.Module | Mapping[str, Tensor] | Any, names: Sequence[str] | None = None
) -> NonnegativeResult:
    """Check that no weight that must be non-negative is negative or NaN.

    Args:
        weights: an architecture (its ``nonnegative`` names say which), a ``Potential``, any module that holds
            some of these, such as a frozen task, or a dict of tensors, all of which are then checked.
            A weight source is checked by what it emits.
        names: the tensors to check instead, by their names in the module's ``state_dict`` or the dict; needed
            for a module of your own.

    Raises:
        CheckFailed: with the name, place and value of the smallest weight.
        ValueError: there is no tensor of such a name, or nothing to check was found.
        TypeError: something else than a module, a potential or a dict of tensors.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(3, 2)
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(1.0)[1, 2] = -0.25
        >>> check_nonnegative(net, names=["weight"])
        Traceback (most recent call last):
        ...
        convexlift.testing.results.CheckFailed: 'weight' must be non-negative; it is -0.25 at (1, 2)
    """
    checked, worst = 0, None
    for name, tensor in _constrained(weights, names):
        flat = tensor.detach().flatten()
        checked += flat.numel()
        if not flat.numel():
            continue
        # argmin takes a NaN for the smallest.
        place = int(flat.argmin())
        value = float(flat[place])
        if worst is None or not value >= worst[0]:
            worst = value, name, tuple(map(int, np.unravel_index(place, tensor.shape)))
            if math.isnan(value):
                break
    if worst is None:
        raise ValueError("found no weights that are declared non-negative; pass names=")
    value, name, index = worst
    result = NonnegativeResult(value >= 0, value, name, index, checked)
    if not result.nonnegative:
        where = f" at {index}" if index else ""
        raise CheckFailed(f"{name!r} must be non-negative; it is {value:g}{where}", result)
    return result


def _constrained(weights: Any, names: Sequence[str] | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weights, Mapping):
        yield from _pick(weights, weights if names is None else names)
    elif isinstance(weights, nn.Module):
        if names is not None:
            yield from _pick(weights.state_dict(keep_vars=True), names)
        else:
            yield from _declared(weights, "")
    elif hasattr(weights, "tensors") and hasattr(weights, "architecture"):
        yield from _pick(weights.tensors, weights.architecture.nonnegative if names is None else names)
    else:
        raise TypeError(f"expected a module, a potential or a dict of tensors; got {type(weights).__name__}")


def _declared(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The constrained weights of the architectures, and of what the weight sources emit, in a module."""
    if hasattr(module, "nonnegative"):
        yield from _pick(dict(module.named_parameters()), module.nonnegative, prefix)
    elif hasattr(module, "emit") and hasattr(module, "names"):
        yield from _pick(module.emit().tensors, module.names, prefix)
    else:
        for name, child in module.named_children():
            yield from _declared(child, f"{prefix}{name}.")


def _pick(
    tensors: Mapping[str, Tensor], names: Sequence[str] | Mapping[str, Tensor], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        if name not in tensors:
            raise ValueError(f"no tensor is named {name!r}; there are: {', '.join(tensors)}")
        yield prefix + name, tensors[name]
