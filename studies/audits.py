"""Whole audits of known truth, read by a scorer that errs (40 minutes).

    python -m studies.audits              # writes data/results/simulated-audits.json

Families of occupations, whose images of a prompt are alike, are read by a scorer that errs, alike
in all of them or in each in its own way (Dirichlet rates of so great a concentration), and some
images of each are labelled. The intervals and claims of `double_sampling` are tried on them; those
of the readings alone are tried beside them, so that their failure is a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from koala_nb.stats.double_sampling import (
    DoubleSample,
    double_sampled_pvalues,
    double_sampled_shares,
)
from koala_nb.stats.misclassification import UNSURE
from koala_nb.stats.simulation import (
    COVERAGE_BAR,
    POPULATIONS,
    RIGHT,
    scorer_rates,
    simulate_audit,
    simulate_labels,
)
from studies import simulating

Cell = dict[str, Any]
Design = tuple[int, int, int]  # prompts, images per prompt, labels
NAMES = ("woman", "man", UNSURE)
DESIGNS: tuple[Design, ...] = ((6, 10, 20), (10, 10, 30), (40, 10, 30))
MANY_LABELS: Design = (10, 10, 50)  # as the plan asks for; of its claims alone
FEW_LABELS: tuple[Design, ...] = ((10, 10, 8), (10, 10, 15))  # as occupations without a plan have
GROUPS = (2, 3)  # without and with images that nobody can tell
UNSURE_SHARE = 0.1
CORRELATIONS = (0.0, 0.05, 0.2)
ALIKE = 0  # the concentration of a scorer that errs alike everywhere
CONCENTRATIONS = (ALIKE, 9, 4)
SHARES = (0.02, 0.1, 0.3, 0.5, 0.9)
OCCUPATIONS = 20  # claims of one family
HELMET = np.array([[0.45, 0.55], [0.03, 0.97]])  # women are mostly not seen


def truth(share: float, k: int) -> np.ndarray:
    """Return shares of women, men and, of three groups, unsure; women are `share` of the sure."""
    unsure = UNSURE_SHARE if k == 3 else 0.0
    return np.array([share * (1 - unsure), (1 - share) * (1 - unsure), unsure][:k])


def rates(rng: np.random.Generator, k: int, concentration: float) -> np.ndarray:
    """Return how the scorer reads an occupation's classes, (k, k), rows the truth."""
    table = scorer_rates(k)
    if concentration == ALIKE:
        return table
    return np.stack([rng.dirichlet(row * concentration) for row in table])


def simulated(
    rng: np.random.Generator, design: Design, shares: np.ndarray, scorer: np.ndarray, icc: float
) -> DoubleSample:
    """Return one occupation's images, read and partly labelled."""
    names = NAMES[: len(shares)]
    audit = simulate_audit(rng, shares, scorer, names, design[:2], icc)
    return simulate_labels(rng, audit, names, design[2])


def as_read(sample: DoubleSample) -> DoubleSample:
    """Return the images as without any label."""
    return replace(sample, labels=None)


def coverage(
    design: Design, k: int, icc: float, concentration: float, audits: int, seed: int
) -> Iterator[Cell]:
    """Yield, by share and interval, how often the interval held the share of women.

    Each family holds occupations of all SHARES, so that they lend each other their correlation.
    """
    rng = np.random.default_rng(seed)
    kinds = ("double-sampled", "uncorrected")
    held: dict[tuple[str, float], list[tuple[bool, float]]] = {
        key: [] for key in product(kinds, SHARES)
    }
    shares = SHARES * (POPULATIONS // len(SHARES))
    while len(held[kinds[0], SHARES[0]]) < audits:
        family = [
            simulated(rng, design, truth(share, k), rates(rng, k, concentration), icc)
            for share in shares
        ]
        for kind, samples in zip(kinds, (family, [as_read(sample) for sample in family])):
            for share, e in zip(shares, double_sampled_shares(samples, "woman")):
                held[kind, share].append((e.low <= truth(share, k)[0] <= e.high, e.high - e.low))
    cell: Cell = dict(zip(("prompts", "images", "labels"), design))
    cell |= {"groups": k, "correlation": icc, "concentration": concentration}
    for (kind, share), rows in held.items():
        covered, width = np.mean(rows, axis=0).tolist()
        result = {"audits": len(rows), "coverage": covered, "mean_width": width}
        yield {"interval": kind, **cell, "share": share, **result}


def false_alarms(
    design: Design, k: int, concentration: float, helmets: int, families: int, seed: int
) -> Cell:
    """Return how often a family of fair occupations gets any claim, after Holm, at the 5 % level.

    helmets: in so many of its occupations the scorer takes most women for men (two groups only).
    """
    rng = np.random.default_rng(seed)
    shares, alarms = truth(0.5, k), np.zeros(2)
    for _ in range(families):
        scorers = [HELMET] * helmets
        scorers += [rates(rng, k, concentration) for _ in range(OCCUPATIONS - helmets)]
        family = [simulated(rng, design, shares, scorer, 0.05) for scorer in scorers]
        for kind, samples in enumerate((family, [as_read(sample) for sample in family])):
            least = min(double_sampled_pvalues(samples, "woman", 0.5))
            alarms[kind] += least * OCCUPATIONS < 0.05  # Holm's first step is Bonferroni's
    cell: Cell = dict(zip(("prompts", "images", "labels"), design))
    cell |= {"groups": k, "concentration": concentration, "helmets": helmets, "families": families}
    return cell | dict(zip(("double-sampled", "uncorrected"), (alarms / families).tolist()))


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/simulated-audits.json`."""
    from tqdm import tqdm

    options = simulating.parse("audits", __doc__, "audits", 400, argv)
    cells: list[Cell] = []
    grid = list(product(DESIGNS + FEW_LABELS, GROUPS, CORRELATIONS, CONCENTRATIONS))
    for number, (design, k, icc, concentration) in enumerate(tqdm(grid, "coverage")):
        cells += coverage(design, k, icc, concentration, options.audits, number)
    families = [(*each, 0) for each in product(DESIGNS[1:], GROUPS, CONCENTRATIONS)]
    families += [(design, 2, ALIKE, 3) for design in DESIGNS[1:]]
    families += [(*each, 0) for each in product(FEW_LABELS, GROUPS, CONCENTRATIONS)]
    families += [(design, 2, ALIKE, 3) for design in FEW_LABELS]
    families += [(MANY_LABELS, k, c, 0) for k, c in product(GROUPS, CONCENTRATIONS[:2])]
    families += [(MANY_LABELS, 2, ALIKE, 3)]
    alarms = [
        false_alarms(design, k, concentration, helmets, options.audits // 2, 1000 + number)
        for number, (design, k, concentration, helmets) in enumerate(tqdm(families, "alarms"))
    ]
    low = [c for c in cells if c["coverage"] < COVERAGE_BAR and c["interval"] != "uncorrected"]
    result = {"nominal": 0.95, "scorer right": RIGHT, "below": low}
    result |= {"cells": cells, "false alarms": alarms}
    return simulating.write(options, "simulated-audits.json", result)


if __name__ == "__main__":
    raise SystemExit(main())
