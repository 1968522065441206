"""CLIP models of transformers as scorers: a forced choice among words, and CLIPScore."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from koala_nb.core.errors import first_line
from koala_nb.core.files import Record, read_reference
from koala_nb.models import hub
from koala_nb.scorers import ocr, pixels
from koala_nb.stats.misclassification import UNSURE

DEFAULT = "openai/clip-vit-large-patch14"  # MIT; 1.7 GB
MEDIA = ("photograph", "painting", "drawing", "3d render", "cartoon", "sculpture")
BATCH = 16
# Commits that are loaded of the models that the instruments' cards name.
REVISIONS = {c["model"]: c["revision"] for c in read_reference("instruments.yaml").values()}
SURE = 0.5  # probability of an axis's sentence, below which it is not read
CLIPSCORE = 2.5  # the factor of CLIPScore (arXiv 2104.08718, equation 1)


def load_pretrained(kind: type, source: str, role: str) -> Any:
    """Return `kind.from_pretrained(source)`, whole, safetensors only; ValueError of its `role`."""
    pin = {"revision": REVISIONS[source]} if source in REVISIONS else {}
    try:
        if "Processor" in kind.__name__:
            return kind.from_pretrained(source, **pin)  # type: ignore[attr-defined]
        return hub.load_whole(kind, source, **pin)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        command = " --revision ".join([source, *pin.values()])
        raise ValueError(
            f"The {role} {source} cannot be loaded: download it with `hf download {command}`, or "
            f"name another one or its folder ({first_line(error)})"
        ) from None


def commit(source: str) -> str:
    """Return the first seven digits of a loaded hub id's commit, "" for a folder."""
    if Path(source).is_dir():
        return ""
    file = try_to_load_from_cache(source, "config.json", revision=REVISIONS.get(source))
    return Path(file).parent.name[:7] if isinstance(file, str) else ""


class Clip:
    """A CLIP of a folder or hub id: features of unit length; ValueError where it is none."""

    def __init__(self, source: str = "", role: str = "scorer") -> None:
        from transformers import AutoProcessor, CLIPModel

        self.source = source or DEFAULT
        self.name = self.source.rstrip("/").split("/")[-1]
        model = load_pretrained(CLIPModel, self.source, role)
        if at := commit(self.source):
            self.name += f" {at}"
        self.processor = load_pretrained(AutoProcessor, self.source, role)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features of texts, (n, dimensions)."""
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = self.processor(text=list(texts), **options)
        return self._unit(self.model.get_text_features, inputs)

    def encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the features of images, (n, dimensions)."""
        rgb = [image.convert("RGB") for image in images]
        parts = [rgb[start : start + BATCH] for start in range(0, len(rgb), BATCH)]
        inputs = (self.processor(images=part, return_tensors="pt") for part in parts)
        return torch.cat([self._unit(self.model.get_image_features, part) for part in inputs])

    def probabilities(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the softmax over texts for each image, (images, texts), of their features."""
        return (self.model.logit_scale.exp() * images @ texts.T).softmax(1).detach()

    def _unit(self, encode: Any, inputs: Any) -> torch.Tensor:
        with torch.no_grad():
            output = encode(**inputs.to(self.model.device))
        # transformers 5 returns an output object, 4 the tensor itself.
        features = getattr(output, "pooler_output", output)
        return features / features.norm(dim=-1, keepdim=True)


class UnpromptedAttributes:
    """What needs no weights: the background's colour, bars and, with an OCR reader, text."""

    def __init__(self, read_text: bool = True) -> None:
        self.ocr = ocr.installed_reader() if read_text else None
        self.name = "pixels"
        self.version = f"1, {self.ocr.name} {self.ocr.version}" if self.ocr else "1"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image its background, bars and characters of text; `hit` stays None."""
        texts = [r.text for r in self.ocr.read(images)] if self.ocr else [None] * len(images)
        return [
            {
                "hit": None,
                "painted": pixels.background_color(image),
                "bars": pixels.has_bars(image),
                "characters": None if text is None else len("".join(text.split())),
            }
            for image, text in zip(images, texts, strict=True)
        ]


class ZeroShotReader:
    """Zero-shot reading: the best of the concepts, each in the sentence "a picture of a ...".

    `source`: a CLIP's folder or hub id, else ValueError; `read_text`: text is read as well.
    """

    def __init__(self, concepts: Sequence[str], source: str = "", read_text: bool = True) -> None:
        self.concepts = list(dict.fromkeys(concepts))
        self.clip = Clip(source)
        self.concept_texts = self.clip.encode_texts([f"a picture of a {c}" for c in self.concepts])
        self.medium_texts = self.clip.encode_texts([f"a {m}" for m in MEDIA])
        self.unprompted = UnpromptedAttributes(read_text)
        self.name = f"zero-shot {self.clip.name}"
        self.version = self.unprompted.version

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return for each image `read`, `confidence`, `style_read`, `hit` and the unprompted."""
        rows = self.unprompted.score(images, prompts)
        if not rows:
            return rows
        features = self.clip.encode_images(images)
        concepts = self.clip.probabilities(features, self.concept_texts).max(1)
        media = self.clip.probabilities(features, self.medium_texts).argmax(1).tolist()
        choices = zip(concepts.indices.tolist(), concepts.values.tolist(), media)
        for row, prompt, (best, confidence, medium) in zip(rows, prompts, choices, strict=True):
            read = self.concepts[best]
            row |= {"read": read, "confidence": confidence, "style_read": MEDIA[medium]}
            row["hit"] = read == prompt["concept"]
        return rows


@cache
def axes() -> dict[str, Record]:
    """Return the axes for photographs by name: their kinds of subject, values and sentences."""
    return read_reference("open_axes.yaml")


def proposed(prompt: Record) -> list[str]:
    """Return the axes that are open in a prompt: of its kind, and of which it holds no word."""
    words = set(re.findall(r"[a-z]+", prompt["prompt"].lower()))
    return [
        name
        for name, axis in axes().items()
        if prompt["kind"] in axis["kinds"] and not words & set(axis["words"])
    ]


class AxesReader:
    """Reads the axes that are open in a prompt by CLIP, a choice among an axis's sentences."""

    def __init__(self, source: str = "") -> None:
        self.clip = Clip(source)
        self.name, self.version = f"zero-shot {self.clip.name}", f"1, sure {SURE:g}"
        self.texts = {
            name: self.clip.encode_texts(list(axis["values"].values()))
            for name, axis in axes().items()
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return a value, "unsure" or None (not open) per axis and image."""
        features = self.clip.encode_images(images)
        rows: list[Record] = [{} for _ in images]
        left_open = [proposed(prompt) for prompt in prompts]
        for name, axis in axes().items():
            best = self.clip.probabilities(features, self.texts[name]).max(1)
            values = list(axis["values"])
            for row, names, k, p in zip(rows, left_open, best.indices, best.values, strict=True):
                value = values[int(k)] if p >= SURE else UNSURE
                row[f"axis_{name}"] = value if name in names else None
        return rows


class CLIPScore:
    """2.5 max(cos, 0) of image and prompt (arXiv 2104.08718); `source`: CLIP's folder or hub id."""

    name = "CLIPScore"

    def __init__(self, source: str = "") -> None:
        self.clip = Clip(source)
        self.version = self.clip.name

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[float]:
        """Return the score of each image with its prompt."""
        if not images:
            return []
        texts = self.clip.encode_texts([prompt["prompt"] for prompt in prompts])
        cosines = (self.clip.encode_images(images) * texts).sum(1)
        return (CLIPSCORE * cosines.clamp(min=0)).tolist()
