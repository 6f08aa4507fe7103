"""Whatever the units: a task trains the same, and what comes back is as fine as the rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convexlift as cl
from convexlift.data import mean_loss

DIM = 3
# Three columns x and a positive fourth, which depends on them.
Table = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A task, what it reads of a table, of how many columns it is a density, whether the fourth weighs."""

    make: Callable[[], Any]
    read: Callable[[Tensor, Tensor], Any]
    columns: int
    weighted: bool = False


def net(dim: int = DIM, **options: Any) -> cl.ICNN:
    return cl.ICNN(dim, hidden=(8, 8), seed=0, **options)


def flow() -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([cl.Softplus(net()), cl.Lift(net(), seed=0)])


def components() -> cl.ConvexPotentialFlow:
    return cl.ConvexPotentialFlow([cl.Softplus(net()), cl.Lift(net(), seed=0)], whiten=True)


def regression() -> cl.ConvexRegression:
    return cl.ConvexRegression(cl.Centred(cl.Squared(net(strong_convexity=0.0))))


def density(dim: int, objective: str) -> Case:
    likely = objective in ("mle", "importance")
    return Case(
        lambda: cl.LogConcaveDensity(cl.Squared(net(dim)), objective),
        lambda x, last: (x[:, :dim], last),
        dim if likely else 0,
        weighted=True,
    )


def conditional(objective: str) -> Case:
    return Case(
        lambda: cl.ConditionalDensity(cl.Squared(cl.PICNN(1, 2, hidden=(8, 8), seed=0)), objective),
        lambda x, last: (x[:, :1], x[:, 1:]),
        1 if objective == "mle" else 0,
    )


CASES = {
    "flow": Case(flow, lambda x, last: x, 3),
    "flow of principal components": Case(components, lambda x, last: x, 3),
    "density of the line": density(1, "mle"),
    "density of the plane": density(2, "mle"),
    "density by importance sampling": density(3, "importance"),
    "density by score matching": density(3, "score"),
    "density by noise contrast": density(3, "nce"),
    "conditional by likelihood": conditional("mle"),
    "conditional by score matching": conditional("score"),
    "regression": Case(regression, lambda x, last: (x, last), 0),
}
EXPONENTS = st.tuples(*[st.integers(-100, 100)] * 5)


