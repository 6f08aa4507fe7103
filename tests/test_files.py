"""Files written in one piece: modes, links, other writers, failures."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from convexlift import files
from convexlift.files import make_folder, write_json, write_whole

posix = pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")


@pytest.fixture
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o7777


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
@pytest.mark.parametrize(("mask", "expected"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path, mask: int, expected: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"new")
        write_json(tmp_path / "b.json", {})
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "b.json") == expected


@posix
@pytest.mark.parametrize("kept", [0o600, 0o640, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, private: None, kept: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")
    file.chmod(kept)
    write_whole(file, b"new")
    assert (mode(file), file.read_bytes()) == (kept, b"new")
    os.umask(0)
    write_whole(file, b"newer")
    assert mode(file) == kept


@posix
def test_a_private_file_is_never_readable_by_others_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "a", []
    file.write_bytes(b"old")
    file.chmod(0o600)
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.extend(map(mode, tmp_path.iterdir())))
    write_whole(file, b"secret")
    assert set(seen) == {0o600}


@posix
def test_what_a_link_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, far = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "far"
    target.write_bytes(b"old")
    link.symlink_to("there/target")
    far.symlink_to(link)
    write_whole(far, b"new")
    assert link.is_symlink() and far.is_symlink() and target.read_bytes() == b"new"
    assert names(tmp_path / "there") == ["target"] and names(tmp_path) == ["far", "link", "there"]
    target.unlink()
    write_whole(link, b"made")  # a link to nothing yet
    assert link.is_symlink() and target.read_bytes() == b"made"


WRITER = """
import sys
from pathlib import Path
from convexlift.files import write_whole
for k in range(60):
    write_whole(sys.argv[1], bytes([65 + k % 26]) * 50_000)
"""


def test_processes_that_write_one_file_never_leave_a_torn_one(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_whole(file, b"A" * 50_000)
    source = str(Path(files.__file__).parents[1])
    call = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen(call, env={**os.environ, "PYTHONPATH": source}) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        content = file.read_bytes()
        assert len(content) == 50_000 and len(set(content)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a"]


def test_threads_never_share_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen, faults = tmp_path / "a", [], []
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (seen.append(str(a)), replace(a, b)))

    def write(letter: bytes) -> None:
        try:
            for _ in range(25):
                write_whole(file, letter * 5_000)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"A", b"B", b"C", b"D")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and len(set(seen)) == len(seen) == 100
    assert len(set(file.read_bytes())) == 1 and names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_failure_leaves_the_old_content_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "a"
    file.write_bytes(b"old")
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError) as error:
        write_whole(file, b"new")
    assert error.value.errno == number
    assert error.value.strerror == f"cannot write {file}: {os.strerror(number)}"
    assert isinstance(error.value, PermissionError) == (number == errno.EACCES)
    assert file.read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_write_that_is_interrupted_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "a"
    file.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none/a: No such file or directory$"):
        write_whole(tmp_path / "none" / "a", b"")
    with pytest.raises(NotADirectoryError, match=r"cannot write .*file/a: Not a directory$"):
        write_whole(tmp_path / "file" / "a", b"")
    with pytest.raises(IsADirectoryError, match="cannot write .*: Is a directory$"):
        write_whole(tmp_path, b"")
    with pytest.raises(NotADirectoryError, match=r"cannot make the folder .*file/here: Not a directory$"):
        make_folder(tmp_path / "file" / "here")
    with pytest.raises(FileExistsError, match=r"cannot make the folder .*file: File exists$"):
        write_json(tmp_path / "file" / "a.json", {})
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    file = tmp_path / "new" / "a.json"
    write_json(file, {"loss": 1.5, "lost": None})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": [1.0, value]})
    assert json.loads(file.read_text()) == {"loss": 1.5, "lost": None} and names(file.parent) == ["a.json"]
