"""``convexlift evaluate``: scores of rows, also by models that left them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import convexlift as cl
from convexlift.cli.main import main
from convexlift.table_files import read_table, write_table

SMALL = ["--hidden", "8", "--depth", "1", "--steps", "30", "--batch-size", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with identifiers, another of the same law, a flow and a regression of the first."""
    place = tmp_path_factory.mktemp("evaluate")
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[7] = 9.0
    cost = x.square().sum(1, keepdim=True)
    number = 500.0 + torch.randperm(200, generator=torch.Generator().manual_seed(1))[:, None]
    write_table(place / "table.csv", torch.cat([number, x, cost], 1), ["id", "a", "b", "cost"])
    write_table(place / "other.csv", torch.cat([number, x, cost], 1)[:60] + 1e-9, ["id", "a", "b", "cost"])
    options = ["--data", f"{place}/table.csv", *SMALL]
    train = ["train", "flow", *options, "--columns", "a,b", "--out", f"{place}/flow"]
    assert main(train) == 0
    kind = ["train", "regression", *options, "--exclude", "id", "--target", "cost"]
    assert main([*kind, "--out", f"{place}/cost"]) == 0
    return place


def test_rows_of_training_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("flow", "cost"):
        assert main(["evaluate", f"{folder}/{run}", "--data", f"{folder}/table.csv"]) == 0
        assert "the model was trained on 180 of these 200 rows" in capsys.readouterr().err
        assert main(["evaluate", f"{folder}/{run}", "--data", f"{folder}/other.csv"]) == 0
        told = capsys.readouterr()
        assert "trained on" not in told.err
        assert ("a Gaussian" if run == "flow" else "than a plane fitted by least squares") in told.out


def test_rows_of_another_law_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "far.csv"
    other.write_text("a,b\n" + "".join(f"{6 + k / 20},{-5 - k / 30}\n" for k in range(40)))
    assert main(["evaluate", f"{folder}/flow", "--data", str(other)]) == 0
    assert "these rows are unlike those of training, whose validation rows had " in capsys.readouterr().out
    assert main(["evaluate", f"{folder}/flow", "--data", f"{folder}/other.csv"]) == 0
    assert "unlike" not in capsys.readouterr().out


def test_without_the_table_of_training_nothing_is_said_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((folder / "flow" / "model.safetensors").read_bytes())
    assert main(["evaluate", str(model), "--data", f"{folder}/table.csv"]) == 0
    told = capsys.readouterr()
    assert "trained on" not in told.err and "Gaussian" not in told.out


def test_scores_are_written_with_the_numbers_of_their_rows(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    table = tmp_path / "gaps.csv"
    table.write_text("a,b\n1,2\n,3\n0,1\n")
    told = ["evaluate", f"{folder}/flow", "--data", str(table), "--out", str(out)]
    assert main([*told, "--drop-missing"]) == 0
    scores = read_table(out, dtype=torch.float64)
    assert scores.names == ["row", "log_density", "share_below", "gaussian_log_density"] and scores.rows[
        :, 0
    ].tolist() == [1, 3]
    flow = cl.load(folder / "flow")
    expected = flow.log_prob(torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(scores.rows[:, 1], expected.double())
    drawn = flow.log_prob(flow.sample(4000, seed=1)).double()
    below = (drawn[:, None] < scores.rows[:, 1]).double().mean(0)
    torch.testing.assert_close(scores.rows[:, 2], below, rtol=0, atol=0.04)
    assert main(told) == 1  # the file is there


def test_residuals_are_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "residuals.npy"
    assert main(["evaluate", f"{folder}/cost", "--data", f"{folder}/table.csv", "--out", str(out)]) == 0
    x = read_table(folder / "table.csv", columns="a,b,cost", dtype=torch.float64).rows
    predicted = cl.load(folder / "cost").double().predict(x[:, :2])
    torch.testing.assert_close(
        read_table(out, dtype=torch.float64).rows[:, 1], x[:, 2] - predicted, rtol=1e-5, atol=1e-5
    )


def test_every_row_is_scored_by_a_model_that_left_it_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    again = ["evaluate", f"{folder}/flow", "--data", f"{folder}/table.csv", "--folds", "2"]
    assert main([*again, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert (
        "each row was scored by one of 2 models, trained anew on other rows of this file" in told
        and "Gaussian" in told
    )
    scores = read_table(out, dtype=torch.float64).rows
    assert scores[:, 0].tolist() == list(range(1, 201)) and int(scores[:, 1].argmin()) == 7
    assert float(scores[7, 2]) < 0.01 < float(scores[:, 2].median())
    assert "lowest log-densities: row 8 (line 9): -" in told
    low = 100 * float((scores[:, 2] <= 0.1).double().mean())
    assert f"{low:.0f} % of the rows are among the lowest 10 % of the model's own draws" in told
    seen = cl.load(folder / "flow").log_prob(read_table(folder / "table.csv", columns="a,b").rows[7:8])
    assert float(scores[7, 1]) < float(seen)  # it was not seen, and is odder for that
    assert main(["evaluate", f"{folder}/cost", "--data", f"{folder}/table.csv", "--folds", "2"]) == 0
    assert "target cost" in capsys.readouterr().out


def test_inputs_outside_the_range_of_training_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("a,b\n0,0\n0.1,99\n")
    told = ["predict", f"{folder}/cost", "--data", str(points), "--out", f"{tmp_path}/values.csv"]
    assert main(told) == 0
    found = capsys.readouterr().err
    assert "1 row outside the range of training" in found
    assert "row 2 (line 3), column 'b' is 99 and training had -" in found
    points.write_text("a,b\n0,0\n")
    assert main([*told, "--force"]) == 0 and "outside" not in capsys.readouterr().err


def test_the_next_commands_say_how_the_file_was_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "comma.csv"
    table.write_text("a;b;y\n" + "".join(f"{k},5;{k * k % 7},25;{k}\n" for k in range(40)))
    train = ["train", "regression", "--data", str(table), "--target", "y", *SMALL, "--out", f"{tmp_path}/run"]
    assert (
        main(train) == 1
        and "'0,5' is not a number (a decimal comma? say --decimal ,)" in capsys.readouterr().err
    )
    assert main([*train, "--decimal", ","]) == 0
    assert f"convexlift evaluate {tmp_path}/run --data other.csv --decimal ','" in capsys.readouterr().out


def test_too_few_rows_for_the_parts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "few.csv"
    table.write_text("a,b\n" + "".join(f"{k},{k * k % 7}\n" for k in range(9)))
    assert main(["evaluate", f"{folder}/flow", "--data", str(table), "--folds", "5"]) == 1
    assert "9 rows are too few for 5 parts" in capsys.readouterr().err


def test_identifiers_are_warned_of_and_can_be_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        "flow",
        "--data",
        f"{folder}/table.csv",
        "--steps",
        "2",
        "--hidden",
        "4",
        "--depth",
        "1",
    ]
    assert main([*train, "--exclude", "cost", "--out", f"{tmp_path}/all"]) == 0
    assert "column 'id' numbers the rows one by one, as identifiers do" in capsys.readouterr().err
    assert main([*train, "--exclude", "id,cost", "--out", f"{tmp_path}/some"]) == 0
    told = capsys.readouterr()
    assert "identifiers" not in told.err and "2 columns: a, b" in told.out
    assert main([*train, "--exclude", "1-4", "--out", f"{tmp_path}/none"]) == 1
    assert "--exclude 1-4: no column is left" in capsys.readouterr().err
