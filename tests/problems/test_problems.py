"""Problems: splits, exact facts against quadrature and moments, error messages."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from convexlift.problems import FROM_FILES, NAMES, gaussian_baseline, problem
from convexlift.problems.simulated.collider import NAMES as FEATURES
from convexlift.problems.simulated.collider import collider_events, raw_events
from convexlift.problems.simulated.gallery import DENSITIES, _panels, distances
from convexlift.problems.simulated.regression import log_sum_exp
from convexlift.problems.simulated.toys import TOYS

HEPMASS = Path(__file__).parents[2] / "../shared/data/hepmass/hepmass_10k.npz"


class Wrapped(nn.Module):
    def __init__(self, log_prob):
        super().__init__()
        self.log_prob = log_prob


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_density_integrates_to_one_and_has_the_stated_entropy(name):
    density = DENSITIES[name]
    x, weight = _panels(density.span, (2_000,))
    log_p = density.log_prob(x.unsqueeze(1))
    assert float((weight * log_p.exp()).sum()) == pytest.approx(1, abs=1e-9)
    assert -float((weight * log_p.exp() * log_p).sum()) == pytest.approx(density.entropy, abs=1e-8)


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_draws_follow_the_density(name):
    density = DENSITIES[name]
    x = density.draw(50_000, torch.Generator().manual_seed(7))
    assert x.dtype == torch.float32 and x.shape == (50_000, 1)
    nodes, weight = _panels(density.span, (1_000,))
    mass = weight * density.log_prob(nodes.unsqueeze(1)).exp()
    mean, second = float((mass * nodes).sum()), float((mass * nodes.square()).sum())
    sd = math.sqrt(second - mean**2)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * sd / math.sqrt(50_000))
    cumulative = mass.cumsum(0)[
        torch.searchsorted(nodes, x.double().squeeze(1).sort().values).clamp(max=len(nodes) - 1)
    ]
    uniform = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    assert float((cumulative - uniform).abs().max()) < 1.95 / math.sqrt(50_000) + 2e-3  # Kolmogorov-Smirnov


def test_log_density_off_the_support_is_minus_infinity():
    assert DENSITIES["uniform"].log_prob(torch.tensor([[1.5], [0.5]])).tolist() == [-math.inf, 0.0]


def test_distances_of_two_normals_to_closed_form():
    """KL and distances of the logistic to itself, shifted: against a brute-force grid."""
    density = DENSITIES["logistic"]
    found = distances(density, lambda x: density.log_prob(x - 0.5))
    x = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    p, q = density.log_prob(x.unsqueeze(1)).exp(), density.log_prob(x.unsqueeze(1) - 0.5).exp()
    step = float(x[1] - x[0])
    assert found["total_variation"] == pytest.approx(0.5 * float((p - q).abs().sum()) * step, abs=1e-6)
    assert found["hellinger"] ** 2 == pytest.approx(1 - float((p * q).sqrt().sum()) * step, abs=1e-6)
    assert found["kl"] == pytest.approx(float((p * (p / q).log()).sum()) * step, abs=1e-6)


def test_mass_outside_the_nodes_counts_in_the_total_variation():
    density = DENSITIES["uniform"]
    found = distances(density, lambda x: -(x.squeeze(1) - 50).square() / 2 - math.log(2 * math.pi) / 2)
    assert found["total_variation"] == pytest.approx(1.0, abs=1e-9)


def test_gallery_score_is_the_excess():
    gumbel = problem("gumbel")
    worse = Wrapped(lambda x: gumbel.log_prob(x) - 0.25)
    assert gumbel.evaluate(worse).mean().item() == pytest.approx(0.25, abs=1e-5)
    assert gumbel.metrics is not None
    assert gumbel.metrics(worse)["kl"] == pytest.approx(0.25, abs=1e-6)
    assert -gumbel.log_prob(gumbel.test).mean().item() == pytest.approx(gumbel.entropy, abs=0.04)


def test_digits_split_and_gaussian():
    digits = problem("digits21")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1197, 240, 360)
    assert torch.allclose(digits.train.mean(0), torch.zeros(21), atol=1e-5)
    assert torch.allclose(torch.cov(digits.train.T), torch.eye(21), atol=1e-4)
    assert gaussian_baseline(digits) == pytest.approx(29.8, abs=0.15)
    assert torch.equal(digits.train, problem("digits21").train)


def test_digits_without_scikit_learn_names_the_extra():
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.datasets'] = None\n"
        "from convexlift.problems import problem\n"
        "try: problem('digits21')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "digits21 needs scikit-learn: pip install 'convexlift[problems]'"


@pytest.mark.skipif(not HEPMASS.is_file(), reason="the HEPMASS rows are not there")
def test_hepmass_rows_and_gaussian():
    rows = problem("hepmass", HEPMASS)
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (4505, 501, 2462)
    assert rows.dim == rows.train.shape[1] == 21
    assert gaussian_baseline(rows) == pytest.approx(27.9, abs=0.15)


GOOD = numpy.zeros((9, 21))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": GOOD}, "has no array 'test'; hepmass needs 'train' and 'test'"),
        ({"train": GOOD[:, :20], "test": GOOD}, "must have at least 2 rows and 21 columns; got (9, 20)"),
        ({"train": GOOD[:1], "test": GOOD}, "'train' must have at least 2 rows and 21 columns; got (1, 21)"),
        ({"train": GOOD.astype(str), "test": GOOD}, "'train' must be numeric; got <U32"),
        (
            {"train": GOOD * numpy.nan, "test": GOOD},
            "'train' rows have NaN at row 0, column 0 (9 of 9 rows have NaN or infinities)",
        ),
    ],
)
def test_hepmass_refuses_other_layouts(tmp_path, arrays, message):
    path = tmp_path / "rows.npz"
    numpy.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        problem("hepmass", path)
    assert str(error.value).startswith(str(path)) and str(error.value).endswith(message)


def test_hepmass_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*missing.npz"):
        problem("hepmass", tmp_path / "missing.npz")
    (tmp_path / "noise.npz").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"noise\.npz is not a readable \.npz file"):
        problem("hepmass", tmp_path / "noise.npz")
    numpy.save(tmp_path / "one.npy", numpy.zeros((9, 21)))
    with pytest.raises(ValueError, match=r"one\.npy has no array 'train'; hepmass needs 'train' and 'test'"):
        problem("hepmass", tmp_path / "one.npy")
    with pytest.raises(ValueError, match=r"^hepmass needs --data FILE\.npz with arrays 'train' and 'test'"):
        problem("hepmass")


def test_unknown_name_and_unwanted_file():
    with pytest.raises(
        ValueError, match="^unknown problem 'digit21'; did you mean 'digits21'. known: digits21, hepmass"
    ):
        problem("digit21")
    with pytest.raises(ValueError, match="^unknown problem 'zzz'; known: digits21, hepmass"):
        problem("zzz")
    with pytest.raises(ValueError, match=r"^problem 'gumbel' reads no file; remove --data x\.npz$"):
        problem("gumbel", "x.npz")


READ = (*FROM_FILES, "digits21", "digits-latents")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READ])
def test_simulated_problems_are_fixed_and_finite(name):
    one, two = problem(name), problem(name)
    for split in ("validation", "test"):
        rows, same = (getattr(p, split) for p in (one, two))
        for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (rows, same)), strict=True):
            assert torch.equal(x, y) and x.dtype == torch.float32 and bool(torch.isfinite(x).all())
    assert one.task in ("flow", "density", "regression") and one.licence and one.source and one.description


def test_collider_events_look_like_the_decay():
    raw = raw_events(20_000, torch.Generator().manual_seed(3))
    column = {name: raw[:, k] for k, name in enumerate(FEATURES)}
    assert raw.shape == (20_000, 21)
    assert column["m(jj)"].median().item() == pytest.approx(80.4, abs=1.5)
    assert column["m(jjb)"].median().item() == pytest.approx(173, abs=2.5)
    assert column["m(l nu b)"].median().item() == pytest.approx(173, abs=8)
    pts = torch.stack([column[f"jet {k} pt"] for k in (1, 2, 3, 4)])
    assert bool((pts[:-1] >= pts[1:]).all()) and bool((pts > 20).all())
    standard = collider_events(20_000, torch.Generator().manual_seed(3))
    assert standard.dtype == torch.float32
    assert bool((standard.mean(0).abs() < 0.05).all()) and bool(((standard.std(0) - 1).abs() < 0.05).all())


def test_collider_decays_conserve_four_momentum():
    """Without detector errors the three-body mass of the hadronic top is the top's: decays are exact."""
    from convexlift.problems.simulated import collider

    draws = torch.Generator().manual_seed(1)
    parent = collider._four(
        100 * torch.randn(50, 3, dtype=torch.float64, generator=draws), torch.full((50,), 173.0).double()
    )
    rest = collider._four(
        30 * torch.randn(50, 3, dtype=torch.float64, generator=draws), torch.full((50,), 80.0).double()
    )
    moved = collider._boost(rest, parent)
    assert torch.allclose(collider._mass(moved), torch.full((50,), 80.0).double(), atol=1e-8)
    still = collider._boost(
        collider._four(torch.zeros(50, 3).double(), torch.full((50,), 173.0).double()), parent
    )
    assert torch.allclose(still, parent)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_toys_draw_from_their_generator(name):
    one, two = (TOYS[name](100, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == (100, 2) and one.dtype == torch.float32 and torch.equal(one, two)


def test_exact_toy_facts():
    assert problem("checkerboard").facts["exact"] == pytest.approx(math.log(8))
    # eight well-separated components: log 8 plus the entropy of one
    expected = math.log(8) + math.log(2 * math.pi * math.e * 0.04)
    assert problem("eight-gaussians").facts["exact"] == pytest.approx(expected, abs=0.03)
    board = problem("checkerboard").test
    assert (
        bool(((board[:, 0].floor() + board[:, 1].floor()).remainder(2) == 0).all()) and board.abs().max() <= 2
    )


def test_regression_truth_and_baselines():
    square = problem("regression-square")
    x, y = square.test
    assert torch.allclose(y, x.square().sum(1))
    noise = square.train[1] - square.train[0].square().sum(1)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert square.facts["constant"] == pytest.approx(50 * 4 / 45, rel=0.1)
    smooth = problem("regression-logsumexp")
    assert smooth.facts["least squares, affine"] < smooth.facts["constant"]
    a, b = torch.randn(2, 50), torch.randn(2, 50)
    assert bool((log_sum_exp((a + b) / 2) <= (log_sum_exp(a) + log_sum_exp(b)) / 2).all())
    exact = Wrapped(None)
    exact.predict = lambda rows: rows.square().sum(1)
    assert float(square.evaluate(exact).max()) < 1e-8


def test_a_flow_problem_as_a_density_keeps_its_rows():
    rings = problem("rings")
    density = rings.as_task("density")
    assert (density.task, density.blocks, density.name) == ("density", 1, "rings")
    assert density.test is rings.test and density.train is rings.train and density.metric == rings.metric
    assert density.architecture == {"hidden": (64, 64, 64), "strong_convexity": 0.1}
    assert density.description.startswith(rings.description) and density.density_objective == "mle"
    gumbel = problem("gumbel")
    assert gumbel.as_task("density") is gumbel and rings.as_task("flow") is rings


@pytest.mark.parametrize(("name", "task"), [("gumbel", "flow"), ("rings", "regression"), ("rings", "magic")])
def test_other_tasks_are_refused(name, task):
    own = problem(name).task
    with pytest.raises(
        ValueError, match=f"^problem '{name}' has task '{own}'; it cannot be taken as '{task}'$"
    ):
        problem(name).as_task(task)


def test_gaussian_baseline_needs_a_density():
    with pytest.raises(
        ValueError,
        match="^a Gaussian baseline needs a density problem; 'regression-square' is a regression problem$",
    ):
        gaussian_baseline(problem("regression-square"))
