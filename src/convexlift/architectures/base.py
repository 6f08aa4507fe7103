"""What every architecture shares: weights that stay non-negative, strong convexity, emitting, freezing."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.ambient import new_dtype
from convexlift.architectures.potential import Block, Calculus, Potential
from convexlift.calculus import activations
from convexlift.calculus.activations import Activation
from convexlift.checks import check_count

P = TypeVar("P")


class Architecture(Block, Generic[P]):
    """A network f that is convex in x where some of its tensors are non-negative: the base of all of them.

    It declares those tensors (``nonnegative``), has its derivatives in closed form (``calculus``), and knows
    nothing of where weights come from: a weight source takes the non-negative ones out and supplies them.
    Bare, it is a source itself and emits the weights it has.

    A new architecture calls this constructor, makes its parameters, then calls ``own_strong_convexity``. It
    has ``calculus``, ``arguments``, ``nonnegative`` and ``layers``; ``convexlift.saving.register`` makes its
    files readable. All else follows: every source, task, check and instrument takes it.

    Args:
        dim: d, the number of inputs in which f is convex.
        activation: "softplus", "squareplus" (cheaper, with heavier tails), "smooth_squared_relu", "relu"
            (value and gradient only), or an ``Activation``.
        sharpness: sharpness of a named smooth activation (1 when omitted).
        strong_convexity: alpha > 0, or 0 for none (then there is no log-determinant, inverse or conjugate).
        learn_strong_convexity: learn alpha (kept positive), or hold it. A zero alpha is always held.

    Shapes: x (N, d) -> f(x) (N,).

    Raises:
        ValueError: d is not positive, alpha is negative, or the activation is unknown.

    Example:
        >>> import convexlift as cl
        >>> net = cl.ICNN(2, hidden=(8,), seed=0)
        >>> isinstance(net, Architecture), net.nonnegative, net.undecayed
        (True, ('outer',), ('root',))
        >>> torch.equal(net.emit().value(torch.ones(3, 2)), net(torch.ones(3, 2)))
        True
    """

    calculus: Calculus
    """The closed forms, functions of (x, ``layers(tensors)``, ``activation``)."""
    arguments: tuple[str, ...] = ()
    """Names of its own constructor arguments, kept as attributes; less those of the start, as a seed."""
    undecayed: tuple[str, ...] = ()
    """Names of further parameters that weight decay leaves: curvature, and vectors stored as matrices."""
    context_dim: int = 0
    """k, the entries of a context c that f(x; c) reads; 0 for a function of x alone."""
    dense = False
    """Whether its ``hidden`` layers are dense matrices, with the names and the ``Layers`` of an ``ICNN``."""

    def __init__(
        self,
        dim: int,
        *,
        activation: str | Activation = "softplus",
        sharpness: float | None = None,
        strong_convexity: float = 0.1,
        learn_strong_convexity: bool = True,
    ) -> None:
        super().__init__()
        if not (strong_convexity >= 0 and math.isfinite(strong_convexity)):
            raise ValueError(f"strong_convexity must be >= 0; got {strong_convexity}")
        self.dim = check_count("dim", dim)
        self.activation = activations.activation(activation, sharpness)
        self.strong_convexity = float(strong_convexity)
        self.learn_strong_convexity = bool(learn_strong_convexity) and self.strong_convexity > 0

    def own_strong_convexity(self) -> None:
        """Make alpha a parameter, or a buffer where it is held; the last that a constructor registers."""
        dtype = new_dtype()
        if self.learn_strong_convexity:
            raw = math.log(math.expm1(self.strong_convexity))
            self.raw_alpha = nn.Parameter(torch.tensor(raw, dtype=dtype))
        elif self.strong_convexity > 0:
            self.register_buffer("fixed_alpha", torch.tensor(self.strong_convexity, dtype=dtype))

    @property
    def nonnegative(self) -> tuple[str, ...]:
        """Names of the parameters that must be >= 0."""
        raise NotImplementedError

    @property
    def architecture(self) -> Self:
        """The network itself: a bare one is its own weight source."""
        return self

    @property
    def batch_dim(self) -> int:
        """d + k, the columns of the rows that a lift emits from: x, or (x, c)."""
        return self.dim + self.context_dim

    def layers(self, tensors: Mapping[str, Tensor]) -> Any:
        """The tensors, by parameter and buffer name, as ``calculus`` reads them."""
        raise NotImplementedError

    def alpha(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The strong convexity, a scalar; ``None`` for zero."""
        if self.learn_strong_convexity:
            return F.softplus(tensors["raw_alpha"])
        return tensors.get("fixed_alpha")

    def emit(self, batch: Tensor | None = None) -> P:
        """The potential with this network's own tensors; the batch is not read."""
        return self.potential({**dict(self.named_parameters()), **dict(self.named_buffers())})

    def potential(self, tensors: Mapping[str, Tensor]) -> P:
        """The potential of this architecture with other tensors, by parameter and buffer name."""
        return Potential(self, tensors)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.emit()(x)  # type: ignore[operator]

    def freeze(self, data: Tensor | None = None) -> Self:
        """A copy that asks for no gradient; the data are not read.

        Raises:
            ValueError: a constrained weight is negative or not finite.
        """
        frozen = copy.deepcopy(self).requires_grad_(False).eval()
        check_nonnegative_tensors(frozen.nonnegative, dict(frozen.named_parameters()))
        return frozen

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that rebuild this architecture (not its weights).

        Raises:
            ValueError: the activation is a user's own object, which a file cannot hold.
        """
        if self.activation.name not in activations.NAMED:
            raise ValueError(
                f"activation {self.activation.name!r} is a user's own: "
                "save the state_dict and rebuild the network in code"
            )
        own = {name: getattr(self, name) for name in self.arguments}
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in own.items()},
            "activation": self.activation.name,
            "sharpness": self.activation.sharpness,
            "strong_convexity": self.strong_convexity,
            "learn_strong_convexity": self.learn_strong_convexity,
        }

    def extra_repr(self) -> str:
        """Its own arguments and alpha at the start, for ``repr``."""
        own = {name: getattr(self, name) for name in (*self.arguments, "strong_convexity")}
        return ", ".join(f"{name}={value!r}" for name, value in own.items())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Refuse constrained weights that are negative or NaN, before anything is loaded."""
        loaded = {name: state_dict[prefix + name] for name in self.nonnegative if prefix + name in state_dict}
        check_nonnegative_tensors(tuple(loaded), loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)


