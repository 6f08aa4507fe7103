"""Data that make a result meaningless are refused, doubtful ones warned of: one policy for all tasks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.names import SCREENS, check_name
from convexlift.seeds import generator_on

# Where the frames lie that no user knows.
_INSIDE = (f"{Path(__file__).parent}", f"{Path(torch.__file__).parent}")
# What the columns of a table are to a task: a density of them is sought, a function of them, or of others.
Role = Literal["samples", "inputs", "contexts", "targets"]
# So few rows say nothing; of what lies far out, or is a combination of others, fewer do.
_LEAST, _LEAST_CLEAR = 20, 8
# Rows, evenly spaced, by which quantiles and shares are found.
_SOME = 50_000

# Distances from the median, in deviations as the middle half of a normal law has them. Beyond the first, and
# a thousand times as far out as all else, entries are refused: codes such as 1e30, other units. Heavy tails
# have neighbours: of Cauchy draws the largest is so far from the next once in a thousand samples.
_REFUSED, _GAP = 1e5, 1e3
# Warned of is what lies beyond the first and ten times farther than 99 of 100 rows, and yet farther where
# there are more than 1,000 rows, as tails reach out: Cauchy draws mostly do, one sample in fifty of Student's
# t with three degrees of freedom or of a log-normal law does, and no skewed column of the tables that were
# looked at. Also what is five times as far out as all else; in a target, whose square counts, three times.
_FAR, _FAR_FROM_MOST, _FAR_GROWTH = 100.0, 10.0, 0.4
_ALONE, _ALONE_GAP = 30.0, 5.0
_ALONE_TARGET, _ALONE_GAP_TARGET = 15.0, 3.0
_FEW, _FEW_SHARE = 3, 0.02
# Whole numbers of nines, which stand for missing values, count from here if nothing is near.
_CODE, _CODE_GAP = 5.0, 2.0
# A value that so large a share of rows has makes the spread of the others unknown; so large, warned of.
_PILED, _SPIKE = 0.9, 0.2
# Distinct values, as a share of the rows, below which a column counts as discrete; of whole numbers.
_DISTINCT, _DISTINCT_WHOLE = 0.1, 0.15
# Of a column, the share of its deviation that the others leave unexplained: refused, warned of.
_DEPENDENT, _NEARLY_DEPENDENT = 1e-6, 1e-3
# Shares of rows that repeat earlier ones, and of validation rows that are training rows.
_REPEATED, _SHARED = 0.05, 0.05
# Repeats that rounded values explain are none: so many times those of columns that are independent.
_REPEATED_BY_CHANCE = 5.0
# Rows from which each kind is looked for.
_ENOUGH = {"few-rows": 1, "outliers": _LEAST_CLEAR, "repeats": _LEAST_CLEAR}


class DataWarning(UserWarning):
    """Data are doubtful; the message says which rows and columns, and how the check is switched off.

    >>> import convexlift as cl
    >>> issubclass(cl.DataWarning, UserWarning)
    True
    """


@final
@dataclass(frozen=True)
class Finding:
    """Something about rows of data.

    Attributes:
        kind: the name by which the check is switched off, of ``convexlift.names.SCREENS``, or "constant".
        refused: whether it makes a result meaningless, rather than doubtful.
        text: what was found, with ``{rows}`` where rows are named.
        rows: the first of the rows it is about, numbered from 0 as they were given.
        count: how many rows there are.
    """

    kind: str
    refused: bool
    text: str
    rows: tuple[int, ...] = ()
    count: int = 0

    def message(self, where: Callable[[int], str] | None = None) -> str:
        """The finding in words; ``where`` names a row, by default "row 7" for the eighth.

        >>> Finding("outliers", True, "{rows}: far out", (7,), 1).message(lambda row: f"line {row + 2}")
        'line 9: far out'
        """
        return self.text.format(rows=_name_rows(self, where or (lambda row: f"row {row}")))


@final
class Part:
    """Columns (N, d) of one role, and what they are called."""

    def __init__(self, rows: Tensor, role: Role, names: Sequence[str] | None = None) -> None:
        self.rows = rows
        self.role = role
        self.names = names
        self.some = rows[:: -(-len(rows) // _SOME) or 1].detach().double()

    @property
    def is_density(self) -> bool:
        return self.role == "samples"

    def called(self, column: int) -> str:
        """The column as the user knows it."""
        if self.names is not None:
            return f"column '{self.names[column]}'"
        if self.role == "targets":
            return "the target"
        return f"column {column}" + (" of the contexts" if self.role == "contexts" else "")


def screen(
    parts: Sequence[Part], *, validation: Sequence[Part] | None = None, allow: Iterable[str] = ()
) -> list[Finding]:
    """What is doubtful about training data, refused findings first.

    - ``outliers``: entries so far from the median of their column, in robust deviations, that they decide the
      fit. Refused beyond 1e5 with nothing in between; warned of beyond 100 if most rows are ten times nearer,
      beyond 30 (in targets 15) with nothing else near, and for codes such as -999.
    - ``repeats``: a column of which the others leave under 1e-6 of the deviation unexplained (refused where
      a density is sought: it is infinite) or 1e-3 (warned of).
    - ``spikes``: a value that nine rows of ten have (refused in samples), or one of five (warned of).
    - ``ties``: a column of samples with fewer distinct values than 10 % of the rows, or 15 % if they
      are whole numbers.
    - ``counters``: a column of samples, beside others, of whole numbers that follow one another, in any
      order.
    - ``duplicates``: more than 5 % of the rows repeat earlier ones, and many more than rounded values would.
    - ``few-rows``: fewer rows than columns.
    - ``overlap``: more than 5 % of the validation rows are training rows.

    Constant targets are refused whatever is allowed.

    Args:
        parts: the columns, by role, of one row count.
        validation: the same columns of validation rows.
        allow: kinds not to look for.

    Raises:
        ValueError: an unknown kind to allow.

    Example:
        >>> x = torch.cat([torch.linspace(-1, 1, 100), torch.tensor([1e9])])[:, None]
        >>> screen([Part(x, "samples", ["pt"])])[0].message()
        "row 100, column 'pt' is 1e+09, 1.3e+09 robust deviations from the median: remove or clip it"
    """
    allowed = tuple(allow)
    for kind in allowed:
        check_name("check", kind, SCREENS)
    found = list(_each(parts, _constant))
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "outliers": lambda: _each(parts, _outliers),
        "spikes": lambda: _each(parts, _spikes),
        "repeats": lambda: _each(parts, _repeats),
        "ties": lambda: _each(parts, _ties),
        "counters": lambda: _each(parts, _counters),
        "duplicates": lambda: _duplicates(parts),
        "few-rows": lambda: _few_rows(parts),
        "overlap": lambda: _overlap(parts, validation),
    }
    for kind, look in looks.items():
        if kind not in allowed and len(parts[0].rows) >= _ENOUGH.get(kind, _LEAST):
            found += look()
    return sorted(found, key=lambda finding: not finding.refused)


def tell(findings: Iterable[Finding], where: Callable[[int], str] | None = None) -> None:
    """Raise ValueError for the first finding that is refused; issue a ``DataWarning`` for each of the others.

    The warnings point at whoever called this library.

    >>> tell([Finding("ties", True, "no density")])
    Traceback (most recent call last):
    ...
    ValueError: no density (allow 'ties' to go on all the same)
    """
    for finding in findings:
        if finding.refused:
            switch = f" (allow '{finding.kind}' to go on all the same)" if finding.kind in SCREENS else ""
            raise ValueError(finding.message(where) + switch)
        text = f"{finding.message(where)} (allow '{finding.kind}' to hear no more of it)"
        warnings.warn(text, DataWarning, stacklevel=_frames_inside())


@guarded
def dequantise(x: Tensor, seed: int = 0) -> Tensor:
    """Values (N, d) with uniform noise as wide as the step between the values of each column.

    z_ij = x_ij + s_j (u_ij - 1/2), s_j the smallest difference between distinct values of column j; columns
    whose values hardly repeat are left alone. Then a density of z, averaged over a cell, is a lower bound of
    the probability of x, times the step.

    Raises:
        ValueError: an entry is not finite.

    Source: Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016.

    Example:
        >>> counts = torch.tensor([[0.0], [2.0], [2.0], [4.0], [0.0], [2.0]])
        >>> bool(((dequantise(counts) - counts).abs() <= 1).all())
        True
    """
    if not bool(x.isfinite().all()):
        raise ValueError("samples have NaN or infinities: leave these rows out first (drop_missing)")
    generator = generator_on(seed=seed)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64, device="cpu") - 0.5
    z = x.clone()
    for column in range(x.shape[1]):
        values = x[:, column].double().unique()
        if 1 < len(values) <= len(x) / 2:
            z[:, column] += (values.diff().min() * noise[:, column].to(values)).to(x)
    return z


@guarded
def drop_missing(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows without NaN, of one table or of several that belong together side by side, and which they are.

    Returns the rows (M, d), or (M, columns of all parts), and their numbers (M,).

    Example:
        >>> rows, kept = drop_missing(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))
        >>> rows.tolist(), kept.tolist()
        ([[1.0, 2.0]], [0])
    """
    table = torch.cat([part[:, None] if part.ndim == 1 else part for part in parts], 1)
    kept = (~table.isnan().any(1)).nonzero()[:, 0]
    return table[kept], kept


