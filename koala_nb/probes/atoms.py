"""What a prompt asks, taken apart into atoms, and which of them an image holds.

An atom is one thing that can be right or wrong by itself: an object, a count, a colour, a relation,
a size, a style, a background, an absence; GenEval 2 (arXiv 2512.16853) scores prompts by them.
`correct` is GenEval's rule (arXiv 2310.11513) for the six tasks that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from koala_nb.scorers.detection import MOST_ITEMS, Box, Detection, Item, items_of

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
MARGIN = 0.1  # of both boxes' sides: centres nearer than this are in no relation (GenEval)
SMALL, LARGE = 0.54, 0.75  # longer side of a box over the image's: below, and from here on
SINGLE = ("relation", "size", "background", "style", "absent")  # one atom each, where asked
ATOMS = (
    *(f"item_{i}" for i in range(1, MOST_ITEMS + 1)),
    *(f"color_{i}" for i in range(1, MOST_ITEMS + 1)),
    "count_right",
    *(f"{name}_right" for name in SINGLE),
)


def queries_of(prompt: Mapping[str, Any]) -> list[str]:
    """Return the labels that a detector has to look for, each once."""
    labels = [item.label for item in items_of(prompt["asks"])]
    return list(dict.fromkeys([*labels, *([prompt["absent"]] if prompt.get("absent") else [])]))


def relations(one: Box, other: Box) -> set[str]:
    """Return where the first box is, seen from the second, by GenEval's rule.

    The offset of the centres, less a tenth of both boxes' sides, must be more than half of the
    offset's length along an axis; so none, one or two relations hold.
    """
    first, second = np.reshape(one, (2, 2)), np.reshape(other, (2, 2))
    offset = first.mean(0) - second.mean(0)
    sides = np.diff(first, axis=0)[0] + np.diff(second, axis=0)[0]
    rest = np.maximum(np.abs(offset) - MARGIN * sides, 0) * np.sign(offset)
    if np.all(np.abs(rest) < 1e-3):
        return set()
    x, y = rest / np.linalg.norm(offset)
    told = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in told.items() if holds}


def size_of(box: Box) -> str:
    """Return "small", "medium" or "large" by the box's longer side."""
    side = max(box[2] - box[0], box[3] - box[1])
    return "small" if side < SMALL else "large" if side >= LARGE else "medium"


def judge(
    prompt: Mapping[str, Any], found: Sequence[Detection], background: str | None = None
) -> dict[str, Any]:
    """Return an image's row: atoms right or not (None: not asked), and what is over or missing.

    `prompt` is a row of a prompt set: task, asks, relation, size, background, style, absent.
    `correct` is GenEval's verdict, `all_right` that of all atoms, `leak` whether one item shows in
    the colour of another.
    """
    items = items_of(prompt["asks"])
    best = sorted(found, key=lambda d: -d.score)
    own = [[d for d in best if d.label == item.label] for item in items]
    row: dict[str, Any] = dict.fromkeys(ATOMS)
    for i, item in enumerate(items):
        earlier = sum(other.label == item.label for other in items[:i])
        row[f"item_{i + 1}"] = len(own[i]) > earlier
        if item.color:
            row[f"color_{i + 1}"] = _colored(own[i], item)
    if any(item.number > 1 for item in items):
        row["count_right"] = all(len(o) == i.number for o, i in zip(own, items) if i.number > 1)
    row |= _single(prompt, items, own, best, background)
    asked = [value for value in row.values() if value is not None]
    wanted, seen = Counter[str](), Counter(d.label for d in found)
    for item in items:
        wanted[item.label] += item.number
    return row | {
        "correct": _correct(prompt["task"], row),
        "all_right": all(asked),
        "right": sum(asked),
        "missing": (wanted - seen).total(),
        "extra": (seen - wanted).total(),
        "leak": _leak(items, own),
        "found": "; ".join(f"{d.color} {d.label}" if d.color else d.label for d in best),
    }


def _colored(own: Sequence[Detection], item: Item) -> bool:
    return sum(d.color == item.color for d in own) >= item.number


def _single(
    prompt: Mapping[str, Any],
    items: Sequence[Item],
    own: Sequence[Sequence[Detection]],
    best: Sequence[Detection],
    background: str | None,
) -> dict[str, bool | None]:
    asked = {name: prompt.get(name) for name in SINGLE}
    shown = [d for o in own for d in o]
    places = [
        next((d.box for d in o if d.color == i.color), o[0].box if o else None)
        for o, i in zip(own, items)
    ]
    related = len(places) > 1 and places[0] and places[1] and relations(places[0], places[1])
    answers = {
        "relation": asked["relation"] in (related or ()),
        "size": places[0] is not None and size_of(places[0]) == asked["size"],
        "background": background == asked["background"],
        "style": bool(shown) and all(d.style == asked["style"] for d in shown),
        "absent": all(d.label != asked["absent"] for d in best),
    }
    return {f"{n}_right": bool(answers[n]) if asked[n] else None for n in SINGLE}


def _correct(task: str, row: Mapping[str, Any]) -> bool | None:
    if task not in TASKS:
        return None
    # GenEval asks of two objects that both are there, whatever the sentence says of their places.
    rest = {"counting": ("count_right",), "position": ("relation_right",)}.get(task, ())
    asked = [row[a] for a in ATOMS if a.startswith(("item", "color")) or a in rest]
    return all(value for value in asked if value is not None)


def _leak(items: Sequence[Item], own: Sequence[Sequence[Detection]]) -> bool | None:
    if sum(item.color is not None for item in items) < 2:
        return None
    pairs = {(item.label, item.color) for item in items}
    colors = {item.color for item in items}
    return any(d.color in colors and (d.label, d.color) not in pairs for o in own for d in o)
