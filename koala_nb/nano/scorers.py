"""Two instruments that read images of the emoji world, independent of each other.

`ClipScorer` is a trained model (`nano-clip`); `SpriteMatcher` compares pixels with the sprites.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from koala_nb.core.catalog import data_folder
from koala_nb.models import hub
from koala_nb.nano.render import Renderer
from koala_nb.nano.world import BACKGROUNDS, SIZES, STYLES, Thing, World


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return pictures as (n, 3, h, w) in -1..1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class ClipScorer:
    """Zero-shot reading by `nano-clip` over its text bank."""

    name = "nano-clip"

    def __init__(self, folder: Path | None = None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = folder or data_folder() / "models" / "nano-clip"
        if not (folder / "bank.json").is_file():
            raise FileNotFoundError(
                f"The scorer nano-clip is missing in {folder}: restore the folder or train it with "
                "`koala-nb train --stage clip`."
            )
        self.bank = json.loads((folder / "bank.json").read_text("utf-8"))
        self.model = hub.load_whole(CLIPModel, folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts = {name: self._read(texts) for name, texts in self.bank.items()}

    @torch.no_grad()
    def _read(self, texts: list[str]) -> torch.Tensor:
        from koala_nb.nano.train_clip import pooled

        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        return F.normalize(pooled(self.model.get_text_features(input_ids=tokens.input_ids)), dim=-1)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return per attribute the softmax over its bank, (n, values), for images in -1..1."""
        from koala_nb.nano.train_clip import pooled

        parts = []
        for batch in images.split(256):
            parts.append(pooled(self.model.get_image_features(pixel_values=batch)))
        features = self.model.logit_scale.exp() * F.normalize(torch.cat(parts), dim=-1)
        return {name: (features @ texts.T).softmax(1) for name, texts in self.texts.items()}


@dataclass(frozen=True)
class Match:
    """A sprite found in an image, its top left corner in pixels.

    `explained` is the share of the foreground's energy that subtracting the sprite removes: 1 if
    every pixel is accounted for, 0 if nothing is.
    """

    thing: Thing
    style: str
    size: str
    x: int
    y: int
    explained: float


class SpriteMatcher:
    """Least-squares matching of the world's sprites, at every place and size.

    With D the image less its background and T a sprite less the background that it hides, the
    sprite and place are taken that reduce |D|^2 most: 2 <D, T> - |T|^2 (matched filter).
    """

    name = "sprite matching"

    def __init__(self, world: World, image_size: int, reduce: int = 2) -> None:
        """`reduce`: matching runs on images made this many times smaller."""
        self.world, self.reduce = world, reduce
        self.render = Renderer(image_size, world.things())
        self._templates: dict[tuple, torch.Tensor] = {}

    def background(self, images: torch.Tensor) -> list[str]:
        """Return the named colour nearest to the median of each image's border."""
        edge = torch.cat(
            [
                images[..., :2, :].flatten(2),
                images[..., -2:, :].flatten(2),
                images[..., :2].flatten(2),
                images[..., -2:].flatten(2),
            ],
            dim=2,
        )
        named = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
        nearest = torch.cdist(edge.median(2).values, named).argmin(1)
        return [list(BACKGROUNDS)[i] for i in nearest.tolist()]

    def match(
        self, images: torch.Tensor, things: list[Thing], sizes: tuple[str, ...], count: int = 1
    ) -> list[list[Match]]:
        """Return for each image (-1..1) the `count` best sprites, found one after the other."""
        small = F.avg_pool2d(images, self.reduce) if self.reduce > 1 else images
        matches: list[list[Match]] = [[] for _ in images]
        backgrounds = self.background(images)
        for color in dict.fromkeys(backgrounds):
            rows = [i for i, other in enumerate(backgrounds) if other == color]
            ground = torch.tensor(BACKGROUNDS[color]) / 127.5 - 1
            for some in torch.tensor(rows).split(64):
                left = small[some] - ground[:, None, None]
                energy = left.square().sum((1, 2, 3)).clamp(min=1e-6)
                for _ in range(count):
                    best = self._best(left, color, things, sizes)
                    for k, row in enumerate(some.tolist()):
                        gain, size, index, y, x = (value[k] for value in best)
                        template = self.templates(color, tuple(things), size)[index]
                        side = template.shape[-1]
                        left[k, :, y : y + side, x : x + side] -= template
                        style, which = divmod(index, len(things))
                        matches[row].append(
                            Match(
                                things[which],
                                STYLES[style],
                                size,
                                x * self.reduce,
                                y * self.reduce,
                                float(gain / energy[k]),
                            )
                        )
        return matches

    def _best(
        self, left: torch.Tensor, color: str, things: list[Thing], sizes: tuple[str, ...]
    ) -> tuple:
        n = len(left)
        top = torch.full((n,), -torch.inf)
        where: list[tuple] = [("", 0, 0, 0)] * n
        for size in sizes:
            templates = self.templates(color, tuple(things), size)
            product = F.conv2d(left, templates)
            gain = 2 * product - templates.square().sum((1, 2, 3))[None, :, None, None]
            value, place = gain.flatten(1).max(1)
            width = gain.shape[-1]
            for k in range(n):
                if value[k] > top[k]:
                    top[k] = value[k]
                    index, rest = divmod(int(place[k]), gain.shape[-2] * width)
                    where[k] = (size, index, *divmod(rest, width))
        return (top, *zip(*where, strict=True))

    def templates(self, color: str, things: tuple[Thing, ...], size: str) -> torch.Tensor:
        """Return sprites less the background that they hide, (styles x things, 3, side, side)."""
        key = (color, things, size)
        if key not in self._templates:
            if len(self._templates) > 60:
                self._templates.clear()
            ground = torch.tensor(BACKGROUNDS[color]) / 255
            sprites = torch.stack(
                [self.render.sprite(thing, style, size) for style in STYLES for thing in things]
            )
            side = round(SIZES[size] * self.render.scale / self.reduce)
            sprites = F.interpolate(sprites, (side, side), mode="area")
            ground = ground[:, None, None] * sprites[:, 3:]
            self._templates[key] = 2 * (sprites[:, :3] - ground)
        return self._templates[key]
