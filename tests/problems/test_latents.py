"""Image latents: the autoencoder, its cache, the idx reader, whitening, classes and the figure."""

from __future__ import annotations

import gzip
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convexlift.plots.images import draw_images
from convexlift.problems import latents_of, problem
from convexlift.problems.images import autoencoder as autoencoder_module
from convexlift.problems.images import latents as latents_module
from convexlift.problems.images.autoencoder import (
    Autoencoder,
    Recipe,
    cache_folder,
    cached_autoencoder,
    train_autoencoder,
)
from convexlift.problems.images.digits import digits21
from convexlift.problems.images.idx import read_idx
from convexlift.problems.images.latents import digits_latents, mnist_latents

MNIST = Path(__file__).parents[2] / "../shared/data/mnist"
SHORT = Recipe(hidden=(48,), epochs=2, batch_size=50)


@pytest.fixture(autouse=True)
def short_and_private(monkeypatch, tmp_path):
    """Two epochs, and a cache of the test's own."""
    monkeypatch.setenv("CONVEXLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latents_module, "DIGITS_RECIPE", SHORT)
    monkeypatch.setattr(latents_module, "MNIST_RECIPE", SHORT)


def blobs(n: int, seed: int = 0) -> torch.Tensor:
    """Images (n, 6, 6) of one soft spot each."""
    where = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 5
    grid = torch.arange(6.0)
    along = [(-(grid - where[:, k : k + 1]).square() / 2).exp() for k in range(2)]
    return along[0][:, :, None] * along[1][:, None, :]


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, n: int = 600, test_seed: int = 1, zipped: bool = True) -> Path:
    folder.mkdir()
    for part, count, seed in (("train", n, 0), ("t10k", 100, test_seed)):
        images = (blobs(count, seed) * 255).round().numpy()
        for name, values in (("images-idx3", images), ("labels-idx1", np.arange(count) % 2)):
            content = idx(values)
            name = f"{part}-{name}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (folder / name).write_bytes(content)
    return folder


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads():
    images, threads = blobs(200), torch.get_num_threads()
    before = torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        one = train_autoencoder(images, 3, seed=4, recipe=SHORT)
        codes = one.encode(images)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        two = train_autoencoder(images, 3, seed=4, recipe=SHORT)
        assert torch.equal(codes, two.encode(images))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(codes, train_autoencoder(images, 3, seed=5, recipe=SHORT).encode(images))
    assert not any(p.requires_grad for p in one.parameters()) and not one.training


def test_two_latents_hold_what_two_principal_components_cannot():
    """A moving spot has two degrees of freedom, but not two linear ones."""
    images, fresh = blobs(1_000), blobs(300, seed=1)
    net = train_autoencoder(images, 2, recipe=Recipe(hidden=(64,), epochs=25, batch_size=50, rate=0.01))
    error = (net.decode(net.encode(fresh)) - fresh).square().mean().sqrt()
    flat, mean = images.flatten(1), images.flatten(1).mean(0)
    axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:2]
    centred = fresh.flatten(1) - mean
    linear = (centred @ axes.T @ axes - centred).square().mean().sqrt()
    assert float(error) < 0.6 * float(linear)


def test_spread_makes_the_latents_normal():
    how = replace(SHORT, epochs=30)
    images = blobs(1_000)
    loose, tight = (
        train_autoencoder(images, 2, recipe=replace(how, spread=s)).encode(images) for s in (0.0, 100.0)
    )
    normal = torch.special.ndtri((torch.arange(1_000) + 0.5) / 1_000)
    gaps = [float((z.sort(0).values - normal[:, None]).square().mean()) for z in (loose, tight)]
    assert gaps[1] < 0.05 and gaps[1] < 0.2 * gaps[0]


@pytest.mark.parametrize(
    ("images", "dim", "message"),
    [
        (torch.zeros(64, 36), 2, "expected (N, h, w) images; got (64, 36)"),
        (torch.full((64, 6, 6), 2.0), 2, "grey values must lie in [0, 1]; got 2 to 2"),
        (
            blobs(64) * torch.nan,
            2,
            "images have NaN at row 0, column 0 (64 of 64 rows have NaN or infinities)",
        ),
        (blobs(49), 2, "expected at least 50 training images; got 49"),
        (blobs(64), 0, "a latent dimension must be at least 1; got 0"),
    ],
)
def test_unfit_training_images(images, dim, message):
    with pytest.raises(ValueError) as error:
        train_autoencoder(images, dim, recipe=SHORT)
    assert str(error.value) == message


