"""The estimators keep scikit-learn's contract, and fit what they say."""

from __future__ import annotations

import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dict_unchanged,
    check_fit_check_is_fitted,
    check_n_features_in,
    check_sample_weights_list,
    check_sample_weights_not_overwritten,
    check_sample_weights_shape,
    parametrize_with_checks,
)

import convexlift as cl
from convexlift import sklearn
from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor, LogConcaveDensity

TINY = {"hidden": (8,), "steps": 4, "random_state": 0}
ROOT = np.array([[1.0, 0.8], [0.0, 0.6]])
ESTIMATORS = (ConvexPotentialFlow, LogConcaveDensity, ConvexRegressor)


def gaussian(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a correlated normal law around (5, -3), and their log-density."""
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return z @ ROOT + [5, -3], -0.5 * (z**2).sum(1) - np.log(2 * np.pi) - np.log(0.6)


def rows(estimator: type, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """X, of one column for densities, which are then normalised at once, and y."""
    x = gaussian(n)[0]
    return x[:, :1] if estimator is LogConcaveDensity else x, x.sum(1) ** 2


def outputs(estimator: object, x: np.ndarray) -> np.ndarray:
    return estimator.predict(x) if isinstance(estimator, ConvexRegressor) else estimator.score_samples(x)


# Most checks fit several columns, where log Z takes a density seconds: a pipeline reduces them to one.
ONE_COLUMN = make_pipeline(PCA(1), LogConcaveDensity(**TINY))
PIPELINE_FAILS = {
    "check_estimators_overwrite_params": "a Pipeline fits the steps that it was given",
    "check_dont_overwrite_parameters": "a Pipeline fits the steps that it was given",
    "check_estimator_sparse_tag": "PCA takes sparse rows, the density behind it does not",
}


@parametrize_with_checks(
    [
        ConvexPotentialFlow(**TINY),
        ConvexRegressor(hidden=(8,), steps=60, learning_rate=0.05),
        ONE_COLUMN,
    ],
    expected_failed_checks=lambda estimator: PIPELINE_FAILS if estimator is ONE_COLUMN else {},
)
def test_scikit_learns_own_checks(estimator: object, check: object) -> None:
    check(estimator)


def test_the_log_density_and_the_moments_of_a_gaussian() -> None:
    x, _ = gaussian(2000)
    test, truth = gaussian(2000, seed=1)
    flow = ConvexPotentialFlow(hidden=(16, 16), steps=200, random_state=0).fit(x)
    found = flow.score_samples(test)
    assert found.shape == (2000,) and found.dtype == np.float64
    assert np.abs(found - truth).mean() < 0.1
    assert flow.score(test) == pytest.approx(truth.mean(), abs=0.03)
    draws = flow.sample(4000)
    assert draws.shape == (4000, 2) and draws.dtype == np.float64
    np.testing.assert_allclose(draws.mean(0), [5, -3], atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), ROOT.T @ ROOT, atol=0.1)


def test_the_log_density_of_one_column() -> None:
    x = 2 * np.random.default_rng(0).normal(size=(2000, 1)) + 7
    density = LogConcaveDensity(hidden=(16,), steps=100, random_state=0).fit(x)
    truth = -0.5 * ((x[:, 0] - 7) / 2) ** 2 - np.log(2 * np.sqrt(2 * np.pi))
    assert density.score(x) == pytest.approx(truth.mean(), abs=0.03)
    draws = density.sample(4000)
    assert draws.shape == (4000, 1)
    assert draws.mean() == pytest.approx(7, abs=0.15) and draws.std() == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    "check",
    [
        check_dict_unchanged,
        check_fit_check_is_fitted,
        check_n_features_in,
        check_sample_weights_list,
        check_sample_weights_not_overwritten,
        check_sample_weights_shape,
    ],
)
def test_scikit_learns_own_checks_of_a_density_of_several_columns(check: Callable[..., None]) -> None:
    check("LogConcaveDensity", LogConcaveDensity(**TINY))


def test_the_log_density_of_two_columns() -> None:
    x, _ = gaussian(2000)
    test, truth = gaussian(1000, seed=1)
    density = LogConcaveDensity(hidden=(16,), steps=100, random_state=0).fit(x)
    assert np.abs(density.score_samples(test) - truth).mean() < 0.1
    assert density.score(test) == pytest.approx(truth.mean(), abs=0.03)
    np.testing.assert_allclose(np.cov(density.sample(4000).T), ROOT.T @ ROOT, atol=0.15)


@pytest.mark.parametrize("objective", ["mle", "score"])
def test_the_log_density_of_four_columns(objective: str) -> None:
    x, test = (np.random.default_rng(seed).logistic(size=(1000, 4)) for seed in (0, 1))
    truth = (-test - 2 * np.log1p(np.exp(-test))).sum(1)
    density = LogConcaveDensity(
        hidden=(16,), steps=100, learning_rate=0.03, objective=objective, random_state=0
    ).fit(x)
    assert density.score(test) == pytest.approx(truth.mean(), abs=0.15)
    assert density.model_.normaliser().error < 0.03
    draws = density.sample(1000)
    assert draws.shape == (1000, 4) and abs(draws.std() / x.std() - 1) < 0.1


def test_a_density_is_searched_in_a_pipeline() -> None:
    x = np.random.default_rng(0).normal(size=(120, 3)) @ np.diag([1.0, 10.0, 0.1])
    pipeline = make_pipeline(StandardScaler(), LogConcaveDensity(**TINY))
    grid = {"logconcavedensity__objective": ["mle", "denoising"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score_samples(x).shape == (120,)


def test_weights_count_as_copies_do() -> None:
    draws = np.random.default_rng(0)
    x = np.concatenate([draws.normal(0, 1, (1500, 1)), draws.normal(5, 1, (500, 1))])
    weights = np.repeat([1.0, 3.0], [1500, 500])
    copies = np.concatenate([x, x[1500:], x[1500:]])
    weighted = LogConcaveDensity(hidden=(16,), steps=100, random_state=0).fit(x, sample_weight=weights)
    copied = LogConcaveDensity(hidden=(16,), steps=100, random_state=0, allow=("duplicates",)).fit(copies)
    plain = LogConcaveDensity(hidden=(16,), steps=100, random_state=0).fit(x)
    assert weighted.score(copies) == pytest.approx(copied.score(copies), abs=0.02)
    assert weighted.score(copies) > plain.score(copies) + 0.02
    left_out = LogConcaveDensity(**TINY).fit(x, sample_weight=np.repeat([1.0, 0.0], [1500, 500]))
    same = LogConcaveDensity(**TINY).fit(x[:1500], sample_weight=np.ones(1500))
    np.testing.assert_array_equal(left_out.score_samples(x), same.score_samples(x))


FAR = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)), [[0.0, 1e6]]])


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (FAR[:3], None, "^need at least 3 rows to whiten 2 columns; got 2$"),
        (np.ones((20, 1)), None, r"^column 0 is constant \(every value is 1\): remove it$"),
        (np.tile(FAR[:1], (20, 1)), None, "^column 0 is constant"),
        (
            np.column_stack([FAR[:50], FAR[:50].sum(1)]),
            None,
            "^column 0 is a linear combination of column 1 and column 2",
        ),
        (FAR, None, r"^row 50, column 1 is 1e\+06, .* away from the median: remove or clip it$"),
        (FAR[:50], np.full(50, -1.0), "^weights must not be negative; row 0 has -1$"),
        (FAR[:50], np.zeros(50), "^every weight is zero$|Sample weights must contain at least one non-zero"),
        (FAR[:50], np.eye(50)[0], "^1 rows are too few: 0 would be left to train on$"),
    ],
)
def test_what_no_density_is_fitted_to(x: np.ndarray, weights: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogConcaveDensity(**TINY).fit(x, sample_weight=weights)


def test_whole_numbers_are_read_as_numbers() -> None:
    counts = np.random.default_rng(0).poisson(4, size=(80, 1))
    allowed = LogConcaveDensity(**TINY, allow=("ties",))
    one, other = (clone(allowed).fit(x) for x in (counts, counts.astype(float)))
    np.testing.assert_array_equal(one.score_samples(counts), other.score_samples(counts))
    with pytest.raises(ValueError, match="^unknown objective 'map'; known: mle, importance"):
        LogConcaveDensity(**TINY, objective="map").fit(counts)


def test_a_convex_function_is_found_and_a_concave_one_is_not() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    y = 10 + np.abs(x).sum(1)
    regressor = ConvexRegressor(hidden=(16, 16), steps=300, learning_rate=0.02, random_state=0)
    assert regressor.fit(x, y).score(x, y) > 0.95
    assert regressor.predict(x).shape == (500,) and regressor.predict(x).dtype == np.float64
    assert regressor.fit(x, -y).score(x, -y) < 0.1


def test_slopes_are_taken_out_on_request() -> None:
    draws = np.random.default_rng(0)
    x, points = draws.uniform(-1, 1, (2, 1000, 8))
    y = (x**2).sum(1) + 0.5 * draws.normal(size=1000)
    options = {"hidden": (16, 16), "steps": 100, "learning_rate": 0.01, "random_state": 0}
    without, taken = (
        ConvexRegressor(**options, slopes=slopes).fit(x, y).score(points, (points**2).sum(1))
        for slopes in (False, True)
    )
    assert taken > without + 0.1  # few steps are enough where curvature is all that units hand on


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_random_state_gives_one_model(estimator: type) -> None:
    x, y = rows(estimator)
    first, again, other = (estimator(**{**TINY, "random_state": s}).fit(x, y) for s in (0, 0, 1))
    np.testing.assert_array_equal(outputs(first, x), outputs(again, x))
    assert not np.array_equal(outputs(first, x), outputs(other, x))
    if estimator is not ConvexRegressor:
        np.testing.assert_array_equal(first.sample(3), again.sample(3))
        assert not np.array_equal(first.sample(3), first.sample(3, random_state=1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_pickle_is_the_same_model(estimator: type) -> None:
    x, y = rows(estimator)
    fitted = estimator(**TINY).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(outputs(again, x), outputs(fitted, x))
    assert again.history_ == fitted.history_ and again.get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "model_")


@pytest.mark.parametrize("source", ["squared", "softplus", "softplus-fan-in", "projected", "lift"])
def test_every_source_ends_as_plain_networks_in_float64(source: str, tmp_path: Path) -> None:
    x, _ = gaussian(60)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    flow = ConvexPotentialFlow(**TINY, source=source, blocks=2).fit(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(flow.model_, cl.ConvexPotentialFlow) and flow.model_.dtype == torch.float64
    assert [type(block) for block in flow.model_.blocks] == [cl.ICNN, cl.ICNN]
    assert flow.history_.stopped == "finished" and flow.history_.steps[-1] == 4
    cl.save(flow.model_, tmp_path / "flow.safetensors")
    loaded = cl.load(tmp_path / "flow.safetensors")
    np.testing.assert_array_equal(loaded.log_prob(torch.tensor(x)).numpy(), flow.score_samples(x))


def test_a_grid_search_in_a_pipeline() -> None:
    x, _ = gaussian(90)
    pipeline = make_pipeline(StandardScaler(), ConvexPotentialFlow(**TINY))
    grid = {
        "convexpotentialflow__hidden": [(4,), (4, 4)],
        "convexpotentialflow__learning_rate": np.logspace(-3, -1, 2),
        "convexpotentialflow__steps": np.array([3]),  # numpy's own integers
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score_samples(x).shape == (90,)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weight_decay_is_a_parameter_and_shrinks_the_skips(estimator: type) -> None:
    assert estimator().get_params()["weight_decay"] == 0.0
    x, y = rows(estimator)
    plain = estimator(**TINY).fit(x, y)
    decayed = clone(plain).set_params(weight_decay=10.0).fit(x, y)
    assert clone(decayed).weight_decay == 10.0

    def skips(fitted: object) -> float:
        shapes = fitted.model_.named_parameters()
        return sum(p.square().sum().item() for name, p in shapes if ".skips." in name)

    assert 0 < skips(decayed) < 0.999 * skips(plain)
    assert not np.array_equal(outputs(decayed, x), outputs(plain, x))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_optimiser_and_warm_up_are_parameters(estimator: type) -> None:
    assert estimator().get_params()["optimizer"] == "adam" and estimator().warmup == 0
    x, y = rows(estimator)
    options = [{}, {"optimizer": "soap"}, {"warmup": 3}]
    losses = [estimator(**TINY).set_params(**more).fit(x, y).history_.loss for more in options]
    assert losses[0] != losses[1] != losses[2] != losses[0]


def test_weight_decay_is_searched() -> None:
    x, y = rows(ConvexRegressor)
    grid = {"weight_decay": np.array([0.0, 1.0])}
    search = GridSearchCV(ConvexRegressor(**TINY), grid, cv=2, error_score="raise").fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and scores[0] != scores[1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_averaging_and_the_schedule_are_parameters(estimator: type) -> None:
    parameters = estimator().get_params()
    assert (parameters["averaging"], parameters["schedule"]) == (0.0, "cosine")
    x, y = rows(estimator)
    found = [estimator(**TINY, validation_fraction=0).fit(x, y)]
    found.append(clone(found[0]).set_params(schedule="constant").fit(x, y))
    found.append(clone(found[1]).set_params(averaging=0.9).fit(x, y))
    assert clone(found[2]).averaging == 0.9 and clone(found[2]).schedule == "constant"
    # Averages are not trained on: the losses of the steps stay.
    assert found[1].history_.loss == found[2].history_.loss != found[0].history_.loss
    a, b, c = (outputs(fitted, x) for fitted in found)
    assert not np.array_equal(a, b) and not np.array_equal(b, c) and np.isfinite(c).all()


def test_averaging_and_the_schedule_are_searched() -> None:
    x, y = rows(ConvexRegressor)
    grid = {"averaging": np.array([0.0, 0.9]), "schedule": np.array(["cosine", "constant"])}
    regressor = ConvexRegressor(**TINY, validation_fraction=0)
    search = GridSearchCV(regressor, grid, cv=2, error_score="raise").fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and len(set(scores)) == 4


def test_cross_validation_of_a_regressor() -> None:
    x, y = rows(ConvexRegressor)
    assert cross_val_score(ConvexRegressor(**TINY), x, y, cv=3, error_score="raise").shape == (3,)


def test_without_validation_rows_the_last_step_is_kept() -> None:
    x, _ = gaussian(20)
    flow = ConvexPotentialFlow(**TINY, validation_fraction=0, dtype="float64").fit(x)
    assert flow.history_.validation == [] and flow.history_.best_step == 4


def test_an_interrupt_goes_on_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn, "fit", lambda *_, **__: cl.History(stopped="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        ConvexPotentialFlow().fit(gaussian(20)[0])


X = gaussian(20)[0]
WITH_NAN = np.where(np.arange(40).reshape(20, 2) == 3, np.nan, X)
CONSTANT = np.column_stack([X[:, 0], np.full(20, 2.5)])


@pytest.mark.parametrize(
    ("parameters", "x", "message"),
    [
        ({}, WITH_NAN, "^Input X contains NaN"),
        ({}, X * [1, np.inf], "^Input X contains infinity"),
        ({}, X[:2], r"^Found array with 2 sample\(s\) .* while a minimum of 3 is required"),
        ({}, CONSTANT, r"^column 1 is constant \(every value is 2.5\): remove it$"),
        ({}, X / np.abs(X).max() * [1, 1e308], r"^column 1 is too large for float64 \(up to .*\)$"),
        ({"source": "lfit"}, X, "^unknown source 'lfit'; known: squared, softplus, softplus-fan-in, proj"),
        ({"dtype": "float16"}, X, "^dtype must be 'float32' or 'float64'; got 'float16'$"),
        ({"device": "abacus"}, X, "^device 'abacus' is unknown or not available$"),
        ({"validation_fraction": 1.0}, X, r"^validation_fraction must lie in \[0, 1\); got 1.0$"),
        ({"validation_fraction": 0.95}, X, "^20 rows are too few: 1 would be left to train on$"),
        ({"validation_fraction": 0, "patience": 3}, X, "^patience needs validation data$"),
        ({"blocks": 0}, X, "^a flow needs at least one block$"),
        ({"strong_convexity": 0}, X, "^the blocks of a flow need strong_convexity > 0"),
        ({"learning_rate": -1.0}, X, "^lr must be a positive number; got -1.0$"),
        ({"weight_decay": -1.0}, X, "^weight_decay must be a finite number of at least 0; got -1.0$"),
        ({"averaging": 1.0}, X, "^averaging must be a number of at least 0 and below 1; got 1.0$"),
        (
            {"schedule": "linear"},
            X,
            "^schedule must be 'cosine', 'constant' or a function of t; got 'linear'$",
        ),
        ({"steps": 0}, X, "^steps must be at least 1; got 0$"),
    ],
)
def test_what_cannot_be_fitted(parameters: dict[str, object], x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvexPotentialFlow(**{**TINY, **parameters}).fit(x)


def test_a_fit_that_failed_leaves_nothing_fitted() -> None:
    flow = ConvexPotentialFlow(**TINY)
    with pytest.raises(ValueError, match="^column 1 is constant"):
        flow.fit(CONSTANT)
    for use in (lambda: flow.score_samples(X), flow.sample):
        with pytest.raises(NotFittedError, match="^This ConvexPotentialFlow instance is not fitted yet"):
            use()


def test_what_a_fitted_model_refuses() -> None:
    flow = ConvexPotentialFlow(**TINY).fit(X)
    with pytest.raises(ValueError, match="^X has 1 features, but ConvexPotentialFlow is expecting 2 feat"):
        flow.score_samples(X[:, :1])
    with pytest.raises(ValueError, match="^cannot draw -1 samples$"):
        flow.sample(-1)


ORDER = "The feature names should match those that were passed during fit.\nFeature names must be in the same"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_columns_keep_their_names(estimator: type, tmp_path: Path) -> None:
    x, y = rows(estimator)
    x = np.column_stack([x, gaussian(60, 1)[0][:, 1]]) if x.shape[1] == 1 else x
    frame = pandas.DataFrame(x, columns=["pt", "eta"])
    more = {"objective": "score"} if estimator is LogConcaveDensity else {}
    fitted = estimator(**TINY, **more).fit(frame, pandas.Series(y, name="mass"))
    assert fitted.feature_names_in_.tolist() == ["pt", "eta"]
    target = {"y": ["mass"]} if estimator is ConvexRegressor else {}
    assert fitted.model_.columns == {"x": ["pt", "eta"], **target}
    cl.save(fitted.model_, tmp_path / "model.safetensors")
    assert cl.load(tmp_path / "model.safetensors").columns == fitted.model_.columns
    plain = estimator(**TINY, **more).fit(x, y)
    assert not hasattr(plain, "feature_names_in_") and plain.model_.columns is None
    assert np.array_equal(outputs(fitted, frame), outputs(plain, x))
    for wrong, message in (
        (frame[["eta", "pt"]], ORDER),
        (frame.rename(columns={"eta": "phi"}), "Feature names unseen at fit time:\n- phi\n"),
        (frame.assign(phi=1.0), "Feature names unseen at fit time:\n- phi\n"),
        (frame[["pt"]], "Feature names seen at fit time, yet now missing:\n- eta\n"),
    ):
        for call in (lambda: outputs(fitted, wrong), lambda: fitted.score(wrong, y)):  # noqa: B023
            with pytest.raises(ValueError, match=message):
                call()
    with pytest.warns(UserWarning, match="X does not have valid feature names, but"):
        outputs(fitted, x)
    with pytest.warns(UserWarning, match="X has feature names, but"):
        outputs(plain, frame)
    assert not hasattr(fitted.fit(x, y), "feature_names_in_") and fitted.model_.columns is None


def test_targets_that_vary() -> None:
    with pytest.raises(ValueError, match=r"^the target is constant \(every value is 1\)$"):
        ConvexRegressor().fit(X, np.ones(20))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ConvexRegressor().fit(X, np.ones(19))


def test_without_scikit_learn_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn .*: pip install 'convexlift\[sklearn\]'$"):
        runpy.run_path(str(sklearn.__file__))
