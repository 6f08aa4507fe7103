"""Inverse gradient maps and conjugates against known answers."""

from __future__ import annotations

import torch

from convexlift import ICNN
from convexlift.calculus.solve import invert_gradient


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
