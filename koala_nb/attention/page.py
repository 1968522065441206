"""Attention seen: a picture lit by a map, and a page of all words, steps, layers, on its own."""

import base64
import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from koala_nb.attention.maps import MARKS, Attention
from koala_nb.core.files import write_atomic
from koala_nb.display.page import encoded, filled_page

DIM = 0.3  # brightness that a picture keeps where a map is 0
GLOW, LIGHT = 0.35, (255, 255, 153)  # pale yellow, added where a map is large: dark things show
SIDE = 256  # pixels at least, so that a coarse map is smooth on a small picture
PICTURE = 512  # pixels at most on the page
GRID = 48  # cells at most along a side of the page's maps
ALL_LAYERS, ALL_STEPS = "all layers", "mean over steps"


def overlay(image: Image.Image, values: np.ndarray, top: float | None = None) -> Image.Image:
    """Return a picture lit by a map, (rows, columns): in its own colours, dark where it is small.

    `top`: the value of full light, by default the map's largest. ValueError for what is no map.
    """
    values = np.asarray(values, dtype=float)
    top = float(values.max()) if top is None and values.size else top
    if values.ndim != 2 or not top or not np.isfinite(top) or top < 0:
        raise ValueError("overlay: give a map of rows x columns with a positive largest value.")
    scale = max(1, -(-SIDE // min(image.size)))
    size = (image.width * scale, image.height * scale)
    levels = Image.fromarray((values / top).clip(0, 1).astype(np.float32))
    heat = np.asarray(levels.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    picture = np.asarray(image.convert("RGB").resize(size, Image.Resampling.NEAREST))
    kept, added = _light(heat)
    return Image.fromarray((kept[..., None] * picture + added).round().astype(np.uint8))


def _light(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for 0 to 1, the share of a picture that is kept and the colour that is added."""
    glow = GLOW * heat**2
    return (DIM + (1 - DIM) * heat) * (1 - glow), glow[..., None] * np.array(LIGHT)


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
    """Write a page that lights the picture by each word's map: words, steps, layers to choose.

    `chosen`: as in `Attention.maps`. Steps and stages of the U-Net appear if they were kept. Maps
    have 256 levels of their word's largest value. ValueError for a bad choice or image.
    """
    stages = dict.fromkeys(".".join(name.split(".")[:2]) for name in attention.layers())
    groups: dict[str, str | None] = {ALL_LAYERS: None}
    if len(stages) > 1 and "layers" not in chosen and all("blocks" in stage for stage in stages):
        groups |= {stage: stage for stage in stages}
    steps = attention.steps(image)
    times = {ALL_STEPS: None} | {f"step {s + 1}": s for s in range(steps) if steps > 1}
    words = attention.words(prompt, image, **chosen)
    size = _shrink(words.array).shape[1:]
    maps = np.array(  # groups, steps, words, rows, columns
        [
            [
                _shrink(_spread(attention.words(prompt, image, step=step, **layers).array, size))
                for step in times.values()
            ]
            for layers in ({"layers": group, **chosen} for group in groups.values())
        ]
    )
    largest = np.maximum(maps.max((1, 3, 4)), 1e-12)  # of a word that nothing looks at
    contrast = [m.max() / m.mean() for m in maps[0, 0][: -len(MARKS)]]
    levels = (255 * maps / largest[:, None, :, None, None]).round().astype(np.uint8)
    places = [place(m) for m in np.eye(9).reshape(9, 3, 3)]
    kept, added = _light(np.linspace(0, 1, 256))
    colours = np.column_stack([added / (1 - kept)[:, None], 255 * (1 - kept)])
    data = {
        "shape": maps.shape,
        "layers": list(groups),
        "steps": list(times),
        "words": words.texts,
        "first": int(np.argmax(contrast)) if contrast else 0,
        "largest": largest.tolist(),
        "top": largest[:, : len(contrast) or None].max(1).tolist(),  # of the words, not the marks
        "mean": maps.mean((3, 4)).round(6).tolist(),
        "places": places,
        "where": [[[places.index(place(m)) for m in step] for step in group] for group in maps],
        "maps": base64.b64encode(levels.tobytes()).decode("ascii"),
        "colours": base64.b64encode(colours.round().astype(np.uint8).tobytes()).decode("ascii"),
    }
    note = (
        "Cross-attention, the mean over the chosen layers, on "
        f"{size[0]} x {size[1]} cells. A word's map is the sum over its tokens; with "
        "the special tokens [start], [end] and [padding] the words' shares add up to 100 %."
    )
    texts = {
        "title": escape(prompt),
        "alt": escape(f"Image drawn from the prompt: {prompt}", quote=True),
        "picture": _data_url(picture),
        "rendering": "pixels" if picture.width < SIDE else "smooth",
        "note": escape(note),
    }
    template = ("koala_nb.attention", "attention.html")
    advice = "capture fewer steps or choose layers"
    return write_atomic(path, filled_page(template, data, banner, advice, **texts))


def _spread(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return maps, (words, rows, columns), with each cell repeated up to a finer grid's size."""
    rows, columns = (np.arange(max(m, n)) * n // max(m, n) for m, n in zip(size, maps.shape[1:]))
    return maps[:, rows][:, :, columns]


def _shrink(maps: np.ndarray) -> np.ndarray:
    """Return maps, (words, rows, columns), of at most GRID cells a side, by block means."""
    factor = -(-max(maps.shape[1:]) // GRID)
    rows, columns = (side // factor for side in maps.shape[1:])
    cut = maps[:, : rows * factor, : columns * factor]
    return cut.reshape(len(maps), rows, factor, columns, factor).mean((2, 4))


def _data_url(picture: Image.Image) -> str:
    form = "PNG" if picture.width < SIDE else "JPEG"
    return f"data:image/{form.lower()};base64,{encoded(picture, PICTURE, form, quality=88)}"
