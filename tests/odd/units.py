"""Units, offsets and weights: what is trained does not depend on them."""

from __future__ import annotations

from typing import Any

import torch

from convexlift.tasks.standardise import Standardiser

from .case import Case, answered, refused
from .given import FLOAT64, density, fit, flow, regression, rows

X, Y = rows(), rows().square().sum(1)
ONE = rows(dim=1)
W = torch.linspace(0.5, 2, 60)


def trained(module: Any, data: Any, **options: Any) -> float:
    return fit(module, data, **options).loss[-1]


def validated(weights: torch.Tensor) -> float | None:
    return fit(density(), (ONE, W), validation=(ONE + 1, weights)).best_validation


def steep() -> Any:
    made = density(2)
    made.initialise(2e-38 * X)
    return made.freeze().score(1e-35 * X)


CASES: list[Case] = [
    answered(
        "targets of a regression in units of 2^-60",
        lambda: trained(regression(), (X, 2.0**-60 * Y)) - trained(regression(), (X, Y)),
        0.0,
        "it trains as in units of 1, to the last bit",
        "convexlift.tasks.regression",
        ("self.target_standardiser.fit(y[:, None])", "pass"),
    ),
    answered(
        "a column of float64 about 2^27, as times are",
        lambda: abs(trained(flow(), X.double() + 2.0**27) - trained(flow(), X.double())) < 0.01,
        True,
        "it is centred in float64 before it is cast: it trains as about 0",
        "convexlift.data.dtype_for",
        lambda module, kind: kind,
    ),
    answered(
        "weights of a density 2^100 times as large",
        lambda: trained(density(), (ONE, 2.0**100 * W)) - trained(density(), (ONE, W)),
        0.0,
        "it trains as with the others",
        "convexlift.tasks.density",
        ("self.mean_weight.fill_(average)", "pass"),
    ),
    answered(
        "weights of validation rows that sum to 1",
        lambda: validated(W / W.sum()) - validated(W),
        0.0,
        "the validation loss is as with the others",
        "convexlift.tasks.density",
        ("(self.mean_weight if self.training else weights)", "self.mean_weight"),
    ),
    answered(
        "numbers of 1e300 in float64 to standardise",
        lambda: Standardiser(1).double().fit(torch.tensor([[1e300], [3e300]], dtype=FLOAT64)).scale.tolist(),
        [1e300],
        "their deviation is right, though its square would overflow",
        "convexlift.tasks.standardise",
        ("unit = power_of_two(largest)", "unit = torch.ones_like(largest)"),
    ),
    refused(
        "a score that overflows in the units of the data",
        steep,
        FloatingPointError,
        "the gradient overflows float32 at 60 of 60 rows (0, 1, 2, 3, 4, ...): take larger units "
        "or float64 rows",
    ),
]
