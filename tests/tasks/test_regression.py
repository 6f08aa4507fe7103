from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, Centred, Lift, Projected, Softplus, Squared, fit
from convexlift.tasks import ConvexRegression

UNFROZEN = "^an unfrozen lift has no weights of its own: freeze on training data or pass batch=$"
SOURCES = {
    "icnn": lambda net: net,
    "projected": Projected,
    "softplus": Softplus,
    "squared": Squared,
    "lift": Lift,
}


def net(dim: int = 2, **options) -> ICNN:
    return ICNN(dim, **{"hidden": (16, 16), "seed": 0, "strong_convexity": 0.0, **options})


def data(n: int = 500, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = 3 + 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x, 100 + 5 * (x[:, 0] - 2).abs() + x[:, 1] ** 2


def test_the_prediction_in_closed_form():
    # Without outgoing weights f(t) = t: the prediction is linear in x.
    icnn = net(1).double()
    with torch.no_grad():
        icnn.outer.zero_()
        icnn.linear.fill_(1.0)
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    y = torch.tensor([10.0, 30.0], dtype=torch.float64)
    regression = ConvexRegression(icnn)
    regression.initialise((x, y))
    assert regression.intercept.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(regression.predict(x), y, atol=1e-12)
    assert regression.loss((x, y)).item() == pytest.approx(0.0, abs=1e-20)
    with torch.no_grad():
        regression.intercept += 0.5
    assert torch.allclose(regression.predict(x), y + 5, atol=1e-12)
    assert regression.loss((x, y)).item() == pytest.approx(0.25, abs=1e-9)  # the deviation of y is 10


@pytest.mark.parametrize("name", SOURCES)
def test_it_starts_at_the_mean_of_y(name):
    x, y = data()
    regression = ConvexRegression(SOURCES[name](net()))
    regression.initialise((x, y))
    prediction = regression.freeze((x, y)).predict(x)
    assert float(prediction.mean()) == pytest.approx(float(y.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["softplus", "lift", "projected"])
def test_training_fits_a_convex_function(name, train):
    torch.manual_seed(0)
    x, y = data(2000)
    regression = ConvexRegression(SOURCES[name](net(hidden=(32, 32))))
    train(regression, (x, y), steps=250)
    frozen = regression.freeze((x, y))
    error = float(frozen.loss((x, y)))
    share = float((frozen.predict(x) - y).double().square().mean() / y.double().var(correction=0))
    assert error == pytest.approx(share, rel=1e-4)
    assert error < 0.03


def test_the_prediction_is_convex_in_data_space():
    regression = ConvexRegression(Softplus(net().double()))
    regression.initialise(data(dtype=torch.float64))
    a, b = 10 * torch.randn(2, 500, 2, dtype=torch.float64)
    middle = regression.predict((a + b) / 2)
    assert bool((middle <= (regression.predict(a) + regression.predict(b)) / 2 + 1e-9).all())


def test_the_loss_does_not_depend_on_the_units_of_y():
    x, y = data()
    first, second = ConvexRegression(net()), ConvexRegression(net())
    first.initialise((x, y))
    second.initialise((x, 10 * y + 3))
    assert second.loss((x, 10 * y + 3)).item() == pytest.approx(first.loss((x, y)).item(), rel=1e-5)


def test_targets_may_be_a_column():
    x, y = data()
    regression = ConvexRegression(net())
    regression.initialise((x, y[:, None]))
    assert regression.loss((x, y[:, None])).item() == regression.loss((x, y)).item()
    assert regression.predict(x).shape == (500,)


@pytest.mark.parametrize("name", SOURCES)
def test_freezing_changes_nothing(name):
    x, y = data(dtype=torch.float64)
    regression = ConvexRegression(SOURCES[name](net().double())).eval()
    regression.initialise((x, y))
    frozen = regression.freeze((x, y))
    assert isinstance(frozen.block, ICNN) and not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    batch = x if name == "lift" else None
    assert torch.allclose(frozen.predict(x), regression.predict(x, batch=batch), atol=1e-10)
    assert torch.equal(regression.freeze(x).predict(x), frozen.predict(x))
    if name != "lift":
        assert torch.equal(regression.freeze().predict(x), frozen.predict(x))


def test_emitting_from_other_rows():
    x, y = data()
    regression = ConvexRegression(Lift(net(), seed=0))
    regression.initialise((x, y))
    regression.eval()
    batch, other = (x[:50], y[:50]), (x[50:70], y[50:70])
    own = regression.loss(batch).item()
    assert regression.loss(batch, emit_from=batch).item() == own
    assert regression.loss(batch, emit_from=other).item() != own
    assert regression.loss(batch, emit_from=other).item() == regression.loss(batch, emit_from=x[50:70]).item()
    residual = (regression.predict(x[:50], batch=other) - y[:50]) / regression.target_standardiser.scale
    expected = residual.square().mean().item()
    assert regression.loss(batch, emit_from=other).item() == pytest.approx(expected, rel=1e-5)


def test_settling():
    x, y = data(dtype=torch.float64)
    regression = ConvexRegression(Lift(net().double(), seed=0))
    regression.initialise((x, y))
    assert regression.settle_at == 0.85
    regression.set_progress(1.0)
    regression.settle((x, y))
    assert torch.equal(regression.freeze().predict(x), regression.freeze((x, y)).predict(x))
    assert ConvexRegression(Softplus(net())).settle_at is None


def test_predict_changes_no_state():
    x, y = data()
    regression = ConvexRegression(Lift(net(), summary="moments"))
    regression.initialise((x, y))
    before = {k: v.clone() for k, v in regression.state_dict().items()}
    regression.predict(x, batch=x)
    regression.freeze(x)
    with pytest.warns(UserWarning, match="initialised on other data"):
        regression.initialise((x + 1, y))
    assert regression.training
    assert all(torch.equal(v, before[k]) for k, v in regression.state_dict().items())


def test_state_dict_and_deepcopy_restore_predictions_exactly():
    x, y = data()
    regression = ConvexRegression(Lift(net(), seed=0))
    regression.initialise((x, y))
    regression.loss((x, y)).backward()
    again = ConvexRegression(Lift(net(), seed=1))
    again.load_state_dict(regression.state_dict())
    for other in (again, copy.deepcopy(regression)):
        assert torch.equal(other.predict(x, batch=x), regression.predict(x, batch=x))


def test_an_unfrozen_lift_is_refused():
    x, _ = data()
    regression = ConvexRegression(Lift(net()))
    for call in (lambda: regression.predict(x), lambda: regression.freeze()):
        with pytest.raises(ValueError, match=UNFROZEN):
            call()


def test_bad_input_is_refused():
    x, y = data(10)
    regression = ConvexRegression(net())
    with pytest.raises(TypeError, match=r"^expected a pair \(x, y\); got Tensor$"):
        regression.loss(x)
    with pytest.raises(TypeError, match=r"^expected a pair \(x, y\); got a tuple of 3$"):
        regression.loss((x, y, y))
    with pytest.raises(ValueError, match=r"^expected \(N, 2\) inputs; got \(10, 1\)$"):
        regression.loss((x[:, :1], y))
    with pytest.raises(ValueError, match=r"^expected \(N, 1\) targets; got \(10, 2\)$"):
        regression.loss((x, x))
    with pytest.raises(ValueError, match="^expected as many targets as inputs; got 9 and 10$"):
        regression.loss((x, y[1:]))
    with pytest.raises(TypeError, match="^expected floating-point targets; got int64$"):
        regression.loss((x, y.long()))
    with pytest.raises(ValueError, match="^a mean over no samples is not defined: the batch is empty$"):
        regression.loss((x[:0], y[:0]))
    bad = y.clone()
    bad[4] = math.nan
    with pytest.raises(ValueError, match="^targets have NaN at row 4, column 0$"):
        regression.loss((x, bad))
    with pytest.raises(ValueError, match="^need at least 2 rows to standardise inputs; got 1$"):
        regression.initialise((x[:1], y[:1]))
    with pytest.raises(ValueError, match=r"^the target is constant \(every value is 1\)$"):
        regression.initialise((x, torch.ones(10)))
    with pytest.raises(TypeError, match="^expected an ICNN or a weight source of one; got Linear$"):
        ConvexRegression(torch.nn.Linear(2, 1))


def test_a_centred_block_leaves_its_mean_to_the_intercept() -> None:
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    y = x.square().sum(1) + 3
    source = Squared(ICNN(2, hidden=(8, 8), seed=0))
    regression = ConvexRegression(Centred(source))
    regression.initialise((x, y))
    with torch.no_grad():
        source.latents[-1].mul_(2)  # a move of the outer weights leaves the mean where it is
    assert regression.freeze((x, y)).predict(x).mean().item() == pytest.approx(y.mean().item(), abs=1e-4)
    fit(regression, (x, y), steps=100, batch_size=256, lr=0.01, progress=False)
    frozen = regression.freeze((x, y))
    assert "level" not in frozen.state_dict()
    torch.testing.assert_close(regression.predict(x), frozen.predict(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(regression.freeze().predict(x), frozen.predict(x), atol=1e-3, rtol=1e-3)
    assert (frozen.predict(x) - y).mean().abs().item() < 0.02
