"""scikit-learn's bundled handwritten digits as a 21-dimensional density problem; real data, no download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlift.problems.base import Problem

COMPONENTS = 21
CUTS = [1_197, 1_197 + 240]  # of training, validation and 360 test rows
ARCHITECTURE = {"hidden": (64, 64, 64, 64)}


def digits21() -> Problem:
    """1,797 digits of 8 x 8 pixels, dequantised, on 21 whitened principal components.

    Pixels 0..16 plus fixed-seed U[0, 1) noise; rows split 1,197 / 240 / 360 by a fixed permutation; mean,
    components and scales come from the training rows only; `images` goes back. Raises an ImportError
    when scikit-learn is missing.

    Example:
        >>> digits = digits21()
        >>> tuple(digits.train.shape), tuple(digits.validation.shape), tuple(digits.test.shape)
        ((1197, 21), (240, 21), (360, 21))
    """
    bundled, noise, order = shuffled_digits("digits21")
    pixels = torch.from_numpy((bundled.data + noise)[order])
    train, validation, test = pixels.tensor_split(CUTS)
    mean, variances, axes = principal_components(train)
    kept, scales = axes[:, :COMPONENTS], variances[:COMPONENTS].sqrt()
    whiten = kept / scales

    def images(rows: Tensor) -> Tensor:
        """The images that 21 components hold: what the others would add is left out."""
        shown = (rows.detach().cpu().double() * scales) @ kept.T + mean - 0.5  # the mean of the noise
        return (shown.unflatten(1, (8, 8)) / 16).clamp(0, 1).float()

    return Problem(
        name="digits21",
        task="flow",
        dim=COMPONENTS,
        train=((train - mean) @ whiten).float(),
        validation=((validation - mean) @ whiten).float(),
        test=((test - mean) @ whiten).float(),
        description="handwritten digits, dequantised, 21 whitened principal components, 1,197 training rows",
        source="scikit-learn's bundled digits, from UCI optical recognition of digits (Alpaydin 1998)",
        licence="CC BY 4.0 (UCI); bundled with scikit-learn (BSD-3-Clause)",
        architecture=ARCHITECTURE,
        images=images,
    )


def shuffled_digits(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """scikit-learn's digits, noise for their pixels, and the order in which `CUTS` splits them.

    Raises an ImportError, for the problem of that name, when scikit-learn is missing.

    Example:
        >>> digits, noise, order = shuffled_digits("digits21")
        >>> digits.images.shape, noise.shape, len(order)
        ((1797, 8, 8), (1797, 64), 1797)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"{name} needs scikit-learn: pip install 'convexlift[problems]'") from error
    draws, bundled = np.random.default_rng(0), load_digits()
    noise = draws.random(bundled.data.shape)
    return bundled, noise, draws.permutation(len(noise))


def principal_components(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of rows (N, d), and variances (d,) along their principal axes (d, d), the widest first.

    Example:
        >>> principal_components(torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.1], [2.0, -0.1]]))[2]
        tensor([[1., 0.],
                [0., 1.]])
    """
    mean = rows.mean(0)
    variances, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / (len(rows) - 1))
    variances, axes = variances.flip(0), axes.flip(1)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # those of eigh are arbitrary
    return mean, variances, axes * signs
