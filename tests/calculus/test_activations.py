"""Activations are convex, non-decreasing, and know their derivatives; impostors are refused."""

from __future__ import annotations

import pytest
import torch

from convexlift.calculus.activations import Activation, activation, smooth_squared_relu, softplus, squareplus


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("make", [softplus, squareplus, smooth_squared_relu])
def test_derivatives(make: object, sharpness: float) -> None:
    s = make(sharpness)  # type: ignore[operator]
    u = torch.linspace(-9, 9, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(s.value(u).sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    torch.testing.assert_close(s.slope(u), slope, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(s.curvature(u), bend, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("sharpness", [0.5, 10.0])
def test_squareplus_has_the_curvature_of_softplus_at_zero(sharpness: float) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    exact = softplus(sharpness).bend(zero)
    torch.testing.assert_close(squareplus(sharpness).bend(zero), exact, rtol=1e-14, atol=0)


def test_the_jet_of_squareplus_is_its_three_functions() -> None:
    s, u = squareplus(10.0), torch.linspace(-5, 5, 41, dtype=torch.float64)
    for joint, alone in zip(s.jet(u), (s.value(u), s.slope(u), s.bend(u)), strict=True):
        torch.testing.assert_close(joint, alone, rtol=1e-12, atol=1e-15)


def test_sharp_softplus_tends_to_relu() -> None:
    u = torch.linspace(-2, 2, 41)
    torch.testing.assert_close(softplus(200.0).value(u), u.relu(), atol=4e-3, rtol=0)


IDENTITY = {"value": lambda u: u * 1, "slope": torch.ones_like, "curvature": torch.zeros_like}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": lambda u: -u, "slope": lambda u: -torch.ones_like(u)}, "is not non-decreasing: slope -1"),
        (
            {
                "value": torch.tanh,
                "slope": lambda u: 1 - u.tanh() ** 2,
                "curvature": lambda u: -2 * u.tanh() * (1 - u.tanh() ** 2),
            },
            "is not convex: curvature",
        ),
        (
            {"slope": lambda u: 2 * torch.ones_like(u)},
            "its slope at u = .* is 2, automatic differentiation gives 1",
        ),
        ({"value": torch.nn.functional.softplus, "slope": torch.sigmoid}, "its curvature at u = "),
        (
            {"value": torch.nn.functional.softplus, "slope": lambda u: u.detach().sigmoid()},
            "its curvature at u = ",
        ),
        ({"value": lambda u: u.sum()}, "value is not elementwise and finite"),
        ({"slope": lambda u: 1.0}, "slope is not elementwise and finite"),
        ({"curvature": lambda u: u.sum()}, "curvature is not elementwise and finite"),
        ({"curvature": lambda u: u * torch.nan}, "curvature is not elementwise and finite"),
        ({"curvature": torch.ones_like}, "its curvature at u = .* is 1, automatic differentiation gives 0"),
        (
            {"value": torch.zeros_like},
            "its slope at u = .* is 1, automatic differentiation gives 0",
        ),
    ],
)
def test_impostors_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Activation("own", **{**IDENTITY, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_checked_where_gradients_are_off(mode: type) -> None:
    with mode():
        assert softplus(2.0).sharpness == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tanh",), "unknown activation 'tanh'; known: softplus, squareplus, smooth_squared_relu, relu"),
        (("softplus", 0.0), "sharpness must be positive; got 0.0"),
        (("relu", 2.0), "relu has no sharpness"),
    ],
)
def test_bad_choices(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        activation(*arguments)  # type: ignore[arg-type]
