"""Ensembles: the mixture, with equal weights, of densities that were trained apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.checks import check_draws, check_samples, name_dtype
from convexlift.seeds import fresh_seed, generator_on
from convexlift.tasks.flow import ConvexPotentialFlow
from convexlift.tasks.task import widest


@guard_methods
@final
class Ensemble(nn.Module):
    """The mixture with equal weights of frozen convex-potential flows.

        p(x) = (1/K) sum_k p_k(x),    log p(x) = logsumexp_k log p_k(x) - log K.

    For flows of one kind that differ in their seeds alone, it varies less with the seed than one of them
    does. At every point -log p is at most the mean of the members' -log p_k (Jensen), so its mean test loss
    is never above theirs.

    Args:
        members: flows as ``ConvexPotentialFlow.freeze`` returns them, of one dimension and one dtype. Rows
            may be of any floating dtype; what comes back is as fine as of the finest member.

    Shapes: samples (N, d); log-densities (N,).

    Raises:
        ValueError: no members, different dimensions, dtypes or columns, or a member that is not frozen; from
            the methods, samples of another width or with NaN or infinite entries.
        TypeError: a member of another kind; from the methods, samples that are not floating-point.

    Source: Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation
    using deep ensembles", NeurIPS 2017.

    Example:
        >>> import convexlift as cl
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> flows = [cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,), seed=seed)]) for seed in range(3)]
        >>> for flow in flows:
        ...     flow.initialise(x)
        >>> mixture = Ensemble(flow.freeze() for flow in flows)
        >>> mixture.log_prob(x).shape, mixture.sample(5, seed=0).shape
        (torch.Size([100]), torch.Size([5, 2]))
        >>> apart = torch.stack([member.log_prob(x) for member in mixture.members]).mean(0)
        >>> bool((mixture.log_prob(x) >= apart - 1e-5).all())
        True
    """

    def __init__(self, members: Iterable[ConvexPotentialFlow]) -> None:
        super().__init__()
        chosen = list(members)
        if not chosen:
            raise ValueError("an ensemble needs at least one member")
        for member in chosen:
            _check_member(member)
        dims = [member.dim for member in chosen]
        if len(set(dims)) > 1:
            raise ValueError(
                f"the members of an ensemble must have one dimension; got {', '.join(map(str, dims))}"
            )
        dtypes = [name_dtype(member.dtype) for member in chosen]
        if len(set(dtypes)) > 1:
            raise ValueError(f"the members of an ensemble must have one dtype; got {', '.join(dtypes)}")
        self.dim = dims[0]
        if any(member.columns != chosen[0].columns for member in chosen):
            raise ValueError("the members of an ensemble must read the same columns in one order")
        self.columns = chosen[0].columns
        self.members = nn.ModuleList(chosen)
        self.eval()

    def config(self) -> dict[str, Any]:
        """The constructor's argument that rebuilds the ensemble, its members; ``save`` writes it."""
        return {"members": list(self.members)}

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the members, in which they compute."""
        return self._flows[0].dtype

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        check_samples(x, self.dim)
        each = [flow.log_prob(x) for flow in self._flows]
        mixed = torch.stack([log_prob.double() for log_prob in each]).logsumexp(0) - math.log(len(each))
        return mixed.to(widest(*(log_prob.dtype for log_prob in each)))

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """n independent draws, (n, d), each from a member chosen at random; the same for the same seed.

        Raises:
            RuntimeError: a member's inverse does not converge; see ``ConvexPotentialFlow.sample``.
        """
        n = check_draws(n)
        generator = generator_on(seed=fresh_seed() if seed is None else seed)
        chosen = torch.randint(len(self._flows), (n,), generator=generator, device="cpu")
        seeds = torch.randint(2**62, (len(self._flows),), generator=generator, device="cpu").tolist()
        each = [flow.sample(int((chosen == k).sum()), seed=seeds[k]) for k, flow in enumerate(self._flows)]
        # Sorted by member they lie one after the other; each row takes its place.
        return torch.cat(each)[chosen.argsort(stable=True).argsort().to(each[0].device)]

    @property
    def _flows(self) -> list[ConvexPotentialFlow]:
        return list(self.members)  # type: ignore[arg-type]


def _check_member(member: nn.Module) -> None:
    if not isinstance(member, ConvexPotentialFlow):
        raise TypeError(f"expected frozen convex-potential flows; got {type(member).__name__}")
    if any(parameter.requires_grad for parameter in member.parameters()):
        raise ValueError("a member of the ensemble is still in training: freeze it first")
