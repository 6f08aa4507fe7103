"""Every class of the package is final, unless others are built on it."""

from __future__ import annotations

import ast
import builtins
import inspect
from pathlib import Path

import pytest

import convexlift

SOURCE = Path(convexlift.__file__).parent
# What is described, or caught, rather than built on; all that derives from one of these is left alone.
FORMS = {"Protocol", "TypedDict", "NamedTuple"}
FORMS |= {name for name, kind in inspect.getmembers(builtins, inspect.isclass) if issubclass(kind, Exception)}


def name_of(node: ast.expr) -> str:
    """The last word of a name, a call or a subscript: `nn.Module` -> Module, `final` -> final."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def open_classes(texts: dict[str, str]) -> list[str]:
    """The classes, "file:line name", that are neither final, nor a base, nor of the `FORMS`."""
    classes = [
        (file, node)
        for file, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    ]
    bases: dict[str, set[str]] = {}  # by name: an estimator is called as the task that it fits
    for _, node in classes:
        bases.setdefault(node.name, set()).update(map(name_of, node.bases))
    built_on, forms = set[str]().union(*bases.values()), set(FORMS)
    while derived := {name for name in bases if bases[name] & forms} - forms:
        forms |= derived
    return [
        f"{file}:{node.lineno} {node.name}"
        for file, node in classes
        if "final" not in {name_of(decorator) for decorator in node.decorator_list}
        and node.name not in built_on | forms
        and "base class" not in (ast.get_docstring(node) or "").lower()
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("class A: ...", ["a.py:1 A"]),
        ("class A: ...\nclass B(A): ...", ["a.py:2 B"]),
        ("@final\nclass A: ...\n@typing.final\n@dataclass(frozen=True)\nclass B(A): ...", []),
        ("@dataclass(frozen=True)\nclass A(Generic[T]): ...", ["a.py:2 A"]),
        ("class A(Protocol): ...\nclass B(typing.NamedTuple): ...", []),
        ("class A(B): ...\nclass B(C): ...\nclass C(ValueError): ...", []),
        ("class A(nn.Module):\n    'The base class of what users write.'", []),
        ("def f():\n    class A: ...", ["a.py:2 A"]),
    ],
)
def test_an_open_class_is_found(text: str, found: list[str]) -> None:
    assert open_classes({"a.py": text}) == found


def test_a_class_is_final_or_a_base() -> None:
    files = {file.relative_to(SOURCE.parent): file for file in SOURCE.rglob("*.py")}
    found = open_classes({name.as_posix(): file.read_text(encoding="utf-8") for name, file in files.items()})
    assert not found, (
        f"{len(found)} classes are neither decorated with typing.final nor built on in the package (one that "
        "users build on calls itself a base class in its docstring):\n" + "\n".join(sorted(found))
    )
