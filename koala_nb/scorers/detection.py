"""What is where in an image: detections and their boxes, and detectors of transformers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image

from koala_nb.core.files import Record
from koala_nb.scorers.clip import DEFAULT as CLIP
from koala_nb.scorers.clip import Clip, commit, load_pretrained

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the image's sides
SAME_PLACE = 0.5  # boxes of one label that overlap more are one object
MOST_ITEMS = 4
ITEM = re.compile(r"(\d+) ([^\[\]]+?)(?: \[(\w+)\])?")
OWLV2 = "google/owlv2-base-patch16-ensemble"
COLORS = "red orange yellow green blue purple pink brown black white gray".split()


class Item(NamedTuple):
    """One entry of a prompt's `asks`: how many, of what, in which colour."""

    number: int
    label: str
    color: str | None = None


def items_of(asks: str) -> list[Item]:
    """Return the 1 to 4 entries of "1 circle [red]; 2 koala"; ValueError for another form."""
    matches = [ITEM.fullmatch(part.strip()) for part in asks.split(";")]
    if not all(matches) or len(matches) > MOST_ITEMS:
        raise ValueError(f"asks is {asks!r}: give 1 to 4 entries like '2 koala; 1 circle [red]'.")
    return [Item(int(m[1]), m[2], m[3]) for m in matches if m]


@dataclass(frozen=True)
class Detection:
    """One detected object: what, its score (0 to 1), where, its colour and style if read."""

    label: str
    score: float
    box: Box
    color: str | None = None
    style: str | None = None


def area(box: Box) -> float:
    """Return a box's share of the image."""
    return max(box[2] - box[0], 1e-9) * max(box[3] - box[1], 1e-9)


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over the smaller one's area, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(area(one), area(other))


def intersection_over_union(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union, 0 to 1."""
    shared = overlap(one, other) * min(area(one), area(other))
    return shared / (area(one) + area(other) - shared)


def non_maximum(detections: Sequence[Detection], limit: float = SAME_PLACE) -> list[Detection]:
    """Return the detections, best first, without those of the same label at the same place."""
    kept: list[Detection] = []
    for new in sorted(detections, key=lambda d: -d.score):
        same = [d for d in kept if d.label == new.label]
        if all(intersection_over_union(new.box, d.box) < limit for d in same):
            kept.append(new)
    return kept


class Detector:
    """Detects objects; `name` and `version` tell one detector's readings from another's.

    This one stands where none is installed: it detects nothing, so its table is no result.
    """

    name, version = "no detector", "0"

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return what is in each image; `queries` holds the labels to look for, by image."""
        return [[] for _ in images]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return for each image the likeliest object of its prompt's `things`, or None."""
        best = self.detect(images, [prompt["things"] for prompt in prompts])
        return [{"object": objects[0].label if objects else None} for objects in best]

    def background(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return each image's background colour; None where the detector does not read it."""
        return [None] * len(images)


class OpenVocabulary(Detector):
    """A detector of transformers that looks for any words: OWLv2, Grounding DINO and their kin.

    `name`: hub id or folder; `threshold`: least score, GenEval's 0.3 (it counts at 0.9, on another
    scale). CLIP reads colours on each box, unless `colors` is "". ValueError: weights are missing.
    """

    def __init__(self, name: str = "", threshold: float = 0.3, colors: str = CLIP) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.name = name or OWLV2
        self.model = load_pretrained(AutoModelForZeroShotObjectDetection, self.name, "detector")
        self.processor = load_pretrained(AutoProcessor, self.name, "detector")
        self.threshold = threshold
        self.clip = Clip(colors, "colour reader") if colors else None
        at = commit(self.name) or "local"
        self.version = f"{at}, threshold {threshold:g}, colours by {colors or 'nothing'}"

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return what of the queries is in each image, best first, once a place."""
        return [self._detect(i.convert("RGB"), list(labels)) for i, labels in zip(images, queries)]

    def _detect(self, image: Image.Image, queries: list[str]) -> list[Detection]:
        texts = [[f"a {label}" for label in queries]]
        inputs = self.processor(images=image, text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            outputs = self.model(**inputs)
        sides = [image.size[::-1]]
        (read,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=sides, text_labels=texts
        )
        detections = []
        labels = read["text_labels"] or []
        for score, box, text in zip(read["scores"].tolist(), read["boxes"].tolist(), labels):
            label = _nearest(text, queries)
            place = _clip_box(box, image.size)
            if label and area(place) > 1e-6:
                detections.append(Detection(label, round(score, 6), place))
        return [self._with_color(image, d) for d in non_maximum(detections)]

    def _with_color(self, image: Image.Image, d: Detection) -> Detection:
        """Return a detection with the likeliest of "a photo of a <colour> <label>" on its box."""
        if self.clip is None:
            return d
        w, h = image.size
        # At least a pixel, whatever a box rounds to.
        left, top = min(int(d.box[0] * w), w - 1), min(int(d.box[1] * h), h - 1)
        right, bottom = max(round(d.box[2] * w), left + 1), max(round(d.box[3] * h), top + 1)
        texts = self.clip.encode_texts([f"a photo of a {color} {d.label}" for color in COLORS])
        crop = self.clip.encode_images([image.crop((left, top, right, bottom))])
        return replace(d, color=COLORS[int((crop @ texts.T).argmax())])


def _nearest(text: str, queries: Sequence[str]) -> str | None:
    """Return the query that a phrase stands for; Grounding DINO returns parts of the text."""
    from rapidfuzz import fuzz, process

    hit = process.extractOne(text.removeprefix("a "), queries, scorer=fuzz.ratio, score_cutoff=60)
    return hit[0] if hit else None


def _clip_box(box: Sequence[float], size: tuple[int, int]) -> Box:
    x = [min(max(v / size[0], 0.0), 1.0) for v in (box[0], box[2])]
    y = [min(max(v / size[1], 0.0), 1.0) for v in (box[1], box[3])]
    return x[0], y[0], x[1], y[1]
