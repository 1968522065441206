"""What the two instruments read in images of the emoji world, in one form, and CLIPScore there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from koala_nb.core.files import Record
from koala_nb.nano.detector import SpriteDetector
from koala_nb.nano.scorers import ClipScorer, Match, SpriteMatcher, to_tensor
from koala_nb.nano.train_clip import COUNT_WORDS, PLACES, pooled, thing_text
from koala_nb.nano.world import STYLES, World
from koala_nb.scorers.detection import items_of

CLIPSCORE = 2.5  # the factor of CLIPScore (arXiv 2104.08718, equation 1)
UNSURE = 0.65  # a presentation read with less probability counts as unsure


class Clip:
    """What `nano-clip` reads in images: every attribute from the same softmaxes."""

    name = ClipScorer.name

    def __init__(self) -> None:
        self.scorer = ClipScorer()
        self.bank = self.scorer.bank

    def read(self, images: torch.Tensor, kind: str) -> list[Record]:
        """Return per image: things (best first), background, style, presentation, tone, number.

        For pairs also `order`, the thing on the left or at the top first, and `axis`.
        """
        probabilities = self.scorer.probabilities(images)
        best = {name: values.argmax(1).tolist() for name, values in probabilities.items()}
        two = self._two(probabilities)
        sure = (probabilities["presentation"].max(1).values >= UNSURE).tolist()
        return [
            {
                "things": two[i],
                "background": self.bank["background"][best["background"][i]].split()[0],
                "style": STYLES[best["style"][i]],
                "presentation": ("woman", "man")[best["presentation"][i]] if sure[i] else "unsure",
                "tone": best["tone"][i],
                "number": best["count"][i] + 1,
                "order": two[i],
                "axis": (None, "horizontal", "vertical", None)[best["layout"][i]]
                if "layout" in best
                else None,
            }
            for i in range(len(images))
        ]

    def _two(self, probabilities: dict[str, torch.Tensor]) -> list[list[str]]:
        """Return the two things of each image, best or first (left, top) first."""
        thing = probabilities["thing"].topk(2, dim=1).indices.tolist()
        names = [[self.bank["thing"][j] for j in row] for row in thing]
        if "layout" not in probabilities:  # a scorer that was not trained on places
            return names
        for i, layout in enumerate(probabilities["layout"].argmax(1).tolist()):
            if layout in (1, 2):
                ends = ("left", "right") if layout == 1 else ("top", "bottom")
                rows = [int(probabilities[end][i].argmax()) for end in ends]
                texts = [self.bank[end][j] for end, j in zip(ends, rows)]
                names[i] = [t.removesuffix(f" {PLACES[e]}") for t, e in zip(texts, ends)]
        return names


class Matching:
    """What sprite matching reads in images: the best sprite says everything at once."""

    name = SpriteMatcher.name

    def __init__(self, world: World, image_size: int) -> None:
        # The same work at every size: templates are matched at 32 pixels per side.
        self.world, self.matcher = world, SpriteMatcher(world, image_size, image_size // 32)
        self.detector: SpriteDetector | None = None
        self.people = [thing for thing in world.things() if thing.kind == "person"]
        self.objects = [thing for thing in world.things() if thing.kind == "object"]

    def read(self, images: torch.Tensor, kind: str) -> list[Record]:
        """Return per image the same reading as `Clip.read`; `kind` says what to look for."""
        if kind == "count":
            return [{"number": number} for number in self._numbers(images)]
        things, sizes, count = {
            "object": (self.objects, ("large", "medium", "small"), 1),
            "person": (self.people, ("large", "medium"), 1),
            "pair": (self.objects, ("small",), 2),
        }[kind]
        best = self.matcher.match(images, things, sizes, count)
        backgrounds = self.matcher.background(images)
        return [
            {
                "things": [thing_text(match.thing) for match in matches],
                "background": background,
                "style": matches[0].style,
                "presentation": matches[0].thing.presentation,
                "tone": self.world.tones.index(matches[0].thing.tone or "light"),
                **(_places(matches) if kind == "pair" else {}),
            }
            for matches, background in zip(best, backgrounds, strict=True)
        ]

    def _numbers(self, images: torch.Tensor) -> list[int]:
        """Return how many of the best explained thing the detector finds."""
        if self.detector is None:
            self.detector = SpriteDetector(len(self.world.objects), images.shape[-1])
        numbers = []
        for detections in self.detector.find(images):
            labels = [detection.label for detection in detections]
            numbers.append(labels.count(labels[0]) if labels else 0)
        return numbers


def _places(matches: list[Match]) -> Record:
    """Return which of two matches is on the left or at the top, and the axis between them."""
    one, other = matches
    across = abs(one.x - other.x) > abs(one.y - other.y)
    ordered = sorted(matches, key=lambda match: match.x if across else match.y)
    return {
        "order": [thing_text(match.thing) for match in ordered],
        "axis": "horizontal" if across else "vertical",
    }


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