def _frames_inside() -> int:
    """How many frames from the caller of this on are those of this library, or of torch's decorators."""
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, count = frame.f_back, count + 1
    return count


def _each(parts: Sequence[Part], look: Callable[[Part], Iterator[Finding]]) -> Iterator[Finding]:
    for part in parts:
        yield from look(part)


def _constant(part: Part) -> Iterator[Finding]:
    if part.role == "targets" and len(part.rows) > 1 and bool((part.rows == part.rows[0]).all()):
        value = float(part.rows[0, 0])
        yield Finding("constant", True, f"{part.called(0)} is constant (every value is {value:z.6g})")


def _spread(values: Tensor) -> tuple[float, float]:
    """The median and the robust deviation of values (N,), by their middle half.

    Where one value makes up a large share, by those of the others, for it may be a code; where it makes up
    nearly all, as in sparse columns, or the others have no middle half, their distance from it counts too.
    Zero if the others are too few.
    """
    quartiles = values.new_tensor([0.25, 0.5, 0.75])
    low, middle, high = values.quantile(quartiles).tolist()
    known, counts = values.unique(return_counts=True)
    common, share = float(known[counts.argmax()]), float(counts.max()) / len(values)
    others = values[values != common]
    if len(others) >= _LEAST and (share >= _SPIKE or high == low):
        low, centre, high = others.quantile(quartiles).tolist()
        if high == low or share >= _PILED:
            return centre, max((high - low) / 1.349, abs(centre - common))
        return centre, (high - low) / 1.349
    return middle, (high - low) / 1.349


