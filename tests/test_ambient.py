"""What the caller's torch is set to changes no result: every public entry, in every mode that is known."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import convexlift as cl
from convexlift import mechanism, testing
from convexlift import sklearn as estimators
from convexlift.ambient import guard, guarded
from convexlift.integration import chain_diagnostics, gaussian, langevin, line
from convexlift.integration.annealing import annealed_normaliser
from convexlift.integration.log_concave_mle import log_concave_mle
from convexlift.integration.plane import normaliser as plane
from convexlift.problems.catalogue import problem
from convexlift.seeds import seeded
from convexlift.tasks.region import region_outlines


def rows(n: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float32, device="cpu")


# Made as the file is read: a new network has torch's default dtype, as torch's own modules have.
NETWORKS = {
    (dim, alpha): cl.ICNN(dim, (8, 8), strong_convexity=alpha, seed=0)
    for dim in (1, 2, 3)
    for alpha in (0, 0.1)
}
CONDITIONAL = cl.PICNN(1, 1, hidden=(6, 6), seed=0)
CONVOLUTIONAL = cl.ConvICNN((1, 6, 6), channels=(3, 3), seed=0)


def network(dim: int, strong_convexity: float = 0.1) -> cl.ICNN:
    return copy.deepcopy(NETWORKS[dim, strong_convexity])


def flow(dim: int = 2, **options: Any) -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([cl.Squared(network(dim)), cl.Squared(network(dim))], **options)


def fitted(task: Any, data: Any, **options: Any) -> list[Any]:
    """A short training, and all that the task and the frozen task say of some rows."""
    history = cl.fit(task, data, steps=6, batch_size=32, lr=0.01, progress=False, **options)
    frozen = task.freeze(data)
    return [history.loss, *frozen.state_dict().values(), frozen]


def _flow() -> list[Any]:
    x = rows(120, 2)
    *found, frozen = fitted(flow(), x, validation=rows(40, 2, 1))
    z = frozen(x[:5])
    return [
        *found,
        *z,
        frozen.log_prob(x),
        frozen.sample(7, seed=1),
        frozen.inverse(z[0]).x,
        frozen.jacobian(x),
    ]


def _lift_flow() -> list[Any]:
    task = cl.ConvexPotentialFlow(
        [cl.Lift(network(2), seed=0, coupling="noise")], logdet="estimated", chunk=16
    )
    x = rows(120, 2)
    *found, frozen = fitted(task, x)
    return [*found, *vars(frozen.log_prob_estimate(x)).values(), frozen.log_prob(x)]


def _density(dim: int, objective: str = "mle") -> Callable[[], list[Any]]:
    def run() -> list[Any]:
        x, weights = rows(120, dim), rows(120, 1, 3)[:, 0].square()
        with seeded(0):  # of an objective that has a network of its own
            task = cl.LogConcaveDensity(cl.Softplus(network(dim)), objective)
        *found, frozen = fitted(task, (x, weights), validation=(rows(30, dim, 4), weights[:30]))
        if dim > 2 and objective != "mle":
            return found
        one = [frozen.log_prob(x[:9]), frozen.score(x), frozen.mode(), frozen.normaliser(particles=256).log_z]
        region = frozen.credible_region(0.5) if dim < 3 else None
        draws = [frozen.sample(8, seed=0)] if dim < 3 else []
        return [*found, *one, *draws, *([] if region is None else [region.contains(x)])]

    return run


def _conditional(objective: str) -> Callable[[], list[Any]]:
    def run() -> list[Any]:
        c = rows(60, 1, 1)
        x = c + rows(60, 1)
        block = cl.Squared(copy.deepcopy(CONDITIONAL))
        *found, frozen = fitted(cl.ConditionalDensity(block, objective), (x, c))
        more = [frozen.log_prob(x, c), frozen.score(x, c), frozen.mode(c), frozen.sample(3, c[:4], seed=0)]
        return [*found, *more, frozen.normaliser(c[:3]).log_z]

    return run


def _regression() -> list[Any]:
    x = rows(120, 2)
    task = cl.ConvexRegression(cl.Centred(cl.Squared(network(2, strong_convexity=0))))
    *found, frozen = fitted(task, (x, x.square().sum(1)), weight_decay=0.1, averaging=0.9)
    return [*found, frozen.predict(x)]


def _ensemble() -> list[Any]:
    x, members = rows(100, 2), [flow(), flow()]
    for member in members:
        member.initialise(x)
    mixture = cl.Ensemble(member.freeze() for member in members)
    return [mixture.log_prob(x), mixture.sample(9, seed=3)]


def _potential() -> list[Any]:
    f, x = network(3).freeze().emit(), rows(9, 3)
    found = [f.value(x), f.gradient(x), f.hessian(x), f.laplacian(x), f.hvp(x, x), f.logdet(x)]
    solved = f.conjugate(x)
    estimate = f.logdet_estimate(x)
    return [
        *found,
        solved.x,
        solved.value,
        solved.upper,
        f.inverse(x).x,
        estimate.value,
        estimate.standard_error,
    ]


def _conv() -> list[Any]:
    net = CONVOLUTIONAL.freeze()
    x = rows(5, 36)
    f = net.emit()
    return [f.value(x), f.gradient(x), f.logdet(x), net.freeze()(x)]


def _saving() -> list[Any]:
    density = cl.LogConcaveDensity(network(1))
    density.initialise(rows(50, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        cl.save(density.freeze(), path)
        again = cl.load(path)
    return [*again.state_dict().values(), again.log_prob(rows(9, 1))]


def _estimators() -> list[Any]:
    x = np.random.default_rng(0).normal(size=(60, 2))
    shared: dict[str, Any] = {"hidden": (6, 6), "steps": 5, "random_state": 0}
    one = estimators.ConvexPotentialFlow(**shared, source="lift", dtype="float64").fit(x)
    two = estimators.LogConcaveDensity(**shared).fit(x[:, :1])
    three = estimators.ConvexRegressor(**shared).fit(x, (x**2).sum(1))
    found = [one.score_samples(x), one.sample(3, random_state=1), two.score_samples(x[:, :1])]
    return [*map(torch.from_numpy, [*found, two.sample(3, random_state=1), three.predict(x)])]


def _checks() -> list[Any]:
    net = network(2)
    convex = testing.check_convex(net, dim=2)
    found = testing.check_derivatives(net.emit(), dim=2)
    testing.check_nonnegative(net)
    return [convex.worst, convex.point, *found.errors.values()]


def _mechanism() -> list[Any]:
    x = rows(160, 2)
    task = cl.ConvexRegression(cl.Lift(network(2), seed=0))
    task.initialise((x, x.square().sum(1)))
    batches = [(part, part.square().sum(1)) for part in x.split(40)]
    health = mechanism.gradient_health(task, task.loss, batches[0])
    return [
        mechanism.emission_noise(task, batches),
        mechanism.step_amplification(task, batches),
        repr(mechanism.shoulder(task, batches[0])),
        repr(mechanism.coupling(task, task.loss, batches)),
        repr(mechanism.update_diffusion(task, task.loss, batches, lr=0.01)),
        repr(health),
    ]


def _integrals() -> list[Any]:
    def f(x: Tensor) -> Tensor:
        return x.square().sum(-1) / 2

    def g(x: Tensor) -> Tensor:
        return x

    generator = torch.Generator("cpu").manual_seed(0)
    on_line, in_plane = line.normaliser(f, g), plane.normaliser(f, g)
    q = gaussian.fitted(rows(50, 3))
    annealed = annealed_normaliser(f, g, q, particles=256, generator=generator)
    chains = langevin.draw(f, g, q, 40, generator=generator)
    mle = log_concave_mle(rows(50, 1))
    share = torch.linspace(0.1, 0.9, 5, dtype=torch.float64, device="cpu")
    return [
        on_line.log_z,
        line.quantile(on_line, share),
        in_plane.log_z,
        plane.draw(in_plane, f, 5, generator),
        annealed.log_z,
        chains.x,
        chain_diagnostics.r_hat(rows(400, 2).unflatten(0, (4, 100))),
        mle.log_prob(rows(9, 1)),
        mle.sample(5, seed=0),
    ]


def _distribution() -> list[Any]:
    task = flow()
    task.initialise(rows(100, 2))
    law = cl.FlowDistribution(task.freeze())
    x = rows(5, 2)
    return [law.log_prob(x), law.transform(x), law.transform.inv(x)]


def _problems() -> list[Any]:
    found: list[Any] = []
    for name in ("gumbel", "pinwheel", "regression-square", "beta"):
        chosen = problem(name)
        parts = chosen.test if isinstance(chosen.test, tuple) else (chosen.test,)
        found += [part[:20] for part in parts]
    return found


def _about_rows() -> list[Any]:
    task = cl.LogConcaveDensity(network(2), "mle")
    x = rows(60, 2)
    task.initialise(x)
    outline = region_outlines(task.freeze(), (0.5,))
    return [*outline, cl.dequantise((3 * x).round()), *cl.drop_missing(x)]


ENTRIES: dict[str, Callable[[], list[Any]]] = {
    "flow": _flow,
    "flow of lifts": _lift_flow,
    "density 1": _density(1),
    "density 2": _density(2),
    "density 3, chains": _density(3),
    "density 3, importance": _density(3, "importance-flow"),
    "density 3, nce": _density(3, "nce"),
    "density 3, denoising": _density(3, "denoising"),
    "conditional score": _conditional("score"),
    "conditional mle": _conditional("mle"),
    "regression": _regression,
    "ensemble": _ensemble,
    "potential": _potential,
    "convolutional": _conv,
    "files": _saving,
    "estimators": _estimators,
    "checks": _checks,
    "mechanism": _mechanism,
    "integrals": _integrals,
    "distribution": _distribution,
    "problems": _problems,
    "rows and regions": _about_rows,
}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def reduced_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


MODES: dict[str, Callable[[], Any]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device meta": lambda: default_device("meta"),
    "a device context": lambda: torch.device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic algorithms": deterministic,
    "anomaly detection": torch.autograd.detect_anomaly,
    "reduced products": reduced_products,
}


# The most harmful modes with every entry, each of the others with a third of them.
TRIED = [
    (entry, mode)
    for k, entry in enumerate(ENTRIES)
    for j, mode in enumerate(MODES)
    if (j + k) % 3 == 0 or mode in ("autocast to bfloat16", "inference_mode", "default device meta")
]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    return {name: run() for name, run in ENTRIES.items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(("entry", "mode"), TRIED)
def test_no_mode_changes_a_bit(entry: str, mode: str, expected: dict[str, list[Any]]) -> None:
    with MODES[mode]():
        found = ENTRIES[entry]()
    for k, (one, other) in enumerate(zip(expected[entry], found, strict=True)):
        assert same(one, other), (k, one, other)


_FLOATS = ("zeros", "ones", "empty", "full", "eye", "linspace", "logspace", "rand", "randn")
_FACTORIES = (*_FLOATS, "arange", "randint", "randperm", "tensor")


class Explicit(TorchFunctionMode):
    """Fails where a method of the library makes a tensor on torch's default device or in its default dtype.

    Constructors may: a new network is of the caller's defaults, as torch's own modules are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _FACTORIES and func is getattr(torch, name) and not _constructing():
            assert kwargs.get("device") is not None, f"torch.{name} without a device"
            assert kwargs.get("dtype") is not None or name not in _FLOATS, f"torch.{name} without a dtype"
        return func(*args, **kwargs)


