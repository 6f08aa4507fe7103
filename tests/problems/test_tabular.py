"""Flow problems from published files: the preprocessing on small files of their form, the shared subsets."""

from __future__ import annotations

import gzip
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convexlift.problems import gaussian_baseline, problem
from convexlift.problems.published import hepmass as hepmass_module
from convexlift.problems.published import miniboone as miniboone_module
from convexlift.problems.published.tables import TextTable, continuous, published_scale

SHARED = Path(__file__).parents[2] / "../shared/data"
DISCRETE = [5, 9, 13, 17, 21]  # of the 26 features of HEPMASS that are read


def text(rows: np.ndarray, *, header: str, separator: str = " ") -> str:
    return "\n".join([header, *(separator.join(f"{cell:.6g}" for cell in row) for row in rows)]) + "\n"


def hepmass_rows(n: int, seed: int) -> np.ndarray:
    """Label, 27 features and, as in the training file, one cell more than names."""
    draws = np.random.default_rng(seed)
    rows = np.concatenate([np.arange(n)[:, None] % 2, 3 + 2 * draws.normal(size=(n, 28))], axis=1)
    rows[:, [1 + column for column in DISCRETE]] = draws.integers(0, 3, (n, 5))
    rows[::7, 1] = 3.0  # a repeated value that is not the smallest
    return rows


def write_hepmass(folder: Path, n: int = 600) -> dict[str, np.ndarray]:
    rows = {"train": hepmass_rows(n, 1), "test": hepmass_rows(300, 2)[:, :-1]}
    names = ",".join(["# label", *(f"f{k}" for k in range(27))])
    (folder / "1000_train.csv").write_text(text(rows["train"], header=names, separator=","))
    with gzip.open(folder / "1000_test.csv.gz", "wt") as file:
        file.write(text(rows["test"], header=names, separator=","))
    return rows


def test_hepmass_from_the_published_files(tmp_path):
    rows = write_hepmass(tmp_path)
    found = problem("hepmass", tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (270, 30, 150)
    kept = [1 + column for column in range(26) if column not in DISCRETE]
    signal = rows["train"][rows["train"][:, 0] == 1][:, kept]
    mean, deviation = signal[:270].mean(0), signal[:270].std(0)
    for part, expected in (("train", signal[:270]), ("validation", signal[270:])):
        scaled = torch.from_numpy((expected - mean) / deviation).float()
        assert torch.allclose(getattr(found, part), scaled, atol=1e-4)
    test = rows["test"][rows["test"][:, 0] == 1][:, kept]
    assert torch.allclose(found.test, torch.from_numpy((test - mean) / deviation).float(), atol=1e-4)
    assert "not comparable" in found.description
    assert torch.equal(problem("hepmass", tmp_path / "1000_train.csv").train, found.train)


def test_hepmass_takes_the_first_lines_only_and_says_when_rows_are_the_published_ones(tmp_path, monkeypatch):
    write_hepmass(tmp_path)
    monkeypatch.setattr(hepmass_module, "TRAIN_LINES", 400)
    monkeypatch.setattr(hepmass_module, "PUBLISHED", (180, 20, 150))
    found = problem("hepmass", tmp_path)
    assert len(found.train) == 180 and "not comparable" not in found.description
    assert "the rows of published tables; " in found.description and "nats lead to" in found.description


def test_hepmass_needs_both_files_and_five_discrete_columns(tmp_path):
    rows = write_hepmass(tmp_path)["train"]
    (tmp_path / "1000_test.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither 1000_test\.csv nor 1000_test\.csv\.gz"):
        problem("hepmass", tmp_path)
    (tmp_path / "1000_test.csv").write_text(text(rows, header="h", separator=","))
    rows[:, 1 + DISCRETE[0]] = np.random.default_rng(3).normal(size=len(rows))
    (tmp_path / "1000_train.csv").write_text(text(rows, header="h", separator=","))
    with pytest.raises(ValueError, match=r"1000_train\.csv: expected 21 continuous columns; got 22$"):
        problem("hepmass", tmp_path)


def test_discrete_columns_are_told_by_their_smallest_value():
    rows = np.random.default_rng(0).normal(size=(200, 3))
    rows[:100, 0] = 0.0  # repeated in the midst: stays
    rows[:6, 1] = -9.0
    rows[:5, 2] = -9.0
    assert continuous(rows).tolist() == [0, 2]


def test_the_scale_of_published_tables():
    """A Gaussian's loss moves by the announced difference when both splits standardise."""
    rows = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 5.0]
    rows[450:] *= 3
    loss = [float(np.log(rows[:450, k].std() / rows[:, k].std())) for k in range(2)]
    assert published_scale(rows[:450], rows[450:]).startswith(f"; {sum(loss):+.4f} nats lead")


