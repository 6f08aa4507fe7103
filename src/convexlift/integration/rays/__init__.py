"""The integral of exp(-f) along rays from its mode, and draws from it."""
