"""``convexlift data``: the problems that read files, and their downloads, as a user calls them."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from convexlift.cli.main import main
from convexlift.problems.published import fetch as fetching
from convexlift.problems.published import gas
from convexlift.problems.published.fetch import Download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server on this machine with 400 rows of the form of GAS; another one to work in."""
    served, work = tmp_path / "served", tmp_path / "work"
    served.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    rows = np.random.default_rng(0).normal(size=(400, 19))
    lines = ["header", *(" ".join(f"{cell:.4f}" for cell in row) for row in rows)]
    (served / "gas.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    wanted = Download("/gas.gz", gas.TABLE, 400)
    monkeypatch.setitem(fetching.DOWNLOADS, "gas", (wanted,))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(fetching, "ARCHIVE", f"http://127.0.0.1:{server.server_port}")
        yield served
        server.shutdown()
        thread.join()


def test_fetch_then_show(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "gas"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(Path("data/gas/SOURCE.json").read_text())["ethylene_CO.txt.gz"]
    assert out == (
        f"data/gas/ethylene_CO.txt.gz: {record['bytes']:,} bytes, 400 rows, SHA-256 {record['sha256']}\n"
        "use it with: convexlift compare gas --data data/gas\n"
    )
    assert err == ""
    assert main(["data", "fetch", "gas"]) == 0 and capsys.readouterr().out == out
    assert main(["data", "show", "gas", "--data", "data/gas"]) == 0
    shown = capsys.readouterr().out
    assert "16 gas sensors, 81 training / 9 validation / 10 test rows" in " ".join(shown.split())


def test_fetch_errors_are_one_line(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    (archive / "gas.gz").write_bytes(b"<html>\n")
    for call, message in (
        ("data fetch digits21", "there is nothing to download for 'digits21'; known: hepmass, miniboone, "),
        ("data fetch gas --out file/here", "cannot make the folder file/here: Not a directory"),
        ("data fetch gas --out here", f"{fetching.ARCHIVE}/gas.gz is not as expected: expected 400 rows"),
        ("data show power", "power needs --data household_power_consumption.txt (also .gz, .zip)"),
        ("compare miniboone --data none", "no such file: none"),
    ):
        assert main(call.split()) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
    (archive / "gas.gz").unlink()
    assert main("data fetch gas --out here".split()) == 1
    assert capsys.readouterr().err.endswith("/gas.gz: the server answered 404 File not found\n")
    assert [path.name for path in Path("here").iterdir()] == ["ethylene_CO.txt.gz.rejected"]


def test_help_names_the_problems_that_read_files(capsys: pytest.CaptureFixture[str]) -> None:
    for call in ("compare --help", "data show --help", "data fetch --help"):
        assert main(call.split()) == 0
        assert "hepmass, miniboone, power, gas" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "list"]) == 0
    assert "miniboone (reads files: --data)\n" in capsys.readouterr().out
