"""The estimators of scikit-learn's kind: arrays, weights, parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError

from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor, LogConcaveDensity

from .case import Case, refused
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
        "This ConvexPotentialFlow instance is not fitted yet...",
        name="check_is_fitted",
    ),
    refused(
        "a regressor with constant targets",
        lambda: regressor(np.ones(60)),
        ValueError,
        "the targets are constant (every value is 1)",
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
        "unknown source 'exp'; known: ...",
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
]