def test_unfit_images_and_latents():
    net = Autoencoder((6, 6), 3)
    with pytest.raises(ValueError, match=r"^expected \(N, 6, 6\) images; got \(2, 8, 8\)$"):
        net.encode(torch.zeros(2, 8, 8))
    with pytest.raises(TypeError, match=r"^expected float32 images; got uint8$"):
        net.encode(torch.zeros(2, 6, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^expected \(N, 3\) latents; got \(2, 4\)$"):
        net.decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^latents have NaN at row 1, column 0$"):
        net.decode(torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0]]))
    assert net.decode(torch.zeros(0, 3)).shape == (0, 6, 6)


def never(*args):
    raise AssertionError("trained again")


def test_a_cached_autoencoder_is_not_trained_again(monkeypatch):
    images = blobs(100)
    first = cached_autoencoder(images, 2, recipe=SHORT)
    monkeypatch.setattr(autoencoder_module, "_train", never)
    again = cached_autoencoder(images, 2, recipe=SHORT)
    assert torch.equal(first.encode(images), again.encode(images))
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    other = blobs(100)
    other[3, 2, 1] += 1e-3
    for changed in (
        {"images": other},
        {"latent_dim": 3},
        {"seed": 1},
        {"recipe": replace(SHORT, spread=2.0)},
    ):
        with pytest.raises(AssertionError, match="trained again"):
            cached_autoencoder(**{"images": images, "latent_dim": 2, "recipe": SHORT, **changed})
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(AssertionError, match="trained again"):
        cached_autoencoder(images, 2, recipe=SHORT)


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "another file", "empty"])
def test_a_damaged_cache_is_made_anew(damage):
    images = blobs(100)
    first = cached_autoencoder(images, 2, recipe=SHORT)
    (file,) = cache_folder().iterdir()
    whole = file.read_bytes()
    file.write_bytes(
        {
            "truncated": whole[:-7],
            "a flipped bit": whole[:-1] + bytes([whole[-1] ^ 1]),
            "another file": bytes(range(256)),
            "empty": b"",
        }[damage]
    )
    again = cached_autoencoder(images, 2, recipe=SHORT)
    assert torch.equal(first.encode(images), again.encode(images)) and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_only_missed(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVEXLIFT_CACHE", str(tmp_path / "file" / "folder"))
    assert cached_autoencoder(blobs(100), 2, recipe=SHORT).latent_dim == 2


def test_writers_and_readers_at_once_see_whole_files(tmp_path):
    net = Autoencoder((6, 6), 2, (48,))
    file = tmp_path / "cache" / "autoencoder-x.safetensors"
    autoencoder_module._write(file, net)

    def work(k: int) -> bool:
        if k % 2:
            autoencoder_module._write(file, net)
        return autoencoder_module._read(file, Autoencoder((6, 6), 2, (48,)))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/convexlift"),
        ("linux", {}, "/home/me/.cache/convexlift"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/me/Library/Caches/convexlift"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/convexlift"),
        ("win32", {}, "/home/me/AppData/Local/convexlift"),
        ("win32", {"CONVEXLIFT_CACHE": "/chosen"}, "/chosen"),
    ],
)
def test_the_cache_folder_of_each_platform(monkeypatch, platform, variables, expected):
    for name in ("CONVEXLIFT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder().as_posix() == expected


def test_digits_latents_are_whitened_by_training_rows():
    found = latents_of("digits-latents")
    rows = found.problem
    assert (rows.name, rows.task, rows.dim) == ("digits-latents", "density", 16)
    assert [tuple(part.shape) for part in (rows.train, rows.validation, rows.test)] == [
        (1197, 16),
        (240, 16),
        (360, 16),
    ]
    assert all(part.dtype == torch.float32 for part in (rows.train, rows.validation, rows.test))
    assert torch.allclose(rows.train.double().mean(0), torch.zeros(16).double(), atol=1e-5)
    assert torch.allclose(torch.cov(rows.train.double().T), torch.eye(16).double(), atol=1e-4)
    assert torch.equal(latents_of("digits-latents").problem.test, rows.test)
    assert torch.equal(problem("digits-latents").test, rows.test)


def test_rows_of_digits21_are_images_again():
    digits = digits21()
    assert digits.images is not None
    shown, real = digits.images(digits.test), digits_latents().images
    assert shown.shape == real.shape and 0 <= float(shown.min()) and float(shown.max()) <= 1
    # Noise, and what 21 of 64 components leave out.
    assert float((shown - real).square().mean().sqrt()) < 0.12
    assert float((shown - real.roll(1, 0)).square().mean().sqrt()) > 0.3


def test_test_images_stand_in_the_order_of_the_rows_and_of_digits21():
    found = digits_latents()
    clean = found.encode(found.images)
    noise = (clean - found.problem.test).norm(dim=1)
    assert bool((torch.cdist(clean, found.problem.test).argmin(1) == torch.arange(360)).all())
    assert float(noise.min()) > 0  # dequantised
    # digits21 holds other projections of the same images: their distances from one another go together.
    pairs = (torch.pdist(found.images.flatten(1)), torch.pdist(digits21().test))
    assert float(torch.corrcoef(torch.stack(pairs))[0, 1]) > 0.5
    assert (
        found.images.shape == (360, 8, 8) and 0 <= float(found.images.min()) < float(found.images.max()) == 1
    )
    difference = found.decode(found.problem.test) - found.images
    assert found.reconstruction_error == pytest.approx(float(difference.square().mean().sqrt()))


def test_one_class_shares_the_autoencoder_and_has_its_own_whitening():
    whole, three = digits_latents(), latents_of("digits-latents:3")
    assert len(list(cache_folder().iterdir())) == 1
    assert three.problem.name == "digits-latents:3" and "class 3 only" in three.problem.description
    assert torch.allclose(torch.cov(three.problem.train.double().T), torch.eye(16).double(), atol=1e-4)
    rows = [bool((image == whole.images).flatten(1).all(1).any()) for image in three.images]
    assert all(rows) and len(rows) == len(three.problem.test)
    kept = [int((image == whole.images).flatten(1).all(1).nonzero()[0]) for image in three.images]
    decoded = whole.decode(whole.problem.test[kept])
    assert torch.allclose(three.decode(three.problem.test), decoded, atol=1e-4)


def test_unknown_classes_and_names():
    known = "known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    for label in ("10", "three", ""):
        with pytest.raises(ValueError, match=f"^unknown class '{label}' of digits-latents; {known}$"):
            problem(f"digits-latents:{label}")
    with pytest.raises(ValueError, match=r"^problem 'digits-latents' reads no file; remove --data x$"):
        problem("digits-latents", "x")
    with pytest.raises(ValueError, match=r"^unknown problem 'gumbel:3'; did you mean 'gumbel'"):
        problem("gumbel:3")
    with pytest.raises(
        ValueError, match=r"^unknown image latents 'x'; known: digits-latents, mnist-latents$"
    ):
        latents_of("x")


def test_mnist_latents_from_a_folder(tmp_path):
    found = latents_of("mnist-latents", write_mnist(tmp_path / "zipped"))
    rows = found.problem
    assert [tuple(part.shape) for part in (rows.train, rows.validation, rows.test)] == [
        (500, 32),
        (100, 32),
        (100, 32),
    ]
    assert torch.allclose(torch.cov(rows.train.double().T), torch.eye(32).double(), atol=1e-3)
    assert "500 training / 100 validation / 100 test rows" in rows.description
    assert torch.equal(found.images, torch.from_numpy((blobs(100, 1) * 255).round().numpy() / 255))
    plain = problem("mnist-latents", write_mnist(tmp_path / "plain", zipped=False))
    assert torch.equal(plain.train, rows.train)
    one = mnist_latents(tmp_path / "plain", "1", latent_dim=4)
    assert len(one.problem.train) == 250 and one.problem.dim == 4


def test_nothing_is_fitted_on_validation_or_test_images(tmp_path):
    one = problem("mnist-latents", write_mnist(tmp_path / "one"))
    folder = write_mnist(tmp_path / "two", test_seed=9)
    images = read_idx(folder / "train-images-idx3-ubyte.gz", 3).copy()
    images[500:] = images[500:][:, ::-1]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), mtime=0))
    two = problem("mnist-latents", folder)
    assert torch.equal(one.train, two.train)
    assert not torch.equal(one.test, two.test) and not torch.equal(one.validation, two.validation)
    assert len(list(cache_folder().iterdir())) == 1