def miniboone_rows(n: int) -> np.ndarray:
    rows = np.random.default_rng(4).normal(size=(n, 50)) + np.arange(50)
    rows[:, [5, 13]] = np.random.default_rng(5).integers(0, 4, (n, 2))
    rows[7] = -999.0
    return rows


@pytest.mark.parametrize("form", ["txt", "gz", "zip", "folder"])
def test_miniboone_from_the_published_file(tmp_path, form):
    rows = miniboone_rows(401)
    content = text(np.concatenate([rows, rows[:90] + 50]), header="   401 90")
    file = tmp_path / "MiniBooNE_PID.txt"
    if form == "gz":
        file = tmp_path / "MiniBooNE_PID.txt.gz"
        file.write_bytes(gzip.compress(content.encode()))
    elif form == "zip":
        file = tmp_path / "some.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/MiniBooNE_PID.txt", content)
    else:
        file.write_text(content)
    found = problem("miniboone", tmp_path if form == "folder" else file)
    assert (len(found.train), len(found.validation), len(found.test)) == (324, 36, 40)
    assert found.dim == found.test.shape[1] == 48
    assert torch.allclose(found.train.mean(0), torch.zeros(48), atol=1e-5)
    assert torch.allclose(found.train.std(0, correction=0), torch.ones(48), atol=1e-5)
    signal, kept = np.delete(rows, 7, axis=0), np.delete(np.arange(50), [5, 13])
    scaled = (signal[:, kept] - signal[:324, kept].mean(0)) / signal[:324, kept].std(0)
    assert torch.allclose(found.test, torch.from_numpy(scaled[360:]).float(), atol=1e-3)


def test_miniboone_says_when_rows_are_the_published_ones(tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(400, 43)))
    assert "not comparable" in problem("miniboone", tmp_path / "data.npy").description
    monkeypatch.setattr(miniboone_module, "PUBLISHED", (324, 36, 40))
    assert "the rows of published tables; " in problem("miniboone", tmp_path / "data.npy").description


def test_further_training_rows_of_miniboone_take_the_other_rows_from_the_file_beside(tmp_path):
    draws = np.random.default_rng(0)
    whole = {part: draws.normal(size=(20, 43)) for part in ("train_head", "val", "test")}
    columns = np.delete(np.arange(43), [4, 16, 19])
    np.savez(tmp_path / "extra.npz", train=draws.normal(size=(30, 40)), columns_in_43d=columns)
    with pytest.raises(
        FileNotFoundError, match=r"miniboone_43d\.npz, which has the validation and test rows$"
    ):
        problem("miniboone", tmp_path / "extra.npz")
    np.savez(tmp_path / "miniboone_43d.npz", **whole)
    found = problem("miniboone", tmp_path / "extra.npz")
    assert found.dim == 40 and torch.equal(found.test, torch.from_numpy(whole["test"][:, columns]).float())
    assert problem("miniboone", tmp_path / "miniboone_43d.npz").dim == 43
    np.savez(tmp_path / "extra.npz", train=draws.normal(size=(30, 40)), columns_in_43d=columns[:39])
    with pytest.raises(
        ValueError, match=r"extra\.npz: training, validation and test rows have \[40, 39, 39\]"
    ):
        problem("miniboone", tmp_path / "extra.npz")
    with pytest.raises(ValueError, match=r"holds several files \(extra\.npz, miniboone_43d\.npz\): name one"):
        problem("miniboone", tmp_path)


