"""Transport maps: closed forms, exact conjugates, units, files, and what they refuse."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift.architectures.base import Architecture
from convexlift.data import Unpaired, whole
from convexlift.sources.named import SOURCES, source_named
from convexlift.tasks.linear import onto_one_scale
from convexlift.tasks.transport import near_quadratic

NAMES = ("source samples", "target samples")


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(dim: int, seed: int) -> Tensor:
    """A covariance of order one, well conditioned, whose axes are turned."""
    axes, _ = torch.linalg.qr(normal(dim, dim, seed))
    return axes * torch.linspace(0.5, 2.0, dim, dtype=torch.float64) @ axes.T


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()) @ vectors.T


def brenier(one: Tensor, other: Tensor) -> Tensor:
    """By the textbook formula: one^-1/2 (one^1/2 other one^1/2)^1/2 one^-1/2."""
    half = root(one)
    back = torch.linalg.inv(half)
    return back @ root(half @ other @ half) @ back


def trained(
    xs: Tensor, xt: Tensor, *, steps: int = 150, seed: int = 0, **options: Any
) -> tuple[cl.TransportMap, cl.History]:
    map = cl.TransportMap.of(xs.shape[1], hidden=(16, 16), seed=seed, **options)
    how = {"optimizer": "adam", "lr": 0.02, "batch_size": 256, "progress": False, "seed": seed}
    return map, cl.fit(map, Unpaired(xs, xt), steps=steps, **how)


def unexplained(found: Tensor, exact: Tensor) -> float:
    """L2-UVP, per cent."""
    return 100 * float((found.detach() - exact).square().sum(1).mean() / exact.var(0).sum())


# The affine map of the start


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_the_premap_is_the_transport_map_between_normal_laws(dim: int) -> None:
    one, other = turned(dim, 1), turned(dim, 2)
    xs, xt = normal(500, dim, 3) @ one + 4, normal(400, dim, 4) @ other - 7
    sides = onto_one_scale(xs, xt, NAMES, True)
    (_, m_s, inverse_s), (_, _, inverse_t) = sides.source, sides.target
    exact = brenier(xs.T.cov(correction=0).reshape(dim, dim), xt.T.cov(correction=0).reshape(dim, dim))
    torch.testing.assert_close(inverse_t @ m_s, exact, rtol=1e-9, atol=1e-10)
    k = inverse_t.trace() / m_s.trace()
    torch.testing.assert_close(inverse_t, k * m_s, rtol=1e-9, atol=1e-10)  # so T is a gradient
    torch.testing.assert_close(m_s @ inverse_s, torch.eye(dim, dtype=torch.float64), atol=1e-9, rtol=0)
    for rows, (mean, matrix, _) in ((xs, sides.source), (xt, sides.target)):
        z = (rows - mean) @ matrix
        assert float(z.mean(0).abs().max()) < 1e-12
        assert float(z.square().mean()) == pytest.approx(1.0)


def test_without_a_premap_the_scales_are_single_numbers() -> None:
    xs, xt = normal(300, 3) * 5 + 1, normal(300, 3, 1) @ turned(3, 2)
    sides = onto_one_scale(xs, xt, NAMES, False)
    for rows, (mean, matrix, _) in ((xs, sides.source), (xt, sides.target)):
        assert torch.equal(matrix, matrix[0, 0] * torch.eye(3, dtype=torch.float64))
        assert float(((rows - mean) @ matrix).square().mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [1, 2, 16])
def test_the_recipe_starts_near_the_affine_map(dim: int) -> None:
    xs, xt = normal(2000, dim), normal(2000, dim, 1) @ turned(dim, 2) + 3
    map = cl.TransportMap.of(dim, seed=0).double()
    map.initialise((xs, xt))
    exact = (xs - xs.mean(0)) @ brenier(xs.T.cov().reshape(dim, dim), xt.T.cov().reshape(dim, dim))
    assert unexplained(map(xs) - xt.mean(0), exact) < 2.0


def test_a_start_near_the_quadratic_needs_one() -> None:
    with pytest.raises(ValueError, match="needs quadratic_rank=2, skip=True"):
        near_quadratic(cl.ICNN(2, hidden=(4,)))


# Closed forms


@pytest.mark.parametrize(("dim", "premap", "most"), [(2, "affine", 0.5), (2, None, 0.5), (8, None, 2.0)])
def test_between_normal_laws(dim: int, premap: str | None, most: float) -> None:
    xs, xt = normal(8000, dim), normal(8000, dim, 1) @ turned(dim, 5) + 2
    map, _ = trained(xs.float(), xt.float(), premap=premap)
    cov = turned(dim, 5) @ turned(dim, 5)
    exact_map, fresh = brenier(torch.eye(dim, dtype=torch.float64), cov), normal(2000, dim, 7)
    frozen = map.freeze()
    assert unexplained(frozen(fresh), fresh @ exact_map + 2) < most
    assert map.left_out == 0
    known = (4 * dim + dim + float(cov.trace() - 2 * root(cov).trace())) / 2
    found = frozen.distance(fresh, normal(2000, dim, 8) @ turned(dim, 5) + 2)
    assert abs(found.half_squared - known) < 4 * found.standard_error
    assert abs(found.cost - known) < 4 * found.cost_error + 0.02 * known
    assert found.w2 == pytest.approx(math.sqrt(2 * found.half_squared))
    assert found.unconverged == 0 and found.gap < 1e-9
    assert frozen.interpolate(fresh, 0.0).equal(fresh) and frozen.interpolate(fresh, 1.0).equal(frozen(fresh))


@pytest.mark.parametrize("premap", ["affine", None])
def test_between_laws_of_one_location_scatter_family(premap: str | None) -> None:
    def heavy(seed: int) -> Tensor:  # not normal: a uniform law on the square, turned and stretched
        g = torch.Generator().manual_seed(seed)
        return 2 * torch.rand(8000, 2, generator=g, dtype=torch.float64) - 1

    one, other = turned(2, 3), turned(2, 4)
    xs, xt = heavy(0) @ one, heavy(1) @ other - 1
    map, _ = trained(xs, xt, premap=premap)
    exact = brenier(one @ one, other @ other)
    # One matrix maps the square of the one onto the other only where both are roots of one square.
    xt = heavy(1) @ one @ exact - 1
    map, _ = trained(xs, xt, premap=premap)
    fresh = heavy(2) @ one
    assert unexplained(map.freeze()(fresh), fresh @ exact - 1) < 1.0


def test_training_beats_the_affine_map_where_the_map_bends() -> None:
    xs = normal(6000, 2).float()
    fresh = normal(2000, 2, 3).float()

    def bent(x: Tensor) -> Tensor:  # the gradient of a convex function
        return x + 2 * torch.sigmoid(4 * x)

    map = cl.TransportMap.of(2, hidden=(16, 16), seed=0)
    data = Unpaired(xs[:3000], bent(xs[3000:]))
    map.initialise(whole(data))
    before = unexplained(map(fresh), bent(fresh))
    cl.fit(map, data, steps=200, optimizer="adam", lr=0.02, batch_size=256, progress=False)
    assert unexplained(map(fresh), bent(fresh)) < before / 5


# Conjugates


@pytest.mark.parametrize("dim", [2, 5, 16])
def test_conjugates_of_random_potentials(dim: int) -> None:
    net = cl.ICNN(dim, (16, 16), activation="squareplus", sharpness=10.0, seed=dim, strong_convexity=0.05)
    f = net.double().emit()
    x = 2 * normal(340, dim, dim)
    y = f.gradient(x).detach()
    found = f.conjugate(y)
    assert bool(found.converged.all())
    assert float(found.residual.max()) < 1e-8
    exact = (x * y).sum(1) - f.value(x)
    assert found.value is not None and found.upper is not None
    torch.testing.assert_close(found.value, exact, rtol=1e-8, atol=1e-8)
    assert bool((found.upper - exact > -1e-12 * (1 + exact.abs())).all())
    # The conjugate of the conjugate at x, whose maximiser is grad f(x), is f(x).
    torch.testing.assert_close((x * y).sum(1) - found.value, f.value(x), rtol=1e-8, atol=1e-8)


def test_rows_that_do_not_converge_are_flagged_and_bounded() -> None:
    f = cl.ICNN(2, (16, 16), sharpness=10.0, seed=0, strong_convexity=0.05).double().emit()
    x = 5 * normal(50, 2)
    y = f.gradient(x).detach()
    cut = f.conjugate(y, start=torch.zeros_like(y), max_iterations=1)
    assert not bool(cut.converged.all())
    exact = (x * y).sum(1) - f.value(x)
    assert cut.value is not None and cut.upper is not None
    assert bool((cut.value <= exact + 1e-9).all()) and bool((cut.upper >= exact - 1e-9).all())
    assert torch.equal(cut.converged, cut.residual <= 1e-8)


def test_potential_and_conjugate_are_in_the_users_units() -> None:
    xs, xt = 10 * normal(500, 2) + 100, 0.1 * normal(500, 2, 1) @ turned(2, 2) - 5
    map, _ = trained(xs, xt, steps=20)
    map = map.double().freeze()
    x = xs[:50].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(map.potential(x).sum(), x)
    y = map(x).detach()
    torch.testing.assert_close(gradient, y, rtol=1e-9, atol=1e-9)
    found = map.conjugate(y)
    torch.testing.assert_close(found.x, x.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.value, (x.detach() * y).sum(1) - map.potential(x.detach()))
    torch.testing.assert_close(map.inverse(y).x, found.x)


# Training


def test_the_maximisers_of_rows_are_kept_and_found_faster() -> None:
    xs, xt = normal(64, 2).float(), (normal(64, 2, 1).exp() + 1).float()
    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0, tolerance=1e-5, target_share=1)
    map.initialise((xs, xt))
    before = map.starts.clone()
    rows = torch.arange(10, 30)
    map.at_rows((rows, rows))
    map.loss((xs[rows], xt[rows])).backward()
    moved = (map.starts != before).any(1)
    assert bool(moved[rows].all()) and int(moved.sum()) == 20
    w = map.target_standardiser(xt[rows], map.dtype)
    residual = (map._potential(None).gradient(map.starts[rows]) - w).norm(dim=1).detach()
    assert float((residual / (1 + w.norm(dim=1))).max()) <= 1e-5
    kept = map.starts.clone()
    map.loss((xs[rows], xt[rows] + 1))  # of rows that nobody named nothing is kept
    assert torch.equal(map.starts, kept)


def test_rows_that_do_not_converge_are_left_out_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    xs, xt = normal(64, 2).float(), normal(64, 2, 1).exp().float()
    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0, tolerance=1e-6, target_share=1)
    map.initialise((xs, xt))
    map.starts[3:] = map.inverse(xt).x[3:].float().mul(0) + map.starts[3:]
    exact = map._potential(None).inverse(map.target_standardiser(xt, map.dtype), tolerance=1e-7).x
    map.starts.copy_(exact)
    map.starts[:3] += 5.0
    before = map.starts.clone()
    monkeypatch.setattr("convexlift.tasks.transport._STEPS", 0)
    map.at_rows((torch.arange(64), torch.arange(64)))
    loss = map.loss((xs, xt))
    assert (map.asked, map.left_out) == (64, 3)
    assert torch.equal(map.starts[:3], before[:3])
    z, w = map.standardiser(xs, map.dtype), map.target_standardiser(xt, map.dtype)
    f = map._potential(None)
    rest = (exact[3:] * w[3:]).sum(1) - f.value(exact[3:])
    torch.testing.assert_close(loss, f.value(z).mean() + rest.mean())


def test_no_conjugate_that_converges_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlift.tasks.transport._STEPS", 0)
    xs = normal(64, 2).float()
    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0, tolerance=1e-7)
    with pytest.raises(cl.TrainingDiverged, match="no conjugate of the batch converged"):
        cl.fit(map, Unpaired(xs, xs.exp()), steps=2, progress=False)


def test_the_gradient_is_that_of_the_exact_dual() -> None:
    xs, xt = normal(40, 2), normal(50, 2, 1) @ turned(2, 2) + 1
    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0, tolerance=1e-10, target_share=1.0).double()
    map.initialise((xs, xt))
    weight = map.block.architecture.skips[0]
    map.loss((xs, xt)).backward()
    step = 1e-5
    values = []
    for sign in (1, -1):
        other = copy.deepcopy(map)
        with torch.no_grad():
            other.block.architecture.skips[0][0, 0] += sign * step
            values.append(float(other.loss((xs, xt))))
    assert float(weight.grad[0, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_the_frozen_map_is_the_map_and_its_alpha_keeps_the_floor() -> None:
    xs, xt = normal(300, 2).float(), normal(300, 2, 1).float() + 1
    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0, floor=0.05)
    map.initialise((xs, xt))
    with torch.no_grad():
        map.block.architecture.raw_alpha.fill_(-50.0)
    frozen = map.freeze()
    assert map._potential(None).alpha.item() == pytest.approx(0.05)
    assert frozen._potential(None).alpha.item() == pytest.approx(0.05)
    torch.testing.assert_close(frozen(xs), map(xs))
    torch.testing.assert_close(frozen.freeze()(xs), frozen(xs))
    assert frozen.starts is None


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_trains_and_freezes(source: str) -> None:
    xs, xt = normal(200, 2).float(), normal(260, 2, 1).exp().float()
    net = near_quadratic(cl.ICNN(2, (8, 8), quadratic_rank=2, activation="squareplus", seed=0))
    map = cl.TransportMap(source_named(source)(net))
    cl.fit(map, Unpaired(xs, xt), steps=3, batch_size=64, progress=False)
    frozen = map.freeze((xs, xt))
    assert isinstance(frozen.block, Architecture)
    # A lift emits from the source rows alone, whatever form they come in.
    for data in (xs, Unpaired(xs, xt + 5)):
        assert torch.equal(map.freeze(data)(xs), frozen(xs))


def test_an_unfrozen_lift_needs_source_rows() -> None:
    xs = normal(100, 2).float()
    map = cl.TransportMap(cl.Lift(cl.ICNN(2, (8, 8), seed=0)))
    map.initialise((xs, xs + 1))
    with pytest.raises(ValueError, match="an unfrozen lift has no weights of its own"):
        map(xs)
    torch.testing.assert_close(map(xs, batch=xs), map.freeze(xs)(xs))


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    xs, xt = normal(200, 2).float(), normal(200, 2, 1).exp().float()
    how = {"steps": 8, "batch_size": 64, "evaluate_every": 2, "progress": False, "lr": 0.02}
    whole_run = cl.TransportMap.of(2, hidden=(8, 8), seed=0)
    cl.fit(whole_run, Unpaired(xs, xt), **how)

    def stop(event: Any) -> None:
        if event.step == 4 and not resuming:
            raise KeyboardInterrupt

    for resuming in (False, True):
        map = cl.TransportMap.of(2, hidden=(8, 8), seed=0)
        cl.fit(map, Unpaired(xs, xt), run_dir=tmp_path / "run", resume=resuming, callbacks=[stop], **how)
    for name, tensor in whole_run.state_dict().items():
        assert torch.equal(tensor, map.state_dict()[name]), name


def test_rows_may_come_from_a_simulator() -> None:
    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(2 * n, 2, generator=generator)
        return x[:n], 2 * x[n:] + 1

    map = cl.TransportMap.of(2, hidden=(8, 8), seed=0)
    cl.fit(map, cl.Simulator(draw), steps=3, batch_size=64, progress=False)
    assert map.asked == 3 * 32  # half of the target rows


# Units, dtypes, files


@pytest.mark.parametrize("premap", ["affine", None])
@pytest.mark.parametrize("rows", [torch.float32, torch.float64])
def test_powers_of_two_change_no_bit(rows: torch.dtype, premap: str | None) -> None:
    xs, xt = normal(200, 2).to(rows), (normal(200, 2, 1) @ turned(2, 2)).exp().to(rows)
    states = []
    for one, other in ((1.0, 1.0), (2.0**20, 2.0**20), (2.0**-31, 2.0**15)):
        map, history = trained(one * xs, other * xt, steps=4, premap=premap)
        own = {name: t for name, t in map.state_dict().items() if "standardiser" not in name}
        states.append((own, history.loss, map(one * xs[:9]) / other))
    for own, loss, mapped in states[1:]:
        assert loss == states[0][1]
        assert torch.equal(mapped, states[0][2])
        for name, tensor in own.items():
            assert torch.equal(tensor, states[0][0][name]), name


def test_float64_rows_keep_their_digits_far_from_zero() -> None:
    xs, xt = normal(500, 2) + 1e9, normal(500, 2, 1) - 1e9
    map, _ = trained(xs, xt, steps=5)
    assert map(xs).dtype == torch.float64
    near, _ = trained(xs - 1e9, xt + 1e9, steps=5)
    torch.testing.assert_close(map(xs) + 1e9, near(xs - 1e9), rtol=0, atol=1e-5)
    assert map(xs.float()).dtype == torch.float64  # as fine as the rows that it was fitted on


def test_supports_a_million_apart_train() -> None:
    xs, xt = normal(2000, 2).float(), (normal(2000, 2, 1) + 1e6).float()
    map, _ = trained(xs, xt, steps=20)
    found = map.distance(xs, xt)
    assert found.w2 == pytest.approx(1e6 * math.sqrt(2), rel=1e-6)
    assert found.w2_error < 0.1
    assert unexplained(map(xs) - 1e6, xs.double()) < 1.0


def test_a_file_gives_the_same_map(tmp_path: Path) -> None:
    xs, xt = normal(200, 2).float(), normal(200, 2, 1).exp().float()
    map, _ = trained(xs, xt, steps=5, premap=None, tolerance=0.02)
    frozen = map.freeze()
    cl.save(frozen, tmp_path / "map.safetensors")
    again = cl.load(tmp_path / "map.safetensors")
    assert torch.equal(again(xs), frozen(xs))
    assert torch.equal(again.potential(xs), frozen.potential(xs))
    assert torch.equal(again.inverse(xt).x, frozen.inverse(xt).x)
    assert (again.premap, again.tolerance, again.block.activation.name) == (None, 0.02, "squareplus")
    with pytest.raises(ValueError, match="still holds a Squared: save model.freeze"):
        cl.save(map, tmp_path / "map.safetensors")


def test_a_state_dict_of_a_map_in_training_loads() -> None:
    xs, xt = normal(100, 2).float(), normal(120, 2, 1).float()
    map, _ = trained(xs, xt, steps=2)
    again = cl.TransportMap.of(2, hidden=(16, 16), seed=1)
    again.load_state_dict(map.state_dict())
    assert torch.equal(again(xs), map(xs)) and torch.equal(again.starts, map.starts)


def test_other_data_are_warned_of() -> None:
    xs, xt = normal(200, 2).float(), normal(200, 2, 1).float()
    map, _ = trained(xs, xt, steps=1)
    map.initialise((xs, xt))
    with pytest.warns(UserWarning, match="the target samples are now .* and 3 times as wide"):
        map.initialise((xs, 3 * xt))


# Bad input

GOOD = normal(50, 2)
FLAT = torch.cat([GOOD[:, :1], 2 * GOOD[:, :1] + 1], 1)
NAN = GOOD.clone()
NAN[3, 1] = math.nan
CONSTANT = GOOD.clone()
CONSTANT[:, 1] = 7.0


@pytest.mark.parametrize(
    ("xs", "xt", "message"),
    [
        (normal(50, 3), GOOD, "expected (N, 2) source samples; got (50, 3)"),
        (GOOD, normal(50, 3), "expected (N, 2) target samples; got (50, 3)"),
        (GOOD.T, GOOD, "expected (N, 2) source samples; got (2, 50)"),
        (GOOD[:1], GOOD, "2 columns need at least 3 source samples; got 1"),
        (GOOD, GOOD[:2], "2 columns need at least 3 target samples; got 2"),
        (GOOD, NAN, "target samples have NaN at row 3, column 1"),
        (CONSTANT, GOOD, "source samples: column 1 is constant (every value is 7): remove it"),
        (GOOD, CONSTANT, "target samples: column 1 is constant (every value is 7): remove it"),
        (GOOD, FLAT, " is a linear combination of the others: remove it"),
    ],
)
@pytest.mark.parametrize("method", ["initialise", "preflight"])
def test_samples_that_no_map_starts_from(method: str, xs: Tensor, xt: Tensor, message: str) -> None:
    map = cl.TransportMap.of(2, hidden=(4,), seed=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(map, method)((xs, xt))
    assert not bool(map.standardiser.fitted)


def test_doubtful_samples_are_warned_of_before_training() -> None:
    far = GOOD.clone()
    far[0, 0] = 500.0
    with pytest.warns(cl.DataWarning, match="row 0"):
        cl.TransportMap.of(2, hidden=(4,), seed=0).preflight(Unpaired(GOOD, far))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda m: cl.TransportMap(torch.nn.Linear(2, 1)), TypeError, "expected an ICNN or a weight source"),
        (lambda m: cl.TransportMap(cl.ICNN(2, strong_convexity=0)), ValueError, "needs strong_convexity > 0"),
        (lambda m: cl.TransportMap.of(2, objective="dual"), ValueError, "unknown objective 'dual'"),
        (lambda m: cl.TransportMap.of(2, premap="normal"), ValueError, 'premap must be "affine" or None'),
        (lambda m: cl.TransportMap.of(2, tolerance=0), ValueError, r"tolerance must be a number in \(0, 1\]"),
        (lambda m: cl.TransportMap.of(2, target_share=0), ValueError, "target_share must be a number in"),
        (lambda m: cl.TransportMap.of(2, floor=-1), ValueError, r"floor must be a number in \[0, 1\)"),
        (lambda m: m.initialise(GOOD), TypeError, r"expected two samples, Unpaired\(xs, xt\); got Tensor"),
        (lambda m: m.loss((GOOD, GOOD[:0])), ValueError, "a mean over no samples is not defined"),
        (lambda m: m(normal(5, 3)), ValueError, r"expected \(N, 2\) source samples; got \(5, 3\)"),
        (lambda m: m.inverse(NAN), ValueError, "target samples have NaN at row 3, column 1"),
        (lambda m: m.distance(GOOD[:1], GOOD), ValueError, "needs at least 2 source samples; got 1"),
        (lambda m: m.interpolate(GOOD, 1.5), ValueError, r"t must be a number in \[0, 1\]; got 1.5"),
    ],
)
def test_misuse_has_a_message(use: Any, error: type[Exception], message: str) -> None:
    map = cl.TransportMap.of(2, hidden=(4,), seed=0)
    with pytest.raises(error, match=message):
        use(map)
