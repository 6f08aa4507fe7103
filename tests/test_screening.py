from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift.checks import name_rows, rows_from
from convexlift.cli.main import main
from convexlift.names import SCREENS
from convexlift.screening import DataWarning, Finding, Part, dequantise, drop_missing, screen, tell
from convexlift.sklearn import ConvexPotentialFlow, ConvexRegressor


def normal(n: int = 500, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def put(x: Tensor, rows: Any, column: int, value: float) -> Tensor:
    x = x.clone()
    x[rows, column] = value
    return x


def kinds(x: Tensor, role: Any = "samples", **options: Any) -> list[tuple[str, bool]]:
    return [(finding.kind, finding.refused) for finding in screen([Part(x, role)], **options)]


X = normal()
HEAVY = torch.from_numpy(np.random.default_rng(0).standard_cauchy((2000, 2)))
COMBINED = torch.cat([X, X[:, :1] - 2 * X[:, 1:]], 1)
SPARSE = X * (torch.arange(500) % 100 == 0)[:, None] + torch.tensor([0.0, 1.0]) * X

FOUND: dict[str, tuple[Tensor, list[tuple[str, bool]], str]] = {
    "three rows of 1e6": (
        put(X, [3, 7, 9], 1, 1e6),
        [("outliers", True)],
        "3 rows (row 3, row 7, row 9), column 1 is",
    ),
    "a sentinel of 1e30": (put(X, 8, 0, 1e30), [("outliers", True)], "row 8, column 0 is 1e+30"),
    "a code of -999": (put(X, 8, 0, -999), [("outliers", False)], "row 8, column 0 is -999"),
    "codes of 9999": (put(100 + 50 * X, [4, 6], 1, 9999), [("outliers", False)], "2 rows (row 4, row 6)"),
    "a near code": (put(500 + 50 * X, 4, 1, 9999), [("outliers", False)], "column 1 is 9999"),
    "many codes": (put(X, slice(0, 50), 1, -999.0), [("outliers", False)], "50 rows (row 0, row 1, row 2"),
    "heavy tails": (HEAVY, [("outliers", False)], "robust deviations from the median: remove or clip"),
    "a column twice": (torch.cat([X, X[:, :1]], 1), [("repeats", True)], "column 0 repeats column 2"),
    "a column in other units": (
        torch.cat([X, 3 * X[:, :1] + 1], 1),
        [("repeats", True)],
        "column 0 repeats column 2",
    ),
    "a combination": (
        COMBINED,
        [("repeats", True)],
        "column 0 is a linear combination of column 1 and column 2",
    ),
    "nearly a combination": (
        COMBINED + 1e-5 * normal(dim=3, seed=1),
        [("repeats", False)],
        "column 0 is nearly a linear combination of column 1 and column 2",
    ),
    "99 % zeros": (SPARSE, [("spikes", True)], "column 0 is 0 in 99 % of the rows, which no density is"),
    "a third of zeros": (
        put(X, slice(0, 170), 0, 0.0),
        [("spikes", False)],
        "column 0 is 0 in 34 % of the rows",
    ),
    "few values": (
        torch.cat([X, (3 * X[:, :1]).round()], 1),
        [("ties", False)],
        "distinct values in 500 rows: an",
    ),
    "repeated rows": (
        torch.cat([X, X[:100]]),
        [("duplicates", False)],
        "17 % of the rows repeat earlier ones (100 rows (row 500",
    ),
    "a third of codes": (
        put(X, slice(0, 170), 0, -999.0),
        [("outliers", False), ("spikes", False)],
        "170 rows (row 0, row 1, row 2, row 3, row 4, ...), column 0 is -999",
    ),
    "as many of another kind": (
        put(X, slice(0, 200), 0, 1e20),
        [("outliers", True), ("spikes", False)],
        "200 rows (row 0",
    ),
    "a code near the others": (put(25 + 8 * X, [3, 9], 0, -99.0), [("outliers", False)], "column 0 is -99"),
    "one far value of ten": (put(X[:10], 3, 0, 1e30), [("outliers", True)], "row 3, column 0 is 1e+30"),
    "a column twice in ten rows": (
        torch.cat([X[:10], X[:10, :1]], 1),
        [("repeats", True)],
        "column 0 repeats column 2",
    ),
    "a column of repeated rows": (
        torch.cat([X[:250, :1], X[:250, :1]]),
        [("duplicates", False)],
        "50 % of the rows repeat earlier ones",
    ),
    "coarsely rounded values": ((6 * X[:, :1]).round() / 12, [("ties", False)], "distinct values in 500"),
    "identifiers": (
        torch.cat([X, 1000.0 + torch.randperm(500, generator=torch.Generator().manual_seed(0))[:, None]], 1),
        [("counters", False)],
        f"column {X.shape[1]} numbers the rows one by one, as identifiers do: leave it out",
    ),
    "more columns than rows": (normal(30, 40), [("few-rows", False)], "30 rows are few for 40 columns"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_doubtful_is_found_and_can_be_switched_off(name: str) -> None:
    x, expected, text = FOUND[name]
    found = screen([Part(x, "samples")])
    assert {(finding.kind, finding.refused) for finding in found} == set(expected)
    assert text in found[0].message()
    assert kinds(x, allow=[kind for kind, _ in expected]) == []


def test_every_check_has_a_case() -> None:
    assert {expected[0][0] for _, expected, _ in FOUND.values()} | {"overlap"} == set(SCREENS)


@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e200])
def test_units_and_shifts_change_nothing(factor: float) -> None:
    for x, expected, _ in FOUND.values():
        if x is not HEAVY:
            # What is a code or a number of a row is one in its unit alone.
            left = ("outliers", "counters")
            assert set(kinds(x * factor)) >= {pair for pair in expected if pair[0] not in left}


def draws(seed: int) -> Iterator[Tensor]:
    """Ordinary samples, some of them skewed or heavy in the tails."""
    random = np.random.default_rng(seed)
    for n in (50, 1000, 5000):
        yield torch.from_numpy(random.normal(size=(n, 3)) * [1e-3, 1, 1e6] + [5, 0, 1e8])
        yield torch.from_numpy(random.standard_t(3, size=(n, 1)))
        yield torch.from_numpy(random.exponential(size=(n, 2)))
        yield torch.from_numpy(random.gumbel(size=(n, 2)))
        yield torch.from_numpy(random.uniform(size=(n, 2)))
        yield torch.from_numpy(random.lognormal(size=(n, 1)))
        yield torch.from_numpy(np.where(random.random((n, 1)) < 0.9, 0.1, 5.0) * random.normal(size=(n, 1)))
        modes = np.where(np.arange(n)[:, None] < 0.8 * n, 0.0, 300.0)
        yield torch.from_numpy(modes + random.normal(size=(n, 1)))
        first = random.normal(size=(n, 1))
        yield torch.from_numpy(np.concatenate([first, first + 0.02 * random.normal(size=(n, 1))], 1))


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_samples_raise_no_doubt(seed: int) -> None:
    for x in draws(seed):
        for role in ("samples", "inputs", "contexts"):
            assert kinds(x, role) == []
            assert kinds(x.float(), role) == []


def test_tables_of_scikit_learn_raise_no_doubt_but_of_what_is_discrete() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    for name in ("iris", "wine", "breast_cancer", "linnerud"):
        table = getattr(datasets, f"load_{name}")()
        assert kinds(torch.from_numpy(table.data)) == []
    diabetes = datasets.load_diabetes()
    found = screen([Part(torch.from_numpy(diabetes.data), "samples", diabetes.feature_names)])
    assert [finding.message().split(" is ")[0].split(" has ")[0] for finding in found] == [
        "column 's4'",  # one value in 29 % of the rows
        "column 'sex'",
    ]
    inputs = Part(torch.from_numpy(diabetes.data), "inputs")
    assert screen([inputs, Part(torch.from_numpy(diabetes.target)[:, None], "targets")]) == []
    assert set(kinds(torch.from_numpy(datasets.load_digits().data))) == {("spikes", True), ("ties", False)}


@pytest.mark.parametrize("name", ["digits21", "digits-latents", "regression-square", "regression-logsumexp"])
def test_our_problems_raise_no_doubt(name: str) -> None:
    train = cl.problems.problem(name).train
    tensors = train if isinstance(train, tuple) else (train,)
    roles = ("inputs", "targets") if name.startswith("regression") else ("samples",)
    parts = [Part(x if x.ndim == 2 else x[:, None], role) for x, role in zip(tensors, roles, strict=True)]
    assert screen(parts) == []


@pytest.mark.parametrize(
    "name",
    [
        "gumbel",
        "laplace",
        "gamma",
        "beta",
        "logistic",
        "uniform",
        "moon",
        "pinwheel",
        "checkerboard",
        "collider",
    ],
)
def test_our_simulators_raise_no_doubt(name: str) -> None:
    rows = cl.problems.problem(name).train.fixed(5000)
    tensors = rows if isinstance(rows, tuple) else (rows,)
    assert screen([Part(x, role) for x, role in zip(tensors, ("samples", "contexts"), strict=False)]) == []


def test_inputs_may_be_sparse_discrete_or_dependent() -> None:
    x = torch.cat([COMBINED, SPARSE[:, :1], (X[:, :1] > 0).double()], 1)
    assert kinds(x, "inputs") == [("repeats", False)]
    assert kinds(x[:, 1:], "inputs") == []


def test_targets_far_out_are_found() -> None:
    y = X.square().sum(1, keepdim=True)
    found = screen([Part(X, "inputs"), Part(put(y, [1, 2, 4], 0, 100.0), "targets")])
    assert [finding.kind for finding in found] == ["outliers"]
    assert found[0].message().startswith("3 rows (row 1, row 2, row 4), the target is 100, ")
    assert screen([Part(X, "inputs"), Part(y, "targets")]) == []


def test_validation_rows_from_training_are_found() -> None:
    held = torch.cat([X[:50], normal(50, seed=1)])
    found = screen([Part(X, "samples")], validation=[Part(held, "samples")])
    assert found[0].message().startswith("50 % of the validation rows are training rows (50 rows (row 0, ")
    assert screen([Part(X, "samples")], validation=[Part(normal(seed=1), "samples")]) == []


def network(dim: int = 2) -> cl.ICNN:
    return cl.ICNN(dim, hidden=(4,), seed=0)


def flow() -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([network()])


def conditional() -> cl.ConditionalDensity:
    return cl.ConditionalDensity(cl.PICNN(2, 2, hidden=(4,), seed=0))


FAR = put(X, 8, 1, 1e9)
TASKS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "flow": (flow, FAR, "row 8, column 1 is 1e+09"),
    "density": (lambda: cl.LogConcaveDensity(network()), FAR, "row 8, column 1 is 1e+09"),
    "weighted": (
        lambda: cl.LogConcaveDensity(network()),
        (FAR, torch.ones(500).double()),
        "row 8, column 1 is 1e+09",
    ),
    "conditional": (conditional, (FAR, X), "row 8, column 1 is 1e+09"),
    "contexts": (conditional, (X, FAR), "row 8, column 1 of the contexts is 1e+09"),
    "inputs": (lambda: cl.ConvexRegression(network()), (FAR, X[:, 0]), "row 8, column 1 is 1e+09"),
    "targets": (lambda: cl.ConvexRegression(network()), (X, FAR[:, 1]), "row 8, the target is 1e+09"),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_refuses_entries_far_out(name: str) -> None:
    make, data, message = TASKS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        cl.fit(make().double(), data, steps=1, progress=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        make().double().preflight(data)


def test_a_warning_can_be_switched_off_by_name() -> None:
    x = put(X, 8, 0, -999.0)
    with pytest.warns(
        DataWarning, match=r"row 8, column 0 is -999.* \(allow 'outliers' to hear no more of it\)"
    ):
        cl.fit(flow().double(), x, steps=1, progress=False)
    cl.fit(flow().double(), x, steps=1, progress=False, allow=("outliers",))
    flow().preflight(x, allow=("outliers",))
    with pytest.raises(ValueError, match="unknown check 'outlier'; known: outliers, repeats"):
        cl.fit(flow().double(), x, steps=1, progress=False, allow=("outlier",))
    cl.fit(flow().double(), FAR, steps=1, progress=False, allow=("outliers",))


def test_the_warning_points_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cl.fit(flow().double(), put(X, 8, 0, -999.0), steps=1, progress=False)
        flow().preflight(put(X, 8, 0, -999.0))
        ConvexPotentialFlow(hidden=(4,), steps=1).fit(put(X, 8, 0, -999.0))
        with torch.autocast("cpu", torch.bfloat16):
            flow().preflight(put(X, 8, 0, -999.0))
    assert [warning.filename for warning in caught] == [__file__] * 4


def test_constant_targets_are_called_so() -> None:
    with pytest.raises(ValueError, match=r"^the target is constant \(every value is 3\)$"):
        cl.fit(cl.ConvexRegression(network()).double(), (X, torch.full((500,), 3.0)), steps=1, progress=False)


def test_estimators_look_at_the_rows_as_given() -> None:
    few = {"hidden": (4,), "steps": 1, "random_state": 0}
    with pytest.raises(ValueError, match="row 8, column 1 is 1e"):
        ConvexPotentialFlow(**few).fit(FAR.numpy())
    with pytest.warns(DataWarning, match="row 8, the target is 100,"):
        ConvexRegressor(**few).fit(X.numpy(), put(X, 8, 1, 100.0)[:, 1].numpy())
    ConvexRegressor(**few, allow=("outliers",)).fit(X.numpy(), put(X, 8, 1, 100.0)[:, 1].numpy())
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="row 8, column 'b' is 1e"):
        ConvexPotentialFlow(**few).fit(pandas.DataFrame(FAR.numpy(), columns=["a", "b"]))


def test_missing_values_are_refused_with_the_way_out() -> None:
    x = put(put(X, [2, 5, 9], 1, math.nan), 5, 0, math.nan)
    message = r"row 2, column 1 \(3 of 500 rows have NaN or infinities\); convexlift.drop_missing leaves"
    with pytest.raises(ValueError, match=f"^training data have NaN at {message} such rows out$"):
        cl.fit(flow().double(), x, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"^samples have NaN at row 2, column 1 \(3 of 500 rows have NaN"):
        flow().double().log_prob(x)
    rows, kept = drop_missing(x)
    assert len(rows) == 497
    assert torch.equal(X[kept], rows)
    both, kept = drop_missing(X, x[:, 0])
    assert both.shape == (499, 3)
    assert 5 not in kept


def test_dequantised_columns_raise_no_doubt() -> None:
    x = torch.cat([(3 * X[:, :1]).round() / 2, X[:, 1:]], 1)
    z = dequantise(x)
    assert kinds(x) == [("ties", False)]
    assert kinds(z) == []
    assert torch.equal(z[:, 1], x[:, 1])
    assert float((z - x).abs().max()) <= 0.25
    assert torch.equal((2 * z[:, 0]).round() / 2, x[:, 0])
    assert torch.equal(dequantise(x), z)
    assert not torch.equal(dequantise(x, seed=1), z)
    with pytest.raises(ValueError, match="samples have NaN or infinities"):
        dequantise(put(X, 0, 0, math.nan))


def test_rows_are_named_as_the_caller_says() -> None:
    finding = Finding("outliers", True, "{rows}: far out", (1, 3), 7)
    assert finding.message(lambda row: f"line {row + 2}") == "7 rows (line 3, line 5, ...): far out"
    with pytest.raises(ValueError, match=r"^7 rows \(row 1, row 3, \.\.\.\): far out \(allow 'outliers'"):
        tell([finding])


def test_rows_are_numbered_as_given_and_not_within_a_part() -> None:
    x = normal(9000)
    for task in (flow().double(), flow().double().freeze()):
        task.initialise(x)
        with torch.no_grad(), pytest.raises(ValueError, match="samples have NaN at row 8500, column 1"):
            task.log_prob(put(x, 8500, 1, math.nan))
    refused = name_rows(torch.tensor([False, True]))
    with rows_from(4096), rows_from(10):
        assert name_rows(torch.tensor([False, True])) == "1 of 2 rows (4107)"
    assert name_rows(torch.tensor([False, True])) == refused == "1 of 2 rows (1)"


SMALL = ["--hidden", "4", "--depth", "1", "--steps", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(x: Tensor) -> None:
    text = "\n".join(["a,b", *(",".join(f"{entry:.17g}" for entry in row) for row in x.tolist())])
    Path("rows.csv").write_text(text + "\n")


@pytest.mark.usefixtures("folder")
def test_the_command_line_warns_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    write(put(X, 8, 0, -999.0))
    command = ["train", "flow", "--data", "rows.csv", *SMALL]
    assert main([*command, "--out", "one"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(told) == 1
    assert re.search(
        r"^warning: row \d.*, column 'a' is -999, .*\(--allow outliers to hear no more of it\)$", told[0]
    )
    assert main([*command, "--out", "two", "--allow", "outliers,ties"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*command, "--out", "three", "--allow", "outlier"]) == 1
    assert "error: unknown check 'outlier'; known: outliers," in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_the_command_line_refuses_and_dequantises(capsys: pytest.CaptureFixture[str]) -> None:
    write(torch.stack([X[:, 0], X[:, 0] * 2], 1))
    assert main(["train", "flow", "--data", "rows.csv", *SMALL, "--out", "one"]) == 1
    told = capsys.readouterr().err
    assert "error: rows.csv: column 'a' repeats column 'b'" in told
    assert "(--allow repeats to go on all the same)" in told
    assert not Path("one").exists()
    write((3 * X).round())
    assert main(["train", "density", "--data", "rows.csv", *SMALL, "--out", "two"]) == 0
    assert "warning: column 'a' has " in capsys.readouterr().err
    assert main(["train", "density", "--data", "rows.csv", *SMALL, "--out", "three", "--dequantise"]) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("n", [100, 1000, 20_000])
def test_values_that_agree_as_rounded_ones_do_are_no_repeated_rows(n: int) -> None:
    random = np.random.default_rng(0)
    ages, years = random.integers(18, 90, n), random.integers(1950, 2024, n)
    cents = random.lognormal(3, 1, n).round(2)
    degrees, counts = random.normal(20, 8, n).round(1), random.poisson(3, n)
    for columns in ([ages], [cents], [ages, years], [counts, ages], [degrees]):
        rows = torch.from_numpy(np.stack(columns, 1).astype(float))
        assert kinds(rows, "inputs") == []


def test_shares_near_one_are_told_apart() -> None:
    x = put(X * 0, slice(0, 2), 0, 1.0)[:, :1]
    assert "column 0 is 0 in 99.6 % of the rows" in screen([Part(x, "samples")])[0].message()
