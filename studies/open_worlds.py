"""What the probe of open questions finds, in tables of the emoji world's subjects (3 minutes).

    python -m studies.open_worlds        # writes data/results/simulated-open.json

No image is drawn. What training planted (backgrounds, styles, presentations, skin tones) is read
by a scorer that is right in 90 % of the images, at the full strength of the planted shares, at half
of it, and in balanced worlds, where every claim is false. A tie is a value whose planted share lies
.25 or more above an even one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_file
from koala_nb.probes import get, open_probe
from koala_nb.stats.estimates import share_interval
from koala_nb.stats.simulation import RIGHT
from studies import simulating

STYLES = ("noto", "fluent", "twemoji")
STRENGTHS = (0.0, 0.5, 1.0)  # of the planted shares; 0: all worlds are balanced
BEYOND = 0.25  # of an even share
AXES = ("painted", "style_read", "presentation_read", "tone_read")
Shares = dict[str, dict[str, dict[str, float]]]  # axis -> subject -> value -> share


def planted() -> Shares:
    """Return the planted share of every value, by axis and subject of the probe's prompts."""
    truth = json.loads(data_file("world/planted.json").read_text("utf-8"))
    shares: Shares = {axis: {} for axis in AXES}
    for prompt in get("open").prompts("emoji-world").to_dict("records"):
        subject = prompt["subject"]
        if prompt["kind"] == "person":
            person = truth["occupations"][subject]
            women = person["women"]
            shares["presentation_read"][subject] = {"woman": women, "man": 1 - women}
            shares["tone_read"][subject] = person["tones"]
            continue
        for axis, values, key in zip(AXES, (truth["backgrounds"], STYLES), ("background", "style")):
            tied, top = truth[f"tied_{key}"].get(subject), truth["tied_share"]
            others = (1 - top) / (len(values) - 1) if tied else 1 / len(values)
            shares[axis][subject] = {v: top if v == tied else others for v in values}
    return shares


def world(rng: np.random.Generator, shares: Shares, strength: float, images: int) -> pd.DataFrame:
    """Return what is read in so many images of each subject: one row an image, as of the probe."""
    parts: dict[str, dict[str, Any]] = {}
    for axis, subjects in shares.items():
        for subject, by_value in subjects.items():
            values = np.array(list(by_value))
            p = strength * np.array(list(by_value.values())) + (1 - strength) / len(values)
            true = rng.choice(len(values), images, p=p / p.sum())
            wrong = (true + rng.integers(1, len(values), images)) % len(values)
            read = values[np.where(rng.random(images) < RIGHT, true, wrong)]
            kind = "person" if axis in AXES[2:] else "thing"
            parts.setdefault(subject, {"subject": subject, "kind": kind})[axis] = read
    return pd.concat([pd.DataFrame(part) for part in parts.values()], ignore_index=True)


def ties(shares: Shares) -> set[tuple[str, str, str]]:
    """Return axis, subject and value of everything that is planted beyond an even share."""
    return {
        (axis, subject, value)
        for axis, subjects in shares.items()
        for subject, by_value in subjects.items()
        for value, share in by_value.items()
        if share >= 1 / len(by_value) + BEYOND - 1e-9
    }


def claimed(table: pd.DataFrame) -> set[tuple[str, str, str]]:
    """Return what the probe claims of a world."""
    rows = open_probe.comparisons(table)
    rows = rows[rows.p <= open_probe.LEVEL]
    return {(r.axis.split(" ")[1], r.subject, r.value) for r in rows.itertuples()}


def cells(worlds: int, images: int) -> Iterator[dict[str, Any]]:
    """Yield, by strength, the share of ties that are found, by axis; of balanced worlds, claims."""
    shares = planted()
    known = ties(shares)
    for number, strength in enumerate(STRENGTHS):
        rng = np.random.default_rng(number)
        found = [claimed(world(rng, shares, strength, images)) for _ in range(worlds)]
        if not strength:
            share = share_interval(sum(map(bool, found)), worlds)
            yield {"strength": strength, "measure": "worlds with a claim", **share._asdict()}
            continue
        for axis in AXES:
            here = {tie for tie in known if tie[0] == axis}
            hits = sum(len(claims & here) for claims in found)
            share = share_interval(hits, worlds * len(here))
            yield {"strength": strength, "measure": axis, "ties": len(here), **share._asdict()}


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate all worlds and write `data/results/simulated-open.json`."""
    options = simulating.parse("open_worlds", __doc__, "worlds", 200, argv)
    images = get("open").images
    result: dict[str, Any] = {"scorer right": RIGHT, "images of a subject": images}
    result["cells"] = list(cells(options.worlds, images))
    return simulating.write(options, "simulated-open.json", result)


if __name__ == "__main__":
    raise SystemExit(main())
