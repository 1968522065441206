"""Readers of text in images (OCR) behind one interface; both work without a network."""

import csv
import io
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from koala_nb.core.errors import require
from koala_nb.core.files import Record

# Short side in pixels up to which an image is enlarged before it is read. On signs of 64 pixels the
# detector takes the board's edges for brackets ("[river]") at native size, and no longer at 128
# and above; larger sizes only cost time.
LEAST_SIDE = 256
# Short side to which a larger image is reduced. Of 200 right texts on boards of 12 to 100 % of 1024
# pixels 82 % are read exactly at native size, 95 % at 768: the recogniser knows no huge letters.
MOST_SIDE = 768
# Least confidence of a line in an image that needs no enlarging. In KOALA's own pictures without
# text marks are read at up to .60; of the right readings of those boards none is below .78.
FLOOR = 0.7


class Reading(NamedTuple):
    """What text an image holds ("" for none), its boxes and a confidence.

    Boxes: (left, top, right, bottom) in pixels, one a line; confidence: their mean, 0 to 1.
    """

    text: str
    boxes: tuple[tuple[float, float, float, float], ...]
    confidence: float


class Reader:
    """Reads text; `name` and `version` are those of package and models."""

    name: str
    version: str

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """Return one reading for each image; an image without text has the text ""."""
        return [self._read(image) for image in images]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record] = ()) -> list[Record]:
        """Return the text of each image, as scorers do."""
        return [{"text": reading.text} for reading in self.read(images)]

    def _read(self, image: Image.Image) -> Reading:
        raise NotImplementedError


def fitted(image: Image.Image) -> tuple[Image.Image, float]:
    """Return an image whose short side has LEAST_SIDE to MOST_SIDE pixels, and the factor."""
    side = min(image.size)
    factor = max(1, -(-LEAST_SIDE // side)) if side < MOST_SIDE else MOST_SIDE / side
    if factor == 1:
        return image.convert("RGB"), 1
    size = (round(image.width * factor), round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), factor


class RapidReader(Reader):
    """PP-OCRv6 by rapidocr on onnxruntime; its weights come inside the package.

    The lines of a reading stand from top to bottom, joined by spaces; left out are those of less
    than .5 confidence (rapidocr's own threshold), and in an image that is not enlarged those below
    FLOOR or without a letter or digit. It corrects no spelling: the recogniser knows no dictionary.
    ValueError where it is not installed.
    """

    name = "rapidocr"

    def __init__(self) -> None:
        package = require("rapidocr", "audit")
        self.version = f"{version('rapidocr')} PP-OCRv6 small, enlarged to {LEAST_SIDE}"
        threads = "EngineConfig.onnxruntime.intra_op_num_threads"
        self._engine = package.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,  # no upside-down text is asked for
                "Det.limit_side_len": LEAST_SIDE,
                threads: 1,  # the order of sums, and so the last digits, depend on it
            }
        )

    def _read(self, image: Image.Image) -> Reading:
        pixels, factor = fitted(image)
        bgr = np.ascontiguousarray(np.asarray(pixels)[:, :, ::-1])  # as rapidocr reads
        result: Any = self._engine(bgr, use_cls=False)
        lines = list(zip(result.txts, result.scores, result.boxes)) if result.txts else []
        if factor <= 1:
            lines = [line for line in lines if line[1] >= FLOOR and any(map(str.isalnum, line[0]))]
        if not lines:
            return Reading("", (), 0.0)
        texts, scores, corners = zip(*lines)
        boxes = [np.asarray(box, dtype=float) / factor for box in corners]
        return Reading(
            " ".join(" ".join(texts).split()),
            tuple((*box.min(0).tolist(), *box.max(0).tolist()) for box in boxes),
            float(np.mean(scores)),
        )


class TesseractReader(Reader):
    """Tesseract (English), a second, independent reader; ValueError where it is not installed."""

    name = "tesseract"

    def __init__(self, program: str = "tesseract") -> None:
        path = shutil.which(program)
        if path is None:
            raise ValueError(
                "The reader tesseract is not installed: install the program `tesseract` with its "
                "English data, or use the reader rapidocr."
            )
        self._program = path
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        self.version = f"{(shown.stdout or shown.stderr).split()[1]} eng, enlarged to {LEAST_SIDE}"

    def _read(self, image: Image.Image) -> Reading:
        pixels, factor = fitted(image)
        pixels.save(png := io.BytesIO(), "PNG")
        command = [self._program, "stdin", "stdout", "-l", "eng", "--psm", "11", "tsv"]
        done = subprocess.run(command, input=png.getvalue(), capture_output=True, check=False)
        if done.returncode:
            raise ValueError(f"tesseract failed: {done.stderr.decode(errors='replace').strip()}")
        return from_tsv(done.stdout.decode("utf-8"), factor)


def from_tsv(text: str, factor: float = 1) -> Reading:
    """Return the reading in tesseract's TSV of an image that was enlarged `factor` times."""
    table = pd.read_csv(
        io.StringIO(text), sep="\t", quoting=csv.QUOTE_NONE, dtype={"text": str}, na_filter=False
    )
    words = table[table.text.str.strip() != ""]
    if words.empty:
        return Reading("", (), 0.0)
    corners = words[["left", "top"]].assign(
        right=words.left + words.width, bottom=words.top + words.height
    )
    boxes = tuple(map(tuple, (corners / factor).to_numpy().tolist()))
    confidence = words.conf.astype(float).clip(lower=0).mean() / 100
    return Reading(" ".join(words.text.str.strip()), boxes, float(confidence))


READERS: dict[str, type[Reader]] = {"rapidocr": RapidReader, "tesseract": TesseractReader}


def reader(name: str = "rapidocr") -> Reader:
    """Return a reader by name; ValueError for an unknown name or one that is not installed."""
    if name not in READERS:
        raise ValueError(f"There is no reader {name!r}: choose one of {', '.join(READERS)}.")
    return READERS[name]()


def installed_reader() -> Reader | None:
    """Return the default reader, or None where it is not installed."""
    try:
        return reader()
    except (ImportError, ValueError):
        return None
