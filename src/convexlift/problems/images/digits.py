"""scikit-learn's bundled handwritten digits as a 21-dimensional density problem; real data, no download."""

from __future__ import annotations

import torch

from convexlift.problems.base import Problem

COMPONENTS = 21
TRAINING_ROWS, VALIDATION_ROWS = 1_197, 240  # and 360 test rows
ARCHITECTURE = {"hidden": (64, 64, 64, 64)}


def digits21() -> Problem:
    """1,797 digits of 8 x 8 pixels, dequantised, on 21 whitened principal components.

    Pixels 0..16 plus fixed-seed U[0, 1) noise; rows split 1,197 / 240 / 360 by a fixed permutation; mean,
    components and scales come from the training rows only. Raises an ImportError when scikit-learn is
    missing.

    Example:
        >>> digits = digits21()
        >>> tuple(digits.train.shape), tuple(digits.validation.shape), tuple(digits.test.shape)
        ((1197, 21), (240, 21), (360, 21))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits21 needs scikit-learn: pip install 'convexlift[problems]'") from error
    import numpy

    draws = numpy.random.default_rng(0)
    pixels = load_digits().data
    pixels = torch.from_numpy(pixels + draws.random(pixels.shape))
    order = torch.from_numpy(draws.permutation(len(pixels)))
    train, validation, test = pixels[order].tensor_split([TRAINING_ROWS, TRAINING_ROWS + VALIDATION_ROWS])
    mean = train.mean(0)
    variances, axes = torch.linalg.eigh((train - mean).T @ (train - mean) / (len(train) - 1))
    variances, axes = variances.flip(0)[:COMPONENTS], axes.flip(1)[:, :COMPONENTS]
    axes = (
        axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    )  # the sign of an eigenvector is arbitrary
    whiten = axes / variances.sqrt()
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
    )
