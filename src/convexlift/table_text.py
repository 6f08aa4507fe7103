"""Tables of text: what separates cells, whether the first line holds names, how numbers are written."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import final

import numpy as np

from convexlift.table_columns import Cells, listed

# In the order in which they are preferred where lines may be cut by each.
SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", " ": "blanks"}
WORDS = {"tab": "\t", r"\t": "\t", "space": " ", "blank": " "}
# What stands for a missing value, in small letters.
MISSING = frozenset(
    ["", "na", "n/a", "<na>", "#na", "#n/a", "nan", "-nan", "+nan", "nat", "null", "none", "nil", "missing"]
    + ["?", "-", "--", ".", "*", "-1.#ind", "1.#qnan"]
)
# How files begin that are no text.
_MAGIC = {
    b"PK\3\4": "an archive or a workbook: save the table as .csv",
    b"\x1f\x8b": "compressed: its name should end in .gz",
    b"PAR1": "a .parquet file: its name should say so",
    b"\x93NUMPY": "a .npy file: its name should say so",
}
_SPECIAL = {"inf": np.inf, "infinity": np.inf, "true": 1.0, "false": 0.0}


@final
class Text(Cells):
    """A table of text, cut into names and rows of cells.

    Attributes:
        separator, decimal, thousands: the marks of the text.
        body: the text after the line of names.

    Args:
        file: for messages.
        content: the bytes of the file.
        suffix: of its name, among those of ``read_table``.
        header, separator, decimal, thousands: see ``read_table``.
        expected: the names of columns that a model reads, if any.

    Raises:
        ValueError: it is no text, or a line or a mark may mean two things.
    """

    def __init__(
        self,
        file: Path,
        content: bytes,
        suffix: str,
        *,
        header: bool | None,
        separator: str | None,
        decimal: str | None,
        thousands: str | None,
        expected: Sequence[str] = (),
    ) -> None:
        self.file, self.apart = file, {}
        self.decimal, self.thousands = decimal or ".", thousands
        text = _decoded(file, content, suffix).replace("\r\n", "\n").replace("\r", "\n")
        said = re.match(r"sep=([^\w\s\"]|\t)\n", text, re.IGNORECASE)  # a line that Excel writes and reads
        text = text[said.end() - 1 :] if said else text
        separator = WORDS.get(separator or "", separator) or (said[1] if said else None)
        text, comments = _without_comments(text)
        if not text.strip():
            raise ValueError(f"{file} is empty")
        self.separator = separator or self._find_separator(text, suffix)
        if self.separator == " ":
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
            comments = [" ".join(comment.split()) for comment in comments]
        if comments and header is not False and self._names_follow(comments[-1], text):
            text, comments = _restored(text, comments[-1]), comments[:-1]
        text, self._empty = re.subn(rf"(?m)^[ \t{re.escape(self.separator)}]+$", "", text)
        self._comments = len(comments)
        self._read_header(text, header, expected, sure=bool(separator or decimal))

    def _read_header(self, text: str, header: bool | None, expected: Sequence[str], *, sure: bool) -> None:
        stream = io.StringIO(text, newline="")
        records = self._cut(stream)
        self._before, first = next(records, (0, []))
        start, (_, second) = stream.tell(), next(records, (0, list[str]()))
        if not first:
            raise ValueError(f"{self.file} is empty")
        self.named = self._is_header(first, second, expected) if header is None else header
        self._guessed = header is None
        if self.named and not second:
            raise ValueError(f"{self.file} has a header but no rows")
        self.names = first if self.named else [""] * len(first)
        self._first_row = second if self.named else first
        self.body = text[start:] if self.named else text
        if not self.named:
            self._before = 0
            if not sure:
                self._check_commas(len(first))

    def __str__(self) -> str:
        """What was taken for what."""
        said = [f"names in line {self._before}" if self.named else "no line of names"]
        marks = SEPARATORS.get(self.separator, repr(self.separator))
        said += [f"cells separated by {marks}"] if len(self.names) > 1 else []
        said.append(f"decimal {'comma' if self.decimal == ',' else 'point'}")
        said += [f"digits grouped by {self.thousands!r}"] if self.thousands else []
        said += [f"{self._comments} comment{'s' * (self._comments > 1)} skipped"] if self._comments else []
        said += [f"{self._empty} line{'s' * (self._empty > 1)} without values skipped"] if self._empty else []
        return ", ".join(said)

    def hint(self, cell: str, row: int) -> str:
        """What may help where a cell of row 1, 2, ... is no number."""
        if re.fullmatch(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}([T ].*)?", cell):
            return " (a date? leave the column out with --exclude)"
        if self.separator != "," and self.decimal != "," and re.fullmatch(r"[+-]?\d*,\d+", cell):
            return " (a decimal comma? say --decimal ,)"
        if re.fullmatch(r"[+-]?\d+([., '_]\d+)+", cell):
            return " (see --decimal and --thousands)"
        if row == 1 and not self.named and self._guessed:
            return " (if the first line holds names, say --header)"
        return " (see --separator)" if len(self.names) == 1 and re.search(r"\d[ ,;|]+\d", cell) else ""

    def value(self, cell: str) -> float | None:
        """The number in a cell, NaN for a missing one, None for anything else."""
        if not self._number.fullmatch(cell):
            cell = " ".join(cell.split()).replace("\N{MINUS SIGN}", "-").lower()
            if cell in MISSING:
                return np.nan
            if cell.lstrip("+-") in _SPECIAL:
                return (-1 if cell[0] == "-" else 1) * _SPECIAL[cell.lstrip("+-")]
            if not self._number.fullmatch(cell):
                return None
        digits = cell.replace(self.thousands, "") if self.thousands else cell
        return float(digits.replace(self.decimal, "."))

    @cached_property
    def _number(self) -> re.Pattern[str]:
        point, group = re.escape(self.decimal), re.escape(self.thousands or "")
        whole = rf"(\d{{1,3}}({group}\d{{2,3}})*{group}\d{{3}}|\d+)" if group else r"\d+"
        return re.compile(rf"[+-]?({whole}({point}\d*)?|{point}\d+)([eE][+-]?\d+)?", re.ASCII)

    def is_text(self, column: int) -> bool:
        return column < len(self._first_row) and self.value(self._first_row[column]) is None

    def line(self, row: int) -> int | None:
        return self._lines[row]

    def cell(self, row: int, column: int) -> str:
        return next(islice(self.records(), row, None))[1][column]

    @cached_property
    def _lines(self) -> list[int]:
        return [line for line, _ in self.records()]

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The line that each row ends in, and its cells."""
        for line, cells in self._cut(io.StringIO(self.body, newline="")):
            yield self._before + line, cells

    def _cut(self, stream: io.StringIO) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(stream, delimiter=self.separator, strict=True)
        return ((reader.line_num, [" ".join(cell.split()) for cell in cells]) for cells in reader if cells)

    def _is_number(self, cell: str) -> bool:
        return self.value(cell) is not None and cell.lower() not in MISSING - {"nan", "-nan", "+nan"}

    def _find_separator(self, text: str, suffix: str) -> str:
        """What cuts the first two lines into as many cells, or else the first into most."""
        first, second = (unquoted(line) for line in ([*islice(_lines(text), 2)] * 2)[:2])
        candidates = ["\t"] if suffix.startswith(".tsv") else [c for c in SEPARATORS if c != " "]
        if "," in (self.decimal, self.thousands) and '"' not in text:
            # Between cells, numbers with commas would stand in quotes.
            candidates = [c for c in candidates if c != ","]
        even = [c for c in candidates if first.count(c) == second.count(c) > 0]
        most = max(candidates, key=first.count)
        if even or first.count(most):
            return (even or [most])[0]
        words = second.split()
        if self.thousands == " " or not len(first.split()) == len(words) > 1:
            return candidates[-1]
        if all(re.fullmatch(r"\s*\d{1,3}( \d{3})+\s*", line) for line in _lines(text)):
            raise ValueError(
                f"{self.file}: a blank may separate columns or be part of a number: say which by "
                "--separator space or --thousands ' '"
            )
        return " " if all(map(self._is_number, words)) else candidates[-1]

    def _names_follow(self, comment: str, text: str) -> bool:
        """Whether a comment above the first line holds the names of its columns."""
        try:
            names = next(self._cut(io.StringIO(comment)), (0, []))[1]
        except csv.Error:  # a quotation mark alone
            return False
        cells = next(self._cut(io.StringIO(text, newline="")))[1]
        return (
            len(names) == len(cells)
            and not any(map(self._is_number, names))
            and any(map(self._is_number, cells))
        )

    def _is_header(self, first: list[str], second: list[str], expected: Sequence[str]) -> bool:
        """Whether the first line holds names; an error where it may hold numbers as well."""
        if expected and set(expected) <= set(first):
            return True
        if any(re.fullmatch(r"[+-]?\d+([., ']\d+)+", cell) and self.value(cell) is None for cell in first):
            raise ValueError(
                f"{self.file}: the first line, {self.separator.join(first)}, may hold names or numbers: say "
                "which by --header or --no-header, and see --decimal and --thousands"
            )
        if not any(map(self._is_number, first)):
            return not {cell.lower() for cell in first} <= MISSING
        counted = [str(place) for place in range(len(first))]
        if first[0] == "" and first[1:] == counted[:-1]:  # a data frame without names, with its index
            return True
        if first == counted and len(first) > 2 and not all(map(str.isdigit, second)):
            return True
        above_index = len(first) > 2 and first[0] == "" and all(map(self._is_number, first[1:]))
        if (first == counted and len(first) > 1) or above_index or self._may_count(first, second):
            raise ValueError(
                f"{self.file}: the first line, {listed(first).replace(', ', ',')}, may hold names or "
                "numbers: say which by --header or --no-header"
            )
        return False

    def _may_count(self, first: list[str], second: list[str]) -> bool:
        """Whether the first line counts columns in even steps, above a line unlike it."""
        try:
            above, below = ([Decimal(cell) for cell in cells] for cells in (first, second))
            steps, others = ({b - a for a, b in pairwise(cells)} for cells in (above, below))
        except ArithmeticError:
            return False
        if len(steps) != 1 or min(steps) <= 0 or others == steps or not second:
            return False
        whole = [cell.isdigit() for cell in second]
        if not all(map(str.isdigit, first)):
            return len(first) > 3
        if len(first) == 2:
            return steps == {Decimal(1)} and not any(whole)
        return not all(whole) or len(first) > 3 or above[0] > 9

    def _check_commas(self, width: int) -> None:
        """Refuse lines whose commas may as well be parts of numbers."""
        if (
            self.separator != ","
            or width % 2
            or not re.match(r"\s*[+-]?\d+,\d+(,|\s*\n|\.\d+\s*\n|$)", self.body)
        ):
            return
        lines = [line.strip() for line in _lines(self.body)]
        pairs = [re.fullmatch(r"[+-]?\d+(,\d+)+", line) for line in lines]
        ends = [end for pair in pairs if pair for end in pair[0].split(",")[1::2]]
        padded = any(end[0] == "0" and len(end) > 1 for end in ends)
        grouped = width == 2 and all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}(\.\d+)?", line) for line in lines)
        if grouped or (all(pairs) and (padded or (width == 2 and all(len(end) > 2 for end in ends)))):
            columns = "two columns" if width == 2 else "columns"
            raise ValueError(
                f"{self.file}: a comma may separate {columns} or be part of a number: say which by "
                f"--decimal '.' ({columns}), --decimal ',' or --thousands ','"
            )


