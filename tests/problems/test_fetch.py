"""Downloads from a server on this machine: whole, broken off, refused, and what is not as expected."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from convexlift.locks import owned
from convexlift.problems.published import fetch as fetching
from convexlift.problems.published.fetch import Download, check_address, fetch
from convexlift.problems.published.tables import TextTable

TABLE = TextTable("rows.txt", columns=(0, 1))
GOOD = gzip.compress(
    "\n".join(["a b", *(f"{x} {y}" for x, y in np.random.default_rng(0).random((4000, 2)))]).encode(), mtime=0
)
SHA = hashlib.sha256(GOOD).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at /files/rows.txt.gz and remembers the ranges that were asked for."""

    daemon_threads = True
    content = GOOD
    stop: int | None = None  # breaks off after so many bytes
    length = True  # announces the length
    redirect: str | None = None
    asked: list[str | None]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.redirect and self.path == "/files/rows.txt.gz":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if self.path not in ("/files/rows.txt.gz", "/moved"):
            self.send_error(404)
            return
        body = server.content
        self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.stop is None else body[: server.stop])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wanted = Download("/files/rows.txt.gz", TABLE, 4000)
    monkeypatch.setattr(fetching, "DOWNLOADS", {"power": (wanted,)})
    monkeypatch.setattr(fetching, "CHUNK", 10_000)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_checked_and_recorded(server, tmp_path):
    seen = []
    home = tmp_path / "new" / "power"
    found = fetch("power", home, archive=server.address, progress=lambda *what: seen.append(what))
    assert (home / "rows.txt.gz").read_bytes() == GOOD and names(home) == ["SOURCE.json", "rows.txt.gz"]
    record = json.loads((home / "SOURCE.json").read_text())
    assert record == found
    date = record["rows.txt.gz"].pop("date")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    assert record["rows.txt.gz"] == {
        "url": f"{server.address}/files/rows.txt.gz",
        "bytes": len(GOOD),
        "sha256": SHA,
        "rows": 4000,
    }
    assert ("downloading rows.txt.gz", len(GOOD), len(GOOD)) in seen
    assert seen[-1] == ("checking rows.txt.gz", 4000, 4000)


def test_a_second_fetch_only_compares(server, tmp_path):
    first = fetch("power", tmp_path, archive=server.address)
    assert fetch("power", tmp_path, archive="https://127.0.0.1:1") == first and len(server.asked) == 1
    (tmp_path / "rows.txt.gz").write_bytes(GOOD[:-1])
    with pytest.raises(
        ValueError, match=r"rows\.txt\.gz differs from its record in SOURCE\.json: move it away"
    ):
        fetch("power", tmp_path, archive=server.address)
    (tmp_path / "rows.txt.gz").unlink()
    assert fetch("power", tmp_path, archive=server.address)["rows.txt.gz"]["sha256"] == SHA


def test_other_bytes_than_recorded_are_rejected(server, tmp_path):
    fetch("power", tmp_path, archive=server.address)
    (tmp_path / "rows.txt.gz").unlink()
    server.content = gzip.compress(gzip.decompress(GOOD), compresslevel=1, mtime=0)
    with pytest.raises(ValueError, match=f"its SHA-256 is [0-9a-f]{{64}}, not {SHA} as in SOURCE.json"):
        fetch("power", tmp_path, archive=server.address)
    assert names(tmp_path) == ["SOURCE.json", "rows.txt.gz.rejected"]


def test_a_file_without_a_record_is_left_alone(server, tmp_path):
    (tmp_path / "rows.txt.gz").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"SOURCE\.json does not record it: move it away"):
        fetch("power", tmp_path, archive=server.address)
    (tmp_path / "SOURCE.json").write_text('{"rows.txt.gz": 3}')
    with pytest.raises(ValueError, match=r"SOURCE\.json is not a record of downloads"):
        fetch("power", tmp_path, archive=server.address)
    assert (tmp_path / "rows.txt.gz").read_bytes() == b"mine" and server.asked == []


def test_an_interrupted_download_leaves_nothing_and_begins_anew(server, tmp_path):
    server.stop = 20_000
    with pytest.raises(ConnectionError, match=rf"broke off after 20,000 of {len(GOOD):,} bytes; fetch again"):
        fetch("power", tmp_path, archive=server.address)
    assert names(tmp_path) == []
    server.stop = None
    assert fetch("power", tmp_path, archive=server.address)["rows.txt.gz"]["sha256"] == SHA
    assert server.asked == [None, None]  # never a range


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("there", [len(GOOD), len(GOOD) + 5, 100])
def test_whatever_part_is_there_the_whole_comes_out(server, tmp_path, there, length):
    server.length = length
    (tmp_path / "rows.txt.gz.part").write_bytes((b"other" + GOOD + b"other")[:there])
    assert fetch("power", tmp_path, archive=server.address)["rows.txt.gz"]["sha256"] == SHA
    assert (tmp_path / "rows.txt.gz").read_bytes() == GOOD and names(tmp_path) == [
        "SOURCE.json",
        "rows.txt.gz",
    ]


