"""How well a text was read: scores against the asked text, and the reader's own errors.

Those errors are measured on texts that a font has drawn at the model's resolution: right (the
ceiling), through the model's VAE, and broken in three ways (the floor).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

from koala_nb.models.load import model_info, native_size
from koala_nb.probes import base
from koala_nb.scorers import registry
from koala_nb.scorers.ocr import Reader
from koala_nb.stats import estimates
from koala_nb.stats.misclassification import NoBetterThanChance

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

Renderer = Callable[[Sequence[str], int], list["Image.Image"]]  # texts, side in pixels -> images
MISSING, EXTRA = "nothing", "nothing asked"  # the empty sides of a deletion and an insertion
FONT, VAE = "font", "font, then the VAE"
BROKEN = ("one letter wrong", "shuffled letters", "blank board")
# Lengths in characters that are reported together.
CLASSES = ((1, 2), (3, 4), (5, 6), (7, 9), (10, 15), (16, 25), (26, 40))


def image_size(pipe: Pipeline) -> int:
    """Return the side in pixels of the images that a pipeline draws at its recipe."""
    return int(model_info(pipe).recipe.height or native_size(pipe))


def normalized(text: str) -> str:
    """Return a text with its whitespace joined: all that is forgiven in an exact match."""
    return " ".join(text.split())


def character_error_rate(target: str, read: str) -> float:
    """Return the CER: insertions, deletions and substitutions a character that was asked for.

    0 for the same text, 1 where nothing was read; above 1 where more was read than asked.
    ValueError where nothing was asked.
    """
    if not target:
        raise ValueError("character_error_rate: nothing was asked for.")
    return Levenshtein.distance(target, read) / len(target)


def edit_similarity(target: str, read: str) -> float:
    """Return the NED as AnyText defines it, 1 - distance / the longer length: 0 to 1, 1 the best.

    Tuo et al. 2023, arXiv:2311.03054. Symmetric; two empty texts are the same text.
    """
    return float(Levenshtein.normalized_similarity(target, read))


def word_scores(target: str, read: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of words, as MARIO-Eval counts them; each 0 to 1.

    Chen et al. 2023, arXiv:2305.10855. A word counts as often as it stands in both texts, whatever
    the order. Nothing read has precision 0, not an undefined one that drops out of a mean.
    """
    one, other = Counter(target.split()), Counter(read.split())
    both = (one & other).total()
    precision = both / other.total() if other else 0.0
    recall = both / one.total() if one else 0.0
    return precision, recall, 2 * both / max(1, one.total() + other.total())


def text_scores(target: str, read: str) -> dict[str, float | bool]:
    """Return all scores of one image, and again with `_folded` where case is ignored.

    exact, cer, ned, word_precision, word_recall, word_f1. Only whitespace is normalised. Where
    nothing was read all are 0 (cer 1): such images stay in every mean.
    """
    scores: dict[str, float | bool] = {}
    for ending, fold in (("", str), ("_folded", str.casefold)):
        one, other = fold(normalized(target)), fold(normalized(read))
        scores |= {f"exact{ending}": one == other, f"cer{ending}": character_error_rate(one, other)}
        scores[f"ned{ending}"] = edit_similarity(one, other)
        for name, value in zip(("precision", "recall", "f1"), word_scores(one, other)):
            scores[f"word_{name}{ending}"] = value
    return scores


