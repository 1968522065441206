"""What a prompt asks, taken apart into atoms, and which of them an image holds.

An atom is one thing that can be right or wrong by itself: an object, a count, a colour, a relation,
a size, a style, a background, an absence; GenEval 2 (arXiv 2512.16853) scores prompts by them.
`correct` is GenEval's rule (arXiv 2310.11513) for the six tasks that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from koala_nb.scorers.detection import MOST_ITEMS, Box, Detection, Item, items_of
from koala_nb.scorers.registry import Record

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


def queries_of(prompt: Record) -> list[str]:
    """Return the labels that a detector has to look for, each once."""
    labels = [item.label for item in items_of(prompt["asks"])]
    return list(dict.fromkeys([*labels, *([prompt["absent"]] if prompt.get("absent") else [])]))


def relations(one: Box, other: Box) -> set[str]:
    """Return where the first box is, relative to the second, by GenEval's rule.

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
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, true in holds.items() if true}


def size_of(box: Box) -> str:
    """Return "small", "medium" or "large" by the box's longer side."""
    side = max(box[2] - box[0], box[3] - box[1])
    return "small" if side < SMALL else "large" if side >= LARGE else "medium"


def score_atoms(
    prompt: Record, detections: Sequence[Detection], background: str | None = None
) -> Record:
    """Return an image's row: atoms right or not (None: not asked), and what is over or missing.

    `prompt` is a row of a prompt set: task, asks, relation, size, background, style, absent.
    `correct` is GenEval's verdict, `all_right` that of all atoms, `leak` whether one item shows in
    the colour of another.
    """
    items = items_of(prompt["asks"])
    best = sorted(detections, key=lambda d: -d.score)
    matches = [[d for d in best if d.label == item.label] for item in items]
    row: Record = dict.fromkeys(ATOMS)
    for i, item in enumerate(items):
        earlier = sum(other.label == item.label for other in items[:i])
        row[f"item_{i + 1}"] = len(matches[i]) > earlier
        if item.color:
            row[f"color_{i + 1}"] = sum(d.color == item.color for d in matches[i]) >= item.number
    if any(item.number > 1 for item in items):
        pairs = zip(matches, items)
        row["count_right"] = all(len(m) == i.number for m, i in pairs if i.number > 1)
    row |= _single(prompt, items, matches, best, background)
    answers = [value for value in row.values() if value is not None]
    wanted, shown = Counter[str](), Counter(d.label for d in detections)
    for item in items:
        wanted[item.label] += item.number
    return row | {
        "correct": _correct(prompt["task"], row),
        "all_right": all(answers),
        "right": sum(answers),
        "missing": (wanted - shown).total(),
        "extra": (shown - wanted).total(),
        "leak": _leak(items, matches),
        "found": "; ".join(f"{d.color} {d.label}" if d.color else d.label for d in best),
    }


def _single(
    prompt: Record,
    items: Sequence[Item],
    matches: Sequence[Sequence[Detection]],
    best: Sequence[Detection],
    background: str | None,
) -> dict[str, bool | None]:
    shown = [d for group in matches for d in group]
    places = [
        next((d.box for d in group if d.color == item.color), group[0].box if group else None)
        for group, item in zip(matches, items)
    ]
    first, second = (*places, None)[:2]
    related = relations(first, second) if first and second else set()
    answers = {
        "relation": prompt.get("relation") in related,
        "size": first is not None and size_of(first) == prompt.get("size"),
        "background": background == prompt.get("background"),
        "style": bool(shown) and all(d.style == prompt.get("style") for d in shown),
        "absent": all(d.label != prompt.get("absent") for d in best),
    }
    return {f"{name}_right": answers[name] if prompt.get(name) else None for name in SINGLE}


def _correct(task: str, row: Record) -> bool | None:
    if task not in TASKS:
        return None
    # GenEval asks of two objects that both are there, whatever the sentence says of their places.
    rest = {"counting": ("count_right",), "position": ("relation_right",)}.get(task, ())
    answers = [row[a] for a in ATOMS if a.startswith(("item", "color")) or a in rest]
    return all(value for value in answers if value is not None)


def _leak(items: Sequence[Item], matches: Sequence[Sequence[Detection]]) -> bool | None:
    if sum(item.color is not None for item in items) < 2:
        return None
    pairs = {(item.label, item.color) for item in items}
    colors = {item.color for item in items}
    detections = [d for group in matches for d in group]
    return any(d.color in colors and (d.label, d.color) not in pairs for d in detections)
