"""The integral of exp(-f) over the plane, with rigorous bounds."""