def _outliers(part: Part) -> Iterator[Finding]:
    alone = (_ALONE_TARGET, _ALONE_GAP_TARGET) if part.role == "targets" else (_ALONE, _ALONE_GAP)
    for column in range(part.some.shape[1]):
        middle, scale = _spread(part.some[:, column])
        if scale == 0:
            continue
        values = part.rows[:, column].detach().double()
        away = ((values - middle) / scale).abs()
        if float(away.max()) <= _CODE:
            continue
        nearest = _gap(values, away, _REFUSED, _GAP)
        refused = nearest < float("inf")
        if not refused:
            most = float(away.kthvalue(max(1, int(0.99 * len(away)))).values)
            reach = max(1.0, len(away) / 1000) ** _FAR_GROWTH
            far = max(_FAR, _FAR_FROM_MOST * reach * most)
            nearest = min(_gap(values, away, *alone), far, _codes(values, away))
        rows = (away >= nearest).nonzero()[:, 0]
        if not len(rows):
            continue
        first = int(rows[0])
        yield Finding(
            "outliers",
            refused,
            f"{{rows}}, {part.called(column)} is {float(values[first]):.6g}, {float(away[first]):.2g} robust "
            f"deviations from the median: remove or clip {'it' if len(rows) == 1 else 'them'}",
            tuple(rows[:5].tolist()),
            len(rows),
        )


def _gap(values: Tensor, away: Tensor, least: float, ratio: float) -> float:
    """The nearest distance beyond ``least`` and ``ratio`` times all nearer ones; infinite if none is.

    What lies beyond are few rows, or one or two values: many rows apart are a part of the law.
    """
    top = away.sort(descending=True)
    alone = (top.values[:-1] >= least) & (top.values[:-1] > ratio * top.values[1:].clamp_min(1.0))
    for count in (alone.nonzero()[:, 0] + 1).tolist()[::-1]:
        if count <= max(_FEW, _FEW_SHARE * len(away)) or len(values[top.indices[:count]].unique()) <= 2:
            return float(top.values[count - 1])
    return float("inf")


