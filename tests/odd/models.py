"""Frozen models, and the files that they are saved in."""

from __future__ import annotations

import errno
import json
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

import convexlift as cl
from convexlift.calculus.activations import Activation
from convexlift.saving import register

from .case import Case, answered, refused
from .given import fit, flow, net, rows, text

FILE = "model.safetensors"


def saved(model: Any = None, change: Any = None) -> Any:
    """To save a model, change its description and load it."""

    def do() -> Any:
        made = net() if model is None else model()
        cl.save(made.freeze(), FILE)
        if change is not None:
            described(change)
        return cl.load(FILE)

    return do


def described(change: Any) -> None:
    from safetensors import safe_open

    with safe_open(FILE, framework="pt") as archive:
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}
        config = json.loads(archive.metadata()["convexlift"])
    found = change(config, tensors)
    save_file(tensors, FILE, {"convexlift": found if isinstance(found, str) else json.dumps(config)})


def filled(value: float, name: str) -> Any:
    made = net()
    with torch.no_grad():
        dict(made.named_parameters())[name].fill_(value)
    return made.requires_grad_(False)


def with_columns(columns: Any) -> None:
    made = flow().freeze()
    made.columns = columns
    cl.save(made, FILE)


def unreadable() -> Any:
    cl.save(net().freeze(), FILE)
    denied = PermissionError(errno.EACCES, "Permission denied")
    with patch("convexlift.saving.open", create=True, side_effect=denied):
        return cl.load(FILE)


def with_another_block() -> float:
    """How far a density is from one of its integral once its block holds other weights."""
    one, other = (cl.LogConcaveDensity(cl.ICNN(1, hidden=(4,), seed=seed)).freeze() for seed in (0, 1))
    one.log_prob(rows(dim=1))
    one.block.load_state_dict(other.block.state_dict())
    return float((one.log_prob(rows(dim=1)) - other.log_prob(rows(dim=1))).abs().max())


CASES: list[Case] = [
    refused(
        "`save` of a model in training",
        lambda: cl.save(flow(), FILE),
        ValueError,
        "this ConvexPotentialFlow is still in training: save model.freeze(data)",
    ),
    refused(
        "`save` of a flow that holds a lift",
        lambda: cl.save(cl.ConvexPotentialFlow([cl.Lift(net())]), FILE),
        ValueError,
        "this ConvexPotentialFlow still holds a Lift: save model.freeze(data)",
    ),
    refused(
        "`save` of a linear layer",
        lambda: cl.save(nn.Linear(2, 2), FILE),
        TypeError,
        "can save an ICNN, PICNN, ConvICNN, ConvexPotentialFlow, Ensemble, LogConcaveDensity, "
        "ConditionalDensity, ConvexRegression, TransportMap or what is registered; got Linear",
    ),
    refused(
        "`save` of a model with a NaN",
        lambda: cl.save(filled(torch.nan, "biases.0"), FILE),
        ValueError,
        "'biases.0' has entries that are not finite",
    ),
    refused(
        "`save` of a network with a negative weight",
        lambda: cl.save(filled(-1.0, "outer"), FILE),
        ValueError,
        "'outer' must be non-negative; its smallest entry is -1",
        kin="found in a file, not in training",
    ),
    refused(
        "`save` with an activation of your own",
        lambda: cl.save(
            net(activation=Activation("mine", torch.relu, lambda u: (u > 0).to(u))).freeze(), FILE
        ),
        ValueError,
        "activation 'mine' is a user's own: save the state_dict and rebuild the network in code",
    ),
    refused(
        "`save` in a folder that is not there",
        lambda: cl.save(net().freeze(), "none/" + FILE),
        FileNotFoundError,
        "cannot write none/model.safetensors: No such file or directory",
        kin="a file that cannot be written",
    ),
    refused(
        "`load` of a file that is not there",
        lambda: cl.load(FILE),
        FileNotFoundError,
        "model.safetensors does not exist",
    ),
    refused(
        "`load` of a file that is cut short",
        lambda: cl.load(text(b"\x40\0\0\0\0\0\0\0{", FILE)),
        ValueError,
        "model.safetensors is not a readable safetensors file (damaged, truncated or of another kind)",
    ),
    refused(
        "`load` of another program's tensors",
        lambda: (save_file({"a": torch.zeros(2)}, FILE), cl.load(FILE)),
        ValueError,
        "model.safetensors is not a convexlift model: another program wrote it",
    ),
    refused(
        "`load` of a run's best model so far",
        lambda: (fit(run_dir="run", validation=rows()), cl.load("run/best.safetensors")),
        ValueError,
        "run/best.safetensors is a checkpoint of an unfinished training run, not a frozen model: go on "
        "with the run, or make a model of its best step so far with `convexlift freeze run`",
    ),
    refused(
        "`load` of a model of a later version",
        saved(None, lambda config, tensors: config.update(schema=99)),
        ValueError,
        "model.safetensors has schema 99; this version of convexlift reads up to 2: update convexlift",
    ),
    refused(
        "`load` of a description that is no JSON",
        saved(None, lambda config, tensors: "{"),
        ValueError,
        "model.safetensors has an unreadable description of its model",
    ),
    refused(
        "`load` of a class that nobody registered",
        saved(None, lambda config, tensors: config["model"].update(model="Mine")),
        ValueError,
        "model.safetensors does not hold the model that it describes: unknown model 'Mine': a class "
        "of your own is registered first",
    ),
    refused(
        "another class to register under a name that is taken",
        lambda: register(type("ICNN", (nn.Module,), {})),
        ValueError,
        "another class named ICNN is registered",
    ),
    refused(
        "`save` of a model whose `columns` are no lists",
        lambda: with_columns({"x": "ab"}),
        TypeError,
        "columns must be lists of names, as {'x': ['a', 'b']}; got {'x': 'ab'}",
    ),
    refused(
        "`save` of a model with a name too many in `columns`",
        lambda: with_columns({"x": ["a", "b", "c"]}),
        ValueError,
        "columns names 3 columns of x; the model reads 2",
    ),
    refused(
        "`load` of a folder without a model",
        lambda: cl.load("."),
        FileNotFoundError,
        ". is a folder that holds no trained model (there is no model.safetensors in it)",
    ),
    refused(
        "`load` of a file that you may not read",
        unreadable,
        OSError,
        "cannot read model.safetensors: Permission denied",
    ),
    answered(
        "other weights loaded into the network of a frozen density",
        with_another_block,
        0.0,
        "its log Z is found anew",
        "convexlift.tasks.density.LogConcaveDensity._refresh",
        lambda self: None,
    ),
]