def architecture_of(block: nn.Module, conditional: bool = False) -> Architecture[Any]:
    """The architecture of a block: the block itself, or that of which it is a weight source.

    Args:
        conditional: whether it must read a context, as a ``PICNN`` does, or must not, as an ``ICNN``.

    Raises:
        TypeError: the block is neither, or of the other kind.

    >>> architecture_of(nn.Linear(2, 1))
    Traceback (most recent call last):
    ...
    TypeError: expected an ICNN or a weight source of one; got Linear
    """
    found = getattr(block, "architecture", None)
    if isinstance(found, Architecture) and bool(found.context_dim) == conditional:
        return found
    inside = f" of {type(found).__name__}" if isinstance(found, nn.Module) and found is not block else ""
    kind = "a PICNN" if conditional else "an ICNN"
    raise TypeError(f"expected {kind} or a weight source of one; got {type(block).__name__}{inside}")


def check_nonnegative_tensors(names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError naming the first of these tensors that holds a negative or NaN entry.

    >>> check_nonnegative_tensors(["w"], {"w": torch.tensor([0.5, -0.25])})
    Traceback (most recent call last):
    ...
    ValueError: 'w' must be non-negative; its smallest entry is -0.25
    """
    for name in names:
        weight = tensors[name].detach()
        if weight.numel() and not bool(weight.min() >= 0):
            raise ValueError(f"{name!r} must be non-negative; its smallest entry is {float(weight.min()):g}")
