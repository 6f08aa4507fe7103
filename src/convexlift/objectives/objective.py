"""What every objective of a log-concave density is: one scalar from a potential and standardised rows."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.architectures import Potential

# Of what is random in evaluation. An unlikely one: with the seed that a user drew the rows from, the noise
# would be the rows.
EVALUATION_SEED = 7_305_121_583


class Objective(nn.Module):
    """How a density p(t) = exp(-f(t)) / Z of standardised rows t is trained.

    ``forward(potential, t, weights)`` is the mean loss of the rows t (N, d), a scalar, with ``weights`` (N,)
    of mean one over the training rows, or None. In training mode it may draw, from torch's global generator
    or as the objectives here from ``seeds.generator_on(device)``, and move its buffers; in eval mode it is a
    fixed function of its arguments.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        guard_methods(cls)

    #: whether the loss is a negative log-likelihood: then a standardiser's Jacobian counts
    likelihood = False

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def initialise(self, potential: Potential, t: Tensor) -> None:
        """Data-dependent start, from the untrained potential and standardised training rows (N, d)."""

    def estimate(self, potential: Potential) -> Tensor | None:
        """A cheap estimate of log Z by which frozen models are validated; None where the loss needs none."""
        return None

    @property
    def effective_share(self) -> float | None:
        """The effective share of the draws of the last training step; None without draws."""
        return None


@final
class Known(Objective):
    """The likelihood of a density whose log Z is known: what a density in a file is left with."""

    likelihood = True

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        raise RuntimeError(
            "a density from a file has no objective: set its `objective` to train it, for instance to "
            "objective_named('mle', dim)"
        )


def mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values (N,), each times its weight.

    >>> import torch
    >>> mean(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 0.5]))
    tensor(1.5000)
    """
    return values.mean() if weights is None else (weights * values).mean()


def share(weights: Tensor | None) -> Tensor | float:
    """The mean of the weights of a batch, by which a row-free term of its loss is multiplied."""
    return 1.0 if weights is None else weights.mean()