def test_two_files_do_for_all_classes(tmp_path):
    folder = write_mnist(tmp_path / "mnist")
    for file in folder.glob("*labels*"):
        file.unlink()
    assert len(problem("mnist-latents", folder).train) == 500
    lacks = "holds neither train-labels-idx1-ubyte.gz nor train-labels-idx1-ubyte, the train labels of mnist"
    with pytest.raises(FileNotFoundError, match=lacks):
        problem("mnist-latents:1", folder)


def test_equal_images_get_different_noise(tmp_path):
    folder = write_mnist(tmp_path / "mnist")
    images = np.repeat(read_idx(folder / "t10k-images-idx3-ubyte.gz", 3)[:1], 50, axis=0)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), mtime=0))
    test = problem("mnist-latents", folder).test
    assert len(test.unique(dim=0)) == 50


GOOD = idx(np.zeros((60, 6, 6)))
BAD = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD, mtime=0)[:-12], "is damaged or truncated"),
        (b"\x1f\x8b nothing", "is damaged or truncated"),
        (gzip.compress(GOOD, mtime=0)[:20] + b"\xff" * 40, "is damaged or truncated"),
        (GOOD[:9], "is damaged or truncated"),
        (GOOD[:-1], "should hold 60 x 6 x 6 values; it holds 2159"),
        (GOOD + b"\0", "should hold 60 x 6 x 6 values; it holds 2161"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "should hold 4294967295 x 4294967295 x 4294967295 values"),
        (
            idx(np.zeros(60)),
            "is no idx file of unsigned bytes in 3 dimensions: it begins with 00000801 instead of 00000803",
        ),
        (bytes([0, 0, 13, 3]) + GOOD[4:], "it begins with 00000d03 instead of 00000803"),
        (b"", "it begins with nothing instead of 00000803"),
        (b"\x80\x04]", "it begins with 80045d instead of 00000803"),
        (idx(np.zeros((0, 6, 6))), "is empty: 0 x 6 x 6 values"),
    ],
)
def test_unfit_idx_files(tmp_path, content, message):
    folder = write_mnist(tmp_path / "mnist")
    (folder / BAD).write_bytes(content)
    with pytest.raises(ValueError) as error:
        problem("mnist-latents", folder)
    assert str(error.value).startswith(str(folder / BAD)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_unfit_folders(tmp_path):
    with pytest.raises(
        ValueError, match=r"^mnist-latents needs --data FOLDER with train-images-idx3-ubyte.gz"
    ):
        problem("mnist-latents")
    with pytest.raises(
        FileNotFoundError, match=r"^no such folder: .*none; mnist-latents needs one with train-im"
    ):
        problem("mnist-latents", tmp_path / "none")
    lacks = "holds neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte, the train images of mnist"
    with pytest.raises(FileNotFoundError, match=lacks):
        problem("mnist-latents", tmp_path)
    folder = write_mnist(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(7)))
    with pytest.raises(ValueError, match="has 100 test images and 7 labels of them$"):
        problem("mnist-latents:0", folder)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((7, 6, 5))))
    with pytest.raises(ValueError, match="training images have 6 x 6 pixels, test images 6 x 5$"):
        problem("mnist-latents", folder)


