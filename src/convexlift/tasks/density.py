"""Log-concave densities: p(x) = exp(-f(x)) / Z with f convex, normalised with a stated error."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded, new_networks_in
from convexlift.architectures import Potential
from convexlift.architectures.base import architecture_of
from convexlift.calculus.newton import invert_gradient
from convexlift.checks import check_draws, check_flag, may_branch
from convexlift.defaults import DENSITY
from convexlift.integration import line
from convexlift.integration.annealing import AnnealedNormaliser
from convexlift.integration.annealing import annealed_normaliser as annealed
from convexlift.integration.gaussian import Gaussian, laplace
from convexlift.integration.langevin import Draws, adapted
from convexlift.integration.langevin import draw as run_chains
from convexlift.integration.line import Normaliser
from convexlift.integration.plane import normaliser as plane
from convexlift.integration.plane.normaliser import PlaneNormaliser
from convexlift.objectives import Objective, objective_named
from convexlift.objectives.objective import mean, share
from convexlift.origins import Origin
from convexlift.seeds import fresh_seed, generator_on
from convexlift.tasks.region import CredibleRegion, region_of_draws
from convexlift.tasks.standardise import Principal, Standardiser, Whitener
from convexlift.tasks.task import Task, check_rows, in_float64, start_rows

Rows = Tensor | tuple[Tensor, Tensor]

# An entry this many times the width of the middle 90 % from the median is no draw of a log-concave density.
_FARTHEST = 1e4
# Rows by which that width is found.
_WIDTH_ROWS = 100_000
# Of a normalisation that many models of a comparison get.
_PARTICLES = 1024
# Points by which the threshold of a credible region is found: quantiles in one dimension, draws above two.
_REGION_POINTS = 20_480


@final
class LogConcaveDensity(Task):
    """The density p(x) = exp(-f(t)) / Z |dt/dx|, t the standardised x, f convex, Z = integral of exp(-f).

    t = (x - mean) / scale in one dimension; above, t = L^-1 (x - mean) with L L' the covariance of the
    training rows and L triangular, or with ``whiten`` their principal components at unit deviation. Z is
    found by quadrature in one and two dimensions, with rigorous bounds, and by annealed importance sampling
    above, with a standard error; either way the same every time. A lift emits from the data batch, once a
    step.

    Args:
        block: an ICNN or a weight source of one. Above two dimensions give it strong convexity.
        objective: what training minimises, a name or an ``Objective``: "mle" (by quadrature where d <= 2, by
            persistent chains above), "importance" and "importance-flow" (likelihood by importance sampling),
            "chains", "score", "denoising" or "nce".
        whiten: take principal components in place of L^-1 (x - mean).

    Training rows are a tensor (N, d), or a pair of it and observation weights (N,), non-negative: a row of
    weight 2 counts as two rows. Only the ratios of weights matter: they are divided by their mean over the
    training rows in training, over the rows given in evaluation. ``freeze`` finds log Z in one dimension;
    above, the first ``log_prob`` does.

    Shapes: samples (N, d); log-densities (N,); scores (N, d).

    Raises:
        ValueError: an unknown objective; from the methods, samples of another width or with NaN or infinite
            entries, an unfrozen lift without ``batch`` to emit from, or an f whose exp(-f) has no finite
            integral (possible only with strong_convexity = 0), or weights that are negative or all zero; from
            ``initialise``, an entry lies so far out that no log-concave density has it, or nearly all of a
            column is one value.
        TypeError: a block of another kind; from the methods, samples that are not floating-point.
        FloatingPointError: from ``score``, it overflows in the user's units.
        UnreliableEstimate: a RuntimeError, from what needs Z above two dimensions: its estimate collapsed.

    Source: Walther, "Inference and modeling with log-concave distributions", Statistical Science 2009.

    Example:
        >>> import convexlift as cl
        >>> density = LogConcaveDensity(cl.ICNN(1, hidden=(8, 8), seed=0))
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> density.initialise(x)
        >>> density.log_prob(x).shape, density.score(x).shape, density.sample(5, seed=0).shape
        (torch.Size([3]), torch.Size([3, 1]), torch.Size([5, 1]))
        >>> density.normaliser().error < 1e-6
        True
    """

    defaults = DENSITY
    standardiser: Standardiser | Whitener | Principal
    log_z: Tensor
    quick_log_z: Tensor
    mean_weight: Tensor

    def __init__(self, block: nn.Module, objective: str | Objective = "mle", *, whiten: bool = False) -> None:
        super().__init__()
        self.dim = architecture_of(block).dim
        self.block = block
        like = next(block.parameters())
        with new_networks_in(like.dtype):
            chosen = objective_named(objective, self.dim) if isinstance(objective, str) else objective
        self.objective = chosen.to(like)
        self.whiten = check_flag("whiten", whiten)
        usual = Standardiser if self.dim == 1 else Whitener
        self.standardiser = (Principal if self.whiten else usual)(self.dim).to(like)
        # log Z of a frozen density, and an estimate that is good enough to validate by; NaN where unknown.
        self.register_buffer("log_z", torch.tensor(torch.nan, dtype=like.dtype, device=like.device))
        self.register_buffer("quick_log_z", self.log_z.clone(), persistent=False)
        self.register_buffer("mean_weight", torch.ones_like(self.log_z))
        self._origin: Origin | None = None  # the block that they were found for
        self.register_load_state_dict_post_hook(_loaded)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild a frozen density, with its block; ``save`` writes them."""
        whiten = {"whiten": True} if self.whiten else {}  # what older versions read has no such entry
        return {"block": self.block, "objective": "known", **whiten}

    @property
    def effective_share(self) -> float | None:
        """The effective share of the draws of the last training step; None without draws."""
        return self.objective.effective_share

    def loss(self, batch: Rows, emit_from: Rows | None = None) -> Tensor:
        """The mean loss of the batch, for likelihoods of -log p in nats; others are those of ``Objective``.

        A lift emits from the batch itself, or from ``emit_from``.
        """
        x, weights = self._split(batch)
        t = self.standardiser(x, self.dtype)
        source = t if emit_from is None else self._rows(emit_from, "samples for the lift")
        potential = self.block.emit(source.detach())
        weights = None if weights is None else self._relative(weights)
        jacobian = share(weights) * self.standardiser.log_scale_jacobian
        weights = None if weights is None else weights.to(self.dtype)
        frozen = self._is_frozen()
        if not frozen:  # a frozen density that is trained again: what it kept holds no longer
            self.log_z.fill_(torch.nan)
            self.quick_log_z.fill_(torch.nan)
        if not self.objective.likelihood:
            return self.objective(potential, t, weights)
        if frozen:
            self._refresh()
            if not self._is_known() and not bool(self.quick_log_z.isfinite()):
                self.normalise()
            loss = potential.value(t) + (self.log_z if self._is_known() else self.quick_log_z)
            return mean(loss, weights).double() - jacobian
        return self.objective(potential, t, weights).double() - jacobian

    def log_prob(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """log p(x), (N,). An unfrozen lift needs a ``batch`` to emit from.

        Above two dimensions the first call on a frozen density finds Z, which takes seconds, and keeps it;
        on an unfrozen one every call does, and leaves log Z out of the gradient in the weights.
        """
        potential = self._potential(batch)
        log_prob = self._constant(potential) - potential.value(self._rows(x)).double()
        return log_prob.to(self._resolving(x))

    def score(self, x: Tensor, batch: Rows | None = None) -> Tensor:
        """The gradient of log p at x, (N, d). It needs no Z."""
        gradient = self._potential(batch).gradient(self._rows(x))
        return self.standardiser.pull_back(-gradient, self._resolving(x))

    def normaliser(
        self, batch: Rows | None = None, *, seed: int = 0, particles: int = 2048
    ) -> Normaliser | PlaneNormaliser | AnnealedNormaliser:
        """log Z in float64, of f over the standardised points, with its ``error``.

        The error is a rigorous bound where d <= 2, and a standard error above, where ``seed`` decides the
        ``particles``: four times as many halve it.
        """
        return self._normaliser(self._potential(batch), seed, particles)

    @torch.no_grad()
    def normalise(self) -> None:
        """Find log Z of a frozen density and keep it, unless it is known; ``log_prob`` and ``save`` call it.

        Raises:
            ValueError: the density is not frozen.
        """
        if not self._is_frozen():
            raise ValueError("only a frozen density keeps its log Z: call freeze first")
        self._refresh()
        if not self._is_known():
            self.log_z = self._normaliser(self._potential(None)).log_z.to(self.log_z)

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None, batch: Rows | None = None) -> Tensor:
        """n draws, (n, d), the same for the same seed: independent where d <= 2, from mixed chains above.

        Raises:
            RuntimeError: the chains have not mixed; ``draw`` returns what they found all the same.
        """
        return _mixed(self.draw(n, seed, batch)).x

    @torch.no_grad()
    def draw(self, n: int, seed: int | None = None, batch: Rows | None = None) -> Draws:
        """n draws with their diagnostics: R-hat, effective sample size, acceptance.

        One dimension inverts the distribution function, two reject from the cells of the quadrature; above,
        tuned Metropolis-adjusted Langevin chains run until they have mixed.

        Raises:
            TypeError: n is not a whole number.
            ValueError: n is negative.
        """
        n = check_draws(n)
        potential = self._potential(batch)
        device = self.log_z.device
        generator = generator_on(device, fresh_seed() if seed is None else seed)
        if n == 0:
            return _independent(self._restored(torch.zeros(0, self.dim, device=device)))
        if self.dim == 1:
            u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
            found = _independent(line.quantile(self._line(potential), u)[:, None])
        elif self.dim == 2:
            f = in_float64(potential)
            found = _independent(plane.draw(self._plane(potential), f.value, n, generator))
        else:
            f = in_float64(potential)
            start = self._proposal(f, generator)
            found = run_chains(f.value, f.gradient, start, n, generator=generator)
        return replace(found, x=self._restored(found.x))

    @torch.no_grad()
    def mode(self, batch: Rows | None = None) -> Tensor:
        """The point of highest density, (d,).

        Raises:
            RuntimeError: Newton's method did not find it.
        """
        return self._restored(self._mode(in_float64(self._potential(batch))))[0]

    @torch.no_grad()
    def credible_region(self, level: float, seed: int = 0, batch: Rows | None = None) -> CredibleRegion:
        """The smallest set of probability ``level``, which is convex: {x : log p(x) >= threshold}.

        The threshold is found by quadrature where d <= 2, good to 0.001 in probability; above, it is a
        quantile of log p over 20,480 draws, for which ``seed`` is. The region keeps the density as it is now.

        Raises:
            ValueError: the level is not between 0 and 1.
            RuntimeError: the chains have not mixed.
        """
        return self._regions([level], seed, batch)[0]

    def check_entries(self, rows: Tensor) -> None:
        """Refuse entries that no log-concave density would have beside the others."""
        check_outliers(rows)

    def _fit(self, data: Any) -> Tensor:
        x, weights = self._split(data)
        average = 1.0 if weights is None else float(weights.double().mean())
        if weights is not None:
            if len(weights) and average == 0:
                raise ValueError("every weight is zero")
            x, weights = x[weights > 0], weights[weights > 0]
        self.check_entries(x)
        start = self.standardiser.fit(x, weights)(start_rows(x), self.dtype)
        self.mean_weight.fill_(average)
        return start

    def _start(self, x: Tensor) -> None:
        super()._start(x)
        self.objective.initialise(self.block.emit(x), x)

    def _complete(self, frozen: LogConcaveDensity, x: Tensor | None) -> None:
        """log Z is found here in one dimension, at the first ``log_prob`` above."""
        frozen._origin = None
        frozen._refresh()
        if self.dim == 1:
            frozen.log_z.copy_(frozen.normaliser().log_z)
        elif (estimate := self.objective.estimate(frozen.block.emit())) is not None:
            if not bool(estimate.isfinite()):
                raise FloatingPointError(f"the estimate of log Z is {float(estimate)}")
            frozen.quick_log_z.copy_(estimate)

    def _rows(self, data: Any, name: str | None = None) -> Tensor:
        return self.standardiser(self._split(data, name)[0], self.dtype)

    def _scaled(self, data: Any) -> list[tuple[str, Tensor, Tensor | None]]:
        x, weights = self._split(data)
        return [(self.standardiser.name, self.standardiser(x), weights)]

    def _split(self, batch: Any, name: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Samples and weights (N,) of a batch, checked; the weights may be None."""
        if not isinstance(batch, tuple):
            return check_rows(batch, self.dim, name or "samples"), None
        x, weights = self._pair(batch, "samples, or a pair (samples, weights)", None, "weights", name)
        if bool((weights < 0).any()):
            row = int((weights < 0).nonzero()[0])
            raise ValueError(f"weights must not be negative; row {row} has {float(weights[row]):g}")
        return x, weights

    def weight_of(self, batch: Rows) -> float:
        x, weights = self._split(batch)
        return float(len(x) if weights is None else weights.double().sum())

    def _relative(self, weights: Tensor) -> Tensor:
        """The weights of a batch over their mean, in training that over the training rows; in float64."""
        average = (self.mean_weight if self.training else weights).double().mean()
        if not self.training and float(average) == 0:
            raise ValueError("every weight is zero")
        return weights.double() / average

    def _restored(self, t: Tensor) -> Tensor:
        """Points in data space from standardised ones."""
        return self.standardiser.inverse(t, self._resolving())

    def _is_frozen(self) -> bool:
        plain = architecture_of(self.block) is self.block
        return plain and not any(p.requires_grad for p in self.block.parameters())

    @torch.no_grad()
    def _refresh(self) -> None:
        """Forget log Z where the block is no longer the one that it was found for."""
        tensors = list(self.block.emit().tensors.values())
        if not may_branch(self.log_z, *tensors) or (self._origin and self._origin.holds(tensors)):
            return
        self.log_z = torch.full_like(self.log_z, torch.nan)
        self.quick_log_z = self.log_z.clone()
        self._origin = Origin(tensors)

    def _is_known(self) -> bool:
        return bool(self.log_z.isfinite())

    def _constant(self, potential: Potential) -> Tensor:
        """log p(x) + f(t), a scalar in float64: the Jacobian without log Z."""
        if self._is_frozen():
            self.normalise()
            return self.standardiser.log_scale_jacobian - self.log_z
        return self.standardiser.log_scale_jacobian - self._normaliser(potential).log_z

    @torch.no_grad()
    def _regions(
        self, levels: Sequence[float], seed: int = 0, batch: Rows | None = None
    ) -> list[CredibleRegion]:
        """The ``credible_region`` of each level, by one normaliser or from one set of draws."""
        levels = [float(level) for level in levels]
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"the level must lie between 0 and 1; got {level}")
        emitted = self._potential(batch)
        potential = replace(emitted, tensors={k: t.detach().clone() for k, t in emitted.tensors.items()})
        constant, standardiser = self._constant(potential).clone(), copy.deepcopy(self.standardiser)

        def log_prob(points: Tensor) -> Tensor:
            return constant - potential.value(standardiser(self._split(points)[0], self.dtype)).double()

        if self.dim <= 2:
            heights = self._heights(potential, levels)
            return [
                CredibleRegion(level, float(constant) - height, 0.0, log_prob)
                for level, height in zip(levels, heights, strict=True)
            ]
        found = _mixed(self.draw(_REGION_POINTS, seed, batch))
        return [region_of_draws(level, log_prob, found) for level in levels]

    def _heights(self, potential: Potential, probabilities: Sequence[float]) -> list[float]:
        """The c with P(f <= c) = probability for each, by quadrature in one or two dimensions."""
        if self.dim == 2:
            found = self._plane(potential)
            return plane.level(found, found.values.new_tensor(probabilities)).tolist()
        middles = (torch.arange(_REGION_POINTS, dtype=torch.float64, device="cpu") + 0.5) / _REGION_POINTS
        t = line.quantile(self._line(potential), middles.to(self.log_z.device))
        values = in_float64(potential).value(t[:, None])
        return [float(values.quantile(probability)) for probability in probabilities]

    def _normaliser(
        self, potential: Potential, seed: int = 0, particles: int = 2048
    ) -> Normaliser | PlaneNormaliser | AnnealedNormaliser:
        if self.dim == 1:
            return self._line(potential)
        if self.dim == 2:
            return self._plane(potential)
        generator = generator_on(self.log_z.device, seed)
        with torch.no_grad():
            f = in_float64(potential)
            proposal = self._proposal(f, generator)
            return annealed(f.value, f.gradient, proposal, particles=particles, generator=generator)

    def _line(self, potential: Potential) -> Normaliser:
        f = in_float64(potential)
        return line.normaliser(f.value, f.gradient, device=self.log_z.device)

    def _plane(self, potential: Potential) -> PlaneNormaliser:
        f = in_float64(potential)
        return plane.normaliser(f.value, f.gradient, device=self.log_z.device)

    def _proposal(self, f: Potential, generator: torch.Generator | None) -> Gaussian:
        """A Gaussian near exp(-f): that of Laplace, moved to the moments of short chains.

        Where f has no second derivative chains start from the standardised rows' own, the standard normal.
        """
        mode = torch.zeros(1, self.dim, dtype=torch.float64, device=self.log_z.device)
        start = Gaussian(mode[0], torch.diag(torch.ones_like(mode[0])))
        if architecture_of(self.block).activation.curvature is not None or f.alpha is None:
            mode = self._mode(f)
            start = laplace(mode[0], f.hessian(mode)[0])
        return adapted(f.value, f.gradient, start, generator=generator)

    def _mode(self, f: Potential) -> Tensor:
        """The minimiser of f, (1, d), in float64."""
        ridge = 1e-9 * torch.eye(self.dim, dtype=torch.float64, device=self.log_z.device)
        found = invert_gradient(f.gradient, lambda t: f.hessian(t) + ridge, torch.zeros_like(ridge[:1]))
        if not bool(found.converged.all()):
            raise RuntimeError(
                f"the mode was not found: a gradient of {float(found.residual[0]):.2g} is left after "
                f"{found.iterations} Newton steps"
            )
        return found.x


@guarded
@torch.no_grad()
def normalised(density: LogConcaveDensity) -> dict[str, float]:
    """Find log Z of a frozen density, keep it, and say how well it is known.

    Returns:
        "log_z_error", a bound where d <= 2 and a standard error above; "log_z_share", the effective share of
        the annealed particles, where there are any.

    Raises:
        UnreliableEstimate: the estimate collapsed.

    Example:
        >>> import convexlift as cl
        >>> density = cl.LogConcaveDensity(cl.ICNN(3, hidden=(8,), seed=0)).freeze()
        >>> found = normalised(density)
        >>> found["log_z_error"] < 0.05, found["log_z_share"] > 0.1, bool(density.log_z.isfinite())
        (True, True, True)
    """
    found = density.normaliser(particles=_PARTICLES)
    density._refresh()
    density.log_z.copy_(found.log_z)
    told = {"log_z_error": float(found.error)}
    particles = getattr(found, "particles", None)
    return told if particles is None else {**told, "log_z_share": float(found.ess) / particles}  # type: ignore[union-attr]


def _loaded(density: Any, keys: Any) -> None:
    """After loading: log Z is that of the block that came with it."""
    came = not any(key.rpartition(".")[2] == "log_z" for key in keys.missing_keys)
    frozen = architecture_of(density.block) is density.block
    density._origin = Origin(density.block.emit().tensors.values()) if came and frozen else None


def _independent(x: Tensor) -> Draws:
    """Independent draws (n, d), which need no diagnosis."""
    dim = x.shape[1]
    return Draws(x, x.new_ones(dim), x.new_full((dim,), len(x)), 1.0, len(x), 1)


def _mixed(found: Draws) -> Draws:
    """The draws, unless they come from chains that disagree."""
    if len(found.x) and not found.converged:
        column = int(found.r_hat.argmax())
        raise RuntimeError(
            f"the chains have not mixed: R-hat is {float(found.r_hat[column]):.3f} in column {column}; "
            "draw(n) returns them with their diagnostics"
        )
    return found


def check_outliers(x: Tensor) -> None:
    """Refuse entries that no log-concave density would have beside the others."""
    if len(x) < 20:
        return  # too few to say
    some = x[:: -(-len(x) // _WIDTH_ROWS)].double()
    low, middle, high = some.quantile(some.new_tensor([0.05, 0.5, 0.95]), dim=0)
    piled = (low == high) & (x != x[0]).any(0)
    if bool(piled.any()):
        column = int(piled.nonzero()[0])
        raise ValueError(
            f"column {column} is {float(middle[column]):z.6g} in nine rows of ten, which no density is: "
            "remove it or add noise to it"
        )
    distance = (x - middle).abs() / (high - low)
    far = distance > _FARTHEST
    if bool(far.any()):
        row, column = far.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, column {column} is {float(x[row, column]):.6g}, {float(distance[row, column]):.2g} "
            "times the width of the middle 90 % of its column away from the median: remove or clip it"
        )
