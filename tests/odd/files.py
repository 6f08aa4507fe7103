"""Tables in files: what is read, and what is refused with row and column."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pandas as pd

from convexlift.table_files import read_table, write_table

from .case import Case, refused
from .given import array, arrays, rows, table, text

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
    refused(
        "a spreadsheet",
        lambda: read_table(text("", "rows.xlsx")),
        ValueError,
        "rows.xlsx is not a .csv, .npy or .npz file (also ...)",
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
        "rows.csv: row 2 (line 3) has 3 cells; expected 2",
    ),
    refused(
        "a word in a column of numbers",
        lambda: read_table(text("a,b\n1,2\n3,four\n")),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': 'four' is not a number",
    ),
    refused(
        "an empty cell",
        lambda: read_table(text("a,b\n1,2\n3,\n")),
        ValueError,
        "rows.csv: row 2 (line 3), column 'b': the cell is empty",
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
        "rows.csv: row 2, column 'b': the value is NaN",
    ),
    refused(
        "a number too large for float32",
        lambda: read_table(text("a,b\n1,2\n3,1e39\n")),
        ValueError,
        "rows.csv: row 2, column 'b': the value is 1e+39, too large for float32",
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
]
