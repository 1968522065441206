"""Find every sprite in an image of the emoji world: the composition probe's detector and its error.

Objects and coloured shapes are looked for, of all styles and sizes, at any place; persons and signs
are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from koala_nb.core.errors import nearest
from koala_nb.nano.presets import preset_of
from koala_nb.nano.scorers import SpriteMatcher, to_tensor
from koala_nb.nano.world import BACKGROUNDS, SIZES, STYLES, World
from koala_nb.scorers.detection import Detection, overlap

if TYPE_CHECKING:
    from PIL import Image

THRESHOLD = 0.4  # of the best F1 on scenes of seeds that the card does not use
SAME_PLACE = 0.5  # of the smaller box: two sprites of a scene never overlap so much
MOST = 6  # sprites looked for in an image: four can be asked, so two more can be seen as extra
BATCH = 32
COARSE_SIDE = 32  # pixels: candidates are found on images made so small
LENIENT = 0.2  # a candidate's least score on the small image, where places are half known
CANDIDATES = 6  # of each size, looked at closely


Fine = tuple[torch.Tensor, torch.Tensor, float]


class Hit(NamedTuple):
    """A sprite at a place: its size class, its row among the sprites, its top left pixel."""

    size: str
    sprite: int
    y: int
    x: int
    gain: float
    score: float


def border(images: torch.Tensor) -> torch.Tensor:
    """Return the median colour of images' two outermost pixels, (n, 3, 1, 1)."""
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    return images[:, :, ~inner].median(2).values[:, :, None, None]


