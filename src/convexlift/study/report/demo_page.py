"""The page of a demonstration: one self-contained HTML file."""

from __future__ import annotations

import os
from pathlib import Path

from convexlift.counting import counted
from convexlift.study.ranking import Result, finite
from convexlift.study.report.advice import own_table
from convexlift.study.report.numbers import duration, short
from convexlift.study.report.page import check_installed, render, write_page

COMMANDS = {
    **own_table(),
    "compare the ways fairly, each at its own best rate, in a few minutes": "convexlift compare digits21",
}
WAYS = {
    "projected": "projected gradient, the usual way: a step, then every negative weight is set to 0",
    "softplus": "the other usual way: a weight is log(1 + e^v), and v is trained",
    "squared": "a weight is v² / 4, and v is trained; what convexlift train does unless told otherwise",
    "lift": "a weight is softplus(b + R s), where s is a summary of the batch that a small network computes; "
    "b, R and that network are trained, and drop out when training is over",
    "lift-reference": "the lift in the configuration of the article that proposed it (arXiv 2605.24274): it "
    "computes every parameter so, is about a hundred times as large, starts from scattered weights of its "
    "own, and is trained at the article's rate, 0.001",
}


def write_demo(result: Result, path: str | os.PathLike[str]) -> Path:
    """Write the page of a demonstration; it needs no network, no script and no other file.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
        OSError: the file cannot be written.
    """
    return write_page(demo_page(result), path)


def demo_page(result: Result) -> str:
    """The HTML text of the page."""
    check_installed()
    from convexlift.study.report import demo_words, figures

    names = [name for part in result["parts"] for name in part["arms"]]
    seeds = result["parts"][0]["protocol"]["seeds"]
    seconds = finite(result.get("seconds"))
    return render(
        "demo.html",
        names,
        result=result,
        words=demo_words,
        figures=figures,
        ways=WAYS,
        commands=COMMANDS,
        levels=levels,
        counted=counted,
        rate=short(result["parts"][0]["fixed_rate"]["lr"], 1),
        seeds=seeds,
        facts=[
            f"{counted(sum(_trained(part) for part in result['parts']), 'model')} trained",
            counted(len(seeds), "seed"),
            f"made in {duration(seconds)}" if seconds else "",
            str(result["environment"].get("date", ""))[:10],
        ],
    )


def _trained(part: Result) -> int:
    """How many models a problem took: a way whose rates are equal was trained once a seed."""
    rates = {
        (name, arm["lr"]) for section in (part, part["fixed_rate"]) for name, arm in section["arms"].items()
    }
    return len(rates) * len(part["protocol"]["seeds"])


def levels(part: Result) -> dict[str, float]:
    """Known losses, to draw beside the curves."""
    names = {"gaussian": "a Gaussian's (test rows)", "exact": "the exact density's"}
    return {told: part["facts"][name] for name, told in names.items() if name in part["facts"]}
