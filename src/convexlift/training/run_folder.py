"""The files of one training run, written so that a kill at any point leaves a run that resumes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from convexlift.files import cannot_write, write_json, write_whole

FORMAT = "convexlift run 2"

CONFIG, METRICS, STATE, RESULT = "config.json", "metrics.jsonl", "state.pt", "result.json"
BEST = "best.safetensors"  # the module in training, at its best evaluation
MODEL = "model.safetensors"  # what it becomes: the finished, frozen model, which `convexlift.save` writes

# The one entry of a checkpoint's safetensors metadata: several would be written in an order of chance.
CHECKPOINT = "convexlift run"

State = dict[str, Any]


@final
class RunFolder:
    """A folder with `config.json`, `metrics.jsonl`, `best.safetensors`, `state.pt` and `result.json`.

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
        """Return the checkpoint to resume from, None when there is none yet; nothing is written.

        A new run is begun by `begin`, once all that it needs has been checked.
        """
        config = json.loads(json.dumps(config))
        started = any((self.path / name).exists() for name in (CONFIG, STATE))
        if started and not resume:
            raise FileExistsError(f"{self.path} already holds a run; pass resume=True or another run_dir")
        if started:
            state = self.read_state()
            self._check_config(config)
            for torn in self.path.glob(".*.part"):  # left by a kill in the middle of a write
                torn.unlink(missing_ok=True)
            return state
        return None

    def begin(self, config: dict[str, Any]) -> None:
        """Write down what the run is, unless it has begun."""
        if not (self.path / CONFIG).exists():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(self.path, error) from error
            self._write(CONFIG, write_json, config)

    def read_state(self) -> State | None:
        """Return the last checkpoint, on the CPU, or None when the run was stopped before its first one."""
        path = self.path / STATE
        try:
            payload = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a readable checkpoint (truncated, or something else)") from error
        found = state.get("format") if isinstance(state, dict) else None
        if found == "convexlift run 1":  # where checkpoint and finished model shared a file name
            raise ValueError(
                f"{path} was written by convexlift 0.1.0, whose runs only that version can resume: go on "
                "there, or begin a new run in another folder"
            )
        if found != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of a convexlift run")
        return state

    def write_state(self, state: State) -> None:
        """Complete a checkpoint: from here on the run resumes from this state."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        self._write(STATE, write_whole, buffer.getvalue())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        self._write(METRICS, _append, _line(record))

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl`, so that it ends where the checkpoint ends."""
        self._write(METRICS, write_whole, b"".join(map(_line, records)))

    def write_model(self, state_dict: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the tensors of a module's state, and what there is to say of it, to `best.safetensors`."""
        tensors = {k: v.detach().cpu() for k, v in state_dict.items() if isinstance(v, Tensor)}
        tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        self._write(BEST, write_whole, save(tensors, {CHECKPOINT: json.dumps(about)}))

    def read_model(self) -> tuple[State, int]:
        """The state of the module in training at its best evaluation so far, and the step of that."""
        path = self.path / BEST
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: the run has not been evaluated yet")
        try:
            with safe_open(path, framework="pt", device="cpu") as archive:
                about = json.loads(archive.metadata()[CHECKPOINT])
                return {name: archive.get_tensor(name) for name in archive.keys()}, int(about["step"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a readable checkpoint (truncated, or something else)") from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        self._write(RESULT, write_json, result)

    def _check_config(self, config: dict[str, Any]) -> None:
        path = self.path / CONFIG
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing, so nothing says which run {self.path} holds") from error
        except ValueError as error:
            raise ValueError(f"{path} is not readable JSON") from error
        if not isinstance(before, dict):
            raise ValueError(f"{path} is not the configuration of a run")
        for key in [*config, *before]:
            if before.get(key) != config.get(key):
                was, now = _value(before, key), _value(config, key)
                raise ValueError(f"cannot resume {self.path}: {key} was {was} and is now {now}")

    def _write(self, name: str, write: Callable[[Path, Any], None], content: Any) -> None:
        try:
            write(self.path / name, content)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; the last complete checkpoint stands") from error


def _append(path: Path, line: bytes) -> None:
    try:
        with open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _value(config: dict[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "not set"
