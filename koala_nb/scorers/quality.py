"""How well an image fits its prompt as a whole: one interface, four scorers.

CLIPScore stands on transformers; VQAScore, PickScore and HPSv2 only where they are installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from koala_nb.scorers.detectors import CLIP, pretrained

if TYPE_CHECKING:
    from PIL import Image

CLIPSCORE = 2.5  # the factor of CLIPScore (arXiv 2104.08718, equation 1)
PICK_MODEL = "yuvalkirstain/PickScore_v1"
PICK_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PACKAGES = {"vqascore": "t2v_metrics", "hpsv2": "hpsv2"}
NAMES = ("clipscore", "pickscore", *PACKAGES)


class Quality(Protocol):
    """Gives an image one number for its prompt, higher is better."""

    name: str
    version: str

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[float]:
        """Return one number an image; `prompts` holds rows of the prompt set."""


class CLIPScore:
    """2.5 max(cos, 0) of image and prompt by a CLIP model of transformers; hub id or folder."""

    factor, name = CLIPSCORE, "CLIPScore"

    def __init__(self, model: str = CLIP, processor: str = "") -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model = pretrained(CLIPModel, model, "scorer")
        self.processor = pretrained(AutoProcessor, processor or model, "scorer")
        self.version = model.rstrip("/").rsplit("/", 1)[-1]

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[float]:
        """Return the score of each image with its prompt."""
        import torch

        values = []
        for image, prompt in zip(images, prompts):
            inputs = self.processor(
                text=[prompt["prompt"]], images=image.convert("RGB"), return_tensors="pt",
                padding=True, truncation=True,
            )  # fmt: skip
            with torch.no_grad():
                out = self.model(**inputs)
            cosine = float((out.image_embeds * out.text_embeds).sum())
            values.append(self.factor * max(cosine, 0.0))
        return values


class PickScore(CLIPScore):
    """PickScore (arXiv 2305.01569): a CLIP model trained on choices of people; 100 cos."""

    factor, name = 100.0, "PickScore"

    def __init__(self, model: str = PICK_MODEL, processor: str = PICK_PROCESSOR) -> None:
        super().__init__(model, processor)


class Packaged:
    """VQAScore (arXiv 2404.01291) or HPSv2 (arXiv 2306.09341) by their authors' packages."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ModuleNotFoundError(
                f"{name} needs the package {PACKAGES[name]}, which is not installed: "
                f"`pip install {PACKAGES[name]}`, or choose clipscore."
            )
        module = importlib.import_module(PACKAGES[name])
        self.name, self.version = name, getattr(module, "__version__", "unknown")
        self.module = module

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[float]:
        """Return the package's score of each image with its prompt."""
        if self.name == "hpsv2":
            return [float(self.module.score(i, p["prompt"])[0]) for i, p in zip(images, prompts)]
        import tempfile
        from pathlib import Path

        model = self.module.VQAScore(model="clip-flant5-xxl")
        values = []
        with tempfile.TemporaryDirectory() as folder:
            for image, prompt in zip(images, prompts):
                image.save(path := Path(folder) / "image.png")
                values.append(float(model(images=[str(path)], texts=[prompt["prompt"]])[0][0]))
        return values


def quality(name: str) -> Quality:
    """Return a scorer by name: clipscore, pickscore, vqascore or hpsv2.

    ValueError for another name, ModuleNotFoundError or FileNotFoundError where it is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown quality scorer {name!r}: choose one of {', '.join(NAMES)}.")
    if name in PACKAGES:
        return Packaged(name)
    return PickScore() if name == "pickscore" else CLIPScore()
