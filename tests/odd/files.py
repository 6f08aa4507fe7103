"""Tables in files: what is read, and what is refused with row and column."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convexlift.files import write_whole
from convexlift.table_files import read_table, write_table

from .case import Case, answered, refused
from .given import array, arrays, rows, table, text


def read(content: str | bytes, **how: Any) -> list[Any]:
    found = read_table(text(content), **how)
    return [found.names, found.rows.tolist()]


def noted(content: str) -> list[str]:
    """What is said where a model of columns a and b reads a table."""
    return read_table(text(content), expected=["a", "b"]).notes


def mode_after(before: int) -> int:
    write_whole("a", b"old")
    os.chmod("a", before)
    write_whole("a", b"new")
    return Path("a").stat().st_mode & 0o777


def link_after() -> bool:
    write_whole("a", b"old")
    os.symlink("a", "b")
    write_whole("b", b"new")
    return Path("b").is_symlink()


AB = [["a", "b"], [[1.0, 2.0]]]
TEXT = "convexlift.table_text"
COLUMNS = "convexlift.table_columns"

CASES: list[Case] = [
    refused(
        "a file that is not there",
        lambda: read_table("rows.csv"),
        FileNotFoundError,
        "rows.csv does not exist",
    ),
    refused(
        "a folder for a file",
        lambda: (os.mkdir("rows.csv"), read_table("rows.csv")),
        ValueError,
        "rows.csv is a folder; expected a .csv, .npy or .npz file (also ...)",
    ),
    refused("an empty file", lambda: read_table(text("", "rows.npy")), ValueError, "rows.npy is empty"),
    refused("a file of blank lines", lambda: read_table(text("\n \n\n")), ValueError, "rows.csv is empty"),
    refused(
        "a header without rows",
        lambda: read_table(text("a,b\n")),
        ValueError,
        "rows.csv has a header but no rows",
    ),
    refused(
        "`--key` with a .csv",
        lambda: read_table(table(), key="train"),
        ValueError,
        "rows.csv has no named arrays: --key is for .npz files",
    ),
    refused(
        "a comma as decimal and as thousands mark",
        lambda: read_table(table(), decimal=",", thousands=","),
        ValueError,
        "numbers cannot have decimal mark ',' and thousands mark ','",
    ),
    refused(
        "a picture named .csv",
        lambda: read_table(text(b"\x89PNG\0\1\2")),
        ValueError,
        "rows.csv is not a CSV text file",
    ),
    refused(
        "a .csv.gz that is cut short",
        lambda: read_table(text(gzip.compress(b"a,b\n1,2\n" * 99)[:20], "rows.csv.gz")),
        ValueError,
        "rows.csv.gz is damaged or truncated",
    ),
    refused(
        "a quote that is never closed",
        lambda: read_table(text('a,b\n1,2\n"3,4\n')),
        ValueError,
        "rows.csv is not a readable CSV file: unexpected end of data",
    ),
    refused(
        "a row with a cell too many",
        lambda: read_table(text("a,b\n1,2\n3,4,5\n")),
        ValueError,
        "rows.csv: row 2 (line 3) has 3 cells; expected 2 (if a comma is part of a number, see "
        "--decimal and --thousands)",
    ),
    refused(
        "a word in a column of numbers",
        lambda: read("a,b\n1,2\n3,four\n", missing=True),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': 'four' is not a number",
    ),
    refused(
        "an empty cell",
        lambda: read_table(text("a,b\n1,2\n3,\n")),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': the cell is empty; --drop-missing leaves such rows out",
        kin="a cell that is no number",
    ),
    refused(
        "digits grouped by an underscore",
        lambda: read_table(text("t,x\n2023_01,1\n2023_02,2\n")),
        ValueError,
        "rows.csv: row 1 (line 2), column 't': '2023_01' is not a number (see --decimal and --thousands)",
        kin="a cell that is no number",
    ),
    refused(
        "a first line 0,1 above whole numbers",
        lambda: read_table(text("0,1\n5,6\n7,8\n")),
        ValueError,
        "rows.csv: the first line, 0,1, may hold names or numbers: say which by --header or --no-header",
    ),
    refused(
        "one column with decimal commas",
        lambda: read_table(text("0,1257\n0,3512\n")),
        ValueError,
        "rows.csv: a comma may separate two columns or be part of a number: say which by --decimal "
        "'.' (two columns), --decimal ',' or --thousands ','",
    ),
    refused(
        "NaN in a cell",
        lambda: read_table(text("a,b\n1,2\n3,nan\n")),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': the value is NaN; --drop-missing leaves such rows out",
    ),
    refused(
        "a number too large for float32",
        lambda: read_table(text("a,b\n1,2\n3,1e39\n")),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': the value is 1e+39, too large for float32",
        kin="a number that is not finite in float32",
    ),
    refused(
        "`--columns c` of a table of a and b",
        lambda: read_table(table(), columns="c"),
        ValueError,
        "rows.csv has no column 'c'; it has a, b",
    ),
    refused(
        "`--columns 3` of a table of two",
        lambda: read_table(table(), columns="3"),
        ValueError,
        "rows.csv has no column 3: it has 2 columns",
    ),
    refused(
        "`--columns a,a`",
        lambda: read_table(table(), columns="a,a"),
        ValueError,
        "--columns a,a: every column may be named once",
    ),
    refused(
        "two columns of one name",
        lambda: read_table(text("a,a\n1,2\n3,4\n"), columns="a"),
        ValueError,
        "rows.csv has several columns 'a' (1, 2): choose by number with --columns",
    ),
    refused(
        "a .npy of one dimension",
        lambda: read_table(array(np.arange(3.0))),
        ValueError,
        "rows.npy must have two dimensions (rows, columns); its shape is (3,); reshape it to (N, 1) "
        "if it is one column",
    ),
    refused(
        "a .npy of words",
        lambda: read_table(array(np.array([["a", "b"]]))),
        ValueError,
        "rows.npy is not numeric: its type is <U1",
    ),
    refused(
        "a .npy of Python objects",
        lambda: read_table(array(np.array([[{}]]))),
        ValueError,
        "rows.npy is not a readable .npy file of numbers",
        kin="another kind of file",
    ),
    refused(
        "a .npy without rows",
        lambda: read_table(array(np.zeros((0, 2)))),
        ValueError,
        "rows.npy is empty: its shape is (0, 2)",
    ),
    refused(
        "an .npz under the name .npy",
        lambda: (arrays("rows.npz", a=rows()), os.rename("rows.npz", "rows.npy"), read_table("rows.npy")),
        ValueError,
        "rows.npy is not a readable .npy file of numbers",
        kin="not that kind of file",
    ),
    refused("an .npz without arrays", lambda: read_table(arrays()), ValueError, "rows.npz holds no arrays"),
    refused(
        "an .npz of two arrays without `--key`",
        lambda: read_table(arrays(a=rows(), b=rows())),
        ValueError,
        "rows.npz holds the arrays 'a', 'b': choose one with --key",
    ),
    refused(
        "`--key` of an array that is not there",
        lambda: read_table(arrays(a=rows()), key="b"),
        ValueError,
        "rows.npz has no array 'b'; it holds 'a'",
    ),
    refused(
        "a .parquet with a column of words",
        lambda: (
            pd.DataFrame({"a": [1.0], "s": ["x"]}).to_parquet("rows.parquet"),
            read_table("rows.parquet"),
        ),
        ValueError,
        "rows.parquet: column 's' is not numeric: its type is str",
    ),
    refused(
        "a .parquet without rows",
        lambda: (pd.DataFrame({"a": []}).to_parquet("rows.parquet"), read_table("rows.parquet")),
        ValueError,
        "rows.parquet is empty: its shape is (0, 1)",
    ),
    refused(
        "a .feather that is cut short",
        lambda: read_table(text(b"ARROW1", "rows.feather")),
        ValueError,
        "rows.feather is not a readable .feather file",
    ),
    refused(
        "a table to write as .txt",
        lambda: write_table("rows.txt", rows(), ["a", "b"]),
        ValueError,
        "cannot write rows.txt: unknown suffix '.txt'",
    ),
    refused(
        "a table to write in a folder that is not there",
        lambda: write_table("none/rows.csv", rows(), ["a", "b"]),
        FileNotFoundError,
        "cannot write none/rows.csv: No such file or directory",
    ),
    answered(
        "cells separated by semicolons",
        lambda: read("a;b\n1;2\n"),
        AB,
        "they are two columns, a and b",
        TEXT,
        (
            'candidates = ["\\t"] if suffix.startswith(".tsv") else [c for c in SEPARATORS if c != " "]',
            'candidates = [","]',
        ),
    ),
    answered(
        "a table written by a spreadsheet, with a byte order mark",
        lambda: read("\ufeffa,b\n1,2\n"),
        AB,
        "the mark is no part of the first name",
        TEXT,
        ('"utf-8-sig"', '"utf-8"'),
    ),
    answered(
        "a table in UTF-16, as spreadsheets write it",
        lambda: read("a,b\n1,2\n".encode("utf-16")),
        AB,
        "it is read",
        TEXT,
        ('"utf-16" if marked else', '"utf-8" if marked else'),
    ),
    answered(
        "a line of commas at the end of a table",
        lambda: read("a,b\n1,2\n,\n"),
        AB,
        "it is no row",
        TEXT,
        (
            'text, self._empty = re.subn(rf"(?m)^[ \\t{re.escape(self.separator)}]+$", "", text)',
            "self._empty = 0",
        ),
    ),
    answered(
        "comments above a table, the last one its names",
        lambda: read("# made by hand\n# a,b\n1,2\n"),
        AB,
        "the names are found",
        TEXT + ".Text._names_follow",
        lambda self, comment, text: False,
    ),
    answered(
        "a line sep=; above a table",
        lambda: read("sep=;\na;b\n1,5;2\n", decimal=","),
        [["a", "b"], [[1.5, 2.0]]],
        "it is no line of the table",
        TEXT,
        ("text = text[said.end() - 1 :] if said else text", "text = text"),
    ),
    answered(
        "names 0,1,2 of a data frame above other than whole numbers",
        lambda: read("0,1,2\n0.5,1.5,2.5\n"),
        [["0", "1", "2"], [[0.5, 1.5, 2.5]]],
        "the first line holds names",
        TEXT,
        ("if first == counted and len(first) > 2 and not all(map(str.isdigit, second)):", "if False:"),
    ),
    answered(
        "a table without a header",
        lambda: read("0.5\n1.5\n"),
        [["x1"], [[0.5], [1.5]]],
        "the columns are called x1, x2, ...",
        TEXT + ".Text._is_header",
        lambda self, first, second, expected: True,
    ),
    answered(
        "numbers with a minus sign of typesetters",
        lambda: read("a,b\n\N{MINUS SIGN}1,2\n"),
        [["a", "b"], [[-1.0, 2.0]]],
        "it is a minus",
        TEXT,
        ('.replace("\\N{MINUS SIGN}", "-")', ""),
    ),
    refused(
        "a spreadsheet",
        lambda: read_table(text("", "rows.xlsx")),
        ValueError,
        "rows.xlsx is not a .csv, .npy or .npz file (also ...): save the sheet as .csv",
    ),
    refused(
        "a workbook named .csv",
        lambda: read(b"PK\3\4\0"),
        ValueError,
        "rows.csv is not a CSV text file but an archive or a workbook: save the table as .csv",
    ),
    refused(
        "a text in another encoding than UTF-8",
        lambda: read("a,\xe9\n1,2\n".encode("latin-1")),
        ValueError,
        "rows.csv is not a CSV text file in UTF-8 (at byte 2): save it in UTF-8",
        kin="text, but of another encoding",
    ),
    refused(
        "`--separator x`",
        lambda: read("a,b\n1,2\n", separator="x"),
        ValueError,
        "cells cannot be separated by 'x': it is one of , ; | tab space",
    ),
    refused(
        "columns of digits grouped by blanks",
        lambda: read("10 000 000\n20 000 000\n"),
        ValueError,
        "rows.csv: a blank may separate columns or be part of a number: say which by --separator "
        "space or --thousands ' '",
    ),
    refused(
        "a first line of numbers with decimal commas",
        lambda: read("1,5;2,5\n3;4\n"),
        ValueError,
        "rows.csv: the first line, 1,5;2,5, may hold names or numbers: say which by --header or "
        "--no-header, and see --decimal and --thousands",
    ),
    answered(
        "a table for a model, its columns in another order",
        lambda: read("b,a\n2,1\n", expected=["a", "b"]),
        AB,
        "they are put in the model's order, which is said",
        "convexlift.table_columns",
        (
            "kept = [place for name in wanted for place in among if cells.name(place) == name]",
            "kept = [place for place in among if cells.name(place) in wanted]",
        ),
    ),
    answered(
        "a data frame's row numbers in a first column without a name",
        lambda: read(",a,b\n0,1,2\n1,3,4\n"),
        [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]],
        "they are left out, which is said",
        "convexlift.table_files",
        ('found[place] = "row numbers"', "pass"),
    ),
    answered(
        "row labels in a first column without a name",
        lambda: read(",a,b\nx,1,2\ny,3,4\n"),
        [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]],
        "they are left out, which is said",
        "convexlift.table_files",
        (
            'left_out = {k: "row labels" for k in index_columns(cells, places) if cells.is_text(k)}',
            "pass",
        ),
    ),
    answered(
        "a first column called index that counts rows",
        lambda: read("index,a,b\n0,1,2\n1,3,4\n"),
        [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]],
        "it is left out, which is said",
        COLUMNS,
        ("or _COUNTER.fullmatch(cells.names[place])", ""),
    ),
    answered(
        "a comma at the end of every line",
        lambda: read("a,b,\n1,2,\n"),
        AB,
        "it makes no column",
        "convexlift.table_files",
        ('found[place] = "empty"', "pass"),
    ),
    answered(
        "a first line of NA",
        lambda: read("NA,NA\n1,2\n", missing=True)[0],
        ["x1", "x2"],
        "it is a row of missing values and no names",
        TEXT,
        ("return not {cell.lower() for cell in first} <= MISSING", "return True"),
    ),
    answered(
        "digits grouped by points before a decimal comma",
        lambda: read("a;b\n1.234,5;2\n", decimal=",", thousands="."),
        [["a", "b"], [[1234.5, 2.0]]],
        "they are read as asked for by --decimal and --thousands",
        TEXT,
        ('cell.replace(self.thousands, "") if self.thousands else cell', "cell"),
    ),
    refused(
        "decimal commas in a table separated by semicolons, without `--decimal`",
        lambda: read("a;b\n1,5;2\n"),
        ValueError,
        "rows.csv: row 1 (line 2), column 'a': '1,5' is not a number (a decimal comma? say --decimal ,)",
        kin="a cell that is no number",
    ),
    answered(
        "a table for a model, with a column that the model does not read",
        lambda: noted("a,b,c\n1,2,3\n"),
        ["ignored, as the model does not read them: c"],
        "it is ignored, which is said",
        COLUMNS,
        ('notes.append(f"ignored, as the model does not read them: {listed(ignored)}")', "pass"),
    ),
    answered(
        "a table without names, for a model with names",
        lambda: noted("1,2.5\n3,4.5\n"),
        ["the file has no column names: x1, x2 taken by position as a, b"],
        "its columns are taken in order if their number fits, which is said",
        COLUMNS,
        ('return kept, [f"the file has no column names: {taken} as {listed(names)}"]', "return kept, []"),
    ),
]


WRITING: list[Case] = [
    answered(
        "a file that is replaced was readable by its owner alone",
        lambda: mode_after(0o600),
        0o600,
        "the new one is as private",
        "convexlift.files",
        ("os.chmod(temporary, file.stat().st_mode & 0o7777)", "pass"),
    ),
    answered(
        "a file to write is a symbolic link",
        link_after,
        True,
        "it stays one: the file that it names is written",
        "convexlift.files",
        ("Path(os.path.realpath(shown))", "shown"),
    ),
]
