"""Simulated audits of known truth, and what thousands of them say of an audit like a given one.

The grids are simulated by `studies.coverage` and `studies.audits`; their cells (prompts, images a
prompt, groups, correlation, share -> coverage) come in as plain dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from koala_nb.stats import check_arguments, misclassification, trends
from koala_nb.stats.double_sampling import DoubleSample, double_sample, double_sampled_pvalues
from koala_nb.stats.estimates import Design, Draws, Values, cluster_totals, finite
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    import pandas as pd

COVERAGE_BAR = 0.93  # a 95 % interval that holds the truth less often is warned of
RIGHT = 0.9  # of each class's images are read rightly by a simulated scorer
AUDITS, POPULATIONS = 400, 10  # simulated for a claim's power, and so many together
Cell = Mapping[str, Any]


class SimulatedAudit(NamedTuple):
    """One population's images: what was read, of which prompt, and what is true."""

    read: list[str]
    clusters: np.ndarray
    true: list[str]


def clustered_hits(
    rng: np.random.Generator,
    share: float | np.ndarray,
    prompts: Draws,
    images: Draws,
    correlation: float,
) -> np.ndarray:
    """Return each prompt's hits of so many images; shares of prompts scatter as beta does."""
    shares = finite(np.atleast_1d(share), "clustered_hits")
    if len(shares) not in (1, prompts):
        raise ValueError(f"clustered_hits: {len(shares)} shares do not fit {prompts} prompts.")
    mean = np.broadcast_to(shares, prompts)
    inside = (0 < mean) & (mean < 1) if correlation else (0 <= mean) & (mean <= 1)
    if not (inside.all() and 0 <= correlation < 1):
        raise ValueError(f"clustered_hits: no share {share} has a correlation of {correlation}.")
    if correlation:
        spread = 1 / correlation - 1
        mean = rng.beta(mean * spread, (1 - mean) * spread)
    return rng.binomial(images, mean)


def simulate_audit(
    rng: np.random.Generator,
    shares: np.ndarray,
    scorer: np.ndarray,
    names: Sequence[str],
    design: Design = (10, 10),
    correlation: float = 0.0,
) -> SimulatedAudit:
    """Return one audit of prompts x images, read by a scorer that errs.

    shares: of the k classes; scorer: (k, k), how each true class (row) is read; images of a prompt
    are alike by Dirichlet shares of the prompt.
    """
    prompts, images = design
    scorer, shares = misclassification.rates_table(scorer), finite(shares, "simulate_audit")
    k = len(shares)
    rows = [shares, *scorer]
    if np.shape(scorer) != (k, k) or not all(min(r) >= 0 and np.isclose(sum(r), 1) for r in rows):
        raise ValueError(f"simulate_audit: {k} shares, and rows of a {k} x {k} scorer, sum to 1.")
    if len(set(names)) != k or not 0 <= correlation <= 1:
        raise ValueError(
            f"simulate_audit: give {k} different names, and a correlation from 0 to 1."
        )
    by_prompt = np.broadcast_to(shares, (prompts, k))
    if correlation:
        by_prompt = rng.dirichlet(np.maximum(shares * (1 / correlation - 1), 1e-9), prompts)
    true = np.concatenate([rng.choice(k, images, p=p / p.sum()) for p in by_prompt])
    steps = scorer.cumsum(1)
    read = (rng.random(len(true))[:, None] > steps[true]).sum(1).clip(max=k - 1)
    clusters = np.repeat(np.arange(prompts), images)
    return SimulatedAudit([names[i] for i in read], clusters, [names[i] for i in true])


def simulate_labels(
    rng: np.random.Generator, audit: SimulatedAudit, names: Sequence[str], labels: int
) -> DoubleSample:
    """Return an audit's images with so many of them labelled rightly, at random."""
    chosen = set(rng.permutation(len(audit.true))[:labels].tolist())
    known = [name if i in chosen else None for i, name in enumerate(audit.true)]
    return double_sample(audit.read, audit.clusters, names, known)


def scorer_rates(k: int, right: float = RIGHT) -> np.ndarray:
    """Return how a scorer reads each of k classes, (k, k), rows the truth: right, or any other."""
    table = np.full((k, k), (1 - right) / (k - 1))
    np.fill_diagonal(table, right)
    return table


