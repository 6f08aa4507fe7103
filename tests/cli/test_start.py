"""Help, version and refusals answer before anything slow is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import convexlift

HELP = ["", "--version", "--help", "train", "data", "data list"]
HELP += [f"{command} --help" for command in ("demo", "compare", "report", "ablate", "train", "data")]
HELP += [f"{command} --help" for command in ("evaluate", "sample", "transform")]
HELP += [
    f"{command} --help" for command in ("train flow", "train density", "data list", "data show", "data fetch")
]
REFUSED = {
    "comprae": "No such command",
    "train flwo": "No such command",
    "compare --sneed 3": "No such option",
    "train density --dpeth 3": "No such option",
    "train flow --out out": "Missing option '--data'",
    "evaluate runs/flow": "Missing option '--data'",
    "sample": "Missing argument",
    "train flow --data rows.csv --out out --steps none": "Invalid value for '--steps'",
    "train flow --data rows.csv --out out --steps 0": "Invalid value for '--steps'",
    "train flow --data rows.csv --out out --source lfit": "unknown source 'lfit'; known: projected",
    "train flow --data rows.csv --out out --schedule linear": "unknown schedule 'linear'; known: constant",
    "train flow --data rows.csv --out out --lr -1": "--lr must be positive",
    "train flow --data rows.csv --out out --validation-fraction 1": "--validation-fraction must lie between",
    "train density --data rows.csv --out out --objective map": "unknown objective 'map'; known: mle",
    "demo --seeds 0": "Invalid value for '--seeds'",
    "compare digitz": "unknown problem 'digitz'; did you mean 'digits21'?",
    "compare gumbel --arms lfit": "unknown way of training 'lfit'; known: projected",
    "compare gumbel --budget huge": "unknown budget 'huge'",
    "compare gumbel --objective map": "unknown objective 'map'",
    "compare gumbel --rates fast": "--rates: 'fast' is not a number",
    "ablate gambel": "unknown problem 'gambel'",
    "ablate gumbel --optimizer muon": "unknown optimizer 'muon'",
    "data show nothing": "unknown problem 'nothing'",
}
SLOW = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "pandas", "rich")
# One process for all calls: what one of them loads is found at that call.
PROGRAM = """
import contextlib, io, json, sys
from convexlift.cli.main import main
answers = {}
for call in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(call.split())
    slow = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    answers[call] = [code, out.getvalue(), err.getvalue(), slow]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """Exit code, stdout, stderr and slow modules of every call."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([*HELP, *REFUSED]), json.dumps(SLOW)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path_factory.mktemp("start"),
        env={"PYTHONPATH": str(Path(convexlift.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("call", HELP)
def test_help_loads_nothing_slow(call: str, answers: dict[str, tuple[int, str, str, list[str]]]) -> None:
    code, out, err, slow = answers[call]
    assert (code, err, slow) == (0, "", []) and out


@pytest.mark.parametrize("call", REFUSED)
def test_a_refusal_loads_nothing_slow(call: str, answers: dict[str, tuple[int, str, str, list[str]]]) -> None:
    code, out, err, slow = answers[call]
    assert code in (1, 2) and out == "" and slow == []
    assert err.startswith("error: ") and REFUSED[call] in err
