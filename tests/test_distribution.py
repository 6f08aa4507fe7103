from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Independent, Normal, TransformedDistribution, constraints, kl_divergence
from torch.distributions.transforms import ComposeTransform

from convexlift import (
    ICNN,
    Centred,
    ConvexPotentialFlow,
    FlowDistribution,
    FlowTransform,
    Lift,
    Potential,
    Softplus,
)


def data(n: int = 500) -> Tensor:
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([10 + 3 * a, -5 + a**2 + 0.5 * b], dim=1)


def trainable(source=Softplus, blocks: int = 2) -> ConvexPotentialFlow:
    torch.manual_seed(0)
    flow = ConvexPotentialFlow([source(ICNN(2, hidden=(8, 8), seed=k)) for k in range(blocks)]).double()
    flow.initialise(data())
    with torch.no_grad():
        for k, norm in enumerate(flow.norms):
            norm.shift += torch.tensor([0.5, -0.2]) * (k + 1)
            norm.log_scale += torch.tensor([0.3, -0.2])
    return flow


@pytest.fixture(scope="module")
def frozen() -> ConvexPotentialFlow:
    return trainable().freeze()


def transformed(flow: ConvexPotentialFlow) -> TransformedDistribution:
    normal = Normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    return TransformedDistribution(normal, [FlowTransform(flow).inv])


# The distribution.


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 4), (2, 0, 3)])
def test_log_prob_over_any_leading_shape(frozen, shape):
    p = FlowDistribution(frozen)
    assert p.batch_shape == () and p.event_shape == (2,) and p.support is constraints.real_vector
    x = torch.randn(*shape, 2, dtype=torch.float64)
    for law in (p, transformed(frozen)) if x.numel() else (p,):
        out = law.log_prob(x)
        assert out.shape == shape
        expected = frozen.log_prob(x.reshape(-1, 2)).reshape(shape)
        assert torch.allclose(out, expected, atol=1e-12, rtol=0)


def test_a_batch_of_distributions(frozen):
    p = FlowDistribution(frozen, validate_args=True).expand((4, 3))  # zuko turns the default off
    assert p.batch_shape == (4, 3) and p.event_shape == (2,)
    assert p.sample((5,)).shape == (5, 4, 3, 2) and p.sample().shape == (4, 3, 2)
    assert FlowDistribution(frozen).sample().shape == (2,)
    x = torch.randn(2, dtype=torch.float64)
    assert torch.equal(p.log_prob(x), frozen.log_prob(x[None]).expand(4, 3))
    assert p.log_prob(torch.randn(5, 4, 3, 2, dtype=torch.float64)).shape == (5, 4, 3)
    assert p.log_prob(torch.randn(3, 2, dtype=torch.float64)).shape == (4, 3)
    with pytest.raises(ValueError, match="not broadcastable"):
        p.log_prob(torch.randn(5, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="^The expanded size of the tensor"):
        p.expand((2, 3))
    joint = Independent(p, 1)
    assert joint.batch_shape == (4,) and joint.event_shape == (3, 2)
    assert joint.log_prob(joint.sample((2,))).shape == (2, 4)
    assert repr(p) == "FlowDistribution(event_shape=(2,), batch_shape=(4, 3))"


def test_it_draws_what_the_flow_draws(frozen):
    p = FlowDistribution(frozen)
    torch.manual_seed(3)
    x = p.sample((5,))
    torch.manual_seed(3)
    assert torch.equal(x, frozen.sample(5))
    torch.manual_seed(3)
    assert torch.equal(x, p.rsample((5,)))
    torch.manual_seed(3)
    assert torch.allclose(x, transformed(frozen).sample((5,)), atol=1e-8)
    assert p.sample((0,)).shape == (0, 2)


def test_the_gradient_of_log_prob(frozen):
    x = data(5).requires_grad_(True)
    for law in (FlowDistribution(frozen), transformed(frozen)):
        assert gradcheck(law.log_prob, (x,))
    flow = trainable()
    gradients = []
    for loss in (
        -FlowDistribution(flow).log_prob(x.detach()).mean(),
        -transformed(flow).log_prob(x.detach()).mean(),
        flow.loss(x.detach()),
    ):
        gradients.append(torch.autograd.grad(loss, list(flow.parameters())))
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(gradients[0], other, strict=True))


def test_values_are_checked(frozen):
    p = FlowDistribution(frozen, validate_args=True)
    bad = torch.tensor([[0.0, torch.nan]], dtype=torch.float64)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(bad)
    with pytest.raises(ValueError, match="^The right-most size of value must match event_shape"):
        p.log_prob(torch.zeros(4, 3, dtype=torch.float64))
    unchecked = FlowDistribution(frozen, validate_args=False)
    with pytest.raises(ValueError, match="^samples have NaN at row 0, column 1$"):
        unchecked.log_prob(bad)
    with pytest.raises(ValueError, match=r"^expected \(..., 2\) points; got \(4, 3\)$"):
        unchecked.log_prob(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="^expected floating-point samples; got int64$"):
        unchecked.log_prob(torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("kind", [FlowDistribution, FlowTransform])
def test_what_is_refused(kind):
    lifted = trainable(Lift)
    message = r"^an unfrozen lift has no density of its own: pass flow.freeze\(data\)$"
    with pytest.raises(ValueError, match=message):
        kind(lifted)
    lifted.settle(data())
    with pytest.raises(ValueError, match=message):
        kind(lifted)
    kind(lifted.freeze())
    with pytest.raises(TypeError, match="^expected a ConvexPotentialFlow; got ICNN$"):
        kind(ICNN(2, hidden=(4,)))


def test_what_has_no_closed_form_says_so(frozen):
    p = FlowDistribution(frozen)
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError):
            getattr(p, name)
    with pytest.raises(NotImplementedError):
        kl_divergence(p, p)


