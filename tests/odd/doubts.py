"""Data that make a result meaningless, or doubtful."""

from __future__ import annotations

from typing import Any

import torch

import convexlift as cl

from .case import Case, answered, refused, warned
from .given import fit, flow, regression, rows, with_column, with_entry

LOOK = "convexlift.screening."


def sees_nothing(*_: Any) -> Any:
    return iter(())


CASES: list[Case] = [
    refused(
        "one entry of 1e9 among standard normal ones",
        lambda: fit(flow(), with_entry(1e9)),
        ValueError,
        "row 3, column 1 is 1e+09, 1e+09 robust deviations from the median: remove or clip it "
        "(allow 'outliers' to go on all the same)",
        owed_to=LOOK + "_outliers",
        instead=sees_nothing,
    ),
    warned(
        "one entry of 60 among standard normal ones",
        lambda: fit(flow(), with_entry(60.0)),
        cl.DataWarning,
        "row 3, column 1 is 60, 60 robust deviations from the median: remove or clip it (allow "
        "'outliers' to hear no more of it)",
        owed_to=LOOK + "_outliers",
        instead=sees_nothing,
        kin="doubtful, not meaningless",
    ),
    warned(
        "-999 for a missing value",
        lambda: fit(flow(), with_entry(-999.0)),
        cl.DataWarning,
        "row 3, column 1 is -999, 9.9e+02 robust deviations from the median: remove or clip it "
        "(allow 'outliers' to hear no more of it)",
        owed_to=LOOK + "_outliers",
        instead=sees_nothing,
        kin="a code",
    ),
    refused(
        "a column that is there twice",
        lambda: fit(flow(), with_column(rows()[:, 0])),
        ValueError,
        "column 0 repeats column 1: the density is infinite; remove one (allow 'repeats' to go "
        "on all the same)",
        owed_to=LOOK + "_repeats",
        instead=sees_nothing,
    ),
    refused(
        "a column that is 0 in nineteen rows of twenty",
        lambda: fit(flow(), with_column(torch.where(torch.arange(60) % 20 == 0, rows()[:, 0], 0))),
        ValueError,
        "column 1 is 0 in 95 % of the rows, which no density is: remove it or dequantise it "
        "(allow 'spikes' to go on all the same)",
        owed_to=LOOK + "_spikes",
        instead=sees_nothing,
    ),
    warned(
        "a column that is 0 in every other row",
        lambda: fit(flow(), with_column(torch.where(torch.arange(60) % 2 == 0, rows()[:, 0], 0))),
        cl.DataWarning,
        "column 1 is 0 in 50 % of the rows, which no density is: remove it or dequantise it "
        "(allow 'spikes' to hear no more of it)",
        owed_to=LOOK + "_spikes",
        instead=sees_nothing,
        kin="doubtful, not meaningless",
    ),
    warned(
        "a column of the whole numbers 0 to 4",
        lambda: fit(flow(), with_column(torch.arange(60) % 5 * 1.0)),
        cl.DataWarning,
        "column 1 has 5 distinct values in 60 rows: an infinite density is near; dequantise them "
        "(allow 'ties' to hear no more of it)",
        owed_to=LOOK + "_ties",
        instead=sees_nothing,
    ),
    warned(
        "rows that are there twice",
        lambda: fit(flow(), torch.cat([rows(30), rows(30)])),
        cl.DataWarning,
        "50 % of the rows repeat earlier ones (30 rows (row 30, row 31, row 32, row 33, row 34, "
        "...)) (allow 'duplicates' to hear no more of it)",
        owed_to=LOOK + "_duplicates",
        instead=sees_nothing,
    ),
    warned(
        "five rows of six columns",
        lambda: fit(flow(6), rows(5, 6)),
        cl.DataWarning,
        "5 rows are few for 6 columns (allow 'few-rows' to hear no more of it)",
        owed_to=LOOK + "_few_rows",
        instead=sees_nothing,
    ),
    warned(
        "training rows that are validation rows too",
        lambda: fit(flow(), rows(), validation=rows(30)),
        cl.DataWarning,
        "87 % of the validation rows are training rows (26 rows (row 0, row 1, row 2, row 3, row "
        "4, ...) of the validation data): they cannot tell when to stop (allow 'overlap' to hear "
        "no more of it)",
        owed_to=LOOK + "_overlap",
        instead=sees_nothing,
    ),
    refused(
        "constant targets",
        lambda: regression().preflight((rows(), torch.ones(60))),
        ValueError,
        "the target is constant (every value is 1)",
        owed_to=LOOK + "_constant",
        instead=sees_nothing,
    ),
    refused(
        "a check to allow that there is none of",
        lambda: fit(flow(), allow=["outlier"]),
        ValueError,
        "unknown check 'outlier'; known: outliers, repeats, spikes, ties, counters, duplicates, few-rows, "
        "overlap; did you mean 'outliers'?",
        kin="another choice",
    ),
    refused(
        "`dequantise` of a NaN",
        lambda: cl.dequantise(with_entry(torch.nan)),
        ValueError,
        "samples have NaN or infinities: leave these rows out first (drop_missing)",
    ),
    answered(
        'one entry of 1e9, with `allow=["outliers"]`',
        lambda: fit(flow(), with_entry(1e9), allow=["outliers"]).steps[-1],
        2,
        "it trains all the same",
        "convexlift.screening",
        ("if kind not in allowed and len(parts[0].rows)", "if len(parts[0].rows)"),
    ),
]
