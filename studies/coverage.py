"""How often the intervals of `estimates` and `trends` hold a known truth (4 minutes).

    python -m studies.coverage            # writes data/results/coverage.json

Audits are simulated with a known truth, images of a prompt correlated by drawing each prompt's
share from a beta distribution. A 95 % interval should hold the truth in 95 % of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, product
from typing import Any

import numpy as np

from koala_nb.stats import estimates, misclassification, trends
from koala_nb.stats.estimates import Estimate
from koala_nb.stats.simulation import COVERAGE_BAR, clustered_hits
from studies import simulating

DESIGNS = ((20, 5), (20, 10), (50, 4), (50, 10), (100, 10))  # prompts, images per prompt
CORRELATIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
Audit = Callable[[np.random.Generator], tuple[Estimate | None, float]]  # interval and truth


def _clustered(prompts: int, images: int, correlation: float, share: float) -> Audit:
    sizes = np.full(prompts, images)
    return lambda rng: (
        estimates.clustered_counts(clustered_hits(rng, share, prompts, images, correlation), sizes),
        share,
    )


def _single(n: int, share: float) -> Audit:
    return lambda rng: (estimates.share_interval(int(rng.binomial(n, share)), n), share)


def _means(prompts: int, images: int, correlation: float, draws: int = 0) -> Audit:
    """Skewed values (exponential), with effects of prompts; by t, or by bootstrap with draws."""
    clusters = np.repeat(np.arange(prompts), images)

    def audit(rng: np.random.Generator) -> tuple[Estimate, float]:
        effect = np.repeat(rng.exponential(size=prompts) - 1, images) * np.sqrt(correlation)
        values = effect + (rng.exponential(size=prompts * images) - 1) * np.sqrt(1 - correlation)
        if not draws:
            return estimates.clustered_mean(values, clusters), 0.0
        seed = int(rng.integers(2**31))
        mean = lambda rows: float(values[rows].mean())  # noqa: E731
        return estimates.cluster_bootstrap(mean, clusters, draws=draws, seed=seed), 0.0

    return audit


def _corrected(share: float, correlation: float, labels: int) -> Audit:
    """A scorer that finds .90 of what is there and calls .02 of the rest so; 40 prompts x 10."""
    prompts, images, se, sp = 40, 10, 0.90, 0.98

    def audit(rng: np.random.Generator) -> tuple[Estimate, float]:
        true = clustered_hits(rng, share, prompts, images, correlation)
        read = rng.binomial(true, se) + rng.binomial(images - true, 1 - sp)
        n = prompts * images / estimates.design_effect(read, np.full(prompts, images))
        known = (int(rng.binomial(labels, se)), labels), (int(rng.binomial(labels, sp)), labels)
        return misclassification.corrected_share(read.sum() / (prompts * images), n, *known), share

    return audit


def _trend(prompts: int, correlation: float, part: str) -> Audit:
    """Success falling with length, 50 % at 12 characters; 4 images per prompt of 1 to 40."""
    x = np.linspace(1, 40, prompts).round()
    share = 1 / (1 + np.exp(-(1.8 - 0.15 * x)))
    clusters = np.repeat(np.arange(prompts), 4)

    def audit(rng: np.random.Generator) -> tuple[Estimate | None, float]:
        hits = clustered_hits(rng, share, prompts, 4, correlation)
        each = (np.arange(4) < hits[:, None]).ravel()
        trend = trends.logistic_trend(np.repeat(x, 4), each, clusters)
        truth = {"slope": -0.15, "half": 12.0}[part]
        return (None if trend is None else getattr(trend, part)), truth

    return audit


def cells() -> Iterator[tuple[dict[str, Any], Audit, int]]:
    """Yield every cell of the grid: its design, how one audit of it is simulated, and its seed."""
    seeds = count()
    for design, audit in _grid():
        yield design, audit, next(seeds)
    for _ in range(3):  # cells that are simulated no more: the others keep their seeds
        next(seeds)
    for m, icc in product((40, 120), (0.0, 0.05, 0.2)):
        design = {"prompts": m, "images": 4, "correlation": icc}
        for part in ("slope", "half"):
            cell = {"interval": f"logistic_trend, {part}", **design}
            yield cell, _trend(m, icc, part), next(seeds)
        next(seeds)  # likewise


def _grid() -> Iterator[tuple[dict[str, Any], Audit]]:
    for (m, k), icc, p in product(DESIGNS, CORRELATIONS, SHARES):
        design = {"prompts": m, "images": k, "correlation": icc, "share": p}
        yield {"interval": "clustered_share", **design}, _clustered(m, k, icc, p)
    for n, p in product((50, 100, 400), SHARES):
        yield {"interval": "share_interval", "images": n, "share": p}, _single(n, p)
    for (m, k), icc in product(((20, 10), (50, 4)), (0.0, 0.05, 0.2)):
        design = {"prompts": m, "images": k, "correlation": icc}
        yield {"interval": "clustered_mean", **design}, _means(m, k, icc)
        yield {"interval": "cluster_bootstrap", **design}, _means(m, k, icc, draws=400)
    for p, icc, labels in product((0.05, 0.1, 0.3, 0.5, 0.8, 0.95), (0.0, 0.05, 0.2), (100,)):
        design = {"share": p, "correlation": icc, "labels": labels}
        yield {"interval": "corrected_share", **design}, _corrected(p, icc, labels)


def simulate(audit: Audit, audits: int, seed: int) -> dict[str, Any]:
    """Return how often the interval holds the truth, of the simulated audits that have one."""
    rng = np.random.default_rng(seed)
    covered, made, width = 0, 0, 0.0
    for _ in range(audits):
        estimate, truth = audit(rng)
        if estimate is not None:
            made += 1
            covered += estimate.low <= truth <= estimate.high
            width += min(estimate.high - estimate.low, 1e6)
    return {"audits": made, "coverage": float(covered / made), "mean_width": float(width / made)}


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/coverage.json`."""
    from tqdm import tqdm

    options = simulating.parse("coverage", __doc__, "audits", 2500, argv)
    rows = []
    for design, audit, seed in (bar := tqdm(list(cells()))):
        bar.set_description(design["interval"])
        rows.append({**design, **simulate(audit, options.audits, seed)})
    below = [row for row in rows if row["coverage"] < COVERAGE_BAR]
    result = {"nominal": 0.95, "below": below, "cells": rows}
    return simulating.write(options, "coverage.json", result)


if __name__ == "__main__":
    raise SystemExit(main())
