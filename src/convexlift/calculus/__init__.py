"""Derivatives of input-convex networks in closed form, as pure functions of tensors."""
