"""The settings of a run, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, final

import torch
from torch import nn

from convexlift.checks import check_count, check_device, is_number, name_dtype, plain
from convexlift.names import OPTIMIZERS
from convexlift.training.history import FitEvent
from convexlift.training.optimisation import SCHEDULES, OptimizerChoice, Schedule, parameter_groups

NAMED = "'adam', 'sgd' or 'soap'"
GROUPS = ("source", "free")
RISING = "rising"  # the patience that ends a run where validation has risen for long


@final
@dataclass(frozen=True)
class Settings:
    """How to train, as `fit` describes it."""

    steps: int
    batch_size: int
    optimizer: OptimizerChoice
    lr: float
    schedule: Schedule
    clip: float | None
    patience: int | str | None
    evaluate_every: int
    seed: int
    compile: bool = False
    weight_decay: float = 0.0
    averaging: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    warmup: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):  # as JSON and a checkpoint can hold them
            object.__setattr__(self, each.name, plain(getattr(self, each.name)))
        if isinstance(self.patience, str) and self.patience != RISING:
            raise ValueError(
                f"patience must be a number of evaluations, '{RISING}' or None; got {self.patience!r}"
            )
        counts = ["steps", "batch_size", "evaluate_every", "seed", "warmup"]
        for name in [*counts, *([] if self.patience in (None, RISING) else ["patience"])]:
            check_count(name, getattr(self, name), least=0 if name in ("seed", "warmup") else 1)
        if self.warmup > self.steps:
            raise ValueError(f"warmup must be at most the {self.steps} steps; got {self.warmup}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0.0 < value < math.inf):
                raise ValueError(f"{name} must be a positive number; got {value!r}")
        if not isinstance(self.compile, bool):
            raise TypeError(f"compile must be True or False; got {self.compile!r}")
        if not callable(self.optimizer) and self.optimizer not in OPTIMIZERS:
            wanted = f"{NAMED.replace(' or', ',')} or a function of the parameter groups"
            raise ValueError(f"optimizer must be {wanted}; got {self.optimizer!r}")
        self._check_rates()
        object.__setattr__(self, "rates", {name: float(rate) for name, rate in self.rates.items()})
        self._check_weight_decay()
        if not (is_number(self.averaging) and 0.0 <= self.averaging < 1.0):
            raise ValueError(f"averaging must be a number of at least 0 and below 1; got {self.averaging!r}")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            wanted = "'cosine', 'constant' or a function of t"
            raise ValueError(f"schedule must be {wanted}; got {self.schedule!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a function becomes its name."""
        return {k: _name(v) if callable(v) else v for k, v in asdict(self).items()}

    def _check_rates(self) -> None:
        if not isinstance(self.rates, Mapping):
            raise TypeError(f"rates must map parameter groups to multipliers; got {self.rates!r}")
        for name, multiplier in self.rates.items():
            if name not in GROUPS:
                raise ValueError(f"rates knows the parameter groups 'source' and 'free'; got {name!r}")
            if not (is_number(multiplier) and 0.0 < multiplier < math.inf):
                raise ValueError(f"rates[{name!r}] must be a positive number; got {multiplier!r}")
        if self.rates and callable(self.optimizer):
            raise ValueError(f"rates are for {NAMED}; an optimizer function sets its own")

    def _check_weight_decay(self) -> None:
        decay, rate = self.weight_decay, self.lr * self.rates.get("free", 1.0)
        if not (is_number(decay) and 0.0 <= decay < math.inf):
            raise ValueError(f"weight_decay must be a finite number of at least 0; got {decay!r}")
        if decay and callable(self.optimizer):
            raise ValueError(f"weight_decay is for {NAMED}; an optimizer function sets its own")
        if decay and rate * decay >= 1.0:
            what = "lr * rates['free']" if "free" in self.rates else "lr"
            raise ValueError(f"{what} * weight_decay must be below 1; got {rate:g} * {decay:g}")


def check_groups(rates: Mapping[str, float], module: nn.Module) -> None:
    """Raise ValueError for a multiplier of a group that the module does not have."""
    there = [group["name"] for group in parameter_groups(module)]
    for name in rates:
        if name not in there:
            raise ValueError(f"rates[{name!r}]: the module has no trainable parameters in that group")


def check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"fit trains a torch module; got {type(module).__name__}")
    if not callable(getattr(module, "loss", None)):
        raise TypeError(f"{type(module).__name__} has no method loss(batch)")
    parameter_groups(module)


def check_callbacks(callbacks: Sequence[Callable[[FitEvent], object]]) -> None:
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of a FitEvent; got {type(callback).__name__}")


def place_and_kind(
    module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype to train in: what was asked for, or the module's own."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype; got {name_dtype(dtype)}")
    like = next(p for p in module.parameters() if p.requires_grad)
    place = like.device if device is None else check_device(device)
    return place, like.dtype if dtype is None else dtype


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
