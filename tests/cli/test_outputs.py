"""Where a command may write, and which rows it trains on, before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convexlift.cli import outputs as files
from convexlift.cli.main import main


def test_rows_that_cannot_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "t.csv"
    for text, message in (
        ("a,b\n1,2\n", "t.csv has one row; training needs at least two"),
        ("a,b\n0,1\n0,2\n", "t.csv: column 'a' is constant (every value is 0)"),
    ):
        data.write_text(text)
        assert main(["train", "flow", "--data", str(data), "--out", str(tmp_path / "run")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_outputs(tmp_path: Path) -> None:
    there = tmp_path / "t.csv"
    there.write_text("1\n")
    with pytest.raises(FileExistsError, match=r"t.csv exists; pass --force to replace it"):
        files.check_output_file(there)
    assert files.check_output_file(there, force=True) == there
    with pytest.raises(ValueError, match=r"cannot write .*t.txt: its name must end in .csv, .npy or .npz"):
        files.check_output_file(tmp_path / "t.txt")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*: there is no folder"):
        files.check_output_file(tmp_path / "none" / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*folder.csv: it is a folder"):
        files.check_output_file(tmp_path / "folder.csv")
    assert files.check_output_folder(tmp_path / "new" / "deep").is_dir()
    with pytest.raises(OSError, match=r"cannot make the folder .*t.csv/run: Not a directory"):
        files.check_output_folder(there / "run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write into the folder"):
        files.check_output_folder(tmp_path)