# The transform.


def test_the_transform_is_the_flow(frozen):
    t = FlowTransform(frozen)
    x = data(12).reshape(3, 4, 2)
    z = t(x)
    expected, logdet = frozen(x.reshape(-1, 2))
    assert torch.equal(z.reshape(-1, 2), expected)
    assert torch.equal(t.log_abs_det_jacobian(x, z).reshape(-1), logdet)
    assert torch.allclose(t.inv(z), x, atol=1e-7)
    assert t.inv.inv is t and t.bijective and t.domain.event_dim == t.codomain.event_dim == 1
    assert t.forward_shape((3, 2)) == t.inverse_shape((3, 2)) == (3, 2)
    assert t == FlowTransform(frozen) and t != FlowTransform(copy.deepcopy(frozen))
    assert bool(t.domain.check(x).all()) and bool(t.codomain.check(z).all())
    inverse_logdet = t.inv.log_abs_det_jacobian(z, x)
    assert torch.allclose(inverse_logdet, -t.log_abs_det_jacobian(x, z))
    both = ComposeTransform([t, t.inv])
    assert torch.allclose(both(x), x, atol=1e-7)
    total = both.log_abs_det_jacobian(x, both(x))
    assert torch.allclose(total, torch.zeros(3, 4, dtype=torch.float64), atol=1e-7)


def test_the_log_determinant_is_that_of_automatic_differentiation(frozen):
    t = FlowTransform(frozen)
    x = data(6)
    jacobian = torch.stack([torch.autograd.functional.jacobian(t, row) for row in x])
    assert torch.allclose(t.log_abs_det_jacobian(x, t(x)), torch.linalg.slogdet(jacobian)[1], atol=1e-10)
    assert torch.allclose(frozen.jacobian(x), jacobian, atol=1e-10)


def test_a_cache_saves_the_inverse(frozen, monkeypatch):
    t = FlowTransform(frozen).with_cache(1)
    x = data(4)
    z = t(x)
    assert t.with_cache(1) is t and t.with_cache(0) is not t
    monkeypatch.setattr(ConvexPotentialFlow, "inverse", None)
    assert t.inv(z) is x


def test_a_failing_inverse_is_an_error(frozen, monkeypatch):
    exact = Potential.inverse

    def inverse(self, y, **options):
        found = exact(self, y, **options)
        found.residual[1] = 0.5
        return found

    monkeypatch.setattr(Potential, "inverse", inverse)
    message = r"^1 of 3 points have no converged inverse \(worst relative residual 0.5\); a larger strong"
    with pytest.raises(RuntimeError, match=message):
        FlowTransform(frozen).inv(torch.zeros(3, 2, dtype=torch.float64))


def test_the_gradient_of_the_inverse_in_its_point(frozen):
    t = FlowTransform(frozen)
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(t.inv, (z,), eps=1e-5, atol=1e-5)
    x = t.inv(z)
    assert not t.inv(z.detach()).requires_grad
    (first,) = torch.autograd.grad(x.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_gradient_of_the_inverse_in_the_parameters():
    flow = trainable()
    z = torch.randn(6, 2, dtype=torch.float64)
    weights = torch.randn(6, 2, dtype=torch.float64)
    (FlowTransform(flow).inv(z) * weights).sum().backward()
    seen = 0
    for label, parameter in flow.named_parameters():
        entry = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(flow)
            with torch.no_grad():
                moved.get_parameter(label).view(-1)[entry] += sign * 1e-5
                values.append((moved.inverse(z).x * weights).sum().item())
        exact = (values[0] - values[1]) / 2e-5
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(exact, rel=1e-4, abs=1e-6), label
        seen += 1
    assert seen > 10


def test_reparametrised_draws_train_a_flow():
    # KL(flow | target) falls: variational inference by the gradient of rsample.
    target = Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])), 1)
    flow = ConvexPotentialFlow([Softplus(ICNN(2, hidden=(4,), seed=0))])
    p = FlowDistribution(flow)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    torch.manual_seed(0)
    divergences = []
    for _ in range(60):
        x = p.rsample((32,))
        divergence = (p.log_prob(x) - target.log_prob(x)).mean()
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()
        divergences.append(divergence.item())
    assert sum(divergences[:5]) / 5 > 1.0 and sum(divergences[-5:]) / 5 < 0.25, divergences


def test_a_flow_in_training_is_one_map_and_is_left_as_it_was():
    x = torch.randn(50, 2)
    flow = ConvexPotentialFlow([Centred(Softplus(ICNN(2, hidden=(4, 4), seed=0)))], logdet="estimated")
    flow.initialise(x)
    flow.train()
    before = copy.deepcopy(flow.state_dict())
    transform, p = FlowTransform(flow), FlowDistribution(flow)
    z = transform(x + 1)
    first, second = (transform.log_abs_det_jacobian(x + 1, z) for _ in range(2))
    assert torch.equal(first, second)
    p.rsample((3,))
    assert flow.training and flow.blocks[0].training
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name]), name
