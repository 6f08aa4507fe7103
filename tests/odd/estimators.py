"""The estimators of scikit-learn's kind: arrays, weights, parameters."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError

from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor, LogConcaveDensity, _Estimator

from .case import Case, answered, refused
from .given import TINY, rows

X = rows().double().numpy()


def flow(**parameters: Any) -> Any:
    return ConvexPotentialFlow(**{**TINY, **parameters})


def density(weights: Any) -> Any:
    return LogConcaveDensity(**TINY).fit(X, sample_weight=weights)


def regressor(y: Any) -> Any:
    return ConvexRegressor(**TINY).fit(X, y)


def unchecked(self: Any, X: Any, *y: Any, **checks: Any) -> Any:
    """Stands for scikit-learn's look at X."""
    self.n_features_in_ = np.shape(X)[-1]
    return (X, *y) if y else X


def by_sklearn(title: str, do: Any, kind: type[Exception], said: str, name: str = "validate_data") -> Case:
    return refused(
        title,
        do,
        kind,
        said,
        owed_to=f"convexlift.sklearn.{name}",
        instead=unchecked,
        kin="looked for by scikit-learn",
    )


def odd(value: float) -> Any:
    x = X.copy()
    x[3, 1] = value
    return x


def warm() -> Any:
    made = flow(warm_start=True).fit(X)
    return made.set_params(hidden=(5,)).fit(X)


def twice() -> float:
    """The difference that an earlier fit on other data makes."""
    made = flow().fit(100 + 7 * X)
    return float(made.fit(X).score(X) - flow().fit(X).score(X))


def weighted(n: int) -> float:
    """The score with n rows of weight zero behind the others, far off."""
    x = np.concatenate([X, np.full((n, 2), 50.0)])
    return float(LogConcaveDensity(**TINY).fit(x, sample_weight=np.repeat([1.0, 0.0], [60, n])).score(X))


