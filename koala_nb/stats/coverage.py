"""`koala-nb evaluate coverage`: how often intervals of `estimates` and `trends` hold the truth.

Audits are simulated with a known truth, images of a prompt correlated by drawing each prompt's own
share from a beta distribution. A 95 % interval should hold the truth in 95 % of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import versions, write_json
from koala_nb.core.options import at_least, writable
from koala_nb.stats import estimates, trends
from koala_nb.stats.estimates import Estimate, Values

if TYPE_CHECKING:
    import pandas as pd

DESIGNS = ((20, 5), (20, 10), (50, 4), (50, 10), (100, 10))  # prompts, images a prompt
CORRELATIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
LOW = 0.93  # a cell below it is told to the reader
Audit = Callable[[np.random.Generator], tuple[Estimate | None, float]]  # interval and truth


def hits(
    rng: np.random.Generator, share: Any, prompts: int, images: int, correlation: float
) -> np.ndarray:
    """Return each prompt's hits of so many images; shares per prompt scatter as beta does."""
    mean = np.broadcast_to(share, prompts).astype(float)
    if correlation:
        spread = 1 / correlation - 1
        mean = rng.beta(mean * spread, (1 - mean) * spread)
    return rng.binomial(images, mean)


def _clustered(prompts: int, images: int, correlation: float, share: float) -> Audit:
    sizes = np.full(prompts, images)
    return lambda rng: (
        estimates.clustered_counts(hits(rng, share, prompts, images, correlation), sizes),
        share,
    )


def _single(n: int, share: float) -> Audit:
    return lambda rng: (estimates.share_interval(int(rng.binomial(n, share)), n), share)


def _means(prompts: int, images: int, correlation: float, draws: int = 0) -> Audit:
    """Skewed values (exponential), with effects of prompts; by t, or by bootstrap with draws."""
    clusters = np.repeat(np.arange(prompts), images)

    def audit(rng: np.random.Generator) -> tuple[Estimate, float]:
        own = np.repeat(rng.exponential(size=prompts) - 1, images) * np.sqrt(correlation)
        values = own + (rng.exponential(size=prompts * images) - 1) * np.sqrt(1 - correlation)
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
        true = hits(rng, share, prompts, images, correlation)
        read = rng.binomial(true, se) + rng.binomial(images - true, 1 - sp)
        n = prompts * images / estimates.design_effect(read, np.full(prompts, images))
        known = (int(rng.binomial(labels, se)), labels), (int(rng.binomial(labels, sp)), labels)
        return estimates.corrected_share(read.sum() / (prompts * images), n, *known), share

    return audit


def _corrected_classes(which: int) -> Audit:
    """Three classes, one of them "unsure", read with a known confusion; 400 images."""
    shares, labels = np.array([0.6, 0.3, 0.1]), 100
    rates = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])

    def audit(rng: np.random.Generator) -> tuple[Estimate, float]:
        counts = rng.multinomial(400, shares @ rates)
        confusion = np.stack([rng.multinomial(labels, row) for row in rates])
        seed = int(rng.integers(2**31))
        found = estimates.invert_confusion(counts, confusion, draws=1000, seed=seed)
        return found[which], float(shares[which])

    return audit


def _trend(prompts: int, correlation: float, part: str) -> Audit:
    """Success falling with length, 50 % at 12 characters; 4 images a prompt of 1 to 40."""
    x = np.linspace(1, 40, prompts).round()
    share = 1 / (1 + np.exp(-(1.8 - 0.15 * x)))
    clusters = np.repeat(np.arange(prompts), 4)

    def audit(rng: np.random.Generator) -> tuple[Estimate | None, float]:
        found = hits(rng, share, prompts, 4, correlation)
        each = (np.arange(4) < found[:, None]).ravel()
        trend = trends.logistic_trend(np.repeat(x, 4), each, clusters)
        return (
            (None, 0.0)
            if trend is None
            else (getattr(trend, part), {"slope": -0.15, "half": 12.0}[part])
        )

    return audit


def _line(prompts: int, correlation: float) -> Audit:
    x = np.linspace(-3, 0, prompts)
    clusters = np.repeat(np.arange(prompts), 4)

    def audit(rng: np.random.Generator) -> tuple[Estimate | None, float]:
        own = np.repeat(rng.normal(size=prompts), 4) * np.sqrt(correlation)
        y = 0.2 * np.repeat(x, 4) + own + rng.normal(size=prompts * 4) * np.sqrt(1 - correlation)
        return trends.linear_trend(np.repeat(x, 4), y, clusters), 0.2

    return audit