def table(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Table:
    noise = torch.randn(n, DIM + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (noise[:, :DIM] @ (torch.eye(DIM) + 0.3).double()).exp().log1p()
    return x.to(dtype), (x.square().sum(1) + noise[:, DIM].exp()).to(dtype)


def scaled(columns: Table, exponents: tuple[int, ...]) -> Table:
    """The same in units that are powers of two."""
    units = 2.0 ** torch.tensor(exponents, dtype=torch.float64).to(columns[0].dtype)
    return columns[0] * units[:DIM], columns[1] * units[DIM]


def trained(case: Case, train: Table, held_out: Table, **options: Any) -> tuple[Any, cl.History]:
    task = case.make()
    how = {"steps": 6, "batch_size": 64, "lr": 0.02, "evaluate_every": 2, "progress": False, **options}
    return task, cl.fit(task, case.read(*train), validation=case.read(*held_out), **how)


def states(task: nn.Module) -> dict[str, Tensor]:
    """All that training moves, without the maps from the user's units."""
    return {
        name: tensor
        for name, tensor in task.state_dict().items()
        if "standardiser." not in name and name != "mean_weight"
    }


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    assert states(one).keys() == states(other).keys()
    for name, tensor in states(one).items():
        assert torch.equal(tensor.nan_to_num(), states(other)[name].nan_to_num()), name


@pytest.mark.parametrize("rows", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2)
@example((100, -100, 37, -100, 100))
@given(exponents=EXPONENTS)
def test_powers_of_two_change_no_bit_of_training(
    name: str, rows: torch.dtype, exponents: tuple[int, ...]
) -> None:
    case, data, held_out = CASES[name], table(150, 0, rows), table(60, 1, rows)
    # Weights of validation have a unit of their own.
    of_validation = (*exponents[:DIM], exponents[DIM + 1 if case.weighted else DIM])
    changed, kept = scaled(data, exponents), scaled(held_out, of_validation)
    options = {"dtype": torch.float32, "clip": 0.1, "weight_decay": 0.01}
    one, first = trained(case, data, held_out, **options)
    other, second = trained(case, changed, kept, **options)
    assert torch.equal(one.block_inputs(case.read(*data))[0], other.block_inputs(case.read(*changed))[0])
    assert_same_state(one, other)
    assert first.best_step == second.best_step
    shift = math.log(2) * sum(exponents[: case.columns])
    assert second.best_validation == pytest.approx(first.best_validation + shift, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "soap"])
@pytest.mark.parametrize("exponent", [-100, 100])
def test_the_optimiser_does_not_see_the_units_of_the_targets(optimizer: str, exponent: int) -> None:
    case, data, held_out = CASES["regression"], table(150, 0), table(60, 1)
    options = {"optimizer": optimizer, "clip": 0.1, "dtype": torch.float64}
    units = (0, 0, 0, exponent)
    one, first = trained(case, data, held_out, **options)
    other, second = trained(case, scaled(data, units), scaled(held_out, units), **options)
    assert_same_state(one, other)
    assert first.loss == second.loss and first.validation == second.validation
    assert other.loss_unit == 4.0**exponent * one.loss_unit
    x = held_out[0]
    assert torch.equal(other.freeze().predict(x), 2.0**exponent * one.freeze().predict(x))


@settings(max_examples=5)
@given(exponents=EXPONENTS)
def test_draws_and_points_come_back_in_the_units_given(exponents: tuple[int, ...]) -> None:
    x, y = table(100, 0)
    changed, _ = scaled((x, y), exponents)
    units = 2.0 ** torch.tensor(exponents, dtype=torch.float64)
    one, other = flow(), flow()
    one.initialise(x)
    other.initialise(changed)
    frozen = one.freeze(x), other.freeze(changed)
    mixtures = cl.Ensemble([frozen[0], frozen[0]]), cl.Ensemble([frozen[1], frozen[1]])
    for first, second in (frozen, mixtures):
        assert torch.equal(second.sample(5, seed=0), first.sample(5, seed=0) * units[:DIM])
        shift = math.log(2) * sum(exponents[:DIM])
        torch.testing.assert_close(second.log_prob(changed), first.log_prob(x) - shift, rtol=0, atol=1e-9)
    x, changed, units = x[:, :2], changed[:, :2], units[:2]
    plane, another = CASES["density of the plane"].make(), CASES["density of the plane"].make()
    plane.initialise(x)
    another.initialise(changed)
    assert torch.equal(another.mode(), plane.mode() * units)
    assert torch.equal(another.score(changed), plane.score(x) / units)
    assert torch.equal(another.credible_region(0.5).contains(changed), plane.credible_region(0.5).contains(x))


OTHER_UNITS = [(1e-6, 0.0), (1e15, 0.0), (1 / 3, 1e7), (1.0, 1.7e9)]


@pytest.mark.parametrize(("factor", "shift"), OTHER_UNITS)
@pytest.mark.parametrize("name", CASES)
def test_other_units_change_a_score_by_rounding_alone(name: str, factor: float, shift: float) -> None:
    case, data, held_out = CASES[name], table(150, 0), table(60, 1)

    def changed(columns: Table) -> Table:
        return factor * columns[0] + shift, factor * columns[1] + (0.0 if case.weighted else shift)

    one, first = trained(case, data, held_out)
    other, second = trained(case, changed(data), changed(held_out))
    units = case.columns * math.log(factor)
    assert second.best_validation == pytest.approx(first.best_validation + units, abs=1e-3)
    if name == "regression":
        back = (other.freeze().predict(changed(data)[0]) - shift) / factor
        torch.testing.assert_close(back, one.freeze().predict(data[0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["flow", "density of the line", "conditional by likelihood", "regression"])
def test_what_comes_back_has_the_dtype_of_the_rows_or_of_the_task(
    name: str, inner: torch.dtype, rows: torch.dtype, tmp_path: Path
) -> None:
    case, (x, last) = CASES[name], table(60, 0, rows)
    task = case.make().to(inner)
    task.initialise(case.read(x, last))
    frozen, wider = task.freeze(case.read(x, last)), torch.promote_types(rows, inner)
    cl.save(frozen, tmp_path / "model.safetensors")
    again = case.make().to(inner)
    again.load_state_dict(task.state_dict())
    assert task.dtype == inner and task.standardiser.mean.dtype == torch.float64
    for model in (frozen, copy.deepcopy(frozen), cl.load(tmp_path / "model.safetensors"), again):
        if model is again and name == "flow":
            continue  # its lift is not frozen
        if name == "regression":
            found = [model.predict(x)]
        elif name == "conditional by likelihood":
            samples, contexts = case.read(x, last)
            found = [model.log_prob(samples, contexts), model.score(samples, contexts), model.mode(contexts)]
            found.append(model.sample(2, contexts[:3], seed=0))
        else:
            found = [model.log_prob(case.read(x, last)[0] if case.weighted else x), model.sample(3, seed=0)]
        assert [tensor.dtype for tensor in found] == [wider] * len(found)


def test_a_task_that_is_cast_keeps_the_units() -> None:
    x = table(60, 0)[0] + 1e9
    task = flow()
    task.initialise(x)
    before = copy.deepcopy(task.standardiser)
    for cast in (task.half(), task.float(), task.double(), task.to(torch.float32)):
        assert torch.equal(cast.standardiser.mean, before.mean)
        assert torch.equal(cast.standardiser.scale, before.scale)


def test_rows_at_a_large_offset_are_resolved() -> None:
    """At 1.7e9, an hour of seconds, float32 would tell 29 values apart."""
    noise = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 1.7e9 + 3600 * noise
    task = cl.LogConcaveDensity(cl.Squared(net(1)))
    history = cl.fit(task, x, validation=x[:500], steps=200, batch_size=500, lr=0.05, progress=False)
    assert task.dtype == torch.float32
    assert history.best_validation == pytest.approx(math.log(3600), abs=0.15)
    draws = task.freeze().sample(1000, seed=0)
    assert len(draws.unique()) == 1000
    assert float(draws.mean()) == pytest.approx(1.7e9 + 1800, abs=100)
    assert bool((task.freeze().credible_region(0.9).contains(x)).double().mean() > 0.8)


@pytest.mark.parametrize("rows", [torch.float32, torch.float64])
def test_derivatives_that_overflow_are_refused(rows: torch.dtype) -> None:
    small, called = (1e-37, "float32") if rows == torch.float32 else (1e-307, "float64")
    x, last = table(60, 0, rows)
    x, inner = x * small, torch.float64
    message = f"^the gradient overflows {called} at .* rows .*: take larger units or float64 rows$"

    made = cl.ConvexPotentialFlow([net()]).to(torch.float32 if rows == torch.float32 else inner)
    made.initialise(x)
    far = x + 1e3 * x.abs().amax(0)
    with torch.no_grad():
        made.norms[0].log_scale.fill_(8.0)
    with pytest.raises(FloatingPointError, match=message):
        made.jacobian(x)
    for case in (CASES["density of the plane"], CASES["conditional by score matching"]):
        task = case.make().to(made.dtype)
        task.initialise(case.read(x, last))
        with torch.no_grad():
            next(p for name, p in task.named_parameters() if name.endswith("linear")).fill_(1e3)
        points, *contexts = case.read(far, last)[:1] if case.weighted else case.read(far, last)
        with pytest.raises(FloatingPointError, match=message):
            task.score(points, *contexts)
    steep = regression().to(made.dtype)
    y = last * (1e20 if rows == torch.float32 else 1e100)
    steep.initialise((x, y))
    x.requires_grad_()
    with pytest.raises(FloatingPointError, match=message):
        steep.predict(x).sum().backward()


def test_weights_count_by_their_ratios_alone() -> None:
    """The weights of validation may sum to one, or to anything."""
    case, (x, weights), (held, of_held) = CASES["density of the line"], table(150, 0), table(1500, 1)
    found = []
    for factor in (1.0, float(1 / of_held.sum()), 1e-30, 1e30):
        task, history = trained(case, (x, weights), (held, factor * of_held))
        found.append(history.best_validation)
        frozen = task.freeze()
        losses = -frozen.log_prob(held[:, :1])
        mean = float((losses * of_held).sum() / of_held.sum())
        assert history.best_validation == pytest.approx(mean, abs=1e-5)
        assert float(frozen.loss((held[:, :1], factor * of_held))) == pytest.approx(mean, abs=1e-5)
    assert max(found) - min(found) < 1e-6


def test_validation_is_a_weighted_mean_over_pieces() -> None:
    """Of 1,024 rows at a time; one of them weighs nothing at all."""
    case, data = CASES["density of the line"], table(150, 0)
    x, weights = table(3000, 1)
    weights = weights.where(torch.arange(3000) >= 1024, 0.0)
    task, history = trained(case, data, (x, weights))
    losses = -task.freeze().log_prob(x[:, :1])
    assert history.best_validation == pytest.approx(float((losses * weights).sum() / weights.sum()), abs=1e-5)


THIRD = torch.tensor(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: 0 * w, "^every weight of the validation data is zero: nothing could be chosen by them$"),
        (lambda w: w.index_fill(0, THIRD, -1.0), "^weights must not be negative; row 3 has -1$"),
        (
            lambda w: w.index_fill(0, THIRD, torch.nan),
            r"^validation data \(tensor 1 of 2\) have NaN at row 3; convexlift.drop_missing leaves",
        ),
    ],
)
def test_weights_of_validation_that_say_nothing_are_refused(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    case, data, (x, weights) = CASES["density of the line"], table(150, 0), table(60, 1)
    with pytest.raises(ValueError, match=message):
        trained(case, data, (x, change(weights)), run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_frozen_density_refuses_weights_that_are_all_zero() -> None:
    case, (x, weights) = CASES["density of the line"], table(60, 0)
    task, _ = trained(case, (x, weights), (x, weights))
    with pytest.raises(ValueError, match="^every weight is zero$"):
        task.freeze().loss((x[:, :1], 0 * weights))


def test_a_mean_of_losses_weighs_its_pieces() -> None:
    data = torch.arange(6.0)
    assert mean_loss(torch.mean, data, 2) == 2.5
    weighed = mean_loss(torch.mean, data, 2, lambda piece: float(piece[0]))
    assert weighed == pytest.approx((2 * 2.5 + 4 * 4.5) / 6)


def test_any_floating_dtype_of_rows_will_do() -> None:
    x = table(60, 0)[0]
    task = flow()
    task.initialise(x.float())
    frozen = task.freeze(x.half())
    near = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-4}
    for dtype, atol in near.items():
        given = x.to(dtype)
        expected = frozen.double().log_prob(given.double())
        torch.testing.assert_close(frozen.float().log_prob(given).double(), expected, rtol=1e-4, atol=atol)
