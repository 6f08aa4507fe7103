"""Arrays as they come, and numbers as they come: the same results, or one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch

import convexlift as cl
from convexlift import sklearn as estimators
from convexlift.arrays import tensor_of
from convexlift.data import hold_out
from convexlift.sklearn import ConvexRegressor, LogConcaveDensity
from convexlift.testing import check_convex, check_derivatives

X = np.random.default_rng(0).normal(size=(40, 2)).round(3)  # float16 has them but for rounding
WHOLE = np.arange(12).reshape(6, 2)


def mapped(folder: Path) -> np.ndarray:
    path = folder / "rows.npy"
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def locked() -> np.ndarray:
    rows = X.copy()
    rows.flags.writeable = False
    return rows


SAME: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda _: X,
    "reversed": lambda _: X[::-1][::-1],
    "negative strides": lambda _: np.ascontiguousarray(X[::-1])[::-1],
    "reversed columns": lambda _: np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "read-only": lambda _: locked(),
    "Fortran": lambda _: np.asfortranarray(X),
    "every second column": lambda _: np.repeat(X, 2, 1)[:, ::2],
    "mapped": mapped,
    "big-endian": lambda _: X.astype(">f8"),
    "extended": lambda _: X.astype(np.longdouble),
    "objects": lambda _: X.astype(object),
    "decimals": lambda _: np.array([[Decimal(str(v)) for v in row] for row in X]),
    "masked, nothing hidden": lambda _: np.ma.masked_array(X, np.zeros_like(X, dtype=bool)),
    "matrix of numbers": lambda _: np.array(X.tolist()),
    "pandas": lambda _: pd.DataFrame(X, columns=["a", "b"]),
    "pandas, columns picked": lambda _: pd.DataFrame(X[:, ::-1], columns=["b", "a"])[["a", "b"]],
    "pandas, nullable": lambda _: pd.DataFrame(X, columns=["a", "b"]).convert_dtypes(),
    "pandas, pyarrow": lambda _: pd.DataFrame(X, columns=["a", "b"]).astype("float64[pyarrow]"),
    "polars": lambda _: pl.DataFrame(X, schema=["a", "b"]),
    "pyarrow": lambda _: pa.table({"a": X[:, 0], "b": X[:, 1]}),
    "tensor": lambda _: torch.from_numpy(X.copy()),
    "tensor with a graph": lambda _: torch.from_numpy(X.copy()).requires_grad_() * 1.0,
}


@pytest.mark.parametrize("kind", SAME)
def test_every_table_is_the_same_tensor(kind: str, tmp_path: Path) -> None:
    found = tensor_of(SAME[kind](tmp_path))
    assert torch.equal(found, torch.from_numpy(X)) and found.dtype == torch.float64
    assert not found.requires_grad and found.is_contiguous()


@pytest.mark.parametrize("kind", [kind for kind in SAME if kind != "decimals"])
def test_every_table_trains_the_same_estimator(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden": (4,), "steps": 3, "random_state": 0}
    values = SAME[kind](tmp_path)
    if isinstance(values, torch.Tensor):
        values = values.detach()  # scikit-learn reads no graphs
    expected = estimators.ConvexPotentialFlow(**options).fit(X)
    found = estimators.ConvexPotentialFlow(**options).fit(values)
    assert found.score_samples(values).tolist() == expected.score_samples(X).tolist()


@pytest.mark.parametrize("kind", SAME)
def test_every_table_trains_the_same_task(kind: str, tmp_path: Path) -> None:
    found = []
    for values in (SAME[kind](tmp_path), torch.from_numpy(X)):
        flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(4,), seed=0)])
        history = cl.fit(flow, values, validation=values, steps=3, progress=False)
        found.append([*history.loss, *history.validation])
    assert found[0] == found[1]


def test_columns_targets_and_weights_too(tmp_path: Path) -> None:
    y = (X**2).sum(1)
    options: dict[str, Any] = {"hidden": (4,), "steps": 3, "random_state": 0}
    expected = estimators.ConvexRegressor(**options).fit(X, y).predict(X)
    for target in (y[::-1].copy()[::-1], pd.Series(y), pl.Series(y), y.astype(object), y.astype(">f8")):
        assert estimators.ConvexRegressor(**options).fit(X, target).predict(X).tolist() == expected.tolist()
    one, ones = X[:, :1], np.ones(40)
    density = estimators.LogConcaveDensity(**options).fit(one, sample_weight=ones[::-1])
    assert density.score(one) == estimators.LogConcaveDensity(**options).fit(one, sample_weight=ones).score(
        one
    )
    regression = cl.ConvexRegression(cl.ICNN(2, hidden=(4,), seed=0))
    cl.fit(regression, (X[::-1], pd.Series(y[::-1])), steps=2, progress=False)
    train, held = hold_out((pd.DataFrame(X), y), 0.25)
    assert train[0].shape == (30, 2) and held[1].shape == (10,)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.float16, np.float32, ">i4", bool])
def test_kinds_of_numbers(kind: Any) -> None:
    found = tensor_of((WHOLE % 2).astype(kind))
    assert found.dtype == (torch.float32 if kind is np.float32 else torch.float64)
    assert found.tolist() == (WHOLE % 2).tolist()


def test_missing_values_are_nan_and_then_named() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": pd.array([1, None, 3], dtype="Int64")})
    found = tensor_of(table)
    assert found[1, 1].isnan() and found[2].tolist() == [3.0, 3.0]
    assert tensor_of(pl.DataFrame({"a": [1.0, None]}))[1, 0].isnan()
    assert tensor_of(np.array([1.0, None]))[1].isnan()
    flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(4,), seed=0)])
    with pytest.raises(
        ValueError, match="^training data have NaN at row 1, column 1; convexlift.drop_missing"
    ):
        cl.fit(flow, table, steps=1, progress=False)
    with pytest.raises(ValueError, match="^training data have an infinity at row 0, column 1$"):
        cl.fit(flow, np.array([[1, np.longdouble("1e4000")]]), steps=1, progress=False)


def test_other_shapes_are_as_they_are() -> None:
    assert tensor_of(3.0).shape == () and tensor_of([1, 2]).shape == (2,)
    assert tensor_of(np.zeros((2, 3, 4))[::-1]).shape == (2, 3, 4)
    assert tensor_of([]).shape == (0,)


def test_the_tensor_is_its_own_unless_a_tensor_was_given() -> None:
    rows = X.copy()
    found = tensor_of(rows)
    found[0] = 7.0
    assert (rows == X).all()


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (np.ma.masked_greater(X, 2.0), ValueError, "values have masked entries (the first at "),
    (scipy.sparse.csr_matrix(X), TypeError, "values are sparse: pass toarray() of them"),
    (torch.eye(3).to_sparse(), TypeError, "values are sparse: pass to_dense() of them"),
    (X + 1j, TypeError, "values are complex numbers (complex128): give numbers"),
    (torch.ones(2) * 1j, TypeError, "values are complex numbers (complex64): give numbers"),
    (np.array(["1", "2"]), TypeError, "values are text (<U1): give numbers"),
    (np.array([1.0, "a"], dtype=object), TypeError, "values hold 'a' at 1: give numbers"),
    (pd.DataFrame({"a": ["x", "y"]}), TypeError, "values "),
    (np.array(["2020-01-01"], dtype="M8[D]"), TypeError, "values are dates (datetime64[D]): give numbers"),
    (np.zeros(2, dtype=[("a", float)]), TypeError, "values are records "),
    ([[1.0], [1.0, 2.0]], ValueError, "values are no table: their rows differ in length"),
    ({"a": 1}, TypeError, "values hold {'a': 1} at 0: give numbers"),
    (torch.zeros(2, device="meta"), ValueError, "values are on the device 'meta', which holds no numbers"),
]


@pytest.mark.parametrize(("values", "kind", "message"), REFUSED)
def test_what_holds_no_numbers_is_refused(values: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        tensor_of(values)
    assert str(caught.value).startswith(message)


def test_fit_and_estimators_refuse_what_is_masked_or_sparse() -> None:
    flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(4,), seed=0)])
    hidden = np.ma.masked_array(X, X > 2)
    with pytest.raises(ValueError, match="^training data have masked entries"):
        cl.fit(flow, hidden, steps=1, progress=False)
    with pytest.raises(TypeError, match="^validation data are sparse"):
        cl.fit(flow, X, validation=scipy.sparse.csr_array(X), steps=1, progress=False)
    regressor = estimators.ConvexRegressor(hidden=(4,), steps=1)
    y = (X**2).sum(1)
    with pytest.raises(ValueError, match="masked entries"):
        regressor.fit(hidden, y)
    with pytest.raises(ValueError, match="masked entries"):
        regressor.fit(X, np.ma.masked_greater(y, 3))
    with pytest.raises(ValueError, match="masked entries"):
        regressor.fit(X, y).predict(hidden)
    with pytest.raises(ValueError, match="^sample weights have masked entries"):
        estimators.LogConcaveDensity(hidden=(4,), steps=1).fit(X, sample_weight=np.ma.masked_less(y, 1))


@pytest.mark.parametrize("wrap", [np.int64, np.uint8, np.array, lambda n: np.int16(n)])
def test_whole_numbers_of_numpy_s(wrap: Any, tmp_path: Path) -> None:
    def run(n: Callable[[int], Any]) -> list[Any]:
        net = cl.ICNN(n(2), hidden=(n(4), n(4)), quadratic_rank=n(1), seed=n(3))
        lift = cl.Lift(net, features=n(8), rank=n(2), body_hidden=(n(4),), seed=n(3))
        flow = cl.ConvexPotentialFlow([lift], chunk=n(16))
        options = {"steps": n(4), "batch_size": n(16), "evaluate_every": n(2), "patience": n(2), "seed": n(5)}
        history = cl.fit(flow, X, validation=X, progress=False, **options)
        frozen = flow.freeze(torch.from_numpy(X).float())
        cl.save(frozen, tmp_path / "flow.safetensors")
        conv = cl.ConvICNN((n(1), n(4), n(4)), channels=(n(2),), kernel=n(3), strides=n(1), seed=n(0))
        cl.save(conv.freeze(), tmp_path / "conv.safetensors")
        picnn = cl.PICNN(n(1), n(1), hidden=(n(4),), context_hidden=(n(3),), seed=n(0))
        return [
            *history.loss,
            *frozen.sample(n(3), seed=n(1)).flatten().tolist(),
            float(picnn.gates[0].sum().detach()),
        ]

    assert run(wrap) == run(int)


def test_real_numbers_of_numpy_s(tmp_path: Path) -> None:
    def run(r: Callable[[float], Any], b: Callable[[bool], Any]) -> list[Any]:
        net = cl.ICNN(2, hidden=(4,), sharpness=r(2.0), strong_convexity=r(0.5), skip=b(True), seed=0)
        flow = cl.ConvexPotentialFlow([cl.Squared(net)])
        options = {"lr": r(0.25), "weight_decay": r(0.125), "averaging": r(0.5), "clip": r(4.0)}
        history = cl.fit(
            flow, X, steps=3, progress=False, run_dir=tmp_path / str(r), compile=b(False), **options
        )
        config = json.loads((tmp_path / str(r) / "config.json").read_text())
        cl.save(flow.freeze(), tmp_path / "flow.safetensors")
        again = cl.load(tmp_path / "flow.safetensors")
        return [*history.loss, config["lr"], again.blocks[0].strong_convexity]

    expected = run(float, bool)
    for kind in (np.float32, np.float64, np.float16, np.array):
        assert run(kind, np.bool_) == expected


def test_a_grid_of_numpy_s_numbers() -> None:
    options = {
        "blocks": np.int64(2),
        "hidden": np.array([4, 4]),
        "steps": np.int32(3),
        "batch_size": np.uint8(16),
        "learning_rate": np.float32(0.25),
        "validation_fraction": np.float16(0.25),
        "strong_convexity": np.float64(0.5),
        "random_state": np.int64(0),
        "verbose": np.int64(0),
        "warm_start": np.bool_(False),
    }
    found = estimators.ConvexPotentialFlow(**options).fit(X)
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v.item() for k, v in options.items()}
    assert found.score(X) == estimators.ConvexPotentialFlow(**plain).fit(X).score(X)
    assert found.sample(np.int64(3), random_state=np.int64(1)).shape == (3, 2)


def test_estimators_take_tensors_that_carry_a_graph() -> None:
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, weights = x[:, 0].square(), x[:, 0].abs() + 1
    how = {"hidden": (8,), "steps": 3, "random_state": 0}
    tracked = x.clone().requires_grad_()
    one = ConvexRegressor(**how).fit(x.numpy(), y.numpy())
    other = ConvexRegressor(**how).fit(tracked, tracked[:, 0].square())
    np.testing.assert_array_equal(one.predict(x.numpy()), other.predict(2 * tracked / 2))
    density = LogConcaveDensity(**how).fit(tracked, sample_weight=tracked[:, 0].abs() + 1)
    expected = LogConcaveDensity(**how).fit(x.numpy(), sample_weight=weights.numpy())
    np.testing.assert_array_equal(density.score_samples(tracked), expected.score_samples(x.numpy()))


class Measured(torch.Tensor):
    """As libraries of units have them."""


@pytest.mark.parametrize("make", [lambda x: torch._neg_view(-x), lambda x: x.clone().as_subclass(Measured)])
def test_views_and_subclasses_of_tensors_train(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = None
    for rows in (x, make(x)):
        flow = cl.ConvexPotentialFlow([cl.Squared(cl.ICNN(2, hidden=(8,), seed=0))])
        cl.fit(flow, rows, steps=3, progress=False)
        found = flow.freeze(rows).log_prob(x)
        expected = found if expected is None else expected
        assert torch.equal(found, expected)
        assert all(type(tensor) is torch.Tensor for tensor in flow.state_dict().values())


def test_seeds_and_scales_of_checks_may_be_numpys() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1)

    scales = np.array([1.0, 10.0])
    assert check_convex(f, dim=2, scales=scales, starts=8, seed=np.int64(1)).convex
    assert check_derivatives(f, gradient=lambda x: 2 * x, dim=2, seed=np.int64(1)).errors["gradient"] < 1e-12
    counts = torch.tensor([[0.0], [2.0], [2.0], [4.0]])
    assert torch.equal(cl.dequantise(counts, seed=np.int64(3)), cl.dequantise(counts, seed=3))
