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

from convexlift.architectures import ICNN, PICNN, ConvICNN
from convexlift.architectures.icnn import check_nonnegative_tensors
from convexlift.files import write_whole
from convexlift.objectives import Known
from convexlift.tasks import ConditionalDensity, ConvexPotentialFlow, ConvexRegression, LogConcaveDensity
from convexlift.tasks.ensemble import Ensemble
from convexlift.training.environment import environment
from convexlift.training.run_folder import CHECKPOINT

SCHEMA = 1

Model = (
    ICNN
    | PICNN
    | ConvICNN
    | ConvexPotentialFlow
    | Ensemble
    | LogConcaveDensity
    | ConvexRegression
    | ConditionalDensity
)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a frozen model to one safetensors file, atomically; an existing file is replaced.

    Args:
        model: an ``ICNN``, ``PICNN``, ``ConvICNN``, ``ConvexPotentialFlow``, ``LogConcaveDensity``,
            ``ConditionalDensity`` or ``ConvexRegression``, as ``freeze`` returns it, or an ``Ensemble``.
        path: the file; its folder must exist.

    Raises:
        TypeError: the model is of another kind.
        ValueError: it is not frozen, a weight is not finite or a constrained one negative, or an activation
            is a user's own object.
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
    config = {"schema": SCHEMA, "convexlift": environment()["convexlift"], **_describe(model)}
    if isinstance(model, LogConcaveDensity):
        model.normalise()
    _check_weights(model)
    tensors = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("objective.")  # what training needed
    }
    write_whole(path, to_bytes(tensors, {"convexlift": json.dumps(config)}))


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Any:
    """The model in a file that ``save`` wrote: in eval mode, without gradients, in the dtype it was saved in.

    Nothing is unpickled. That every weight is finite and every constrained one non-negative is checked again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a convexlift model, or was written by a newer version.

    Example:
        >>> import convexlift as cl, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(cl.ICNN(2, hidden=(8, 8)).freeze(), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors").hidden
        (8, 8)
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
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
        model = _build(config).to(getattr(torch, config["dtype"]))
        model.load_state_dict(tensors)
        _check_weights(model)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} does not hold the model that it describes: {reason}") from error
    return model.requires_grad_(False).eval().to(device)


def _describe(model: nn.Module) -> dict[str, Any]:
    """Class, architecture and dtype of a model: what `_build` needs."""
    if isinstance(model, Ensemble):
        return {
            "model": "Ensemble",
            "members": [_describe(member) for member in model.members],
            "dtype": str(model.dtype).removeprefix("torch."),
        }
    if isinstance(model, ICNN | PICNN | ConvICNN):
        blocks: list[nn.Module] = [model]
    elif isinstance(model, ConvexPotentialFlow):
        blocks = list(model.blocks)
    elif isinstance(model, LogConcaveDensity | ConvexRegression | ConditionalDensity):
        blocks = [model.block]
    else:
        raise TypeError(
            "can save an ICNN, a PICNN, a ConvICNN, a ConvexPotentialFlow, an Ensemble, a LogConcaveDensity, "
            "a ConditionalDensity or a ConvexRegression; "
            f"got {type(model).__name__}"
        )
    configs = []
    for block in blocks:
        if not isinstance(block, ICNN | PICNN | ConvICNN):
            raise ValueError(
                f"this {type(model).__name__} still holds a {type(block).__name__}: save model.freeze(data)"
            )
        configs.append(block.config())
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"this {type(model).__name__} is still in training: save model.freeze(data)")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    described: dict[str, Any] = {"model": type(model).__name__, "blocks": configs, "dtype": dtype}
    if isinstance(model, ConditionalDensity):
        described["objective"] = model.objective
    if isinstance(model, ConvexPotentialFlow) and model.logdet_method is not None:
        described["logdet"] = model.logdet_method
    return described


def _build(config: dict[str, Any]) -> Model:
    if config["model"] == "Ensemble":
        return Ensemble(cast(Any, _build(member)).requires_grad_(False) for member in config["members"])
    blocks: list[Any] = [_architecture(block)(**block, seed=0) for block in config["blocks"]]
    match config["model"]:
        case "ICNN" | "PICNN" | "ConvICNN":
            return blocks[0]
        case "ConvexPotentialFlow":
            return ConvexPotentialFlow(blocks, logdet=config.get("logdet"))
        case "LogConcaveDensity":
            return LogConcaveDensity(blocks[0], Known())
        case "ConvexRegression":
            return ConvexRegression(blocks[0])
        case "ConditionalDensity":
            return ConditionalDensity(blocks[0], config["objective"])
        case other:
            raise ValueError(f"unknown model {other!r}")


def _architecture(block: dict[str, Any]) -> type[ICNN] | type[PICNN] | type[ConvICNN]:
    """The class that such arguments build: each has one that the others lack."""
    if "context_dim" in block:
        return PICNN
    return ConvICNN if "channels" in block else ICNN


def _read_config(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "convexlift" not in metadata:
        if CHECKPOINT in metadata:
            raise ValueError(f"{file} is a checkpoint of an unfinished training run, not a frozen model")
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
    return dict(config)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if name.startswith("objective."):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name!r} has entries that are not finite")
    for part in model.modules():
        if isinstance(part, ICNN | ConvICNN):
            check_nonnegative_tensors(part.nonnegative, dict(part.named_parameters()))
