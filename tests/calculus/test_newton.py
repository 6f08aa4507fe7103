"""Inverse gradient maps and conjugates against known answers."""

from __future__ import annotations

import pytest
import torch

from convexlift import ICNN, Potential
from convexlift.calculus.newton import (
    Solution,
    closer_than_zero,
    gaussian_start,
    invert_gradient,
    invert_gradient_by_products,
)


def quadratic_net() -> tuple[ICNN, torch.Tensor]:
    """An ICNN that is (1/2) x'(alpha I + Q'Q) x + a'x exactly: its last layer is zero."""
    net = ICNN(3, hidden=(4,), seed=0, strong_convexity=0.5, quadratic_rank=3).double()
    with torch.no_grad():
        net.outer.zero_()
        net.linear.copy_(torch.tensor([1.0, -2.0, 0.5]))
        net.root.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
        matrix = net.emit().alpha * torch.eye(3, dtype=torch.float64) + net.root.T @ net.root
    return net, matrix


def test_inverse_and_conjugate_of_a_quadratic_are_exact() -> None:
    net, matrix = quadratic_net()
    y = torch.randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        centred = y - net.linear
        exact = torch.linalg.solve(matrix, centred.T).T
        found = net.emit().conjugate(y)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x, exact, rtol=1e-7, atol=1e-7)
    value = (centred * exact).sum(1) / 2
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=1e-10)
    assert bool((found.value <= value + 1e-12).all()) and bool((value <= found.upper + 1e-12).all())


def test_inverse_undoes_the_gradient_far_from_the_start() -> None:
    f = ICNN(5, hidden=(32, 32, 32), seed=1, init="principled").double().emit()
    x = 20 * torch.randn(200, 5, dtype=torch.float64)
    with torch.no_grad():
        found = f.inverse(f.gradient(x))
    assert bool(found.converged.all()) and float(found.residual.max()) <= 1e-8
    torch.testing.assert_close(found.x, x, rtol=1e-4, atol=1e-4)


def test_conjugate_bounds_hold_when_the_solver_is_stopped_early() -> None:
    f = ICNN(4, hidden=(16, 16), seed=2, strong_convexity=0.2).double().emit()
    y = 3 * torch.randn(40, 4, dtype=torch.float64)
    with torch.no_grad():
        loose, tight = f.conjugate(y, tolerance=0.3), f.conjugate(y, tolerance=1e-13)
    assert float(loose.residual.max()) > 1e-3
    assert bool((loose.value <= tight.value + 1e-12).all())
    assert bool((loose.upper >= tight.value - 1e-12).all())


def test_conjugate_value_is_differentiable_by_danskin() -> None:
    net, matrix = quadratic_net()
    y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = net.emit().conjugate(y, tolerance=1e-12)
    (gradient,) = torch.autograd.grad(found.value.sum(), y)
    torch.testing.assert_close(gradient, found.x, rtol=1e-10, atol=1e-10)


def test_rows_that_do_not_converge_are_flagged() -> None:
    # Targets beyond the range of tanh have no preimage.
    y = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    found = invert_gradient(
        torch.tanh, lambda x: (1 - x.tanh() ** 2).unsqueeze(2) + 1e-12, y, max_iterations=40
    )
    assert found.converged.tolist() == [True, False]
    assert float(found.residual[1]) > 0.1


def test_start_and_tolerance_are_used() -> None:
    f = ICNN(3, hidden=(16,), seed=0).double().emit()
    x = torch.randn(10, 3, dtype=torch.float64)
    with torch.no_grad():
        assert f.inverse(f.gradient(x), start=x).iterations == 0


# Without forming a Hessian.


def by_products(f: Potential, y: torch.Tensor, **options) -> Solution:
    def operator(x: torch.Tensor):
        return f.linearise(x)[1]

    return invert_gradient_by_products(f.gradient, operator, y, **options)


def test_newton_by_products_finds_what_newton_finds() -> None:
    f = ICNN(32, hidden=(32, 32), seed=0, strong_convexity=0.3).double().emit()
    x = 3 * torch.randn(60, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        y = f.gradient(x)
        exact = invert_gradient(f.gradient, f.hessian, y)
        root = torch.linalg.inv(f.hessian(torch.zeros_like(x[:1]))[0])
        for preconditioner in (None, lambda r: r @ root):
            found = by_products(f, y, preconditioner=preconditioner)
            assert bool(found.converged.all()) and float(found.residual.max()) <= 1e-8
            assert abs(found.iterations - exact.iterations) <= 2  # still quadratic
            torch.testing.assert_close(found.x, exact.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [8, 80])  # below and above where the inverse forms Hessians
def test_unconverged_rows_are_flagged(dim) -> None:
    f = ICNN(dim, hidden=(32, 32), seed=1, strong_convexity=0.2).double().emit()
    x = 5 * torch.randn(20, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y = f.gradient(x)
        y[3] = f.gradient(torch.zeros_like(x[:1]))[0]
        for found in (
            invert_gradient(f.gradient, f.hessian, y, max_iterations=1),
            by_products(f, y, max_iterations=1),
        ):
            assert found.iterations == 1 and found.converged.nonzero().flatten().tolist() == [3]
            assert float(found.residual[~found.converged].min()) > 1e-8
        found = f.inverse(y)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x[4:], x[4:], rtol=1e-4, atol=1e-4)


def test_a_target_beyond_the_range_is_flagged_by_products_too() -> None:
    y = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def operator(x: torch.Tensor):
        return lambda v: (1 - x.tanh() ** 2 + 1e-12) * v

    found = invert_gradient_by_products(torch.tanh, operator, y, max_iterations=40)
    assert found.converged.tolist() == [True, False] and bool(found.x.isfinite().all())


def test_the_inverse_in_many_dimensions_undoes_the_gradient_in_float32() -> None:
    f = ICNN(150, hidden=(64, 64), seed=0).emit()
    x = 3 * torch.randn(30, 150, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = f.inverse(f.gradient(x))
        assert f.inverse(f.gradient(x), start=x).iterations == 0
    assert bool(found.converged.all())
    assert float((found.x - x).norm() / x.norm()) < 1e-2


def test_the_gaussian_start_is_exact_for_a_quadratic_and_saves_steps() -> None:
    net, matrix = quadratic_net()
    y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        exact = torch.linalg.solve(matrix, (y - net.linear).T).T
        torch.testing.assert_close(gaussian_start(net.emit().gradient, y), exact, rtol=1e-6, atol=1e-6)
        f = ICNN(10, hidden=(32, 32), seed=0).double().emit()
        x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = f.gradient(x)
        start = gaussian_start(f.gradient, y)
        assert float((start - x).norm()) < 0.7 * float(x.norm())
        from_zero = f.inverse(y, start=torch.zeros_like(y))
        assert f.inverse(y, start=start).iterations == f.inverse(y).iterations < from_zero.iterations


def test_a_useless_guess_is_replaced_by_zero() -> None:
    y = torch.ones(2, 3)
    guess = torch.stack([torch.full((3,), 0.9), torch.full((3,), torch.nan)])
    assert torch.equal(closer_than_zero(lambda x: x, y, guess), torch.stack([guess[0], torch.zeros(3)]))


def test_a_target_whose_norm_overflows_is_not_called_converged() -> None:
    y = torch.full((2, 3), 1e19)
    y[0] = 1.0
    found = invert_gradient(lambda x: 2 * x, lambda x: 2 * torch.eye(3).expand(len(x), 3, 3), y * 10)
    assert found.converged.tolist() == [True, False]
