"""Frozen models as files: one safetensors file each, whose metadata says how to rebuild the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from convexlift.ambient import guarded
from convexlift.architectures import ICNN, PICNN, Architecture, ConvICNN
from convexlift.architectures.base import check_nonnegative_tensors
from convexlift.checks import name_dtype
from convexlift.counting import counted
from convexlift.files import write_whole
from convexlift.seeds import seeded
from convexlift.tasks import (
    ConditionalDensity,
    ConvexPotentialFlow,
    ConvexRegression,
    LogConcaveDensity,
    TransportMap,
)
from convexlift.tasks.ensemble import Ensemble
from convexlift.training.environment import environment
from convexlift.training.run_folder import BEST, CHECKPOINT, MODEL

SCHEMA = 2

# What can be saved, by the name that a file gives it; ``register`` adds to them.
KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        ICNN,
        PICNN,
        ConvICNN,
        ConvexPotentialFlow,
        Ensemble,
        LogConcaveDensity,
        ConditionalDensity,
        ConvexRegression,
        TransportMap,
    )
}


@guarded
def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a frozen model to one safetensors file, atomically; an existing file is replaced.

    Args:
        model: an ``ICNN``, ``PICNN``, ``ConvICNN``, ``ConvexPotentialFlow``, ``LogConcaveDensity``,
            ``ConditionalDensity``, ``ConvexRegression`` or ``TransportMap``, as ``freeze`` returns it, an
            ``Ensemble``, or a class of your own: see ``register``. Where it knows the names of its columns
            (``model.columns``, see ``Task``), the file does.
        path: the file; its folder must exist.

    Raises:
        TypeError: the model is of another kind.
        ValueError: it is not frozen, a weight is not finite or a constrained one negative, an activation is a
            user's own object, or ``columns`` has not as many names as there are columns.
        UnreliableEstimate: a ``LogConcaveDensity`` above two dimensions cannot be normalised.
        OSError: the file cannot be written; what was there before is untouched.

    Example:
        >>> import convexlift as cl, tempfile
        >>> net = cl.ICNN(2, hidden=(8, 8), seed=0).freeze()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, f"{folder}/net.safetensors")
        ...     again = load(f"{folder}/net.safetensors")
        >>> x = torch.ones(3, 2)
        >>> torch.equal(net(x), again(x))
        True
    """
    described = _described(model)
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"this {type(model).__name__} is still in training: save model.freeze(data)")
    config = {
        "schema": SCHEMA,
        "convexlift": environment()["convexlift"],
        "dtype": name_dtype(next(model.parameters()).dtype),
        "model": described,
        **_columns(model),
    }
    if isinstance(model, LogConcaveDensity):
        model.normalise()
    _check_weights(model)
    tensors = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("objective.")  # what training needed
    }
    write_whole(path, to_bytes(tensors, {"convexlift": json.dumps(config)}))


@guarded
def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Any:
    """The model in a file that ``save`` wrote: in eval mode, without gradients, in the dtype it was saved in.

    Of the folder of a finished run the model in it is loaded. Nothing is unpickled. That every weight is
    finite and every constrained one non-negative is checked again.

    Raises:
        FileNotFoundError: there is no such file, or no model in the folder.
        OSError: the file cannot be read.
        ValueError: the file is damaged, is not a convexlift model, or was written by a newer version.

    Example:
        >>> import convexlift as cl, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(cl.ICNN(2, hidden=(8, 8)).freeze(), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors").hidden
        (8, 8)
    """
    file = _model_file(Path(path))
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot read {file}: {error.strerror}") from error
    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is not a readable safetensors file (damaged, truncated or of another kind)"
        ) from error
    config = _read_config(file, metadata)
    try:
        described = _from_schema_1(config) if config["schema"] == 1 else config["model"]
        with seeded(0), torch.random.fork_rng(devices=[], enabled=_has_foreign_kinds()):
            model = _built(described).to(getattr(torch, config["dtype"]))
        model.load_state_dict(tensors)
        _check_weights(model)
        if config.get("columns"):
            model.columns = config["columns"]
            _columns(model)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} does not hold the model that it describes: {reason}") from error
    return model.requires_grad_(False).eval().to(device)


def register(kind: type[nn.Module]) -> type[nn.Module]:
    """Let ``save`` and ``load`` know a class of your own, by its name; returns it, so it decorates too.

    An instance has ``config()``, the constructor's arguments that rebuild it, plain values or registered
    models, and all else in its ``state_dict``. An ``Architecture`` has all that but its own arguments. The
    program that loads a file must have registered its classes.

    Raises:
        ValueError: another class of that name is registered.

    Example:
        >>> import convexlift as cl
        >>> register(cl.ICNN).__name__
        'ICNN'
    """
    if KINDS.setdefault(kind.__name__, kind) is not kind:
        raise ValueError(f"another class named {kind.__name__} is registered")
    return kind


