"""What lets somebody else stand by a report: another one beside it, hashes, a sign-off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb import probes
from koala_nb.core import files
from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record
from koala_nb.display.tables import format_interval, show_table
from koala_nb.probes.base import ROUND, Results, to_jsonable
from koala_nb.report import findings, sweep
from koala_nb.report import results as records
from koala_nb.report.page import fill_template, show_html
from koala_nb.scorers import instruments, registry
from koala_nb.stats import estimates as stats

if TYPE_CHECKING:
    from koala_nb.report.audit import Audit

MANIFEST = "MANIFEST.sha256"
AUTHORS_MODEL = "koala-lightning-700m"
NUMBERS = stats.Estimate._fields
NOT_EVIDENCE = ("index.html", "status.json", MANIFEST)  # written after it, or of the run itself


def read_other(folder: str | Path) -> records.Results:
    """Return the results of another report. ValueError where its folder holds none, or odd ones."""
    try:
        return records.read(Path(folder) / "results.json")
    except (OSError, ValueError) as error:
        text = str(error).rstrip(".")
        raise ValueError(f"No report to compare with in {folder}: {text}.") from None


def compare(key_figures: Record, images: pd.DataFrame, folder: str | Path) -> records.Comparison:
    """Return a report's key figures beside those of the report in a folder.

    images: `measures.IMAGE_COLUMNS`, one row per image and measure. Differences are of images
    that both drew of the same prompt and seed (`sweep.differences`), p by Holm over all figures.
    """
    other = read_other(folder)
    pairs: dict[str, Record] = {}
    if (Path(folder) / sweep.IMAGES).is_file():
        known = images[images.value.notna()].drop_duplicates(sweep.PAIR).astype({"seed": str})
        rows = sweep.differences(
            known.assign(value=known.value.astype(float)), sweep.read_images(Path(folder))
        )
        pairs = {row["measure"]: row for row in rows if row["n"]}
    tested = [name for name, row in pairs.items() if row["p"] is not None]
    holm = dict(zip(tested, stats.adjust_pvalues([pairs[name]["p"] for name in tested])))
    changes = {}
    ids = pd.Series([*dict.fromkeys([*key_figures, *other.key_figures])], dtype=str)
    for id in ids[~findings.is_coded(ids.to_frame("id"))]:  # strings alone tell of no model
        here = key_figures.get(id, {})
        there = other.key_figures[id].model_dump() if id in other.key_figures else {}
        pair = pairs.get(id, {})
        row: Record = {"label": here.get("label") or there["label"], "n": pair.get("n", 0)}
        for prefix, figure in {"": here, "other": there, "change": pair}.items():
            names = (prefix or "value", *(f"{prefix}_{end}".strip("_") for end in ("low", "high")))
            row |= {k: _rounded(figure.get(f)) for k, f in zip(names, ("value", "low", "high"))}
        changes[id] = row | {"p": _rounded(holm.get(id))}
    named = {"model": other.model, "settings": other.settings, "rules": other.rules}
    return records.Comparison.model_validate(named | {"changes": changes})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), ROUND)


def comparison_sentence(other: records.Comparison) -> str:
    """Return, in a sentence, in how many paired figures two reports differ."""
    paired = [c for c in other.changes.values() if c.p is not None]
    different = [c for c in paired if c.p <= findings.LEVEL]  # type: ignore[operator]
    beside = f"Beside the report on {other.model.system}, revision {other.model.revision}"
    if not paired:
        why = "images that share prompt and seed read alike, or are too few (same n and seeds help)"
        return f"{beside}, no difference is tested: {why}."
    changes = (format_interval(c.change, c.change_low, c.change_high) for c in different)
    names = ", ".join(f"{c.label} {text}, n {c.n:,}" for c, text in zip(different, changes))
    which = f"{len(different)} of {len(paired)} paired figures differ after Holm's correction"
    return f"{beside}, {which}{f': {names}' if different else ''}."


def show_comparison(audit: Audit) -> None:
    """Display this report's key figures beside the other's, and their paired differences."""
    if (other := audit.compared) is None:
        return show_html("<p>No other report was named; `-p compare=FOLDER` names one.</p>")
    rows = [{"id": id, **change.model_dump()} for id, change in other.changes.items()]
    frame = pd.DataFrame(rows).rename(columns=lambda name: name.replace("other", "other report"))
    frame = frame.rename(columns={"value": "this report", "low": "this report_low"})
    frame = frame.rename(columns={"high": "this report_high", "n": "n, pairs"})
    caption = f"{comparison_sentence(other)}{_unlike(audit, other)}"
    show_table(frame, f"{caption} Change: this report less the other, by prompt and seed")


def _unlike(audit: Audit, other: records.Comparison) -> str:
    """Return, in a sentence, what sets two reports apart beside the model; empty for nothing."""
    here = {**audit.session.settings, "seeds": list(audit.session.seeds), "n": audit.n}
    there = other.settings.model_dump(exclude_none=True)
    parts = [
        f"{name} ({here.get(name, 'the recipe')} here, {there.get(name, 'the recipe')} there)"
        for name in sorted({*here, *there} - {"batch_size"})
        if here.get(name) != there.get(name)
    ]
    parts += ["the rules"] if other.rules != audit.rules_hash else []
    return f" The reports also differ in {', '.join(parts)}." if parts else ""


def write_manifest(folder: Path, stored: list[Path]) -> Path:
    """Write the SHA-256 of all files of a run, and of stored results, as `sha256sum -c` reads them.

    The executed notebook and the page are written after it and stand in no line.
    """
    inside = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in NOT_EVIDENCE]
    paths = [p for p in inside if p.suffix != ".ipynb" and p.name[0] != "."]
    lines = [f"{files.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    lines += [f"# {files.sha256(p)}  data/{p.parent.name}/{p.name}\n" for p in stored]
    return files.write_atomic(folder / MANIFEST, "".join(lines).encode())


def stored_files(audit: Audit) -> list[Path]:
    """Return the stored results, their tables and labels, that a report rests on."""
    results = data_folder() / "results"
    names = [s.name for s in audit.sections.values() if len(s.stored)]
    patterns = [f"probe-{name}-{audit.info.name}.*" for name in names]
    patterns += [f"{name}-{audit.info.name}.json" for name in names]
    patterns += [f"../labels/{name}_{audit.info.name}.csv" for name in names]
    return sorted(path.resolve() for pattern in patterns for path in results.glob(pattern))


def show_evidence(audit: Audit) -> None:
    """Write the report's files and their manifest, and display how to check them."""
    audit.save()
    lines = (audit.folder / MANIFEST).read_text("utf-8").splitlines()
    stored = [line for line in lines if line[0] == "#"]
    rows = {
        "files of this run": f"{len(lines) - len(stored)}: sha256sum -c {MANIFEST} checks them",
        "stored results, tables and labels": f"{len(stored)}: listed, to be checked in the project",
        "without a line": "this page and its notebook; images of stored runs; the weights",
        "weights": audit.info.revision,
        "rules": f"SHA-256 {audit.rules_hash}",
    }
    caption = f"Evidence: {MANIFEST} has the SHA-256 of what this page rests on"
    note = "A hash shows a change made after it was handed to somebody else, and no earlier one"
    show_table(rows, f"{caption}. {note}")