class SpriteDetector:
    """Matching pursuit over all sprites: the best is found, subtracted, and so on.

    With D the image less its background and T a sprite less the background that it hides, the
    sprite is taken that reduces |D|^2 most, by 2 <D, T> - |T|^2, among those whose score reaches
    the threshold: this reduction over |T|^2 or |D|^2 where the sprite is, the larger of both. 1 is
    a sprite drawn to the pixel. Boxes are in shares of the image's side.
    """

    name = "sprite detection"

    def __init__(
        self, n_objects: int | None, image_size: int, threshold: float = THRESHOLD
    ) -> None:
        self.world = World(n_objects, balanced=True)
        self.things = tuple(t for t in self.world.things() if t.kind in ("object", "shape"))
        self.coarse = max(
            1, image_size // COARSE_SIDE
        )  # also the reach in which a place is refined
        self.matcher = SpriteMatcher(self.world, image_size, self.coarse)
        self.threshold = threshold
        self.version = f"1, threshold {threshold:g}, {len(self.things)} things"
        self.labels = {t.name for t in self.things}
        self._kept: dict[tuple[str, str, int], Fine] = {}

    @classmethod
    def of_system(cls, system: str) -> SpriteDetector:
        """Return the detector for an embedded system's world and image size."""
        preset = preset_of(system)
        return cls(preset.n_objects, preset.image_size)

    def background(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return the named colour nearest to each image's border."""
        return list(self.matcher.background(self._pixels(images)))

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return what is in each image, best explained first, asked for or not.

        ValueError for a query that names nothing of this world.
        """
        for label in {name for names in queries for name in names} - self.labels:
            hint = nearest(label, self.labels)
            raise ValueError(f"The emoji world's detector knows no {label!r}.{hint}")
        return self.find(self._pixels(images))

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        side = self.matcher.render.image_size
        return to_tensor([i if i.size == (side, side) else i.resize((side, side)) for i in images])

    @torch.no_grad()
    def find(self, images: torch.Tensor) -> list[list[Detection]]:
        """Return the detections of images in -1..1, (n, 3, side, side)."""
        detections: list[list[Detection]] = [[] for _ in images]
        backgrounds = self.matcher.background(images)
        for color in dict.fromkeys(backgrounds):
            rows = [i for i, other in enumerate(backgrounds) if other == color]
            for some in torch.tensor(rows).split(BATCH):
                # The background as it is painted: a tint of it is no object.
                left, going = images[some] - border(images[some]), some.tolist()
                for _ in range(MOST):
                    best = self._best(left, color)
                    keep = [k for k, hit in enumerate(best) if hit is not None]
                    for k in keep:
                        self._take(left[k], best[k], color, detections[going[k]])
                    left, going = left[keep], [going[k] for k in keep]
                    if not going:
                        break
        return detections

    def _best(self, left: torch.Tensor, color: str) -> list[Hit | None]:
        """Return the sprite that explains most in each image, or None below the threshold."""
        small = F.avg_pool2d(left, self.coarse)
        best: list[Hit | None] = [None] * len(left)
        for size in SIZES:
            templates = self.matcher.templates(color, self.things, size)
            energy = templates.square().sum((1, 2, 3)).clamp(min=1e-6)[:, None, None]
            gain = 2 * F.conv2d(small, templates) - energy
            gain = torch.where(gain >= LENIENT * energy, gain, 0)
            values, places = gain.flatten(1).topk(CANDIDATES, dim=1)
            for k, at in (values > 0).nonzero().tolist():
                index, rest = divmod(int(places[k, at]), gain.shape[-2] * gain.shape[-1])
                corner = divmod(rest, gain.shape[-1])
                hit = self._refine(left[k], color, size, index, corner)
                if hit is not None and (best[k] is None or hit.gain > best[k].gain):
                    best[k] = hit
        return best

    def _refine(
        self, left: torch.Tensor, color: str, size: str, index: int, corner: tuple[int, int]
    ) -> Hit | None:
        """Return the best place within two pixels at the image's own resolution, or None."""
        template, mask, energy = self._fine(color, size, index)
        side, width = template.shape[-1], left.shape[-1]
        y, x = (max(0, min(self.coarse * (c - 1), width - side)) for c in corner)
        window = left[:, y : y + side + 2 * self.coarse, x : x + side + 2 * self.coarse]
        gain = 2 * F.conv2d(window[None], template[None])[0, 0] - energy
        dy, dx = divmod(int(gain.argmax()), gain.shape[-1])
        there = window[:, dy : dy + side, dx : dx + side] * mask
        # Over what is there, too: a pale sprite reduces a bright one's energy more than its own.
        score = float(gain[dy, dx]) / max(energy, float(there.square().sum()))
        if score < self.threshold:
            return None
        return Hit(size, index, y + dy, x + dx, float(gain[dy, dx]), score)

    def _fine(self, color: str, size: str, index: int) -> Fine:
        """Return a sprite less the background that it hides, its opacity and its energy."""
        if (color, size, index) not in self._kept:
            style, which = divmod(index, len(self.things))
            sprite = self.matcher.render.sprite(self.things[which], STYLES[style], size)
            ground = torch.tensor(BACKGROUNDS[color]) / 255
            template = 2 * (sprite[:3] - ground[:, None, None] * sprite[3:])
            energy = max(float(template.square().sum()), 1e-6)
            self._kept[color, size, index] = template, sprite[3:], energy
        return self._kept[color, size, index]

    def _take(self, left: torch.Tensor, hit: Hit | None, color: str, detections: list) -> None:
        """Subtract a sprite from an image and note it."""
        assert hit is not None
        template = self._fine(color, hit.size, hit.sprite)[0]
        side, width = template.shape[-1], left.shape[-1]
        left[:, hit.y : hit.y + side, hit.x : hit.x + side] -= template
        style, which = divmod(hit.sprite, len(self.things))
        thing, corner = self.things[which], (hit.x, hit.y)
        box = (*(c / width for c in corner), *((c + side) / width for c in corner))
        new = Detection(thing.name, round(hit.score, 6), box, thing.color, STYLES[style])
        # What a sprite leaves unexplained can look like a small sprite at its place.
        if all(overlap(new.box, other.box) < SAME_PLACE for other in detections):
            detections.append(new)
