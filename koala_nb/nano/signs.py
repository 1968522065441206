"""Signs of the emoji world with any text on them: what a perfect model would have drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.world import BACKGROUNDS, STYLES, UNITS, Placed, Scene, Thing


def signs(texts: Sequence[str], size: int, seed: int = 0) -> list[Image.Image]:
    """Return one sign a text at an image size in pixels; style, background, place by the seed.

    Drawn as in training: the text in one line, in a font of the style, as large as the board
    allows. The emoji world is drawn at multiples of 64 pixels; another size is resampled.
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for text in texts:
        style, background = STYLES[rng.integers(3)], list(BACKGROUNDS)[rng.integers(10)]
        x, y = (int(v) for v in rng.integers(2, 9, 2))
        scenes.append(
            Scene("sign", style, background, (Placed(Thing("sign", text), "large", x, y),))
        )
    side = max(1, round(size / UNITS)) * UNITS
    render = Renderer(side, [Thing("sign", text) for text in texts])
    pictures = [Image.fromarray(pixels) for pixels in to_pixels(render(scenes))]
    return pictures if side == size else [p.resize((size, size)) for p in pictures]
