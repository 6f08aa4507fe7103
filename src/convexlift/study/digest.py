"""A digest of the code that decides outcomes: those of an earlier version are never taken for today's."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# What outcomes do not pass through: how they are told, and the command line.
_LEFT_OUT = ("cli", "plots", "study/report", "__main__.py")


@lru_cache
def code_digest(*scripts: Path, package: Path = PACKAGE) -> str:
    """Ten hex digits that change with the package's code (not report, command line) and with the scripts.

    Comments, docstrings and layout do not count.

    Args:
        scripts: files outside the package that decide an outcome too: those of a study.
        package: the folder of the package.
    """
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if not any(place.is_relative_to(part) for part in _LEFT_OUT):
            digest.update(place.as_posix().encode() + _meaning(file))
    for script in scripts:
        digest.update(script.name.encode() + _meaning(script))
    return digest.hexdigest()[:10]


def _meaning(file: Path) -> bytes:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_string(line)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_string(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
