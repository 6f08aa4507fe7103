"""Frozen models as programs that run without this library."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convexlift.ambient import guarded
from convexlift.sources import is_lifted
from convexlift.tasks import ConvexPotentialFlow
from convexlift.tasks.flow import log_prob_by_cholesky

__all__ = ["log_prob_program"]


@guarded
def log_prob_program(flow: ConvexPotentialFlow) -> ExportedProgram:
    """The log-density of a frozen flow as a ``torch.export`` program of any number of rows.

        x (N, d) -> log p(x) (N,),   N >= 0,

    with the standardiser and every weight inside it. ``torch.export.save`` writes it to a .pt2 file, which
    ``torch.export.load`` reads where only PyTorch is installed. That file may hold pickled objects, and
    loading it may run them: load files you trust only. ``convexlift.save`` and ``load`` pickle nothing.

    The program looks at no values. It does not check its input, a row that overflows is NaN or infinite
    rather than an error, and nothing is done again in float64. It holds the Jacobians of all its rows at
    once, N d (hidden width) numbers for each layer: a few hundred rows at a time are fastest. The
    log-determinant is exact, whatever ``flow.logdet_method`` is.

    Args:
        flow: a ``ConvexPotentialFlow`` as ``freeze`` returns it; the program is of its dtype and device.

    Raises:
        TypeError: not a ``ConvexPotentialFlow``.
        ValueError: the flow is not frozen.

    Example:
        >>> import convexlift as cl, tempfile
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8, 8), seed=0)]).freeze()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.export.save(log_prob_program(flow), f"{folder}/flow.pt2")
        ...     log_prob = torch.export.load(f"{folder}/flow.pt2").module()
        >>> x = torch.ones(3, 2)
        >>> torch.allclose(log_prob(x), flow.log_prob(x))
        True
    """
    if not isinstance(flow, ConvexPotentialFlow):
        raise TypeError(f"expected a ConvexPotentialFlow; got {type(flow).__name__}")
    if is_lifted(flow) or any(parameter.requires_grad for parameter in flow.parameters()):
        raise ValueError("this flow is still in training: export flow.freeze(data)")
    # Rows of zeros, since a program keeps its example.
    rows = torch.zeros(3, flow.dim, dtype=flow._resolving(), device=flow.device)
    with torch.no_grad():
        return torch.export.export(_LogProb(flow), (rows,), dynamic_shapes={"x": {0: Dim("rows", min=0)}})


@final
class _LogProb(nn.Module):
    def __init__(self, flow: ConvexPotentialFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return log_prob_by_cholesky(self.flow, x)