def test_latents_that_cannot_be_whitened(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"^digits-latents:3 has 116 training images; more than 120 are needed"
    ):
        digits_latents("3", latent_dim=120)
    monkeypatch.setattr(latents_module, "MNIST_RECIPE", replace(SHORT, hidden=(8,)))
    with pytest.raises(ValueError, match=r"^mnist-latents: the latents .* lie in fewer than 32 dimensions$"):
        problem("mnist-latents", write_mnist(tmp_path / "mnist"))


def test_a_figure_of_images(tmp_path):
    images = blobs(5)
    for name in ("figure.png", "figure.svg"):
        draw_images(images, images, blobs(7), tmp_path / name, columns=4)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figure.svg").read_text()
    assert svg.count("<image") == 5 + 5 + 7
    draw_images(images, images, {"class 1": blobs(7), "class 2": blobs(2)}, tmp_path / "named.svg", columns=4)
    named = (tmp_path / "named.svg").read_text()
    assert named.count("<image") == 5 + 5 + 7 + 2 and "class 2" in named


def test_unfit_figures(tmp_path, monkeypatch):
    images, file = blobs(5), tmp_path / "figure.png"
    with pytest.raises(ValueError, match=r"^every real image needs its reconstruction; got 5 and 4 images$"):
        draw_images(images, images[1:], images, file)
    with pytest.raises(ValueError, match=r"^expected \(N, 6, 6\) sampled images, N > 0; got \(0, 6, 6\)$"):
        draw_images(images, images, images[:0], file)
    with pytest.raises(ValueError, match=r"^expected \(N, h, w\) real images, N > 0; got \(5, 36\)$"):
        draw_images(images.flatten(1), images, images, file)
    with pytest.raises(ValueError, match=r"^a figure needs at least one column; got 0$"):
        draw_images(images, images, images, file, columns=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"^draw_images needs matplotlib: pip install 'convexlift\[plots\]'$"
    ):
        draw_images(images, images, images, file)
    assert not file.exists()


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the MNIST files")
def test_the_published_files_are_read():
    images = read_idx(MNIST / "t10k-images-idx3-ubyte.gz", 3)
    labels = read_idx(MNIST / "t10k-labels-idx1-ubyte.gz", 1)
    assert images.shape == (10_000, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
