"""The end of training: plain networks with fixed weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from convexlift.ambient import guarded


@guarded
def freeze(module: nn.Module, data: Any = None) -> Any:
    """The trained model as plain networks with fixed weights: one convex function, or one density.

    Every weight source in it emits once, from the training data where it is a lift, and gives way to the
    plain architecture; nothing in the result asks for a gradient. The smallest constrained weight is checked
    to be non-negative, now and whenever the result's ``state_dict`` is loaded.

    Args:
        module: an architecture, a weight source or a task.
        data: the training data; needed where the module holds a lift that has not settled.

    Raises:
        TypeError: the module cannot be frozen.
        ValueError: a lift without data, or a weight that is negative or not a number.

    Example:
        >>> import torch, convexlift as cl
        >>> lift = cl.Lift(cl.ICNN(2, hidden=(8, 8)))
        >>> type(freeze(lift, torch.randn(100, 2))).__name__
        'ICNN'
    """
    method = getattr(module, "freeze", None)
    if not callable(method):
        raise TypeError(f"expected an architecture, a weight source or a task; got {type(module).__name__}")
    return method(data)
