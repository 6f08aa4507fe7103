"""What is found for each context c of f(x; c): the mode, log Z, draws.

On the line and in the plane log Z and draws come from rays, for many contexts at once; above, from annealed
importance sampling and from chains, one context after the other. Contexts e (N, k) come with the `rows` (R,)
asked for, which messages name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from convexlift.architectures import ConditionedPotential, PartialPotential
from convexlift.integration import langevin
from convexlift.integration.annealing import UnreliableEstimate, annealed_normaliser
from convexlift.integration.gaussian import Gaussian, laplace
from convexlift.integration.rays import draws as ray_draws
from convexlift.integration.rays import rule as rays
from convexlift.integration.rays.rule import Family


@torch.no_grad()
def family(given: ConditionedPotential, rows: Tensor) -> Family:
    """The potential, its contexts named by row, to be integrated along rays from near the modes."""
    centre = given.inverse(_zeros(given), tolerance=1e-3).x
    return Family(given.grid, centre, given.hessian(centre), rows)


def modes(potential: PartialPotential, e: Tensor, rows: Tensor) -> Tensor:
    """The lowest point of f for each of the rows, (R, d).

    Raises FloatingPointError when one was not found.
    """
    given = potential.given(e[rows])
    found = given.inverse(_zeros(given))
    if not bool(found.converged.all()):
        worst = int(found.residual.argmax())
        raise FloatingPointError(
            f"the mode was not found for context {int(rows[worst])} "
            f"(residual {float(found.residual[worst]):.2g})"
        )
    return found.x


@torch.no_grad()
def log_integrals(potential: PartialPotential, e: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """log Z of every row and how far it may be off, both (R,); on rays the last change, else standard errors.

    Raises FloatingPointError as ``rays.log_integrals`` does, UnreliableEstimate as ``annealed_normaliser``.
    """
    if potential.dim > 2:
        return _annealed(potential, e, rows)
    return rays.log_integrals(partial(_family_at, potential, e), rows, dim=potential.dim)


@torch.no_grad()
def draw(
    potential: PartialPotential, e: Tensor, rows: Tensor, n: int, generator: torch.Generator | None
) -> Tensor:
    """n draws for each of the rows, (R, n, d).

    Raises FloatingPointError as ``ray_draws.draw`` does, RuntimeError for chains that have not mixed.
    """
    if potential.dim > 2:
        return _draw_by_chains(potential, e, rows, n, generator)
    family_of = partial(_family_at, potential, e)
    return ray_draws.draw(family_of, rows, n, dim=potential.dim, generator=generator)


def _family_at(potential: PartialPotential, e: Tensor, rows: Tensor) -> Family:
    return family(potential.given(e[rows]), rows)


def _zeros(given: ConditionedPotential) -> Tensor:
    return given.tensors["offset"].new_zeros(given.contexts, given.dim)


def _one_by_one(
    potential: PartialPotential, e: Tensor, rows: Tensor
) -> Iterator[tuple[int, ConditionedPotential, Gaussian]]:
    """Each of the rows, the potential at that context, and its Laplace approximation."""
    for row, mode in zip(rows.tolist(), modes(potential, e, rows), strict=True):
        one = potential.given(e[row : row + 1])
        yield row, one, laplace(mode, one.hessian(mode[None])[0])


def _annealed(potential: PartialPotential, e: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """log Z of every row by annealed importance sampling, one after the other."""
    log_z, error = torch.zeros(2, len(rows), dtype=e.dtype, device=e.device)
    for place, (row, one, start) in enumerate(_one_by_one(potential, e, rows)):
        generator = torch.Generator(e.device).manual_seed(0)
        proposal = langevin.adapted(one.value, one.gradient, start, generator=generator)
        try:
            found = annealed_normaliser(one.value, one.gradient, proposal, generator=generator)
        except UnreliableEstimate as refused:
            raise UnreliableEstimate(f"log Z of context {row}: {refused}") from refused
        log_z[place], error[place] = found.log_z, found.error
    return log_z, error


def _draw_by_chains(
    potential: PartialPotential, e: Tensor, rows: Tensor, n: int, generator: torch.Generator | None
) -> Tensor:
    """n draws for each of the rows, (R, n, d), from chains that have mixed."""
    draws = []
    for row, one, start in _one_by_one(potential, e, rows):
        found = langevin.draw(one.value, one.gradient, start, n, generator=generator)
        if not found.converged:
            raise RuntimeError(
                f"the chains have not mixed for context {row}: R-hat is {float(found.r_hat.max()):.3f}"
            )
        draws.append(found.x)
    return torch.stack(draws)