def power_text(n: int) -> str:
    draws = np.random.default_rng(6)
    lines = ["Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;s1;s2;s3"]
    for k in range(n):
        readings = f"{2 + draws.random():.3f};0.1;{240 + k / n:.2f};18.4;{k % 3};{k % 2};{k % 18}"
        readings = "?;?;?;?;?;?;" if k == 5 else readings
        lines.append(f"16/12/2006;{k // 60 % 24:02d}:{k % 60:02d}:00;{readings}")
    return "\n".join(lines) + "\n"


def test_power_from_the_published_file_is_split_by_time(tmp_path):
    file = tmp_path / "household_power_consumption.txt"
    file.write_text(power_text(1001))
    found = problem("power", file)
    assert (len(found.train), len(found.validation), len(found.test)) == (810, 90, 100)
    assert found.dim == 6 and "split by time" in found.description and "not comparable" in found.description
    voltage = torch.cat([found.train, found.validation, found.test])[:, 1]
    assert float((voltage[1:] - voltage[:-1]).min()) > -0.08  # it rises with time
    assert torch.allclose(found.train.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.equal(found.train, problem("power", tmp_path).train)
    for column in range(6):  # no two rows alike: every reading has its noise
        assert len(found.train[:, column].unique()) > 790


def test_gas_from_the_published_file_takes_every_fourth_row(tmp_path):
    draws = np.random.default_rng(7)
    rows = draws.normal(size=(2000, 19))
    rows[:, 0] = np.arange(2000) / 100
    rows[:, 4] = 2 * rows[:, 3]  # the first of the two is dropped
    rows[:, 5] = -rows[:, 6]  # only positive correlation counts
    (tmp_path / "ethylene_CO.txt").write_text(text(rows, header="Time (seconds), CO conc (ppm), sensors"))
    found = problem("gas", tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (405, 45, 50)
    fourth = rows[::4, 4:]
    scaled = (fourth - fourth[:405].mean(0)) / fourth[:405].std(0)
    assert found.dim == 15 and torch.allclose(found.test, torch.from_numpy(scaled[450:]).float(), atol=1e-4)


BAD = {
    "missing": ("power", "none.txt", None, "no such file: none.txt"),
    "empty folder": ("gas", ".", None, "holds neither ethylene_CO.txt nor ethylene_CO.txt.gz nor"),
    "pickle": ("gas", "ethylene_CO.pickle", b"\x80\x02", "is a pickle, which can run code when it is read"),
    "other text": (
        "gas",
        "a.txt",
        b"h\nhello world\n",
        "a.txt, line 2: expected 19 numbers; got 'hello world'",
    ),
    "underscores": (
        "gas",
        "a.txt",
        b"h\n" + b"1_0 " * 19 + b"\n",
        "a.txt, line 2: expected 19 numbers; got '1_0 1_0",
    ),
    "few cells": ("gas", "a.txt", b"h\n1 2 3\n", "a.txt, line 2: expected 19 numbers; got '1 2 3'"),
    "NaN": ("gas", "a.txt", b"h\n" + b"1 " * 18 + b"nan\n", "a.txt, line 2: cell 19 is nan"),
    "few rows": ("gas", "a.txt", b"h\n" + b"1 " * 19 + b"\n", "a.txt has 1 usable rows; at least 100"),
    "constant": ("gas", "a.txt", b"h\n" + (b"1 " * 19 + b"\n") * 900, "sensor 1 is constant in the training"),
    "empty": ("power", "a.txt", b"", "a.txt has 0 usable rows; at least 100 are needed"),
    "truncated gz": ("power", "a.gz", gzip.compress(bytes(9999))[:-9], "a.gz is damaged or truncated"),
    "damaged zip": ("power", "a.zip", b"PK\x03\x04 and noise", "a.zip is damaged or truncated"),
    "no counts": ("miniboone", "a.txt", b"1.5 2.5\n", "the first line must count signal and background rows"),
    "truncated": (
        "miniboone",
        "a.txt",
        b"200 3\n" + b"1 " * 50 + b"\n",
        "a.txt is truncated: 200 signal rows are announced; got 1",
    ),
    "random npz": ("gas", "a.npz", bytes(range(256)), "a.npz is not a readable .npz file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_have_one_clear_line(tmp_path, monkeypatch, case):
    name, file, content, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        problem(name, file)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_arrays_are_refused(tmp_path):
    path, rows = tmp_path / "a.npz", np.random.default_rng(0).normal(size=(200, 8))
    for name, held, message in (
        ("gas", {"train": rows, "val": rows}, "has no array 'test'; gas needs 'train', 'val' and 'test'"),
        ("gas", {"train": rows, "val": rows, "test": rows[:, :7]}, "test rows have [8, 8, 7] columns"),
        ("gas", {"train": rows * math.nan, "val": rows, "test": rows}, "'train' rows have NaN at row 0"),
        ("power", {"data": rows}, "has no array 'columns'; power needs"),
        ("power", {"data": rows, "columns": np.array(["Voltage"])}, "'columns' names 1"),
        (
            "power",
            {"data": rows, "columns": np.array(list("abcdefgh"))},
            "'columns' lacks Global_active_power",
        ),
        ("miniboone", {"train": rows}, "has no array 'val'; miniboone needs 'train' or 'train_head'"),
    ):
        np.savez(path, **held)
        with pytest.raises(ValueError) as error:
            problem(name, path)
        assert message in str(error.value)


def test_a_zip_without_the_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("other.txt", "1")
    with pytest.raises(ValueError, match=r"a\.zip holds no ethylene_CO\.txt$"):
        problem("gas", tmp_path / "a.zip")


def test_blocks_join_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("convexlift.problems.published.tables.BLOCK", 7)
    rows = np.random.default_rng(1).normal(size=(40, 3))
    (tmp_path / "a.csv").write_text(text(rows, header="a,b,c", separator=","))
    table = TextTable("a.csv", columns=(0, 2), separators=",")
    assert np.allclose(table.read(tmp_path / "a.csv"), rows[:, [0, 2]], atol=1e-4)
    assert np.allclose(table.read(tmp_path / "a.csv", every=4, limit=30), rows[:30:4, [0, 2]], atol=1e-4)


# The test loss of the full-covariance Gaussian beside what SOURCE.txt and the MAF paper give.
GAUSSIANS = [
    ("hepmass", "hepmass", (4505, 501, 2462, 21), 27.87),
    ("miniboone", "miniboone/miniboone_43d.npz", (1523, 3284, 3648, 43), 38.55),
    ("miniboone", "miniboone/miniboone_40d_extra_train.npz", (6862, 3284, 3648, 40), 35.33),
    ("power", "power/power_33days.npz", (38844, 4316, 4795, 6), 7.61),
    ("power", "power/power_4years_random_10k.npz", (9000, 1000, 10000, 5), 6.36),
    ("gas", "gas", (10000, 10000, 10000, 8), 3.22),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
@pytest.mark.parametrize(
    ("name", "path", "shape", "loss"), GAUSSIANS, ids=[path for _, path, _, _ in GAUSSIANS]
)
def test_shared_subsets(name, path, shape, loss):
    found = problem(name, SHARED / path)
    assert (len(found.train), len(found.validation), len(found.test), found.dim) == shape
    assert found.task == "flow" and found.train.shape[1] == found.dim and found.train.dtype == torch.float32
    assert "not comparable" in found.description and found.source and found.licence
    assert gaussian_baseline(found) == pytest.approx(loss, abs=0.01)
