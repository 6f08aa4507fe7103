"""What to do after a page: commands for a table of one's own, and for a closer look."""

from __future__ import annotations

from collections.abc import Sequence

from convexlift.names import SOURCES
from convexlift.study.ranking import Result, finite, ranking

_TRAINED = ("flow", "density")  # what `convexlift train` trains


def own_table(task: str = "flow", options: str = "") -> dict[str, str]:
    """From a table of one's own to a model and its samples: what each command does, and the command.

    >>> own_table("density")["train on a table of your own (rows are samples, columns are numbers)"]
    'convexlift train density --data your.csv --out runs/mine'
    """
    return {
        "train on a table of your own (rows are samples, columns are numbers)": (
            f"convexlift train {task} --data your.csv{options} --out runs/mine"
        ),
        "score other rows with it": "convexlift evaluate runs/mine --data other.csv",
        "draw new rows from it": "convexlift sample runs/mine -n 1000 --out new.csv",
    }


def after_comparison(results: Sequence[Result]) -> dict[str, str]:
    """What to do after a comparison, with the way and the rate that did best where there is one problem."""
    steps: dict[str, str] = {}
    lone = results[0] if len(results) == 1 else None
    task = str(lone.get("task")) if lone else "flow"
    order = ranking(lone) if lone else []
    if task in _TRAINED:
        best = order[0] if order and order[0] in SOURCES else None
        rate = finite(lone["arms"][best].get("lr")) if lone and best else None
        options = f" --source {best} --lr {rate:g}" if rate else ""
        steps = own_table(task, options)
    if lone and (lone.get("protocol") or {}).get("budget") == "quick":
        steps["look closer: more rates, seeds and steps"] = (
            f"convexlift compare {lone['problem']} --budget standard --out runs/{lone['problem']}-standard"
        )
    steps["compare networks of your own; FUNCTION returns (problem, {name: function of a network})"] = (
        "convexlift compare --own MODULE:FUNCTION"
    )
    return steps
