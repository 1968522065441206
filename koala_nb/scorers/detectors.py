"""Detectors: what is where in an image, behind one interface; here those of real models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from koala_nb.models import weights
from koala_nb.scorers.detection import Box, Detection, area, non_maximum

if TYPE_CHECKING:
    from PIL import Image

OWLV2 = "google/owlv2-base-patch16-ensemble"
CLIP = "openai/clip-vit-large-patch14"
COLORS = "red orange yellow green blue purple pink brown black white gray".split()


class Detector(Protocol):
    """Finds objects; `name` and `version` tell one detector's readings from another's."""

    name: str
    version: str

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return what is in each image; `queries` holds the labels to look for, a list an image."""

    def background(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return each image's background colour; None where the detector does not read it."""


class Unread:
    """Stands where no detector is installed: it finds nothing, so its table is no result."""

    name, version = "no detector", "0"

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return nothing for each image."""
        return [[] for _ in images]

    def background(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return None for each image."""
        return [None] * len(images)


def pretrained(kind: Any, name: str, what: str) -> Any:
    """Return `kind.from_pretrained(name)`, whole; FileNotFoundError in a sentence where it is not.

    Only safetensors are loaded, and no remote code runs.
    """
    try:
        if "Processor" in kind.__name__:
            return kind.from_pretrained(name)
        return weights.whole(kind, name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The {what} {name} cannot be loaded: download it with `hf download {name}`, or name "
            f"the folder of another one ({str(error).splitlines()[0]})"
        ) from None


class OpenVocabulary:
    """A detector of transformers that looks for any words: OWLv2, Grounding DINO and their kin.

    `name`: hub id or folder, by default OWLv2's; `threshold`: least score, GenEval's 0.3 (it
    counts at 0.9, on another detector's scale). Colours are read by CLIP on each box, as GenEval
    does, unless `colors` is "". FileNotFoundError where weights are missing.
    """

    def __init__(self, name: str = "", threshold: float = 0.3, colors: str = CLIP) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.name = name or OWLV2
        self.model = pretrained(AutoModelForZeroShotObjectDetection, self.name, "detector")
        self.processor = pretrained(AutoProcessor, self.name, "detector")
        self.threshold = threshold
        self.clip = CropColors(colors) if colors else None
        commit = getattr(self.model.config, "_commit_hash", None) or "local"
        self.version = f"{commit[:7]}, threshold {threshold:g}, colours by {colors or 'nothing'}"

    def background(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return None for each image: a photograph's background is not one colour."""
        return [None] * len(images)

    def detect(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Return what of the queries is in each image, best first, once a place."""
        return [
            self._one(image.convert("RGB"), list(asked)) for image, asked in zip(images, queries)
        ]

    def _one(self, image: Image.Image, asked: list[str]) -> list[Detection]:
        import torch

        texts = [[f"a {label}" for label in asked]]
        inputs = self.processor(images=image, text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            outputs = self.model(**inputs)
        sides = [image.size[::-1]]
        (read,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=sides, text_labels=texts
        )
        found = []
        labels = read["text_labels"] or []
        for score, box, text in zip(read["scores"].tolist(), read["boxes"].tolist(), labels):
            label = _nearest(text, asked)
            place = _clip_box(box, image.size)
            if label and area(place) > 1e-6:
                found.append(Detection(label, round(score, 6), place))
        kept = non_maximum(found)
        return self.clip.colored(image, kept) if self.clip else kept


def _nearest(text: str, asked: Sequence[str]) -> str | None:
    """Return the query that a phrase stands for; Grounding DINO returns parts of the text."""
    from rapidfuzz import fuzz, process

    hit = process.extractOne(text.removeprefix("a "), asked, scorer=fuzz.ratio, score_cutoff=60)
    return hit[0] if hit else None


def _clip_box(box: Sequence[float], size: tuple[int, int]) -> Box:
    x = [min(max(v / size[0], 0.0), 1.0) for v in (box[0], box[2])]
    y = [min(max(v / size[1], 0.0), 1.0) for v in (box[1], box[3])]
    return x[0], y[0], x[1], y[1]


class CropColors:
    """The colour of what a box holds, by CLIP: the likeliest of "a photo of a <colour> <label>"."""

    def __init__(self, name: str = CLIP) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model = pretrained(CLIPModel, name, "colour reader")
        self.processor = pretrained(AutoProcessor, name, "colour reader")

    def colored(self, image: Image.Image, found: Sequence[Detection]) -> list[Detection]:
        """Return the detections with their colours."""
        import torch

        done = []
        for d in found:
            w, h = image.size
            # At least a pixel, whatever a box rounds to.
            left, top = min(int(d.box[0] * w), w - 1), min(int(d.box[1] * h), h - 1)
            right, bottom = max(round(d.box[2] * w), left + 1), max(round(d.box[3] * h), top + 1)
            texts = [f"a photo of a {color} {d.label}" for color in COLORS]
            crop = image.crop((left, top, right, bottom))
            inputs = self.processor(text=texts, images=crop, return_tensors="pt", padding=True)
            with torch.no_grad():
                best = int(self.model(**inputs).logits_per_image.argmax())
            done.append(replace(d, color=COLORS[best]))
        return done
