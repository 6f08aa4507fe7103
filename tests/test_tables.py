"""Reading and writing the tables that users name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from convexlift import tables
from convexlift.cli import files


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("a,b\n1,2\n3,4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", ["x1", "x2"], [[1, 2], [3, 4]]),
        ("\ufeffa;b\r\n1; 2\r\n\r\n3;4e-1", ["a", "b"], [[1, 2], [3, 0.4]]),
        ('"first, of two"\tb\n-1\t2\n', ["first, of two", "b"], [[-1, 2]]),
        (",b\n0,5\n", ["x1", "b"], [[0, 5]]),
        ("only\n7\n8\n", ["only"], [[7], [8]]),
    ],
)
def test_csv(tmp_path: Path, text: str, names: list[str], rows: list[list[float]]) -> None:
    table = tables.read_table(written(tmp_path / "t.csv", text))
    assert table.names == names
    assert table.rows.dtype == torch.float32
    assert torch.equal(table.rows, torch.tensor(rows, dtype=torch.float32))


def test_columns_by_name_number_and_range(tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", "id,a,b,c-d\nx,1,2,3\ny,4,5,6\n")
    for columns, names in (("b,a", ["b", "a"]), ("2-3", ["a", "b"]), ("c-d,2", ["c-d", "a"])):
        table = tables.read_table(file, columns=columns)
        assert table.names == names
        assert table.rows.shape == (2, 2)
    for columns, message in (
        ("e", r"t.csv has no column 'e'; it has id, a, b, c-d"),
        ("5", r"t.csv has no column 5: it has 4 columns"),
        ("0", r"t.csv has no column 0"),
        ("a,2", r"every column may be named once"),
        ("id", r"row 1 \(line 2\), column 'id': 'x' is not a number"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.read_table(file, columns=columns)


def test_arrays(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.int64).reshape(3, 2)
    np.save(tmp_path / "t.npy", rows)
    np.savez(tmp_path / "one.npz", rows)
    np.savez_compressed(tmp_path / "two.npz", train=rows, test=rows[:1])
    for table in (
        tables.read_table(tmp_path / "t.npy"),
        tables.read_table(tmp_path / "one.npz"),
        tables.read_table(tmp_path / "two.npz", key="train"),
    ):
        assert table.names == ["x1", "x2"]
        assert torch.equal(table.rows, torch.from_numpy(rows).float())


BAD_CSV = {
    "empty": ("", "t.csv is empty"),
    "blank": ("\n \n", "t.csv is empty"),
    "header only": ("a,b\n", "t.csv has a header but no rows"),
    "text": ("a,b\n1,2\n3,four\n", r"t.csv: row 2 \(line 3\), column 'b': 'four' is not a number"),
    "text without header": ("1,2\n3,four\n", r"t.csv: row 2 \(line 2\), column 2: 'four' is not a number"),
    "empty cell": ("a,b\n1,\n", r"t.csv: row 1 \(line 2\), column 'b': the cell is empty"),
    "ragged": ("a,b\n1,2\n\n3\n", r"t.csv: row 2 \(line 4\) has 1 cells; expected 2"),
    "NaN": ("a,b\n1,2\nnan,3\n", r"t.csv: row 2, column 'a': the value is NaN"),
    "infinite": ("1,2\n1,-inf\n", r"t.csv: row 2, column 2: the value is infinite"),
    "too large": ("1,2\n1,1e300\n", r"t.csv: row 2, column 2: the value is 1e\+300, too large for float32"),
    "zero bytes": (b"1,2\n\0,4\n", "t.csv is not a CSV text file"),
    "random": (bytes(range(255, 100, -1)) * 4, "t.csv is not a CSV text file"),
    "quote": ('a,b\n"1,2\n', "t.csv is not a readable CSV file"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    text, message = BAD_CSV[case]
    with pytest.raises(ValueError, match=message):
        tables.read_table(written(tmp_path / "t.csv", text))


def test_bad_arrays(tmp_path: Path) -> None:
    file = tmp_path / "t.npy"
    for array, message in (
        (np.zeros(5), r"two dimensions \(rows, columns\); its shape is \(5,\); reshape it to \(N, 1\)"),
        (np.zeros((2, 3, 4)), r"its shape is \(2, 3, 4\)"),
        (np.zeros((0, 3)), r"t.npy is empty: its shape is \(0, 3\)"),
        (np.array([["a", "b"]]), "t.npy is not numeric: its type is <U1"),
        (np.zeros((2, 2), complex), "t.npy is not numeric: its type is complex128"),
        (np.array([[1.0, np.nan]]), "t.npy: row 1, column 2: the value is NaN"),
        (np.array([[1.0, {}]], dtype=object), "t.npy is not a readable .npy file of numbers"),
    ):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            tables.read_table(file)
    np.save(file, np.zeros((50, 2)))
    whole = file.read_bytes()
    noise = np.random.default_rng(0).bytes(500)
    for content in (
        noise,
        whole[:-100],
        whole[:20],
        b"\x93NUMPY" + noise,
        b"\x80\x04K\x01.",
        b"PK\x03\x04" + noise,
    ):
        for name in ("t.npy", "t.npz"):
            with pytest.raises(ValueError, match=rf"{name} is not a readable {name[1:]} file of numbers"):
                tables.read_table(written(tmp_path / name, content))
    with pytest.raises(ValueError, match="t.npy is empty"):
        tables.read_table(written(file, b""))


def test_which_array(tmp_path: Path) -> None:
    file = tmp_path / "t.npz"
    np.savez(file, train=np.zeros((2, 2)), test=np.zeros(3))
    for key, message in (
        (None, "t.npz holds the arrays 'train', 'test': choose one with --key"),
        ("valid", "t.npz has no array 'valid'; it holds 'train', 'test'"),
        ("test", r"t.npz: array 'test' must have two dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.read_table(file, key=key)
    np.savez(file)
    with pytest.raises(ValueError, match=r"t.npz holds no arrays"):
        tables.read_table(file)
    with pytest.raises(ValueError, match=r"t.csv has no named arrays: --key is for .npz files"):
        tables.read_table(written(tmp_path / "t.csv", "1,2\n"), key="train")


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.csv does not exist"):
        tables.read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"is a folder; expected a .csv, .npy or .npz file"):
        tables.read_table(tmp_path)
    with pytest.raises(ValueError, match=r"t.txt is not a .csv, .npy or .npz file"):
        tables.read_table(written(tmp_path / "t.txt", "1,2\n"))


def test_rows_that_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="t.csv has one row; training needs at least two"):
        files.check_training_table(torch.zeros(1, 2), ["a", "b"], "t.csv")
    with pytest.raises(ValueError, match=r"t.csv: column 'a' is constant \(every value is 0\)"):
        files.check_training_table(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), ["a", "b"], "t.csv")


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    tables.write_table(tmp_path / f"t{suffix}", rows, ["a", "b", "c"])
    again = tables.read_table(tmp_path / f"t{suffix}")
    assert torch.equal(rows, again.rows)
    assert again.names == (["x1", "x2", "x3"] if suffix in (".npy", ".npz") else ["a", "b", "c"])


def test_outputs(tmp_path: Path) -> None:
    there = written(tmp_path / "t.csv", "1\n")
    with pytest.raises(FileExistsError, match=r"t.csv exists; pass --force to replace it"):
        files.check_output_file(there)
    assert files.check_output_file(there, force=True) == there
    with pytest.raises(ValueError, match=r"cannot write .*t.txt: its name must end in .csv, .npy or .npz"):
        files.check_output_file(tmp_path / "t.txt")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*: there is no folder"):
        files.check_output_file(tmp_path / "none" / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*folder.csv: it is a folder"):
        files.check_output_file(tmp_path / "folder.csv")
    assert files.check_output_folder(tmp_path / "new" / "deep").is_dir()
    with pytest.raises(OSError, match=r"cannot make the folder .*t.csv/run: Not a directory"):
        files.check_output_folder(there / "run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write into the folder"):
        files.check_output_folder(tmp_path)


def test_an_unknown_device() -> None:
    with pytest.raises(ValueError, match="cannot use the device 'abacus': torch has no such device here"):
        files.check_device("abacus")
