"""Published metrics and ours on audits whose truth is known (5 minutes).

    python -m studies.auditors            # writes data/results/auditors.json

An audit asks for the share of women among images of women and men. Sets of images are simulated;
where the embedded family is there, one scorer's errors are those measured on rendered scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from koala_nb.core.catalog import data_folder
from koala_nb.probes import published_metrics as metrics
from koala_nb.stats import estimates, imbalance
from koala_nb.stats.double_sampling import (
    double_sample,
    double_sampled_bounds,
    double_sampled_pvalues,
)
from koala_nb.stats.simulation import clustered_hits
from studies import simulating

LEVEL = 0.05
BOOTSTRAPS = 500  # resamples of the bootstrap that T2I-BiasBench offers
CLASSES = ("woman", "man", "unsure")


def amplification_interval(
    counts: Mapping[str, int], rng: np.random.Generator
) -> tuple[float, float]:
    """Return the percentile interval of `amplification` over resampled images, prompts ignored.

    The published code computes it on request only; the published figures are without.
    """
    observed = np.array([n for n in counts.values() if n])
    drawn = rng.multinomial(observed.sum(), observed / observed.sum(), BOOTSTRAPS)
    groups = (drawn > 0).sum(1, keepdims=True)
    readings = np.where(drawn > 0, np.abs(drawn / observed.sum() - 1 / groups), 0).sum(1)
    low, high = np.quantile(readings, [0.025, 0.975])
    return float(low), float(high)


INTERVALS = {"T2I-BiasBench amplification": amplification_interval}


@dataclass(frozen=True)
class Case:
    """One kind of images: the true share of women and what the scorer reads of them."""

    women: float
    woman: Sequence[float] = (1.0, 0.0, 0.0)  # shares of CLASSES read in a woman
    man: Sequence[float] = (0.0, 1.0, 0.0)
    correlation: float = 0.0  # of images of one prompt

    @property
    def classes(self) -> Sequence[str]:
        """The answers that images of this kind can have."""
        return CLASSES if self.woman[2] + self.man[2] else CLASSES[:2]


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is read in the images of one audit, what is true, and each image's prompt.

    An image that nobody can tell is labelled unsure, and is read so.
    """
    women = clustered_hits(rng, case.women, prompts, images, case.correlation)
    is_man = np.arange(images) >= women[:, None]
    edges = np.cumsum([case.woman, case.man], axis=1)[is_man.astype(int)]
    read = (rng.random(is_man.shape)[..., None] >= edges[..., :-1]).sum(-1)
    answers = np.array(CLASSES)[read.ravel()]
    true = np.where(answers == "unsure", answers, np.array(CLASSES)[is_man.ravel().astype(int)])
    return answers, true, np.repeat(np.arange(prompts), images)


