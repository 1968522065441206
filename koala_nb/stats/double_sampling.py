"""Shares of groups by double sampling: every image is read, a random part of them is labelled.

Tenenbein 1970 (JASA 65:1350): images are post-stratified by what was read, and the labels tell what
is behind each reading. Every population (an occupation's images) is corrected by its own labels, so
that a reader may err differently in each. Shares have Jeffreys posteriors on effective counts, as
for complex surveys (Franco et al. 2019, PMC6690503); the correlation of a prompt's images is pooled
over the *other* populations, so that more evidence never weakens a claim. Classes are declared in
advance; "unsure" may be one of them and stays in the denominator. `studies.audits` simulates how
often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special, stats

from koala_nb.stats import check_arguments
from koala_nb.stats.estimates import UPPER, Estimate, Values, cluster_codes, same_length
from koala_nb.stats.misclassification import UNSURE, class_codes

DRAWS = 500  # of a posterior
PRIOR = 0.5  # Jeffreys', of hits and of misses
CORRELATION = 0.05  # of a prompt's images where no other population tells
NO_LABEL = -1


@dataclass(frozen=True)
class DoubleSample:
    """One population's images: readings and labels as class numbers, (n,), and prompts, (n,).

    `labels` is None where no label exists at all: shares are then those of the readings.
    """

    classes: tuple[str, ...]
    read: np.ndarray
    clusters: np.ndarray
    labels: np.ndarray | None  # NO_LABEL where an image has none

    @property
    def labelled(self) -> int:
        """How many images have a label."""
        return 0 if self.labels is None else int((self.labels != NO_LABEL).sum())


def double_sample(
    read: Values, clusters: Values, classes: Sequence[str], labels: Values | None = None
) -> DoubleSample:
    """Return a population's images, one entry an image in `read`, `clusters` (prompt), `labels`.

    labels: None where an image was not labelled; labelled images must be a random sample.
    ValueError for lists of different lengths, no images, or a class that was not declared.
    """
    codes = class_codes(read, classes)
    for each in (clusters, read if labels is None else labels):
        same_length(read, each, "double_sample")
    true = None
    if labels is not None:
        known = np.array([label is not None for label in labels])
        true = np.full(len(codes), NO_LABEL)
        if known.any():
            true[known] = class_codes([label for label in labels if label is not None], classes)
    return DoubleSample(tuple(classes), codes, cluster_codes(clusters), true)


def double_sampled_shares(
    samples: Sequence[DoubleSample], group: str, fixed_prompts: bool = False
) -> list[Estimate]:
    """Return each population's share of a group among all its images, with a 95 % interval.

    fixed_prompts: of these prompts only; else of prompts like these, whose intervals are wider. n
    is the number of images. ValueError for a group that was not declared.
    """
    return [each.estimate() for each in _posteriors(samples, {group}, fixed_prompts)]


def double_sampled_bounds(
    samples: Sequence[DoubleSample], group: str, fixed_prompts: bool = False
) -> list[Estimate]:
    """Return a group's shares with bounds: low if no unsure image showed it, high if all did."""
    least = double_sampled_shares(samples, group, fixed_prompts)
    most = [each.estimate() for each in _posteriors(samples, {group, UNSURE}, fixed_prompts)]
    return [a._replace(high=max(a.high, b.high)) for a, b in zip(least, most)]


def double_sampled_pvalues(
    samples: Sequence[DoubleSample], group: str, reference: float, fixed_prompts: bool = False
) -> list[float]:
    """Return each population's two-sided p of "the share may be the reference".

    The share is known only to lie between the group's and the group's plus the unsure's: p is small
    only where the reference is outside both. ValueError for a reference outside 0 to 1.
    """
    if not 0 < reference < 1:
        raise ValueError(f"A reference of {reference} is no share between 0 and 1.")
    least = _posteriors(samples, {group}, fixed_prompts)
    most = _posteriors(samples, {group, UNSURE}, fixed_prompts)
    tails = [(a.below(reference), 1 - b.below(reference)) for a, b in zip(least, most)]
    return [min(1.0, 2 * min(pair)) for pair in tails]