def told(verbose: int) -> int:
    """How many lines a fit writes on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        flow(verbose=verbose).fit(X)
    return said.getvalue().count("\n")


begun = _Estimator._begun
FRAME = pd.DataFrame(X, columns=["a", "b"])

CASES: list[Case] = [
    by_sklearn(
        "an estimator fitted to a NaN", lambda: flow().fit(odd(np.nan)), ValueError, "Input X contains NaN..."
    ),
    by_sklearn(
        "an estimator fitted to an infinity",
        lambda: flow().fit(odd(np.inf)),
        ValueError,
        "Input X contains infinity or a value too large for dtype('float64').",
    ),
    by_sklearn(
        "an estimator fitted to one dimension",
        lambda: flow().fit(X[:, 0]),
        ValueError,
        "Expected 2D array, got 1D array instead...",
    ),
    by_sklearn(
        "an estimator fitted to words",
        lambda: flow().fit([["a", "b"]] * 9),
        ValueError,
        "could not convert string to float: 'a'",
    ),
    by_sklearn(
        "an estimator fitted to two rows",
        lambda: flow().fit(X[:2]),
        ValueError,
        "Found array with 2 sample(s) (shape=(2, 2)) while a minimum of 3 is required by "
        "ConvexPotentialFlow.",
    ),
    by_sklearn(
        "an estimator fitted to complex numbers",
        lambda: flow().fit(X * 1j),
        ValueError,
        "Complex data not supported...",
    ),
    by_sklearn(
        "an estimator asked about three columns after two",
        lambda: flow().fit(X).score_samples(rows(5, 3).numpy()),
        ValueError,
        "X has 3 features, but ConvexPotentialFlow is expecting 2 features as input.",
    ),
    by_sklearn(
        "a regressor with a target too few",
        lambda: regressor(X[1:, 0]),
        ValueError,
        "Found input variables with inconsistent numbers of samples: [60, 59]",
    ),
    by_sklearn(
        "an estimator that is not fitted",
        lambda: flow().score_samples(X),
        NotFittedError,
        "This ConvexPotentialFlow instance is not fitted yet. Call 'fit' with appropriate "
        "arguments before using this estimator.",
        name="check_is_fitted",
    ),
    refused(
        '`dtype="float16"` of an estimator',
        lambda: flow(dtype="float16").fit(X),
        ValueError,
        "dtype must be 'float32' or 'float64'; got 'float16'",
    ),
    refused(
        "`validation_fraction=1` of an estimator",
        lambda: flow(validation_fraction=1.0).fit(X),
        ValueError,
        "validation_fraction must lie in [0, 1); got 1.0",
    ),
    refused(
        '`source="exp"` of an estimator',
        lambda: flow(source="exp").fit(X),
        ValueError,
        "unknown source 'exp'; known: squared, softplus, softplus-fan-in, projected, lift, lift-reference",
        kin="another choice",
    ),
    refused(
        "`sample_weight` below zero",
        lambda: density(-np.ones(60)),
        ValueError,
        "weights must not be negative; row 0 has -1",
    ),
    by_sklearn(
        "`sample_weight` of zeros",
        lambda: density(np.zeros(60)),
        ValueError,
        "Sample weights must contain at least one non-zero number.",
        name="_check_sample_weight",
    ),
    refused(
        "`warm_start=True` with other layers",
        warm,
        ValueError,
        "warm_start=True goes on with the last fit, whose hidden was (4,) and is (5,) now: set "
        "warm_start=False to start anew",
    ),
    answered(
        "rows of weight zero, of a density",
        lambda: weighted(3) - weighted(0),
        0.0,
        "the score is as without them",
        "convexlift.sklearn",
        ("kept = weights > 0", "kept = weights >= 0"),
    ),
    by_sklearn(
        "a data frame with its columns in another order than in `fit`",
        lambda: flow().fit(FRAME).score_samples(FRAME[["b", "a"]]),
        ValueError,
        "The feature names should match those that were passed during fit. Feature names must be "
        "in the same order as they were in fit.",
    ),
    by_sklearn(
        "a data frame with other columns than in `fit`",
        lambda: flow().fit(FRAME).score_samples(FRAME.rename(columns={"a": "c"})),
        ValueError,
        "The feature names should match those that were passed during fit...",
    ),
    answered(
        "an estimator fitted to a data frame",
        lambda: flow().fit(FRAME).model_.columns,
        {"x": ["a", "b"]},
        "its model knows the names of the columns, in a file too",
        "convexlift.sklearn",
        ('task.columns = {**known, "y": [target]} if isinstance(target, str) else known', "pass"),
    ),
    answered(
        "an estimator fitted again, to other data",
        twice,
        0.0,
        "it starts anew",
        "convexlift.sklearn._Estimator._begun",
        lambda self, seed: vars(self).setdefault("kept", begun(self, seed)),
    ),
    answered(
        "`verbose=2`",
        lambda: told(2) > 0,
        True,
        "a line on stderr at each evaluation",
        "convexlift.sklearn._shown",
        lambda estimator: False,
    ),
    refused(
        "a search of an unknown name",
        lambda: flow(search="quik").fit(X),
        ValueError,
        "unknown search 'quik'; known: quick; did you mean 'quick'?",
        owed_to="convexlift.sklearn.check_name",
        instead=lambda *_: None,
        kin="names are looked up in one place",
    ),
    refused(
        "a search with `warm_start=True`",
        lambda: flow(search="quick", warm_start=True).fit(X),
        ValueError,
        "a search chooses networks anew: set warm_start=False, or search=None",
    ),
    refused(
        "a search with `validation_fraction=0`",
        lambda: flow(search="quick", validation_fraction=0).fit(X),
        ValueError,
        "a search needs rows to choose by: set validation_fraction above 0",
    ),
    refused(
        "a search on fewer than 40 rows",
        lambda: flow(search="quick").fit(X[:39]),
        ValueError,
        "a search needs at least 40 rows to choose settings by; got 39",
    ),
    refused(
        "`whiten` of another type",
        lambda: flow(whiten="principal").fit(X),
        TypeError,
        "whiten must be True or False; got 'principal'",
    ),
]