def claim_power(
    claims: Draws,
    design: Design,
    correlation: float,
    share: float,
    labels: int,
    unsure: float = 0.0,
    concentration: float = 0.0,
) -> float:
    """Return how often "not one half, whatever the unsure are" survives Holm's first step.

    claims: how many there are; share: of the first of two classes, among all images, of which
    `unsure` show neither for sure; labels: of each population's images, at random. The reader is
    right in 90 % of the images; with a concentration it errs in each population in its own way.
    """
    if not (0 <= share <= 1 - unsure <= 1 and 0 <= concentration < np.inf):
        raise ValueError(f"claim_power: {share}, {unsure}, {concentration} are no such audits.")
    rng, k = np.random.default_rng(0), 3 if unsure else 2
    names, shares = ("first", "second", UNSURE)[:k], np.array([share, 1 - share - unsure, unsure])
    p_values: list[float] = []
    while len(p_values) < AUDITS:
        tables = [scorer_rates(k)] * POPULATIONS
        if concentration:  # each population is read in its own way
            tables = [np.stack([rng.dirichlet(r * concentration) for r in t]) for t in tables]
        audits = [
            simulate_audit(rng, shares[:k], table, names, design, correlation) for table in tables
        ]
        samples = [simulate_labels(rng, audit, names, labels) for audit in audits]
        p_values += double_sampled_pvalues(samples, "first", 0.5)
    return float(np.mean(np.array(p_values) * claims <= 0.05))


def audit_design(hits: Values, clusters: Values) -> dict[str, float]:
    """Return what a simulated cell is looked up by: prompts, images, correlation, share."""
    sums, sizes = cluster_totals(hits, clusters)
    return {
        "prompts": len(sizes),
        "images": sizes.mean(),
        "correlation": trends.intraclass_correlation(hits, clusters),
        "share": sums.sum() / sizes.sum(),
    }


def _distance(cell: Cell, design: Mapping[str, float]) -> float:
    """Return how far a cell is from a design: counts by their logarithm, shares five times."""

    def scaled(name: str, value: float) -> float:
        return 5 * value if name in ("correlation", "share") else np.log(float(value))

    return sum((scaled(k, cell[k]) - scaled(k, v)) ** 2 for k, v in design.items())


def coverage_warning(cells: Iterable[Cell], interval: str, **design: float) -> str | None:
    """Return a sentence where an interval of such a design held the truth too rarely, else None.

    interval: that of the cells, such as "clustered_share"; design: as of `audit_design`, or a part.
    """
    here = _cells_of(cells, interval)
    counts = {"prompts", "images", "groups"}
    for name, value in design.items():
        if not (value > 0 if name in counts else 0 <= value <= 1) or any(
            name not in c for c in here
        ):
            raise ValueError(f"coverage_warning: {name} {value} is no part of a simulated design.")
    near = min(here, key=lambda cell: _distance(cell, design), default=None)
    if near is None or near["coverage"] >= COVERAGE_BAR:
        return None
    groups = f"{near['groups']} groups, " if "groups" in near else ""
    return (
        f"Caution: in simulated audits like this one ({near['prompts']} prompts x {near['images']} "
        f"images, {groups}correlation {near['correlation']:g}, share {near['share']:g}) the "
        f"95 % interval held the truth in {near['coverage']:.1%}."
    )


def coverage_by_design(cells: Iterable[Cell], interval: str) -> pd.DataFrame:
    """Return an interval's coverage in the cells: one row per design, one column per true share."""
    import pandas as pd

    frame = pd.DataFrame(_cells_of(cells, interval))
    if frame.empty:
        raise ValueError(f"coverage_by_design: no cell is of {interval!r}.")
    design = [k for k in ("prompts", "images", "correlation") if k in frame]
    return frame.pivot_table(index=design, columns="share", values="coverage")


def _cells_of(cells: Iterable[Cell], interval: str) -> list[Cell]:
    try:
        return [cell for cell in cells if cell["interval"] == interval]
    except (TypeError, KeyError):
        raise ValueError("Give the cells of a grid of `studies.coverage`.") from None


check_arguments(globals())