def _constructing() -> bool:
    """Whether a constructor is at work, or code of torch's own."""
    frame = sys._getframe(2)
    while "convexlift" not in frame.f_code.co_filename:
        if "/torch/" not in frame.f_code.co_filename or frame.f_back is None:
            return True
        frame = frame.f_back
    while frame is not None and "convexlift" in frame.f_code.co_filename:
        if frame.f_code.co_name == "__init__":
            return True
        frame = frame.f_back
    return False


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_factory_is_told_where_and_what(entry: str) -> None:
    with Explicit():
        ENTRIES[entry]()


def test_a_new_network_is_where_and_what_torch_makes_by_default() -> None:
    with default_dtype(torch.float64):
        assert cl.ICNN(2, hidden=(4,)).outer.dtype == torch.float64
    with default_device("meta"):  # which holds no numbers
        task = cl.LogConcaveDensity(cl.Lift(cl.ICNN(3, hidden=(4,), quadratic_rank=1), seed=0))
        assert {t.device.type for t in task.state_dict().values()} == {"cpu"}


def test_models_made_in_inference_mode_can_be_trained_outside() -> None:
    x = rows(60, 2)
    with torch.inference_mode():
        made = cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4,)), seed=0)])
        made.initialise(x)
        frozen = made.freeze(x)
        seen = rows(60, 2)
        scores = made.freeze(x).log_prob(seen)
    assert not any(t.is_inference() for m in (made, frozen) for t in m.state_dict().values())
    cl.fit(made, seen, steps=2, progress=False)  # the rows are inference tensors too
    leaf = x.clone().requires_grad_()
    frozen.log_prob(leaf).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.any()) and not scores.requires_grad