def cells() -> Iterator[tuple[dict[str, Any], Audit]]:
    """Yield every cell of the grid: what it is, and how one audit of it is simulated."""
    for (m, k), icc, p in product(DESIGNS, CORRELATIONS, SHARES):
        told = {"prompts": m, "images": k, "correlation": icc, "share": p}
        yield {"interval": "clustered_share", **told}, _clustered(m, k, icc, p)
    for n, p in product((50, 100, 400), SHARES):
        yield {"interval": "share_interval", "images": n, "share": p}, _single(n, p)
    for (m, k), icc in product(((20, 10), (50, 4)), (0.0, 0.05, 0.2)):
        told = {"prompts": m, "images": k, "correlation": icc}
        yield {"interval": "clustered_mean", **told}, _means(m, k, icc)
        yield {"interval": "cluster_bootstrap", **told}, _means(m, k, icc, draws=400)
    for p, icc, labels in product((0.05, 0.1, 0.3, 0.5, 0.8, 0.95), (0.0, 0.05, 0.2), (100,)):
        told = {"share": p, "correlation": icc, "labels": labels}
        yield {"interval": "corrected_share", **told}, _corrected(p, icc, labels)
    for which, p in enumerate((0.6, 0.3, 0.1)):
        yield {"interval": "corrected_shares", "share": p, "labels": 100}, _corrected_classes(which)
    for m, icc in product((40, 120), (0.0, 0.05, 0.2)):
        told = {"prompts": m, "images": 4, "correlation": icc}
        for part in ("slope", "half"):
            yield {"interval": f"logistic_trend, {part}", **told}, _trend(m, icc, part)
        yield {"interval": "linear_trend", **told}, _line(m, icc)


def simulate(audit: Audit, audits: int, seed: int) -> dict[str, Any]:
    """Return how often the interval holds the truth, of the simulated audits that have one."""
    rng = np.random.default_rng(seed)
    held, made, width = 0, 0, 0.0
    for _ in range(audits):
        found, truth = audit(rng)
        if found is not None:
            made += 1
            held += found.low <= truth <= found.high
            width += min(found.high - found.low, 1e6)
    return {"audits": made, "coverage": float(held / made), "mean_width": float(width / made)}


@cache
def published() -> list[dict[str, Any]]:
    """Return the grid of `data/results/coverage.json`; empty where the file is missing."""
    path = data_folder() / "results" / "coverage.json"
    return json.loads(path.read_text("utf-8"))["cells"] if path.is_file() else []


def by_design() -> pd.DataFrame:
    """Return the published coverage of `clustered_share`: a row a design, a column a share."""
    import pandas as pd

    cells = pd.DataFrame([c for c in published() if c["interval"] == "clustered_share"])
    design = ["prompts", "images", "correlation"]
    return cells.pivot_table(index=design, columns="share", values="coverage")


def caution(found: Values, clusters: Values) -> str | None:
    """Return a sentence where the interval of this share held the truth too rarely, else None.

    Looks up the simulated cell next to these images: prompts, images a prompt, correlation, share.
    """
    sums, sizes = estimates.cluster_totals(found, clusters)
    grid = [cell for cell in published() if cell["interval"] == "clustered_share"]
    if not grid:
        return None

    def at(prompts: float, images: float, correlation: float, share: float) -> np.ndarray:
        return np.array([np.log(prompts), np.log(images), 5 * correlation, 5 * share])

    related = trends.intraclass_correlation(found, clusters)
    here = at(len(sizes), sizes.mean(), related, sums.sum() / sizes.sum())
    names = ("prompts", "images", "correlation", "share")
    near = min(grid, key=lambda c: float(np.square(at(*(c[k] for k in names)) - here).sum()))
    if near["coverage"] >= LOW:
        return None
    return (
        f"Caution: in simulated audits like this one ({near['prompts']} prompts x {near['images']} "
        f"images, correlation {near['correlation']:g}, share {near['share']:g}) the 95 % interval "
        f"held the truth in {near['coverage']:.1%}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/coverage.json`."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="koala-nb evaluate coverage", description=__doc__)
    parser.add_argument("--audits", type=at_least(1), default=2500, help="simulated audits a cell")
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    rows = []
    for number, (told, audit) in enumerate(bar := tqdm(list(cells()))):
        bar.set_description(told["interval"])
        rows.append({**told, **simulate(audit, options.audits, seed=number)})
    result = {
        "command": f"koala-nb evaluate coverage --audits {options.audits}",
        "versions": versions(),
        "nominal": 0.95,
        "below": [r for r in rows if r["coverage"] < LOW],
        "cells": rows,
    }
    folder = options.out or data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    print(write_json(folder / "coverage.json", result))
    return 0
