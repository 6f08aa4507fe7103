"""What every weight source shares: it owns an architecture whose constrained tensors it supplies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from convexlift.architectures import Architecture, BoundModule, PartialPotential, Potential
from convexlift.architectures.base import check_nonnegative_tensors
from convexlift.architectures.potential import Block
from convexlift.sources.positivity import PositiveMap


class WeightSource(Block):
    """The common part of ``Projected``, ``Softplus``, ``Squared`` and ``Lift``.

    A source holds a deep copy of an architecture with the constrained tensors taken out; the free ones stay
    there as parameters, and the latents live in the source. ``emit`` puts both together.

    Args:
        module: the architecture, for instance an ``ICNN``, or any module.
        names: the parameters that must be non-negative; ``module.nonnegative`` when omitted.

    Raises:
        ValueError: no names, a name that is no parameter of the module, or a negative initial weight.
    """

    psi: PositiveMap | None = None
    """The map from latents to weights; ``None`` where the latent is the weight."""
    reads_batch = False
    """Whether ``weights`` depend on the batch, so that the model has to be frozen on training data."""

    def __init__(self, module: nn.Module, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.names = _constrained(module, names)
        try:
            check_nonnegative_tensors(self.names, dict(module.named_parameters()))
        except ValueError as error:
            raise ValueError(
                f"{error}: a source gives the module the weight itself, so a module that takes softplus of a "
                "parameter must use it as it is and start it at a weight"
            ) from None
        self.architecture = copy.deepcopy(module)

    @property
    def dim(self) -> int:
        """The number of inputs of the architecture."""
        return int(self.architecture.dim)  # type: ignore[arg-type]

    def weights(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors this source supplies, by parameter name of the architecture."""
        raise NotImplementedError

    def scale(self, name: str) -> float:
        """The factor c in W = c psi(v) for this tensor."""
        return 1.0

    def free_tensors(self) -> dict[str, nn.Parameter]:
        """The parameters that are, or stand for, the architecture's free tensors, by their names there."""
        return dict(self.architecture.named_parameters())

    def emit(self, batch: Tensor | None = None) -> Potential | PartialPotential | BoundModule:
        """One potential: the architecture's free tensors and this source's weights.

        For a module without calculus of its own it is the module as a callable with its tensors bound.
        """
        module, weights = self.architecture, self.weights(batch if self.reads_batch else None)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers()), **weights}
        if isinstance(module, Architecture):
            return module.potential(tensors)
        return BoundModule(module, tensors)

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """The function at x, (N,), with the weights emitted from ``batch``."""
        return self.emit(batch)(x)  # type: ignore[call-arg]

    def freeze(self, data: Tensor | None = None) -> nn.Module:
        """The plain architecture with the weights of this moment, asking for no gradient.

        Raises:
            ValueError: a constrained weight is negative or not a number.
        """
        return self._frozen(self.weights())

    def _frozen(self, weights: Mapping[str, Tensor]) -> nn.Module:
        check_nonnegative_tensors(self.names, weights)
        frozen = copy.deepcopy(self.architecture)
        for name, weight in weights.items():
            _place(frozen, name, nn.Parameter(weight.detach().clone()))
        return frozen.requires_grad_(False).eval()

    def _take_out(self, names: Sequence[str]) -> list[Tensor]:
        """Remove these parameters from the architecture and return their values."""
        taken = [self.architecture.get_parameter(name).detach().clone() for name in names]
        for name in names:
            _place(self.architecture, name, None)
        return taken


def _place(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._parameters[leaf] = parameter


def _constrained(module: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        names = getattr(module, "nonnegative", None)
        if names is None:
            raise ValueError(
                f"{type(module).__name__} does not declare which parameters must be non-negative: "
                "pass names=[...]"
            )
    chosen, known = tuple(names), dict(module.named_parameters())
    if not chosen:
        raise ValueError("names is empty: nothing to keep non-negative")
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"{name!r} is not a parameter of {type(module).__name__}; it has: {', '.join(known)}"
            )
    return chosen
