"""How well what was read agrees with what was asked for: distances, words, confused characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein

MISSING, EXTRA = "nothing", "nothing asked"  # the empty sides of a deletion and an insertion


def plain(text: str) -> str:
    """Return a text with its whitespace joined: all that is forgiven in an exact match."""
    return " ".join(text.split())


def character_error_rate(asked: str, read: str) -> float:
    """Return the CER: insertions, deletions and substitutions a character that was asked for.

    0 for the same text, 1 where nothing was read; above 1 where more was read than asked.
    ValueError where nothing was asked.
    """
    if not asked:
        raise ValueError("character_error_rate: nothing was asked for.")
    return Levenshtein.distance(asked, read) / len(asked)


def edit_similarity(asked: str, read: str) -> float:
    """Return the NED as AnyText defines it, 1 - distance / the longer length: 0 to 1, 1 the best.

    Tuo et al. 2023, arXiv:2311.03054. Symmetric; two empty texts are the same text.
    """
    return float(Levenshtein.normalized_similarity(asked, read))


def word_scores(asked: str, read: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of words, as MARIO-Eval counts them; each 0 to 1.

    Chen et al. 2023, arXiv:2305.10855. A word counts as often as it stands in both texts, whatever
    the order. Nothing read has precision 0, not an undefined one that drops out of a mean.
    """
    one, other = Counter(asked.split()), Counter(read.split())
    both = (one & other).total()
    precision = both / other.total() if other else 0.0
    recall = both / one.total() if one else 0.0
    return precision, recall, 2 * both / max(1, one.total() + other.total())


def scores(asked: str, read: str) -> dict[str, float | bool]:
    """Return all scores of one image, and again with `_folded` where case is ignored.

    exact, cer, ned, word_precision, word_recall, word_f1. Only whitespace is normalised. Where
    nothing was read all are 0 (cer 1): such images stay in every mean.
    """
    found: dict[str, float | bool] = {}
    for ending, fold in (("", str), ("_folded", str.casefold)):
        wanted, seen = fold(plain(asked)), fold(plain(read))
        precision, recall, f1 = word_scores(wanted, seen)
        found |= {
            f"exact{ending}": wanted == seen,
            f"cer{ending}": character_error_rate(wanted, seen),
            f"ned{ending}": edit_similarity(wanted, seen),
            f"word_precision{ending}": precision,
            f"word_recall{ending}": recall,
            f"word_f1{ending}": f1,
        }
    return found


def confusions(pairs: Iterable[tuple[str, str]], fold: bool = True) -> Counter[tuple[str, str]]:
    """Return how often each character asked for was read as each other, over (asked, read) pairs.

    Characters are paired by an optimal Levenshtein alignment; what is left over is paired with
    MISSING (asked, not read) or EXTRA (read, not asked). Equal characters are counted as well.
    Where nothing was read there is no alignment: such pairs are left out.
    """
    counted: Counter[tuple[str, str]] = Counter()
    for asked, read in pairs:
        one, other = plain(asked), plain(read)
        if fold:
            one, other = one.casefold(), other.casefold()
        if not other:
            continue
        for step in Levenshtein.opcodes(one, other):
            left = one[step.src_start : step.src_end]
            right = other[step.dest_start : step.dest_end]
            # Only insertions and deletions have sides of different lengths, one of them empty.
            for i in range(max(len(left), len(right))):
                counted[left[i] if left else EXTRA, right[i] if right else MISSING] += 1
    return counted
