"""Integrals and draws along rays, for many convex functions at once, against known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convexlift.integration.rays import draws as ray_draws
from convexlift.integration.rays import rule as rays
from convexlift.integration.rays.draws import draw
from convexlift.integration.rays.rule import Family, log_integrals, ray_rule

# Scales of the coordinates, one row a context.
SCALES = torch.tensor([[1.0, 1.0], [0.02, 5.0], [300.0, 0.5]], dtype=torch.float64)
SHIFTS = torch.tensor([[0.0, 0.0], [3.0, -2.0], [-50.0, 7.0]], dtype=torch.float64)
TURN = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]

# One coordinate's g, g'' at its lowest point 0, the log integral of exp(-g).
MARGINALS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "gaussian": (lambda y: y.square() / 2, 1.0, math.log(2 * math.pi) / 2),
    "logistic": (lambda y: 2 * torch.nn.functional.softplus(-y) + y, 0.5, 0.0),
    "gumbel": (lambda y: y + torch.exp(-y), 1.0, 0.0),
    "quartic": (lambda y: y**4 / 4, 1e-3, math.log(2**-0.5 * math.gamma(0.25))),
    "two-sided exponential": (torch.abs, 400.0, math.log(2)),
}


def family_of(name: str, dim: int) -> Callable[[Tensor], Family]:
    """f = sum_j g(y_j), y the turned, shifted and scaled coordinates; the Hessian as g'' says."""
    g, curvature, _ = MARGINALS[name]
    turn = TURN if dim == 2 else torch.eye(1, dtype=torch.float64)

    def at(rows: Tensor) -> Family:
        scale, shift = SCALES[rows, :dim], SHIFTS[rows, :dim]

        def value(points: Tensor) -> Tensor:
            return g((points @ turn - shift[:, None]) / scale[:, None]).sum(2)

        hessian = turn @ (curvature / scale.square()).diag_embed() @ turn.T
        return Family(value, shift @ turn.T, hessian, rows)

    return at


def exact(name: str, dim: int) -> Tensor:
    return dim * MARGINALS[name][2] + SCALES[:, :dim].log().sum(1)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", MARGINALS)
def test_log_integrals(name: str, dim: int) -> None:
    log_z, error = log_integrals(family_of(name, dim), torch.arange(3), dim=dim)
    assert log_z.dtype == error.dtype == torch.float64
    missed = (log_z - exact(name, dim)).abs()
    kinks_in_the_plane = name == "two-sided exponential" and dim == 2
    assert float(missed.max()) < (5e-4 if kinks_in_the_plane else 1e-8)
    assert bool((missed <= error + 1e-9).all())


@pytest.mark.parametrize("dim", [1, 2])
def test_the_rule_for_training(dim: int) -> None:
    family = family_of("gumbel", dim)(torch.arange(3))
    points, log_weights = ray_rule(family)
    assert points.shape == (3, 32 if dim == 1 else 256, dim) and log_weights.shape == points.shape[:2]
    log_z = torch.logsumexp(log_weights - family.value(points), 1)
    assert float((log_z - exact("gumbel", dim)).abs().max()) < (1e-5 if dim == 1 else 3e-3)


def test_any_centre_will_do() -> None:
    def shifted(rows: Tensor) -> Family:
        family = family_of("gaussian", 2)(rows)
        return Family(family.value, family.centre + SCALES[rows] @ TURN.T / 2, family.hessian, rows)

    log_z, _ = log_integrals(shifted, torch.arange(3), dim=2)
    torch.testing.assert_close(log_z, exact("gaussian", 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", ["gaussian", "gumbel"])
def test_draws(name: str, dim: int) -> None:
    """Kolmogorov's distance at level 0.001 for every coordinate, and no correlation of the ranks."""
    n = 4000
    generator = torch.Generator().manual_seed(0)
    x = draw(family_of(name, dim), torch.arange(3), n, dim=dim, generator=generator)
    y = (x @ (TURN if dim == 2 else torch.eye(1).double()) - SHIFTS[:, None, :dim]) / SCALES[:, None, :dim]
    u = torch.special.ndtr(y) if name == "gaussian" else torch.exp(-torch.exp(-y))
    steps = (torch.arange(n) + 0.5) / n
    assert float((u.sort(1).values - steps[:, None]).abs().max()) < 1.95 / math.sqrt(n)
    if dim == 2:
        assert float((u - 0.5).prod(2).mean(1).abs().max()) * 12 < 4 / math.sqrt(n)


def test_draws_do_not_depend_on_how_many_contexts_are_evaluated_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return draw(family_of("gumbel", 2), torch.arange(3), 5, dim=2, generator=generator)

    together = found()
    monkeypatch.setattr(ray_draws, "MAX_POINTS", 1)
    torch.testing.assert_close(found(), together)


def test_nothing_to_do() -> None:
    none = torch.arange(0)
    assert [t.shape for t in log_integrals(family_of("gumbel", 2), none, dim=2)] == [(0,), (0,)]
    assert draw(family_of("gumbel", 2), none, 3, dim=2).shape == (0, 3, 2)
    assert draw(family_of("gumbel", 2), torch.arange(3), 0, dim=2).shape == (3, 0, 2)


def broken(value: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Family]:
    def at(rows: Tensor) -> Family:
        zeros = torch.zeros(len(rows), 1, dtype=torch.float64)
        return Family(lambda x: value(x[..., 0], rows[:, None]), zeros, zeros[:, None] + 1, rows)

    return at


def test_messages_name_the_row_though_rows_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rays, "MAX_POINTS", 1)
    rows = torch.tensor([4, 7, 9])
    undefined = broken(lambda x, rows: x.square() * torch.where(rows == 9, math.nan, 1.0))
    with pytest.raises(
        FloatingPointError, match=r"^cannot integrate exp\(-f\): f is not a number for context 9$"
    ):
        log_integrals(undefined, rows, dim=1)
    flat = broken(lambda x, rows: x.square() * torch.where(rows == 7, 0.0, 1.0))
    with pytest.raises(
        FloatingPointError, match=r"^cannot integrate exp\(-f\): f does not rise for context 7$"
    ):
        log_integrals(flat, rows, dim=1)
    wild = broken(lambda x, rows: x.square() + torch.where(rows == 9, 9 * (300 * x).sin(), 0.0))
    message = (
        r"^the integral of exp\(-f\) did not settle: log Z still changes by \S+ between the two finest rules "
        "for context 9$"
    )
    with pytest.raises(FloatingPointError, match=message):
        log_integrals(wild, rows, dim=1)
