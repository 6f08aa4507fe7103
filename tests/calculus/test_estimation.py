"""Estimated log-determinants against exact ones, and what they are made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift import ICNN, PICNN, ConvexPotentialFlow, Potential
from convexlift.calculus.estimation import (
    LogdetEstimate,
    Reference,
    conjugate_gradients,
    estimate_with_error,
    estimated_logdet,
    lanczos,
    lanczos_logdet,
    orthogonal_probes,
)

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def definite(rows: int, dim: int, seed: int = 0, floor: float = 0.1) -> Tensor:
    """Positive definite matrices (rows, d, d)."""
    root = torch.randn(rows, dim, dim, generator=seeded(seed), dtype=F64)
    return root @ root.mT / dim + floor * torch.eye(dim, dtype=F64)


def products(matrices: Tensor):
    return lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1)


def drawn(count: int, dim: int, rows: int, seed: int = 0) -> Tensor:
    return orthogonal_probes(count, dim, rows, generator=seeded(seed), like=torch.empty(0, dtype=F64))


def potential(dim: int, seed: int = 0, **options) -> tuple[Potential, Tensor]:
    net = ICNN(dim, **{"hidden": (32, 32), "seed": seed, **options}).double()
    return net.emit(), torch.randn(20, dim, generator=seeded(seed), dtype=F64)


# Hessians as linear maps.


@pytest.mark.parametrize(
    "options", [{}, {"skip": False}, {"quadratic_rank": 2}, {"strong_convexity": 0.0}, {"hidden": (16,)}]
)
def test_the_operator_is_the_hessian(options) -> None:
    f, x = potential(5, **options)
    gradient, operator = f.linearise(x)
    v = torch.randn(3, 20, 5, generator=seeded(1), dtype=F64)
    exact = torch.einsum("nij,knj->kni", f.hessian(x), v)
    torch.testing.assert_close(gradient, f.gradient(x))
    torch.testing.assert_close(operator(v), exact)
    torch.testing.assert_close(operator.rows(slice(4, 9))(v[0, 4:9]), exact[0, 4:9])


# Conjugate gradients.


def test_conjugate_gradients_solve_each_row() -> None:
    matrices, b = definite(6, 12), torch.randn(6, 12, generator=seeded(1), dtype=F64)
    b[2] = 0
    found = conjugate_gradients(products(matrices), b, tolerance=1e-10)
    assert bool(found.converged.all()) and found.iterations <= 24
    torch.testing.assert_close(found.x, torch.linalg.solve(matrices, b), rtol=1e-8, atol=1e-8)
    again = conjugate_gradients(products(matrices), b, start=found.x, tolerance=1e-9)
    assert again.iterations == 0


def test_a_preconditioner_saves_products() -> None:
    scale = torch.logspace(0, 4, 40, dtype=F64)
    matrices = definite(3, 40) * (scale[:, None] * scale).sqrt()
    b = torch.randn(3, 40, generator=seeded(1), dtype=F64)
    plain = conjugate_gradients(products(matrices), b, tolerance=1e-8, max_iterations=2000)
    quick = conjugate_gradients(products(matrices), b, preconditioner=lambda r: r / scale, tolerance=1e-8)
    assert bool(plain.converged.all()) and bool(quick.converged.all())
    assert quick.iterations < plain.iterations / 2


def test_rows_that_do_not_converge_are_flagged() -> None:
    matrices = definite(3, 10)
    matrices[1] = torch.eye(10, dtype=F64)
    matrices[2] = -torch.eye(10, dtype=F64)
    b = torch.ones(3, 10, dtype=F64)
    found = conjugate_gradients(products(matrices), b, tolerance=1e-6, max_iterations=1)
    assert found.converged.tolist() == [False, True, False] and found.iterations == 1
    assert bool(found.residual.isfinite().all())
    tolerances = torch.tensor([10.0, 1e-6, 1e-6], dtype=F64)
    assert conjugate_gradients(products(matrices), b, tolerance=tolerances).converged.tolist() == [1, 1, 0]


# Lanczos.


def test_lanczos_makes_a_tridiagonal_matrix() -> None:
    matrices = definite(4, 9)
    run = lanczos(products(matrices), drawn(2, 9, 4), 9)
    middle = (
        torch.diag_embed(run.diagonal) + torch.diag_embed(run.beside, 1) + torch.diag_embed(run.beside, -1)
    )
    torch.testing.assert_close(run.basis @ run.basis.mT, torch.eye(9, dtype=F64).expand(2, 4, 9, 9))
    torch.testing.assert_close(run.basis @ matrices @ run.basis.mT, middle)
    assert float(run.rest.max()) == 0


def test_an_exhausted_krylov_space_is_exact() -> None:
    # Two eigenvalues: two steps are enough, and six do no harm.
    values = torch.tensor([2.0] * 5 + [3.0] * 3, dtype=F64)
    u = drawn(3, 8, 2)
    for steps in (2, 6):
        found = lanczos_logdet(lambda v: values * v, u, steps)
        exact = (u.square() * values.log()).sum(-1).mean(0)
        torch.testing.assert_close(found.value, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_multiple_of_the_identity_is_exact(dtype, steps) -> None:
    # Its only eigenvalue is found in one step, and f itself is alpha |x|^2 / 2.
    f, x = potential(6, strong_convexity=0.3)
    tensors = {k: t if k == "raw_alpha" else torch.zeros_like(t) for k, t in f.tensors.items()}
    f = Potential(f.architecture, {k: t.to(dtype) for k, t in tensors.items()})
    found = f.logdet_estimate(x.to(dtype), probes=2, steps=steps)
    exact = f.logdet(x.to(dtype))
    torch.testing.assert_close(found.value, exact, rtol=1e-5, atol=1e-5)
    assert float(found.standard_error.max()) < 1e-4


def test_orthogonal_probes() -> None:
    u = drawn(7, 4, 3)
    first, second = u[:4].transpose(0, 1), u[4:].transpose(0, 1)
    torch.testing.assert_close(first @ first.mT, 4 * torch.eye(4, dtype=F64).expand(3, 4, 4))
    torch.testing.assert_close(second @ second.mT, 4 * torch.eye(3, dtype=F64).expand(3, 3, 3))
    many = drawn(1, 3, 20_000)[0]
    torch.testing.assert_close(many.T @ many / 20_000, torch.eye(3, dtype=F64), rtol=0, atol=0.03)


def test_the_standard_error_is_the_deviation() -> None:
    # The same matrix in all 1,500 rows, other probes in each.
    matrix = definite(1, 10, floor=0.02).expand(1_500, 10, 10)
    for count in (3, 8, 16):  # of 16 the first ten have no error
        found = lanczos_logdet(products(matrix), drawn(count, 10, 1_500), 10)
        error = found.value - torch.logdet(matrix[0])
        deviation = float(error.square().mean().sqrt())
        assert abs(float(error.mean())) < 4 * deviation / 1_500**0.5
        assert float(found.standard_error.square().mean().sqrt()) == pytest.approx(deviation, rel=0.1)


def test_the_error_of_few_steps_is_stated() -> None:
    matrices = definite(50, 30, floor=0.01)
    exact = torch.logdet(matrices)
    for steps in (1, 2, 4):
        found = lanczos_logdet(products(matrices), drawn(30, 30, 50), steps)  # no error of the probes
        error = (found.value - exact).abs()
        assert float(error.min()) > 1e-3
        assert bool((error < 5 * found.standard_error).all())


def test_messages() -> None:
    u = drawn(2, 3, 2)
    with pytest.raises(ValueError, match="^an error needs at least 2 probes; got 1$"):
        lanczos_logdet(lambda v: v, u[:1], 2)
    with pytest.raises(ValueError, match="^Lanczos needs at least 1 step; got 0$"):
        lanczos_logdet(lambda v: v, u, 0)
    signs = torch.tensor([[1.0], [-1.0]], dtype=F64)
    with pytest.raises(
        FloatingPointError, match=r"^the Hessian is not positive definite at 1 of 2 rows \(1\): "
    ):
        lanczos_logdet(lambda v: signs * v, u, 2)
    with pytest.raises(FloatingPointError, match=r"at 1 of 2 rows \(1\)"):
        lanczos_logdet(lambda v: torch.where(signs > 0, v, torch.nan), u, 2)
    f, x = potential(3)
    with pytest.raises(ValueError, match='^method must be "exact", "estimated" or None; got \'fast\'$'):
        f.logdet(x, method="fast")
    with pytest.raises(ValueError, match="^an estimate needs at least 1 probe; got 0$"):
        f.logdet(x, method="estimated", probes=0)
    with pytest.raises(ValueError, match="^logdet needs strong_convexity > 0"):
        potential(3, strong_convexity=0.0)[0].logdet(x, method="estimated")
    given = PICNN(3, 1, hidden=(8,), seed=0).double().emit().given(torch.zeros(1, 1, dtype=F64))
    with pytest.raises(ValueError, match="^logdet cannot be estimated for this architecture"):
        given.logdet(x, method="estimated")


# Potentials: exact and estimated.


def test_values_agree_within_the_stated_error_in_64_dimensions() -> None:
    f, _ = potential(64, hidden=(64, 64), strong_convexity=0.2)
    x = torch.randn(100, 64, generator=seeded(1), dtype=F64)
    with torch.no_grad():
        exact = f.logdet(x, method="exact")
        found = f.logdet_estimate(x, probes=32, steps=12)
        assert bool(((found.value - exact).abs() <= 4 * found.standard_error).all())
        assert float(found.standard_error.min()) > 0
        full = f.logdet_estimate(x[:20], probes=64, steps=20)
    torch.testing.assert_close(full.value, exact[:20], rtol=1e-8, atol=1e-8)
    assert float(full.standard_error.max()) < 1e-6


class ManyPotentials:
    """The Hessians of as many potentials as there are points, one each."""

    def __init__(self, net: ICNN, tensors: dict[str, Tensor], x: Tensor) -> None:
        self.net, self.tensors, self.x = net, tensors, x

    def __call__(self, v: Tensor) -> Tensor:
        def product(tensors: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
            return self.net.potential(tensors).hvp(x.expand_as(v), v)

        return torch.func.vmap(product, in_dims=(0, 0, 1), out_dims=1)(self.tensors, self.x, v)

    def rows(self, rows: slice) -> ManyPotentials:
        return ManyPotentials(self.net, {k: t[rows] for k, t in self.tensors.items()}, self.x[rows])

    def hessians(self) -> Tensor:
        return torch.func.vmap(lambda t, x: self.net.potential(t).hessian(x[None])[0])(self.tensors, self.x)


def test_a_thousand_random_potentials_agree_within_the_stated_error() -> None:
    count, dim, generator = 1_000, 20, seeded(0)
    net = ICNN(dim, hidden=(12, 12), seed=0, init="fan_in").double()
    tensors = {}
    for name, tensor in net.emit().tensors.items():
        drawn_tensor = (
            torch.randn(count, *tensor.shape, generator=generator, dtype=F64) / tensor.shape[-1:].numel()
        )
        # Weights over two decades, from nearly flat to sharp.
        size = 10 ** (2 * torch.rand(count, generator=generator, dtype=F64) - 0.5)
        tensors[name] = drawn_tensor * size.view(-1, *[1] * tensor.ndim)
        if name in net.nonnegative:
            tensors[name] = tensors[name].abs()
        if name == "raw_alpha":
            tensors[name] = torch.randn(count, generator=generator, dtype=F64) - 2
    x = torch.randn(count, dim, generator=generator, dtype=F64)
    operator = ManyPotentials(net, tensors, x)
    hessians = operator.hessians()
    exact = torch.logdet(hessians)
    assert float(exact.std()) > 5
    for steps in (4, 10):
        found = estimate_with_error(
            operator, Reference.of(torch.eye(dim, dtype=F64)), drawn(16, dim, count), steps
        )
        errors = ((found.value - exact) / found.standard_error).abs()
        assert bool(errors.isfinite().all())
        assert float((errors <= 2).double().mean()) >= 0.9
        assert float((errors <= 5).double().mean()) >= 0.995


def gradients(f: Potential, x: Tensor, logdet) -> list[Tensor]:
    x = x.clone().requires_grad_()
    tensors = [t for t in f.tensors.values() if t.requires_grad]
    return list(torch.autograd.grad(logdet(x).sum(), [x, *tensors], allow_unused=True))


def test_with_as_many_probes_as_dimensions_the_gradient_is_exact() -> None:
    f, x = potential(7)
    reference = Reference.of(definite(1, 7)[0])

    def estimate(x: Tensor) -> Tensor:
        return estimated_logdet(f.linearise(x)[1], reference, drawn(7, 7, 20), 7)

    for ours, exact in zip(gradients(f, x, estimate), gradients(f, x, f.logdet), strict=True):
        assert (ours is None) == (exact is None)
        if exact is not None:
            torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)


def test_the_gradient_of_one_probe_is_unbiased() -> None:
    # One point 10,000 times, with a probe of its own each time, in 25 parts.
    f, x = potential(6, hidden=(8, 8))
    torch.manual_seed(0)
    rows = x[:1].expand(400, 6)
    parts = [gradients(f, rows, lambda x: f.logdet(x, method="estimated", seed=None)) for _ in range(25)]
    for which, exact in enumerate(gradients(f, x[:1], f.logdet)):
        if exact is not None:
            found = torch.stack([part[which].sum(0) if which == 0 else part[which] for part in parts]) / 400
            exact = exact[0] if which == 0 else exact
            assert bool(((found.mean(0) - exact).abs() <= found.std(0) + 1e-12).all())  # five standard errors


def test_solves_go_on_where_lanczos_is_not_enough() -> None:
    f, x = potential(30, hidden=(64,), strong_convexity=0.01)
    reference = Reference.of(torch.eye(30, dtype=F64))

    def estimate(x: Tensor) -> Tensor:
        return estimated_logdet(f.linearise(x)[1], reference, drawn(30, 30, 20), 2)

    ours, exact = gradients(f, x, estimate)[0], gradients(f, x, f.logdet)[0]
    torch.testing.assert_close(ours, exact, rtol=0, atol=5e-3 * float(exact.abs().max()))


def test_the_method_is_chosen_by_cost() -> None:
    small, large = potential(100)[0], potential(200)[0]
    assert not small.estimates(probes=1) and large.estimates(probes=1) and not large.estimates()
    assert small.estimates("estimated") and not large.estimates("exact", probes=1)
    x = torch.randn(3, 200, generator=seeded(0), dtype=F64)
    with torch.no_grad():
        exact = torch.linalg.slogdet(large.hessian(x))[1]
    torch.testing.assert_close(large.logdet(x).detach(), exact)


def test_a_seed_makes_one_fixed_function_of_x() -> None:
    f, x = potential(20)
    with torch.no_grad():
        state = torch.get_rng_state()
        whole = f.logdet(x, method="estimated")
        parts = torch.cat([f.logdet(x[:7], method="estimated"), f.logdet(x[7:], method="estimated")])
        assert torch.equal(state, torch.get_rng_state())
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole, f.logdet_estimate(x).value, rtol=1e-12, atol=1e-12)
        assert not torch.equal(whole, f.logdet(x, method="estimated", seed=1))
        torch.manual_seed(3)
        first = f.logdet(x, method="estimated", seed=None)
        torch.manual_seed(3)
        assert torch.equal(first, f.logdet(x, method="estimated", seed=None))
        assert not torch.equal(first, f.logdet(x, method="estimated", seed=None))


def test_rows_in_chunks_and_empty_batches(monkeypatch) -> None:
    f, x = potential(9)
    operator, reference, u = (
        f.linearise(x)[1],
        Reference.of(definite(1, 9)[0]),
        drawn(4, 9, 20),
    )
    whole = gradients(f, x, lambda x: estimated_logdet(operator, reference, u, 5))[1:]
    error = estimate_with_error(operator, reference, u, 5)
    monkeypatch.setattr("convexlift.calculus.estimation._CHUNK_BYTES", 10_000)
    operator = f.linearise(x)[1]
    chunked = gradients(f, x, lambda x: estimated_logdet(operator, reference, u, 5))[1:]
    for a, b in zip(whole, chunked, strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert torch.allclose(error.standard_error, estimate_with_error(operator, reference, u, 5).standard_error)
    assert f.logdet(x[:0], method="estimated").shape == f.logdet_estimate(x[:0]).value.shape == (0,)
    bad = x.detach().clone()
    bad[-1] = torch.nan
    for estimate in (lambda: f.logdet(bad, method="estimated"), lambda: f.logdet_estimate(bad)):
        with pytest.raises(FloatingPointError, match=rf"rows \({len(x) - 1}\): "):
            estimate()


def test_a_reference_without_a_factor_is_the_identity() -> None:
    for matrix in (-torch.eye(3), torch.full((3, 3), torch.nan)):
        reference = Reference.of(matrix)
        assert torch.equal(reference.root, torch.eye(3)) and float(reference.logdet) == 0


# Flows.


def patches_like(rows: int, dim: int = 130) -> Tensor:
    """Correlated rows with heavy tails."""
    normal = torch.randn(rows, dim, generator=seeded(0)).cumsum(1) / 5
    return normal * (0.5 + torch.rand(rows, 1, generator=seeded(1)))


def large_flow(**options) -> ConvexPotentialFlow:
    return ConvexPotentialFlow([cl.Squared(ICNN(130, hidden=(16, 16), seed=k)) for k in range(2)], **options)


def test_a_flow_trains_on_estimates_and_resumes_bit_for_bit(tmp_path) -> None:
    x = patches_like(300)
    options = {"steps": 8, "batch_size": 32, "evaluate_every": 4, "progress": False}
    whole = large_flow()
    history = cl.fit(whole, x, **options)

    class Killed(Exception):
        pass

    def kill(event) -> None:
        if event.step == 8:
            raise Killed

    broken = large_flow()
    with pytest.raises(Killed):
        cl.fit(broken, x, run_dir=tmp_path, callbacks=[kill], **options)
    again = large_flow()
    cl.fit(again, x, run_dir=tmp_path, resume=True, **options)
    assert history.stopped == "finished"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_log_prob_and_its_error() -> None:
    x = patches_like(40)
    flow = large_flow(logdet="estimated")
    flow.initialise(x)
    frozen = flow.freeze()
    assert frozen.logdet_method == "estimated"
    found = frozen.log_prob_estimate(x)
    assert isinstance(found, LogdetEstimate)
    torch.testing.assert_close(frozen.log_prob(x), found.value, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(frozen.log_prob(x[:3]), found.value[:3], rtol=1e-5, atol=1e-3)
    exact = copy.deepcopy(frozen)
    exact.logdet_method = None
    sure = exact.log_prob_estimate(x)
    assert float(sure.standard_error.max()) == 0
    torch.testing.assert_close(sure.value, exact.log_prob(x), rtol=1e-5, atol=1e-3)
    assert bool(((sure.value - found.value).abs() <= 5 * found.standard_error + 1e-3).all())
    with pytest.raises(ValueError, match="^an error needs at least 2 probes; got 1$"):
        frozen.log_prob_estimate(x, probes=1)
    with pytest.raises(ValueError, match="^method must be"):
        large_flow(logdet="fast")
    with pytest.raises(FloatingPointError, match=r"1 of 40 rows \(2\)"):
        exact.log_prob_estimate(torch.where(torch.arange(40)[:, None] == 2, 1e30, x))


def test_training_draws_probes_and_evaluation_does_not() -> None:
    x = patches_like(40)
    flow = large_flow()
    flow.initialise(x)
    assert flow.loss(x).item() != flow.loss(x).item()
    flow.eval()
    assert flow.loss(x).item() == flow.loss(x).item()
