from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from convexlift.integration.gaussian import Gaussian, fitted, laplace


def correlated(dim: int, seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    covariance = root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    mean = torch.randn(dim, dtype=torch.float64, generator=generator)
    return Gaussian(mean, torch.linalg.cholesky(covariance))


def test_the_log_density_is_that_of_torch() -> None:
    gaussian = correlated(5)
    x = torch.randn(20, 5, dtype=torch.float64)
    reference = MultivariateNormal(gaussian.mean, scale_tril=gaussian.factor)
    torch.testing.assert_close(gaussian.log_prob(x), reference.log_prob(x))


def test_draws_have_its_moments_and_repeat() -> None:
    gaussian = correlated(3)
    x = gaussian.sample(40_000, torch.Generator().manual_seed(1))
    deviation = gaussian.covariance.diagonal().sqrt()
    assert float(((x.mean(0) - gaussian.mean) / deviation).abs().max()) < 4 / 200
    assert float((torch.cov(x.T) - gaussian.covariance).abs().max()) < 0.05
    assert torch.equal(x, gaussian.sample(40_000, torch.Generator().manual_seed(1)))
    whitened = gaussian.whiten(x)
    assert float((torch.cov(whitened.T) - torch.eye(3)).abs().max()) < 0.03


def test_a_laplace_fit_of_a_gaussian_is_that_gaussian() -> None:
    gaussian = correlated(6)
    found = laplace(gaussian.mean, torch.linalg.inv(gaussian.covariance))
    torch.testing.assert_close(found.covariance, gaussian.covariance)
    assert laplace(torch.zeros(2), torch.eye(2)).mean.dtype == torch.float64


def test_moments_of_draws_and_of_weighted_draws() -> None:
    x = torch.randn(50, 3)
    found = fitted(x)
    torch.testing.assert_close(found.covariance, torch.cov(x.double().T))
    counts = torch.randint(1, 4, (50,))
    repeated = x.repeat_interleave(counts, 0).double()
    weighted = fitted(x, counts)
    torch.testing.assert_close(weighted.mean, repeated.mean(0))
    shape = torch.cov(repeated.T) / torch.cov(repeated.T)[0, 0]
    torch.testing.assert_close(weighted.covariance / weighted.covariance[0, 0], shape)


def test_weighted_draws_recover_the_target() -> None:
    proposal = Gaussian(torch.zeros(2, dtype=torch.float64), 2 * torch.eye(2, dtype=torch.float64))
    target = correlated(2)
    x = proposal.sample(100_000, torch.Generator().manual_seed(0))
    found = fitted(x, (target.log_prob(x) - proposal.log_prob(x)).exp())
    assert float((found.mean - target.mean).abs().max()) < 0.03
    assert float((found.covariance - target.covariance).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"got \(2,\) and \(3, 3\)"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(2, 2)), "lower-triangular with a positive diagonal"),
        (lambda: Gaussian(torch.zeros(1), -torch.eye(1)), "lower-triangular with a positive diagonal"),
        (lambda: Gaussian(torch.tensor([torch.nan]), torch.eye(1)), "entries of the mean have NaN at row 0"),
        (lambda: laplace(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0]))), "go from 0 to 1"),
        (
            lambda: laplace(torch.zeros(1), torch.tensor([[torch.inf]])),
            "entries of the Hessian have an infinity",
        ),
        (lambda: fitted(torch.ones(5, 2)), "the draws do not span 2 dimensions; 5 have weight"),
        (lambda: fitted(torch.randn(1, 2)), "the draws do not span 2 dimensions; 1 have weight"),
        (lambda: fitted(torch.randn(3, 1), torch.tensor([1.0, 0.0, 0.0])), "1 have weight"),
        (lambda: fitted(torch.randn(3, 1), -torch.ones(3)), "non-negative weights"),
        (lambda: fitted(torch.randn(3, 1), torch.zeros(3)), "not all zero"),
        (
            lambda: correlated(2).log_prob(torch.zeros(4, 3).double()),
            r"expected \(N, 2\) samples; got \(4, 3\)",
        ),
    ],
)
def test_bad_input_has_one_sentence(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
