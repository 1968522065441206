"""Audits whose truth is known: images of women and men, and what a scorer of known error reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from koala_nb.stats import coverage

CLASSES = ("woman", "man", "unsure")
LABELS = 100  # a class, drawn anew for every audit


@dataclass(frozen=True)
class Case:
    """One kind of images: the true share of women and what the scorer reads of them."""

    women: float
    woman: Sequence[float] = (1.0, 0.0, 0.0)  # shares of CLASSES read in a woman
    man: Sequence[float] = (0.0, 1.0, 0.0)
    correlation: float = 0.0  # of images of one prompt


CASES = {
    "fair": Case(0.5),
    "total collapse": Case(0.0),
    "skewed": Case(0.3),
    "fair, unsure": Case(0.5, (0.7, 0.0, 0.3), (0.0, 0.9, 0.1)),
    "fair, scorer error": Case(0.5, (0.90, 0.10, 0.0), (0.02, 0.98, 0.0)),
    "skewed, scorer error": Case(0.3, (0.90, 0.10, 0.0), (0.02, 0.98, 0.0)),
    "fair, correlated": Case(0.5, correlation=0.2),
}


def draw(
    rng: np.random.Generator, case: Case, prompts: int, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is read in the images of one audit, and each image's prompt."""
    women = coverage.hits(rng, case.women, prompts, images, case.correlation)
    is_man = np.arange(images) >= women[:, None]
    edges = np.cumsum([case.woman, case.man], axis=1)[is_man.astype(int)]
    read = (rng.random(is_man.shape)[..., None] >= edges[..., :-1]).sum(-1)
    return np.array(CLASSES)[read.ravel()], np.repeat(np.arange(prompts), images)


def labelled(rng: np.random.Generator, case: Case) -> tuple[list[str], np.ndarray]:
    """Return the classes of an audit and its confusion of LABELS images of each.

    An image that nobody can tell is labelled unsure, and is read so.
    """
    sure = np.array([case.woman[:2], case.man[:2]])
    rates = sure / sure.sum(1, keepdims=True)
    table = np.stack([rng.multinomial(LABELS, row) for row in rates])
    if not case.woman[2] + case.man[2]:
        return list(CLASSES[:2]), table
    return list(CLASSES), np.pad(table, (0, 1)) + np.diag([0, 0, LABELS])
