"""The files of one training run, written so that a kill at any point leaves a run that resumes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save
from torch import Tensor

FORMAT = "convexlift run 1"

# The one entry of a checkpoint's safetensors metadata: several would be written in an order of chance.
CHECKPOINT = "convexlift run"

State = dict[str, Any]


@final
class RunFolder:
    """A folder with `config.json`, `metrics.jsonl`, `model.safetensors`, `state.pt` and `result.json`.

    `state.pt` alone decides where a run stands; the other files are written before it and are brought into
    step with it on resuming. Every file is replaced as a whole (a temporary file in the same folder, fsync,
    rename); a line of `metrics.jsonl` is appended, and cut off again if its checkpoint was never completed.

    Raises:
        OSError: a file cannot be written; the files already there stay as they were.
        ValueError: a file that is read is damaged, or belongs to another run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def open(self, config: dict[str, Any], *, resume: bool) -> State | None:
        """Start a run, or return the checkpoint to resume from (None when there is none yet)."""
        config = json.loads(json.dumps(config))
        started = any((self.path / name).exists() for name in ("config.json", "state.pt"))
        if started and not resume:
            raise FileExistsError(f"{self.path} already holds a run; pass resume=True or another run_dir")
        if started:
            self._check_config(config)
            return self.read_state()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._write_json("config.json", config)
        return None

    def read_state(self) -> State | None:
        """Return the last checkpoint, on the CPU, or None when the run was stopped before its first one."""
        path = self.path / "state.pt"
        try:
            payload = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a readable checkpoint (truncated, or something else)") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of a convexlift run")
        return state

    def write_state(self, state: State) -> None:
        """Complete a checkpoint: from here on the run resumes from this state."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        self._replace("state.pt", buffer.getvalue())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "ab") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(path, error) from error

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl`, so that it ends where the checkpoint ends."""
        self._replace("metrics.jsonl", b"".join(map(_line, records)))

    def write_model(self, state_dict: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the tensors of a module's state, and what there is to say of it, to `model.safetensors`."""
        tensors = {k: v.detach().cpu() for k, v in state_dict.items() if isinstance(v, Tensor)}
        tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        self._replace("model.safetensors", save(tensors, {CHECKPOINT: json.dumps(about)}))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        self._write_json("result.json", result)

    def _check_config(self, config: dict[str, Any]) -> None:
        path = self.path / "config.json"
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing, so nothing says which run {self.path} holds") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is not readable JSON") from error
        if not isinstance(before, dict):
            raise ValueError(f"{path} is not the configuration of a run")
        for key in [*config, *before]:
            if before.get(key) != config.get(key):
                was, now = _value(before, key), _value(config, key)
                raise ValueError(f"cannot resume {self.path}: {key} was {was} and is now {now}")

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self._replace(name, (json.dumps(value, indent=2) + "\n").encode())

    def _replace(self, name: str, payload: bytes) -> None:
        path, temporary = self.path / name, self.path / f".{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and the rename is journalled
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _cannot_write(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    # The class is chosen by the number, so that a PermissionError stays one.
    return OSError(error.errno, f"cannot write {path}: {reason}; the last complete checkpoint stands")


def _value(config: dict[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "not set"
