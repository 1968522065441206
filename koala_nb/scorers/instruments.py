"""The photographic instruments: a card each, and their error measured on pictures of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from koala_nb.core.errors import unknown_name
from koala_nb.core.files import Record, read_csv, read_reference
from koala_nb.display.tables import format_interval
from koala_nb.scorers import registry
from koala_nb.stats.estimates import share_interval
from koala_nb.stats.misclassification import UNSURE

CARDS: dict[str, Record] = read_reference("instruments.yaml")
NONE = "none"  # the label of a picture in which there is nothing to read
TEXT = "text"  # stands for every label of a reader of text
SHOWN = "reads model revision licence size threshold error measured labels".split()
REST = (NONE, "safe", UNSURE)  # of which the specificity of the other labels tells


class Measured(NamedTuple):
    """An instrument's error on a labelled set, whose pictures count as independent (Wilson)."""

    about: str
    counts: pd.DataFrame  # labels by readings
    rates: pd.DataFrame  # group ("" for all, else "monk 3"), label, rate, value, low, high, n

    def __str__(self) -> str:
        """Return what was measured as text."""
        lines = [self.about, "", self.counts.to_string(), ""]
        for row in self.rates.itertuples():
            interval = format_interval(row.value, row.low, row.high)
            where = ", ".join(filter(None, [row.label, row.group]))
            lines.append(f"{row.rate} of {where}: {interval}, n {row.n}")
        if len(self.counts) == 2:  # it, and all
            lines.append("All pictures have one label: of others this tells nothing.")
        return "\n".join(lines)


def card(name: str = "") -> str:
    """Return a card as text, without a name all; ValueError for an unknown name."""
    if name and name not in CARDS:
        raise unknown_name("instrument", name, CARDS)
    chosen = [name] if name else CARDS
    return "\n\n".join("\n  ".join([n, *(f"{k}: {CARDS[n][k]}" for k in SHOWN)]) for n in chosen)


def measure(name: str, path: str | Path, group: str = "", source: str = "") -> Measured:
    """Compare what an instrument reads with the labels of pictures, a CSV of file and label.

    group: a column, whose rates are told apart; source: another CLIP or detector. ValueError, with
    the line, for a missing column or file, or a label that the instrument does not know.
    """
    if card(name) and "path" not in (entry := CARDS[name]):
        raise ValueError(f"{name} gives a score and no class: it has no error of this kind.")
    table = labelled(path := Path(path), entry["classes"], group)
    things = sorted(set(table.label) - {NONE})
    if source and not {"source", "name"} & set(entry["takes"]):
        raise ValueError(f"{name} reads by no other source than its card's: leave it out.")
    given = {"concepts": things, "source": source, "name": source, "colors": ""}
    reader = registry.resolve(entry["path"])(**{key: given[key] for key in entry["takes"]})
    prompts = [{"concept": None, "things": things}]
    read = [reader.score([image], prompts)[0][entry["column"]] for image in images(path, table)]
    table["read"] = [entry["words"].get(value, value) for value in map(str, read)]
    if entry["column"] == TEXT:
        table["read"] = list(map(_matched, table.read, table.label))
        table.label = table.label.where(table.label == NONE, TEXT)
    classes = [c for c in entry["classes"] if c not in REST] or sorted(set(table.label) - {NONE})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    about = f"{name}, {reader.name} {reader.version}\n{path.name}, sha256 {digest}"
    counts = pd.crosstab(table.label, table.read, margins=True, margins_name="all")
    return Measured(about, counts, pd.DataFrame(_rates(table, classes, group)))


def images(path: Path, table: pd.DataFrame) -> Iterator[Image.Image]:
    """Yield a labelled set's pictures in RGB; ValueError, with the line, for what is none."""
    for line, file in enumerate(table.file, start=2):
        try:
            with Image.open(path.parent / file) as image:
                yield image.convert("RGB")
        except OSError:
            raise ValueError(f"{path}, line {line}: {file} is no picture.") from None


def labelled(path: Path, labels: list[str], group: str = "", label: str = "label") -> pd.DataFrame:
    """Read a labelled set; ValueError, with the line, for what it lacks or a label of no list."""
    table = read_csv(path, filter(None, ("file", label, group)), dtype=str)
    for line, (file, text) in enumerate(zip(table.file, table[label]), start=2):
        if not (path.parent / file).is_file():
            raise ValueError(f"{path}, line {line}: there is no file {file!r} beside it.")
        if not text or labels and text not in labels:
            use = ", ".join(labels) or "what the picture shows"
            raise ValueError(f"{path}, line {line}: {text!r} is no {label}: give {use}.")
    if not labels and set(table[label]) <= {NONE}:
        raise ValueError(f"{path} has no picture of a label but {NONE!r}: add some.")
    return table


def _rates(table: pd.DataFrame, labels: list[str], group: str) -> Iterator[Record]:
    """Yield each label's sensitivity and specificity, over all pictures and by group."""
    named = table[table[group] != ""].groupby(group) if group else ()
    parts = sorted(named, key=lambda part: (len(part[0]), part[0]))  # 2 before 10
    for label in labels:
        for where, rows in [("", table), *((f"{group} {name}", rows) for name, rows in parts)]:
            for rate, present in (("sensitivity", True), ("specificity", False)):
                of = rows[(rows.label == label) == present]
                if len(of):
                    hits = int(((of.read == label) == present).sum())
                    share = share_interval(hits, len(of))._asdict()
                    yield {"group": where, "label": label, "rate": rate, **share}


def _matched(read: str, label: str) -> str:
    """Return "text" for a label's text or a false alarm, "other text" for another one."""
    same = "".join(read.split()).casefold() == "".join(label.split()).casefold()
    return NONE if read == NONE else TEXT if same or label == NONE else "other text"
