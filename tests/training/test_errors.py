from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from convexlift.training import Simulator, Unpaired, fit

DATA = torch.ones(8, 6)
SECOND = "(tensor 1 of 2)"
DROP = "; convexlift.drop_missing leaves such rows out"
NAN, INF = DATA.clone(), DATA.clone()
NAN[3, 5] = torch.nan
INF[2, 1] = -torch.inf


class Mean(nn.Module):
    def __init__(self, answer: object = None) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def loss(self, batch: torch.Tensor) -> object:
        return (batch - self.m).square().mean() if self.answer is None else self.answer


class NoLoss(nn.Linear):
    pass


class NoParameters(nn.Module):
    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean()


TABLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    # data
    (
        {"data": [[1.0]]},
        TypeError,
        "training data must be a tensor, a tuple of row-aligned tensors, Unpaired or a Simulator; got list",
    ),
    ({"data": ()}, ValueError, "training data are an empty tuple"),
    ({"data": (DATA, [1.0])}, TypeError, "training data (tensor 1 of 2) must be a tensor; got list"),
    ({"data": DATA.long()}, TypeError, "training data must be floating-point; got int64"),
    ({"data": torch.tensor(1.0)}, ValueError, "training data must have rows; got a scalar tensor"),
    ({"data": DATA[:0]}, ValueError, "training data are empty: shape (0, 6)"),
    ({"data": DATA[:, :0]}, ValueError, "training data are empty: shape (8, 0)"),
    ({"data": NAN}, ValueError, f"training data have NaN at row 3, column 5{DROP}"),
    ({"data": INF}, ValueError, "training data have an infinity at row 2, column 1"),
    ({"data": (DATA, NAN)}, ValueError, f"training data {SECOND} have NaN at row 3, column 5{DROP}"),
    ({"data": NAN[:, 5]}, ValueError, f"training data have NaN at row 3{DROP}"),
    ({"data": (DATA, DATA[:5])}, ValueError, "training data must have one row count; got 8, 5 rows"),
    (
        {"data": Unpaired(DATA, NAN)},
        ValueError,
        f"training data {SECOND} have NaN at row 3, column 5{DROP}",
    ),
    (
        {"data": 1e300 * DATA.double()},
        ValueError,
        "training data in float32 have an infinity at row 0, column 0 (8 of 8 rows have NaN or infinities)",
    ),
    (
        {"data": Simulator(lambda n, g: DATA)},
        ValueError,
        "draw(n, generator) must return n rows; asked for 20000, got 8 x 6",
    ),
    (
        {"data": Simulator(lambda n, g: [1.0] * n)},
        ValueError,
        "draw(n, generator) must return n rows; asked for 20000, got list",
    ),
    (
        {"data": Simulator(lambda n, g: torch.full((n, 1), torch.nan))},
        ValueError,
        f"training data have NaN at row 0, column 0 (20000 of 20000 rows have NaN or infinities){DROP}",
    ),
    ({"validation": NAN}, ValueError, f"validation data have NaN at row 3, column 5{DROP}"),
    ({"validation": DATA[:0]}, ValueError, "validation data are empty: shape (0, 6)"),
    ({"validation": DATA[:, :4]}, ValueError, "validation rows have shape (4,), training rows (6,)"),
    ({"validation": (DATA, DATA)}, ValueError, "validation data must have the form of the training data"),
    (
        {"data": (DATA, DATA), "validation": Unpaired(DATA, DATA)},
        ValueError,
        "validation data must have the form of the training data",
    ),
    # module
    ({"module": len}, TypeError, "fit trains a torch module; got builtin_function_or_method"),
    ({"module": NoLoss(6, 1)}, TypeError, "NoLoss has no method loss(batch)"),
    ({"module": NoParameters()}, ValueError, "the module has no trainable parameters"),
    ({"module": Mean().requires_grad_(False)}, ValueError, "the module has no trainable parameters"),
    ({"module": Mean(1.0)}, TypeError, "loss(batch) must return a scalar tensor; got float"),
    ({"module": Mean(torch.ones(8))}, TypeError, "loss(batch) must return a scalar tensor; got shape (8,)"),
    ({"module": Mean(torch.ones(()))}, ValueError, "loss(batch) does not depend on any trainable parameter"),
    # settings
    ({"steps": 0}, ValueError, "steps must be at least 1; got 0"),
    ({"steps": 1.5}, TypeError, "steps must be an int; got 1.5"),
    ({"steps": True}, TypeError, "steps must be an int; got True"),
    ({"steps": 5, "epochs": 5}, ValueError, "give steps or epochs, not both"),
    ({"steps": None, "epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
    (
        {"steps": None, "epochs": 1, "data": Simulator(lambda n, g: torch.ones(n, 1))},
        ValueError,
        "a Simulator has no epochs; give steps",
    ),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
    ({"batch_size": "all"}, TypeError, "batch_size must be an int; got 'all'"),
    (
        {"optimizer": "lion"},
        ValueError,
        "optimizer must be 'adam', 'sgd', 'soap' or a function of the parameter groups; got 'lion'",
    ),
    (
        {"optimizer": lambda groups: groups},
        TypeError,
        "optimizer(groups) must return a torch optimiser; got list",
    ),
    ({"lr": 0.0}, ValueError, "lr must be a positive number; got 0.0"),
    ({"lr": float("nan")}, ValueError, "lr must be a positive number; got nan"),
    ({"lr": "fast"}, ValueError, "lr must be a positive number; got 'fast'"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay must be a finite number of at least 0; got -1.0"),
    (
        {"weight_decay": float("nan")},
        ValueError,
        "weight_decay must be a finite number of at least 0; got nan",
    ),
    (
        {"weight_decay": float("inf")},
        ValueError,
        "weight_decay must be a finite number of at least 0; got inf",
    ),
    ({"weight_decay": "some"}, ValueError, "weight_decay must be a finite number of at least 0; got 'some'"),
    ({"weight_decay": None}, ValueError, "weight_decay must be a finite number of at least 0; got None"),
    ({"weight_decay": True}, ValueError, "weight_decay must be a finite number of at least 0; got True"),
    ({"lr": 0.5, "weight_decay": 2}, ValueError, "lr * weight_decay must be below 1; got 0.5 * 2"),
    (
        {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1), "weight_decay": 0.1},
        ValueError,
        "weight_decay is for 'adam', 'sgd' or 'soap'; an optimizer function sets its own",
    ),
    ({"averaging": 1.0}, ValueError, "averaging must be a number of at least 0 and below 1; got 1.0"),
    ({"averaging": -0.1}, ValueError, "averaging must be a number of at least 0 and below 1; got -0.1"),
    (
        {"averaging": float("nan")},
        ValueError,
        "averaging must be a number of at least 0 and below 1; got nan",
    ),
    ({"averaging": True}, ValueError, "averaging must be a number of at least 0 and below 1; got True"),
    ({"averaging": False}, ValueError, "averaging must be a number of at least 0 and below 1; got False"),
    ({"averaging": None}, ValueError, "averaging must be a number of at least 0 and below 1; got None"),
    ({"averaging": "some"}, ValueError, "averaging must be a number of at least 0 and below 1; got 'some'"),
    (
        {"averaging": torch.tensor(0.9)},
        ValueError,
        "averaging must be a number of at least 0 and below 1; got tensor(0.9000)",
    ),
    ({"clip": -1.0}, ValueError, "clip must be a positive number; got -1.0"),
    (
        {"schedule": "linear"},
        ValueError,
        "schedule must be 'cosine', 'constant' or a function of t; got 'linear'",
    ),
    ({"schedule": lambda t: -1.0}, ValueError, "schedule(0) must be a finite number of at least 0; got -1.0"),
    (
        {"schedule": lambda t: float("inf")},
        ValueError,
        "schedule(0) must be a finite number of at least 0; got inf",
    ),
    ({"patience": 3}, ValueError, "patience needs validation data"),
    ({"patience": 0, "validation": DATA}, ValueError, "patience must be at least 1; got 0"),
    ({"evaluate_every": 0}, ValueError, "evaluate_every must be at least 1; got 0"),
    ({"seed": -1}, ValueError, "seed must be at least 0; got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an int; got 0.5"),
    ({"device": "abacus"}, ValueError, "device 'abacus' is unknown or not available"),
    ({"dtype": torch.int64}, ValueError, "dtype must be a floating dtype; got int64"),
    ({"resume": True}, ValueError, "resume=True needs run_dir"),
    ({"callbacks": [3]}, TypeError, "callbacks must be functions of a FitEvent; got int"),
]


@pytest.mark.parametrize(("given", "kind", "message"), TABLE)
def test_a_bad_argument_is_named(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"module": Mean(), "data": DATA, "steps": 2, "progress": False, **given}
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        fit(arguments.pop("module"), arguments.pop("data"), **arguments)


def test_a_sampler_needs_a_function() -> None:
    with pytest.raises(TypeError, match=r"^a Simulator needs a function draw\(n, generator\); got Tensor$"):
        Simulator(DATA)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="^device 'cuda' is unknown or not available$"):
        fit(Mean(), DATA, steps=1, device="cuda", progress=False)


def test_a_bad_argument_leaves_the_module_as_it_was() -> None:
    module = Mean()
    with pytest.raises(ValueError, match="lr must be"):
        fit(module, DATA, lr=-1.0, dtype=torch.float64, progress=False)
    assert module.m.dtype == torch.float32