def _columns(model: nn.Module) -> dict[str, Any]:
    """What a file says of the columns that the model reads, if it knows them."""
    columns: Any = getattr(model, "columns", None)
    if columns is None:
        return {}
    roles = list(columns.values()) if isinstance(columns, dict) else [None]
    if not all(isinstance(names, list) and {*map(type, names)} in ({str}, {int}) for names in roles):
        raise TypeError(f"columns must be lists of names, as {{'x': ['a', 'b']}}; got {columns!r}")
    dim = getattr(model, "dim", None)
    if dim is not None and len(columns.get("x", range(dim))) != dim:
        raise ValueError(f"columns names {counted(len(columns['x']), 'column')} of x; the model reads {dim}")
    return {"columns": columns}


def _described(value: Any, owner: str = "") -> Any:
    """A model as its class and what rebuilds it, models in it likewise; a plain value as it is."""
    if isinstance(value, list):
        return [_described(item, owner) for item in value]
    if not isinstance(value, nn.Module):
        return value
    name = type(value).__name__
    if KINDS.get(name) is type(value):
        config = cast(Any, value).config()
        return {"model": name, **{key: _described(item, name) for key, item in config.items()}}
    if owner and not isinstance(value, Architecture):
        raise ValueError(f"this {owner} still holds a {name}: save model.freeze(data)")
    raise TypeError(f"can save an {', '.join(KINDS)} or what is registered; got {name}")


def _built(value: Any) -> Any:
    """What was described, with weights of no account."""
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = KINDS.get(value["model"])
    if kind is None:
        raise ValueError(f"unknown model {value['model']!r}: a class of your own is registered first")
    arguments = {key: _built(item) for key, item in value.items() if key != "model"}
    return kind(**arguments).requires_grad_(False)


def _from_schema_1(old: dict[str, Any]) -> dict[str, Any]:
    """A description of schema 1, whose blocks carried no class: each class has an argument others lack."""
    name = old["model"]
    if name == "Ensemble":
        return {"model": name, "members": [_from_schema_1(member) for member in old["members"]]}
    blocks = [
        {"model": "PICNN" if "context_dim" in b else "ConvICNN" if "channels" in b else "ICNN", **b}
        for b in old["blocks"]
    ]
    if name == "ConvexPotentialFlow":
        return {"model": name, "blocks": blocks, "logdet": old.get("logdet")}
    if name == blocks[0]["model"]:
        return blocks[0]
    objective = {"LogConcaveDensity": "known"}.get(name, old.get("objective"))
    return {"model": name, "block": blocks[0], **({"objective": objective} if objective else {})}


def _model_file(path: Path) -> Path:
    """The file itself, or the model in the folder of a run."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        return path
    held = [path / name for name in (MODEL, BEST) if (path / name).exists()]
    if not held:
        others = sorted(path.glob("*.safetensors")) or sorted(path.glob("*/" + MODEL))
        hint = f"; did you mean {others[0]}?" if others else ""
        raise FileNotFoundError(
            f"{path} is a folder that holds no trained model (there is no {MODEL} in it){hint}"
        )
    return held[0]


def _read_config(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The description of the model in a file's metadata, of a schema that is known here."""
    if "convexlift" not in metadata:
        if CHECKPOINT in metadata:
            raise ValueError(
                f"{file} is a checkpoint of an unfinished training run, not a frozen model: go on with the "
                f"run, or make a model of its best step so far with `convexlift freeze {file.parent}`"
            )
        raise ValueError(f"{file} is not a convexlift model: another program wrote it")
    try:
        config = json.loads(metadata["convexlift"])
        schema = int(config["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} has an unreadable description of its model") from error
    if schema > SCHEMA:
        raise ValueError(
            f"{file} has schema {schema}; this version of convexlift reads up to {SCHEMA}: update convexlift"
        )
    return {**config, "schema": schema}


def _has_foreign_kinds() -> bool:
    """Whether a class is registered whose constructor may draw from torch's global generator."""
    return any(kind.__module__.partition(".")[0] != "convexlift" for kind in KINDS.values())


def _check_weights(model: nn.Module) -> None:
    """Refuse a model with a weight that is not finite, or a constrained one that is negative."""
    for name, tensor in model.state_dict().items():
        if name.startswith("objective."):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name!r} has entries that are not finite")
    for part in model.modules():
        if isinstance(part, Architecture):
            check_nonnegative_tensors(part.nonnegative, dict(part.named_parameters()))