def test_a_download_that_is_stopped_by_hand_leaves_nothing(server, tmp_path):
    def stop(doing, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("power", tmp_path, archive=server.address, progress=stop)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>moved</html>\n<p>\n", "rows.txt.gz, line 2: expected 2 numbers; got '<p>'"),
        (b"a b\n1 2\n3 4\n", "expected 4,000 rows; got 2"),
        (b"a b\n" + b"1 2\n3 2\n" * 2000, "column 2 is constant"),
        (b"a b\n1 inf\n", "rows.txt.gz, line 2: cell 2 is inf"),
        (b"", "expected 4,000 rows; got 0"),
        (GOOD[:-30], "rows.txt.gz is damaged or truncated"),
    ],
)
def test_another_content_is_rejected(server, tmp_path, content, message):
    server.content = content
    with pytest.raises(ValueError) as error:
        fetch("power", tmp_path, archive=server.address)
    place = f"(kept as {tmp_path / 'rows.txt.gz.rejected'})"
    assert str(error.value) == f"{server.address}/files/rows.txt.gz is not as expected: {message} {place}"
    assert names(tmp_path) == ["rows.txt.gz.rejected"]


def test_short_content_of_unknown_length_is_rejected(server, tmp_path):
    server.stop, server.length = 25_000, False
    with pytest.raises(ValueError, match="is damaged or truncated"):
        fetch("power", tmp_path, archive=server.address)


def test_no_server_and_no_file(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=rf"^cannot reach {address}: .*refused"):
        fetch("power", tmp_path, archive=f"http://{address}")
    with pytest.raises(ConnectionError, match=r"^http.*/rows\.txt\.gz: the server answered 404 Not Found$"):
        fetch("power", tmp_path, archive=f"{server.address}/elsewhere")
    assert names(tmp_path) == []


def test_redirects_are_followed_to_allowed_addresses(server, tmp_path):
    server.redirect = "http://archive.example/rows.txt.gz"
    with pytest.raises(ValueError, match=r"^refused to download http://archive\.example.*: only https is"):
        fetch("power", tmp_path, archive=server.address)
    server.redirect = "/moved"
    assert fetch("power", tmp_path, archive=server.address)["rows.txt.gz"]["sha256"] == SHA


def test_addresses():
    for allowed in ("https://archive.ics.uci.edu/x", "http://127.0.0.1:8/x", "http://[::1]/x"):
        check_address(allowed)
    for refused in ("http://archive.ics.uci.edu/x", "ftp://127.0.0.1/x", "file:///etc/hosts", "x"):
        with pytest.raises(ValueError, match="only https is allowed$"):
            check_address(refused)
    with pytest.raises(ValueError, match="only https is allowed$"):
        check_address("http://127.0.0.1/x", "https://archive.ics.uci.edu/x")
    for name, files in fetching.DOWNLOADS.items():
        for wanted in files:
            check_address(fetching.ARCHIVE + wanted.path)
            assert wanted.name in wanted.table.names, name


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=f"cannot make the folder {tmp_path / 'file' / 'here'}: Not a directory"
    ):
        fetch("power", tmp_path / "file" / "here", archive=server.address)
    (tmp_path / "rows.txt.gz.part").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*rows\.txt\.gz\.part: Is a directory"):
        fetch("power", tmp_path, archive=server.address)


def test_a_full_disk_leaves_nothing_and_is_named(server, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
        with pytest.raises(OSError, match=r"cannot write .*rows\.txt\.gz\.part: File too large"):
            fetch("power", tmp_path, archive=server.address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []
    assert fetch("power", tmp_path, archive=server.address)["rows.txt.gz"]["sha256"] == SHA


def test_one_process_downloads_into_a_folder_at_a_time(server, tmp_path):
    with owned(tmp_path), pytest.raises(BlockingIOError, match="is in use by another process: wait until"):
        fetch("power", tmp_path, archive=server.address)
    assert server.asked == [] and names(tmp_path) == []
    first = fetch("power", tmp_path, archive=server.address)
    assert names(tmp_path) == ["SOURCE.json", "rows.txt.gz"]
    with owned(tmp_path):  # what is there needs no lock
        assert fetch("power", tmp_path, archive=server.address) == first
