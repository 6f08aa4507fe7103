"""Initial effective weights of an input-convex network, shared by every weight source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.ambient import new_dtype
from convexlift.architectures.base import Architecture
from convexlift.checks import check_finite, check_samples, plain

Draw = Callable[[int, int], Tensor]

INITIALISATIONS = ("fan_in", "folded_normal", "principled", "identity")

# "identity" scales the last layer down by this, so that grad f(x) is close to x at the start.
_IDENTITY_SCALE = 1e-3


def initial_tensors(
    init: str, dim: int, hidden: Sequence[int], skip: bool, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Draw the tensors of an ICNN by name, in float64.

    - ``"fan_in"``: W_ij uniform on (0, 2/fan_in), so that a layer averages; the rest as ``torch.nn.Linear``.
    - ``"folded_normal"``: W_ij = |N(0, pi/(2 fan_in))|, zero biases, Xavier-uniform skips (the lift's
      reference).
    - ``"principled"``: log-normal W_ij and a negative bias for which pre-activations of a ReLU network keep
      mean 0, variance 1 and correlation 1/2 (Hoedt and Klambauer, NeurIPS 2023); ``ICNN.calibrate`` then
      corrects each layer on data, so that it holds for other activations and skips too.
    - ``"identity"``: as ``"fan_in"``, with the last layer scaled by 1e-3.

    Raises:
        ValueError: the name is unknown.
    """
    uniform = _uniform(generator)
    if init in ("fan_in", "identity"):
        scale = _IDENTITY_SCALE if init == "identity" else 1.0
        return _tensors(dim, hidden, skip, lambda m, n: uniform(m, n) * 2 / n, _linear(uniform), scale)
    if init == "folded_normal":
        out = _tensors(dim, hidden, skip, _folded_normal(generator), _xavier(uniform))
        if skip:
            out["linear"] = _xavier(uniform)(1, dim)[0]
        return {name: torch.zeros_like(t) if name.startswith("biases") else t for name, t in out.items()}
    if init == "principled":
        return _principled(dim, hidden, skip, generator)
    raise ValueError(f"unknown init {init!r}; known: {', '.join(INITIALISATIONS)}")


def parameters(
    drawn: Mapping[str, Tensor],
) -> tuple[nn.ParameterList, nn.Parameter, nn.ParameterList, nn.ParameterList, nn.Parameter | None]:
    """The drawn tensors as parameters of the default dtype: inner, outer, skips, biases and linear."""
    made = {name: nn.Parameter(t.to(torch.get_default_device(), new_dtype())) for name, t in drawn.items()}
    inner, skips, biases = (
        nn.ParameterList([p for name, p in made.items() if name.startswith(kind)])
        for kind in ("inner.", "skips.", "biases.")
    )
    return inner, made["outer"], skips, biases, made.get("linear")


def normal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal draws in float64, (rows, columns), on the CPU whatever torch's defaults are."""
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")


def positive_sizes(name: str, sizes: Sequence[int], kind: str = "numbers") -> tuple[int, ...]:
    """The sizes as whole numbers, of which there is at least one, all positive.

    >>> positive_sizes("hidden", (8, 0))
    Traceback (most recent call last):
    ...
    ValueError: hidden must be a non-empty sequence of positive numbers; got (8, 0)
    """
    whole = [plain(size) for size in sizes]
    if not whole or not all(isinstance(size, int) and size >= 1 for size in whole):
        raise ValueError(f"{name} must be a non-empty sequence of positive {kind}; got {tuple(sizes)}")
    return tuple(map(int, whole))


def check_identity(init: str, network: Architecture[Any]) -> None:
    """Raise a ValueError where "identity" lacks the learned alpha of 1 that it starts from."""
    if init == "identity" and not (network.learn_strong_convexity and network.strong_convexity == 1):
        raise ValueError('init="identity" needs strong_convexity=1 and learn_strong_convexity=True')


def check_calibration(x: Tensor, dim: int) -> None:
    """Raise a ValueError unless x are at least two rows (N, dim) with finite entries."""
    check_finite(check_samples(x, dim))
    if len(x) < 2:
        raise ValueError(f"calibrate needs at least 2 rows; got {len(x)}")


def principled_moments(fan_in: int) -> tuple[float, float, float]:
    """Mean and variance of the weights, and the bias, that keep mean 0, variance 1 and correlation 1/2.

    With z = max(u, 0), u standard normal of pairwise correlation 1/2: E z = (2 pi)^{-1/2}, E z^2 = 1/2 and
    E z z' = (sqrt(3)/2 + pi/3) / (2 pi). Asking the next layer for the same moments gives
    var W = 1/n, (E W)^2 = 6 pi / (n (6 (pi - 1) + (n - 1) (3 sqrt(3) + 2 pi - 6))), b = -n E W / sqrt(2 pi).

    >>> mean, variance, bias = principled_moments(64)
    >>> round(mean, 4), round(variance, 4), round(bias, 4)
    (0.0287, 0.0156, -0.7323)
    """
    n = fan_in
    mean = math.sqrt(6 * math.pi / (n * (6 * (math.pi - 1) + (n - 1) * (3 * math.sqrt(3) + 2 * math.pi - 6))))
    return mean, 1 / n, -n * mean / math.sqrt(2 * math.pi)


def _linear(uniform: Draw) -> Draw:
    """Uniform on +-1/sqrt(fan_in), as ``torch.nn.Linear`` draws its weights."""
    return lambda m, n: (2 * uniform(m, n) - 1) / math.sqrt(n)


def _tensors(
    dim: int, hidden: Sequence[int], skip: bool, positive: Draw, free: Draw, last: float = 1.0
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for level, width in enumerate(hidden):
        if level:
            out[f"inner.{level - 1}"] = positive(width, hidden[level - 1])
        if skip or level == 0:
            out[f"skips.{level}"] = free(width, dim)
        out[f"biases.{level}"] = free(width, dim)[:, 0].clone()
    out["outer"] = positive(1, hidden[-1])[0] * last
    if skip:
        out["linear"] = torch.zeros(dim, dtype=torch.float64, device="cpu")
    return out


def _folded_normal(generator: torch.Generator | None) -> Draw:
    def draw(m: int, n: int) -> Tensor:
        return normal(m, n, generator).abs() * math.sqrt(math.pi / (2 * n))

    return draw


def _xavier(uniform: Draw) -> Draw:
    return lambda m, n: (2 * uniform(m, n) - 1) * math.sqrt(6 / (m + n))


def _principled(
    dim: int, hidden: Sequence[int], skip: bool, generator: torch.Generator | None
) -> dict[str, Tensor]:
    def positive(m: int, n: int) -> Tensor:
        mean, variance, _ = principled_moments(n)
        log_variance = math.log1p(variance / mean**2)
        return torch.exp(
            math.log(mean) - log_variance / 2 + math.sqrt(log_variance) * normal(m, n, generator)
        )

    out = _tensors(dim, hidden, skip, positive, lambda m, n: normal(m, n, generator) / math.sqrt(n))
    for level in range(len(hidden)):
        bias = 0.0 if level == 0 else principled_moments(hidden[level - 1])[2]
        out[f"biases.{level}"].fill_(bias)
    return out


def _uniform(generator: torch.Generator | None) -> Draw:
    return lambda m, n: torch.rand(m, n, generator=generator, dtype=torch.float64, device="cpu")
