"""Parameter groups, optimisers, weight decay, learning-rate schedules and clipping, as `fit` uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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

# Of a larger side of a tensor SOAP keeps no basis: each would cost more than the step itself.
_LARGEST_BASIS = 1024


def parameter_groups(module: nn.Module) -> list[Group]:
    """Return the trainable parameters as the groups "source" and "free", leaving out an empty one.

    "source" holds what makes the constrained weights (latents, or the weights themselves where they are
    projected; a lift's slack of them, its body and readout), "free" the rest: the free tensors, or the slack
    that stands for them in a lift that emits them too.
    """
    sourced = set()
    for source in _sources(module):
        free = {id(p) for p in source.free_tensors().values()}
        sourced |= {id(p) for p in source.parameters()} - free
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the module has no trainable parameters")
    groups = [
        {"name": "source", "params": [p for p in trainable if id(p) in sourced]},
        {"name": "free", "params": [p for p in trainable if id(p) not in sourced]},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    choice: OptimizerChoice, groups: list[Group], lr: float, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser named "adam", "sgd" (momentum 0.9) or "soap", or what a function makes of groups.

    The rate of a group is ``lr`` times the multiplier that ``rates`` has under its name, if it has one.
    """
    if callable(choice):
        optimizer = choice(groups)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer(groups) must return a torch optimiser; got {type(optimizer).__name__}"
            )
        return optimizer
    groups = [{**group, "lr": lr * (rates or {}).get(group["name"], 1.0)} for group in groups]
    if choice == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=_fusible(groups))
    if choice == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=_fusible(groups))
    if choice == "soap":
        basis = {"precondition_frequency": 10, "max_precondition_dim": _LARGEST_BASIS}
        return soap()(groups, lr=lr, betas=(0.95, 0.95), weight_decay=0.0, **basis)
    raise ValueError(
        f"unknown optimizer {choice!r}: 'adam', 'sgd', 'soap' or a function of the parameter groups"
    )


def soap() -> Any:
    """The class of the optimiser SOAP, from a package that takes a second to import.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ImportError(
            "optimizer 'soap' needs pytorch_optimizer: pip install 'convexlift[soap]'"
        ) from error
    return SOAP


def decayed_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return what weight decay falls on: the matrices of the group "free" whose entries may have any sign.

    That is every trainable tensor of two or more dimensions, less these: what makes constrained weights, so
    latents, non-negative weights, a lift's body and readout; weights that a network without a source declares
    ``nonnegative``; the factor Q of an ICNN's learned quadratic, which like alpha is curvature; and a PICNN's
    ``level``, a vector that is stored as one row. Of a lift that emits all tensors it is the slack of these;
    of a ``Centred`` source the skips decay as they are before folding.

    Example:
        >>> import convexlift as cl
        >>> flow = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(3, hidden=(8, 8)))])
        >>> [tuple(p.shape) for p in decayed_matrices(flow)]  # first layer and skip
        [(8, 3), (8, 3)]
    """
    left: set[int] = set()
    own = dict(module.named_parameters(remove_duplicate=False))
    for part, tensors in [(module, own), *((s.architecture, s.free_tensors()) for s in _sources(module))]:
        left |= {id(tensors[name]) for name in _declared(part) if name in tensors}
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
            falling = [p for p in group["params"] if id(p) in decayed]
            kept = 1.0 - group["lr"] * weight_decay
            if falling and kept <= 0.0:
                raise ValueError(
                    "the scheduled rate times weight_decay must be below 1; "
                    f"got {group['lr']:g} * {weight_decay:g}"
                )
            for p in falling:
                if p.grad is not None:
                    p.mul_(kept)

    optimizer.register_step_pre_hook(hook)


@final
class Rates:
    """Sets every group's learning rate at each step k = 0, 1, ...: its own initial one times

    schedule(k / steps) * min(1, (k + 1) / warmup).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int, warmup: int = 0
    ) -> None:
        self._optimizer = optimizer
        self._initial = [group["lr"] for group in optimizer.param_groups]
        self._factor = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self._steps, self._warmup = steps, warmup

    def set(self, step: int) -> None:
        t = step / self._steps
        factor = float(self._factor(t))
        if not (math.isfinite(factor) and factor >= 0.0):
            raise ValueError(f"schedule({t:g}) must be a finite number of at least 0; got {factor}")
        if step < self._warmup:
            factor *= (step + 1) / self._warmup
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


def _sources(module: nn.Module) -> list[WeightSource]:
    return [part for part in module.modules() if isinstance(part, WeightSource)]


def _declared(module: nn.Module) -> set[str]:
    """The names of the parameters that parts of the module declare as not to decay."""
    found = set()
    for path, part in module.named_modules():
        for declared in (getattr(part, kind, ()) for kind in ("nonnegative", "undecayed")):
            if isinstance(declared, list | tuple):
                found |= {f"{path}.{name}".removeprefix(".") for name in declared}
    return found


def _fusible(groups: list[Group]) -> bool:
    """Whether one kernel can update all parameters; for small networks that is several times faster."""
    parameters = [p for group in groups for p in group["params"]]
    return all(
        p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters
    )
