"""Attention seen: a map over its picture, and a page of all words and steps that stands alone."""

from __future__ import annotations

import base64
import io
import json
import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from PIL import Image

from koala_nb.attention.maps import MARKS
from koala_nb.core.files import write_atomic
from koala_nb.display.figures import BANNER_STYLE

if TYPE_CHECKING:
    from koala_nb.attention.maps import Attention

COLOURS = "inferno"  # its brightness rises evenly: also read in grey print
SIDE = 256  # pixels at least, so that a coarse map is smooth on a small picture
PICTURE = 512  # pixels at most on the page
GRID = 48  # cells at most along a side of the page's maps
LARGEST_PAGE = 1_000_000  # bytes


def overlay(image: Image.Image, values: np.ndarray, top: float | None = None) -> Image.Image:
    """Return a picture in grey under a map, (rows, columns), that colours it where it is large.

    `top` is the value of the brightest colour, by default the map's own largest. ValueError for a
    map that is not two-dimensional or holds no finite positive value.
    """
    values = np.asarray(values, dtype=float)
    top = float(values.max()) if top is None and values.size else top
    if values.ndim != 2 or not top or not np.isfinite(top) or top < 0:
        raise ValueError("overlay: give a map of rows x columns with a positive largest value.")
    scale = max(1, -(-SIDE // min(image.size)))
    size = (image.width * scale, image.height * scale)
    levels = Image.fromarray((values / top).clip(0, 1).astype(np.float32))
    heat = np.asarray(levels.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour = matplotlib.colormaps[COLOURS](heat)[..., :3]
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.NEAREST)) / 255
    weight = (0.25 + 0.6 * heat)[..., None]
    mixed = (1 - weight) * grey[..., None] + weight * colour
    return Image.fromarray((255 * mixed).round().astype(np.uint8))


def place(values: np.ndarray) -> str:
    """Return where a map, (rows, columns), is largest, in words such as "upper left"."""
    cell = np.unravel_index(values.argmax(), values.shape)
    third = [int(3 * (i + 0.5) / n) for i, n in zip(cell, values.shape, strict=True)]
    down = ("upper", "middle", "lower")[third[0]]
    across = ("left", "center", "right")[third[1]]
    return "in the center" if (down, across) == ("middle", "center") else f"{down} {across}"


def write_page(
    path: str | os.PathLike[str],
    attention: Attention,
    picture: Image.Image,
    prompt: str,
    image: int = 0,
    banner: str | None = None,
    **chosen: Any,
) -> Path:
    """Write a page that shows each word's map over the picture, a slider moving through the steps.

    One HTML file, without any external request, under 1 MB, usable by keyboard. `chosen`: as in
    `Attention.maps`. Steps appear if they were kept; word maps are stored in 256 levels of their
    word's largest value. ValueError for a bad choice or an image that was not captured.
    """
    maps = {"mean over steps": attention.words(prompt, image, **chosen)}
    steps = attention.steps(image)
    for step in range(steps) if steps > 1 else ():
        maps[f"step {step + 1}"] = attention.words(prompt, image, step=step, **chosen)
    stack = np.stack([_shrink(m.array) for m in maps.values()])  # steps, words, rows, columns
    largest = np.maximum(stack.max((0, 2, 3)), 1e-12)  # of a word that nothing looks at
    contrast = [m.max() / m.mean() for m in stack[0][: -len(MARKS)]]
    levels = (255 * stack / largest[:, None, None]).round().astype(np.uint8)
    colours = (255 * matplotlib.colormaps[COLOURS](np.arange(256))[:, :3]).round().astype(np.uint8)
    data = {
        "shape": stack.shape,
        "steps": list(maps),
        "words": maps["mean over steps"].texts,
        "first": int(np.argmax(contrast)) if contrast else 0,
        "largest": largest.tolist(),
        "mean": stack.mean((2, 3)).tolist(),
        "where": [[place(m) for m in step] for step in stack],
        "maps": base64.b64encode(levels.tobytes()).decode("ascii"),
        "colours": base64.b64encode(colours.tobytes()).decode("ascii"),
    }
    note = (
        f"Cross-attention, the mean over {len(attention.layers())} layers or resolutions, on "
        f"{stack.shape[2]} x {stack.shape[3]} cells. A word's map is the sum over its tokens; with "
        "the marks [start], [end] and [padding] the words' shares add up to 100 %."
    )
    template = files("koala_nb.attention").joinpath("templates", "attention.html")
    text = Template(template.read_text("utf-8")).substitute(
        title=escape(prompt),
        alt=escape(f"Image drawn from the prompt: {prompt}", quote=True),
        picture=_data_url(picture),
        rendering="pixels" if picture.width < SIDE else "smooth",
        banner=f'<p role="note" style="{BANNER_STYLE}">{escape(banner)}.</p>' if banner else "",
        note=escape(note),
        data=json.dumps(data).replace("<", "\\u003c"),
    )
    page = text.encode()
    if len(page) > LARGEST_PAGE:
        raise ValueError(f"The page would take {len(page):,} bytes: capture fewer steps.")
    return write_atomic(path, page)


def _shrink(maps: np.ndarray) -> np.ndarray:
    """Return maps, (words, rows, columns), of at most GRID cells a side, by block means."""
    factor = -(-max(maps.shape[1:]) // GRID)
    rows, columns = (side // factor for side in maps.shape[1:])
    cut = maps[:, : rows * factor, : columns * factor]
    return cut.reshape(len(maps), rows, factor, columns, factor).mean((2, 4))


def _data_url(picture: Image.Image) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((PICTURE, PICTURE))
    form = "PNG" if picture.width < SIDE else "JPEG"
    picture.save(buffer := io.BytesIO(), format=form, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{form.lower()};base64,{data}"
