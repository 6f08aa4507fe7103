#!/usr/bin/env python3
"""Write the tables and verdicts in README.md and docs/ anew from the files in results/.

    python scripts/tables.py            rewrite
    python scripts/tables.py --check    exit 1 if anything would change

What is made stands between `<!-- KIND: NAME ... -->` and `<!-- end -->`. The kinds are the functions in
`KINDS` below, a name is a folder in results/.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from convexlift.experiments.report import read_result
from convexlift.experiments.verdicts import (
    Result,
    difference,
    interval_text,
    ranking,
    score_text,
    short,
    tied_with_best,
    verdicts,
)

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- (\w+): ([\w ./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def comparison(name: str) -> str:
    """The main table of one comparison."""
    result = read(name)
    rows = []
    for arm in complete(result):
        row = result["arms"][arm]
        found = difference(result, "lift", arm) if arm != "lift" else None
        rows.append(
            [
                arm,
                score_text(row["test"]),
                interval_text(found) if found else "",
                score_text(row["half_budget"]),
                score_text(row["equal_seconds"]),
                "–" if row["lr"] is None else f"{row['lr']:g}",
                short(row["ms_per_step"], 3),
                f"{row['parameters']:,}",
            ]
        )
    head = (
        *("trained by", "test loss", "lift minus it (95 % interval)", "at half the steps"),
        *("at equal time", "chosen rate", "ms a step", "parameters"),
    )
    return markdown(head, rows)


def common(name: str) -> str:
    """The table at the one rate 0.001."""
    section = read(name)["fixed_rate"]
    rows = [
        [arm, score_text(section["arms"][arm]["test"]), interval_text(found) if found else ""]
        for arm in complete(section)
        for found in [difference(section, "lift", arm) if arm != "lift" else None]
    ]
    return markdown(("trained by", "test loss at rate 0.001", "lift minus it (95 % interval)"), rows)


def overview(names: str) -> str:
    """One line for each comparison: every arm's loss, the tied best ones in bold."""
    return side_by_side({name: read(name) for name in names.split()})


def common_overview(names: str) -> str:
    """The same at the one rate 0.001."""
    return side_by_side({name: read(name)["fixed_rate"] for name in names.split()})


def verdict(name: str) -> str:
    """The answers of the report page."""
    return "\n".join(f"- *{question}* {answer}" for question, answer in verdicts(read(name))) + "\n"


def variation(names: str) -> str:
    """Total variation to the exact density, for each comparison and arm."""
    results = [read(name) for name in names.split()]
    arms = list(dict.fromkeys(arm for result in results for arm in result["arms"]))
    rows = [
        [
            result["problem"],
            *(score_text(result["arms"][arm]["metrics"].get("total_variation")) for arm in arms),
        ]
        for result in results
    ]
    return markdown(("target", *arms), rows)


def rates(name: str) -> str:
    """Every arm's mean validation loss at every rate."""
    result = read(name)
    tried = [f"{row['lr']:g}" for row in next(iter(result["arms"].values()))["rates"]]
    rows = [
        [
            arm,
            *(
                "diverged" if row["validation"] is None else short(row["validation"])
                for row in figures["rates"]
            ),
        ]
        for arm, figures in result["arms"].items()
    ]
    return markdown(("trained by", *(f"at {rate}" for rate in tried)), rows)


def flow_step(name: str) -> str:
    """The table of benchmarks/flow_step.py."""
    result = json.loads((ROOT / "results" / name).read_text())
    rows = [[side, f"{ms:.1f}", f"{result['ratio'][side]:.2f}"] for side, ms in result["ms"].items()]
    return markdown(("one exact training step", "ms", "times ours"), rows)


def lift_step(name: str) -> str:
    """The table of benchmarks/lift_step.py."""
    result = json.loads((ROOT / "results" / name).read_text())
    rows = [
        [side, f"{row['ms']:.2f}", f"{row['ratio_to_softplus']:.2f}", f"{row['parameters_over_network']:.2f}"]
        for side, row in result["rows"].items()
    ]
    return markdown(("network, trained by", "ms a step", "times softplus", "parameters / network"), rows)


def flow_inverse(name: str) -> str:
    """The table of benchmarks/flow_inverse.py."""
    result = json.loads((ROOT / "results" / name).read_text())
    rows = [
        [side, f"{row['ms']:.0f}", f"{row['ratio']:.1f}", f"{row['converged']} of {result['shape']['rows']}"]
        for side, row in result["rows"].items()
    ]
    return markdown(("inverse of a trained block", "ms", "times ours", "rows within 1e-8"), rows)


KINDS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        *(comparison, common, overview, common_overview, verdict, variation, rates),
        *(flow_step, flow_inverse, lift_step),
    )
}


def read(name: str) -> Result:
    """The result in that folder of results/."""
    return read_result(ROOT / "results" / name)


def side_by_side(sections: Mapping[str, Result]) -> str:
    """Every arm's loss in each section, the lowest mean and the arms tied with it in bold."""
    arms = list(dict.fromkeys(arm for section in sections.values() for arm in section["arms"]))
    rows = []
    for name, section in sections.items():
        best = tied_with_best(section)
        cells = [score_text(section["arms"][arm]["test"]) if arm in section["arms"] else "" for arm in arms]
        marked = [f"**{cell}**" if arm in best else cell for arm, cell in zip(arms, cells, strict=True)]
        rows.append([name, *marked])
    return markdown(("problem", *arms), rows)


def complete(section: Result) -> list[str]:
    """Every arm, lowest loss first, those without a loss last."""
    order = ranking(section)
    return order + [arm for arm in section["arms"] if arm not in order]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rewritten(text: str) -> str:
    """The text with everything between its marks made anew."""
    return MARKED.sub(lambda match: match[1] + KINDS[match[2]](match[3]) + match[4], text)


def main() -> int:
    stale = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale = True
            if "--check" not in sys.argv[1:]:
                page.write_text(after, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
