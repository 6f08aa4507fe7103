#!/usr/bin/env python3
"""Draw the picture of the README anew from a demonstration: curves, densities and images off its page.

    convexlift demo       # its result.json of this machine is kept as results/demo.json
    python scripts/picture.py results/demo.json docs/images/demo.png

Needs a Chromium, which takes the picture, on the path.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from convexlift.files import write_whole
from convexlift.study.report.demo_page import demo_page

WIDTH, HEIGHT = 1200, 2400  # of the window; what is empty below is cut off
COLOURS = 128
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Of each section of the page: its heading here, and which of its figures are shown.
SHOWN = {
    "digits21": (
        "Handwritten digits: the loss of one convex network, trained in five ways",
        slice(0, 2),
    ),
    "laplace": ("A toy density: the trained models, at the library's rates", slice(3, 4)),
}


def picture_page(result: dict[str, Any]) -> str:
    """The page of the demonstration with the figures that are shown, and nothing else."""
    page = demo_page(result)
    head, body = page.split("<main>")
    parts = []
    for section, (heading, chosen) in SHOWN.items():
        text = re.search(rf'<section id="{section}">.*?</section>', body, re.DOTALL)
        figures = re.findall("<figure.*?</figure>", text[0] if text else "", re.DOTALL)
        parts.append(f'<h3>{heading}</h3><div class="figures">{"".join(figures[chosen])}</div>')
    tight = "<style>main{padding:0 16px} .figures{margin:0 0 14px} h3{margin:16px 0 8px}</style>"
    return f"{head}{tight}<main>{''.join(parts)}</main></body></html>"


def photographed(page: str) -> Image.Image:
    """The page as it looks in a light window, without what is empty below."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"no browser on the path; looked for {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "page.html").write_text(page, encoding="utf-8")
        options = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--blink-settings=preferredColorScheme=1",
        ]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}"]
        options += [f"--screenshot={folder}/page.png", f"file://{folder}/page.html"]
        subprocess.run([browser, *options], check=True, capture_output=True)
        image = Image.open(Path(folder, "page.png")).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    bounds = ImageChops.difference(image, empty).getbbox()
    return image.crop((0, 0, image.width, min(image.height, bounds[3] + 16))) if bounds else image


def main() -> None:
    result, target = map(Path, sys.argv[1:])
    image = photographed(picture_page(json.loads(result.read_text(encoding="utf-8"))))
    png = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    write_whole(target, png.getvalue())


if __name__ == "__main__":
    main()
