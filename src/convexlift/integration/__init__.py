"""The integral of exp(-f) for convex f: quadrature in one and two dimensions, annealing and chains above."""
