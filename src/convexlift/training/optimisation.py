"""Parameter groups, optimisers, learning-rate schedules and clipping, as `fit` uses them."""

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
