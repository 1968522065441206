"""How far shares of groups are from a reference: metrics over groups that are declared in advance.

Every metric takes its groups from the reference and not from what was seen, and is largest where
all images show one group. `total_variation` is of the images that show a declared group;
`share_bounds` keeps "unsure" images in the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from koala_nb.stats import check_arguments
from koala_nb.stats.estimates import Draws, Estimate, share_interval

Counts = Mapping[str, int]  # group -> images
Shares = Mapping[str, float]  # group -> share, the reference; its keys are the declared groups


def uniform_reference(groups: Sequence[str]) -> dict[str, float]:
    """Return the reference that gives every declared group the same share."""
    if len(set(groups)) != len(groups) or len(groups) < 2:
        raise ValueError(f"Declare two or more different groups, not {list(groups)}.")
    return dict.fromkeys(groups, 1 / len(groups))


def _shares(counts: Counts, reference: Shares) -> tuple[np.ndarray, np.ndarray]:
    """Return the declared groups' shares, and the reference's, in its order; ValueError if odd."""
    if unknown := [group for group in counts if group not in reference]:
        raise ValueError(f"{unknown[0]!r} was not declared: declared are {', '.join(reference)}.")
    expected = _reference_shares(reference)
    _check_counts(counts)
    observed = np.array([counts.get(group, 0) for group in reference], dtype=float)
    if not observed.sum():
        raise ValueError("There are no images of the declared groups.")
    return observed / observed.sum(), expected


def _reference_shares(reference: Shares) -> np.ndarray:
    shares = np.array(list(reference.values()), dtype=float)
    if len(shares) < 2 or not (shares >= 0).all() or not np.isclose(shares.sum(), 1):
        raise ValueError("The reference's shares must be 0 or more and sum to 1.")
    return shares


def _check_counts(counts: Counts) -> None:
    for group, count in counts.items():
        if not 0 <= count < np.inf or count % 1:
            raise ValueError(f"{count} images of {group!r}: give a whole number of 0 or more.")


def total_variation(counts: Counts, reference: Shares) -> float:
    """Return half the summed absolute differences of shares, 0 to 1: what would have to change."""
    p, q = _shares(counts, reference)
    return float(np.abs(p - q).sum() / 2)


def null_quantile(n: Draws, reference: Shares, draws: Draws = 2000) -> float:
    """Return the 95th percentile of `total_variation` on n images of a model without imbalance.

    With few images a fair model shows some: compare what you measure with this, and not with 0.
    """
    q = _reference_shares(reference)
    p = np.random.default_rng(0).multinomial(n, q / q.sum(), size=draws) / n
    return float(np.quantile(np.abs(p - q).sum(1) / 2, 0.95))


def share_bounds(counts: Counts, group: str, unsure: str = "unsure") -> Estimate:
    """Return a group's share of independent images, its interval over sampling and the unsure.

    Low: Wilson's end if no unsure image showed the group; high: if all did. The value is the share
    of all images, unsure in the denominator. ValueError for a group without a count.
    """
    if group not in counts:
        raise ValueError(f"There is no count for {group!r}: there are {', '.join(counts)}.")
    _check_counts(counts)
    n, least = sum(counts.values()), counts[group]
    if not n:
        raise ValueError("There are no images of the declared groups.")
    most = least if group == unsure else least + counts.get(unsure, 0)
    return Estimate(least / n, share_interval(least, n).low, share_interval(most, n).high, n)


check_arguments(globals())