def labelled(rng: np.random.Generator, true: np.ndarray) -> list[str | None]:
    """Return the truth of a random third of the images, three or more, and None of the others."""
    chosen = set(rng.permutation(len(true))[: max(3, len(true) // 3)].tolist())
    return [str(answer) if i in chosen else None for i, answer in enumerate(true)]


class Verdict(NamedTuple):
    """What an auditor says of one set: a reading, its interval, and whether it alarms, or None."""

    reading: float
    interval: tuple[float, float] | None
    alarm: bool | None


def judge(
    read: np.ndarray,
    clusters: np.ndarray,
    classes: Sequence[str],
    labels: Sequence[str | None],
    rng: np.random.Generator,
) -> dict[str, Verdict]:
    """Return what every auditor says of one set of images."""
    counts = {name: int((read == name).sum()) for name in classes}
    verdicts: dict[str, Verdict] = {}
    for name, metric in metrics.METRICS.items():
        interval = INTERVALS[name](counts, rng) if name in INTERVALS else None
        value, bar = metric(counts), metrics.THRESHOLDS.get(name)
        verdicts[name] = Verdict(value, interval, None if bar is None else value > bar)
    known = counts["woman"] + counts["man"]
    if known:
        pooled = estimates.share_interval(counts["woman"], known)
        apart = not pooled.low <= 0.5 <= pooled.high
        verdicts[metrics.POOLED] = Verdict(pooled.value, pooled[1:3], apart)
    for name, known_labels in ((metrics.RAW, None), (metrics.CORRECTED, labels)):
        sample = double_sample(read.tolist(), clusters, CLASSES, known_labels)
        (bounds,) = double_sampled_bounds([sample], "woman")
        (p,) = double_sampled_pvalues([sample], "woman", 0.5)
        verdicts[name] = Verdict(bounds.value, (bounds.low, bounds.high), p < LEVEL)
    if known:
        distance = _distance(counts["woman"], counts["man"])
        n = known / estimates.design_effect(*estimates.cluster_totals(read == "woman", clusters))
        verdicts[metrics.NULL] = Verdict(distance, None, distance > _null(max(1, round(n))))
    return verdicts


@cache
def _null(n: int) -> float:
    return imbalance.null_quantile(n, metrics.EVEN)


@cache  # few pairs of counts come up again and again
def _distance(women: int, men: int) -> float:
    return imbalance.total_variation({"woman": women, "man": men}, metrics.EVEN)


def truths(women: float) -> dict[str, float]:
    """Return what every auditor should read where this is the true share of women.

    For a published metric: its own formula on the true shares of the declared groups.
    """
    apart = abs(women - 0.5)
    of_100 = {"woman": round(100 * women), "man": round(100 - 100 * women)}
    shares = np.array([s for s in (women, 1 - women) if s])
    intensity = float(1 + (shares * np.log(shares)).sum() / np.log(2))
    return {
        "HEIM imbalance": apart,
        "T2I-BiasBench amplification": 2 * apart,
        "T2I-BiasBench parity difference": 2 * apart,
        "T2I-BiasBench composite": metrics.composite(of_100),
        "OpenBias intensity": intensity,
        "DALL-Eval MAD": apart,
        metrics.POOLED: women,
        metrics.RAW: women,
        metrics.CORRECTED: women,
        metrics.NULL: apart,
    }


def simulate(case: Case, images: int, sets: int, seed: int) -> list[dict[str, Any]]:
    """Return, for every auditor, its mean reading, bias, coverage and alarms over so many sets.

    An auditor that cannot read the answers of a case has no row.
    """
    rng = np.random.default_rng(seed)
    verdicts: dict[str, list[Verdict]] = {name: [] for name in metrics.RULES}
    for _ in range(sets):
        read, true, clusters = draw(rng, case, *metrics.SIZES[images])
        for name, verdict in judge(read, clusters, case.classes, labelled(rng, true), rng).items():
            if verdict.reading == verdict.reading:
                verdicts[name].append(verdict)
    truth = truths(case.women)
    return [{"auditor": n, **_summary(made, truth[n])} for n, made in verdicts.items() if made]


def _summary(verdicts: list[Verdict], truth: float) -> dict[str, Any]:
    reading = float(np.mean([v.reading for v in verdicts]))
    covered = [
        v.interval[0] - 1e-9 <= truth <= v.interval[1] + 1e-9 for v in verdicts if v.interval
    ]
    alarms = [v.alarm for v in verdicts if v.alarm is not None]
    return {
        "sets": len(verdicts),
        "truth": round(truth, 6),
        "reading": round(reading, 6),
        "bias": round(reading - truth, 6),
        "coverage": round(float(np.mean(covered)), 6) if covered else None,
        "alarms": round(float(np.mean(alarms)), 6) if alarms else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/auditors.json`."""
    from tqdm import tqdm

    options = simulating.parse("auditors", __doc__, "sets", 1000, argv)
    cases, about = dict(CASES), None
    if (data_folder() / "models" / "nano-koala").is_dir():
        from koala_nb.nano.people import presentation_confusion

        about = presentation_confusion()
        rates = np.array(about["read"]) / np.sum(about["read"], axis=1, keepdims=True)
        woman, man = np.pad(rates, ((0, 0), (0, 1))).tolist()  # never unsure
        cases["fair, rendered"] = Case(0.5, woman, man)
    rows = []
    work = [(name, n) for name in cases for n in metrics.SIZES]
    for seed, (name, n) in enumerate(tqdm(work)):
        cell = {"set": name, "images": n, "prompts": metrics.SIZES[n][0]}
        rows += [cell | row for row in simulate(cases[name], n, options.sets, seed)]
    labels = "a third of the images"
    result = {"labelled": labels, "rules": metrics.RULES, "rendered": about, "cells": rows}
    return simulating.write(options, "auditors.json", result)


if __name__ == "__main__":
    raise SystemExit(main())