def show_instruments(audit: Audit) -> None:
    """Display each instrument's version, licence and published error, and its error as measured."""
    rows = [row for entry in registry.REPORTED[audit.info.domain] for row in _cards(entry, audit)]
    caption = "Instruments: errors as published, unchecked, and as measured here, of these images"
    show_table(rows, caption)


def _cards(entry: Record, audit: Audit) -> Iterator[Record]:
    """Yield an instrument's rows, one for each rate that the stored run of its section holds."""
    card = instruments.CARDS.get(entry.get("card", ""), entry)
    known = {
        "section": entry["section"],
        "instrument": entry.get("name", entry.get("card")),
        "version": entry.get("version") or f"{card['model']}; {card['revision']}",
        "licence": card["licence"],
        "published error": card.get("error", "none: made for this project's drawings"),
    }
    stored = probes.get(entry["section"]).load_results(audit.info.name, audit.info.revision)
    rates = {what: _rate(stored, id) for what, id in entry.get("measured", {}).items() if stored}
    rates = {what: rate for what, rate in rates.items() if rate}
    why = card["measured"] if "card" in entry else "there is no stored run"
    for what, rate in (rates or {f"not measured for this model: {why}": {}}).items():
        yield known | {"measured here": what, **dict.fromkeys(NUMBERS), **rate}


def _rate(stored: Results, place: str) -> Record:
    """Return the rate at a place of a stored run; counts are of independent images; {} for none."""
    estimates = [*stored.instrument.get("estimates", []), *to_jsonable(stored.estimates)]
    node = next((row for row in estimates if row["id"] == place), None)
    if node is None:
        node = stored.info | stored.instrument
        for key in place.split("/"):
            node = node.get(key, {})
    if not node or "value" in node:
        return {name: node[name] for name in NUMBERS if node}
    counts = np.atleast_2d([*node.values()] if isinstance(node, dict) else node)
    if isinstance(node, list) and len(counts) > 1:  # a confusion: truth by reading
        return stats.share_interval(int(counts.trace()), int(counts.sum()))._asdict()
    return stats.share_interval(*counts.sum(0).tolist())._asdict()


def show_crosswalk(audit: Audit, titles: Mapping[str, str]) -> None:
    """Display what this report fills of three frameworks, and what only the provider can.

    A section that measured nothing fills nothing; what the authors state is of their own model.
    """
    frame = files.read_csv(files.REFERENCE / "crosswalk.csv", dtype=str)
    empty = [s.name for s in audit.sections.values() if s.state == "not tested"]
    notes = {titles[name]: "not tested here" for name in empty if name in titles}
    if audit.info.name != AUTHORS_MODEL:
        notes["What the authors state"] = f"of {AUTHORS_MODEL}, not of {audit.info.label}"
    for title, note in notes.items():
        frame["here"] = frame.here.str.replace(rf"\b{title}\b", f"{title} [{note}]", regex=True)
    frame = frame.replace("", "-").rename(columns={"here": "where this report says something"})
    frame = frame.rename(columns={"provider": "only the provider can fill"})
    caption = "What this report says something on, and what it cannot: no part is thereby complete"
    show_table(frame, f"{caption}; whether a law applies is not judged here")


def show_sign_off(audit: Audit) -> None:
    """Display the lines that a person fills in by hand."""
    show_html(fill_template("sign_off.html.j2"))
