"""How many there are of something, in words."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """The number and its noun.

    >>> counted(1, "step"), counted(1200, "row"), counted(0, "seed")
    ('1 step', '1,200 rows', '0 seeds')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
