"""What training starts from where the user does not say: for `fit`, the estimators and the command line.

Starting points that nobody has tuned for anyone's data. Rates are, for squared weights, a cosine and each
kind of task, those that did best over eight problems, and the sharper activation helped flows: see
docs/mechanism.md and docs/potential-search.md. Layers and steps were settled by hand on two small problems of
a kind; no study stands behind them, nor behind SOAP's rates, which did best on validation in short runs of
one seed on two problems of a kind. Loads no torch, for commands that only help or refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The settings of one kind of task.

    >>> FLOW.hidden, DENSITY.hidden
    ((64, 64, 64, 64), (64, 64, 64))
    """

    steps: int = 1000
    batch_size: int = 256
    lr: float
    soap_lr: float = 0.001
    weight_decay: float = 0.0
    averaging: float = 0.0
    schedule: str = "cosine"
    validation_fraction: float = 0.1
    source: str = "squared"
    width: int = 64
    depth: int = 3
    sharpness: float = 1.0
    strong_convexity: float = 0.1

    @property
    def hidden(self) -> tuple[int, ...]:
        """The width of every hidden layer."""
        return (self.width,) * self.depth

    def rate(self, optimizer: str) -> float:
        """Where the rate of that optimiser starts; of one of which no task knows, that of any module."""
        return {"adam": self.lr, "soap": self.soap_lr}.get(optimizer, ANY.lr)


ANY = Defaults(lr=0.001)  # a module of which nothing is known
FLOW = Defaults(lr=0.032, soap_lr=0.064, depth=4, sharpness=2.0)
DENSITY = Defaults(lr=0.064, soap_lr=0.064)
TRANSPORT = Defaults(
    lr=0.005, soap_lr=0.02, steps=3000, batch_size=1024, averaging=0.999, depth=2, sharpness=10.0
)
REGRESSION = Defaults(lr=0.002, soap_lr=0.001, steps=4000, strong_convexity=0.0)
