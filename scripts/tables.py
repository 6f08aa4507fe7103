#!/usr/bin/env python3
"""Write the tables and verdicts in README.md and docs/ anew from the files in results/.

    python scripts/tables.py            rewrite
    python scripts/tables.py --check    exit 1 if anything would change

What is made stands between `<!-- KIND: NAME ... -->` and `<!-- end -->`: what the function `table_KIND` of a
script in benchmarks/studies/ or benchmarks/timings/ says of the results that are named, which are folders and
files in results/.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convexlift.files import write_whole
from convexlift.study.report.page import read_result

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*/*.py"))
MARKED = re.compile(r"(<!-- (\w+): ([\w ./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def gathered() -> dict[str, Callable[..., str]]:
    """The kinds of table by name."""
    sys.path[:0] = sorted({str(file.parent) for file in SCRIPTS})
    found: dict[str, Callable[..., str]] = {}
    for file in SCRIPTS:
        parts = vars(importlib.import_module(file.stem)).items()
        found |= {name.removeprefix("table_"): part for name, part in parts if name.startswith("table_")}
    return found


def stored(name: str) -> dict[str, Any]:
    """The result in that file or folder of results/."""
    place = ROOT / "results" / name
    return read_result(place) if place.is_dir() else json.loads(place.read_text(encoding="utf-8"))


def rewritten(text: str, kinds: dict[str, Callable[..., str]]) -> str:
    """The text with everything between its marks made anew."""

    def table(match: re.Match[str]) -> str:
        return match[1] + kinds[match[2]](*map(stored, match[3].split())) + match[4]

    return MARKED.sub(table, text)


def main() -> int:
    kinds, check, stale = gathered(), "--check" in sys.argv[1:], False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = rewritten(before, kinds)
        stale |= after != before
        if after != before and not check:
            write_whole(page, after.encode())
    return int(stale and check)


if __name__ == "__main__":
    sys.exit(main())
