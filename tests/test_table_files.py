"""Reading and writing the tables that users name."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from convexlift import table_files as tables
from convexlift.checks import check_device


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
    "NaN": ("a,b\n1,2\nnan,3\n", r"t.csv: row 2 \(line 3\), column 'a': the value is NaN"),
    "infinite": ("1,2\n1,-inf\n", r"t.csv: row 2 \(line 2\), column 2: the value is infinite"),
    "too large": (
        "1,2\n1,1e300\n",
        r"line 2\), column 2: the value is 1e\+300, too large for float32",
    ),
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


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    tables.write_table(tmp_path / f"t{suffix}", rows, ["a", "b", "c"])
    again = tables.read_table(tmp_path / f"t{suffix}")
    assert torch.equal(rows, again.rows)
    assert again.names == (["x1", "x2", "x3"] if suffix in (".npy", ".npz") else ["a", "b", "c"])


HEADERS = {
    "names": ("pt,eta\n1,2\n", {}, ["pt", "eta"], True, 1),
    "names like numbers": ("2023_01,2023_02\n1,2\n", {}, ["2023_01", "2023_02"], True, 1),
    "sodium": ("Na,Mg\n1,2\n", {}, ["Na", "Mg"], True, 1),
    "counted": ("0,1,2\n.5,.6,.7\n", {}, ["0", "1", "2"], True, 1),
    "counted, with row numbers": (",0,1\n0,.5,.6\n1,.3,.4\n", {}, ["0", "1"], True, 2),
    "said": ("1,2\n3,4\n", {"header": True}, ["1", "2"], True, 1),
    "said of names like a row": ("0,1\n3,4\n", {"header": True}, ["0", "1"], True, 1),
    "denied": ("0,1\n3,4\n", {"header": False}, ["x1", "x2"], False, 2),
    "true and false": ("True,False\nTrue,True\n", {}, ["x1", "x2"], False, 2),
    "a name of two lines": ('"a\nb",c\n1,2\n', {}, ["a b", "c"], True, 1),
}


@pytest.mark.parametrize("case", HEADERS)
def test_what_is_a_header(tmp_path: Path, case: str) -> None:
    text, how, names, named, n = HEADERS[case]
    table = tables.read_table(written(tmp_path / "t.csv", text), **how)
    assert (table.names, table.named, len(table.rows)) == (names, named, n)


NUMBERS = {
    "decimal comma": ("a;b\n0,5;-1,25e1\n", {"decimal": ","}, [[0.5, -12.5]]),
    "decimal comma, one column": ("0,1257\n1,0331\n", {"decimal": ","}, [[0.1257], [1.0331]]),
    "one column with a name": ("x\n0,1257\n", {"decimal": ","}, [[0.1257]]),
    "quoted decimal comma": ('a,b\n"0,5",2\n', {"decimal": ","}, [[0.5, 2]]),
    "thousands": ('"1,234",5\n"5,678",1\n', {"thousands": ","}, [[1234, 5], [5678, 1]]),
    "both": ("a\tb\n1.234,5\t2\n", {"decimal": ",", "thousands": "."}, [[1234.5, 2]]),
    "blanks": ("a;b\n1 234;2\n", {"thousands": " "}, [[1234, 2]]),
    "two columns, said": ("0,1257\n1,0331\n", {"decimal": "."}, [[0, 1257], [1, 331]]),
    "lines of separators": ("a,b\n1,2\n,\n3,4\n , \n", {}, [[1, 2], [3, 4]]),
    "true and false": ("a,b\nTrue,1\nFalse,2\n", {}, [[1, 1], [0, 2]]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_how_numbers_are_written(tmp_path: Path, case: str) -> None:
    text, how, rows = NUMBERS[case]
    table = tables.read_table(written(tmp_path / "t.csv", text), **how, dtype=torch.float64)
    assert torch.equal(table.rows, torch.tensor(rows, dtype=torch.float64))


CALLED_A = {"columns": "a"}
NOT_GUESSED = {
    "counted names or numbers": ("0,1,2\n3,4,5\n", {}, "first line, 0,1,2, may hold names or numbers: say"),
    "two counted": (
        "0,1\n.5,.6\n",
        {},
        "the first line, 0,1, may hold names or numbers: say which by",
    ),
    "commas": ("0,1257\n1,0331\n0,5\n", {}, "t.csv: a comma may separate two columns or be part of a number"),
    "commas in thousands": ("12,345\n13,512\n", {}, "columns or be part of a number: say which by --decimal"),
    "comma under one name": ("x\n0,1257\n", {}, r"t.csv: row 1 \(line 2\) has 2 cells; expected 1"),
    "comma beside semicolons": (
        "a;b\n0,5;1\n",
        {},
        r"row 1 \(line 2\), column 'a': '0,5' is not a number \(a decimal comma\? say --decimal ,\)",
    ),
    "underscore": ("1,2\n2023_01,3\n", {}, r"row 2 \(line 2\), column 1: '2023_01' is not a number"),
    "marks of missing values": ("NA,NA\n1,2\n", {}, r"row 1 \(line 1\), column 1: 'NA' is not a number"),
    "a name twice": ("a,b,a\n1,2,3\n", {}, r"t.csv has several columns 'a' \(1, 3\): choose by number with"),
    "a name twice, chosen": ("a,b,a\n1,2,3\n", CALLED_A, r"t.csv has several columns 'a' \(1, 3\)"),
    "short in other columns": ("i,a,b\nx,1,2\ny,3\n", CALLED_A, r"row 2 \(line 3\) has 2 cells; expected 3"),
    "long in other columns": ("i,a\nx,1\n\ny,3,4\n", CALLED_A, r"row 2 \(line 4\) has 3 cells; expected 2"),
    "after a name of two lines": (
        'a,"b\nc"\n1,2\n3,x\n',
        {},
        r"row 2 \(line 4\), column 'b c': 'x' is",
    ),
    "one mark for two": ("a\n1\n", {"decimal": ",", "thousands": ","}, "decimal mark ',' and thousands mark"),
    "no decimal mark": ("a\n1\n", {"decimal": ";"}, "cannot have decimal mark ';' and thousands mark None"),
    "behind true and false": ("True,1\nFalse,x\n", {}, r"row 2 \(line 2\), column 2: 'x' is not a number"),
    "NaN in capitals": ("a,b\n1,NAN\n", {}, r"t.csv: row 1 \(line 2\), column 'b': the value is NaN"),
}


@pytest.mark.parametrize("case", NOT_GUESSED)
def test_nothing_is_guessed(tmp_path: Path, case: str) -> None:
    text, how, message = NOT_GUESSED[case]
    with pytest.raises(ValueError, match=message):
        tables.read_table(written(tmp_path / "t.csv", text), **how)


@pytest.mark.parametrize(
    ("text", "columns", "line"),
    [
        (",a,b\n0,.5,.6\n1,.3,.4\n", None, "2 rows, 2 columns: a, b; left out: x1 (row numbers)"),
        (",a,b\n7,.5,.6\n3,.3,.4\n", None, "2 rows, 2 columns: a, b; left out: x1 (row numbers)"),
        (",a\nx,.5\ny,.3\n", None, "2 rows, 1 column: a; left out: x1 (row labels)"),
        ("Unnamed: 0,a\n0,5\n1,6\n", None, "2 rows, 1 column: a; left out: Unnamed: 0 (row numbers)"),
        (",a\n.1,.5\n.2,.3\n", None, "2 rows, 2 columns: x1, a"),
        (",a\n2,.5\n2,.3\n", None, "2 rows, 2 columns: x1, a"),
        (",a,b\n0,.5,.6\n1,.3,.4\n", "1,3", "2 rows, 2 columns: x1, b; left out: a (not chosen)"),
        ("1,2,3\n", None, "1 row, 3 columns without names: x1, x2, x3"),
        (
            f"{','.join('abcdefghij')}\n{','.join('1234567890')}\n",
            "1-9",
            "a, b, c, d, e, f, g, h, ...; left out: j",
        ),
    ],
)
def test_one_line_says_what_was_read(tmp_path: Path, text: str, columns: str | None, line: str) -> None:
    found = str(tables.read_table(written(tmp_path / "t.csv", text), columns=columns))
    assert line in found and "\n" not in found


def frame_bytes(**columns: list[object]) -> bytes:
    import pandas

    buffer = io.BytesIO()
    pandas.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


# What a file may hold, how it is read, and the rows, the names and what is told, or the message.
ODD: dict[str, tuple[str | bytes, dict[str, object], list[list[float]] | str, str]] = {
    # numbers
    "exponents and points": ("a\n1e5\n1E-3\n+2.\n-.5\n", {}, [[1e5], [1e-3], [2], [-0.5]], "a"),
    "blanks around": (" a , b \n 3 ,\t4 \n", {}, [[3, 4]], "a b"),
    "a no-break space": ("a,b\n\u00a03,4\u2009\n", {}, [[3, 4]], "a b"),
    "thin spaces": ("a;b\n1\u202f234,5;2\n", {"decimal": ",", "thousands": " "}, [[1234.5, 2]], "a b"),
    "a minus sign": ("a,b\n\u22123,4\n1,\u22122.5\n", {}, [[-3, 4], [1, -2.5]], "a b"),
    "thousands in quotes": ('a\n"1,257.5"\n"2,000"\n', {"thousands": ","}, [[1257.5], [2000]], "a"),
    "underscores, said": ("a\n1_000\n", {"thousands": "_"}, [[1000]], "a"),
    "in quotes": ('"a","b"\n"1","2"\n', {}, [[1, 2]], "a b"),
    "NaN in any spelling": ("a\n1\nNan\n", {}, r"row 2 \(line 3\), column 'a': the value is NaN", ""),
    "infinity in any spelling": (
        "a\n1\n-Infinity\n",
        {},
        r"row 2 \(line 3\), column 'a': the value is inf",
        "",
    ),
    "beyond float64": ("a\n1\n1e400\n", {}, r"row 2 \(line 3\), column 'a': the value is infinite", ""),
    "underscores": ("a\n1_000\n", {}, r"'1_000' is not a number \(see --decimal and --thousands\)", ""),
    "an underscore in no name": ("2023_01\n2023_02\n", {}, "'2023_02' is not a number", ""),
    "hexadecimal": ("a\n0x10\n", {}, "'0x10' is not a number", ""),
    "thousands": ('a\n"1,257.5"\n', {}, r"'1,257.5' is not a number \(see --decimal and --thousands\)", ""),
    "no thousands": ('a\n"1,25"\n', {"thousands": ","}, "'1,25' is not a number", ""),
    "thousands, no quotes": (
        "1,257.5\n2,300.1\n",
        {},
        "a comma may separate two columns or be part of a",
        "",
    ),
    "a point for a comma": ("a\n1.5\n", {"decimal": ","}, "'1.5' is not a number", ""),
    "a date": ("a\n2020-01-01\n", {}, "'2020-01-01' is not a number", ""),
    "a time": ("a\n12:30\n", {}, "'12:30' is not a number", ""),
    "a share": ("a\n5%\n", {}, "'5%' is not a number", ""),
    "money": ("a\n$5\n", {}, r"'\$5' is not a number", ""),
    "a fraction": ("a\n1/2\n", {}, "'1/2' is not a number", ""),
    "Fortran": ("a\n1d5\n", {}, "'1d5' is not a number", ""),
    "complex": ("a\n1+2j\n", {}, r"'1\+2j' is not a number", ""),
    "other digits": ("a\n\u0661\u0662\n", {}, "is not a number", ""),
    "other quotes": ("a,b\n'1','2'\n", {}, "\"'1'\" is not a number", ""),
    # the first line
    "counted from 1": (
        "1,2,3\n.5,.6,.7\n",
        {},
        "the first line, 1,2,3, may hold names or numbers: say which",
        "",
    ),
    "counted from 1, said": ("1,2,3\n.5,.6,.7\n", {"header": True}, [[0.5, 0.6, 0.7]], "1 2 3"),
    "counted from 1, denied": ("1,2\n.5,.6\n", {"header": False}, [[1, 2], [0.5, 0.6]], "x1 x2"),
    "years": ("2001,2002,2003\n10,20,35\n", {}, "first line, 2001,2002,2003, may hold names or numbers", ""),
    "wavelengths": (
        "400.0,400.5,401.0,401.5\n5,2,9,1.5\n",
        {},
        "may hold names or numbers: say which by",
        "",
    ),
    "years above an index": (
        ",2001,2002\n0,5,6\n",
        {},
        "first line, ,2001,2002, may hold names or numbers",
        "",
    ),
    "even rows": ("1,2,3\n4,5,6\n", {}, [[1, 2, 3], [4, 5, 6]], "x1 x2 x3"),
    "names and numbers": (
        "year,2001\n1,5\n",
        {},
        r"'year' is not a number \(if the first line holds names",
        "",
    ),
    "names and numbers, said": ("year,2001\n1,5\n", {"header": True}, [[1, 5]], "year 2001"),
    "decimal commas": ("1,5;2,5\n3;4\n", {}, "may hold names or numbers.*see --decimal", ""),
    "marks of missing values": ("?,-\n1,2\n", {}, r"row 1 \(line 1\), column 1: '\?' is not a number", ""),
    "<NA>": ("<NA>,null\n1,2\n", {}, r"row 1 \(line 1\), column 1: '<NA>' is not a number", ""),
    "names of a model": ("0,1,2\n3,4,5\n", {"expected": ["0", "1", "2"]}, [[3, 4, 5]], "0 1 2"),
    "a comment": ("# by hand\n\na,b\n1,2\n", {}, [[1, 2]], "a b"),
    "names in a comment": ("# by hand\n# a,b\n1,2\n", {}, [[1, 2]], "a b"),
    "as numpy.savetxt": ("# a  b\n1.0  2.0\n3.0 4.0\n", {}, [[1, 2], [3, 4]], "a b"),
    "a comment with a quotation mark": ('# 5" tubes\n1,2\n', {}, [[1, 2]], "x1 x2"),
    "a comment below": ("a,b\n1,2\n# c\n", {}, r"row 2 \(line 3\) has 1 cells; expected 2", ""),
    "names again": ("a,b\n1,2\na,b\n", {}, r"row 2 \(line 3\), column 'a': 'a' is not a number", ""),
    # what separates cells
    "sep=": ("sep=;\na;b\n1;2\n", {}, [[1, 2]], "a b"),
    "sep= and another mark": ("sep=:\na:b\n1:2\n", {}, [[1, 2]], "a b"),
    "bars": ("a|b\n1|2\n", {}, [[1, 2]], "a b"),
    "blanks": ("a  b\n 1   2\n", {}, [[1, 2]], "a b"),
    "blanks, said": ("1 234\n5 678\n", {"separator": "space"}, [[1, 234], [5, 678]], "x1 x2"),
    "blanks or thousands": ("1 234\n5 678\n", {}, "a blank may separate columns or be part of a number", ""),
    "blanks in a name": ("my name\n1\n", {}, [[1]], "my name"),
    "tabs, said": ("a,b\tc\n1\t2\n", {"separator": "tab"}, [[1, 2]], "a,b c"),
    "commas, said": ("0,1257\n1,0331\n", {"separator": ","}, [[0, 1257], [1, 331]], "x1 x2"),
    "commas of two columns": (
        "0,1257,1,0331\n2,5000,3,0100\n",
        {},
        "separate columns or be part of a number",
        "",
    ),
    "colons": (
        "a:b\n1:2\n",
        {"separator": ":"},
        "cells cannot be separated by ':': it is one of , ; | tab",
        "",
    ),
    "no such": ("a:b\n1:2\n", {}, "column 'a:b': '1:2' is not a number", ""),
    "semicolons beside commas": ("1,5;2,5\n3,5;4,5\n", {"decimal": ","}, [[1.5, 2.5], [3.5, 4.5]], "x1 x2"),
    # lines
    "CR": ("a,b\r1,2\r3,4\r", {}, [[1, 2], [3, 4]], "a b"),
    "blank lines": ("\n\na,b\n\n1,2\n  \n3,4\n\n", {}, [[1, 2], [3, 4]], "a b"),
    "separators at the end": ("a,b,,\n1,2,,\n3,4,,\n", {}, [[1, 2], [3, 4]], "a b"),
    "separators at the end, no names": ("1,2,\n3,4,\n", {}, [[1, 2], [3, 4]], "x1 x2"),
    "separators at the end of rows": (
        "a,b\n1,2,\n",
        {},
        r"has 3 cells; expected 2 \(the last is empty\)",
        "",
    ),
    "names of columns alone": ("a,b\nx,1,2\n", {}, r"row 1 \(line 2\) has 3 cells; expected 2", ""),
    # bytes
    "UTF-16": ("a,b\r\n1,2\r\n".encode("utf-16"), {}, [[1, 2]], "a b"),
    "UTF-16, unmarked": ("a,b\n1,2\n".encode("utf-16-le"), {}, "is not a CSV text file", ""),
    "Latin-1": (
        "\u00e9,b\n1,2\n".encode("latin-1"),
        {},
        r"is not a CSV text file in UTF-8 \(at byte 0\): save it",
        "",
    ),
    "gzip": (
        gzip.compress(b"a\n1\n"),
        {},
        "is not a CSV text file but compressed: its name should end in",
        "",
    ),
    "a workbook": (
        b"PK\3\4abc",
        {},
        "is not a CSV text file but an archive or a workbook: save the table",
        "",
    ),
    "a web page": ("<!DOCTYPE html>\n<html>\n", {}, "'<html>' is not a number", ""),
    # columns that hold no data
    "index twice": ("Unnamed: 0.1,Unnamed: 0,a\n0,0,5\n1,1,6\n", {}, [[5], [6]], "a"),
    "index of two levels": (",,a\n0,0,5\n0,1,6\n1,0,3\n", {}, [[5], [6], [3]], "a"),
    "index of two frames": (",a\n0,5\n1,6\n2,3\n0,7\n1,8\n", {}, [[5], [6], [3], [7], [8]], "a"),
    "index, shuffled": (",a\n3,5\n1,6\n", {}, [[5], [6]], "a"),
    "index of dates": (",a\n2020-01-01,5\n2020-01-02,6\n", {}, [[5], [6]], "a"),
    "index under its name": ("index,a\n0,5\n1,6\n", {}, [[5], [6]], "a"),
    "index of R": ('"rownames","a"\n"1",5\n"2",6\n', {}, [[5], [6]], "a"),
    "index that is chosen": ("index,a\n0,5\n1,6\n", {"columns": "index"}, [[0], [1]], "index"),
    "no index": ("index,a\n3,5\n1,6\n", {}, [[3, 5], [1, 6]], "index a"),
    "names alike but for blanks": ("a, a\n1,2\n", {}, r"several columns 'a' \(1, 2\)", ""),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_gives_its_values_or_a_message(tmp_path: Path, case: str) -> None:
    content, how, expected, names = ODD[case]
    file = written(tmp_path / "t.csv", content)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            tables.read_table(file, **how)
        return
    table = tables.read_table(file, **how, dtype=torch.float64)
    assert table.rows.tolist() == expected
    assert " ".join(table.names) == names


MARKS = "x\n?\n-\n1\nN/A\n<NA>\nnull\n#N/A\nNaT\nNone\n nan \n"


def test_missing_values_are_kept_where_they_are_asked_for_and_have_lines(tmp_path: Path) -> None:
    table = tables.read_table(written(tmp_path / "t.csv", "a,b\n1,\n\nNA,4\n5,6\n"), missing=True)
    assert np.array_equal(table.rows, [[1, np.nan], [np.nan, 4], [5, 6]], equal_nan=True)
    assert [table.line(row) for row in range(3)] == [2, 4, 5] and table.where(1) == "row 2 (line 4)"
    table = tables.read_table(written(tmp_path / "t.csv", MARKS), missing=True)
    assert table.rows.isnan().flatten().tolist() == [True] * 2 + [False] + [True] * 7
    np.save(tmp_path / "t.npy", [[1.0, np.nan]])
    table = tables.read_table(tmp_path / "t.npy", missing=True)
    assert table.rows.isnan().tolist() == [[False, True]] and table.where(0) == "row 1"
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'a': the value is infinite"):
        tables.read_table(written(tmp_path / "t.csv", "a\nNA\ninf\n"), missing=True)


def test_rows_have_the_lines_of_the_file(tmp_path: Path) -> None:
    text = 'sep=,\n# by hand\n\n"a\nb",c\n1,2\n\n"3\n",4\n'
    table = tables.read_table(written(tmp_path / "t.csv", text))
    assert table.names == ["a b", "c"] and [table.line(row) for row in (0, 1)] == [6, 9]


@pytest.mark.parametrize(
    ("text", "how", "told"),
    [
        ("a,b\n1,2\n", {}, "names in line 1, cells separated by commas, decimal point"),
        ("1;2\n3;4\n", {}, "no line of names, cells separated by semicolons, decimal point"),
        ("x\n1,5\n", {"decimal": ","}, "names in line 1, decimal comma"),
        ("x\n1 500\n", {"thousands": " "}, "names in line 1, decimal point, digits grouped by ' '"),
        (
            "# c\na\tb\n1\t2\n\n\t\n",
            {},
            "names in line 2, cells separated by tabs, decimal point, 1 comment skipped, "
            "1 line without values skipped",
        ),
    ],
)
def test_how_a_text_was_read_is_told(tmp_path: Path, text: str, how: dict[str, str], told: str) -> None:
    assert tables.read_table(written(tmp_path / "t.csv", text), **how).how == told


NO_NAMES = "the file has no column names: x1, x2 taken by position as a, b"
FOR_A_MODEL: dict[str, tuple[str, object, str | None, list[float] | str, list[str]]] = {
    "same": ("a,b\n1,2\n", ["a", "b"], None, [1, 2], []),
    "turned": ("b,a\n1,2\n", ["a", "b"], None, [2, 1], ["columns are put in the model's order: a, b"]),
    "more": (
        "id,a,c,b\nx,1,7,2\n",
        ["a", "b"],
        None,
        [1, 2],
        ["ignored, as the model does not read them: id, c"],
    ),
    "more, chosen": ("a,c,b\n1,7,2\n", ["a", "b"], "a,b", [1, 2], []),
    "turned, chosen": (
        "a,b\n1,2\n",
        ["a", "b"],
        "b,a",
        [1, 2],
        ["columns are put in the model's order: a, b"],
    ),
    "others twice": ("a,c,c\n1,7,2\n", ["a"], None, [1], ["ignored, as the model does not read them: c, c"]),
    "twice": ("a,b,b\n1,7,2\n", ["a", "b"], None, r"t.csv has several columns 'b' \(2, 3\)", []),
    "missing": (
        "b,c\n1,2\n",
        ["a", "b"],
        None,
        "t.csv has no column 'a', which the model reads; it has b, c",
        [],
    ),
    "all missing": (
        "c,d\n1,2\n",
        ["a", "b"],
        None,
        "t.csv has no columns 'a', 'b', which the model reads",
        [],
    ),
    "other case": (
        "A,b\n1,2\n",
        ["a", "b"],
        None,
        "t.csv has no column 'a', which the model reads; it has A, b",
        [],
    ),
    "left out": (
        "a,b\n1,2\n",
        ["a", "b"],
        "b",
        "t.csv has no column 'a', which the model reads; it has b",
        [],
    ),
    "an index": (
        ",b,a\n0,1,2\n1,1,2\n",
        ["a", "b"],
        None,
        [2, 1],
        ["columns are put in the model's order: a, b", "ignored, as the model does not read them: x1"],
    ),
    "an index that is read": ("index,a\n0,1\n1,2\n", ["index", "a"], None, [0, 1], []),
    "without names": ("1,2\n", ["a", "b"], None, [1, 2], [NO_NAMES]),
    "three without names": (
        "1,2,5\n",
        ["a", "b"],
        None,
        r"t.csv has 3 columns without names; the model reads 2 \(a, b\): choose them with --columns",
        [],
    ),
    "two of three": (
        "1,2,5\n",
        ["a", "b"],
        "3,1",
        [5, 1],
        ["the file has no column names: x3, x1 taken by position as a, b"],
    ),
    "model without names": (
        "b,a\n1,2\n",
        2,
        None,
        [1, 2],
        ["the model has no column names: b, a taken by position"],
    ),
    "model without names, too many": (
        "b,a,c\n1,2,3\n",
        2,
        None,
        "t.csv has 3 columns; the model reads 2: choose",
        [],
    ),
    "no names at all": (
        "1,2\n",
        2,
        None,
        [1, 2],
        ["neither the model nor the file has column names: x1, x2 taken by position"],
    ),
    "places": (
        "7,1,8,2\n",
        [4, 2],
        None,
        [2, 1],
        ["neither the model nor the file has column names: x4, x2 taken by position"],
    ),
    "places that are not there": (
        "7,1\n",
        [4, 2],
        None,
        [7, 1],
        ["neither the model nor the file has column names: x1, x2 taken by position"],
    ),
    "places in two orders": (
        "7,1\n",
        [2, 1],
        None,
        "trained on columns 2, 1 of such a file: say their order here",
        [],
    ),
}


@pytest.mark.parametrize("case", FOR_A_MODEL)
def test_a_model_gets_the_columns_that_it_knows(tmp_path: Path, case: str) -> None:
    text, known, columns, expected, notes = FOR_A_MODEL[case]
    file = written(tmp_path / "t.csv", text)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            tables.read_table(file, columns=columns, expected=known)
        return
    table = tables.read_table(file, columns=columns, expected=known)
    assert table.rows[0].tolist() == expected and table.notes == notes


@pytest.mark.parametrize(
    ("text", "columns", "known"),
    [("a,b\n1,2\n", "b", ["b"]), ("1,2\n", "2", [2]), ("1,2\n", "2,1", [2, 1]), ("1,2\n", None, None)],
)
def test_what_a_model_will_know(
    tmp_path: Path, text: str, columns: str | None, known: list[str] | None
) -> None:
    assert tables.read_table(written(tmp_path / "t.csv", text), columns=columns).columns == known


def test_frames_with_columns_that_hold_no_data(tmp_path: Path) -> None:
    for name in ("Unnamed: 0", "__index_level_0__", "index", "level_0"):
        file = written(tmp_path / "t.parquet", frame_bytes(**{name: [0, 1, 2], "a": [3, 4, 5]}))
        assert str(tables.read_table(file)) == f"3 rows, 1 column: a; left out: {name} (row numbers)"
    file = written(tmp_path / "t.parquet", frame_bytes(**{"Unnamed: 0": ["x", "y"], "a": [3, 4]}))
    assert str(tables.read_table(file)) == "2 rows, 1 column: a; left out: Unnamed: 0 (row labels)"


def test_arrays_with_names(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", ">f8")]))
    table = tables.read_table(tmp_path / "t.npy", expected=["b", "a"], dtype=torch.float64)
    assert table.named and table.rows.tolist() == [[2.5, 1], [4.5, 3]]
    np.save(tmp_path / "t.npy", np.array([(1, "x")], dtype=[("a", "i4"), ("b", "U1")]))
    with pytest.raises(ValueError, match="column 'b' is not numeric: its type is <U1"):
        tables.read_table(tmp_path / "t.npy")
    for order in (np.asfortranarray, lambda rows: rows.astype(">f4")):
        np.save(tmp_path / "t.npy", order(np.arange(6.0).reshape(3, 2)))
        assert tables.read_table(tmp_path / "t.npy").rows.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("t.xlsx", "save the sheet as .csv"),
        ("t.csv.zip", "unpack it"),
        ("t.csv.bz2", "unpack it"),
        ("t.csv.xz", "unpack it"),
        ("t.h5", "save the table as .parquet or .csv"),
    ],
)
def test_other_kinds_of_files_say_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"is not a .csv, .npy or .npz file \(.*\): {advice}$"):
        tables.read_table(written(tmp_path / name, b"abc"))


def test_gzipped_text_and_tabs(tmp_path: Path) -> None:
    file = written(tmp_path / "t.CSV.gz", gzip.compress(b"a,b\n1,2\n"))
    assert tables.read_table(file).names == ["a", "b"]
    assert tables.read_table(written(tmp_path / "t.tsv", "a,b\tc\n1\t2\n")).names == ["a,b", "c"]
    file = written(tmp_path / "t.tsv", "a\tb\n1,5\t2\n")
    assert tables.read_table(file, decimal=",").rows.tolist() == [[1.5, 2]]
    assert tables.read_table(written(tmp_path / "t.csv", "\ta\n0\t1\n1\t2\n")).names == ["a"]
    for content, message in (
        (gzip.compress(b"a,b\n1,2\n")[:-4], "t.csv.gz is damaged or truncated"),
        (b"a,b\n1,2\n", "t.csv.gz is damaged or truncated"),
        (gzip.compress(b""), "t.csv.gz is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.read_table(written(tmp_path / "t.csv.gz", content))


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_frames(tmp_path: Path, suffix: str) -> None:
    import pandas

    def save(frame: object) -> Path:
        file = tmp_path / f"t{suffix}"
        frame.to_parquet(file) if suffix == ".parquet" else frame.to_feather(file)
        return file

    file = save(
        pandas.DataFrame(
            {"a": [1, 2], "s": ["x", "y"], "c": [True, False], "n": pandas.array([1, None], dtype="Int64")}
        )
    )
    table = tables.read_table(file, columns="c,a")
    assert table.rows.tolist() == [[1, 1], [0, 2]]
    assert str(table) == "2 rows, 2 columns: c, a; left out: s (not chosen), n (not chosen)"
    for columns, message in (
        (None, rf"t{suffix}: column 's' is not numeric: its type is "),
        ("n", rf"t{suffix}: row 2, column 'n': the value is NaN"),
        ("e", rf"t{suffix} has no column 'e'; it has a, s, c, n"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.read_table(file, columns=columns)
    with pytest.raises(ValueError, match=rf"t{suffix} is empty: its shape is \(0, 1\)"):
        tables.read_table(save(pandas.DataFrame({"a": [0.0]}).iloc[:0].reset_index(drop=True)))
    for content in (b"PAR1 and noise", bytes(range(256)), file.read_bytes()[:-9]):
        with pytest.raises(ValueError, match=rf"t{suffix} is not a readable {suffix} file"):
            tables.read_table(written(file, content))


def test_the_index_of_a_frame_is_left_out(tmp_path: Path) -> None:
    import pandas

    file = tmp_path / "t.parquet"
    pandas.DataFrame({"a": [1.0, 2.0]}, index=pandas.Index([5, 7], name="event")).to_parquet(file)
    assert str(tables.read_table(file)) == "2 rows, 1 column: a; left out: event (the index)"


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_float64_is_kept(tmp_path: Path, suffix: str) -> None:
    rows = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e300
    tables.write_table(tmp_path / f"t{suffix}", rows, ["a", "b"])
    assert torch.equal(tables.read_table(tmp_path / f"t{suffix}", dtype=torch.float64).rows, rows)
    where = r"row 1 \(line 2\)" if "sv" in suffix else "row 1"
    with pytest.raises(
        ValueError, match=rf"{where}, column .*: the value is .*e\+300, too large for float32"
    ):
        tables.read_table(tmp_path / f"t{suffix}")


def test_a_suffix_that_is_not_known_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*t.txt: unknown suffix '.txt'"):
        tables.write_table(tmp_path / "t.txt", torch.zeros(1, 1), ["a"])
    assert list(tmp_path.iterdir()) == []


def test_without_pandas_texts_and_arrays_are_read_and_written_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.parquet"
    tables.write_table(file, torch.zeros(1, 1), ["a"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = torch.tensor([[1.0, -2.5], [float("nan"), float("inf")]])
    for name in ("t.npy", "t.npz", "t.csv", "t.tsv.gz"):
        tables.write_table(tmp_path / name, rows[:1], ["a", "b, c"])
        assert torch.equal(tables.read_table(tmp_path / name).rows, rows[:1]), name
    tables.write_table(tmp_path / "t.csv", rows, ["a", "b, c"])
    assert (tmp_path / "t.csv").read_text() == 'a,"b, c"\n1,-2.5\nnan,inf\n'
    with pytest.raises(
        ImportError, match=r"t.parquet needs pandas and pyarrow: pip install 'convexlift\[tables\]'"
    ):
        tables.read_table(file)
    with pytest.raises(ImportError, match=r"new.parquet needs pandas and pyarrow"):
        tables.write_table(tmp_path / "new.parquet", torch.zeros(1, 1), ["a"])


@pytest.mark.parametrize("marks", ["", "quoted", "comma"])
def test_numbers_of_a_text_are_read_exactly(marks: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 2)) * 10.0 ** np.arange(-8, 9, 16)
    cells = [[repr(float(value)) for value in row] for row in rows]
    separator = ";" if marks == "comma" else ","
    if marks == "quoted":
        cells = [[f'"{cell}"' for cell in row] for row in cells]
    text = "\n".join(separator.join(row) for row in cells)
    file = written(tmp_path / "t.csv", text.replace(".", ",") if marks == "comma" else text)
    table = tables.read_table(file, decimal="," if marks == "comma" else ".", dtype=torch.float64)
    assert np.array_equal(table.rows.numpy(), rows)


def test_an_unknown_device() -> None:
    with pytest.raises(ValueError, match="^device 'abacus' is unknown or not available$"):
        check_device("abacus")
