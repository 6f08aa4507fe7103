"""Checks taken out of the running code, one at a time, to see that they are what decides."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, final

import convexlift

SOURCE = Path(convexlift.__file__).parent


@final
@dataclass(frozen=True)
class Check:
    """A statement that raises or warns: its file and line, and the function that it stands in."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{Path(self.file).relative_to(SOURCE)}:{self.line} in {self.function}"


def check_behind(error: BaseException) -> Check | None:
    """The statement of the package that raised an error; of a chain of errors, that of the first."""
    before = error.__cause__ or error.__context__
    first = None if before is None else check_behind(before)
    if first is not None:
        return first
    inside = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(SOURCE)
    ]
    if not inside:
        return None
    code, line = inside[-1]
    statement = _innermost(code.co_filename, line)
    return Check(code.co_filename, statement.lineno, code.co_qualname) if _speaks(statement) else None


@contextmanager
def without(check: Check) -> Iterator[None]:
    """Run the code without one check."""
    tree = _parsed(check.file)
    for parent in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list):
                setattr(
                    parent, name, [_dead(s) if s.lineno == check.line and _speaks(s) else s for s in block]
                )
    with _running(check.file, tree):
        yield


@contextmanager
def changed(owed_to: str, instead: Callable[..., Any] | tuple[str, str]) -> Iterator[None]:
    """Run the code with a stand-in for a function, or with one line of a module changed."""
    if not isinstance(instead, tuple):
        with _replaced(owed_to, instead):
            yield
        return
    file = str(importlib.import_module(owed_to).__file__)
    text, (old, new) = Path(file).read_text(encoding="utf-8"), instead
    assert text.count(old) == 1 and "\n" not in old + new, f"{owed_to} holds {old!r} {text.count(old)} times"
    with _running(file, ast.parse(text.replace(old, new))):
        yield


@contextmanager
def _running(file: str, tree: ast.Module) -> Iterator[None]:
    """Let every function of a file run the code of another syntax tree, of the same lines."""
    bare = dict(_functions(compile(tree, file, "exec", dont_inherit=True)))
    before = [(function, function.__code__) for function in _live(len(sys.modules)).get(file, ())]
    try:
        for function, code in before:
            function.__code__ = bare.get((code.co_qualname, code.co_firstlineno), code)
        yield
    finally:
        for function, code in before:
            function.__code__ = code


@contextmanager
def _replaced(path: str, instead: Callable[..., Any]) -> Iterator[None]:
    """Put a stand-in wherever the package holds a function, or a class its method."""
    outer, name = path.rsplit(".", 1)
    owner = _resolved(outer)
    original = vars(owner)[name]
    package = [module for key, module in list(sys.modules.items()) if key.partition(".")[0] == "convexlift"]
    places = [
        (holder, key)
        for holder in {id(holder): holder for holder in (owner, *package)}.values()
        for key, value in list(vars(holder).items())
        if value is original
    ]
    try:
        for holder, key in places:
            setattr(holder, key, instead)
        yield
    finally:
        for holder, key in places:
            setattr(holder, key, original)


@functools.lru_cache(maxsize=1)
def _live(modules: int) -> dict[str, list[FunctionType]]:
    """The functions of the package that there are, by file, once so many modules are loaded.

    Functions made later are made by these, and so of the code that these run then.
    """
    found: dict[str, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(SOURCE)):
            found.setdefault(thing.__code__.co_filename, []).append(thing)
    return found


@functools.cache
def _statements(file: str) -> list[ast.stmt]:
    return [node for node in ast.walk(_parsed(file)) if isinstance(node, ast.stmt)]


def _innermost(file: str, line: int) -> ast.stmt:
    around = [s for s in _statements(file) if s.lineno <= line <= (s.end_lineno or s.lineno)]
    return min(around, key=lambda s: (s.end_lineno or s.lineno) - s.lineno)


def _parsed(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _speaks(statement: ast.stmt) -> bool:
    """Whether a statement raises or warns."""
    called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.Raise) or (
        called and ast.unparse(statement).startswith("warnings.warn(")
    )


def _dead(statement: ast.stmt) -> ast.stmt:
    """The statement where nothing reaches it: a function still closes over the same names."""
    return ast.fix_missing_locations(
        ast.copy_location(ast.If(test=ast.Constant(False), body=[statement], orelse=[]), statement)
    )


def _functions(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """All functions in compiled code, by name and first line."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield (inner.co_qualname, inner.co_firstlineno), inner
            yield from _functions(inner)


def _resolved(path: str) -> Any:
    """A module, or a class in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        outer, name = path.rsplit(".", 1)
        return getattr(_resolved(outer), name)
