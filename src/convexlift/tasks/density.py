"""Log-concave densities: maximum likelihood with an exact normaliser."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from convexlift.architectures import Potential
from convexlift.integration.line import MAX_PANELS, Normaliser, log_integral, normaliser, quantile
from convexlift.tasks.standardise import Standardiser
from convexlift.tasks.task import (
    check_block,
    check_rows,
    emit,
    evaluating,
    freeze_block,
    in_float64,
    initialise_block,
    latest_settling,
    require_weights,
    set_block_progress,
    settle_block,
    start_rows,
)


class LogConcaveDensity(nn.Module):
    """The density p(x) = exp(-f(t)) / (Z scale), t = (x - mean) / scale, f convex, Z = integral of exp(-f).

    Z is computed by quadrature that follows the support of exp(-f), so the likelihood is exact, and so is its
    gradient. A lift emits from the data batch, once a step; the same potential is evaluated on the nodes.

    Args:
        block: an ICNN or a weight source of one, of dimension 1.

    Shapes: samples (N, 1); log-densities (N,); scores (N, 1).

    Raises:
        ValueError: dim is not 1; from the methods, samples of another width or with NaN or infinite entries,
            an unfrozen lift without ``batch`` to emit from, or an f whose exp(-f) has no finite integral
            (possible only with strong_convexity = 0).
        TypeError: a block of another kind; from the methods, samples of another dtype.

    Example:
        >>> import convexlift as cl
        >>> density = LogConcaveDensity(cl.ICNN(1, hidden=(8, 8), seed=0))
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> density.initialise(x)
        >>> density.log_prob(x).shape, density.score(x).shape, density.sample(5, seed=0).shape
        (torch.Size([3]), torch.Size([3, 1]), torch.Size([5, 1]))
        >>> density.log_normalizer().error < 1e-6
        True
    """

    log_z: Tensor
    panels: Tensor

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        dim = check_block(block).dim
        if dim != 1:
            raise ValueError(f"exact quadrature needs dim 1; got dim {dim}")
        self.dim = dim
        self.block = block
        like = next(block.parameters())
        self.standardiser = Standardiser(dim).to(like)
        # log Z of a frozen density, and the panels of the last training step (padded); NaN where there are
        # none.
        self.register_buffer("log_z", torch.tensor(torch.nan, dtype=like.dtype, device=like.device))
        self.register_buffer("panels", self.log_z.new_full((MAX_PANELS + 1,), torch.nan))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the density, and of its samples."""
        return self.standardiser.mean.dtype

    def loss(self, batch: Tensor, emit_from: Tensor | None = None) -> Tensor:
        """The mean of -log p over the batch; a lift emits from the batch itself, or from ``emit_from``."""
        t = self._standardised(batch)
        source = t if emit_from is None else self._standardised(emit_from, "emitting samples")
        potential = emit(self.block, source.detach())
        return (
            potential.value(t).mean() + self._training_log_z(potential) - self.standardiser.log_scale_jacobian
        )

    def log_prob(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """log p(x), (N,). Changes no state. An unfrozen lift needs a ``batch`` to emit from."""
        potential = self._potential(batch)
        log_z = self.log_z if self._is_cached() else self._normaliser(potential).log_z.to(self.dtype)
        return self.standardiser.log_scale_jacobian - potential.value(self._standardised(x)) - log_z

    def score(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """The derivative of log p at x, (N, 1)."""
        return -self._potential(batch).gradient(self._standardised(x)) / self.standardiser.scale

    def log_normalizer(self, batch: Tensor | None = None) -> Normaliser:
        """log Z in float64, of f over the standardised line, with rigorous bounds."""
        return self._normaliser(self._potential(batch))

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None, batch: Tensor | None = None) -> Tensor:
        """n independent draws, (n, 1), by inverting the distribution function; the same for the same seed."""
        if n < 0:
            raise ValueError(f"cannot draw {n} samples")
        found = self.log_normalizer(batch)
        device = found.points.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        return self.standardiser.inverse(quantile(found, uniform)[:, None]).to(self.dtype)

    @torch.no_grad()
    def initialise(self, data: Tensor) -> None:
        """Fit the standardiser to training data (N, 1); start a lift from it. Once only.

        Raises:
            ValueError: see ``Standardiser.fit``.
        """
        if bool(self.standardiser.fitted):
            return
        check_rows(data, self.dim, self.dtype)
        initialise_block(self.block, self.standardiser.fit(data)(start_rows(data)))

    @torch.no_grad()
    def freeze(self, data: Tensor | None = None) -> LogConcaveDensity:
        """The density of a plain ICNN in eval mode that asks for no gradient, with its log Z kept.

        A lift emits from the training data (N, 1); without lifts no data are needed.
        """
        with evaluating(self):
            density = LogConcaveDensity(
                freeze_block(self.block, None if data is None else self._standardised(data))
            )
        density.standardiser = copy.deepcopy(self.standardiser)
        density.log_z.copy_(density.log_normalizer().log_z)
        return density.requires_grad_(False).eval()

    @torch.no_grad()
    def settle(self, data: Tensor) -> None:
        """Fix a lift's summary to that of the training data (N, 1)."""
        settle_block(self.block, self._standardised(data))

    def set_progress(self, t: float) -> None:
        """Tell the block how far training is, t in [0, 1]."""
        set_block_progress(self.block, t)

    @property
    def settle_at(self) -> float | None:
        """The fraction of training at which ``settle`` is due; None without a lift."""
        return latest_settling([self.block])

    def block_inputs(self, batch: Tensor) -> list[Tensor]:
        """The points (N, 1) that the block sees when a lift emits from this batch."""
        return [self._standardised(batch)]

    def _standardised(self, x: Tensor, name: str = "samples") -> Tensor:
        return self.standardiser(check_rows(x, self.dim, self.dtype, name))

    def _potential(self, batch: Tensor | None) -> Potential:
        require_weights(self, batch)
        with evaluating(self):
            return emit(self.block, None if batch is None else self._standardised(batch, "emitting samples"))

    def _is_cached(self) -> bool:
        return bool(self.log_z.isfinite()) and not any(p.requires_grad for p in self.block.parameters())

    def _normaliser(self, potential: Potential) -> Normaliser:
        exact = in_float64(potential)
        return normaliser(exact.value, exact.gradient, device=self.log_z.device)

    def _training_log_z(self, potential: Potential) -> Tensor:
        if self._is_cached():
            return self.log_z
        known = self.panels[self.panels.isfinite()]
        log_z, panels = log_integral(
            potential.value, known if len(known) else None, dtype=potential.dtype, device=known.device
        )
        if self.training and panels is not known:
            self.panels.fill_(torch.nan)[: len(panels)] = panels
        return log_z
