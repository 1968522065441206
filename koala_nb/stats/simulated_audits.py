"""`koala-nb evaluate audits`: whole audits of known truth, read by a scorer that errs.

Every interval and claim of `misclassification` is tried on simulated audits: images of a prompt
are alike (Dirichlet shares by prompt), the scorer errs, and its error is known from 100 labels a
class only. The uncorrected interval is tried beside them, so that its failure is a number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import versions, write_json
from koala_nb.core.options import at_least, writable
from koala_nb.stats import estimates, misclassification
from koala_nb.stats.estimates import Estimate
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    import pandas as pd

DESIGNS = ((10, 10), (40, 10))  # prompts, images a prompt
GROUPS = (2, 3, 10)
CORRELATIONS = (0.0, 0.05, 0.2)
SHARES = (0.05, 0.1, 0.3, 0.5, 0.9, 0.95)
LABELS = 100  # a class
RIGHT = 0.9  # of each class's images are read rightly, the rest as any other class
DRAWS = 800  # of the posteriors; fewer than in an audit, for time
OCCUPATIONS = 20  # claims of one family
LOW = 0.93  # a cell below it is told to the reader
Read = tuple[list[str], np.ndarray, np.ndarray, list[str]]  # readings, prompts, confusion, truth


def truth(share: float, k: int) -> np.ndarray:
    """Return shares of k groups: the first one's, the others alike."""
    return np.r_[share, np.full(k - 1, (1 - share) / (k - 1))]


def rates(k: int, right: float = RIGHT) -> np.ndarray:
    """Return how a scorer reads each of k classes, (k, k), rows the truth."""
    table = np.full((k, k), (1 - right) / (k - 1))
    np.fill_diagonal(table, right)
    return table


def audit(
    rng: np.random.Generator,
    shares: np.ndarray,
    scorer: np.ndarray,
    names: Sequence[str],
    design: tuple[int, int] = (10, 10),
    correlation: float = 0.0,
) -> Read:
    """Return one audit: readings, prompts, confusion of LABELS images a class, true classes."""
    prompts, images = design
    own = np.broadcast_to(shares, (prompts, len(shares)))
    if correlation:
        own = rng.dirichlet(np.maximum(shares * (1 / correlation - 1), 1e-9), prompts)
    true = np.concatenate([rng.choice(len(shares), images, p=p / p.sum()) for p in own])
    steps = scorer.cumsum(1)
    read = (rng.random(len(true))[:, None] > steps[true]).sum(1).clip(max=len(shares) - 1)
    table = np.stack([rng.multinomial(LABELS, row) for row in scorer])
    told = [[names[i] for i in values] for values in (read, true)]
    return told[0], np.repeat(np.arange(prompts), images), table, told[1]