def test_rules_of_quadrature_that_inference_mode_saw_first_still_train() -> None:
    from convexlift.integration.rules import legendre, lobatto

    with torch.inference_mode():
        found = [
            *legendre(5, torch.float64, torch.device("cpu")),
            *lobatto(7, torch.float64, torch.device("cpu")),
        ]
    assert not any(t.is_inference() for t in found)


def test_the_guard_leaves_what_the_caller_set() -> None:
    @guarded(training=True)
    def inside() -> tuple[Any, ...]:
        return (
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_device().type,
            torch.get_float32_matmul_precision(),
        )

    with reduced_products(), default_device("meta"), torch.inference_mode(), torch.autocast("cpu"):
        assert inside() == (False, True, False, "cpu", "highest")
        with guard():
            assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "meta"


@pytest.mark.parametrize("name", ["log_prob", "forward"])
def test_a_gradient_of_the_caller_is_left_to_the_caller(name: str) -> None:
    task, x = flow(), rows(9, 2).requires_grad_()
    task.initialise(x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        out = getattr(task, name)(x)
        value = out if isinstance(out, Tensor) else out[1]
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value.sum(), x)[0].dtype == torch.float32
    with torch.no_grad():
        out = getattr(task, name)(x)
    assert not (out if isinstance(out, Tensor) else out[1]).requires_grad


def test_functions_of_torch_func_see_through_the_guard() -> None:
    task, x = flow(), rows(9, 2)
    task.initialise(x)
    frozen = task.freeze()
    f = network(2).emit()
    expected = torch.stack([frozen.log_prob(row[None])[0] for row in x])
    with torch.autocast("cpu", torch.bfloat16):
        mapped = torch.func.vmap(lambda row: frozen.log_prob(row[None])[0])(x)
    slopes = torch.func.vmap(torch.func.grad(lambda row: f.value(row[None])[0]))(x)
    assert torch.allclose(mapped, expected, atol=1e-5)
    assert torch.allclose(slopes, f.gradient(x), atol=1e-5)
