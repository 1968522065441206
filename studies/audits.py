"""Whole audits of known truth, read by a scorer that errs (20 minutes).

    python -m studies.audits              # writes data/results/simulated-audits.json

Every interval and claim of `misclassification` is tried on simulated audits: images of a prompt
are alike (Dirichlet shares by prompt), the scorer errs, and its error is known from 100 labels a
class only. The uncorrected interval is tried beside them, so that its failure is a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from koala_nb.stats import misclassification
from koala_nb.stats.estimates import Estimate
from koala_nb.stats.misclassification import UNSURE
from koala_nb.stats.simulation import COVERAGE_BAR, LABELS, SimulatedAudit, simulate_audit
from studies import simulating

DESIGNS = ((10, 10), (40, 10))  # prompts, images per prompt
GROUPS = (2, 3, 10)
CORRELATIONS = (0.0, 0.05, 0.2)
SHARES = (0.05, 0.1, 0.3, 0.5, 0.9, 0.95)
RIGHT = 0.9  # of each class's images are read rightly, the rest as any other class
DRAWS = 800  # of the posteriors; fewer than in an audit, for time
OCCUPATIONS = 20  # claims of one family


def truth(share: float, k: int) -> np.ndarray:
    """Return shares of k groups: the first one's, the others alike."""
    return np.r_[share, np.full(k - 1, (1 - share) / (k - 1))]


def rates(k: int, right: float = RIGHT) -> np.ndarray:
    """Return how a scorer reads each of k classes, (k, k), rows the truth."""
    table = np.full((k, k), (1 - right) / (k - 1))
    np.fill_diagonal(table, right)
    return table


def intervals(
    rng: np.random.Generator, names: Sequence[str], audit: SimulatedAudit
) -> dict[str, dict[str, Estimate]]:
    """Return each kind's intervals of one audit; prediction-powered from labels of half of it."""
    read, clusters, table, true = audit
    seed = int(rng.integers(2**31))
    half = set(rng.permutation(len(true))[: len(true) // 2].tolist())
    labels = [name if i in half else None for i, name in enumerate(true)]
    counts = misclassification.effective_counts(
        np.array([names.index(r) for r in read]), clusters, len(names)
    )
    fixed = misclassification.invert_confusion(counts, table, draws=DRAWS, seed=seed)
    return {
        "corrected": dict(zip(names, fixed)),
        "prediction-powered": misclassification.prediction_powered(read, clusters, names, labels),
        "uncorrected": misclassification.uncorrected_shares(read, clusters, names),
    }


def coverage(
    design: tuple[int, int], k: int, correlation: float, share: float, audits: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per interval: how often it held the first group's share, and another one's."""
    rng = np.random.default_rng(seed)
    names = [f"group {i + 1}" for i in range(k)]
    shares, scorer = truth(share, k), rates(k)
    totals: dict[str, np.ndarray] = {}
    for _ in range(audits):
        audit = simulate_audit(rng, shares, scorer, names, design, correlation)
        for kind, by_group in intervals(rng, names, audit).items():
            first, second = (by_group[name] for name in names[:2])
            covered = [e.low <= s <= e.high for e, s in zip((first, second), shares)]
            total = totals.setdefault(kind, np.zeros(3))
            total += [*covered, first.high - first.low]
    cell = {"prompts": design[0], "images": design[1], "groups": k, "correlation": correlation}
    for kind, total in totals.items():
        first, second, width = (total / audits).tolist()
        result = {"coverage": first, "coverage, another group": second, "mean_width": width}
        yield {"interval": kind, **cell, "share": share, "audits": audits, **result}


def false_alarms(
    reference: float, unsure: float, correlation: float, families: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield how often a family of true references gets any claim, after Holm, at the 5 % level.

    OCCUPATIONS occupations of one share of women each, the reference; so many images are unsure.
    One set of labels serves all occupations, so their errors go together.
    """
    rng = np.random.default_rng(seed)
    names = ["woman", "man", UNSURE] if unsure else ["woman", "man"]
    shares = np.array([reference, 1 - reference - unsure, unsure][: len(names)])
    scorer = np.array([[0.9, 0.06, 0.04], [0.04, 0.92, 0.04], [0.15, 0.15, 0.7]])
    scorer = scorer if unsure else np.array([[0.9, 0.1], [0.02, 0.98]])
    alarms = {"corrected": 0, "uncorrected": 0}
    for _ in range(families):
        table = np.stack([rng.multinomial(LABELS, row) for row in scorer])
        least = dict.fromkeys(alarms, 1.0)
        for _ in range(OCCUPATIONS):
            read, clusters, _, _ = simulate_audit(rng, shares, scorer, names, (10, 10), correlation)
            for kind, known in zip(alarms, (table, None)):
                p = misclassification.score_test_pvalue(
                    read, clusters, names, known, "woman", reference
                )
                least[kind] = min(least[kind], p)
        for kind, p in least.items():  # Holm's first step is Bonferroni's
            alarms[kind] += p * OCCUPATIONS < 0.05
    for kind, many in alarms.items():
        yield {
            "claim": kind,
            "reference": reference,
            "unsure": unsure,
            "correlation": correlation,
            "occupations": OCCUPATIONS,
            "families": families,
            "false alarms": many / families,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/simulated-audits.json`."""
    from tqdm import tqdm

    options = simulating.parse("audits", __doc__, "audits", 2000, argv)
    cells: list[dict[str, Any]] = []
    alarms: list[dict[str, Any]] = []
    grid = list(product(DESIGNS, GROUPS, CORRELATIONS, SHARES))
    for number, (design, k, correlation, share) in enumerate(tqdm(grid, "coverage")):
        cells += coverage(design, k, correlation, share, options.audits, seed=number)
    families = list(product((0.1, 0.5, 0.8), (0.0, 0.05), CORRELATIONS))
    for number, (reference, unsure, correlation) in enumerate(tqdm(families, "false alarms")):
        alarms += false_alarms(reference, unsure, correlation, options.audits, 1000 + number)
    low = [c for c in cells if c["coverage"] < COVERAGE_BAR and c["interval"] != "uncorrected"]
    result = {"nominal": 0.95, "labels per class": LABELS, "scorer right": RIGHT, "below": low}
    result |= {"cells": cells, "false alarms": alarms}
    return simulating.write(options, "simulated-audits.json", result)


if __name__ == "__main__":
    raise SystemExit(main())
