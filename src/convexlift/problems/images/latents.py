"""Latents of real images as density problems: a deterministic autoencoder's codes, whitened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

import numpy as np
import torch
from torch import Tensor

from convexlift.problems.base import Problem
from convexlift.problems.images.autoencoder import Autoencoder, Recipe, cached_autoencoder
from convexlift.problems.images.digits import ARCHITECTURE, CUTS, principal_components, shuffled_digits
from convexlift.problems.images.idx import read_idx
from convexlift.problems.published.tables import sizes
from convexlift.seeds import one_thread

# Moderate pulls towards a normal: one cloud, and still room between a Gaussian and the latents' density.
DIGITS_RECIPE = Recipe(epochs=200, spread=3.0)
MNIST_RECIPE = Recipe(hidden=(512, 256), epochs=8, batch_size=128, spread=30.0)
MNIST_VALIDATION = 10_000
MNIST_FILES = {
    "train images": "train-images-idx3-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}

Images = list[np.ndarray]


@final
@dataclass(frozen=True, eq=False)
class Latents:
    """A density problem of image latents, and the way back from its rows to images.

    z = (E(x) - mean) W, with E the encoder and W (d, d) such that training rows have mean 0 and covariance I.

    Attributes:
        problem: its rows are whitened latents.
        autoencoder: E and the decoder.
        mean: (d,), float64.
        whiten: W, float64.
        images: the test images (N, h, w) in [0, 1], in the order of the problem's test rows.

    Example:
        >>> import torch
        >>> from convexlift.problems import problem
        >>> mean, whiten = torch.zeros(2).double(), torch.eye(2).double()
        >>> latents = Latents(problem("rings"), Autoencoder((8, 8), 2), mean, whiten, torch.zeros(0, 8, 8))
        >>> latents.decode(torch.zeros(3, 2)).shape
        torch.Size([3, 8, 8])
    """

    problem: Problem
    autoencoder: Autoencoder
    mean: Tensor
    whiten: Tensor
    images: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """The whitened latents (N, d) of images (N, h, w), float32."""
        return ((self.autoencoder.encode(images).double() - self.mean) @ self.whiten).float()

    def decode(self, z: Tensor) -> Tensor:
        """The images (N, h, w), grey values in [0, 1], of whitened latents (N, d).

        Raises a ValueError for latents of another shape or that are not finite.
        """
        if z.ndim != 2 or z.shape[1] != len(self.mean):
            raise ValueError(f"expected (N, {len(self.mean)}) latents; got {tuple(z.shape)}")
        codes = torch.linalg.solve(self.whiten, z.detach().cpu().double(), left=False) + self.mean
        return self.autoencoder.decode(codes.float())

    @property
    def reconstruction_error(self) -> float:
        """The root mean square of x - D(E(x)) over the pixels of the test images."""
        return float((self.decode(cast(Tensor, self.problem.test)) - self.images).square().mean().sqrt())


def digits_latents(label: str | None = None, *, latent_dim: int = 16, seed: int = 0) -> Latents:
    """The latents of scikit-learn's bundled digits of 8 x 8 pixels, of all classes or of one.

    The rows are split as those of `digits21` are. The autoencoder is trained on the training rows of all
    classes. Raises a ValueError for an unknown class, an ImportError when scikit-learn is missing.

    Example:
        >>> digits_latents("10")
        Traceback (most recent call last):
        ...
        ValueError: unknown class '10' of digits-latents; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    """
    bundled, _, order = shuffled_digits("digits-latents")
    pixels, names = bundled.images[order].astype(np.uint8), bundled.target[order]
    parts = np.split(pixels, CUTS), np.split(names, CUTS)
    return _latents("digits-latents", *parts, label, latent_dim, seed, DIGITS_RECIPE)


def mnist_latents(
    folder: str | Path | None, label: str | None = None, *, latent_dim: int = 32, seed: int = 0
) -> Latents:
    """The latents of MNIST, of all classes or of one, from a folder with its idx files (.gz or unpacked).

    The official test images are the test split; the last 10,000 training images, or the last sixth of fewer,
    are the validation split. The two files of images do for all classes; one class needs the labels too.

    Raises a ValueError without a folder, for an unknown class and for a file of another form; a
    FileNotFoundError for a missing file.

    Example:
        >>> mnist_latents(None)
        Traceback (most recent call last):
        ...
        ValueError: mnist-latents needs --data FOLDER with train-images-idx3-ubyte.gz, ...
    """
    listed = ", ".join(f"{name}.gz" for name in MNIST_FILES.values())
    if folder is None:
        raise ValueError(f"mnist-latents needs --data FOLDER with {listed}")
    home = Path(folder)
    if not home.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; mnist-latents needs one with {listed}")
    rows, test = (_idx(home, f"{part} images", 3) for part in ("train", "test"))
    if rows.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{folder}: training images have {' x '.join(map(str, rows.shape[1:]))} pixels, test images "
            f"{' x '.join(map(str, test.shape[1:]))}"
        )
    names, named = np.zeros(len(rows), np.uint8), np.zeros(len(test), np.uint8)
    if label is not None:
        names, named = (_idx(home, f"{part} labels", 1) for part in ("train", "test"))
        for part, images, labels in (("training", rows, names), ("test", test, named)):
            if len(images) != len(labels):
                raise ValueError(f"{folder} has {len(images)} {part} images and {len(labels)} labels of them")
    cut = [len(rows) - min(MNIST_VALIDATION, len(rows) // 6)]
    parts = [*np.split(rows, cut), test], [*np.split(names, cut), named]
    return _latents("mnist-latents", *parts, label, latent_dim, seed, MNIST_RECIPE)


def latents_of(name: str, data: str | Path | None = None) -> Latents:
    """The latents of the name "digits-latents" or "mnist-latents", or of one class: "digits-latents:3".

    Raises a ValueError for an unknown name or class, and as `digits_latents` and `mnist_latents` do.

    Example:
        >>> latents_of("faces-latents")
        Traceback (most recent call last):
        ...
        ValueError: unknown image latents 'faces-latents'; known: digits-latents, mnist-latents
    """
    base, colon, after = name.partition(":")
    label = after if colon else None
    if base == "mnist-latents":
        return mnist_latents(data, label)
    if base != "digits-latents":
        raise ValueError(f"unknown image latents '{base}'; known: digits-latents, mnist-latents")
    if data is not None:
        raise ValueError(f"problem 'digits-latents' reads no file; remove --data {data}")
    return digits_latents(label)


# By name: the largest grey value, source and licence of the images.
_OF = {
    "digits-latents": (
        16,
        "scikit-learn's bundled digits, from UCI optical recognition of digits (Alpaydin 1998)",
        "CC BY 4.0 (UCI); bundled with scikit-learn (BSD-3-Clause)",
    ),
    "mnist-latents": (255, "MNIST (LeCun, Cortes and Burges 1998)", "CC BY-SA 3.0"),
}


def _latents(
    name: str, pixels: Images, labels: Images, label: str | None, latent_dim: int, seed: int, recipe: Recipe
) -> Latents:
    """The problem of grey images with their labels, each split into training, validation and test."""
    levels, source, licence = _OF[name]
    classes = sorted(set(labels[0].tolist()))
    if label is not None and label not in map(str, classes):
        raise ValueError(f"unknown class '{label}' of {name}; known: {', '.join(map(str, classes))}")
    images = [torch.from_numpy(part.astype(np.float32) / levels) for part in pixels]
    autoencoder = cached_autoencoder(images[0], latent_dim, seed=seed, recipe=recipe)
    draws = torch.Generator().manual_seed(0)
    shown = [slice(None) if label is None else torch.from_numpy(of == int(label)) for of in labels]
    codes = []
    for part, of_class in zip(images, shown, strict=True):
        # A pixel is an integer: uniform noise of one grey level gives the codes a density.
        noise = torch.rand(part.shape, generator=draws, dtype=torch.float32, device="cpu") - 0.5
        codes.append(autoencoder.encode(part + noise / levels).double()[of_class])
    what = name if label is None else f"{name}:{label}"
    mean, whiten = _whitening(codes[0], what)
    train, validation, test = (((part - mean) @ whiten).float() for part in codes)
    problem = Problem(
        name=what,
        task="density",
        dim=latent_dim,
        train=train,
        validation=validation,
        test=test,
        description=(
            f"{latent_dim} whitened latents of a deterministic autoencoder of handwritten digits"
            f"{'' if label is None else f', class {label} only'}, pixels dequantised before encoding, "
            f"{sizes(train, validation, test)}; a likelihood of these latents, of no other autoencoder's"
        ),
        source=source,
        licence=licence,
        architecture=ARCHITECTURE,
    )
    return Latents(problem, autoencoder, mean, whiten, images[2][shown[2]])


def _whitening(codes: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean and whitening matrix of training rows: principal axes, the widest first, each of variance 1."""
    n, dim = codes.shape
    if n <= dim:
        raise ValueError(f"{name} has {n} training images; more than {dim} are needed for {dim} latents")
    with one_thread():
        mean, variances, axes = principal_components(codes)
    if not float(variances[-1]) > 1e-10 * float(variances[0]):
        raise ValueError(f"{name}: the latents of the training images lie in fewer than {dim} dimensions")
    return mean, axes / variances.sqrt()


def _idx(folder: Path, part: str, dimensions: int) -> np.ndarray:
    """The images or labels of a file of MNIST; the gzipped one, else the unpacked one."""
    name = MNIST_FILES[part]
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            values = read_idx(file, dimensions)
            if values.size == 0:
                raise ValueError(f"{file} is empty: {' x '.join(map(str, values.shape))} values")
            return values
    raise FileNotFoundError(f"{folder} holds neither {name}.gz nor {name}, the {part} of mnist-latents")
