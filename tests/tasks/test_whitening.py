"""Whitening by principal components: the same problem in other coordinates, with its Jacobian counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convexlift as cl
from convexlift.export import log_prob_program
from convexlift.tasks import Principal, Whitener


def rows(n: int = 80, dim: int = 3, seed: int = 0, thin: float = 0.05) -> Tensor:
    """Skewed rows far from zero, nearly on a plane: the last column is a sum but for a ``thin`` rest."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).exp()
    x[:, -1] = x[:, :-1].sum(1) + thin * x[:, -1]
    return 5.0 + x * torch.tensor([1e3, *[0.1] * (dim - 1)], dtype=torch.float64)


def flow(dim: int = 3, **options: Any) -> cl.ConvexPotentialFlow:
    nets = [cl.ICNN(dim, hidden=(8, 8), seed=k).double() for k in range(2)]
    return cl.ConvexPotentialFlow(
        [cl.Squared(nets[0]), cl.Lift(nets[1], weight_gain=1, free_gain=1, seed=0)], **options
    )


def density(dim: int = 2, **options: Any) -> cl.LogConcaveDensity:
    return cl.LogConcaveDensity(cl.Squared(cl.ICNN(dim, hidden=(8, 8), seed=0).double()), **options)


def trained(task: Any, x: Tensor) -> Any:
    cl.fit(task, x, steps=8, batch_size=40, lr=0.01, progress=False)
    return task.freeze(x)


@pytest.mark.parametrize(("make", "dim"), [(flow, 3), (density, 2), (density, 1)])
def test_it_is_the_density_of_the_components_and_their_jacobian(make: Callable[..., Any], dim: int) -> None:
    x, new = rows(dim=dim), rows(20, dim, seed=1)
    components = Principal(dim).fit(x)
    whitened, explicit = trained(make(dim, whiten=True), x), trained(make(dim), components(x))
    jacobian = torch.autograd.functional.jacobian(lambda row: components(row[None])[0], new[0])
    expected = explicit.log_prob(components(new)) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(whitened.log_prob(new), expected, rtol=0, atol=1e-6)


def test_the_log_determinant_is_that_of_automatic_differentiation() -> None:
    x = rows()
    frozen = trained(flow(whiten=True), x)
    z, logdet = frozen(x[:5])
    by_torch = torch.stack(
        [torch.autograd.functional.jacobian(lambda row: frozen(row[None])[0][0], row) for row in x[:5]]
    )
    torch.testing.assert_close(frozen.jacobian(x[:5]), by_torch, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(by_torch).logabsdet, rtol=0, atol=1e-9)
    torch.testing.assert_close(frozen.inverse(z).x, x[:5], rtol=1e-8, atol=0)


def test_components_are_white_whatever_the_order_of_columns() -> None:
    x = rows()
    for map_ in (Principal(3).fit(x), Principal(3).fit(x, torch.ones(len(x)))):
        torch.testing.assert_close(map_(x).T.cov(correction=0), torch.eye(3).double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(map_.inverse(map_(x)), x, rtol=1e-12, atol=0)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(Principal(3).fit(x[:, order])(x[:, order]), map_(x), rtol=0, atol=1e-9)
    assert not torch.allclose(Whitener(3).fit(x)(x), map_(x), atol=1e-2)


def test_a_weight_of_two_is_a_row_given_twice() -> None:
    x = rows()
    weights = torch.ones(len(x), dtype=torch.float64).index_fill(0, torch.arange(10), 2.0)
    twice = Principal(3).fit(torch.cat([x, x[:10]]))
    torch.testing.assert_close(Principal(3).fit(x, weights)(x), twice(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("make", "dim"), [(flow, 3), (density, 2)])
def test_models_of_components_are_saved_drawn_and_mixed(
    make: Callable[..., Any], dim: int, tmp_path: Path
) -> None:
    x = rows(dim=dim)
    frozen = trained(make(dim, whiten=True), x)
    cl.save(frozen, tmp_path / "model.safetensors")
    again = cl.load(tmp_path / "model.safetensors")
    assert again.whiten and torch.equal(again.log_prob(x), frozen.log_prob(x))
    drawn = again.sample(500, seed=0)
    assert torch.equal(drawn, frozen.sample(500, seed=0))
    # The thin direction is kept: the draws are as near the plane as the rows are.
    thin = x.new_tensor([*[-1.0] * (dim - 1), 1.0]) / x.new_tensor([1e3, *[0.1] * (dim - 1)])
    assert float((drawn @ thin).std()) < 3 * float((x @ thin).std())
    if make is flow:
        mixture = cl.Ensemble([frozen, trained(flow(), x)])
        assert bool(mixture.log_prob(x).isfinite().all())
        program = log_prob_program(frozen)
        torch.testing.assert_close(program.module()(x[:2]), frozen.log_prob(x[:2]), rtol=1e-9, atol=1e-9)
    else:
        mode = frozen.mode()
        assert float(frozen.log_prob(mode[None])) >= float(frozen.log_prob(x).max())
        region = frozen.credible_region(0.9)
        assert bool(region.contains(mode[None])) and float(frozen.score(mode[None]).abs().max()) < 1e-5


def test_what_was_saved_without_it_is_as_it_was() -> None:
    """A file of a model that does not whiten has no entry for it: versions before read it too."""
    assert "whiten" not in flow().config() and not flow().whiten
    assert "whiten" not in density().config() and isinstance(density().standardiser, Whitener)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill(1, torch.tensor(1), 2.0), r"^column 1 is constant \(every value is 2\)"),
        (lambda x: torch.cat([x[:, :2], x[:, :2].sum(1, keepdim=True)], 1), "is a linear combination of"),
        (lambda x: x[:3], "^need at least 4 rows to whiten 3 columns; got 3$"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_that_say_nothing_of_their_own_are_refused(
    change: Callable[[Tensor], Tensor], message: str, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=message):
        flow(whiten=True).initialise(change(rows()).to(dtype))


def test_columns_that_nearly_repeat_are_whitened() -> None:
    x = rows(thin=1e-4)
    with pytest.warns(cl.DataWarning, match="nearly a linear combination"):
        frozen = trained(flow(whiten=True), x)
    white = frozen.standardiser(x)
    torch.testing.assert_close(white.std(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-6)
    assert math.isfinite(float(frozen.log_prob(x).mean()))


def test_whiten_is_a_switch() -> None:
    with pytest.raises(TypeError, match="^whiten must be True or False; got 'principal'$"):
        flow(whiten="principal")
    with pytest.raises(TypeError, match="^whiten must be True or False; got 1.0$"):
        density(whiten=1.0)
