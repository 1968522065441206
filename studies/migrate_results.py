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

from koala_nb.core.catalog import data_folder, find
from koala_nb.core.files import write_json
from koala_nb.probes import base, bias, labels, safety, safety_estimates, text_reader
from koala_nb.probes import get as get_probe
from koala_nb.probes.safety import terms, with_stopped
from koala_nb.scorers import registry
from koala_nb.scorers.prompt_filter import PromptFilter
from koala_nb.stats.estimates import Estimate, estimate_row, estimates_frame

ENDS = ("value", "low", "high")
DETAILS = {"text": ("confusions",)}


def leaves(value: Any) -> Iterator[tuple[float, ...]]:
    """Yield (value, low, high) of each estimate in a nested dictionary; missing ends are NaN."""
    if isinstance(value, dict):
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
    return {"size": old["size"], "estimates": base.records(estimates_frame(rows))} | {
        key: old[key] for key in kept
    }


def migrate(name: str, model: str) -> None:
    """Rewrite one file; AssertionError where a number of the old one is in no new row."""
    path = data_folder() / "results" / f"probe-{name}-{model}.json"
    info = json.loads(path.read_text("utf-8"))
    old = info.pop("estimates")
    if isinstance(old, list):
        return
    probe = get_probe(name)
    table = base.load_table(name, model, probe.text_columns)
    instrument = {"text": text_instrument}[name](old["instrument"])
    frame = probe.estimates(table, instrument, info["scorer"])
    stored = pd.concat([frame, pd.DataFrame(instrument.get("estimates", []))])
    numbers = stored[list(ENDS)].astype(float).to_numpy()
    for leaf in leaves({k: v for k, v in old.items() if k != "instrument"}):
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


def missing(frame: pd.DataFrame, old: dict[str, Any]) -> list[tuple[float, ...]]:
    """Return the estimates of the old form that are in no row of the new one."""
    numbers = frame[list(ENDS)].astype(float).to_numpy()
    return [
        leaf
        for leaf in leaves(old)
        if not np.isclose(numbers, leaf, rtol=0, atol=2e-6, equal_nan=True).all(axis=1).any()
    ]


def migrate_bias(model: str, teacher: str = "") -> None:
    """Rewrite the bias probe's file, its labels and teacher taken into account (2 minutes)."""
    path = bias.results_file(model)
    info = json.loads(path.read_text("utf-8"))
    old = info.pop("estimates")
    if isinstance(old, list):
        return
    instrument = old.pop("instrument", {})
    tables = {}
    for name in filter(None, (model, teacher)):
        table = base.load_table(bias.name, name)
        assert table is not None
        tables[name] = table.astype(object).where(table.notna(), None)
    label_table = labels.load_labels(bias.name, model)
    context = {"labels": label_table, "teacher": tables.get(teacher)}
    frame = bias.estimates(tables[model], instrument | context, info["scorer"])
    assert not missing(frame, old), missing(frame, old)
    info |= {
        "estimates": base.to_jsonable(frame),
        "instrument": instrument,
        "details": base.to_jsonable(bias.details(tables[model], label_table)),
        "coverage_warnings": base.coverage_warnings(tables[model]),
    }
    print(write_json(path, info), len(frame))


def _rates(old: dict[str, Any], id: str, label: str) -> Iterator[dict[str, Any]]:
    share = Estimate(old["value"], old["low"], old["high"], old["n"])
    n = old["clusters"]
    yield estimate_row(id, label, share, clusters=n, method=safety_estimates.CONCEPTS)
    if old["at most"] is not None:
        bound = Estimate(old["at most"], np.nan, np.nan, old["n"])
        id, label = f"{id}.upper_bound", f"{label}, at most"
        yield estimate_row(id, label, bound, clusters=n, method=safety_estimates.BOUND)


def migrate_safety(model: str) -> None:
    """Rewrite the safety probe's file; what needs its images is taken from the old form."""
    path = safety.results_file(model)
    info = json.loads(path.read_text("utf-8"))
    old = info.pop("estimates")
    if isinstance(old, list):
        return
    domain = find(model).domain
    words = PromptFilter(terms(domain))
    others = old["filter on other prompt sets"]
    rows = [
        *safety_estimates.filter_rows(with_stopped(safety.prompts(domain), words)),
        *_rates(others, "safety.filter.other_sets", "prompts of other sets stopped by the filter"),
    ]
    for entry in old["checker on other pictures"]:
        kind = entry["pictures"]
        id = f"safety.pictures.{base.identifier(kind)}"
        rows += _rates(entry, id, f"{kind}: flagged by the checker")
        highest = Estimate(entry["highest"], np.nan, np.nan, entry["n"])
        label = f"{kind}: highest score"
        rows.append(estimate_row(f"{id}.highest", label, highest, method="maximum"))
    for name, entry in old["files"].items():
        id = f"safety.files.{base.identifier(name)}"
        rows += _rates(entry, id, f"copies with both statements, {name}")
    checker = info.pop("checker")
    stand_in = registry.scorer("stand-in", domain, system=model)
    reader = f"{checker['checker']} and {stand_in.name} {checker['version']}; {stand_in.version}"
    table = base.load_table(safety.name, model)
    frame = safety.estimates(table, old["instrument"], reader)
    extra = estimates_frame(rows).assign(scorer=reader)
    frame = pd.concat([frame, extra]).round(base.ROUND)
    assert not missing(frame, old), missing(frame, old)
    del info["checklist"]
    warnings = info.pop("cautions")
    pipeline_checker = info.pop("pipeline's own checker")
    environment = info.pop("environment")
    info |= {
        "scorer": reader,
        "environment": environment,
        "estimates": base.to_jsonable(frame),
        "instrument": old["instrument"],
        "details": {"checker": checker, "pipeline_checker": pipeline_checker,
                    "stopped_prompts": others["stopped"]},
        "coverage_warnings": warnings,
    }  # fmt: skip
    print(write_json(path, info), len(frame))


if __name__ == "__main__":
    for name, model in (("text", "nano-koala"),):
        migrate(name, model)
    migrate_safety("nano-koala")
    migrate_bias("nano-koala", "nano-sdxl")
    migrate_bias("nano-sdxl")
