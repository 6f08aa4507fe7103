#!/usr/bin/env python3
"""Write the tables in README.md anew from the files in results/.

    python scripts/tables.py            rewrite
    python scripts/tables.py --check    exit 1 if anything would change

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def comparison(result: dict[str, Any]) -> str:
    """The main table of one comparison."""
    digits = 4 if result["task"] == "density" else 3
    lines = [
        "| trained by | test loss | lift minus it (95 % interval) | half budget | chosen rate | ms/step |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in sorted(result["arms"].items(), key=lambda item: item[1]["test"]["mean"]):
        pair = result["pairs"].get(f"lift-{name}")
        difference = ""
        if pair is not None:
            low, high = pair["ci95"]
            difference = f"{pair['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
        half = arm["half_budget"]["mean"]
        test = f"{arm['test']['mean']:.{digits}f} ± {arm['test']['sem']:.{digits}f}"
        cells = (name, test, difference, f"{half:.{digits}f}", f"{arm['lr']:g}", f"{arm['ms_per_step']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def flow_step(result: dict[str, Any]) -> str:
    """The table of benchmarks/flow_step.py."""
    lines = ["| one exact training step | ms | times ours |", "|---|---|---|"]
    for name, ms in result["ms"].items():
        lines.append(f"| {name} | {ms:.1f} | {result['ratio'][name]:.2f} |")
    return "\n".join(lines) + "\n"


def table(name: str) -> str:
    if name == "flow_step":
        return flow_step(json.loads((ROOT / "results" / "flow_step.json").read_text()))
    return comparison(json.loads((ROOT / "results" / name / "result.json").read_text()))


def rewritten(text: str) -> str:
    return MARKED.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def main() -> int:
    before = README.read_text()
    after = rewritten(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