def _codes(values: Tensor, away: Tensor) -> float:
    """The distance of a whole number of nines that lies apart; infinite if there is none."""
    far = values[away > _CODE]
    nines = [float(value) for value in far.unique() if set(f"{abs(float(value)):.6g}") == {"9"}]
    apart = [float(away[values == value][0]) for value in nines if abs(value) >= 99]
    return min((d for d in apart if d > _CODE_GAP * float(away[away < d].max())), default=float("inf"))


def _spikes(part: Part) -> Iterator[Finding]:
    if part.role not in ("samples", "targets"):
        return
    piled, spiked = list[str](), list[str]()
    for column in range(part.some.shape[1]):
        values, counts = part.some[:, column].unique(return_counts=True)
        share, value = _largest_share(part, column), float(values[counts.argmax()])
        least = _SPIKE if part.is_density and not _is_discrete(part, column) else _PILED
        if len(values) == 1 or share < least:
            continue
        told = piled if part.is_density and share >= _PILED else spiked
        percent = f"{100 * share:.2g}" if share < 0.995 else f"{min(100 * share, 99.9):.3g}"
        told.append(f"{part.called(column)} is {value:z.6g} in {percent} % of the rows")
    advice = ", which no density is: remove it or dequantise it" if part.is_density else ""
    for told, refused in ((piled, True), (spiked, False)):
        if told:
            yield Finding("spikes", refused, _several(told) + advice)


def _ties(part: Part) -> Iterator[Finding]:
    if not part.is_density:
        return
    columns = [
        k for k in range(part.some.shape[1]) if _is_discrete(part, k) and _largest_share(part, k) < _PILED
    ]
    counts = [f"{part.called(k)} has {len(part.some[:, k].unique())} distinct values" for k in columns]
    if counts:
        text = f"{_several(counts)} in {len(part.some):,} rows: an infinite density is near; dequantise them"
        yield Finding("ties", False, text)


def _counters(part: Part) -> Iterator[Finding]:
    if not part.is_density or part.rows.shape[1] < 2:
        return
    counters = [part.called(k) for k in range(part.rows.shape[1]) if _is_counter(part.rows[:, k])]
    if counters:
        text = f"{_several(counters)} numbers the rows one by one, as identifiers do: leave it out"
        yield Finding("counters", False, text)


def _is_counter(values: Tensor) -> bool:
    """Whether values are whole numbers that follow one another without repeats or gaps, in any order."""
    ordered = values.detach().double().sort().values
    return bool((ordered == ordered.round()).all() and (ordered.diff() == 1).all())


def _is_discrete(part: Part, column: int) -> bool:
    values = part.some[:, column].unique()
    whole = bool((values == values.round()).all())
    return 1 < len(values) < (_DISTINCT_WHOLE if whole else _DISTINCT) * len(part.some)


def _largest_share(part: Part, column: int) -> float:
    """The share of the rows that have the most frequent value."""
    return float(part.some[:, column].unique(return_counts=True)[1].max()) / len(part.some)


def _several(told: list[str]) -> str:
    """The first things of a list that are told, and how many more there are."""
    more = f" (and so for {len(told) - 1} more column{'s' * (len(told) > 2)})" if len(told) > 1 else ""
    return told[0] + more


def _repeats(part: Part) -> Iterator[Finding]:
    x = part.some
    x = x[:, (x != x[0]).any(0)]
    kept = (part.some != part.some[0]).any(0).nonzero()[:, 0].tolist()
    if x.shape[1] < 2 or len(x) <= x.shape[1]:
        return
    largest = x.abs().amax(0)
    x = x / largest
    x = x - x.mean(0)
    x = x / x.square().mean(0).sqrt()
    left = _unexplained(x)
    for place in (left < _NEARLY_DEPENDENT).nonzero()[:, 0].tolist():
        others = [k for k in range(x.shape[1]) if k != place]
        weight = torch.linalg.lstsq(x[:, others], x[:, place][:, None], driver="gelsd").solution[:, 0]
        part_of = [kept[others[k]] for k in weight.abs().argsort(descending=True)[:3].tolist()]
        alone = float(weight.abs().max()) > 0.999 and float(weight.abs().sort().values[:-1].sum()) < 1e-3
        refused = part.is_density and float(left[place]) < _DEPENDENT
        nearly = "" if float(left[place]) < _DEPENDENT else "nearly "
        how = f"{nearly}repeats" if alone else f"is {nearly}a linear combination of"
        named = " and ".join(part.called(k) for k in sorted(part_of[:1] if alone else part_of))
        advice = ": the density is infinite; remove one" if part.is_density else ": remove one"
        yield Finding("repeats", refused, f"{part.called(kept[place])} {how} {named}{advice}")
        return  # the others of the same combination say the same


