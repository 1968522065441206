"""Stored results of probes, once: from nested dictionaries to one tidy frame of estimates with ids.

`python studies/migrate_results.py` (seconds) reads `data/results/probe-*.json` in the old form,
makes the estimates anew from the table beside each, and stops where an old number is in no new row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import write_json
from koala_nb.probes import base, text_reader
from koala_nb.probes import get as get_probe
from koala_nb.probes.composition import tidy_card
from koala_nb.probes.frequency import reader_estimates
from koala_nb.stats.estimates import Estimate, estimate_row, estimates_frame
from koala_nb.stats.trends import Trend

ENDS = ("value", "low", "high")


def leaves(value: Any) -> Iterator[tuple[float, ...]]:
    """Yield (value, low, high) of each estimate in a nested dictionary; missing ends are NaN."""
    if isinstance(value, dict):
        if "difference" in value and "low" in value:
            value = {"value": value["difference"], **value}
        if set(ENDS) <= set(value) and value["value"] is not None:
            yield tuple(np.nan if value[k] is None else float(value[k]) for k in ENDS)
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)


def text_instrument(old: dict[str, Any]) -> dict[str, Any]:
    """Return the text reader's card with its shares as tidy estimates."""
    rows = []
    for row in old["card"] + old["card_by_length"]:
        part = f"length.{base.identifier(row['letters'])}." if "letters" in row else ""
        of = f" of {row['letters']} characters" if "letters" in row else ""
        rows.append(estimate_row(
            f"text.reader.{base.identifier(row['kind'])}.{part}exact_folded",
            f"{row['kind']} boards{of} read as asked",
            Estimate(row["value"], row["low"], row["high"], row["n"]), clusters=row["prompts"],
            method=base.SHARE,
        ))  # fmt: skip
    names = {f"text.reader.{base.identifier(kind)}.exact_folded": kind
             for kind in (text_reader.FONT, text_reader.VAE, *text_reader.BROKEN)}  # fmt: skip
    assert set(names) <= {row["id"] for row in rows}
    kept = ("size", "legible", "vae_confusions", "errors_by_length", "calibration")
    return {"size": old["size"], "estimates": base.to_jsonable(estimates_frame(rows))} | {
        key: old[key] for key in kept
    }


def frequency_instrument(old: dict[str, Any]) -> dict[str, Any]:
    """Return the sprite reader's card, its bins, and its trend as tidy estimates."""
    probe, curve = get_probe("frequency"), old["instrument's own trend"]
    rows = probe.binned(probe.prompts("emoji-world"))
    parts = []
    for key in ("slope", "half"):
        value, low, high = (np.nan if curve[key][k] is None else curve[key][k] for k in ENDS)
        parts.append(Estimate(value, low, high, curve[key]["n"]))
    card = old["instrument"] | {"bins": dict(zip(rows.concept, rows.bin))}
    return card | {"estimates": reader_estimates(card, Trend(curve["intercept"], *parts))}


def instrument_of(name: str, old: dict[str, Any]) -> dict[str, Any]:
    """Return a probe's instrument card in the new form."""
    if name == "text":
        return text_instrument(old["instrument"])
    if name == "composition":
        return tidy_card(old["instrument card"])
    return frequency_instrument(old) if "instrument" in old else {}


def migrate(name: str, model: str) -> None:
    """Rewrite one file; AssertionError where a number of the old one is in no new row."""
    path = data_folder() / "results" / f"probe-{name}-{model}.json"
    info = json.loads(path.read_text("utf-8"))
    old = info.pop("estimates")
    if isinstance(old, list):
        return
    probe = get_probe(name)
    table = base.load_table(name, model, probe.text_columns)
    instrument = instrument_of(name, old)
    frame = probe.estimates(table, instrument, info["scorer"])
    stored = pd.concat([frame, pd.DataFrame(instrument.get("estimates", []))])
    numbers = stored[list(ENDS)].astype(float).to_numpy()
    for leaf in leaves({k: v for k, v in old.items() if k != "instrument"}):
        if leaf[0] == leaf[1] == leaf[2]:  # no spread: such ends are left out now
            leaf = (leaf[0], np.nan, np.nan)
        near = np.isclose(numbers, leaf, rtol=0, atol=2e-6, equal_nan=True).all(axis=1)
        assert near.any(), (name, model, leaf)
    warnings = info.pop("cautions", {})
    info |= {
        "estimates": base.to_jsonable(frame),
        "instrument": base.to_jsonable(instrument),
        "details": base.to_jsonable(probe.details(table)),
        "coverage_warnings": warnings,
    }
    print(write_json(path, info), len(frame))


if __name__ == "__main__":
    for path in sorted((data_folder() / "results").glob("probe-*.json")):
        _, probe_name, system = path.stem.split("-", 2)
        if probe_name in ("text", "composition", "frequency"):
            migrate(probe_name, system)
