"""Do closed forms agree with automatic differentiation?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.checks import check_samples
from convexlift.seeds import generator_on
from convexlift.testing.precision import accepted_dtype, digits, double
from convexlift.testing.results import CheckFailed, DerivativesResult, Function
from convexlift.testing.rounding import shake

_DERIVATIVES = ("gradient", "hessian", "laplacian", "hvp", "logdet")
# Rounding is seen in how far results move when their points are shaken so often; so many times that explains.
_SHAKES = 4
_CLEAR = 8


@guarded
def check_derivatives(
    f: Any,
    gradient: Function | None = None,
    hessian: Function | None = None,
    laplacian: Function | None = None,
    hvp: Callable[[Tensor, Tensor], Tensor] | None = None,
    logdet: Function | None = None,
    *,
    dim: int,
    points: Tensor | None = None,
    names: Sequence[str] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    raises: bool = True,
) -> DerivativesResult:
    """Compare closed-form derivatives of f with automatic differentiation of its values.

    The error of a derivative is its largest deviation over the points, divided by its largest entry (by at
    least one for the log-determinant, which may be zero). What rounding explains is taken off first: eight
    times as far as the derivative moves when its points do by two units in the last place, and for the
    log-determinant the condition number of the Hessian times d units.

    Args:
        f: (N, d) -> (N,), twice differentiable. The methods ``gradient``, ``hessian``, ``laplacian``, ``hvp``
            and ``logdet`` of a ``Potential``, or of an object like one, are checked if none is passed; of an
            architecture or a weight source, those of the potential that it emits.
        gradient: (N, d) -> (N, d).
        hessian: (N, d) -> (N, d, d).
        laplacian: (N, d) -> (N,).
        hvp: x (N, d) and v (N, d) -> (N, d).
        logdet: (N, d) -> (N,), the logarithm of the Hessian's determinant.
        dim: d.
        points: (N, d), where to compare; 7 standard normal points when omitted.
        names: which of the object's methods to check; all it has when omitted.
        tolerance: the largest error allowed; 1e-10, or 1e-3 if f takes only float32.
        seed: seed of the points and of v.
        raises: raise on a deviation, rather than return it.

    Raises:
        CheckFailed: a derivative deviates; with its name, error and point.
        ValueError: there is nothing to check, or a result has another shape.
        TypeError: f does not return a tensor.

    Example:
        >>> check_derivatives(lambda x: x.exp().sum(1), hessian=lambda x: x.exp().diag_embed() * 1.1, dim=2)
        Traceback (most recent call last):
        ...
        convexlift.testing.results.CheckFailed: hessian is off by 0.1 of its largest entry at ...
    """
    given = {"gradient": gradient, "hessian": hessian, "laplacian": laplacian, "hvp": hvp, "logdet": logdet}
    closed: dict[str, Callable[..., Any]] = {name: form for name, form in given.items() if form is not None}
    if not closed:
        emit = getattr(f, "emit", None)
        f = double(emit() if callable(emit) else f)
        closed = _methods(f, _DERIVATIVES if names is None else names, required=names is not None)
    elif names is not None:
        raise ValueError("names= chooses among the methods of f; it does not go with closed forms passed")
    value: Function = f.value if hasattr(f, "value") else f

    generator = generator_on(seed=seed)
    if points is None:
        points = torch.randn(7, dim, generator=generator, dtype=torch.float64, device="cpu")
    elif not len(check_samples(points, dim, name="points")):
        raise ValueError("points are empty")
    x = points.detach().double()
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
    calls: dict[str, Function] = dict(closed)
    if "hvp" in closed:
        calls["hvp"] = lambda x: closed["hvp"](x, v.to(x))
    dtype = accepted_dtype(value, x, calls.values())
    x, v = x.to(dtype), v.to(dtype)
    if tolerance is None:
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3

    with torch.enable_grad():
        exact = _automatic(value, x, v, closed)
        shaken = [shake(x, seed) for seed in range(1, _SHAKES + 1)]
        moved = [_automatic(value, points, v, closed) for points in shaken]
    errors, rows = {}, {}
    for name, call in calls.items():
        found = call(x).detach()
        if found.shape != exact[name].shape:
            raise ValueError(f"expected {tuple(exact[name].shape)} from {name}; got {tuple(found.shape)}")
        differences = [call(points).detach() - found for points in shaken]
        differences += [other[name] - exact[name] for other in moved]
        rounding = torch.stack([_largest(entries) for entries in differences]).nan_to_num(0.0).amax(0)
        if name == "logdet":
            rounding = torch.maximum(rounding, exact["logdet rounding"])
        errors[name], rows[name] = _deviation(name, found, exact[name], _CLEAR * rounding)
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    result = DerivativesResult(errors, worst, x[rows[worst]])
    if raises and not errors[worst] <= tolerance:
        error = f"off by {errors[worst]:.3g} of its largest entry"
        raise CheckFailed(f"{worst} is {error} at x = {digits(result.point)}", result)
    return result


def _methods(f: Any, names: Sequence[str], required: bool) -> dict[str, Callable[..., Tensor]]:
    found = {}
    for name in names:
        if name in _DERIVATIVES and callable(method := getattr(f, name, None)):
            found[name] = method
    if missing := [name for name in names if required and name not in found]:
        raise ValueError(f"f has no method {missing[0]!r}; known derivatives: {', '.join(_DERIVATIVES)}")
    if not found:
        raise ValueError(f"nothing to check: pass one of {', '.join(_DERIVATIVES)}")
    return found


def _automatic(f: Function, x: Tensor, v: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """The derivatives by automatic differentiation, backward over backward: it takes any f, vmap does not."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True, materialize_grads=True)
    exact = {"gradient": gradient.detach()}
    if set(names) <= set(exact):
        return exact
    rows = [
        torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True, materialize_grads=True)[0]
        for i in range(x.shape[1])
    ]
    hessian = torch.stack(rows, 1)
    sign, logdet = torch.linalg.slogdet(hessian)
    return exact | {
        "hessian": hessian,
        "laplacian": hessian.diagonal(dim1=1, dim2=2).sum(1),
        "hvp": (hessian @ v[:, :, None])[:, :, 0],
        "logdet": torch.where(sign > 0, logdet, math.nan),
        "logdet rounding": _logdet_rounding(hessian),
    }


def _logdet_rounding(hessian: Tensor) -> Tensor:
    """What a rounding of the Hessian's entries does to its log-determinant, (N,); infinite if singular."""
    finite = hessian.double().nan_to_num(0.0, 0.0, 0.0)
    size = torch.linalg.eigvalsh(finite + finite.mT).abs()
    unit = hessian.shape[1] * torch.finfo(hessian.dtype).eps
    relative = unit * size.amax(1) / size.amin(1)
    return torch.where(relative < 0.1, relative, math.inf)


def _largest(entries: Tensor) -> Tensor:
    return entries.abs().reshape(len(entries), -1).amax(1)


def _deviation(name: str, given: Tensor, exact: Tensor, rounding: Tensor) -> tuple[float, int]:
    """The largest error beyond rounding (N,), relative to the largest entry, and its row."""
    scale = float(exact.abs().nan_to_num(0.0).max())
    scale = max(scale, 1.0) if name == "logdet" or scale == 0 else scale
    error = _largest(given - exact)
    error = torch.where(rounding == math.inf, 0.0, (error - rounding).clamp_min(0.0))
    row = int(error.argmax())  # argmax takes a NaN for the largest
    return float(error[row]) / scale, row
