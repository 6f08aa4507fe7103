"""Cells: outcomes, their files, resuming, and independence of the number of jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from convexlift.files import write_json
from convexlift.study import digest
from convexlift.study.cells import Cell, Named, Setting, cell_path, read_outcome
from convexlift.study.protocol import Budget
from convexlift.study.training import train_cell
from convexlift.study.workers import Workers

TINY = Budget("tiny", 6, 32, (0.01,), 1, 1, extensions=0, architecture=(("hidden", (8, 8)),))
GUMBEL = Setting(Named("gumbel"), TINY)
LIFT, SOFTPLUS = Cell("lift", 0.01, 0, 6), Cell("softplus", 0.01, 0, 6)
TIMES = ("seconds", "ms_per_step")


def timeless(outcome):
    return {key: value for key, value in outcome.items() if key not in TIMES}


def test_an_outcome_holds_what_the_result_needs():
    outcome = train_cell(GUMBEL, LIFT)
    assert outcome["status"] == "finished" and outcome["cell"]["arm"] == "lift"
    assert outcome["test"] == pytest.approx(sum(outcome["rows"]) / len(outcome["rows"]), rel=1e-5)
    assert outcome["steps"] == [1, 2, 3, 4, 5, 6] and len(outcome["curve"]) == len(outcome["test_curve"]) == 6
    assert min(outcome["curve"]) == pytest.approx(outcome["validation"])
    assert outcome["test_curve"][-1] == pytest.approx(outcome["test"], rel=1e-4)
    assert set(outcome["metrics"]) == {"total_variation", "hellinger", "kl"}
    assert outcome["metrics"]["kl"] == pytest.approx(outcome["test"], abs=0.1)
    assert outcome["parameters"] > 0 and outcome["ms_per_step"] > 0
    json.dumps(outcome, allow_nan=False)


def test_the_mechanism_is_watched():
    lift, softplus = train_cell(GUMBEL, LIFT), train_cell(GUMBEL, SOFTPLUS)
    assert lift["emission_noise"]["start"] > 0.001 and lift["emission_noise"]["end"] > 0
    assert softplus["emission_noise"] is None and softplus["step_amplification"] is None
    assert lift["step_amplification"]["start"] > 1
    for outcome in (lift, softplus):
        assert 0 <= outcome["shoulder"]["start"] <= 1 and outcome["at_zero"]["end"] == 0
        assert outcome["fan_in_weight"]["end"] > 0 and outcome["relative_speed"]["end"] > 0


def test_selection_cells_are_not_watched():
    outcome = train_cell(GUMBEL, Cell("lift", 0.01, 1000, 6, scored=False))
    assert outcome["test_curve"] == [] and outcome["emission_noise"] is None and outcome["metrics"] == {}


def test_cells_use_one_thread_and_give_the_threads_back():
    before = torch.get_num_threads()
    train_cell(GUMBEL, SOFTPLUS)
    assert torch.get_num_threads() == before


def test_stored_outcomes_are_used_again(tmp_path):
    with Workers(GUMBEL, tmp_path, jobs=1) as workers:
        first = dict(workers.run([SOFTPLUS]))
    path = cell_path(tmp_path, GUMBEL, SOFTPLUS)
    assert read_outcome(path) == first[SOFTPLUS]
    marked = {**first[SOFTPLUS], "test": -7.0}
    write_json(path, marked)
    with Workers(GUMBEL, tmp_path, jobs=1) as workers:
        assert dict(workers.run([SOFTPLUS]))[SOFTPLUS]["test"] == -7.0
    with Workers(GUMBEL, tmp_path, jobs=1, resume=False) as workers:
        assert timeless(dict(workers.run([SOFTPLUS]))[SOFTPLUS]) == timeless(first[SOFTPLUS])


def test_a_broken_file_is_run_again(tmp_path):
    path = cell_path(tmp_path, GUMBEL, SOFTPLUS)
    path.write_text('{"status": "fini')
    assert read_outcome(path) is None
    path.write_bytes(bytes(range(256)))
    assert read_outcome(path) is None
    with Workers(GUMBEL, tmp_path, jobs=1) as workers:
        assert dict(workers.run([SOFTPLUS]))[SOFTPLUS]["status"] == "finished"
    assert read_outcome(path) is not None


def test_files_of_other_settings_are_not_mixed_up(tmp_path):
    larger = Setting(Named("gumbel"), Budget("tiny", 6, 64, (0.01,), 1, 1, extensions=0))
    other = Setting(Named("laplace"), TINY)
    paths = {cell_path(tmp_path, setting, SOFTPLUS) for setting in (GUMBEL, larger, other)}
    assert len(paths) == 3
    odd = Cell("a/b c", 0.01, 0, 6)
    assert cell_path(tmp_path, GUMBEL, odd).name.startswith("a_b_c-lr0.01-seed0-steps6-")


@pytest.fixture
def package(tmp_path) -> Path:
    copied = tmp_path / "convexlift"
    shutil.copytree(digest.PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def digest_of(package: Path, *scripts: Path) -> str:
    digest.code_digest.cache_clear()
    return digest.code_digest(*scripts, package=package)


def test_the_digest_of_the_code_ignores_comments_and_docstrings(package):
    before = digest_of(package)
    lift = package / "sources" / "lift.py"
    for added in ("# a remark\n", '"""Another string."""\n'):
        lift.write_text(lift.read_text() + added)
        assert digest_of(package) == before
    lift.write_text(lift.read_text() + "changed = 1\n")
    assert digest_of(package) != before


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("problems/baselines.py", True),
        ("problems/base.py", True),
        ("problems/published/tables.py", True),
        ("checks.py", True),
        ("data.py", True),
        ("calculus/logdet.py", True),
        ("mechanism/noise.py", True),
        ("study/scoring.py", True),
        ("study/report/page.py", False),
        ("plots/svg.py", False),
        ("cli/main.py", False),
    ],
)
def test_the_digest_covers_the_package_but_report_and_command_line(package, file, counts):
    before = digest_of(package)
    path = package / file
    path.write_text(path.read_text() + "changed = 1\n")
    assert (digest_of(package) != before) is counts


def test_the_digest_covers_the_script_of_a_study(package, tmp_path):
    script = tmp_path / "study.py"
    script.write_text("rate = 0.1\n")
    before = digest_of(package, script)
    assert before != digest_of(package)
    script.write_text("rate = 0.2  # changed\n")
    assert digest_of(package, script) != before


def test_writing_json_leaves_no_half_file(tmp_path):
    path = tmp_path / "deep" / "one.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in path.parent.iterdir()] == [
        "one.json"
    ]


def test_results_do_not_depend_on_the_number_of_jobs(tmp_path):
    cells = [LIFT, SOFTPLUS, Cell("projected", 0.01, 1, 6, scored=False)]
    with Workers(GUMBEL, tmp_path / "one", jobs=1) as workers:
        alone = dict(workers.run(cells))
    with Workers(GUMBEL, tmp_path / "two", jobs=2) as workers:
        together = dict(workers.run(cells))
        again = dict(workers.run(cells[:1]))
    for cell in cells:
        assert timeless(alone[cell]) == timeless(together[cell])
    assert again[LIFT] == together[LIFT]


def test_interrupting_ends_the_workers_and_keeps_what_was_finished(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from convexlift.study.cells import Cell, Named, Setting
            from convexlift.study.protocol import Budget
            from convexlift.study.workers import Workers

            if __name__ == "__main__":
                small = (("hidden", (8, 8)),)
                budget = Budget("tiny", 6, 32, (0.01,), 1, 1, extensions=0, architecture=small)
                cells = [Cell("softplus", 0.01, seed, 6) for seed in range(1)]
                cells += [Cell("softplus", 0.01, seed, 10**6) for seed in range(3)]
                try:
                    with Workers(Setting(Named("gumbel"), budget), Path(sys.argv[1]), jobs=2) as workers:
                        for cell, _ in workers.run(cells):
                            print("finished", cell.steps, flush=True)
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "cells")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout.readline() == "finished 6\n"
    os.killpg(process.pid, signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 15
    assert out == "interrupted\n" and "Traceback" not in err, err
    assert len(list((tmp_path / "cells").glob("softplus-*.json"))) == 1
    assert not list((tmp_path / "cells").glob(".*"))
