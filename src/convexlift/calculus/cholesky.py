"""What exact log-determinants share: when they exist, their value from a factor, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexlift.checks import may_branch, name_rows


def check_strongly_convex(alpha: Tensor | None) -> None:
    """Raise a ValueError where alpha is fixed at zero.

    >>> check_strongly_convex(None)
    Traceback (most recent call last):
    ...
    ValueError: logdet needs strong_convexity > 0: with alpha = 0 the Hessian may be singular
    """
    if alpha is None:
        raise ValueError("logdet needs strong_convexity > 0: with alpha = 0 the Hessian may be singular")


def logdet_of(factor: Tensor) -> Tensor:
    """log det of L L', (N,), from Cholesky factors L (N, d, d).

    >>> logdet_of(2 * torch.eye(3).unsqueeze(0)) / torch.tensor(2.0).log()
    tensor([6.])
    """
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def factored_logdet(hessian: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor:
    """log det of Hessians (N, d, d), (N,); rows without a Cholesky factor are done again in float64.

    Where values cannot be looked at, under ``torch.compile`` and ``torch.func``, such rows are NaN.

    Args:
        hessian: (N, d, d).
        again: numbers of rows (M,) -> their Hessians in float64, (M, d, d).

    Raises:
        FloatingPointError: a Hessian is not positive definite even in float64 (rows are named).

    >>> singular = torch.zeros(1, 2, 2)
    >>> factored_logdet(singular, lambda rows: torch.eye(2, dtype=torch.float64).expand(len(rows), 2, 2))
    tensor([0.])
    """
    factor, info = torch.linalg.cholesky_ex(hessian)
    failed = (info > 0)[:, None, None]
    if not may_branch(info):
        return logdet_of(torch.where(failed, torch.nan, factor))
    if not bool(info.any()):
        return logdet_of(factor)
    # In the place of the rows that failed an identity, so that no NaN gets into a backward.
    eye = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    fine = logdet_of(torch.linalg.cholesky(torch.where(failed, eye, hessian)))
    rows = torch.nonzero(info).flatten()
    factor, info = torch.linalg.cholesky_ex(again(rows))
    check_factored(info, rows, len(hessian))
    return fine.index_copy(0, rows, logdet_of(factor).to(hessian.dtype))


def layers_in_float64(layers: Any) -> Any:
    """A tuple of tensors, of such tuples and of other things, with every tensor in float64.

    >>> layers_in_float64((torch.ones(1), (None, torch.ones(1)), 3))
    (tensor([1.], dtype=torch.float64), (None, tensor([1.], dtype=torch.float64)), 3)
    """
    if not isinstance(layers, tuple):
        return layers.double() if isinstance(layers, Tensor) else layers
    parts = [layers_in_float64(part) for part in layers]
    return type(layers)(*parts) if hasattr(layers, "_fields") else tuple(parts)


def check_factored(info: Tensor, rows: Tensor, count: int) -> None:
    """Raise a FloatingPointError that names those of ``rows``, out of ``count``, that have no factor.

    ``info`` is that of ``cholesky_ex`` in float64.

    >>> check_factored(torch.tensor([0, 2]), torch.tensor([1, 4]), 5)
    Traceback (most recent call last):
    ...
    FloatingPointError: the Hessian is not positive definite in float64 at 1 of 5 rows (4): raise ...
    """
    if bool((info > 0).any()):
        failed = torch.zeros(count, dtype=torch.bool, device=rows.device).index_fill(0, rows[info > 0], True)
        raise FloatingPointError(
            f"the Hessian is not positive definite in float64 at {name_rows(failed)}: "
            "raise strong_convexity or look for non-finite inputs"
        )
