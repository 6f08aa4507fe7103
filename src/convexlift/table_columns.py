"""Which columns of a file are read: those asked for, those that a model knows, and none that counts rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from convexlift.counting import counted
from convexlift.names import close_names

# What a model knows of its columns: names, places (from 1) in a file without names, or just their number.
Expected = Sequence[str] | Sequence[int] | int

# What a data frame calls its index where it has no name; and what users and other programs call one.
_NO_NAME = re.compile(r"(Unnamed: \d+(\.\d+)*)?|__index_level_\d+__")
_COUNTER = re.compile(r"index|level_\d+|row_?names", re.IGNORECASE)


class Cells:
    """The columns of a file, before it is known which are wanted.

    Attributes:
        file: what messages call the file.
        names: of all columns; "" where one has none.
        named: whether the file has names at all.
        apart: what the file holds beside its columns, each with the reason why it is not read.
    """

    file: object
    names: list[str]
    named: bool
    apart: dict[str, str]

    def is_text(self, column: int) -> bool:
        """Whether a column holds labels and no numbers, as far as its first cell tells."""
        return False

    def line(self, row: int) -> int | None:
        """The line of the file that row 0, 1, ... ends in, where it has lines."""
        return None

    def cell(self, row: int, column: int) -> str:
        """What a cell without a number holds."""
        return "nan"

    def name(self, column: int) -> str:
        """The name of a column, "x1", ... where it has none."""
        return self.names[column] if self.named and self.names[column] else f"x{column + 1}"

    def called(self, column: int) -> str:
        """A column as messages call it: by name in quotes, or by number."""
        return f"'{self.name(column)}'" if self.named else str(column + 1)

    def lacks_name(self, column: int) -> bool:
        """Whether a column has no name, or the one that a data frame gives its index for want of one."""
        return not self.named or _NO_NAME.fullmatch(self.names[column]) is not None


def select(cells: Cells, columns: str | None, exclude: str | None = None) -> list[int]:
    """The places of the columns chosen by name or number, as ``read_table`` takes them; of all for None.

    Raises:
        ValueError: there are no such columns, one is named twice, or none is left.
    """
    if exclude is not None:
        without = _named(cells, exclude, "--exclude")
        kept = [place for place in select(cells, columns) if place not in without]
        if not kept:
            raise ValueError(f"--exclude {exclude}: no column is left")
        return kept
    return _named(cells, columns, "--columns")


def _named(cells: Cells, columns: str | None, option: str) -> list[int]:
    """The places that an option names; all for None."""
    names = [cells.name(place) for place in range(len(cells.names))]
    kept = list(range(len(names))) if columns is None else []
    for part in map(str.strip, columns.split(",") if columns is not None else ()):
        first, dash, last = part.partition("-")
        if part in names:
            kept += [place for place, name in enumerate(names) if name == part]
        elif part.isdigit():
            kept.append(int(part) - 1)
        elif dash and first.isdigit() and last.isdigit():
            kept += range(int(first) - 1, int(last))
        else:
            raise ValueError(f"{cells.file} has no column '{part}'; it has {listed(names)}")
    for place in kept:
        if not 0 <= place < len(names):
            raise ValueError(
                f"{cells.file} has no column {place + 1}: it has {counted(len(names), 'column')}"
            )
    if columns is not None:
        check_names(cells, kept)
    if len(set(kept)) < len(kept) or not kept:
        raise ValueError(f"{option} {columns}: every column may be named once")
    return kept


def target_column(cells: Cells, target: str, columns: str | None, expected: Expected | None) -> int:
    """The place of a column by name or number that stands apart from ``columns``, or from all others.

    Raises:
        ValueError: there is no such column, or it is one of the ``columns`` or of those that a model reads.
    """
    names = [cells.name(place) for place in range(len(cells.names))]
    if target in names:
        check_names(cells, [names.index(target)])
        found = names.index(target)
    elif target.isdecimal():
        found = select(cells, target)[0]
    elif cells.named:
        hint = "".join(f"; did you mean '{close}'?" for close in close_names(target, names))
        raise ValueError(f"{cells.file} has no column '{target}'; it has {listed(names)}{hint}")
    else:
        unknown = f"nothing tells which column is the target '{target}'"
        raise ValueError(f"{cells.file} has no names, so that {unknown}: pass --target by number")
    if columns is not None and found in select(cells, columns):
        raise ValueError(f"--columns {columns} are the inputs: leave the target '{target}' out")
    if cells.named and names[found] in known_names(expected):
        raise ValueError(
            f"{cells.file}: the model reads '{names[found]}', which cannot be its target as well"
        )
    if len(names) < 2:
        raise ValueError(f"{cells.file} has no column beside the target '{target}'")
    return found


def index_columns(cells: Cells, places: list[int]) -> list[int]:
    """Those of the first columns that may be the index of a data frame, by their names; never all."""
    leading = takewhile(
        lambda place: cells.lacks_name(place) or _COUNTER.fullmatch(cells.names[place]), places
    )
    found = list(leading) if cells.named else []
    return found if len(found) < len(places) else []


def by_name(cells: Cells, among: list[int], wanted: Sequence[str]) -> tuple[list[int], list[str]]:
    """The places of the columns of these names, in this order, and what to say of it.

    Raises:
        ValueError: a name is missing, or several columns have it.
    """
    held = [cells.name(place) for place in among]
    missing = [f"'{name}'" for name in wanted if name not in held]
    if missing:
        called = f"column{'s' * (len(missing) > 1)} {listed(missing)}"
        raise ValueError(f"{cells.file} has no {called}, which the model reads; it has {listed(held)}")
    kept = [place for name in wanted for place in among if cells.name(place) == name]
    check_names(cells, kept)
    notes = []
    if kept != [place for place in among if place in kept]:
        notes.append(f"columns are put in the model's order: {listed(wanted)}")
    ignored = [cells.name(place) for place in among if place not in kept]
    if ignored:
        notes.append(f"ignored, as the model does not read them: {listed(ignored)}")
    return kept, notes


def by_position(
    cells: Cells, among: list[int], expected: Expected, *, chosen: bool, beside: str = ""
) -> tuple[list[int], list[str]]:
    """The places of columns that are taken in order if their number fits, and what to say of it.

    Places that a model remembers are used in a file without names that has more columns, unless columns are
    chosen. ``beside`` says what else was read.

    Raises:
        ValueError: there are more or fewer columns than the model reads, or their order is not known.
    """
    names = known_names(expected)
    count = expected if isinstance(expected, int) else len(expected)
    kept = among
    if not isinstance(expected, int) and not names and not chosen and not cells.named:
        places = [int(place) - 1 for place in expected]
        if sorted(places) == among != places:
            order = ", ".join(map(str, expected))
            raise ValueError(
                f"{cells.file} has no column names, and the model was trained on columns {order} of such a "
                "file: say their order here with --columns"
            )
        kept = places if set(places) <= set(among) else kept
    if len(kept) != count:
        has = f"{len(kept)} column{'s' * (len(kept) != 1)}{'' if cells.named else ' without names'}{beside}"
        reads = f"{count}{f' ({listed(names)})' if names else ''}"
        raise ValueError(f"{cells.file} has {has}; the model reads {reads}: choose them with --columns")
    taken = f"{listed([cells.name(place) for place in kept])} taken by position"
    if names:
        return kept, [f"the file has no column names: {taken} as {listed(names)}"]
    who = "the model has no" if cells.named else "neither the model nor the file has"
    return kept, [f"{who} column names: {taken}"]


def known_names(expected: Expected | None) -> list[str]:
    """The names among what a model knows of its columns.

    >>> known_names(["a", "b"]), known_names([2, 4]), known_names(2)
    (['a', 'b'], [], [])
    """
    return [] if isinstance(expected, int) else [name for name in expected or () if isinstance(name, str)]


def check_names(cells: Cells, kept: Sequence[int]) -> None:
    """Refuse columns of one name: nothing that knows columns by name could tell them apart."""
    names = [cells.name(place) for place in range(len(cells.names))]
    called = [names[place] for place in dict.fromkeys(kept)]
    for name in called:
        if called.count(name) > 1:
            places = ", ".join(str(place) for place, other in enumerate(names, 1) if other == name)
            raise ValueError(
                f"{cells.file} has several columns '{name}' ({places}): choose by number with --columns"
            )


def listed(words: Sequence[str]) -> str:
    """The first eight of the words.

    >>> listed("abcdefghij")
    'a, b, c, d, e, f, g, h, ...'
    """
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
