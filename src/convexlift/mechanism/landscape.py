"""The loss around a run, in the space of effective weights, and the plateaus of its validation curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.mechanism.observing import Loss, observing
from convexlift.sources import WeightSource
from convexlift.training.history import History


@final
@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss over a plane and along a line; see ``landscape``.

    Attributes:
        x, y: (m,) coordinates along the first and second principal direction, from the trajectory's mean.
        loss: (m, m), ``loss[i, j]`` at (x[i], y[j]); infinite where it cannot be computed.
        path: (T, 2) the trajectory's coordinates in the plane.
        explained: share of the trajectory's variance that lies in the plane.
        line: (m,) places on the straight line from the first point (0) to the last (1).
        line_loss: (m,) the loss there.
    """

    x: Tensor
    y: Tensor
    loss: Tensor
    path: Tensor
    explained: float
    line: Tensor
    line_loss: Tensor


@guarded
def landscape(
    frozen: nn.Module, loss: Loss, data: Any, trajectory: Tensor, *, points: int = 25, margin: float = 0.25
) -> Landscape:
    """The loss over the plane of a trajectory's two leading principal directions, and along its chord.

        W(x, y) = max(W_bar + x e_1 + y e_2, 0),    W(t) = (1 - t) W_first + t W_last,

    with e_1, e_2 the leading right singular vectors of the centred trajectory; the maximum, of constrained
    weights only, takes a point to the nearest convex network. The parameters of a frozen model are its
    effective weights, so trajectories of different weight sources of one architecture share a space: put
    several below each other and split ``path``. The model is left as it was, to the bit.

    Args:
        frozen: a frozen model, or any module without weight sources.
        loss: a scalar function of data that evaluates this very model, such as ``frozen.loss``.
        data: what the loss reads.
        trajectory: (T, P) points, T >= 3: ``torch.nn.utils.parameters_to_vector(event.frozen.parameters())``
            of each `FitEvent`.
        points: m, places on each axis.
        margin: how far the plane goes beyond the path, as a share of its extent.

    Raises:
        ValueError: the model holds a weight source; the trajectory has another width, fewer than three
            points, entries that are not finite, or lies on a line.

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
        2018.

    Example:
        >>> import convexlift as cl
        >>> net, x, models = cl.ICNN(1, hidden=(4, 4), seed=0), torch.randn(100, 1), []
        >>> task, data = cl.ConvexRegression(cl.Softplus(net)), (x, x[:, 0] ** 2)
        >>> history = cl.fit(task, data, steps=40, lr=0.1, progress=False, evaluate_every=1,
        ...                  callbacks=[lambda event: models.append(event.frozen)])
        >>> path = torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models])
        >>> found = landscape(models[-1], models[-1].loss, data, path, points=5)
        >>> found.loss.shape, found.path.shape, bool(found.line_loss[0] > found.line_loss[-1])
        (torch.Size([5, 5]), torch.Size([40, 2]), True)
    """
    parameters = list(frozen.parameters())
    trajectory = _check(frozen, trajectory.detach(), sum(p.numel() for p in parameters))
    centre = trajectory.mean(0)
    _, sizes, directions = torch.linalg.svd(trajectory - centre, full_matrices=False)
    if not float(sizes[1]) > 1e-9 * float(sizes[0]):
        raise ValueError("the points of the trajectory lie on a line: they span no plane")
    axes = directions[:2]
    path = (trajectory - centre) @ axes.T
    x, y = (_axis(column, points, margin) for column in path.T)
    line = torch.linspace(0, 1, points, dtype=torch.float64)
    first, last = trajectory[0], trajectory[-1]
    with observing(frozen):
        frozen.eval().requires_grad_(True)  # a frozen density keeps its normaliser otherwise
        at = _loss_at(frozen, loss, data)
        plane = [at(centre + a * axes[0] + b * axes[1]) for a in x for b in y]
        chord = [at(torch.lerp(first, last, float(t))) for t in line]
    return Landscape(
        x=x.cpu(),
        y=y.cpu(),
        loss=torch.tensor(plane, dtype=torch.float64).view(points, points),
        path=path.cpu(),
        explained=float(sizes[:2].square().sum() / sizes.square().sum()),
        line=line,
        line_loss=torch.tensor(chord, dtype=torch.float64),
    )


@final
@dataclass(frozen=True)
class Plateau:
    """A stretch of a run in which validation hardly improves although it will; see ``plateaus``.

    Attributes:
        start: the step at which it begins.
        length: in steps.
        depth: how much the validation loss still falls after it.
    """

    start: int
    length: int
    depth: float


def plateaus(history: History, *, share: float = 0.1) -> list[Plateau]:
    """The plateaus of a run, found on the validation curve of its frozen models.

    Let m be the best validation loss so far and m_0 - m_end its fall over the run. A plateau is a longest
    stretch between evaluations in which m falls, each time, slower than ``share`` of its mean rate, that
    lasts at least ``share`` of the run, and after which m falls by at least ``share`` of m_0 - m_end. So the
    end of a run that has converged is no plateau.

    Raises:
        ValueError: a history without validation, or a share outside (0, 1).

    Example:
        >>> from convexlift import History
        >>> plateaus(History(steps=[0, 10, 20, 30, 40], validation=[5.0, 3.0, 3.0, 3.0, 1.0]))
        [Plateau(start=10, length=20, depth=2.0)]
    """
    if not history.validation:
        raise ValueError("plateaus needs a history with validation losses")
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1; got {share}")
    steps = history.steps
    best = [min(history.validation[: k + 1]) for k in range(len(steps))]
    fall, span = best[0] - best[-1], steps[-1] - steps[0]
    found, start = [], 0
    for k in range(1, len(steps)):
        # A stretch runs from `start` to k - 1; it ends where the fall to k is not slow.
        if (best[k - 1] - best[k]) * span >= share * fall * (steps[k] - steps[k - 1]):
            length, depth = steps[k - 1] - steps[start], best[k - 1] - best[-1]
            if fall > 0 and length >= share * span and depth >= share * fall:
                found.append(Plateau(steps[start], length, depth))
            start = k
    return found


def _check(frozen: nn.Module, trajectory: Tensor, size: int) -> Tensor:
    if any(isinstance(part, WeightSource) for part in frozen.modules()):
        raise ValueError("landscape needs a frozen model: its parameters are then the effective weights")
    if trajectory.ndim != 2 or trajectory.shape[1] != size or len(trajectory) < 3:
        raise ValueError(f"expected a (T, {size}) trajectory, T >= 3; got {tuple(trajectory.shape)}")
    if not bool(trajectory.isfinite().all()):
        raise ValueError("the trajectory has entries that are not finite")
    return trajectory.double()


def _axis(places: Tensor, points: int, margin: float) -> Tensor:
    spare = margin * float(places.max() - places.min())
    return torch.linspace(
        float(places.min()) - spare, float(places.max()) + spare, points, dtype=places.dtype
    ).to(places.device)


def _loss_at(frozen: nn.Module, loss: Loss, data: Any) -> Callable[[Tensor], float]:
    """The loss as a function of all parameters in one vector."""
    parameters = list(frozen.parameters())
    constrained = {
        part.get_parameter(name) for part in frozen.modules() for name in getattr(part, "nonnegative", ())
    }

    @torch.no_grad()
    def at(point: Tensor) -> float:
        pieces = point.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))
            if parameter in constrained:
                parameter.clamp_min_(0)
        try:
            value = float(loss(data))
        except FloatingPointError:
            return float("inf")
        return value if value == value else float("inf")

    return at