def confusions(pairs: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Return how often each character asked for was read as each other, ignoring case.

    Characters of (target, read) pairs are paired by an optimal Levenshtein alignment; what is left
    over is paired with MISSING (asked, not read) or EXTRA (read, not asked). Equal characters are
    counted as well. Where nothing was read there is no alignment: such pairs are left out.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for target, read in pairs:
        one, other = normalized(target).casefold(), normalized(read).casefold()
        for step in Levenshtein.opcodes(one, other) if other else ():
            left = one[step.src_start : step.src_end]
            right = other[step.dest_start : step.dest_end]
            # Only insertions and deletions have sides of different lengths, one of them empty.
            for i in range(max(len(left), len(right))):
                counts[left[i] if left else EXTRA, right[i] if right else MISSING] += 1
    return counts


def top_confusions(table: pd.DataFrame) -> list[base.Record]:
    """Return the 40 most frequent pairs of characters, asked and read, that differ."""
    counts = confusions(zip(table.text, table.read))
    wrong = [(pair, n) for pair, n in counts.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    return [{"asked": a, "read": b, "count": n} for (a, b), n in wrong[:40]]


def by_class(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each class of length (`CLASSES`), shortest first."""
    names = [f"{low}-{high}" for low, high in CLASSES] + [f"over {CLASSES[-1][1]}"]
    edges = [0, *(high for _, high in CLASSES), np.inf]
    groups = table.groupby(pd.cut(table.length, edges, labels=names), observed=True)
    return {str(name): rows for name, rows in groups}


def rendered_text_image(text: str, size: int) -> Image.Image:
    """Return a plain board with a text in DejaVu Sans Bold, black on white, in up to four lines.

    The letters are as large as the board allows; size in pixels per side.
    """
    import textwrap

    import matplotlib
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    image = pillow.new("RGB", (size, size), "#6f9bc4")
    draw = ImageDraw.Draw(image)
    draw.rectangle((size * 0.06, size * 0.2, size * 0.94, size * 0.8), "white")
    wanted = 1 if len(text) <= 10 else 2 if len(text) <= 20 else 3
    lines = textwrap.wrap(text, max(8, -(-len(text) // wanted) + 3)) or [""]
    points = size * 0.4 / len(lines)
    while True:
        font = ImageFont.truetype(font_file, points)
        if max(font.getlength(line) for line in lines) <= size * 0.78:
            break
        points *= 0.95
    middle = (size / 2, size / 2)
    draw.text(middle, "\n".join(lines), "black", font, anchor="mm", align="center")
    return image


def text_renderer(domain: str) -> Renderer:
    """Return what draws right texts for a domain: its signs where it has some, or plain boards."""

    def plain(texts: Sequence[str], size: int) -> list[Image.Image]:
        return [rendered_text_image(text, size) for text in texts]

    return registry.truth("rendered text", domain) or plain


def vae_roundtrip(pipe: Pipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images after the model's VAE has encoded and decoded them, in float32.

    No image of the model can be sharper than its VAE allows.
    """
    import torch

    done: list[Image.Image] = []
    vae, dtype, processor = pipe.vae, pipe.vae.dtype, pipe.image_processor
    try:
        vae.to(torch.float32)
        for image in images:
            pixels = processor.preprocess([image]).to(pipe._execution_device, torch.float32)
            with torch.no_grad():
                decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            done += processor.postprocess(decoded.float(), output_type="pil")
    finally:
        vae.to(dtype)
    return done


def one_wrong(text: str, rng: np.random.Generator) -> str:
    """Return a text with one letter or digit replaced by another of its kind."""
    places = [i for i, c in enumerate(text) if c.isascii() and c.isalnum()]
    at = int(rng.choice(places))
    pool = "0123456789" if text[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    other = str(rng.choice([c for c in pool if c != text[at].lower()]))
    return text[:at] + (other.upper() if text[at].isupper() else other) + text[at + 1 :]


def shuffled(text: str, rng: np.random.Generator) -> str | None:
    """Return a text with its characters in another order; None where every order is the same."""
    folded = text.casefold()
    if len(set(folded)) < 2:
        return None
    while True:
        other = "".join(text[i] for i in rng.permutation(len(text)))
        if normalized(other).casefold() != normalized(folded):
            return other


def read_boards(
    reader: Reader,
    texts: Sequence[str],
    size: int,
    render: Renderer,
    pipe: Pipeline | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Draw every text right and broken, read it, and score it against the right text.

    One row a board: id and text asked, length, kind (FONT, VAE where a pipeline is given, BROKEN),
    drawn, read, and `text_scores`.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[str | None]] = {
        FONT: list(texts),
        BROKEN[0]: [one_wrong(text, rng) for text in texts],
        BROKEN[1]: [shuffled(text, rng) for text in texts],
        BROKEN[2]: [" " for _ in texts],
    }
    rows: list[base.Record] = []
    for kind, variants in drawn.items():
        shown = {i: text for i, text in enumerate(variants) if text is not None}
        passes = {kind: render(list(shown.values()), size)}
        if kind == FONT and pipe is not None and hasattr(pipe, "vae"):
            passes[VAE] = vae_roundtrip(pipe, passes[FONT])
        for name, images in passes.items():
            for (i, text), reading in zip(shown.items(), reader.read(images)):
                row = {"id": f"b{i}", "text": texts[i], "length": len(texts[i]), "kind": name}
                row |= {"drawn": text, "read": reading.text}
                rows.append(row | text_scores(texts[i], reading.text))
    return pd.DataFrame(rows).round(base.ROUND)


def reader_accuracy(boards: pd.DataFrame) -> pd.DataFrame:
    """Return the share of boards read as the asked text, ignoring case, as tidy estimates.

    By kind, and by kind and class of length. Of FONT boards it is the sensitivity (ceiling), of
    BROKEN ones the false alarms (floor).
    """
    id, label = "text.reader.{}.exact_folded", "{} boards read as asked"
    rows = list(base.share_rows(boards, "exact_folded", id, label, "kind"))
    for kind, group in boards.groupby("kind", sort=False):
        for name, part in by_class(group).items():
            place = f"{base.identifier(kind)}.length.{base.identifier(name)}"
            label = f"{kind} boards of {name} characters read as asked"
            rows += base.share_rows(part, "exact_folded", id.format(place), label)
    return estimates.estimates_frame(rows).round(base.ROUND)


def error_counts(boards: pd.DataFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (right, of) on FONT boards and (rejected, of) on BROKEN ones, for `corrected_share`.

    Blank boards are left out: they are easier to reject than what a model draws.
    """
    good = boards[boards.kind == FONT].exact_folded
    bad = boards[boards.kind.isin(BROKEN[:2])].exact_folded
    return (int(good.sum()), len(good)), (int((~bad.astype(bool)).sum()), len(bad))


def errors_by_length(boards: pd.DataFrame) -> base.Record:
    """Return `error_counts` by class of length."""
    return {name: error_counts(part) for name, part in by_class(boards).items()}


def corrected(
    hits: estimates.Values, clusters: estimates.Values, errors: base.Errors
) -> estimates.Estimate | None:
    """Return `base.corrected`; None for a reader that fails on the font, or read no board.

    `errors` as of `error_counts`, from boards with texts of that kind.
    """
    if not all(of for _, of in errors):
        return None
    try:
        return base.corrected(hits, clusters, errors)
    except NoBetterThanChance:
        return None


def calibration(
    reader: Reader,
    texts: Sequence[str],
    size: int,
    render: Renderer,
    rates: Sequence[float] = (0.1, 0.3, 0.6),
) -> pd.DataFrame:
    """Break a known share of perfect boards (one letter wrong) and estimate how many are.

    The first half of the texts measures the reader's error, the second is the audit. Columns:
    injected (the exact share broken), value, low, high (the corrected share of failures), n.
    """
    half = len(texts) // 2
    rng = np.random.default_rng(1)
    errors = error_counts(read_boards(reader, texts[:half], size, render, seed=1))
    targets, rows = list(texts[half:]), []
    for rate in rates:
        broken = set(rng.permutation(len(targets))[: round(rate * len(targets))].tolist())
        drawn = [one_wrong(t, rng) if i in broken else t for i, t in enumerate(targets)]
        read = [reading.text for reading in reader.read(render(drawn, size))]
        hits = [bool(text_scores(t, r)["exact_folded"]) for t, r in zip(targets, read)]
        share = corrected(hits, range(len(targets)), errors)
        if share is not None:
            row = {"value": 1 - share.value, "low": 1 - share.high, "high": 1 - share.low}
            rows.append({"injected": len(broken) / len(targets), **row, "n": len(targets)})
    return pd.DataFrame(rows, columns=["injected", "value", "low", "high", "n"]).round(base.ROUND)
