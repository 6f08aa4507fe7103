"""Input that is odd and right: what comes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convexlift as cl
from convexlift.data import Batches, hold_out
from convexlift.files import write_whole
from convexlift.sklearn import ConvexPotentialFlow, LogConcaveDensity
from convexlift.table_files import read_table
from convexlift.tasks.standardise import Standardiser

from .case import Case, answered
from .given import FLOAT64, TINY, net, rows, text

X = rows().double().numpy()


def read(content: str) -> list[Any]:
    found = read_table(text(content))
    return [found.names, found.rows.tolist()]


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


def undisturbed(do: Any) -> bool:
    """Whether torch's generator is where it was."""
    before = torch.get_rng_state()
    do()
    return torch.equal(before, torch.get_rng_state())


def scored(x: Any, **others: Any) -> float:
    return float(ConvexPotentialFlow(**TINY, **others).fit(x).score(X))


def weighted(n: int) -> float:
    """The score with n rows of weight zero behind the others, far off."""
    x = np.concatenate([X, np.full((n, 2), 50.0)])
    return float(LogConcaveDensity(**TINY).fit(x, sample_weight=np.repeat([1.0, 0.0], [60, n])).score(X))


CASES: list[Case] = [
    answered(
        "cells separated by semicolons",
        lambda: read("a;b\n1;2\n"),
        [["a", "b"], [[1.0, 2.0]]],
        "they are two columns, a and b",
        "convexlift.table_files",
        ('candidates = "\\t" if suffix.startswith(".tsv") else ",;\\t"', 'candidates = ","'),
    ),
    answered(
        "a table written by a spreadsheet, with a byte order mark",
        lambda: read("\ufeffa,b\n1,2\n"),
        [["a", "b"], [[1.0, 2.0]]],
        "the mark is no part of the first name",
        "convexlift.table_files",
        ("utf-8-sig", "utf-8"),
    ),
    answered(
        "a line of commas at the end of a table",
        lambda: read("a,b\n1,2\n,\n"),
        [["a", "b"], [[1.0, 2.0]]],
        "it is no row",
        "convexlift.table_files",
        ('re.sub(blank, "", text)', "text"),
    ),
    answered(
        "a data frame's row numbers in a first column without a name",
        lambda: read(",a,b\n0,1,2\n1,3,4\n"),
        [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]],
        "they are left out, which is said",
        "convexlift.table_files._number_rows",
        lambda column: False,
    ),
    answered(
        "row labels in a first column without a name",
        lambda: read(",a,b\nx,1,2\ny,3,4\n"),
        [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]],
        "they are left out, which is said",
        "convexlift.table_files",
        ("if unnamed and not self.is_number(second[0]):", "if False:"),
    ),
    answered(
        "names 0,1,2 of a data frame above other than whole numbers",
        lambda: read("0,1,2\n0.5,1.5,2.5\n"),
        [["0", "1", "2"], [[0.5, 1.5, 2.5]]],
        "the first line holds names",
        "convexlift.table_files",
        ("if first != counted or len(first) < 2:", "if True:"),
    ),
    answered(
        "a table without a header",
        lambda: read("0.5\n1.5\n"),
        [["x1"], [[0.5], [1.5]]],
        "the columns are called x1, x2, ...",
        "convexlift.table_files._Text.is_header",
        lambda self, first, second: True,
    ),
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
    answered(
        "fewer rows than a batch",
        lambda: len(Batches(rows(5), 256, 0).at(3).data),
        5,
        "every batch holds all of them",
        "convexlift.data",
        ("epoch, position = divmod(step, max(1, n // self.batch_size))", "epoch, position = 0, step"),
    ),
    answered(
        "one row in fifty to hold out of ten",
        lambda: len(hold_out(rows(10), 0.02)[1]),
        1,
        "one row is held out",
        "convexlift.data",
        ("held = max(1, round(share * n))", "held = round(share * n)"),
    ),
    answered(
        "fit an estimator, with torch seeded before",
        lambda: undisturbed(lambda: scored(X)),
        True,
        "torch's generator stays where it was",
        "convexlift.seeds",
        ("with torch.random.fork_rng(devices=[], enabled=seed is not None):", "if True:"),
    ),
    answered(
        "load a model, with torch seeded before",
        lambda: (cl.save(net().freeze(), "a"), undisturbed(lambda: cl.load("a")))[1],
        True,
        "torch's generator stays where it was",
        "convexlift.saving",
        ("with torch.random.fork_rng(devices=[]):", "if True:"),
    ),
    answered(
        "a learning rate from numpy",
        lambda: scored(X, learning_rate=np.float32(0.5)) - scored(X, learning_rate=0.5),
        0.0,
        "it trains as with Python's own number",
        "convexlift.sklearn._plain",
        lambda value: value,
    ),
    answered(
        "rows of weight zero, of a density",
        lambda: weighted(3) - weighted(0),
        0.0,
        "the score is as without them",
        "convexlift.sklearn",
        ("kept = weights > 0", "kept = weights >= 0"),
    ),
    answered(
        "numbers of 1e300 in float64 to standardise",
        lambda: Standardiser(1).double().fit(torch.tensor([[1e300], [3e300]], dtype=FLOAT64)).scale.tolist(),
        [1e300],
        "their deviation is right, though its square would overflow",
        "convexlift.tasks.standardise",
        ("largest = x.abs().amax(0)", "largest = torch.ones_like(x[0])"),
    ),
]
