"""A small deterministic autoencoder of grey images, trained once on a machine and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from convexlift.ambient import guarded
from convexlift.checks import check_finite, name_dtype
from convexlift.files import make_folder, write_whole
from convexlift.seeds import linear, one_thread, seeded

CHUNK = 4_096  # images that are encoded or decoded at a time
VERSION = 1  # of the training; a change of it makes every cached autoencoder anew


@final
@dataclass(frozen=True)
class Recipe:
    """How an autoencoder is built and trained: widths, length and penalties.

    `spread` weighs the squared sliced Wasserstein distance of a batch of latents to a standard normal, which
    keeps the latents in one cloud that a log-concave density can follow; `weight_decay` keeps the decoder
    smooth between them.

    Example:
        >>> Recipe(epochs=3).batch_size
        64
    """

    hidden: tuple[int, ...] = (256, 128)
    epochs: int = 100
    batch_size: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.01
    spread: float = 1.0
    directions: int = 32


@final
class Autoencoder(nn.Module):
    """A fully connected encoder and decoder of grey images: z = E(x) in R^d, x' = sigmoid(D(z)).

    Args:
        shape: height and width of an image.
        latent_dim: d.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.

    Example:
        >>> import torch
        >>> net = Autoencoder((8, 8), 4, hidden=(16,))
        >>> net.decode(net.encode(torch.zeros(5, 8, 8))).shape
        torch.Size([5, 8, 8])
    """

    def __init__(self, shape: tuple[int, int], latent_dim: int, hidden: tuple[int, ...] = (256, 128)) -> None:
        super().__init__()
        self.shape = shape
        self.latent_dim = latent_dim
        widths = (shape[0] * shape[1], *hidden, latent_dim)
        self.encoder = _layers(widths)
        self.decoder = _layers(widths[::-1])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The latents (N, d) of images (N, h, w); raises a ValueError for images of another shape."""
        flat = _check_images(images, self.shape).flatten(1)
        with one_thread():
            return torch.cat([self.encoder(part) for part in flat.split(CHUNK)])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The images (N, h, w), grey values in [0, 1], of latents (N, d).

        Raises a ValueError for latents of another shape or that are not finite.
        """
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"expected (N, {self.latent_dim}) latents; got {tuple(z.shape)}")
        check_finite(z, name="latents")
        with one_thread():
            flat = torch.cat([self.decoder(part).sigmoid() for part in z.float().split(CHUNK)])
        return flat.unflatten(1, self.shape)


@guarded
def train_autoencoder(
    images: Tensor, latent_dim: int, *, seed: int = 0, recipe: Recipe | None = None
) -> Autoencoder:
    """An autoencoder trained on images (N, h, w) with grey values in [0, 1]; the same for the same seed.

    Each step of Adam lowers the cross-entropy of the pixels plus `spread` times the squared sliced
    Wasserstein distance of the batch's latents to a standard normal (Kolouri et al., "Sliced-Wasserstein
    autoencoders", 2019), here against normal quantiles instead of draws. Nothing is added to the latents. It
    runs in float32 on one thread and leaves torch's global generator as it was.

    Raises a ValueError for images that are no (N, h, w) floats in [0, 1], fewer images than a batch, or a
    latent dimension below 1.

    Example:
        >>> import torch
        >>> images = torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> net = train_autoencoder(images, 2, recipe=Recipe(hidden=(8,), epochs=1))
        >>> net.encode(images).shape
        torch.Size([64, 2])
    """
    how = recipe or Recipe()
    _check_images(images, None)
    if latent_dim < 1:
        raise ValueError(f"a latent dimension must be at least 1; got {latent_dim}")
    if len(images) < how.batch_size:
        raise ValueError(f"expected at least {how.batch_size} training images; got {len(images)}")
    with one_thread(), torch.enable_grad():
        return _train(images, latent_dim, seed, how)


@guarded
def cached_autoencoder(
    images: Tensor, latent_dim: int, *, seed: int = 0, recipe: Recipe | None = None
) -> Autoencoder:
    """What `train_autoencoder` returns, from the cache folder where it has been trained before.

    The file's name holds a digest of the images, the recipe, the dimension, the seed and torch's version. It
    is written in one piece, so that processes cannot disturb one another; a damaged file is made anew, and a
    folder that cannot be written only means training again next time. Nothing is unpickled.

    Raises as `train_autoencoder` does.

    Example:
        >>> import os, tempfile, torch
        >>> images = torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> short = Recipe(hidden=(8,), epochs=1)
        >>> before = os.environ.get("CONVEXLIFT_CACHE")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     os.environ["CONVEXLIFT_CACHE"] = folder
        ...     one, two = (cached_autoencoder(images, 2, recipe=short) for _ in range(2))
        ...     print(len(os.listdir(folder)))
        1
        >>> torch.equal(one.encode(images), two.encode(images))
        True
        >>> _ = os.environ.pop("CONVEXLIFT_CACHE") if before is None else None
        >>> os.environ.update({} if before is None else {"CONVEXLIFT_CACHE": before})
    """
    how = recipe or Recipe()
    _check_images(images, None)
    file = cache_folder() / f"autoencoder-{_key(images, latent_dim, seed, how)}.safetensors"
    known = Autoencoder((images.shape[1], images.shape[2]), latent_dim, how.hidden)
    if _read(file, known):
        return known.requires_grad_(False).eval()
    trained = train_autoencoder(images, latent_dim, seed=seed, recipe=how)
    _write(file, trained)
    return trained


def cache_folder() -> Path:
    """Where trained autoencoders are kept: $CONVEXLIFT_CACHE, else the platform's folder for caches.

    Example:
        >>> cache_folder().name != ""
        True
    """
    if chosen := os.environ.get("CONVEXLIFT_CACHE"):
        return Path(chosen)
    known = {"win32": ("LOCALAPPDATA", "~/AppData/Local"), "darwin": ("", "~/Library/Caches")}
    variable, usual = known.get(sys.platform, ("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get(variable) or os.path.expanduser(usual)) / "convexlift"


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _train(images: Tensor, latent_dim: int, seed: int, how: Recipe) -> Autoencoder:
    with seeded(seed):
        net = Autoencoder((images.shape[1], images.shape[2]), latent_dim, how.hidden)
    draws = torch.Generator().manual_seed(seed)
    flat, steps = images.flatten(1), how.epochs * (len(images) // how.batch_size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, how.rate, total_steps=steps)
    shares = (torch.arange(how.batch_size, dtype=torch.float64, device="cpu") + 0.5) / how.batch_size
    normal = torch.special.ndtri(shares).float().unsqueeze(1)
    for _ in range(how.epochs):
        order = torch.randperm(len(flat), generator=draws, device="cpu")
        for rows in order[: len(flat) // how.batch_size * how.batch_size].split(how.batch_size):
            batch = flat[rows]
            z = net.encoder(batch)
            entropy = binary_cross_entropy_with_logits(net.decoder(z), batch, reduction="sum")
            axes = torch.randn(latent_dim, how.directions, generator=draws, dtype=torch.float32, device="cpu")
            along = (z @ (axes / axes.norm(dim=0))).sort(dim=0).values
            loss = entropy / how.batch_size + how.spread * (along - normal).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.requires_grad_(False).eval()


def _check_images(images: Tensor, shape: tuple[int, int] | None) -> Tensor:
    wanted = "(N, h, w)" if shape is None else f"(N, {shape[0]}, {shape[1]})"
    if images.ndim != 3 or (shape is not None and tuple(images.shape[1:]) != shape):
        raise ValueError(f"expected {wanted} images; got {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise TypeError(f"expected float32 images; got {name_dtype(images.dtype)}")
    check_finite(images.flatten(1), name="images")
    if shape is None and images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise ValueError(
            f"grey values must lie in [0, 1]; got {float(images.min()):g} to {float(images.max()):g}"
        )
    return images


def _key(images: Tensor, latent_dim: int, seed: int, how: Recipe) -> str:
    what = (VERSION, tuple(images.shape), latent_dim, seed, how, torch.__version__)
    digest = hashlib.sha256(repr(what).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def _read(file: Path, net: Autoencoder) -> bool:
    """Load a file of the cache into the net; False where it is missing, damaged or of another form."""
    try:
        with safe_open(file, framework="pt") as archive:
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}
            held = (archive.metadata() or {}).get("sha256")
        if held != _digest(tensors):
            return False
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _write(file: Path, net: Autoencoder) -> None:
    """Write a file of the cache in one piece; where the folder cannot be written, nothing happens."""
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    with suppress(OSError):
        make_folder(file.parent)
        write_whole(file, save(tensors, {"sha256": _digest(tensors)}))
