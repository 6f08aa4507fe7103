"""convexlift: train input-convex neural networks and put them to work.

Names and modules load on first use, so that the package itself costs nothing; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__.remove("sklearn")  # `import *` works without scikit-learn
