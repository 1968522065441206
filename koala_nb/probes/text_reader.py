"""The instrument card of a text reader: what it reads where the truth is known.

Boards are drawn by a font at the model's own resolution, right (the ceiling), through the model's
VAE, and broken in three ways (the floor).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.probes import base, text_scores
from koala_nb.scorers.ocr import Reader
from koala_nb.stats import estimates, misclassification

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

Draw = Callable[[Sequence[str], int], list["Image.Image"]]
FONT, VAE = "font", "font, then the VAE"
BROKEN = ("one letter wrong", "shuffled letters", "blank board")
# Lengths in characters that are reported together.
CLASSES = ((1, 2), (3, 4), (5, 6), (7, 9), (10, 15), (16, 25), (26, 40))


def length_class(length: int) -> str:
    """Return the name of the class that a number of characters falls in, such as "3-4"."""
    for low, high in CLASSES:
        if low <= length <= high:
            return f"{low}-{high}"
    return f"over {CLASSES[-1][1]}"


def board(text: str, size: int) -> Image.Image:
    """Return a plain board with a text in DejaVu Sans Bold, black on white, in up to four lines.

    The letters are as large as the board allows; size in pixels a side.
    """
    import matplotlib
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    image = pillow.new("RGB", (size, size), "#6f9bc4")
    draw = ImageDraw.Draw(image)
    draw.rectangle((size * 0.06, size * 0.2, size * 0.94, size * 0.8), "white")
    lines = _lines(text)
    points = size * 0.4 / len(lines)
    while True:
        font = ImageFont.truetype(font_file, points)
        if max(font.getlength(line) for line in lines) <= size * 0.78:
            break
        points *= 0.95
    middle = (size / 2, size / 2)
    draw.text(middle, "\n".join(lines), "black", font, anchor="mm", align="center")
    return image


def _lines(text: str) -> list[str]:
    import textwrap

    wanted = 1 if len(text) <= 10 else 2 if len(text) <= 20 else 3
    return textwrap.wrap(text, max(8, -(-len(text) // wanted) + 3)) or [""]


def boards(texts: Sequence[str], size: int) -> list[Image.Image]:
    """Return `board` of each text."""
    return [board(text, size) for text in texts]


def drawer(domain: str) -> Draw:
    """Return what draws right texts for a domain: the emoji world's own signs, or plain boards."""
    if domain == "emoji-world":
        from koala_nb.nano.signs import signs

        return signs
    return boards


