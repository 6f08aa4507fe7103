"""Networks, sources and tasks are pickled and copied, with the named activations and with a user's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from convexlift import (
    ICNN,
    ConvexPotentialFlow,
    ConvexRegression,
    Lift,
    LogConcaveDensity,
    Projected,
    Softplus,
    Squared,
)
from convexlift.calculus.activations import Activation, activation
from convexlift.sources.positivity import SQUARE, positive_map


def net(dim: int = 1, **options) -> ICNN:
    return ICNN(dim, hidden=(4, 4), seed=0, **options)


@pytest.mark.parametrize(
    "module",
    [
        net(),
        net(activation="smooth_squared_relu", sharpness=3.0),
        net(activation="relu"),
        Projected(net()),
        Softplus(net(), fan_in=True),
        Squared(net()),
        Lift(net(), seed=0),
        Lift(net(), psi="square", seed=0),
        ConvexPotentialFlow([Squared(net())]),
        LogConcaveDensity(net()),
        ConvexRegression(Lift(net(), seed=0)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_pickle_gives_the_same_numbers(module: nn.Module) -> None:
    x = torch.linspace(-1, 1, 5)[:, None]
    y = x[:, 0] ** 2

    def number(module: nn.Module) -> Tensor:
        if isinstance(module, ConvexRegression):
            return module.loss((x, y))
        return module.loss(x) if hasattr(module, "loss") else module(x)

    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(number(again), number(module))


@pytest.mark.parametrize(
    ("name", "sharpness"),
    [("softplus", 2.0), ("squareplus", 10.0), ("smooth_squared_relu", 1.0), ("relu", None)],
)
def test_a_named_activation_is_pickled_by_name(name: str, sharpness: float | None) -> None:
    again = pickle.loads(pickle.dumps(activation(name, sharpness)))
    assert (again.name, again.sharpness) == (name, sharpness)


def test_a_map_onto_weights_is_itself_again() -> None:
    assert pickle.loads(pickle.dumps(SQUARE)) is positive_map("square") is copy.deepcopy(SQUARE)


def test_an_activation_of_importable_functions_keeps_them() -> None:
    # Even under the name of another one.
    own = Activation("softplus", torch.exp, torch.exp, torch.exp)
    assert pickle.loads(pickle.dumps(own)) == own


def test_an_activation_of_lambdas_is_copied_but_not_pickled() -> None:
    own = Activation("own", lambda u: 2 * u, lambda u: 2 * torch.ones_like(u))
    network = net(activation=own)
    assert copy.deepcopy(network).activation is own and copy.copy(own) is own
    with pytest.raises(
        pickle.PicklingError,
        match="^activation 'own' cannot be pickled: define its functions at the top of a module$",
    ):
        pickle.dumps(network)
