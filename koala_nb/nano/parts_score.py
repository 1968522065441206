"""CLIPScore in the emoji world: `nano-clip` knows the names of parts, not whole sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from koala_nb.core.files import Record
from koala_nb.nano.scorers import ClipScorer, to_tensor
from koala_nb.nano.train_clip import COUNT_WORDS, pooled
from koala_nb.scorers.detection import items_of

if TYPE_CHECKING:
    from PIL import Image

CLIPSCORE = 2.5  # the factor of CLIPScore (arXiv 2104.08718, equation 1)


class PartsScore:
    """The mean of 2.5 max(cos, 0) over the texts of what a prompt asks for."""

    name, version = "CLIPScore of parts", ClipScorer.name

    def __init__(self) -> None:
        self.clip = ClipScorer()
        self.known = {
            text: self.clip.texts[bank][i]
            for bank, texts in self.clip.bank.items()
            for i, text in enumerate(texts)
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[float]:
        """Return the score of each image with its prompt."""
        return self.read(to_tensor(list(images)), prompts)

    @torch.no_grad()
    def read(self, images: torch.Tensor, prompts: Sequence[Record]) -> list[float]:
        """Return the score of images in -1..1, (n, 3, side, side)."""
        side = self.clip.model.config.vision_config.image_size
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="area")
        parts = [
            pooled(self.clip.model.get_image_features(pixel_values=b)) for b in images.split(64)
        ]
        features = F.normalize(torch.cat(parts), dim=-1)
        return [
            CLIPSCORE
            * float(torch.stack([self.known[t] for t in texts_of(p)]).mv(x).clamp(0).mean())
            for x, p in zip(features, prompts, strict=True)
        ]


def texts_of(prompt: Record) -> list[str]:
    """Return the texts of nano-clip's bank that a prompt's row asks for."""
    texts = []
    for item in items_of(prompt["asks"]):
        texts.append(f"a {item.color} {item.label}" if item.color else f"a {item.label}")
        if item.number > 1:
            texts.append(f"{COUNT_WORDS[item.number - 1]} of them")
    for name in ("background", "style"):
        if prompt.get(name):
            texts.append(f"{prompt[name]} {name}")
    return texts
