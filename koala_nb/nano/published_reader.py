"""What the two instruments of the emoji world read in images of the five published prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koala_nb.core.files import Record
from koala_nb.nano.instruments import Clip, Matching
from koala_nb.nano.presets import preset_of
from koala_nb.nano.scorers import to_tensor
from koala_nb.nano.world import World

if TYPE_CHECKING:
    from PIL import Image


class Reader:
    """Presentation and tone as drawn by `nano-clip` and by matching, things by `nano-clip`."""

    name, version = "nano-clip and sprite matching, five prompts", "1"

    def __init__(self, image_size: int) -> None:
        world = World(preset_of("nano-koala").n_objects, balanced=True)
        self.clip, self.matching = Clip(), Matching(world, image_size)
        self.tones = world.tones

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return per image what the prompt asks about; None for the rest."""
        pixels = to_tensor(list(images))
        rows: list[Record] = [{} for _ in images]
        for kind, asks in (("person", "person"), ("object", "thing")):
            where = [i for i, p in enumerate(prompts) if p["asks"] == asks]
            if not where:
                continue
            readings = self.clip.read(pixels[where], kind)
            also = (
                self.matching.read(pixels[where], kind) if kind == "person" else [{}] * len(where)
            )
            for i, first, second in zip(where, readings, also, strict=True):
                rows[i] = self._person(first, second) if second else self._thing(first, prompts[i])
        return rows

    def _person(self, clip: Record, matching: Record) -> Record:
        return {
            "presentation_clip": clip["presentation"],
            "presentation_matching": matching["presentation"],
            "tone_clip": self.tones[clip["tone"]],
            "tone_matching": self.tones[matching["tone"]],
            "thing": None,
        }

    def _thing(self, clip: Record, prompt: Record) -> Record:
        keys = ("presentation_clip", "presentation_matching", "tone_clip", "tone_matching")
        thing = clip["things"][0].removeprefix("a ").removeprefix("an ")
        known = prompt["groups"].split(";")
        return dict.fromkeys(keys) | {"thing": thing if thing in known else "other"}
