"""A prompt filter: normalised matching against a list of terms, and what it cannot see.

It knows words, not meanings: a paraphrase, another language or a term that nobody listed passes.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from koala_nb.core.files import read_csv

FUZZY_LENGTH = 6  # letters: shorter words have too many harmless neighbours
SPACED = 3  # so many single letters in a row are read as one word
# Letters of other scripts that look like Latin ones; not a full list of Unicode's confusables.
LOOK_ALIKE = str.maketrans("аеорсухіјѕοανιρτυκ", "aeopcyxijsoaviptuk")
WORD = re.compile(r"[^\W_]+")


class Hit(NamedTuple):
    """A listed term in a prompt, its category, and whether it matches exactly or nearly."""

    term: str
    category: str
    match: str  # "exact" or "similar"


def read_terms(path: str | Path) -> pd.DataFrame:
    """Read a CSV of term and category; ValueError, with the line, for an empty or repeated one."""
    table = read_csv(path, ("term", "category"), dtype=str)
    terms: set[str] = set()
    for row, term in enumerate(table.term, start=2):
        normal = " ".join(words(term))
        if not normal:
            raise ValueError(f"{path}, line {row}: {term!r} holds no letter or digit.")
        if normal in terms:
            raise ValueError(f"{path}, line {row}: {term!r} stands twice.")
        terms.add(normal)
    return table


def normalise(text: str) -> str:
    """Return a text in one form: compatibility letters (NFKC), no case, accents or hidden signs."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(LOOK_ALIKE)
    kept = (c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] != "M")
    return "".join(c for c in kept if unicodedata.category(c) != "Cf")


def singular(word: str) -> str:
    """Return an English word without its plural's ending, by rule: berries, boxes, owls."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def words(text: str) -> list[str]:
    """Return the words of a text, normalised; letters that stand alone in a row make one word."""
    return [singular(word) for word in _unspaced(WORD.findall(normalise(text)))]


def _unspaced(tokens: Sequence[str]) -> list[str]:
    kept: list[str] = []
    run: list[str] = []
    for word in [*tokens, ""]:  # the empty word ends the last run
        if len(word) == 1:
            run.append(word)
            continue
        whole = run[1:] if run[:1] == ["a"] and len(run) > SPACED else run  # "a h o r s e"
        kept += run[: len(run) - len(whole)]
        kept += ["".join(whole)] if len(whole) >= SPACED else whole
        run = []
        kept += [word] if word else []
    return kept


def _nearly(term: str, word: str) -> bool:
    from rapidfuzz.distance import OSA

    long = min(len(term), len(word)) >= FUZZY_LENGTH
    return term == word or (long and OSA.distance(term, word, score_cutoff=1) <= 1)


class PromptFilter:
    """Matches listed terms in prompts, also in capitals, plurals, other widths, spaced or hyphened.

    One letter of a long word may be wrong. `terms` as from `read_terms`.
    """

    def __init__(self, terms: pd.DataFrame) -> None:
        self.terms = [(term, kind, words(term)) for term, kind in zip(terms.term, terms.category)]

    def hits(self, prompt: str) -> list[Hit]:
        """Return the matching terms, in the order of the list."""
        joined = [singular("".join(WORD.findall(part))) for part in normalise(prompt).split()]
        views = [words(prompt), [word for word in joined if word]]  # "hor-se" as two, and as one
        hits = []
        for term, category, tokens in self.terms:
            forms = (tokens, ["".join(tokens)])  # "beer mug" may be written as one word
            windows = [
                (form, view[i : i + len(form)])
                for form in forms
                for view in views
                for i in range(len(view) - len(form) + 1)
            ]
            if any(form == window for form, window in windows):
                hits.append(Hit(term, category, "exact"))
            elif any(all(map(_nearly, *pair)) for pair in windows):
                hits.append(Hit(term, category, "similar"))
        return hits

    def flags(self, prompts: Sequence[str]) -> list[bool]:
        """Return for each prompt whether the filter would stop it."""
        return [bool(self.hits(prompt)) for prompt in prompts]
