"""What a flow does with overflow, infinities, far points and failing solvers: a number or a clear error."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift import ICNN, Lift, Softplus, Squared
from convexlift.tasks import ConvexPotentialFlow
from convexlift.tasks import flow as module
from convexlift.tasks.flow import log_prob_by_cholesky

FAR = r"^the log-density is not finite in float64 at {}: samples too far out, or weights too large$"
BELOW = r"^the log-density is below the range of the flow's dtype at {}: remove them, or use flow.double\(\)$"


def data(n: int = 500, dtype: torch.dtype = torch.float32) -> Tensor:
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([10 + 3 * a, -5 + a**2 + 0.5 * b], dim=1).to(dtype)


def flow(source=Squared, dtype: torch.dtype = torch.float32, blocks: int = 2, **options):
    torch.manual_seed(0)
    nets = [ICNN(2, hidden=(16, 16), seed=k, **options) for k in range(blocks)]
    made = ConvexPotentialFlow([source(net) for net in nets]).to(dtype)
    made.initialise(data(dtype=dtype))
    return made


def steep() -> ConvexPotentialFlow:
    """Potentials that grow like the fourth power, one behind the other: they overflow early."""
    return flow(activation="smooth_squared_relu")


def outliers(x: Tensor, deviations: float) -> Tensor:
    """Three points that many standard deviations out, on three sides."""
    sides = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=x.dtype)
    return x.mean(0) + deviations * x.std(0) * sides


# Points far out.


@pytest.mark.parametrize("source", [Squared, Softplus, Lift])
def test_points_1e4_deviations_out_have_a_finite_and_exact_log_density(source):
    made = flow(source)
    x = outliers(data(), 1e4)
    frozen = made.freeze(data())
    found = frozen.log_prob(x)
    wide = copy.deepcopy(frozen).double()
    z, logdet = wide(x.double())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: wide(row[None])[0][0]))(x.double())
    exact = torch.linalg.slogdet(jacobian)[1] - 0.5 * z.square().sum(1) - math.log(2 * math.pi)
    assert torch.allclose(wide.log_prob(x.double()), exact, rtol=1e-12)
    assert torch.allclose(found.double(), exact, rtol=1e-5) and bool((found < -1e4).all())
    back = wide.inverse(z)
    assert bool(back.converged.all()) and torch.allclose(back.x, x.double(), rtol=1e-8)


def overflowing_between_blocks(source=Softplus) -> ConvexPotentialFlow:
    """The first block has slope 1e35, the norm behind it scale 1e-35: float32 ends at 3400 between them."""
    made = flow(source)
    with torch.no_grad():
        made.blocks[0].architecture.raw_alpha.fill_(1e35)
        made.norms[1].log_scale -= math.log(1e35)
    return made


@pytest.mark.parametrize("grad", [False, True])
def test_rows_that_overflow_are_done_again_in_float64(grad):
    made = overflowing_between_blocks()
    made = made if grad else made.freeze()
    x = torch.cat([data()[:4], outliers(data(), 1e4), data()[4:6]])
    with pytest.raises(FloatingPointError):
        made(x)
    found = made.log_prob(x)
    exact = copy.deepcopy(made).double().log_prob(x.double())
    assert found.dtype == torch.float32 and found.requires_grad == grad
    assert torch.allclose(found.double(), exact, rtol=1e-4)
    if grad:
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), list(made.parameters())))


@pytest.mark.parametrize("grad", [False, True])
def test_rows_below_the_range_of_float32_are_named(grad):
    made = steep() if grad else steep().freeze()
    x = torch.cat([data()[:2], outliers(data(), 1e4), data()[2:4]])
    with pytest.raises(FloatingPointError, match=BELOW.format(r"3 of 7 rows \(2, 3, 4\)")):
        made.log_prob(x)
    assert torch.isfinite(copy.deepcopy(made).double().log_prob(x.double())).all()
    with pytest.raises(FloatingPointError, match=FAR.format(r"3 of 7 rows \(2, 3, 4\)")):
        made.log_prob(torch.where((x.abs() > 1e3), x * 1e30, x))


def test_rows_are_counted_over_the_whole_data_set(monkeypatch):
    monkeypatch.setattr(module, "_HESSIANS", 16)
    x = data(100)
    for row in (17, 50, 51, 60, 80, 99):
        x[row] = 1e36
    with pytest.raises(FloatingPointError, match=FAR.format(r"6 of 100 rows \(17, 50, 51, 60, 80, ...\)")):
        steep().freeze().log_prob(x)


def test_the_gradient_of_good_rows_is_not_spoilt_by_a_row_done_again(monkeypatch):
    made = flow(Softplus, dtype=torch.float64)
    x = data(6, torch.float64)
    exact = torch.autograd.grad(made.log_prob(x).sum(), list(made.parameters()))
    usual = ConvexPotentialFlow._log_prob

    def overflowing(self, rows, batch):
        out = usual(self, rows, batch)
        return torch.where(rows[:, 0] == x[2, 0], math.inf, out)

    monkeypatch.setattr(ConvexPotentialFlow, "_log_prob", overflowing)
    rows = x.clone().requires_grad_(True)
    found = made.log_prob(rows)
    again = torch.autograd.grad(found.sum(), list(made.parameters()), retain_graph=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(exact, again, strict=True))
    (slope,) = torch.autograd.grad(found.sum(), rows)
    assert torch.isfinite(slope).all()


def test_an_estimate_does_not_depend_on_a_row_beside_it_that_fails(monkeypatch):
    flow = ConvexPotentialFlow([ICNN(20, hidden=(16, 16), seed=0)], logdet="estimated").freeze()
    x = torch.randn(9, 20)
    known = flow.log_prob(x)
    original = cl.Potential.gradient_and_logdet

    def fails_far_out(self, x, **options):
        if bool((x[:, 0] > 50).any()):
            raise FloatingPointError
        return original(self, x, **options)

    monkeypatch.setattr(cl.Potential, "gradient_and_logdet", fails_far_out)
    far = torch.full((1, 20), 60.0)
    found = flow.log_prob(torch.cat([x[:4], far, x[4:]]))
    torch.testing.assert_close(found[[0, 1, 2, 3, 5, 6, 7, 8, 9]], known)
    torch.testing.assert_close(found[4:5], log_prob_by_cholesky(flow, far))


def test_the_second_way_to_the_log_density_agrees_with_the_first():
    for source in (Softplus, Lift):
        frozen = flow(source, torch.float64).freeze(data(dtype=torch.float64))
        x = data(50, torch.float64)
        assert torch.allclose(log_prob_by_cholesky(frozen, x), frozen.log_prob(x), atol=1e-12)


# Weights.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_are_not_finite_are_an_error(dtype):
    x = data(5, dtype)
    for value in (math.nan, math.inf):
        frozen = flow(Softplus, dtype).freeze()
        with torch.no_grad():
            frozen.blocks[0].linear[0] = value
        with pytest.raises(FloatingPointError, match=FAR.format(r"5 of 5 rows \(0, 1, 2, 3, 4\)")):
            frozen.log_prob(x)
        with pytest.raises(FloatingPointError, match=r"at 5 of 5 rows \(0, 1, 2, 3, 4\)"):
            frozen(x)
        with pytest.raises(RuntimeError, match=r"^5 of 5 samples did not converge"):
            frozen.sample(5, seed=0)
        assert not frozen.inverse(x).converged.any()


def test_weights_so_large_that_float32_overflows():
    x = data(4)
    with torch.no_grad():
        for scale, message in ((1e19, None), (1e30, BELOW)):
            frozen = flow(Squared).freeze()
            frozen.blocks[0].inner[0].mul_(scale)
            frozen.blocks[0].outer.mul_(scale if message else 1.0)
            if message is None:
                found = frozen.log_prob(x)
                exact = copy.deepcopy(frozen).double().log_prob(x.double())
                assert torch.allclose(found.double(), exact, rtol=1e-3)
                continue
            with pytest.raises(FloatingPointError, match=message.format(r"4 of 4 rows \(0, 1, 2, 3\)")):
                frozen.log_prob(x)


# Inputs.


@pytest.mark.parametrize(
    ("value", "kind"), [(math.inf, "an infinity"), (-math.inf, "an infinity"), (math.nan, "NaN")]
)
def test_inputs_that_are_not_finite_are_named(value, kind):
    made = flow(Lift)
    x = data(6)
    bad = x.clone()
    bad[4, 1] = value
    frozen = made.freeze(data())
    for call in (
        made.loss,
        made,
        made.initialise if not bool(made.standardiser.fitted) else made.settle,
        frozen.log_prob,
        frozen,
        frozen.jacobian,
    ):
        with pytest.raises(ValueError, match=f"^samples have {kind} at row 4, column 1$"):
            call(bad)
    with pytest.raises(ValueError, match=f"^latent points have {kind} at row 4, column 1$"):
        frozen.inverse(bad)
    with pytest.raises(ValueError, match=f"^samples for the lift have {kind} at row 4, column 1$"):
        made.log_prob(x, batch=bad)


@pytest.mark.parametrize("source", [Softplus, Lift])
def test_no_rows_and_one_row(source):
    made = flow(source)
    frozen = made.freeze(data())
    none, one = data()[:0], data()[:1]
    assert frozen.log_prob(none).shape == (0,) and frozen.log_prob(one).shape == (1,)
    assert made.log_prob(none, batch=data()).shape == (0,)
    z, logdet = frozen(none)
    assert z.shape == (0, 2) and logdet.shape == (0,) and frozen.jacobian(none).shape == (0, 2, 2)
    assert frozen.inverse(none).x.shape == (0, 2) and frozen.sample(0).shape == (0, 2)
    assert torch.allclose(frozen.log_prob(one), frozen.log_prob(data()[:9])[:1], rtol=1e-5)
    assert math.isfinite(made.loss(one).item())
    with pytest.raises(ValueError, match="batch is empty|no rows|empty batch|at least"):
        made.loss(none)


# Solvers.


def test_an_inverse_whose_residual_cannot_be_measured_is_flagged():
    # |z| overflows when squared, so that every residual is 0 relative to it.
    frozen = flow(Softplus).freeze()
    z = 1.9e19 * torch.tensor([[1.0, 1.0], [-1.0, 0.3], [1.0, 0.0]])
    found = frozen.inverse(z)
    wide = copy.deepcopy(frozen).double()
    error = (wide(found.x.double())[0] - z.double()).norm(dim=1) / z.double().norm(dim=1)
    assert bool((error[found.converged] < 1e-3).all())


def test_an_inverse_out_of_range_is_flagged():
    frozen = flow(Softplus).freeze()
    z = torch.tensor([[0.0, 0.0], [3e38, 3e38], [1.0, -1.0]])
    found = frozen.inverse(z)
    assert found.converged.tolist() == [True, False, True]


def test_newton_steps_that_run_out_are_flagged_and_counted(monkeypatch):
    from convexlift.calculus import newton

    frozen = flow(Softplus, torch.float64).freeze()
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = frozen.inverse(z)
    inverted = newton.invert_gradient
    monkeypatch.setattr(
        newton, "invert_gradient", lambda *rows, **how: inverted(*rows, **{**how, "max_iterations": 1})
    )
    found = frozen.inverse(z)
    assert exact.converged.all() and not found.converged.all()
    assert bool((found.residual[~found.converged] > 1e-8).all())
    with pytest.raises(RuntimeError, match=r"^\d+ of 50 samples did not converge \(worst relative residual "):
        frozen.sample(50, seed=0)


# Training and tracing.


def test_training_on_a_row_that_overflows_stops_with_its_number():
    x = torch.cat([data(40), torch.full((1, 2), 1e25)])
    made = flow()  # its standardiser is fitted already, on rows without the outlier
    diverges = pytest.raises(cl.TrainingDiverged, match="^training diverged after 0 steps: the loss is inf")
    with pytest.warns(UserWarning, match="initialised on other data"), diverges:
        cl.fit(made, x, steps=3, batch_size=41, allow=("outliers", "repeats"), progress=False)


def test_nothing_looks_at_values_under_vmap():
    frozen = flow(Softplus, torch.float64).freeze()
    x = data(5, torch.float64)
    x[2] = 1e200
    found = torch.func.vmap(lambda row: frozen.log_prob(row[None])[0])(x)
    assert torch.isfinite(found).tolist() == [True, True, False, True, True]
    z, _ = torch.func.vmap(lambda row: tuple(part[0] for part in frozen(row[None])))(x)
    assert z.shape == (5, 2)
