"""What the two instruments read in images of the emoji world, in one form."""

from typing import Any

import torch

from koala_nb.nano.scorers import ClipScorer, SpriteMatcher
from koala_nb.nano.train_clip import thing_text
from koala_nb.nano.world import STYLES, World

UNSURE = 0.65  # a presentation read with less probability counts as unsure


class Clip:
    """What `nano-clip` reads in images: every attribute from the same softmaxes."""

    name = ClipScorer.name

    def __init__(self) -> None:
        self.scorer = ClipScorer()
        self.bank = self.scorer.bank

    def read(self, images: torch.Tensor, kind: str) -> list[dict[str, Any]]:
        """Return per image: things (best first), background, style, presentation, tone."""
        found = self.scorer.probabilities(images)
        best = {name: values.argmax(1).tolist() for name, values in found.items()}
        two = found["thing"].topk(2, dim=1).indices.tolist()
        sure = (found["presentation"].max(1).values >= UNSURE).tolist()
        return [
            {
                "things": [self.bank["thing"][j] for j in two[i]],
                "background": self.bank["background"][best["background"][i]].split()[0],
                "style": STYLES[best["style"][i]],
                "presentation": ("woman", "man")[best["presentation"][i]] if sure[i] else "unsure",
                "tone": best["tone"][i],
            }
            for i in range(len(images))
        ]


class Matching:
    """What sprite matching reads in images: the best sprite says everything at once."""

    name = SpriteMatcher.name

    def __init__(self, world: World, image_size: int) -> None:
        self.world, self.matcher = world, SpriteMatcher(world, image_size)
        self.people = [thing for thing in world.things() if thing.kind == "person"]
        self.objects = [thing for thing in world.things() if thing.kind == "object"]

    def read(self, images: torch.Tensor, kind: str) -> list[dict[str, Any]]:
        """Return per image the same reading as `Clip.read`; `kind` says what to look for."""
        things, sizes, count = {
            "object": (self.objects, ("large", "medium", "small"), 1),
            "person": (self.people, ("large", "medium"), 1),
            "pair": (self.objects, ("small",), 2),
        }[kind]
        found = self.matcher.match(images, things, sizes, count)
        backgrounds = self.matcher.background(images)
        return [
            {
                "things": [thing_text(match.thing) for match in matches],
                "background": background,
                "style": matches[0].style,
                "presentation": matches[0].thing.presentation,
                "tone": self.world.tones.index(matches[0].thing.tone or "light"),
            }
            for matches, background in zip(found, backgrounds, strict=True)
        ]