def through_vae(pipe: Pipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images after the model's VAE has encoded and decoded them, in float32.

    No image of the model can be sharper than its VAE allows.
    """
    import torch

    found: list[Any] = []
    own: Any = pipe
    vae, before, device = own.vae, own.vae.dtype, own._execution_device
    try:
        vae.to(torch.float32)
        for image in images:
            pixels = own.image_processor.preprocess([image]).to(device, torch.float32)
            with torch.no_grad():
                decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            found += own.image_processor.postprocess(decoded.float(), output_type="pil")
    finally:
        vae.to(before)
    return found


def one_wrong(text: str, rng: np.random.Generator) -> str:
    """Return a text with one letter or digit replaced by another of its kind."""
    places = [i for i, c in enumerate(text) if c.isascii() and c.isalnum()]
    at = int(rng.choice(places))
    pool = "0123456789" if text[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    other = str(rng.choice([c for c in pool if c != text[at].lower()]))
    return text[:at] + (other.upper() if text[at].isupper() else other) + text[at + 1 :]


def shuffled(text: str, rng: np.random.Generator) -> str | None:
    """Return a text with its characters in another order; None where every order is the same."""
    joined = text.casefold()
    if len(set(joined)) < 2:
        return None
    while True:
        other = "".join(text[i] for i in rng.permutation(len(text)))
        if text_scores.plain(other).casefold() != text_scores.plain(joined):
            return other


def read_boards(
    reader: Reader,
    texts: Sequence[str],
    size: int,
    draw: Draw,
    pipe: Pipeline | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Draw every text right and broken, read it, and score it against the right text.

    One row a board: id and text asked, length, kind (FONT, VAE where a pipeline is given, BROKEN),
    drawn, read, and the scores of `text_scores.scores`.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[str | None]] = {
        FONT: list(texts),
        "one letter wrong": [one_wrong(text, rng) for text in texts],
        "shuffled letters": [shuffled(text, rng) for text in texts],
        "blank board": [" " for _ in texts],
    }
    rows: list[dict[str, Any]] = []
    for kind, wanted in drawn.items():
        here = [i for i, text in enumerate(wanted) if text is not None]
        images = draw([str(wanted[i]) for i in here], size)
        rows += _rows(reader, kind, texts, wanted, here, images)
        if kind == FONT and pipe is not None:
            rows += _rows(reader, VAE, texts, wanted, here, through_vae(pipe, images))
    return pd.DataFrame(rows).round(base.ROUND)


def _rows(
    reader: Reader, kind: str, texts: Sequence[str], wanted: Sequence[str | None],
    here: Sequence[int], images: Sequence[Image.Image],
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {"id": f"b{i}", "text": texts[i], "length": len(texts[i]), "kind": kind}
        | {"drawn": wanted[i], "read": found.text}
        | text_scores.scores(texts[i], found.text)
        for i, found in zip(here, reader.read(images))
    ]


def card(read: pd.DataFrame, by: Sequence[str] = ("kind",)) -> pd.DataFrame:
    """Return the instrument card: the share of boards read as the asked text, ignoring case.

    Of FONT boards it is the sensitivity (ceiling), of BROKEN ones the false alarms (floor).
    """
    return base.shares(read, "exact_folded", list(by))


def error_counts(read: pd.DataFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (right, of) on FONT boards and (rejected, of) on BROKEN ones, for `corrected_share`.

    Blank boards are left out: they are easier to reject than what a model draws.
    """
    good = read[read.kind == FONT].exact_folded
    bad = read[read.kind.isin(BROKEN[:2])].exact_folded
    return (int(good.sum()), len(good)), (int((~bad.astype(bool)).sum()), len(bad))


def corrected(
    hits: Sequence[Any], clusters: Sequence[Any], errors: Sequence[Sequence[int]]
) -> estimates.Estimate | None:
    """Return the share of legible images behind the share that was read, by Rogan and Gladen.

    hits and clusters by image; `errors` as of `error_counts`, from boards with texts of that kind.
    None where the reader cannot read even the font, so that it says nothing about the model.
    """
    share = base.shares(pd.DataFrame({"hit": hits, "id": list(clusters)}), "hit").iloc[0]
    many = len(hits) / estimates.design_effect(*estimates.cluster_totals(hits, clusters))
    (right, of), (rejected, broken) = errors
    try:
        return misclassification.corrected_share(
            float(share.value), many, (right, of), (rejected, broken)
        )
    except (ValueError, ZeroDivisionError):
        return None


def calibration(
    reader: Reader,
    texts: Sequence[str],
    size: int,
    draw: Draw,
    rates: Sequence[float] = (0.1, 0.3, 0.6),
    seed: int = 1,
) -> pd.DataFrame:
    """Break a known share of perfect boards (one letter wrong) and ask the probe how many are.

    The first half of the texts measures the reader's error, the second is the audit. Columns:
    injected (the exact share broken), value, low, high (the corrected share of failures), n.
    """
    half = len(texts) // 2
    rng = np.random.default_rng(seed)
    known = error_counts(read_boards(reader, texts[:half], size, draw, seed=seed))
    asked, rows = list(texts[half:]), []
    for rate in rates:
        broken = set(rng.permutation(len(asked))[: round(rate * len(asked))].tolist())
        drawn = [one_wrong(t, rng) if i in broken else t for i, t in enumerate(asked)]
        read = [found.text for found in reader.read(draw(drawn, size))]
        hits = [bool(text_scores.scores(a, r)["exact_folded"]) for a, r in zip(asked, read)]
        found = corrected(hits, range(len(asked)), known)
        if found is not None:
            row = {"value": 1 - found.value, "low": 1 - found.high, "high": 1 - found.low}
            rows.append({"injected": len(broken) / len(asked), **row, "n": len(asked)})
    return pd.DataFrame(rows, columns=["injected", "value", "low", "high", "n"]).round(base.ROUND)
