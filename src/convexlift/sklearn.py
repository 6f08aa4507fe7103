"""The tasks as scikit-learn estimators: for pipelines, cross-validation and grid search."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from convexlift import tasks
from convexlift.ambient import guarded, new_networks_in
from convexlift.architectures import ICNN
from convexlift.arrays import refuse, tensor_of
from convexlift.checks import plain
from convexlift.data import Rows, count_rows, hold_out, place_for
from convexlift.defaults import ANY, DENSITY, FLOW, REGRESSION
from convexlift.names import LIKELIHOODS, SCREENS, SEARCHES, check_name
from convexlift.screening import tell
from convexlift.seeds import seeded
from convexlift.sources import Centred
from convexlift.sources.named import source_named
from convexlift.tasks.density import check_outliers
from convexlift.training import History, fit
from convexlift.training.fit import usual_settings
from convexlift.training.progress import Show
from convexlift.tuning import quick_space, search
from convexlift.tuning.progress import Show as ShowSearch
from convexlift.tuning.progress import Standing
from convexlift.tuning.table import table_of

try:
    from joblib import effective_n_jobs  # type: ignore[import-untyped]
    from sklearn.base import BaseEstimator, DensityMixin, RegressorMixin, clone
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "convexlift.sklearn needs scikit-learn 1.6 or newer: pip install 'convexlift[sklearn]'"
    ) from error

__all__ = ["ConvexPotentialFlow", "ConvexRegressor", "LogConcaveDensity"]

Randomness = int | np.random.RandomState | None
# What a warm start must not change, beside the objective of a density.
_OF_NETWORKS = ("hidden", "source", "sharpness", "strong_convexity", "blocks", "whiten", "slopes")
# What `fit` is told by the names of the parameters.
_OF_FIT = ("steps", "batch_size", "optimizer", "weight_decay", "averaging", "schedule", "warmup", "patience")
# What a search may change.
_SEARCHED = ("sharpness", "weight_decay", "whiten", "blocks", "slopes")


@dataclass(kw_only=True, eq=False, repr=False)
class _Estimator(BaseEstimator):
    """The parameters of all estimators, and their training; a dataclass, so it stores them as they are."""

    hidden: Sequence[int]
    source: str = ANY.source
    sharpness: float
    strong_convexity: float
    steps: int
    batch_size: int = ANY.batch_size
    optimizer: str = "adam"
    learning_rate: float | None = None
    weight_decay: float = ANY.weight_decay
    averaging: float = ANY.averaging
    schedule: str = ANY.schedule
    warmup: int = 0
    validation_fraction: float = ANY.validation_fraction
    patience: int | str | None = "rising"
    random_state: Randomness = None
    dtype: str = "float32"
    device: str = "cpu"
    warm_start: bool = False
    verbose: int = 0
    allow: Sequence[str] = ()
    search: str | None = None
    n_jobs: int | None = None

    #: the name of the kind of task
    _kind: ClassVar[str]

    def _task(self, block: Callable[[], nn.Module]) -> nn.Module:
        """The untrained task, of as many fresh blocks as it needs."""
        raise NotImplementedError

    def _validated(self, X: ArrayLike, *y: ArrayLike, **checks: Any) -> Any:
        """X, or X and y, as scikit-learn checks them before training."""
        # Two rows to standardise by, and one to validate on.
        least = 3 if self.validation_fraction else 2
        read = [_readable(values) for values in (X, *y)]
        return validate_data(self, *read, dtype=np.float64, ensure_min_samples=least, **checks)

    def _train(self, rows: Rows, where: Callable[[int], str] | None = None, *, target: object = None) -> Self:
        """Train the task on the rows but for a validation share; keep it frozen, with its columns' names.

        ``where`` names a row, for messages.
        """
        source_named(self.source)  # or an error, before anything else
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64'; got {self.dtype!r}")

        seed = _seed(self.random_state)
        share = self.validation_fraction
        if not 0 <= share < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {share}")
        names = getattr(self, "feature_names_in_", None)
        tell(self._begun(seed).examine(rows, names=names, allow=self.allow), where)
        if self.search is None:
            return self._trained(rows, seed, self, names, target)
        return self._trained(rows, seed, self._found(rows, seed), names, target)

    def _trained(self, rows: Rows, seed: int, settings: _Estimator, names: Any, target: object) -> Self:
        """Train with the settings of an estimator, this one or one like it."""
        share, task = self.validation_fraction, settings._begun(seed)
        if names is not None:
            known = {"x": names.tolist()}
            task.columns = {**known, "y": [target]} if isinstance(target, str) else known
        train, validation = hold_out(rows, share, seed) if share else (rows, None)
        history = fit(
            task,
            train,
            validation=validation,
            **{name: getattr(settings, name) for name in _OF_FIT},
            lr=settings.learning_rate,
            seed=seed,
            device=self.device,
            dtype=getattr(torch, self.dtype),
            progress=_shown(settings),
            allow=SCREENS,  # looked at above, where rows are numbered as given
        )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt  # or a grid search would go on with its next candidate
        self.history_ = history
        if self.warm_start:
            self._last = task, self._shape()
        frozen = task.freeze(place_for(task, train))
        self.model_ = frozen.to("cpu", torch.float64)
        return self

    def _found(self, rows: Rows, seed: int) -> _Estimator:
        """An estimator like this one with the settings that a search chose; keeps what was tried."""
        check_name("search", self.search or "", SEARCHES)
        if self.warm_start:
            raise ValueError("a search chooses networks anew: set warm_start=False, or search=None")
        if not self.validation_fraction:
            raise ValueError("a search needs rows to choose by: set validation_fraction above 0")
        if self.warmup:
            raise ValueError("a search trains for other numbers of steps too: set warmup=0")
        base = {name: plain(getattr(self, name)) for name in _SEARCHED if hasattr(self, name)}
        like = clone(self)
        like.n_features_in_ = self.n_features_in_
        usual = usual_settings(like._untrained(seed))
        given = plain(self.learning_rate)
        base["lr"] = usual.rate(self.optimizer) if given is None else given
        options = {name: getattr(self, name) for name in _OF_FIT if name not in ("steps", "patience", *base)}
        found = search(
            partial(like._untrained, seed),
            rows,
            quick_space(
                self._kind,
                base,
                rows=count_rows(rows),
                columns=self.n_features_in_,
                likelihood=getattr(self, "objective", "mle") in LIKELIHOODS,
            ),
            base,
            steps=plain(self.steps),
            share=self.validation_fraction,
            seed=seed,
            jobs=effective_n_jobs(self.n_jobs),
            progress=_search_shown(self),
            device=self.device,
            dtype=getattr(torch, self.dtype),
            **options,
        )
        self.search_ = [_named(run) for run in found.runs]
        self.setting_ = _named(found.setting)
        if self.verbose:
            sys.stderr.write(table_of(found) + "\n")
        return like._with(found.setting)

    def _untrained(self, seed: int, **setting: Any) -> Any:
        """The untrained task with other settings."""
        return self._with(setting)._begun(seed)

    def _with(self, setting: Mapping[str, Any]) -> _Estimator:
        """An estimator like this one with other settings."""
        other = copy.copy(self)
        for name, value in _named(setting).items():
            setattr(other, name, value)
        return other

    def _begun(self, seed: int) -> Any:
        """A new task, or with ``warm_start`` that of the last fit, if there is one of the same networks."""
        if self.warm_start and hasattr(self, "_last"):
            task, before = self._last
            for name, value in self._shape().items():
                if before[name] != value:
                    raise ValueError(
                        f"warm_start=True goes on with the last fit, whose {name} was {before[name]!r} "
                        f"and is {value!r} now: set warm_start=False to start anew"
                    )
            return task
        with seeded(seed), new_networks_in(torch.float32):
            return self._task(self._block)

    def _shape(self) -> dict[str, Any]:
        """What decides of how many numbers the task consists, and what they mean."""
        names = (*_OF_NETWORKS, "objective", "n_features_in_")
        return {**{n: getattr(self, n) for n in names if hasattr(self, n)}, "hidden": tuple(self.hidden)}

    def _block(self) -> nn.Module:
        return source_named(self.source)(
            ICNN(
                self.n_features_in_,
                self.hidden,
                sharpness=plain(self.sharpness),
                strong_convexity=self.strong_convexity,
            )
        )

    def _rows(self, X: ArrayLike) -> Tensor:
        """Rows to evaluate the fitted model on, where it is: its owner may have moved it."""
        check_is_fitted(self, "model_")
        rows = _tensor(validate_data(self, _readable(X), dtype=np.float64, reset=False))
        return rows.to(self.model_.standardiser.mean)


class _Density(DensityMixin, _Estimator):
    """What a fitted density is for."""

    @guarded
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit the density to the rows of X, (n_samples, n_features); y is not read."""
        return self._train(_tensor(self._validated(X)))

    @guarded
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """The log-density of each row in nats, (n_samples,)."""
        rows = self._rows(X)
        return self.model_.log_prob(rows).cpu().numpy()

    @guarded
    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean log-density of the rows in nats; y is not read."""
        return float(self.score_samples(X).mean())

    @guarded
    def sample(self, n_samples: int = 1, random_state: Randomness = None) -> NDArray[np.float64]:
        """Draws, (n_samples, n_features): independent, or above two columns of a density from mixed chains.

        Without a ``random_state`` the estimator's own decides; where that is a number, every call draws the
        same.
        """
        check_is_fitted(self, "model_")
        seed = _seed(self.random_state if random_state is None else random_state)
        return self.model_.sample(plain(n_samples), seed=seed).cpu().numpy()


@final
@dataclass(kw_only=True, eq=False, repr=False)
class ConvexPotentialFlow(_Density):
    """A density by change of variables through gradients of strongly convex potentials.

        log p(x) = log N(T(x); 0, I) + log det DT(x),   T = grad f_K o ... o grad f_1,

    up to affine maps between the potentials f_k, which are input-convex networks; the log-determinant is
    exact. It is trained in ``dtype``; the frozen model is evaluated in float64. Defaults are starting points
    that nobody has tuned for your data: search over ``learning_rate`` first, then ``source`` and ``hidden``.

    Args:
        blocks: number of potentials, one after another.
        whiten: take the principal components of the columns at unit deviation, rather than the columns; for
            columns that nearly repeat one another.
        hidden: widths of the hidden layers of each.
        source: where non-negative weights come from: "squared", "softplus", "softplus-fan-in", "projected",
            "lift" or "lift-reference".
        sharpness: k of the activation softplus(k u) / k; the default did best for flows, see
            docs/potential-search.md.
        strong_convexity: where the learned alpha of (alpha/2) |x|^2 starts, positive.
        steps: optimiser steps.
        batch_size: rows of a step.
        optimizer: "adam", "sgd" (momentum 0.9) or "soap", which often fits better and takes longer for a
            step; it needs the extra ``convexlift[soap]``. See ``convexlift.fit``.
        learning_rate: where the rate starts. By default that of the kind of estimator and the optimiser: with
            Adam 0.032, here, which for squared weights and a cosine did best over eight problems, see
            docs/mechanism.md.
        weight_decay: decoupled decay of the unconstrained matrices: first layer and skips lose the share rate
            * weight_decay of their size at each step. Whether that helps depends on the table and on
            whitening, see docs/choosing.md.
        averaging: decay of a moving average of the parameters, in [0, 1), say 0.99; the model is that of the
            averages. Try some with a constant rate; a cosine averages by itself.
        schedule: "cosine", which lowers the rate to 0 at the end, or "constant".
        warmup: steps over which the rate is raised from 0.
        validation_fraction: share of the rows by which the best step is chosen; with 0 the last step is kept.
        patience: stop after this many evaluations, of 25 a run, without a better validation loss; "rising":
            where it has risen for half of the run; None: never.
        random_state: of the split, the initial weights, the batches and the samples; the same number gives
            the same model.
        dtype: "float32" or "float64", to train in; columns are centred and scaled in float64 before that.
        device: where to train; the fitted model is on the CPU, ``model_.to`` moves it.
        warm_start: let a second ``fit`` go on with the networks of the first, on whatever data: their scales
            stay, with a warning of data on another one. Otherwise every ``fit`` starts anew.
        verbose: 0 is silent; 1 shows a progress bar where stderr is a terminal, and elsewhere, as in the
            workers of a grid search, a line at each evaluation; 2 writes these lines everywhere.
        allow: checks of data to leave out: "outliers", "repeats", "spikes", "ties", "counters", "duplicates",
            "few-rows" or "overlap"; see ``convexlift.screening.screen``.
        search: "quick" chooses sharpness, decay, rate, steps and what else the kind of estimator has (blocks
            and whitening of a flow) by held-out rows before it trains, at the cost of some five fits; see
            ``convexlift.search``. The parameters themselves stay as they are.
        n_jobs: runs of a search at a time, as scikit-learn counts them; the choice does not depend on it.

    Attributes:
        model_: the frozen ``convexlift.ConvexPotentialFlow``; ``convexlift.save`` writes it to a file.
        history_: the ``History`` of the training run.
        search_: of a search, a dict for every run: its parameters, ``steps``, held-out ``loss``, ``seconds``.
        setting_: of a search, the parameters that it chose.
        n_features_in_: number of columns.
        feature_names_in_: their names, where X had any.

    Raises:
        ValueError: X holds NaN or infinities, too few rows, another number of columns than in ``fit`` or a
            constant one; a parameter is out of range.
        TypeError: a parameter is of another type.
        TrainingDiverged: a loss or gradient was not finite: lower the ``learning_rate``.
        RuntimeError: from ``sample``, an inverse did not converge.
        KeyboardInterrupt: training was interrupted.

    Source: Huang, Chen, Tsirigotis and Courville, "Convex potential flows", ICLR 2021.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 3.0]
        >>> flow = ConvexPotentialFlow(hidden=(8, 8), steps=20, random_state=0).fit(X)
        >>> flow.score_samples(X).shape, flow.sample(5).shape
        ((200,), (5, 2))
    """

    _kind = "flow"

    blocks: int = 1
    whiten: bool = False
    hidden: Sequence[int] = FLOW.hidden
    sharpness: float = FLOW.sharpness
    strong_convexity: float = FLOW.strong_convexity
    steps: int = FLOW.steps

    def _task(self, block: Callable[[], nn.Module]) -> nn.Module:
        return tasks.ConvexPotentialFlow((block() for _ in range(self.blocks)), whiten=plain(self.whiten))


@final
@dataclass(kw_only=True, eq=False, repr=False)
class LogConcaveDensity(_Density):
    """The density p(x) = exp(-f(x)) / Z, f convex, in any number of columns.

    f is an input-convex network of the whitened columns. Z is found by quadrature in one and two columns, and
    above by annealed importance sampling, at the first call of ``score_samples`` or ``score``, which then
    takes seconds; ``model_.normaliser()`` says how well it is known.

    Columns are read as numbers, whole ones too: a count has no density, so add uniform noise of one step to
    it first. Rows that occur k times count k times, as a ``sample_weight`` of k does.

    Other parameters and attributes are those of ``ConvexPotentialFlow``, without ``blocks``; nobody has tuned
    the defaults for your data.

    Args:
        strong_convexity: where the learned alpha of (alpha/2) |x|^2 in f starts, or 0 for none; above two
            columns better positive.
        whiten: whiten by principal components rather than by a triangular factor of the covariance.
        learning_rate: as there; with Adam by default 0.064, which did best over four densities of one column.
        objective: what training minimises: "mle" (maximum likelihood), "importance", "importance-flow",
            "chains", "score", "denoising" or "nce"; see ``convexlift.LogConcaveDensity``.

    Attributes:
        model_: the frozen ``convexlift.LogConcaveDensity``.

    Raises:
        ValueError: no more rows than columns, a column that is a combination of others, an entry so far out
            that no log-concave density has it, a negative weight or none that is positive; otherwise see
            ``ConvexPotentialFlow``.
        UnreliableEstimate: a RuntimeError, from ``score_samples`` and ``score`` above two columns: log Z
            could not be estimated.
        RuntimeError: from ``sample``, the chains have not mixed.

    Source: Walther, "Inference and modeling with log-concave distributions", Statistical Science 2009.

    Example:
        >>> X = np.random.default_rng(0).gumbel(size=(200, 1))
        >>> density = LogConcaveDensity(hidden=(8, 8), steps=20, random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(5).shape
        ((200,), (5, 1))
        >>> density.fit(X, sample_weight=-np.ones(200))
        Traceback (most recent call last):
        ...
        ValueError: weights must not be negative; row 0 has -1
    """

    _kind = "density"

    whiten: bool = False
    hidden: Sequence[int] = DENSITY.hidden
    sharpness: float = DENSITY.sharpness
    strong_convexity: float = DENSITY.strong_convexity
    steps: int = DENSITY.steps
    objective: str = "mle"

    @guarded
    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the density to rows X, (n_samples, n_features), of weights (n_samples,); y is not read.

        Rows of weight zero are left out.
        """
        sample_weight = _readable(sample_weight, "sample weights")
        X = self._validated(X)
        rows = _tensor(X)
        if sample_weight is None:
            check_outliers(rows)  # here, where the number of a row is the caller's
            return self._train(rows)
        weights = _tensor(_check_sample_weight(sample_weight, X, dtype=np.float64))
        if bool((weights < 0).any()):
            row = int((weights < 0).nonzero()[0])
            raise ValueError(f"weights must not be negative; row {row} has {float(weights[row]):g}")
        kept = weights > 0
        if not bool(kept.any()):
            raise ValueError("every weight is zero")
        numbers = kept.nonzero()[:, 0]
        return self._train((rows[kept], weights[kept]), lambda row: f"row {int(numbers[row])}")

    def _task(self, block: Callable[[], nn.Module]) -> nn.Module:
        return tasks.LogConcaveDensity(block(), self.objective, whiten=plain(self.whiten))


@final
@dataclass(kw_only=True, eq=False, repr=False)
class ConvexRegressor(RegressorMixin, _Estimator):
    """The convex function f that is closest to y in mean square, an input-convex network.

        min_f mean_i (y_i - f(x_i))^2,   f convex.

    For a concave function fit -y. ``score`` is the coefficient of determination. While it trains, activations
    are ``convexlift.Centred``.

    Other parameters and attributes are those of ``ConvexPotentialFlow``, without ``blocks``; nobody has tuned
    the defaults for your data. For many noisy columns two other settings did far better, each on its kind of
    function (see docs/mechanism.md), and a grid search tells which: ``slopes=True, sharpness=0.5,
    learning_rate=0.01, weight_decay=4`` on one that is smooth and curves in all directions,
    ``learning_rate=0.02, weight_decay=1, schedule="constant", averaging=0.99`` on a maximum of planes.

    Args:
        slopes: take the mean slopes of activations out too, while it trains, and not their means alone; with
            ``learning_rate=0.01`` the better choice for data without much noise.
        strong_convexity: where the learned alpha of (alpha/2) |x|^2 in f starts, or 0 for none.
        steps: optimiser steps; with fewer take a larger ``learning_rate``.
        learning_rate: as there; with Adam by default 0.002, which did best over two regressions in 50
            columns.

    Attributes:
        model_: the frozen ``convexlift.ConvexRegression``.

    Raises:
        ValueError: the targets are constant or not as many as the rows; otherwise see
            ``ConvexPotentialFlow``.

    Source: Boyd and Vandenberghe, "Convex optimization", section 6.5.5 (the problem).

    Example:
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> regressor = ConvexRegressor(hidden=(8, 8), steps=200, learning_rate=0.02, random_state=0)
        >>> regressor = regressor.fit(X, X[:, 0] ** 2)
        >>> regressor.score(X, X[:, 0] ** 2) > 0.99
        True
    """

    _kind = "regression"

    slopes: bool = False
    hidden: Sequence[int] = REGRESSION.hidden
    sharpness: float = REGRESSION.sharpness
    strong_convexity: float = REGRESSION.strong_convexity
    steps: int = REGRESSION.steps

    @guarded
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the function to rows X, (n_samples, n_features), and targets y, (n_samples,)."""
        target = getattr(y, "name", None)
        X, y = self._validated(X, y, y_numeric=True)
        return self._train((_tensor(X), _tensor(y)), target=target)

    @guarded
    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """The fitted function at each row, (n_samples,)."""
        rows = self._rows(X)
        return self.model_.predict(rows).cpu().numpy()

    def _task(self, block: Callable[[], nn.Module]) -> nn.Module:
        return tasks.ConvexRegression(Centred(block(), slopes=bool(self.slopes)))  # type: ignore[arg-type]


def _shown(estimator: _Estimator) -> bool | Show:
    """What ``verbose`` asks for: nothing, the progress bar, or lines on stderr."""
    if estimator.verbose < 1 or (estimator.verbose == 1 and sys.stderr.isatty()):
        return bool(estimator.verbose)
    name, steps, told = type(estimator).__name__, estimator.steps, 0

    def show(step: int, loss: float, history: History) -> None:
        nonlocal told
        if len(history.steps) == told:
            return
        told = len(history.steps)
        line = f"{name}: step {step} of {steps}, loss {history.loss[-1]:.4g}"
        if history.validation:
            line += f", validation {history.validation[-1]:.4g}"
            line += f", best {history.best_validation:.4g} at step {history.best_step}"
        sys.stderr.write(f"{line}, {history.seconds[-1]:.1f} s\n")
        sys.stderr.flush()

    return show


def _search_shown(estimator: _Estimator) -> bool | ShowSearch:
    """The same of a search."""
    if estimator.verbose < 1 or (estimator.verbose == 1 and sys.stderr.isatty()):
        return bool(estimator.verbose)
    name = type(estimator).__name__

    def show(at: Standing) -> None:
        loss = "failed" if at.outcome.loss is None else f"loss {at.outcome.loss:.4g}"
        line = f"{name}: search, run {at.runs} of {at.trial.steps} steps, {loss}"
        sys.stderr.write(f"{line}, about {at.seconds_left:.0f} s left\n")
        sys.stderr.flush()

    return show


def _named(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting by the names of the parameters."""
    return {"learning_rate" if name == "lr" else name: value for name, value in setting.items()}


def _readable(values: Any, name: str = "values") -> Any:
    """The values, if scikit-learn can read them; it reads what a mask hides, and no tensor with a graph."""
    refuse(values, name=name)
    return tensor_of(values, name=name).cpu().numpy() if isinstance(values, Tensor) else values


def _tensor(array: ArrayLike) -> Tensor:
    return tensor_of(array).double()


def _seed(random_state: Randomness) -> int:
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
