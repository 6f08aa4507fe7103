"""Log-concave densities of image latents, all classes and one class at a time, and what they draw.

    python benchmarks/studies/image_latents.py --out results/image_latents.json --figures docs/images
    python benchmarks/studies/image_latents.py --data FOLDER --out results/image_latents_mnist.json

A density of whitened latents (``digits-latents``; with the FOLDER of MNIST's idx files, ``mnist-latents``) is
trained by each arm with one recipe, nothing tuned for a class; its frozen model is scored on test rows beside
the Gaussian. The figure shows test images, their reconstructions, and images decoded from draws: a line of
all classes and a line for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common  # noqa: F401  (where timing.py is found)
from timing import Result, arguments, given, markdown, parsed, write
from torch import Tensor

import convexlift as cl
from convexlift.plots.images import draw_images
from convexlift.problems import gaussian_baseline, latents_of
from convexlift.seeds import seeded
from convexlift.study import ARMS

HIDDEN = (64, 64, 64)
COLUMNS = 12
COMPARED = ("squared", "lift", "softplus", "projected")


def trained(rows: Tensor, validation: Tensor, arm: str, options: argparse.Namespace) -> cl.LogConcaveDensity:
    """The frozen density of latents, best on validation rows."""
    net = cl.ICNN(rows.shape[1], hidden=HIDDEN, strong_convexity=0.1, seed=options.seed)
    with seeded(options.seed):
        density = cl.LogConcaveDensity(ARMS[arm](net))
    how = {"steps": options.steps, "batch_size": 256, "lr": options.rate, "seed": options.seed}
    cl.fit(density, rows, validation=validation, patience=None, progress=False, **how)
    return density.freeze(rows)


def table_image_latents(result: Result) -> str:
    """Test losses, all classes and each."""
    arms = list(result["classes"]["all"]["arms"])
    rows = [
        [
            label,
            f"{row['training_rows']:,}",
            f"{row['gaussian']:.2f}",
            *(f"{row['arms'][a]['test']:.2f} ± {row['arms'][a]['standard_error_of_rows']:.2f}" for a in arms),
            f"{max(row['arms'][arm]['log_z_error'] for arm in arms):.3f}",
        ]
        for label, row in result["classes"].items()
    ]
    return markdown(("class", "training rows", "Gaussian", *arms, "error of log Z, at most"), rows)


def main() -> None:
    parser = arguments(__file__, __doc__, steps=300, rate=0.03, threads=1, seed=0)
    parser.add_argument("--data", type=Path, default=None, help="folder of MNIST's idx files")
    parser.add_argument("--figures", type=Path, default=None, help="folder for the pictures")
    parser.add_argument("--arms", nargs="+", default=list(COMPARED), choices=list(ARMS))
    parser.add_argument("--classes", nargs="*", type=int, default=list(range(10)))
    options = parsed(parser)
    name = "digits-latents" if options.data is None else "mnist-latents"
    rows, sampled = {}, {}
    for label in (None, *options.classes):
        found = latents_of(name if label is None else f"{name}:{label}", options.data)
        problem = found.problem
        row = {"training_rows": len(problem.train), "gaussian": gaussian_baseline(problem), "arms": {}}
        for arm in options.arms:
            density = trained(problem.train, problem.validation, arm, options)
            losses = -density.log_prob(problem.test).double()
            row["arms"][arm] = {
                "test": float(losses.mean()),
                "standard_error_of_rows": float(losses.std() / len(losses) ** 0.5),
                "log_z_error": density.normaliser().error,
            }
            if arm == options.arms[0]:
                draws = density.draw(COLUMNS, seed=options.seed)
                row["r_hat"] = float(draws.r_hat.max())
                called = "all classes" if label is None else f"class {label}"
                sampled[f"sampled, {called}"] = found.decode(draws.x)
        rows["all" if label is None else str(label)] = row
        print("all" if label is None else label, row, flush=True)
    whole = latents_of(name, options.data)
    if options.figures is not None:
        options.figures.mkdir(parents=True, exist_ok=True)
        shown = whole.images[: 2 * COLUMNS]
        reconstructed = whole.decode(whole.problem.test[: 2 * COLUMNS])
        file = options.figures / f"{name}.png"
        draw_images(shown, reconstructed, sampled, file, columns=COLUMNS)
        print(f"\ndrawn: {file}")
    about = {"problem": name, "reconstruction_error": whole.reconstruction_error}
    write(options, {**about, **given(options, "steps", "rate", "seed"), "classes": rows}, table_image_latents)


if __name__ == "__main__":
    main()
