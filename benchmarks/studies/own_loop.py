"""A network written by hand and trained in a loop of one's own, before and after it is lifted.

    python benchmarks/studies/own_loop.py --out results/own_loop.json

Runs the example of docs/own-loop.md from several starts, and the same network without a lift but with the
rates of its two kinds of tensor multiplied by the lift's gains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from common import score_text
from timing import Result, arguments, given, markdown, parsed, write

from convexlift.study.statistics import summary

PAGE = Path(__file__).parents[2] / "docs" / "own-loop.md"


def example(seed: int) -> dict[str, Any]:
    """What the page's example leaves behind."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("manual_seed(1)", f"manual_seed({seed})"), names)
    return names


def multiplied(names: dict[str, Any], seed: int, gains: list[float]) -> Any:
    """The network by hand, at rates larger by the gains."""
    torch.manual_seed(seed)
    model = names["ByHand"](5)
    groups = [
        {"params": [*model.first.parameters(), *model.reads.parameters()], "lr": 0.001 * gains[1]},
        {"params": list(model.passes.parameters()), "lr": 0.001 * gains[0]},
    ]
    optimizer = torch.optim.Adam(groups)
    x, y, seen = names["x"], names["y"], names["seen"]
    names["train"](model, x[seen], y[seen], optimizer=optimizer)
    return model


def table_own_loop(result: Result) -> str:
    """The error of each way."""
    rows = [[way, score_text(found)] for way, found in result["error"].items()]
    return markdown(("trained by", "squared error on new rows"), rows)


def main() -> None:
    options = parsed(arguments(__file__, __doc__, seeds=5))
    errors: dict[str, list[float]] = {}
    for seed in range(1, options.seeds + 1):
        names = example(seed)
        gains = names["lift"].gain.tolist()
        models = {
            "by hand": names["before"],
            "lifted": names["after"],
            f"by hand, rates x {gains[0]:g} and x {gains[1]:g}": multiplied(names, seed, gains),
        }
        x, y, new = names["x"], names["y"], names["new"]
        for way, model in models.items():
            errors.setdefault(way, []).append(names["error"](model, x[new], y[new]))
    found = {way: summary(values) for way, values in errors.items()}
    write(options, {**given(options, "seeds"), "error": found}, table_own_loop)


if __name__ == "__main__":
    main()
