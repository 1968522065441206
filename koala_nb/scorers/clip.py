"""Which of a list of concepts an image shows, by any CLIP of transformers, and what it was unasked.

For images of real systems: a forced choice among the probe's own concepts, the medium, the ground's
colour, bars, and text that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from koala_nb.models import weights
from koala_nb.probes import defaults

if TYPE_CHECKING:
    from PIL import Image

DEFAULT = "openai/clip-vit-large-patch14"  # MIT; 1.7 GB
BATCH = 16


class Unasked:
    """What needs no weights: the ground's colour, bars and, if a reader is installed, text."""

    def __init__(self, ocr: bool = True) -> None:
        self.ocr = _text_reader() if ocr else None
        self.name = "pixels"
        self.version = f"1, {self.ocr.name} {self.ocr.version}" if self.ocr else "1"

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return per image its ground, bars and characters of text; what it shows stays None."""
        texts = [r.text for r in self.ocr.read(images)] if self.ocr else [None] * len(images)
        return [
            {
                "hit": None,
                "painted": defaults.ground(image),
                "bars": defaults.has_bars(image),
                "characters": None if text is None else len("".join(text.split())),
            }
            for image, text in zip(images, texts, strict=True)
        ]


class Reader:
    """Zero-shot reading: the best of the concepts, each in the sentence "a picture of a ...".

    `folder` is a folder or a hub name; ValueError in one sentence where its weights are missing or
    it is no CLIP. What `Unasked` reads is read as well, text only with `ocr`.
    """

    def __init__(self, concepts: Sequence[str], folder: str = "", ocr: bool = True) -> None:
        self.concepts = list(dict.fromkeys(concepts))
        self.source = folder or DEFAULT
        self.name = f"zero-shot {self.source.rstrip('/').split('/')[-1]}"
        self.model, self.processor = _load(self.source)
        self.banks = {
            "read": self._texts([f"a picture of {c}" for c in self.concepts]),
            "style_read": self._texts([f"a {m}" for m in defaults.MEDIA]),
        }
        self.unasked = Unasked(ocr)
        self.version = self.unasked.version

    def _texts(self, texts: list[str]) -> Any:
        import torch

        tokens = self.processor(text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = self.model.get_text_features(**tokens.to(self.model.device))
        return _unit(found)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return per image the concept and medium read, and what `Unasked` reads."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH):
            some = [image.convert("RGB") for image in images[start : start + BATCH]]
            own = list(prompts[start : start + BATCH])
            plain = self.unasked.score(some, own)
            for known, seen, prompt in zip(plain, self._read(some), own, strict=True):
                rows.append(known | seen | {"hit": seen["read"] == prompt["concept"]})
        return rows

    def _read(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        import torch

        pixels = self.processor(images=images, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            seen = _unit(self.model.get_image_features(**pixels))
        scale = self.model.logit_scale.exp().item()
        names = {"read": self.concepts, "style_read": list(defaults.MEDIA)}
        rows: list[dict[str, Any]] = [{} for _ in images]
        for key, bank in self.banks.items():
            best = (scale * seen @ bank.T).softmax(1).max(1)
            for row, value, index in zip(rows, best.values.tolist(), best.indices.tolist()):
                row[key] = names[key][index]
                if key == "read":
                    row["confidence"] = value
        return rows


def _load(source: str) -> tuple[Any, Any]:
    from transformers import AutoProcessor, CLIPModel

    try:
        model = weights.whole(CLIPModel, source)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"The scorer {source} cannot be loaded: it must be a CLIP of transformers, downloaded "
            f"or downloadable ({reason})"
        ) from None
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _unit(features: Any) -> Any:
    # transformers 5 returns an output object, 4 the tensor itself.
    found = getattr(features, "pooler_output", features)
    return found / found.norm(dim=-1, keepdim=True)


def _text_reader() -> Any:
    """Return the default reader of text, or None where it is not installed."""
    from koala_nb.scorers import ocr

    try:
        return ocr.reader()
    except (ImportError, ValueError):
        return None
