"""Frozen models as files: what is written comes back, and what is no such file is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convexlift as cl
from convexlift import saving
from convexlift.calculus.activations import Activation
from convexlift.tasks import ConvexPotentialFlow, ConvexRegression, LogConcaveDensity
from convexlift.training import RunFolder

SCHEMA_1 = Path(__file__).parent / "fixtures" / "0.1.0"  # models that version 0.1.0 saved, and some values
FIXTURES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(("icnn", "icnn_float32", "conv"), lambda model, x: model(x)),
    "picnn": lambda model, x: model(x[:, :1], x),
    **dict.fromkeys(
        ("flow", "flow_estimated", "ensemble", "density_line", "density_plane", "density_space"),
        lambda model, x: model.log_prob(x),
    ),
    "conditional": lambda model, x: model.log_prob(x[:, :1], x),
    "regression": lambda model, x: model.predict(x),
}


def points(dim: int, n: int = 40) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1)) * 2 + 1


def frozen_flow() -> ConvexPotentialFlow:
    nets = [cl.ICNN(2, hidden=(8, 8), seed=seed) for seed in (0, 1)]
    flow = ConvexPotentialFlow([cl.Softplus(nets[0]), cl.Lift(nets[1], seed=2)])
    flow.initialise(points(2))
    return flow.freeze(points(2))


def frozen_density() -> LogConcaveDensity:
    density = LogConcaveDensity(cl.Softplus(cl.ICNN(1, hidden=(8,), seed=0)))
    density.initialise(points(1))
    return density.freeze(points(1))


def frozen_space_density() -> LogConcaveDensity:
    density = LogConcaveDensity(cl.Squared(cl.ICNN(3, hidden=(8,), seed=0)), "score")
    density.initialise(points(3))
    return density.freeze()


def frozen_conditional() -> cl.ConditionalDensity:
    x, c = points(2)[:, :1], points(2)
    density = cl.ConditionalDensity(cl.Softplus(cl.PICNN(1, 2, hidden=(8,), seed=0)))
    density.initialise((x, c))
    return density.freeze()


def frozen_partial_network() -> cl.PICNN:
    return cl.PICNN(1, 2, hidden=(8, 4), context_hidden=(6,), seed=0).freeze()


def frozen_regression() -> ConvexRegression:
    x = points(3)
    regression = ConvexRegression(cl.ICNN(3, hidden=(8,), strong_convexity=0, skip=False, seed=0))
    regression.initialise((x, x.square().sum(1)))
    return regression.freeze((x, x.square().sum(1)))


def frozen_network() -> cl.ICNN:
    return cl.ICNN(
        3,
        hidden=(8, 4),
        activation="smooth_squared_relu",
        sharpness=2.0,
        learn_strong_convexity=False,
        quadratic_rank=2,
        seed=0,
    ).freeze()


@pytest.mark.parametrize(
    ("make", "dim", "evaluate"),
    [
        (frozen_network, 3, lambda model, x: model(x)),
        (frozen_flow, 2, lambda model, x: model.log_prob(x)),
        (frozen_density, 1, lambda model, x: model.log_prob(x)),
        (frozen_space_density, 3, lambda model, x: model.log_prob(x)),
        (frozen_regression, 3, lambda model, x: model.predict(x)),
        (frozen_conditional, 2, lambda model, x: model.log_prob(x[:, :1], x)),
        (frozen_partial_network, 2, lambda model, x: model(x[:, :1], x)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_comes_back_bit_for_bit(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    dim: int,
    evaluate: Callable[[nn.Module, Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    model, x = make().to(dtype), points(dim).to(dtype)
    saving.save(model, tmp_path / "model.safetensors")
    loaded = saving.load(tmp_path / "model.safetensors")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # What a density's objective needed for training is left behind.
    kept = {name: t for name, t in model.state_dict().items() if not name.startswith("objective.")}
    for (name, before), (other, after) in zip(kept.items(), loaded.state_dict().items(), strict=True):
        assert name == other and before.dtype == after.dtype
        assert torch.equal(before, after)
    assert torch.equal(evaluate(model, x), evaluate(loaded, x))


@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_schema_1_are_read(name: str) -> None:
    """Weights to the bit; values but for what processors round differently."""
    file = SCHEMA_1 / f"{name}.safetensors"
    model, given = saving.load(file), load_file(SCHEMA_1 / f"{name}.values.safetensors")
    held = model.state_dict()
    assert set(load_file(file)) == set(held) and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, held[key]) for key, tensor in load_file(file).items())
    values = FIXTURES[name](model, given["x"])
    assert values.dtype == given["values"].dtype
    rtol = 1e-12 if values.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(values, given["values"], rtol=rtol, atol=rtol)
    if name == "flow_estimated":
        assert model.logdet_method == "estimated"


def test_there_is_a_file_of_schema_1_for_every_kind() -> None:
    kinds = {type(saving.load(SCHEMA_1 / f"{name}.safetensors")).__name__ for name in FIXTURES}
    later = {"TransportMap"}
    assert kinds == set(saving.KINDS) - later


def test_loading_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    saving.save(frozen_flow(), tmp_path / "flow.safetensors")
    before = torch.get_rng_state()
    with torch.no_grad():
        saving.load(tmp_path / "flow.safetensors")
    assert torch.equal(before, torch.get_rng_state())


def test_samples_of_a_loaded_flow_are_those_of_the_saved_one(tmp_path: Path) -> None:
    flow = frozen_flow()
    saving.save(flow, tmp_path / "flow.safetensors")
    assert torch.equal(flow.sample(5, seed=3), saving.load(tmp_path / "flow.safetensors").sample(5, seed=3))


def own_activation() -> Activation:
    return Activation("half-square", lambda u: u.relu() ** 2 / 2, torch.relu, lambda u: (u > 0).to(u))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: nn.Linear(2, 1), TypeError, "can save an ICNN, .*; got Linear"),
        (
            lambda: ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4,), seed=0), seed=0)]),
            ValueError,
            r"this ConvexPotentialFlow still holds a Lift: save model.freeze\(data\)",
        ),
        (
            lambda: cl.ICNN(2, hidden=(4,), seed=0),
            ValueError,
            r"this ICNN is still in training: save model.freeze\(data\)",
        ),
        (
            lambda: cl.ICNN(2, hidden=(4,), activation=own_activation(), seed=0).freeze(),
            ValueError,
            "activation 'half-square' is a user's own",
        ),
    ],
)
def test_what_cannot_be_saved(
    tmp_path: Path, model: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        saving.save(model(), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    saving.save(frozen_network(), file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OSError, match=r"^\[Errno 28\] cannot write .*/model.safetensors: No space left on device$"
    ):
        saving.save(frozen_flow(), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def altered(file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Rewrite a saved model with other tensors or another description."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        config = json.loads(json.loads(stream.read(size))["__metadata__"]["convexlift"])
    tensors = load_file(file)
    change(tensors, config)
    save_file(tensors, file, {"convexlift": json.dumps(config)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors, config: config.update(schema=3),
            "has schema 3; this version of convexlift reads up to 2",
        ),
        (lambda tensors, config: config["model"].update(model="Transport"), "unknown model 'Transport'"),
        (lambda tensors, config: config.update(dtype="float33"), "float33"),
        (lambda tensors, config: config["model"].pop("dim"), "does not hold the model that it describes"),
        (lambda tensors, config: config["model"].update(hidden=[9, 4]), "size mismatch"),
        (lambda tensors, config: config["model"].update(colour="red"), "colour"),
        (lambda tensors, config: tensors.pop("outer"), "Missing key"),
        (
            lambda tensors, config: tensors["outer"].neg_(),
            "'outer' must be non-negative; its smallest entry is -",
        ),
        (lambda tensors, config: tensors["outer"].fill_(torch.nan), "'outer' must be non-negative"),
        (
            lambda tensors, config: tensors["outer"].fill_(torch.inf),
            "'outer' has entries that are not finite",
        ),
        (
            lambda tensors, config: tensors["biases.0"].fill_(torch.nan),
            "'biases.0' has entries that are not finite",
        ),
        (lambda tensors, config: config.update(columns="ab"), "columns must be lists of names"),
        (lambda tensors, config: config.pop("schema"), "has an unreadable description of its model"),
    ],
)
def test_an_altered_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object], message: str
) -> None:
    file = tmp_path / "model.safetensors"
    saving.save(frozen_network(), file)
    altered(file, change)
    with pytest.raises(ValueError, match=message) as raised:
        saving.load(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="model.safetensors does not exist"):
        saving.load(file)
    saving.save(frozen_network(), file)
    whole = file.read_bytes()
    unreadable = "is not a readable safetensors file"
    for content in (b"", os.urandom(1000), b"\x80\x04.", whole[:-10], whole[:50], b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=unreadable):
            saving.load(file)
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="is not a convexlift model: another program wrote it"):
        saving.load(file)
    RunFolder(tmp_path).write_model({"weight": torch.zeros(3)}, {"step": 10})
    with pytest.raises(ValueError, match="is a checkpoint of an unfinished training run, not a frozen model"):
        saving.load(tmp_path / "best.safetensors")


def test_how_a_flow_takes_its_log_determinant_is_saved(tmp_path: Path) -> None:
    flow = cl.ConvexPotentialFlow([cl.ICNN(4, hidden=(8,), seed=0)], logdet="estimated").freeze()
    cl.save(flow, tmp_path / "flow.safetensors")
    loaded = cl.load(tmp_path / "flow.safetensors")
    assert isinstance(loaded, cl.ConvexPotentialFlow) and loaded.logdet_method == "estimated"
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


COLUMNS = {
    "flow": (frozen_flow, {"x": ["pt", "eta"]}),
    "places": (frozen_flow, {"x": [4, 2]}),
    "density": (frozen_density, {"x": ["pt"], "weights": ["w"]}),
    "conditional": (frozen_conditional, {"x": ["pt"], "context": ["eta", "phi"]}),
    "regression": (frozen_regression, {"x": ["pt", "eta", "phi"], "y": ["mass"]}),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_file_carries_the_names_of_columns(tmp_path: Path, case: str) -> None:
    make, columns = COLUMNS[case]
    model = make()
    assert model.columns is None
    saving.save(model, tmp_path / "without.safetensors")
    assert saving.load(tmp_path / "without.safetensors").columns is None
    model.columns = columns
    saving.save(model, tmp_path / "with.safetensors")
    assert saving.load(tmp_path / "with.safetensors").columns == columns


def test_names_of_columns_go_from_a_task_to_what_is_frozen_and_to_a_mixture(tmp_path: Path) -> None:
    flow = ConvexPotentialFlow([cl.Softplus(cl.ICNN(2, hidden=(4,), seed=0))])
    flow.columns = {"x": ["pt", "eta"]}
    flow.initialise(points(2))
    frozen, again = flow.freeze(), flow.freeze()
    mixture = cl.Ensemble([frozen, again])
    assert frozen.columns == mixture.columns == {"x": ["pt", "eta"]}
    saving.save(mixture, tmp_path / "mixture.safetensors")
    assert saving.load(tmp_path / "mixture.safetensors").columns == {"x": ["pt", "eta"]}
    again.columns = {"x": ["eta", "pt"]}
    with pytest.raises(ValueError, match="members of an ensemble must read the same columns in one order"):
        cl.Ensemble([frozen, again])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"x": ["pt"]}, ValueError, "columns names 1 column of x; the model reads 2"),
        (
            ["pt", "eta"],
            TypeError,
            r"columns must be lists of names, as {.*}; got \['pt', 'eta'\]",
        ),
        ({"x": "pt"}, TypeError, "columns must be lists of names"),
        ({"x": ["pt", 2]}, TypeError, "columns must be lists of names"),
    ],
)
def test_names_that_are_none_are_refused(
    tmp_path: Path, columns: Any, error: type[Exception], message: str
) -> None:
    model = frozen_flow()
    model.columns = columns
    with pytest.raises(error, match=message):
        saving.save(model, tmp_path / "flow.safetensors")
    assert not list(tmp_path.iterdir())
