from .arms import ARMS, build
from .comparison import Comparison, compare
from .outcomes import Event
from .protocol import BUDGETS, Budget

__all__ = ["ARMS", "BUDGETS", "Budget", "Comparison", "Event", "build", "compare"]