def intervals(
    rng: np.random.Generator, names: Sequence[str], found: Read
) -> dict[str, dict[str, Estimate]]:
    """Return each kind's intervals of one audit; prediction-powered from labels of half of it."""
    read, clusters, table, true = found
    seed = int(rng.integers(2**31))
    half = set(rng.permutation(len(true))[: len(true) // 2].tolist())
    labels = [name if i in half else None for i, name in enumerate(true)]
    counts = misclassification.effective_counts(
        np.array([names.index(r) for r in read]), clusters, len(names)
    )
    fixed = estimates.invert_confusion(counts, table, draws=DRAWS, seed=seed)
    return {
        "corrected": dict(zip(names, fixed)),
        "prediction-powered": misclassification.prediction_powered(read, clusters, names, labels),
        "uncorrected": misclassification.uncorrected_shares(read, clusters, names),
    }


def coverage(
    design: tuple[int, int], k: int, correlation: float, share: float, audits: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row an interval: how often it held the first group's share, and another one's."""
    rng = np.random.default_rng(seed)
    names = [f"group {i + 1}" for i in range(k)]
    shares, scorer = truth(share, k), rates(k)
    held: dict[str, np.ndarray] = {}
    for _ in range(audits):
        found = intervals(rng, names, audit(rng, shares, scorer, names, design, correlation))
        for kind, by_group in found.items():
            first, second = (by_group[name] for name in names[:2])
            right = [e.low <= s <= e.high for e, s in zip((first, second), shares)]
            told = held.setdefault(kind, np.zeros(3))
            told += [*right, first.high - first.low]
    cell = {"prompts": design[0], "images": design[1], "groups": k, "correlation": correlation}
    for kind, told in held.items():
        first, second, width = (told / audits).tolist()
        yield {"interval": kind, **cell, "share": share, "audits": audits, "coverage": first,
               "coverage, another group": second, "mean_width": width}  # fmt: skip


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
            read, clusters, _, _ = audit(rng, shares, scorer, names, (10, 10), correlation)
            for kind, known in zip(alarms, (table, None)):
                p = misclassification.score_test_pvalue(
                    read, clusters, names, known, "woman", reference
                )
                least[kind] = min(least[kind], p)
        for kind, p in least.items():  # Holm's first step is Bonferroni's
            alarms[kind] += p * OCCUPATIONS < 0.05
    for kind, many in alarms.items():
        yield {"claim": kind, "reference": reference, "unsure": unsure, "correlation": correlation,
               "occupations": OCCUPATIONS, "families": families,
               "false alarms": many / families}  # fmt: skip


def power(
    claims: int, design: tuple[int, int], correlation: float, share: float,
    table: Sequence[Sequence[int]] | np.ndarray | None = None, audits: int = 400, seed: int = 0,
) -> float:  # fmt: skip
    """Return how often an occupation's claim survives Holm's first step among so many.

    `share` are the women among the people that can be told; `table` is a reader's labelled
    confusion of woman, man and unsure: its errors, its number of labels and its share of unsure
    labels are those of each simulated audit. None: a reader that never errs, and nobody unsure.
    """
    rng = np.random.default_rng(seed)
    counts = np.eye(2, dtype=int) if table is None else np.asarray(table)
    names = ["woman", "man", UNSURE][: len(counts)]
    unsure = counts[2:].sum() / counts.sum()
    told = np.array([share, 1 - share]) * (1 - unsure)
    scorer = counts / counts.sum(1, keepdims=True)
    found = 0
    for _ in range(audits):
        shares = np.r_[told, unsure][: len(counts)]
        read, clusters, _, _ = audit(rng, shares, scorer, names, design, correlation)
        known = [rng.multinomial(n, row) for n, row in zip(counts.sum(1), scorer)]
        errors = None if table is None else np.stack(known)
        found += (
            misclassification.score_test_pvalue(read, clusters, names, errors, "woman", 0.5)
            * claims
            <= 0.05
        )
    return found / audits


@cache
def published() -> dict[str, Any]:
    """Return `data/results/simulated-audits.json`; empty lists where the file is missing."""
    path = data_folder() / "results" / "simulated-audits.json"
    if not path.is_file():
        return {"cells": [], "below": [], "false alarms": []}
    return json.loads(path.read_text("utf-8"))


def by_design(interval: str = "corrected", column: str = "coverage") -> pd.DataFrame:
    """Return the published coverage of an interval: a row a design, a column a share."""
    import pandas as pd

    cells = pd.DataFrame([c for c in published()["cells"] if c["interval"] == interval])
    design = ["prompts", "images", "groups", "correlation"]
    return cells.pivot_table(index=design, columns="share", values=column)


def caution(share: float, groups: int, prompts: int, correlation: float) -> str | None:
    """Return a sentence where the corrected interval of such an audit held too rarely, else None.

    Looks up the simulated cell next to this audit.
    """
    grid = [c for c in published()["cells"] if c["interval"] == "corrected"]
    if not grid:
        return None

    def apart(cell: dict[str, Any]) -> float:
        return float(
            np.log(cell["prompts"] / prompts) ** 2
            + np.log(cell["groups"] / groups) ** 2
            + (5 * (cell["correlation"] - correlation)) ** 2
            + (5 * (cell["share"] - share)) ** 2
        )

    near = min(grid, key=apart)
    if near["coverage"] >= LOW:
        return None
    return (
        f"Caution: in simulated audits like this one ({near['prompts']} prompts x {near['images']} "
        f"images, {near['groups']} groups, correlation {near['correlation']:g}, share "
        f"{near['share']:g}) the corrected 95 % interval held the truth in {near['coverage']:.1%}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/simulated-audits.json`."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="koala-nb evaluate audits", description=__doc__)
    parser.add_argument("--audits", type=at_least(1), default=2000, help="simulated audits a cell")
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    cells: list[dict[str, Any]] = []
    alarms: list[dict[str, Any]] = []
    grid = list(product(DESIGNS, GROUPS, CORRELATIONS, SHARES))
    for number, (design, k, correlation, share) in enumerate(tqdm(grid, "coverage")):
        cells += coverage(design, k, correlation, share, options.audits, seed=number)
    families = list(product((0.1, 0.5, 0.8), (0.0, 0.05), CORRELATIONS))
    for number, (reference, unsure, correlation) in enumerate(tqdm(families, "false alarms")):
        alarms += false_alarms(reference, unsure, correlation, options.audits, 1000 + number)
    result = {
        "command": f"koala-nb evaluate audits --audits {options.audits}",
        "versions": versions(),
        "nominal": 0.95,
        "labels a class": LABELS,
        "scorer right": RIGHT,
        "below": [c for c in cells if c["coverage"] < LOW and c["interval"] != "uncorrected"],
        "cells": cells,
        "false alarms": alarms,
    }
    folder = options.out or data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    print(write_json(folder / "simulated-audits.json", result))
    return 0
