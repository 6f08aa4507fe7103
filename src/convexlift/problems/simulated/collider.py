"""A simulator of two-body resonance decays, with 21 features like HEPMASS's; simulated, not data.

A resonance X of mass 1000 decays to a top pair, each top to W b, one W to a lepton and a neutrino, the other
to two jets: X -> t t -> (W b)(W b) -> (l nu b)(j j b). Every decay is a two-body decay, isotropic in the rest
frame of its parent, exact in relativistic kinematics. Simplifications, all deliberate: no matrix elements and
no spin correlations; widths by a truncated Breit-Wigner; production along the beam with a normal rapidity
(0.6) and an exponential transverse momentum (mean 60); Gaussian detector resolutions (jets 0.1 and 0.8 /
sqrt(E) in quadrature, 0.03 in angle, lepton 0.02 and 0.002, missing momentum 15 a component); each object
accepted above 20 in transverse momentum and within |eta| < 2.5; jets from the W and from the tops told apart
without error. Energies in GeV.

The features: transverse momentum, eta, phi of the lepton; size and phi of the missing transverse momentum;
transverse momentum, eta, phi of the four jets in falling transverse momentum; and the masses of (l nu) in the
transverse plane, (j j), (j j b), (l nu b), where the neutrino's longitudinal momentum solves for the mass of
the W. Each is shifted and scaled by the fixed `MEANS` and `DEVIATIONS`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convexlift.data import Simulator
from convexlift.problems.base import Problem

RESONANCE, TOP, W = (1000.0, 20.0), (173.0, 1.4), (80.4, 2.1)  # mass, width
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
BOTTOM = 4.7
VALIDATION_ROWS = 1_000
TEST_ROWS = 4_000
ARCHITECTURE = {"hidden": (64, 64, 64, 64)}
NAMES = (
    *("lepton pt", "lepton eta", "lepton phi", "missing pt", "missing phi"),
    *(f"jet {k} {what}" for k in range(1, 5) for what in ("pt", "eta", "phi")),
    *("transverse m(l nu)", "m(jj)", "m(jjb)", "m(l nu b)"),
)
# of 200,000 events, rounded
MEANS = (
    *(132.0, 0.0, 0.0, 115.8, 0.0, 255.4, 0.0, 0.0, 169.6, 0.0, 0.0),
    *(102.5, 0.0, 0.0, 54.16, 0.0, 0.0, 57.62, 80.6, 173.2, 185.2),
)
DEVIATIONS = (
    *(88.0, 0.928, 1.814, 86.4, 1.814, 76.1, 0.866, 1.814, 63.4, 0.897, 1.814),
    *(42.2, 0.927, 1.814, 27.6, 0.994, 1.814, 31.5, 9.17, 14.4, 41.1),
)


def collider_events(n: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` accepted events, an (n, 21) float32 tensor of standardised features in the order of `NAMES`.

    Example:
        >>> collider_events(4, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 21])
    """
    return (
        (raw_events(n, generator) - torch.tensor(MEANS, **_PLAIN)) / torch.tensor(DEVIATIONS, **_PLAIN)
    ).float()


