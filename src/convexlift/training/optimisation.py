"""Parameter groups, optimisers, weight decay, learning-rate schedules and clipping, as `fit` uses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from convexlift.sources import WeightSource

Group = dict[str, Any]
OptimizerChoice = str | Callable[[list[Group]], torch.optim.Optimizer]
Schedule = str | Callable[[float], float]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


def parameter_groups(module: nn.Module) -> list[Group]:
    """Return the trainable parameters as the groups "source" and "free", leaving out an empty one.

    "source" holds what weight sources own outside their architecture (latents, a lift's slack and body),
    "free" the rest.
    """
    sourced = set()
    for source in module.modules():
        if isinstance(source, WeightSource):
            free = {id(p) for p in source.architecture.parameters()}
            sourced |= {id(p) for p in source.parameters()} - free
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the module has no trainable parameters")
    groups = [
        {"name": "source", "params": [p for p in trainable if id(p) in sourced]},
        {"name": "free", "params": [p for p in trainable if id(p) not in sourced]},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(choice: OptimizerChoice, groups: list[Group], lr: float) -> torch.optim.Optimizer:
    """Return the optimiser named "adam" or "sgd" (momentum 0.9), or what a callable makes of the groups."""
    if choice == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=_fusible(groups))
    if choice == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=_fusible(groups))
    if not callable(choice):
        raise ValueError(f"unknown optimizer {choice!r}: 'adam', 'sgd' or a function of the parameter groups")
    optimizer = choice(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer(groups) must return a torch optimiser; got {type(optimizer).__name__}")
    return optimizer


def decayed_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return what weight decay falls on: the matrices of the group "free" whose entries may have any sign.

    That is every trainable tensor of two or more dimensions, less these: what weight sources own, so latents,
    non-negative weights and a lift's body; weights that a network without a source declares ``nonnegative``;
    the factor Q of an ICNN's learned quadratic, which like alpha is curvature; and a PICNN's ``level``, a
    vector that is stored as one row. Of a ``Centred`` source the skips decay as they are before folding.

    Example:
        >>> import convexlift as cl
        >>> flow = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(3, hidden=(8, 8)))])
        >>> [tuple(p.shape) for p in decayed_matrices(flow)]  # first layer and skip
        [(8, 3), (8, 3)]
    """
    left: set[int] = set()
    for part in module.modules():
        declared: list[Any] = [getattr(part, kind, ()) for kind in ("nonnegative", "undecayed")]
        names = [name for kind in declared if isinstance(kind, list | tuple) for name in kind]
        own = dict(part.named_parameters()) if names else {}
        left |= {id(own[name]) for name in names if name in own}
    free = [p for group in parameter_groups(module) if group["name"] == "free" for p in group["params"]]
    return [p for p in free if p.ndim >= 2 and id(p) not in left]


def attach_weight_decay(optimizer: torch.optim.Optimizer, module: nn.Module, weight_decay: float) -> None:
    """Multiply each of ``decayed_matrices`` by 1 - rate * weight_decay before every step.

    The rate is that of the matrix's group at the moment. As in torch's own optimisers, a matrix without a
    gradient stays as it is. Nothing is attached for a weight decay of 0.

    Raises:
        ValueError: from the step, when rate * weight_decay is 1 or more.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    if not weight_decay:
        return
    decayed = {id(p) for p in decayed_matrices(module)}

    @torch.no_grad()
    def hook(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            kept = 1.0 - group["lr"] * weight_decay
            if kept <= 0.0:
                raise ValueError(
                    "the scheduled rate times weight_decay must be below 1; "
                    f"got {group['lr']:g} * {weight_decay:g}"
                )
            for p in group["params"]:
                if id(p) in decayed and p.grad is not None:
                    p.mul_(kept)

    optimizer.register_step_pre_hook(hook)


@final
class Rates:
    """Sets every group's learning rate to its own initial one times schedule(t)."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self._optimizer = optimizer
        self._initial = [group["lr"] for group in optimizer.param_groups]
        self._factor = SCHEDULES[schedule] if isinstance(schedule, str) else schedule

    def set(self, t: float) -> None:
        factor = float(self._factor(t))
        if not (math.isfinite(factor) and factor >= 0.0):
            raise ValueError(f"schedule({t:g}) must be a finite number of at least 0; got {factor}")
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * factor


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float | None) -> float:
    """Scale each group's gradient to norm at most ``largest``, if given; return the largest norm found."""
    norms = [0.0]
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norms.append(float(norm))
        if largest is not None:
            nn.utils.clip_grads_with_norm_(group["params"], largest, norm)
    return max(norms, key=lambda norm: math.inf if math.isnan(norm) else norm)


def _fusible(groups: list[Group]) -> bool:
    """Whether one kernel can update all parameters; for small networks that is several times faster."""
    parameters = [p for group in groups for p in group["params"]]
    return all(
        p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters
    )