def _unexplained(x: Tensor) -> Tensor:
    """The share of each standardised column's deviation that the others do not explain, (d,)."""
    left = torch.linalg.svd(x, full_matrices=False)
    inverse = (left.Vh.T / left.S.clamp_min(1e-300)).square().sum(1)
    return (inverse * len(x)).rsqrt()


def _duplicates(parts: Sequence[Part]) -> Iterator[Finding]:
    codes = _row_codes(_all_columns(parts))
    order = codes.argsort(stable=True)
    again = torch.zeros_like(codes, dtype=torch.bool)
    again[order[1:]] = codes[order[1:]] == codes[order[:-1]]
    count = int(again.sum())
    if count > max(_REPEATED * len(codes), _REPEATED_BY_CHANCE * _chance_repeats(parts)):
        rows = again.nonzero()[:5, 0].tolist()
        text = f"{100 * count / len(codes):.0f} % of the rows repeat earlier ones ({{rows}})"
        yield Finding("duplicates", False, text, tuple(rows), count)


def _chance_repeats(parts: Sequence[Part]) -> float:
    """How many pairs of rows would be equal if columns were independent, and as finely told as they seem.

    Two values of a column with density p, told to the step s, agree with probability s times the integral of
    p squared, which is about 0.4 s over the width of the middle half; and no more often than values here do.
    """
    pairs = len(parts[0].rows) ** 2 / 2
    quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64, device="cpu")
    for values in (column for part in parts for column in part.some.unbind(1)):
        known, counts = values.unique(return_counts=True)
        agree = float(counts.double().square().sum()) / len(values) ** 2
        low, high = values.quantile(quartiles.to(values)).tolist()
        if high > low and len(known) > 1:
            step = float(known.diff().quantile(0.05))
            agree = min(agree, 0.4 * step / (high - low))
        pairs *= agree
    return pairs


def _few_rows(parts: Sequence[Part]) -> Iterator[Finding]:
    rows, columns = len(parts[0].rows), sum(part.rows.shape[1] for part in parts if part.role != "targets")
    if 1 < rows < columns:
        yield Finding("few-rows", False, f"{rows} rows are few for {columns} columns")


def _overlap(parts: Sequence[Part], validation: Sequence[Part] | None) -> Iterator[Finding]:
    if validation is None:
        return
    shared = shared_rows(_all_columns(validation), _all_columns(parts))
    count = int(shared.sum())
    if count > _SHARED * len(shared):
        rows = shared.nonzero()[:5, 0].tolist()
        text = (
            f"{100 * count / len(shared):.0f} % of the validation rows are training rows ({{rows}} of the "
            "validation data): they cannot tell when to stop"
        )
        yield Finding("overlap", False, text, tuple(rows), count)


def shared_rows(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows (N, d) are among others (M, d), (N,) bool; equal in float64.

    >>> shared_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [3.0]]))
    tensor([False,  True])
    """
    return torch.isin(_row_codes(rows), _row_codes(others))


def _all_columns(parts: Sequence[Part]) -> Tensor:
    return torch.cat([part.rows.detach().double() for part in parts], 1)


def _row_codes(rows: Tensor) -> Tensor:
    """A whole number for each row, (N,), the same for equal rows, of 64 bits."""
    rows = rows.double().contiguous() + 0.0  # no negative zero
    code = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for bits in rows.view(torch.int64).unbind(1):
        code = (code ^ (bits ^ (bits >> 29))) * 6364136223846793005 + 1442695040888963407
    return code


def _name_rows(finding: Finding, where: Callable[[int], str]) -> str:
    if finding.count <= 1:
        return ", ".join(where(row) for row in finding.rows)
    shown = ", ".join(where(row) for row in finding.rows)
    return f"{finding.count} rows ({shown}{', ...' if finding.count > len(finding.rows) else ''})"
