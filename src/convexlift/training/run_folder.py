"""The files of one training run, written so that a kill at any point leaves a run that resumes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from convexlift.files import cannot_write, write_json, write_whole
from convexlift.locks import owned

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

    As a context manager it is one run's alone, from `open` on where the folder is there, else from `begin`,
    until it is left.

    Raises:
        BlockingIOError: another run is in progress there.
        OSError: a file cannot be written; the files already there stay as they were.
        ValueError: a file that is read is damaged, or belongs to another run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._owned: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned is not None:
            self._owned.close()
            self._owned = None

    def open(self, config: dict[str, Any], *, resume: bool) -> State | None:
        """Return the checkpoint to resume from, None where a run is to begin; no file of a run is written.

        A new run is begun by `begin`, once all that it needs has been checked.
        """
        if self.path.is_dir():
            self._own()
        if not self.started:
            return None
        if not resume:
            self._check_replaceable()
            return None
        state = self.read_state()
        self._check_config(json.loads(json.dumps(config)))
        return state

    def begin(self, config: dict[str, Any]) -> None:
        """Write down what the run is; a run that came to nothing makes way."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if self._own():
            self._check_replaceable()  # it may have been begun by another process since `open`
        if self.replaceable:  # in an order in which a kill leaves it so
            for name in (METRICS, BEST, STATE, RESULT, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        if not self.started:
            self._write(CONFIG, write_json, config)

    @property
    def started(self) -> bool:
        """Whether the folder holds a run."""
        return any((self.path / name).exists() for name in (CONFIG, STATE))

    @property
    def replaceable(self) -> bool:
        """Whether the folder holds a run that came to nothing: it diverged, or was killed as it began."""
        if not self.started or self._stopped() == "diverged":
            return self.started
        if (self.path / METRICS).exists() or (self.path / RESULT).exists():
            return False
        try:
            state = self.read_state()
            return state is None or state["progress"]["step"] == 0
        except (ValueError, KeyError, TypeError):
            return False

    def _check_replaceable(self) -> None:
        if self.started and not self.replaceable:
            raise FileExistsError(f"{self.path} already holds a run; pass resume=True or another run_dir")

    def _stopped(self) -> str | None:
        try:
            return str(json.loads((self.path / RESULT).read_bytes())["stopped"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _own(self) -> bool:
        """Become the owner of the folder; whether it was not ours before."""
        if self._owned is not None:
            return False
        with ExitStack() as stack:
            stack.enter_context(owned(self.path))
            self._owned = stack.pop_all()
        return True

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

    def go_on(self, records: list[dict[str, Any]]) -> None:
        """Bring the other files into step with the checkpoint: `metrics.jsonl` ends where it ends."""
        if self._stopped() == "diverged":
            (self.path / RESULT).unlink()  # it may end otherwise now
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

    def read_config(self) -> dict[str, Any]:
        """What the run is, as `begin` wrote it down."""
        path = self.path / CONFIG
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing, so nothing says which run {self.path} holds") from error
        except ValueError as error:
            raise ValueError(f"{path} is not readable JSON") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} is not the configuration of a run")
        return config

    def _check_config(self, config: dict[str, Any]) -> None:
        before = self.read_config()
        for key in [*config, *before]:
            if before.get(key) != config.get(key):
                was, now = _value(before, key), _value(config, key)
                advice = (
                    "; that run came to nothing: without resume it is begun anew" if self.replaceable else ""
                )
                raise ValueError(f"cannot resume {self.path}: {key} was {was} and is now {now}{advice}")

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
