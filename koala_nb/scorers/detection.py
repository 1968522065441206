"""What is asked of an image and what is found in it: items, detections and their boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the image's sides
SAME_PLACE = 0.5  # boxes of one label that overlap more are one object
MOST_ITEMS = 4
ITEM = re.compile(r"(\d+) ([^\[\]]+?)(?: \[(\w+)\])?")


class Item(NamedTuple):
    """One entry of a prompt's `asks`: how many, of what, in which colour."""

    number: int
    label: str
    color: str | None = None


def items_of(asks: str) -> list[Item]:
    """Return the entries of "1 circle [red]; 2 koala".

    ValueError for another form or more than four entries.
    """
    found = [ITEM.fullmatch(part.strip()) for part in asks.split(";")]
    if not all(found) or len(found) > MOST_ITEMS:
        raise ValueError(
            f"asks is {asks!r}: give 1 to 4 entries such as '2 koala; 1 circle [red]'."
        )
    return [Item(int(m[1]), m[2], m[3]) for m in found if m]


@dataclass(frozen=True)
class Detection:
    """One object found: what, how surely (0 to 1), where, and what else the detector read of it."""

    label: str
    score: float
    box: Box
    color: str | None = None
    style: str | None = None


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over the smaller one's area, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(area(one), area(other))


def area(box: Box) -> float:
    """Return a box's share of the image."""
    return max(box[2] - box[0], 1e-9) * max(box[3] - box[1], 1e-9)


def intersection_over_union(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union, 0 to 1."""
    shared = overlap(one, other) * min(area(one), area(other))
    return shared / (area(one) + area(other) - shared)


def non_maximum(found: Sequence[Detection], limit: float = SAME_PLACE) -> list[Detection]:
    """Return the detections, best first, without those of the same label at the same place."""
    kept: list[Detection] = []
    for new in sorted(found, key=lambda d: -d.score):
        same = [d for d in kept if d.label == new.label]
        if all(intersection_over_union(new.box, d.box) < limit for d in same):
            kept.append(new)
    return kept
