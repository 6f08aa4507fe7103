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

from convexlift.experiments.ablation import effects_table
from convexlift.experiments.report import read_result
from convexlift.experiments.statistics import paired_difference
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


def ablation(name: str) -> str:
    """What each ingredient of the lift does, every arm at its own best rate."""
    return markdown(*effects_table(read(name)))


def ablation_common(name: str) -> str:
    """The same at the one rate 0.001."""
    return markdown(*effects_table(read(name), "fixed_rate"))


def prediction(name: str) -> str:
    """How far softplus at the predicted rate is from the lift, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["prediction"]
    kinds = list(dict.fromkeys(row["lift"] for row in rows))
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in rows:
        gap = interval_text(over_seeds(row["relative_gap"])) if row["relative_gap"] else "diverged"
        factor = "" if row["factor"] is None else f"× {short(row['factor'], 2)}: "
        table.setdefault((row["problem"], row["optimizer"], row["lr"]), {})[row["lift"]] = factor + gap
    lines = [
        [problem, optimizer, f"{lr:g}", *(cells.get(kind, "") for kind in kinds)]
        for (problem, optimizer, lr), cells in table.items()
    ]
    return markdown(("problem", "optimiser", "rate", *kinds), lines)


def fluctuation(name: str) -> str:
    """The lift with its fluctuation only, coupled and independent, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["fluctuation"]
    base = {(row["problem"], row["batch"]): row for row in rows if row["trained_by"] == "softplus"}
    pairs: dict[tuple[str, int, float], dict[str, Result]] = {}
    for row in rows:
        if row["trained_by"] != "softplus":
            pairs.setdefault((row["problem"], row["batch"], row["scale"]), {})[row["trained_by"]] = row
    lines = []
    for (problem, batch, scale), sides in pairs.items():
        coupled, independent = sides["batch"], sides["independent"]
        losses = [side["test"]["per_seed"] for side in (coupled, independent)]
        noise = [value for value in coupled["emission_noise"] if value is not None]
        tests = [sum(p is not None and p <= 0.05 for p in side["p_value"]) for side in (coupled, independent)]
        lines.append(
            [
                *(problem, str(batch), f"{scale:g}"),
                f"{short(100 * sum(noise) / len(noise))} %" if noise else "–",
                *(
                    f"{short(sum(t) / len(t))}" if (t := traces(side)) else "–"
                    for side in (coupled, independent)
                ),
                f"{tests[0]} and {tests[1]} of {len(losses[0])}",
                score_text(base[problem, batch]["test"]),
                *(interval_text(side["minus_softplus"]) for side in (coupled, independent)),
                interval_text(paired_difference(*losses)) if None not in sum(losses, []) else "–",
            ]
        )
    head = (
        *("problem", "batch", "scale", "noise", "tr Σ_batch, coupled", "independent", "tests p ≤ 0.05"),
        *("softplus", "coupled minus it", "independent minus it", "coupled minus independent"),
    )
    return markdown(head, lines)


def settings(name: str) -> str:
    """Standardisation, readout and its scale, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["settings"]
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in rows:
        if row["trained_by"] == "lift":
            key = (str(row["standardise"]), row["readout"], row["scale"])
            table.setdefault(key, {})[row["problem"]] = interval_text(row["minus_softplus"])
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    lines = [
        [kind, readout, f"{scale:g}", *(cells.get(problem, "") for problem in problems)]
        for (kind, readout, scale), cells in table.items()
    ]
    return markdown(("summary", "readout", "scale", *problems), lines)


KINDS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        *(comparison, common, overview, common_overview, verdict, variation, rates),
        *(flow_step, flow_inverse, lift_step),
        *(ablation, ablation_common, prediction, fluctuation, settings),
    )
}


def over_seeds(values: Sequence[float]) -> Result:
    """The mean of some figures with its 95 % t-interval."""
    return paired_difference(values, [0.0] * len(values))


def traces(row: Result) -> list[float]:
    """The coupling of each seed that has one."""
    return [value for value in row["trace"] if value is not None]


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