def _lines(text: str) -> Iterator[str]:
    """The lines that are not blank."""
    return (line[0] for line in re.finditer(r".*\S.*", text))


def _decoded(file: Path, content: bytes, suffix: str) -> str:
    if suffix.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} is damaged or truncated") from error
    for magic, what in _MAGIC.items():
        if content.startswith(magic):
            raise ValueError(f"{file} is not a CSV text file but {what}")
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "" if marked or b"\0" in content else f" in UTF-8 (at byte {error.start}): save it in UTF-8"
        raise ValueError(f"{file} is not a CSV text file{hint}") from None
    if "\0" in text:
        raise ValueError(f"{file} is not a CSV text file")
    return text


def _without_comments(text: str) -> tuple[str, list[str]]:
    """The text with the comments above its first line blanked, and what they say."""
    above = re.match(r"(?:[ \t]*\n|[ \t]*#.*(?:\n|$))*", text)
    head = above[0] if above else ""
    comments = [line.strip().lstrip("#").strip() for line in head.split("\n") if line.strip()]
    return re.sub(r".+", "", head) + text[len(head) :], comments


def _restored(text: str, names: str) -> str:
    """The text with names in the last blank line above it."""
    body = text.lstrip("\n")
    return "\n" * max(len(text) - len(body) - 1, 0) + names + "\n" + body


def unquoted(text: str) -> str:
    """The text without what stands in quotes.

    >>> unquoted('"a, b",c')
    ',c'
    """
    return re.sub('"[^"]*"', "", text) if '"' in text else text
