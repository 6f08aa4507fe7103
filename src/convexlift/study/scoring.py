"""Scores of multivariate densities: a cheap log Z along a run, a trusted one at its end."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convexlift.architectures import ICNN
from convexlift.data import Rows
from convexlift.integration.annealing import short_annealing
from convexlift.integration.gaussian import Gaussian
from convexlift.integration.langevin import together
from convexlift.problems import Problem
from convexlift.tasks import LogConcaveDensity


def is_multivariate(problem: Problem) -> bool:
    """Whether the problem's models are the library's densities in more than one dimension.

    Example:
        >>> from convexlift.problems import problem
        >>> is_multivariate(problem("gumbel")), is_multivariate(problem("moon").as_task("density"))
        (False, True)
    """
    return problem.kind.objectives and problem.dim > 1 and problem.build is None


@torch.no_grad()
def quick_losses(problem: Problem, frozen: nn.Module, rows: Rows) -> Tensor:
    """The loss of each row (N, d) under a frozen model, in multivariate densities with log Z to about a tenth
    of a nat, (N,).

    That is the estimate by which the objective validates; objectives that need no log Z get a short annealing
    from the standard normal of whitened rows.

    Example:
        >>> import convexlift as cl
        >>> from convexlift.problems import problem
        >>> moon = problem("moon").as_task("density")
        >>> density = cl.LogConcaveDensity(cl.ICNN(2, hidden=(8,), seed=0)).freeze()
        >>> bool((quick_losses(moon, density, moon.test) - moon.evaluate(density)).abs().max() < 0.1)
        True
    """
    if not is_multivariate(problem):
        return problem.evaluate(frozen, rows)
    density, x = cast(LogConcaveDensity, frozen), cast(Tensor, rows)
    potential = cast(ICNN, density.block).emit()
    t = density.block_inputs(x)[0]
    log_z = density.quick_log_z
    if not bool(log_z.isfinite()):
        start = Gaussian(torch.zeros_like(t[0]), torch.diag(torch.ones_like(t[0])))
        log_z = short_annealing(together(potential.value, potential.gradient), start, seed=0)
    losses = potential.value(t).double() + log_z - density.standardiser.log_scale_jacobian
    return losses if problem.log_prob is None else losses + problem.log_prob(x)
