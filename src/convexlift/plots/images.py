"""Images in lines: real ones, their reconstructions and samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from convexlift.files import write_whole
from convexlift.plots.drawing import needed


def draw_images(
    real: Tensor,
    reconstructed: Tensor,
    sampled: Tensor | Mapping[str, Tensor],
    path: str | Path,
    *,
    columns: int = 12,
) -> None:
    """Write a figure of real images, their reconstructions below them, and sampled images.

    Args:
        real: (N, h, w), grey values in [0, 1]; white is 0.
        reconstructed: (N, h, w), of the same images.
        sampled: (M, h, w), or several of them by what their lines are called.
        path: the file; its suffix (.png, .svg, .pdf) chooses the format.
        columns: images in a line.

    Raises:
        ValueError: images of another shape, none, or fewer than one column.
        ImportError: matplotlib is missing.

    Example:
        >>> import tempfile, torch
        >>> images = torch.rand(3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_images(images, images, images, f"{folder}/images.png")
        ...     Path(folder, "images.png").is_file()
        True
    """
    if columns < 1:
        raise ValueError(f"a figure needs at least one column; got {columns}")
    drawn = {"sampled": sampled} if isinstance(sampled, Tensor) else dict(sampled)
    groups = {"real": real, "reconstructed": reconstructed, **drawn}
    for name, images in groups.items():
        if images.ndim != 3 or images.shape[1:] != real.shape[1:] or len(images) == 0:
            size = ", ".join(map(str, real.shape[1:])) if real.ndim == 3 else "h, w"
            raise ValueError(f"expected (N, {size}) {name} images, N > 0; got {tuple(images.shape)}")
    if len(real) != len(reconstructed):
        raise ValueError(
            f"every real image needs its reconstruction; got {len(real)} and {len(reconstructed)} images"
        )
    with needed("draw_images needs"):
        from matplotlib.figure import Figure
    # A line of real images stands directly above their reconstructions, so that the two are compared.
    pairs = zip(real.split(columns), reconstructed.split(columns), strict=True)
    lines = [line for pair in pairs for line in zip(("real", "reconstructed"), pair, strict=True)]
    lines += [(name, part) for name, images in drawn.items() for part in images.split(columns)]
    width, (height, across) = min(columns, max(map(len, groups.values()))), real.shape[1:]
    figure = Figure((1.7 + 0.6 * width, 0.6 * len(lines) + 0.2), dpi=150, layout="constrained")
    figure.suppressComposite = True  # every image stays one of its own
    ax = figure.add_subplot(xlim=(0, width), ylim=(len(lines), 0), frame_on=False)
    for row, (_, images) in enumerate(lines):
        for column, pixels in enumerate(images.detach().cpu().clamp(0, 1).numpy()):
            extent = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
            ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    ax.set_aspect(height / across)
    ax.xaxis.set_visible(False)
    names = [name for name, _ in lines]  # several lines of samples are labelled once
    labels = [name if name != before else "" for name, before in zip(names, ["", *names], strict=False)]
    ax.set_yticks([row + 0.5 for row in range(len(lines))], labels)
    ax.tick_params(length=0)
    file = Path(path) if Path(path).suffix else Path(f"{path}.png")
    drawing = io.BytesIO()
    figure.savefig(drawing, format=file.suffix[1:])
    write_whole(file, drawing.getvalue())