def raw_events(n: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` accepted events in GeV and radians, an (n, 21) float64 tensor in the order of `NAMES`."""
    kept: list[Tensor] = []
    while (missing := n - sum(map(len, kept))) > 0:
        features, accepted = _simulate(2 * missing + 64, generator)
        kept.append(features[accepted])
    return torch.cat(kept)[:n] if kept else torch.empty(0, len(NAMES), dtype=torch.float64)


def _simulate(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Features (n, 21) of n events and which of them the detector accepts."""

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64, device="cpu")

    def mass(centre: float, width: float) -> Tensor:
        """A Breit-Wigner of the mass, cut ten half widths from its centre."""
        return centre + width / 2 * torch.tan((2 * uniform() - 1) * math.atan(10.0))

    def decay(parent: Tensor, mass_one: Tensor, mass_two: Tensor) -> tuple[Tensor, Tensor]:
        """Two daughters back to back in the parent's rest frame, in an isotropic direction."""
        cosine, azimuth = 2 * uniform() - 1, 2 * math.pi * uniform()
        sine = torch.sqrt(1 - cosine.square())
        direction = torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), cosine], dim=1)
        invariant = _mass(parent)
        momentum = torch.sqrt(
            (invariant.square() - (mass_one + mass_two).square())
            * (invariant.square() - (mass_one - mass_two).square())
        ) / (2 * invariant)
        one = _boost(_four(momentum.unsqueeze(1) * direction, mass_one), parent)
        return one, parent - one

    def smear(particle: Tensor, energy: Tensor, angle: float) -> Tensor:
        """A massless object with its energy and its direction measured with normal errors."""
        pt, eta, phi = _polar(particle)
        pt = pt * torch.exp(energy * normal() - energy.square() / 2)
        return _massless(pt, eta + angle * normal(), phi + angle * normal())

    zero, bottom = torch.zeros(n, dtype=torch.float64), torch.full((n,), BOTTOM, dtype=torch.float64)
    kick, direction = -60 * torch.log1p(-uniform()), 2 * math.pi * uniform()
    rapidity, resonance = 0.6 * normal(), mass(*RESONANCE)
    longitudinal = torch.sqrt(resonance.square() + kick.square()) * torch.sinh(rapidity)
    x = _four(torch.stack([kick * direction.cos(), kick * direction.sin(), longitudinal], dim=1), resonance)
    top, antitop = decay(x, mass(*TOP), mass(*TOP))
    (w_leptonic, b_leptonic), (w_hadronic, b_hadronic) = (
        decay(parent, mass(*W), bottom) for parent in (top, antitop)
    )
    lepton, neutrino = decay(w_leptonic, zero, zero)
    quarks = decay(w_hadronic, zero, zero)

    jets = [
        smear(jet, torch.sqrt(0.1**2 + 0.64 / jet[:, 0]), 0.03) for jet in (b_leptonic, b_hadronic, *quarks)
    ]
    lepton = smear(lepton, torch.full_like(zero, 0.02), 0.002)
    missing = neutrino[:, 1:3] + 15 * torch.stack([normal(), normal()], dim=1)
    nu = _neutrino(lepton, missing)

    polar = torch.stack([torch.stack(_polar(jet), dim=1) for jet in jets], dim=1)
    order = polar[:, :, 0].argsort(dim=1, descending=True)
    ordered = polar.gather(1, order.unsqueeze(2).expand_as(polar))
    missing_pt = torch.linalg.vector_norm(missing, dim=1)
    pt, eta, phi = _polar(lepton)
    transverse = pt * missing_pt - (lepton[:, 1:3] * missing).sum(1)
    leptonic = [pt, eta, phi, missing_pt, torch.atan2(missing[:, 1], missing[:, 0])]
    masses = [torch.sqrt(2 * transverse.clamp_min(0)), _mass(jets[2] + jets[3])]
    masses += [_mass(jets[1] + jets[2] + jets[3]), _mass(lepton + nu + jets[0])]
    features = torch.cat([torch.stack(leptonic, 1), ordered.flatten(1), torch.stack(masses, 1)], dim=1)
    accepted = (
        (polar[:, :, 0] > 20).all(1) & (polar[:, :, 1].abs() < 2.5).all(1) & (pt > 20) & (eta.abs() < 2.5)
    )
    return features, accepted


def _four(momentum: Tensor, mass: Tensor) -> Tensor:
    """The four-vector (E, px, py, pz), (n, 4), of a momentum (n, 3) and a mass (n,)."""
    energy = torch.sqrt(mass.square() + momentum.square().sum(1))
    return torch.cat([energy.unsqueeze(1), momentum], dim=1)


def _mass(particle: Tensor) -> Tensor:
    return torch.sqrt((particle[:, 0].square() - particle[:, 1:].square().sum(1)).clamp_min(0))


def _boost(particle: Tensor, frame: Tensor) -> Tensor:
    """A four-vector given in the rest frame of `frame`, seen from where `frame` moves."""
    mass, energy, momentum = _mass(frame), frame[:, 0], frame[:, 1:]
    along = (momentum * particle[:, 1:]).sum(1)
    boosted = (energy * particle[:, 0] + along) / mass
    shift = (particle[:, 0] + boosted) / (energy + mass)
    return torch.cat([boosted.unsqueeze(1), particle[:, 1:] + shift.unsqueeze(1) * momentum], dim=1)


def _polar(particle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Transverse momentum, pseudorapidity and azimuth."""
    pt = torch.linalg.vector_norm(particle[:, 1:3], dim=1)
    return pt, torch.asinh(particle[:, 3] / pt), torch.atan2(particle[:, 2], particle[:, 1])


def _massless(pt: Tensor, eta: Tensor, phi: Tensor) -> Tensor:
    return torch.stack([pt * eta.cosh(), pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()], dim=1)


def _neutrino(lepton: Tensor, missing: Tensor) -> Tensor:
    """The neutrino of transverse momentum `missing` for which (l nu) has the mass of the W; the smaller
    longitudinal momentum of the two solutions, their real part where they are complex."""
    pt, square = torch.linalg.vector_norm(lepton[:, 1:3], dim=1), missing.square().sum(1)
    half = W[0] ** 2 / 2 + (lepton[:, 1:3] * missing).sum(1)
    root = torch.sqrt((half.square() - pt.square() * square).clamp_min(0)) * lepton[:, 0]
    pair = torch.stack([half * lepton[:, 3] + root, half * lepton[:, 3] - root]) / pt.square()
    pz = torch.where(pair[0].abs() < pair[1].abs(), pair[0], pair[1])
    return torch.stack([torch.sqrt(square + pz.square()), missing[:, 0], missing[:, 1], pz], dim=1)


def collider() -> Problem:
    """The simulated collider problem: fresh training events, 1,000 validation and 4,000 test events.

    Example:
        >>> events = collider()
        >>> events.dim, tuple(events.test.shape)
        (21, (4000, 21))
    """
    return Problem(
        name="collider",
        task="flow",
        dim=len(NAMES),
        train=Simulator(collider_events),
        validation=collider_events(VALIDATION_ROWS, torch.Generator().manual_seed(401)),
        test=collider_events(TEST_ROWS, torch.Generator().manual_seed(402)),
        description="SIMULATED decays X -> t t -> (l nu b)(j j b) at detector level, 21 features",
        source="simulated by convexlift.problems, in the image of HEPMASS (Baldi et al. 2016)",
        licence="none needed (simulated)",
        architecture=ARCHITECTURE,
    )