class _Hits:
    """One population's images as hits and misses of some classes, read and labelled."""

    def __init__(self, sample: DoubleSample, group: Collection[str]) -> None:
        hits = np.array([name in group for name in sample.classes])
        self.clusters, self.read = sample.clusters, hits[sample.read]
        known = np.zeros(len(self.read), bool)
        self.as_read = sample.labels is None
        if sample.labels is not None:
            known = sample.labels != NO_LABEL
        self.known = known
        self.true = hits[sample.labels[known]] if sample.labels is not None else self.read[:0]

    def counts(self, weights: np.ndarray) -> np.ndarray:
        """Return weighted labels by truth (miss, hit) and reading (miss, hit), (2, 2)."""
        cell = 2 * self.true + self.read[self.known]
        return np.bincount(cell, weights, 4).reshape(2, 2)

    def rates(self) -> np.ndarray:
        """Return the share of hits behind each reading, (2,); of all labels where it has none."""
        if self.as_read:
            return np.array([0.0, 1.0])
        table = self.counts(np.ones(len(self.true)))
        of, overall = table.sum(0), table[1].sum() / max(1, len(self.true))
        return np.where(of > 0, table[1] / np.maximum(1, of), overall)

    def moments(self) -> tuple[float, float, float, float]:
        """Return what the intra-class correlation of the share's influences is made of.

        Summed squares of the influences by prompt and alone, by how much the first exceeds the
        second where the images of a prompt are all alike, and the degrees of freedom.
        """
        prompts, n = int(self.clusters.max()) + 1, len(self.read)
        if prompts < 2:
            return 0.0, 0.0, 0.0, 0.0
        behind = (rates := self.rates())[self.read.astype(int)]
        of_reading, of_label = (behind - behind.mean()) / n, np.zeros(n)
        excess = (_typical_size(self.clusters) - 1) * float((of_reading**2).sum())
        if self.known.any():
            read = self.read[self.known].astype(int)
            scale = np.bincount(self.read, minlength=2) / n / np.bincount(read, minlength=2).clip(1)
            of_label[self.known] = scale[read] * (self.true - rates[read])
            excess += (_typical_size(self.clusters[self.known]) - 1) * float((of_label**2).sum())
        influence = of_reading + of_label
        together = prompts / (prompts - 1) * (np.bincount(self.clusters, influence) ** 2).sum()
        return float(together), float((influence**2).sum()), excess, prompts - 1.0


class _Posterior:
    """The posterior of one population's share of hits."""

    def __init__(self, images: _Hits, correlation: float) -> None:
        self.images = images
        weights = _weights(images.clusters, correlation)
        self.readings = np.bincount(images.read, weights, 2) + PRIOR  # misses, hits
        weights = _weights(images.clusters[images.known], correlation)
        self.behind = images.counts(weights) + PRIOR

    def below(self, share: float) -> float:
        """Return the probability of a share as low as this one or lower.

        Exact in the labels of the more frequent reading (Rao and Blackwell), drawn in the rest.
        """
        if self.images.as_read:
            return float(special.betainc(*self.readings[::-1], share))
        most = int(self.readings.argmax())
        shares, behind = self._shares(), self._behind(1 - most)
        part = np.clip((share - shares[1 - most] * behind) / shares[most], 0, 1)
        return float(special.betainc(*self.behind[::-1, most], part).mean())

    def estimate(self) -> Estimate:
        """Return the post-stratified share and its equal-tailed interval."""
        tails = [1 - UPPER, UPPER]
        if self.images.as_read:
            low, high = special.betaincinv(*self.readings[::-1], tails)
        else:
            shares = self._shares()
            drawn = shares[0] * self._behind(0) + shares[1] * self._behind(1)
            low, high = np.quantile(drawn, tails)
        read = self.images.read
        value = float(self.images.rates()[read.astype(int)].mean())
        return Estimate(value, min(float(low), value), max(float(high), value), len(read))

    # Drawn by inverse distribution functions of the same numbers: draws rise with the counts.

    def _shares(self) -> np.ndarray:
        """Return draws of the share of each reading, (2, DRAWS)."""
        hits = special.betaincinv(*self.readings[::-1], _uniform()[0])
        return np.stack([1 - hits, hits])

    def _behind(self, reading: int) -> np.ndarray:
        """Return draws of the share of hits behind a reading, (DRAWS,)."""
        return special.betaincinv(*self.behind[::-1, reading], _uniform()[1 + reading])


@cache
def _uniform() -> np.ndarray:
    """Return a Latin hypercube: each row holds all quantiles, in an order of its own."""
    rng = np.random.default_rng(0)
    return (np.stack([rng.permutation(DRAWS) for _ in range(3)]) + 0.5) / DRAWS


def _weights(clusters: np.ndarray, correlation: float) -> np.ndarray:
    """Return how many independent images each image counts as (Kish 1965)."""
    return 1 / (1 + (np.bincount(clusters)[clusters] - 1) * correlation)


def _posteriors(
    samples: Sequence[DoubleSample], group: Collection[str], fixed_prompts: bool
) -> list[_Posterior]:
    for sample in samples:
        if unknown := set(group) - {UNSURE, *sample.classes}:
            raise ValueError(f"{unknown.pop()!r} is none of {', '.join(sample.classes)}.")
    populations = [_Hits(sample, group) for sample in samples]
    moments = np.array([images.moments() for images in populations])
    posteriors = []
    for i, images in enumerate(populations):
        others = np.delete(moments, i, axis=0) if len(samples) > 2 else moments
        correlation = 0.0 if fixed_prompts else _correlation(*others.sum(0))
        posteriors.append(_Posterior(images, correlation))
    return posteriors


def _correlation(together: float, alone: float, excess: float, freedom: float) -> float:
    """Return the intra-class correlation, larger where few prompts tell it (Student's t)."""
    if excess <= 0:
        return CORRELATION
    few = (stats.t.ppf(UPPER, freedom) / stats.norm.ppf(UPPER)) ** 2
    return float(np.clip((together - alone) / excess * few, 0, 1))


def _typical_size(clusters: np.ndarray) -> float:
    """Return how many images share a prompt with an image, itself among them."""
    return float((np.bincount(clusters) ** 2).sum() / len(clusters))


check_arguments(globals())
