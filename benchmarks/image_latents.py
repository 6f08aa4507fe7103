"""Log-concave densities of image latents, all classes and one class at a time, and what they draw.

    python benchmarks/image_latents.py --out results/image_latents.json --figures docs/images
    python benchmarks/image_latents.py --data FOLDER --out results/image_latents_mnist.json

A density of whitened latents (``digits-latents``; with the FOLDER of MNIST's idx files, ``mnist-latents``) is
trained by each arm with one recipe, nothing tuned for a class; its frozen model is scored on test rows beside
the Gaussian. The figure shows test images, their reconstructions, and images decoded from draws: a line of
all classes and a line for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timing
import torch
from torch import Tensor

import convexlift as cl
from convexlift.plots.images import draw_images
from convexlift.problems import gaussian_baseline, latents_of
from convexlift.study.arms import ARMS

HIDDEN = (64, 64, 64)
COLUMNS = 12
COMPARED = ("squared", "lift", "softplus", "projected")


def trained(rows: Tensor, validation: Tensor, arm: str, options: argparse.Namespace) -> cl.LogConcaveDensity:
    """The frozen density of latents, best on validation rows."""
    net = cl.ICNN(rows.shape[1], hidden=HIDDEN, strong_convexity=0.1, seed=options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        density = cl.LogConcaveDensity(ARMS[arm](net))
    cl.fit(
        density,
        rows,
        validation=validation,
        steps=options.steps,
        batch_size=256,
        lr=options.rate,
        seed=options.seed,
        progress=False,
    )
    return density.freeze(rows)


def main() -> None:
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="folder of MNIST's idx files")
    parser.add_argument("--figures", type=Path, default=None, help="folder for the pictures")
    parser.add_argument("--arms", nargs="+", default=list(COMPARED), choices=list(ARMS))
    parser.add_argument("--classes", nargs="*", type=int, default=list(range(10)))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = "digits-latents" if options.data is None else "mnist-latents"
    rows, sampled = {}, {}
    print(f"{name}: test negative log-likelihood in nats\n")
    print(f"{'class':>6}{'rows':>8}{'Gaussian':>10}" + "".join(f"{arm:>22}" for arm in options.arms))
    for label in (None, *options.classes):
        found = latents_of(name if label is None else f"{name}:{label}", options.data)
        problem = found.problem
        row = {"training_rows": len(problem.train), "gaussian": gaussian_baseline(problem), "arms": {}}
        for arm in options.arms:
            density = trained(problem.train, problem.validation, arm, options)
            normaliser = density.normaliser()
            losses = -density.log_prob(problem.test).double()
            row["arms"][arm] = {
                "test": float(losses.mean()),
                "standard_error_of_rows": float(losses.std() / len(losses) ** 0.5),
                "log_z_error": normaliser.error,
            }
            if arm == options.arms[0]:
                draws = density.draw(COLUMNS, seed=options.seed)
                row["r_hat"] = float(draws.r_hat.max())
                called = "all classes" if label is None else f"class {label}"
                sampled[f"sampled, {called}"] = found.decode(draws.x)
        rows["all" if label is None else str(label)] = row
        scores = [
            f"{each['test']:.2f} ± {each['standard_error_of_rows']:.2f}" for each in row["arms"].values()
        ]
        cells = "".join(f"{score:>22}" for score in scores)
        print(
            f"{'all' if label is None else label:>6}{row['training_rows']:8,}{row['gaussian']:10.2f}{cells}",
            flush=True,
        )
    whole = latents_of(name, options.data)
    shown = whole.images[: 2 * COLUMNS]
    if options.figures is not None:
        options.figures.mkdir(parents=True, exist_ok=True)
        reconstructed = whole.decode(whole.problem.test[: 2 * COLUMNS])
        draw_images(
            shown,
            reconstructed,
            sampled,
            options.figures / f"{name}.png",
            columns=COLUMNS,
        )
        print(f"\ndrawn: {options.figures / f'{name}.png'}")
    told = {
        "problem": name,
        "reconstruction_error": whole.reconstruction_error,
        "steps": options.steps,
        "rate": options.rate,
        "seed": options.seed,
        "classes": rows,
    }
    timing.write(options.out, "python benchmarks/image_latents.py", told)


if __name__ == "__main__":
    main()
