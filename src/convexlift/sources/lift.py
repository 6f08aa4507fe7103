"""The lift: weights emitted by an unconstrained hypernetwork that reads a summary of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.seeds import generator_on, seeded
from convexlift.sources.body import DeepSets, Moments, pool
from convexlift.sources.positivity import PositiveMap, positive_map
from convexlift.sources.readout import Dense, Factored
from convexlift.sources.size import fitting
from convexlift.sources.source import WeightSource

# The initial summary s_0 is that of the first rows of the training data, at most this many.
_ANCHOR_ROWS = 4096
# Step of the exponential averages over batches (mean, and covariance for coupling="noise").
_AVERAGING = 0.02
_EPSILON = 1e-6

NEEDS_BATCH = "an unfrozen lift has no weights of its own: freeze on training data or pass batch="


class Lift(WeightSource):
    """Weights psi(g b + R s(X)) emitted from a permutation-invariant summary s of the batch X.

        s(X) = standardise(mean_i phi(x_i)),   theta(X) = g b + R s(X),   W(X) = psi(theta(X)),

    and free tensors theta(X), without psi; with a factored readout free vectors are g b alone. Under Adam a
    gain g is a rate g times as large, so the default gains are for a small rate: ``fit`` takes 0.001 for
    lifts. With gains of 1 a lift takes the rates of the other sources.

    Three ingredients, each removable: the slack b (``slack=False`` holds it at its start), the body phi and R
    that read the batch (``body="constant"`` puts a learned constant in place of s), and the coupling, that
    the batch which emits is the batch whose loss is differentiated (``coupling="independent"`` makes ``fit``
    emit from another batch; ``coupling="noise"`` draws s from a normal law with the running mean and
    covariance of the summaries). X is detached where it emits.

    The lift starts as exactly the network it is given: b = (psi^{-1}(W_0) - R s_0) / g, with s_0 the summary
    of the first training rows (``initialise``; of a standard normal sample until then).

    In train mode ``emit(batch)`` reads the batch. In eval mode ``emit(None)`` uses the summary stored by
    ``settle``. ``freeze(data)`` emits once from the training data and returns the plain network.

    Settling: ``fit`` calls ``set_progress``; between the two fractions ``settle_window`` of training the
    summary anneals to its running mean, and at the end of the window ``settle(data)`` stores the exact
    training summary. From then on b and R train alone, and freezing changes nothing.

    Args:
        module: the architecture; it is copied. Any module will do, with ``names`` and ``dim``.
        names: its non-negative parameters; ``module.nonnegative`` when omitted.
        dim: number of columns of a (flattened) batch; ``module.dim`` when omitted.
        summary: "deepsets", or "moments" ([mean, mean square]).
        body_hidden: hidden widths of the DeepSets body; by default one layer, of at most 32 units.
        features: length of the DeepSets summary. By default body and summary are as large as keeps all that
            trains within 1.5 times the network's parameters, or 2,000 above them where that is more, and in
            any case within 3 times (with a factored readout of a network of a hundred parameters or more).
        standardise: "features" (zero mean and unit deviation across the pooled vector), "centred" (running
            mean removed: only the batch's fluctuation is left) or ``None``. Moments are divided by running
            per-feature deviations instead of "features".
        readout: "factored" (low rank) or "dense".
        rank: rank of the factored readout.
        readout_scale: factor on R s, or "fan_in" to divide by the length of the summary.
        psi: "softplus" or "square".
        slack: learn b, or hold it.
        weight_gain: g of the constrained tensors.
        free_gain: g of the free tensors, where these are emitted.
        body: "batch" or "constant".
        coupling: "batch", "independent" or "noise".
        targets: "all" to emit the free parameters too (those that require a gradient), or "nonnegative".
        start: ``None`` for the same start as ``module``, or the number at which every constrained slack
            starts, the readout then scattering the weights around psi(start).
        settle_window: fractions of training between which the summary settles.
        seed: of the body's and readout's initial values; torch's global generator when omitted.

    Shapes: batch (N, dim) with N >= 1.

    Raises:
        ValueError: an option is unknown; emitting without a batch in train mode; emitting from nothing in
            eval mode.

    Source: "The lift" (arXiv 2605.24274).

    Example:
        >>> import convexlift as cl
        >>> net = cl.ICNN(2, hidden=(8, 8), seed=0)
        >>> lift, x = cl.Lift(net, seed=0), torch.randn(64, 2)
        >>> lift.initialise(x)
        >>> torch.allclose(lift(x), net(x), atol=1e-5)
        True
        >>> isinstance(lift.freeze(x), cl.ICNN)
        True
    """

    psi: PositiveMap
    reads_batch = True
    anchor: Tensor
    stored: Tensor
    running_mean: Tensor
    running_covariance: Tensor
    pooled_mean: Tensor
    pooled_deviation: Tensor
    initialised: Tensor
    settled: Tensor
    gain: Tensor

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str] | None = None,
        *,
        dim: int | None = None,
        summary: str = "deepsets",
        body_hidden: Sequence[int] | None = None,
        features: int | None = None,
        standardise: str | None = "features",
        readout: str = "factored",
        rank: int = 1,
        readout_scale: float | str = 0.3,
        psi: str = "softplus",
        slack: bool = True,
        weight_gain: float = 40.0,
        free_gain: float = 40.0,
        body: str = "batch",
        coupling: str = "batch",
        targets: str = "all",
        start: float | None = None,
        settle_window: tuple[float, float] = (0.7, 0.85),
        seed: int | None = None,
    ) -> None:
        super().__init__(module, names)
        _choose("summary", summary, "deepsets", "moments")
        _choose("standardise", standardise, "features", "centred", None)
        _choose("readout", readout, "factored", "dense")
        _choose("body", body, "batch", "constant")
        _choose("coupling", coupling, "batch", "independent", "noise")
        _choose("targets", targets, "nonnegative", "all")
        if not 0 <= settle_window[0] <= settle_window[1] <= 1:
            raise ValueError(
                f"settle_window must be two increasing fractions of training; got {settle_window}"
            )
        for option, given in (("weight_gain", weight_gain), ("free_gain", free_gain)):
            if not (given > 0 and math.isfinite(given)):
                raise ValueError(f"{option} must be positive and finite; got {given}")
        self.psi = positive_map(psi)
        self.standardise, self.coupling = standardise, coupling
        self.settle_window = settle_window
        self._blend = 0.0
        self._columns = _columns(module, dim)

        trained = {name for name, p in module.named_parameters() if p.requires_grad or name in self.names}
        free = [(name, p) for name, p in module.named_parameters() if name in trained - set(self.names)]
        # A factored readout leaves out free vectors, which would take as long as matrices.
        whole = readout == "dense"
        read = [name for name, p in free if whole or p.ndim >= 2]
        rest = [name for name, p in free if not (whole or p.ndim >= 2)]
        self.emitted = (*self.names, *(read + rest if targets == "all" else ()))
        self._read = len(self.names) + (len(read) if targets == "all" else 0)
        values = self._take_out(self.emitted)
        shapes = [value.shape for value in values[: self._read]]
        parameters = sum(module.get_parameter(name).numel() for name in trained)
        usual = fitting(shapes, self._columns, int(rank), parameters)
        body_hidden = usual.hidden if body_hidden is None else body_hidden
        features = usual.features if features is None else features
        with seeded(seed):
            self.phi: DeepSets | Moments = (
                DeepSets(self._columns, body_hidden, features)
                if summary == "deepsets"
                else Moments(self._columns)
            )
            size = self.phi.features
            self.readout: Dense | Factored = (
                Dense(shapes, size, readout_scale)
                if readout == "dense"
                else Factored(shapes, size, readout_scale, rank)
            )
            if start is not None:
                bound, own = size**-0.5, generator_on(values[0].device)
                values = [torch.empty_like(v).uniform_(-bound, bound, generator=own) for v in values]
        self.to(values[0])
        template = values[0].new_zeros(size)
        for name in ("running_mean", "pooled_mean", "anchor", "stored"):
            self.register_buffer(name, template.clone())
        self.register_buffer("pooled_deviation", torch.ones_like(template))
        if coupling == "noise":
            self.register_buffer("running_covariance", template.new_zeros(size, size))
        for name in ("initialised", "settled"):
            self.register_buffer(name, torch.tensor(False))
        self.register_buffer("gain", template.new_tensor([weight_gain, free_gain]))
        self._weight_gain, self._free_gain = self.gain.tolist()  # on the host: emissions wait for no device
        self.code: nn.Parameter | None = None
        if body == "constant":
            self.code = nn.Parameter(template.clone())
            self.phi.requires_grad_(False)

        reference = torch.randn(
            512, self._columns, generator=generator_on(seed=0), dtype=torch.float32, device="cpu"
        ).to(template)
        self._set_anchor(reference)
        constrained = len(self.names)
        if start is None:
            values[:constrained] = [self.psi.inverse(value) for value in values[:constrained]]
            offsets = self._offsets(values)
            values = [value - offset for value, offset in zip(values, offsets, strict=True)]
        else:
            values[:constrained] = [torch.full_like(value, float(start)) for value in values[:constrained]]
        values = [value / g for value, g in zip(values, self._gains, strict=True)]
        self.keeps_start = start is None
        self.slack = nn.ParameterList([nn.Parameter(value, requires_grad=slack) for value in values])

    @classmethod
    def reference(
        cls, module: nn.Module, names: Sequence[str] | None = None, *, seed: int | None = None
    ) -> Lift:
        """The configuration of the method's reference code, for reproducing its protocol.

        All parameters emitted, DeepSets body (64, 64, 96), summary standardised across features, dense
        unscaled readout, slack started at -2 (so the start is scattered, not that of ``module``).

        >>> import convexlift as cl
        >>> cl.Lift.reference(cl.ICNN(2, hidden=(8, 8))).emitted[-1]
        'biases.1'
        """
        return cls(
            module,
            names,
            body_hidden=(64, 64),
            features=96,
            readout="dense",
            readout_scale=1.0,
            weight_gain=1.0,
            free_gain=1.0,
            targets="all",
            start=-2.0,
            seed=seed,
        )

    @property
    def amplified(self) -> bool:
        """Whether a gain above 1 lengthens the steps of an emitted tensor."""
        return max(self._gains) > 1

    @property
    def settle_at(self) -> float:
        """The fraction of training at which ``settle`` is due."""
        return self.settle_window[1]

    def set_progress(self, t: float) -> None:
        """Tell how far training is, t in [0, 1]: in the settling window the summary anneals to its mean."""
        begin, end = self.settle_window
        self._blend = min(max((t - begin) / (end - begin), 0.0), 1.0) if end > begin else float(t >= end)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Move the start, once, to these training points: at their summary the lift is the given network."""
        if self.initialised:
            return
        before = self._offsets(list(self.slack))
        self._set_anchor(self._rows(x[:_ANCHOR_ROWS]))
        if self.keeps_start:
            after = self._offsets(list(self.slack))
            for slack, old, new, g in zip(self.slack, before, after, self._gains, strict=True):
                slack += (old - new) / g
        self.initialised.fill_(True)

    @torch.no_grad()
    def settle(self, data: Tensor) -> None:
        """Store the exact summary of the training data; from now on the batch is not read."""
        if not self.settled:
            self.stored.copy_(self._standardised(self._pooled(data)))
            self.settled.fill_(True)

    def summary(self, batch: Tensor | None) -> Tensor:
        """The summary s(X) that an emission uses now, (k,).

        In train mode under autograd it updates the running statistics.

        Raises:
            ValueError: no batch and nothing stored, an empty batch, or a batch of another width.
        """
        if self.code is not None:
            return self.code
        if self.settled:
            return self.stored
        if batch is None:
            raise ValueError(NEEDS_BATCH)
        summary = self._standardised(self._pooled(batch))
        if not self.training:
            return summary
        if torch.is_grad_enabled():
            self._track(summary.detach(), batch)
        if self.coupling == "noise":
            summary = self._matched_noise()
        return torch.lerp(summary, self.running_mean, self._blend) if self._blend else summary

    def latents(self, summary: Tensor) -> list[Tensor]:
        """theta = g b + R s, one tensor for every emitted parameter."""
        slack, gains = list(self.slack), self._gains
        read = self.readout(summary, slack[: self._read], gains[: self._read])
        return read + [b * g for b, g in zip(slack[self._read :], gains[self._read :], strict=True)]

    def free_tensors(self) -> dict[str, nn.Parameter]:
        constrained = len(self.names)
        free = zip(self.emitted[constrained:], list(self.slack)[constrained:], strict=True)
        return {**super().free_tensors(), **dict(free)}

    def weights(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        """The emitted tensors by parameter name, the constrained ones through psi."""
        return self._weights_from(self.summary(batch))

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """f(x), (N,), with weights emitted from ``batch``; in train mode from x when it is omitted."""
        if batch is None and self.training:
            batch = x
        return self.emit(batch)(x)  # type: ignore[call-arg]

    @torch.no_grad()
    def freeze(self, data: Tensor | None = None) -> nn.Module:
        """The plain architecture with the weights emitted from the training data, asking for no gradient.

        Raises:
            ValueError: no data, unless the lift has settled; or a weight is not a number.
        """
        if data is None or self.settled or self.code is not None:
            return self._frozen(self._weights_from(self.summary(None)))
        return self._frozen(self._weights_from(self._standardised(self._pooled(data))))

    @property
    def _gains(self) -> list[float]:
        """The gain of each emitted tensor, constrained ones first."""
        constrained = len(self.names)
        return [self._weight_gain] * constrained + [self._free_gain] * (len(self.emitted) - constrained)

    @torch.no_grad()
    def _offsets(self, like: Sequence[Tensor]) -> list[Tensor]:
        """R s_0 for tensors like these."""
        zeros = [torch.zeros_like(b) for b in like]
        return self.readout(self.anchor, zeros[: self._read], [1.0] * self._read) + zeros[self._read :]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # States of before there were gains have none, and mean 1. The slack is theta in units of the gain, so
        # a state's gain comes with it.
        state.setdefault(f"{prefix}gain", torch.ones_like(self.gain))
        super()._load_from_state_dict(state, prefix, *rest)
        self._weight_gain, self._free_gain = self.gain.tolist()

    def _weights_from(self, summary: Tensor) -> dict[str, Tensor]:
        latents = self.latents(summary)
        constrained = len(self.names)
        values = [self.psi.value(theta) for theta in latents[:constrained]] + latents[constrained:]
        return dict(zip(self.emitted, values, strict=True))

    def _pooled(self, batch: Tensor) -> Tensor:
        total, count = pool(self.phi, self._rows(batch))
        return total / count

    def _rows(self, batch: Tensor) -> Tensor:
        """The batch as rows (N, dim), N >= 1."""
        if not len(batch):
            raise ValueError("cannot compute weights from an empty batch")
        if batch.shape[1:].numel() != self._columns:
            raise ValueError(f"expected a batch of {self._columns} columns; got {tuple(batch.shape)}")
        return batch.flatten(1)

    def _standardised(self, pooled: Tensor) -> Tensor:
        if self.standardise == "centred":
            return pooled - self.pooled_mean
        if self.standardise is None:
            return pooled
        if isinstance(self.phi, Moments):
            return pooled / self.pooled_deviation
        return F.layer_norm(pooled, pooled.shape, eps=_EPSILON)

    @torch.no_grad()
    def _set_anchor(self, x: Tensor) -> None:
        """Start the running statistics, s_0 and the learned constant from these points."""
        features = self.phi(x)
        self.pooled_mean.copy_(features.mean(0))
        if len(x) > 1:
            self.pooled_deviation.copy_(features.std(0) + _EPSILON)
        anchor = self._standardised(features.mean(0))
        self.anchor.copy_(anchor)
        self.running_mean.copy_(anchor)
        if self.code is not None:
            self.code.copy_(anchor)

    @torch.no_grad()
    def _track(self, summary: Tensor, batch: Tensor) -> None:
        """Update the running statistics with this batch."""
        change = summary - self.running_mean
        if self.coupling == "noise":
            self.running_covariance.lerp_(torch.outer(change, change), _AVERAGING)
        if self.standardise == "centred":
            self.pooled_mean.add_(summary, alpha=_AVERAGING)
            return
        self.running_mean.add_(change, alpha=_AVERAGING)
        if isinstance(self.phi, Moments) and len(batch) > 1:
            self.pooled_deviation.lerp_(self.phi(batch.flatten(1)).std(0) + _EPSILON, _AVERAGING)

    def _matched_noise(self) -> Tensor:
        """A draw of the normal law with the running mean and covariance of the summaries."""
        values, vectors = torch.linalg.eigh(self.running_covariance)
        noise = vectors @ (
            values.clamp_min(0).sqrt()
            * torch.randn(
                values.shape, generator=generator_on(values.device), dtype=values.dtype, device=values.device
            )
        )
        return self.running_mean + noise


def is_lifted(module: nn.Module) -> bool:
    """Whether the module holds a source that reads the batch: an unfrozen ``Lift``.

    >>> import convexlift as cl
    >>> is_lifted(cl.Lift(cl.ICNN(2))), is_lifted(cl.ICNN(2))
    (True, False)
    """
    return any(getattr(part, "reads_batch", False) for part in module.modules())


def _choose(option: str, given: str | None, *known: str | None) -> None:
    if given not in known:
        raise ValueError(f"unknown {option} {given!r}; known: {', '.join(repr(k) for k in known)}")


def _columns(module: nn.Module, dim: int | None) -> int:
    columns = getattr(module, "batch_dim", getattr(module, "dim", None)) if dim is None else dim
    if columns is None:
        raise ValueError(f"{type(module).__name__} does not declare its number of inputs: pass dim=")
    return int(columns)
