"""The log-determinant's chunks, its memory, and the activation's derivatives all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, ConvexPotentialFlow, Lift
from convexlift.calculus import activations, derivatives, logdet


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("lowest", [-1, 2], ids=["unequal weights", "equal weights"])
def test_a_batch_in_chunks_and_a_batch_of_one_chunk_agree(
    depth: int, lowest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = ICNN(3, hidden=(8, 6, 7, 5)[:depth], seed=0).double()
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def results() -> list[Tensor]:
        out = net.emit().logdet(x)
        loss = (out * torch.linspace(lowest, 2, 50, dtype=torch.float64)).sum()
        return [out, *torch.autograd.grad(loss, [x, *net.inner, *net.skips, net.outer, *net.biases])]

    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 10**9})
    whole = results()
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 7 * (2 * depth + 1) * 3 * 8 * 8})  # 7 rows of 50
    for given, known in zip(results(), whole, strict=True):
        torch.testing.assert_close(given, known, rtol=1e-10, atol=1e-11)


def test_gradients_for_equal_weights_are_made_in_the_forward_only_where_all_rows_can_be_factored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = ICNN(3, hidden=(8, 6), seed=0, quadratic_rank=2)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in net.parameters() if p is not net.linear]
    calls = []
    original = logdet._gradients
    monkeypatch.setattr(logdet, "_gradients", lambda *args: (calls.append(1), original(*args))[1])
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 5000})
    with torch.no_grad():
        net.emit().logdet(x)
    assert not calls  # nothing asks for gradients
    known = torch.autograd.grad(net.emit().logdet(x).mean(), parameters)
    made = len(calls)
    # A row that float32 cannot factor: all is done again, that row in float64, and the gradients come later.
    factor = torch.linalg.cholesky_ex
    failing = iter([True])

    def once(hessian: Tensor) -> tuple[Tensor, Tensor]:
        found, info = factor(hessian)
        return found, info.index_fill(0, torch.tensor([0]), 1) if next(failing, False) else info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", once)
    value = net.emit().logdet(x).mean()
    assert len(calls) == made
    for given, want in zip(torch.autograd.grad(value, parameters), known, strict=True):
        torch.testing.assert_close(given, want, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * made


def test_chunks_do_not_write_over_each_other_when_two_backwards_share_a_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = ICNN(3, hidden=(8, 6), seed=0).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 5000})
    out = net.emit().logdet(x)
    first, again = (torch.autograd.grad(out.sum(), net.skips[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_many_chunks_under_vmap_and_jacrev(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ICNN(3, hidden=(8, 6), seed=0).double()
    tensors = {name: t.detach() for name, t in net.emit().tensors.items()}
    x = torch.randn(20, 3, dtype=torch.float64)
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 5000})

    def at(name: str) -> Callable[[Tensor], Tensor]:
        return lambda t: net.potential({**tensors, name: t}).logdet(x)

    alphas = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    known = torch.stack([at("raw_alpha")(alpha) for alpha in alphas])
    torch.testing.assert_close(torch.func.vmap(at("raw_alpha"))(alphas), known)
    jacobian = torch.func.jacrev(at("biases.0"))(tensors["biases.0"])
    torch.testing.assert_close(
        jacobian, torch.autograd.functional.jacobian(at("biases.0"), tensors["biases.0"])
    )


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_softplus_jet_is_its_value_slope_and_curvature_with_their_derivatives(sharpness: float) -> None:
    s = activations.softplus(sharpness)
    u = torch.linspace(-30, 30, 13, dtype=torch.float64).requires_grad_()
    assert s.curvature is not None
    apart = (s.value(u), s.slope(u), s.curvature(u))
    for given, known in zip(s.jet(u), apart, strict=True):
        torch.testing.assert_close(given, known, rtol=1e-14, atol=0)
    for used in ([0], [1], [2], [0, 1, 2]):
        (given,) = torch.autograd.grad(sum(s.jet(u)[i].sum() for i in used), u)
        (known,) = torch.autograd.grad(sum(apart[i].sum() for i in used), u, retain_graph=True)
        torch.testing.assert_close(given, known, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(s.jet, u)
    assert torch.autograd.gradgradcheck(s.jet, u)


def test_a_joint_function_that_disagrees_is_refused() -> None:
    s = activations.softplus()

    def wrong(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return s.value(u), s.slope(u), s.slope(u)

    with pytest.raises(ValueError, match="activation 'mine': its joint curvature at u = "):
        activations.Activation("mine", s.value, s.slope, s.curvature, joint=wrong)


def test_linearise_is_gradient_slopes_and_bends() -> None:
    net = ICNN(3, hidden=(8, 6, 7), seed=0, quadratic_rank=1).double()
    layers, x = net.layers(net.emit().tensors), torch.randn(5, 3, dtype=torch.float64)
    gradient, slopes, bends = derivatives.linearise(x, layers, net.activation)
    us = derivatives.preactivations(x, layers, net.activation)
    outers = derivatives.reverse_sweep(layers, slopes)
    torch.testing.assert_close(gradient, net.emit().gradient(x))
    for u, slope, bend, outer in zip(us, slopes, bends, outers, strict=True):
        torch.testing.assert_close(slope, torch.sigmoid(u))
        torch.testing.assert_close(bend, outer * torch.sigmoid(u) * torch.sigmoid(-u))


def flow(chunk: int | None) -> ConvexPotentialFlow:
    return ConvexPotentialFlow(
        [Lift(ICNN(4, hidden=(32, 32, 32), seed=k), seed=k) for k in range(2)], chunk=chunk
    )


def test_a_chunked_flow_has_the_same_loss_and_gradient() -> None:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    grads, losses = [], []
    for chunk in (None, 16, 100, 1000):
        model = flow(chunk).double()
        model.initialise(x.double())
        loss = model.loss(x.double())
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=0)
        for given, known in zip(grad, grads[0], strict=True):
            torch.testing.assert_close(given, known, rtol=1e-9, atol=1e-12)


def test_a_chunked_flow_emits_once_from_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    emit = Lift.emit
    monkeypatch.setattr(
        Lift, "emit", lambda self, batch=None: (seen.append(len(batch)), emit(self, batch))[1]
    )
    flow(16).train().loss(torch.randn(100, 4)).backward()
    assert seen == [100, 100]


def test_a_chunk_bounds_what_the_backward_keeps() -> None:
    x = torch.randn(2000, 4)

    def kept(chunk: int | None) -> int:
        sizes: dict[int, int] = {}

        def count(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        model = flow(chunk)
        model.initialise(x)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = model.loss(x)  # noqa: F841 (alive, so that no storage is counted twice)
        return sum(sizes.values())

    assert kept(100) < kept(None) / 4


def test_a_frozen_flow_keeps_its_chunk_and_its_values() -> None:
    x = torch.randn(100, 4)
    model = flow(7)
    model.initialise(x)
    frozen = model.freeze(x)
    assert frozen.chunk == 7
    known = frozen.log_prob(x)
    frozen.chunk = None
    torch.testing.assert_close(known, frozen.log_prob(x))


def test_a_chunk_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="^chunk must be at least 1 row, or None; got 0$"):
        flow(0)


def test_chunks_and_functional_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ICNN(3, hidden=(8, 6), seed=0).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    tensors = {name: p.detach() for name, p in net.named_parameters()}

    def total(tensors: dict[str, Tensor]) -> Tensor:
        return net.potential(tensors).logdet(x).sum()

    known = torch.autograd.grad(net.emit().logdet(x).sum(), net.skips[1])[0]
    monkeypatch.setattr(logdet, "_CHUNK_BYTES", {"cpu": 5000})
    torch.testing.assert_close(torch.func.grad(total)(tensors)["skips.1"], known)
