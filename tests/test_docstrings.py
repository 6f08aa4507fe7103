"""Every public name says what it does in one sentence and shows it in an example, which doctest runs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

import pytest

import convexlift
from convexlift import export, mechanism, plots, sklearn, tasks, tensorboard, testing, training


def public() -> Iterator[tuple[str, object]]:
    for module in (convexlift, export, mechanism, plots, sklearn, tasks, tensorboard, testing, training):
        for name in module.__all__:
            if callable(getattr(module, name)):  # the numbers of the mechanism have docstrings in its source
                yield f"{module.__name__}.{name}", getattr(module, name)


def members() -> Iterator[tuple[str, object]]:
    """The names, and the methods and properties that their classes define in this library."""
    for label, value in NAMES:
        yield label, value
        if inspect.isclass(value):
            for name, _ in inspect.getmembers(value):
                member = inspect.getattr_static(value, name)
                documented = isinstance(member, types.FunctionType | property | classmethod)
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                ours = str(getattr(function, "__module__", "")).startswith("convexlift")
                if documented and ours and not name.startswith("_") and name != "extra_repr":
                    yield f"{label}.{name}", getattr(value, name)


NAMES = list(public())
MEMBERS = list(members())
# What is received rather than made, so that an example of its own would be one of its maker.
RECEIVED = (
    *("TrainingDiverged", "FitEvent", "RunFolder", "Shoulder", "Normaliser", "Coupling", "CrossCovariance"),
    *("UpdateDiffusion", "Landscape", "Plateau", "LayerHealth"),
)


@pytest.mark.parametrize(("label", "value"), MEMBERS, ids=[label for label, _ in MEMBERS])
def test_the_first_sentence_stands_alone(label: str, value: object) -> None:
    text = inspect.getdoc(value)
    assert text, f"{label} has no docstring"
    paragraph = text.split("\n\n")[0]
    assert paragraph.rstrip().endswith((".", ":")), paragraph
    last = paragraph.splitlines()[-1]
    assert "\n" not in paragraph or len(last.split()) > 1, f"one word alone on the last line: {last}"


@pytest.mark.parametrize(("label", "value"), NAMES, ids=[label for label, _ in NAMES])
def test_an_example_runs(label: str, value: object) -> None:
    if not label.endswith(RECEIVED):
        assert ">>>" in (inspect.getdoc(value) or ""), f"{label} shows no example"
