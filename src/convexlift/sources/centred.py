"""Centred activations: inner layers read what is left of their inputs without the mean, or mean and slope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.architectures import ICNN, Potential
from convexlift.sources.source import WeightSource


@guard_methods
@final
class Centred(nn.Module):
    """A weight source whose inner layers read activations without their mean and, on request, their slope.

        u_{l+1} = W_l (s(u_l) - m_l - c_l T_l x) + T_{l+1} x + b_{l+1},
        f(x) = w . (s(u_L) - c_L T_L x) + t . x,

    m_l the mean of each unit over batches and c_l its mean slope E s'(u_l), or zero; both are followed by
    moving averages, without gradient. So a step on W_l moves neither the mean of the next layer nor, with
    slopes, its linear part: the biases and skips see to these. Both are folded: the emitted potential has the
    biases b_{l+1} - W_l m_l and the skips T_{l+1} - W_l diag(c_l) T_l, whose signs are free. It is a plain
    ICNN with the weights of the source, as non-negative as they are, and so is what ``freeze`` returns.
    Training alone changes.

    ``initialise`` takes m and c from training points and moves b and T so that the function is that of the
    source. In train mode under autograd ``emit(batch)`` follows the batch; else the averages stand still, and
    freezing changes nothing.

    Args:
        source: a weight source of an ICNN, such as ``Squared``; it is held, not copied.
        slopes: take out the linear part too, so that a unit hands on its curvature alone. That suits
            functions that curve alike in all directions, at few steps; it did harm on a maximum of planes. A
            network without skips has nowhere to fold it and is centred by its means alone.
        momentum: of the moving averages, the share of the new batch, above 0 and at most 1.

    Shapes: batch (N, d), N >= 1.

    Raises:
        TypeError: not a weight source of an ICNN.
        ValueError: a momentum that is no share, an empty batch; otherwise what the source raises.

    Source: Schraudolph, "Centering neural network gradient factors", 1998; Raiko, Valpola and LeCun, "Deep
    learning made easier by linear transformations in perceptrons", AISTATS 2012.

    Example:
        >>> import convexlift as cl
        >>> net, x = cl.ICNN(2, hidden=(8, 8), seed=0), torch.randn(64, 2)
        >>> source = cl.Centred(cl.Squared(net))
        >>> source.initialise(x)
        >>> torch.allclose(source(x), net(x), atol=1e-5)
        True
        >>> isinstance(source.freeze(), cl.ICNN)
        True
    """

    initialised: Tensor

    def __init__(self, source: WeightSource, *, slopes: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        architecture: Any = getattr(source, "architecture", None)
        if not isinstance(source, WeightSource) or not getattr(architecture, "dense", False):
            inside = f" of {type(architecture).__name__}" if isinstance(architecture, nn.Module) else ""
            raise TypeError(f"expected a weight source of an ICNN; got {type(source).__name__}{inside}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1]; got {momentum}")
        self.source, self.momentum = source, momentum
        self.slopes = slopes and architecture.skip
        like, widths = next(source.parameters()).detach(), (*architecture.hidden, 1)
        for level, width in enumerate(architecture.hidden):
            self.register_buffer(f"mean_{level}", like.new_zeros(width))
            self.register_buffer(f"slope_{level}", like.new_zeros(width))
            self.register_buffer(f"bias_start_{level}", like.new_zeros(widths[level + 1]))
            self.register_buffer(f"skip_start_{level}", like.new_zeros(widths[level + 1], architecture.dim))
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def architecture(self) -> ICNN:
        """The architecture of the source."""
        return self.source.architecture  # type: ignore[return-value]

    @property
    def dim(self) -> int:
        """The number of inputs of the architecture."""
        return self.source.dim

    @property
    def averaged(self) -> list[str]:
        """The buffers that belong to the weights of the moment, and are averaged where these are."""
        levels = range(len(self.architecture.hidden))
        return [f"{kind}_{level}" for kind in ("mean", "slope") for level in levels]

    @property
    def settle_at(self) -> float | None:
        """The fraction of training at which ``settle`` is due; None without a lift."""
        return getattr(self.source, "settle_at", None)

    def emit(self, batch: Tensor | None = None) -> Potential:
        """The plain potential that this moment's weights, means and slopes make."""
        tensors = self.source.emit(batch).tensors
        follows = self.training and torch.is_grad_enabled() and batch is not None
        return Potential(self.architecture, self._folded(tensors, batch if follows else None, self.momentum))

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """f(x), (N,), with weights emitted from ``batch``; in train mode from x when it is omitted."""
        return self.emit(x if batch is None and self.training else batch).value(x)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start, once, from the means and slopes at these points, at the source's own function."""
        if self.initialised:
            return
        self.source.initialise(x)
        training = self.training
        tensors = self.eval().source.emit(x).tensors
        self.train(training)
        self._folded(tensors, x, 1.0, start=True)
        self.initialised.fill_(True)

    @torch.no_grad()
    def freeze(self, data: Tensor | None = None) -> ICNN:
        """The plain ICNN of this moment, asking for no gradient."""
        frozen: ICNN = self.source.freeze(data)  # type: ignore[assignment]
        parameters = dict(frozen.named_parameters())
        for name, tensor in self._folded(parameters).items():
            parameters[name].copy_(tensor)
        return frozen

    def settle(self, data: Tensor) -> None:
        """Fix what depends on the batch in the source to its value on the training data."""
        self.source.settle(data)

    def set_progress(self, t: float) -> None:
        """Tell the source how far training is, t in [0, 1]."""
        self.source.set_progress(t)

    def _folded(
        self,
        tensors: Mapping[str, Tensor],
        x: Tensor | None = None,
        momentum: float = 0.0,
        start: bool = False,
    ) -> dict[str, Tensor]:
        """The plain network's tensors; with points, means and slopes are first moved, layer by layer."""
        out = dict(tensors)
        depth, s = len(self.architecture.hidden), self.architecture.activation
        through = tensors["skips.0"]  # T_l, the linear part of u_l in x
        u = None if x is None else _affine(tensors["biases.0"], (x, through))
        for level in range(depth):
            last = level + 1 == depth
            weight = tensors["outer" if last else f"inner.{level}"]
            if x is not None and u is not None:
                self._follow(level, x, u, through, momentum)
            mean, slope = self._kept(f"mean_{level}"), self._kept(f"slope_{level}")
            if not last:
                name, taken = f"biases.{level + 1}", weight @ mean
                if start:
                    self._keep(f"bias_start_{level}", taken)
                out[name] = tensors[name] + self._kept(f"bias_start_{level}") - taken
            if self.slopes:
                name, taken = "linear" if last else f"skips.{level + 1}", (weight * slope) @ through
                if start:
                    self._keep(f"skip_start_{level}", taken)
                through = tensors[name] + self._kept(f"skip_start_{level}").view_as(tensors[name])
                out[name] = through - taken
            if x is not None and u is not None and not last:
                pairs = [(s.value(u), weight)]
                pairs += [(x, out[f"skips.{level + 1}"])] if self.architecture.skip else []
                u = _affine(out[f"biases.{level + 1}"], *pairs)
        return out

    @torch.no_grad()
    def _follow(self, level: int, x: Tensor, u: Tensor, through: Tensor, momentum: float) -> None:
        if not len(x):
            raise ValueError("cannot centre activations on an empty batch")
        s = self.architecture.activation
        slope, mean = self._kept(f"slope_{level}"), s.value(u).mean(0)
        if self.slopes:
            slope = slope.lerp(s.slope(u).mean(0), momentum)
            self._keep(f"slope_{level}", slope)
            mean = mean - slope * (through @ x.mean(0))
        self._keep(f"mean_{level}", self._kept(f"mean_{level}").lerp(mean, momentum))

    def _kept(self, name: str) -> Tensor:
        return getattr(self, name)

    def _keep(self, name: str, value: Tensor) -> None:
        # Not in place: a graph of an earlier emission may hold the old one.
        setattr(self, name, value.view_as(self._kept(name)))


@torch.no_grad()
def _affine(bias: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """b + sum of inputs times weights."""
    out = bias
    for inputs, weight in pairs:
        out = out + inputs @ weight.T
    return out
