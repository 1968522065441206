"""Pictures of one prompt over steps, guidance and seeds, on a page that stands alone."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from koala_nb.core.files import banner, write_atomic
from koala_nb.display.figures import BANNER_STYLE
from koala_nb.generation.generate import generate
from koala_nb.models.load import model_info

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

STEPS, GUIDANCES = (1, 2, 4, 7, 10, 25), (1.0, 2.0, 3.5, 7.0, 12.0)
LARGEST_PAGE = 1_500_000  # bytes
PICTURE = 256  # pixels per side at most on the page


def write_page(
    path: str | os.PathLike[str],
    pipe: Pipeline,
    prompt: str,
    seeds: Iterable[int] = range(4),
    steps: Sequence[int] = STEPS,
    guidances: Sequence[float] = GUIDANCES,
    size: int | None = None,
) -> Path:
    """Draw a prompt at each number of steps, guidance and seed; write a page to choose among them.

    One HTML file, without any external request, under 1.5 MB, usable by keyboard. `size` in pixels
    per side. ValueError as of `generate`, or where the page would be larger.
    """
    seeds = list(seeds)
    drawn = [
        [
            generate(pipe, prompt, seeds, steps=n, guidance=g, height=size, width=size).images
            for g in guidances
        ]
        for n in steps
    ]
    info = model_info(pipe)
    text = banner(info.domain)
    data = {
        "steps": list(steps),
        "guidance": list(guidances),
        "seed": seeds,
        "pictures": [[[webp(image) for image in run] for run in row] for row in drawn],
    }
    template = files("koala_nb.generation").joinpath("templates", "knobs.html")
    page = Template(template.read_text("utf-8")).substitute(
        prompt=escape(prompt),
        model=escape(info.label),
        banner=f'<p role="note" style="{BANNER_STYLE}">{escape(text)}.</p>' if text else "",
        data=json.dumps(data).replace("<", "\\u003c"),
    )
    if len(page.encode()) > LARGEST_PAGE:
        raise ValueError(f"The page would take {len(page.encode()):,} bytes: give fewer values.")
    return write_atomic(path, page.encode())


def webp(image: Image.Image) -> str:
    """Return an image of at most PICTURE pixels per side as WebP, in base64."""
    image = image.convert("RGB")
    image.thumbnail((PICTURE, PICTURE))
    image.save(buffer := io.BytesIO(), format="WEBP", quality=80, method=6)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
