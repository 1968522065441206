"""Tables and figures of the audit report's measured sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import files as provenance
from koala_nb.core.card import CARD_TABLE_CONDITIONS
from koala_nb.display.figures import printable
from koala_nb.report.results import Section, Sections
from koala_nb.report.sections import _html, table
from koala_nb.report.summary import HEADLINES, headlines, interval, number

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

SAMPLES = 6  # images of a probe that the page shows


def summary(sentences: Iterable[str]) -> HTML:
    """The executive summary as a list."""
    return _html("<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>")


def overview(sections: Sections) -> None:
    """Show the headline shares with their intervals; nothing where none was measured."""
    from koala_nb.display import figures

    shown = {}
    for section, best in headlines(sections):
        _, by, reader = best["name"].rpartition(", by ")
        label = HEADLINES[section][1] + (by + reader if by else "")
        shown[f"{label} (n {best['n']:,})"] = tuple(best[k] for k in ("value", "low", "high"))
    if shown:
        figure = figures.intervals(shown, "share of images, 95 % interval")
        alt = "; ".join(f"{k}: {v:.3f} ({a:.3f} to {b:.3f})" for k, (v, a, b) in shown.items())
        figures.show(figure, f"Headline shares. {alt}.")


def estimates(section: Section, caption: str) -> HTML:
    """A section's estimates of this run beside those of the stored one, or what is missing.

    What is the same in all rows goes to the caption.
    """
    if section.state == "not tested":
        return _html(f"<p><strong>Not tested.</strong> {escape(section.why)}</p>")
    sides = [{e["name"]: e for e in own} for own in (section.estimates, section.stored)]
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        told = sides[0].get(name) or sides[1][name]
        readers = dict.fromkeys(side[name]["instrument"] for side in sides if name in side)
        values = [_unbroken(interval(side.get(name))) for side in sides]
        counts = [f"{side[name]['n']:,}" if name in side else "" for side in sides]
        rows.append((name, values[0], counts[0], values[1], counts[1], "; stored: ".join(readers),
                     told["method"]))  # fmt: skip
    header = ("measure", "this run", "n", "stored run", "n", "instrument", "interval")
    keep = [i for i in range(5) if any(row[i] for row in rows)]
    for i in (5, 6):
        same = {row[i] for row in rows}
        keep += [i] if len(same) > 1 else []
        caption += f". {header[i].capitalize()}: {same.pop()}" if len(same) == 1 else ""
    found = table([header[i] for i in keep], [[row[i] for i in keep] for row in rows], caption)
    why = f"<p>{escape(section.why)}</p>" if section.why else ""
    return _html(why + str(found.data))


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def samples(folder: Path) -> None:
    """Show a few images of a probe, spread evenly, with their prompts; nothing where none is."""
    from PIL import Image

    from koala_nb.display import figures

    files = sorted((folder / "images").glob("*.png"))
    chosen = files[:: max(1, len(files) // SAMPLES)][:SAMPLES]
    if not chosen:
        return
    captions = [printable(provenance.read_record(file)["prompt"]) for file in chosen]
    images = []
    for file in chosen:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
    figure = figures.gallery(images, captions, columns=SAMPLES)
    alt = f"{len(chosen)} of {len(files)} images: {'; '.join(captions)}."
    figures.show(figure, alt, colours=256 if images[0].width <= 256 else None)


def claims_table(claims: Sequence[Mapping[str, Any]]) -> HTML:
    """Each published statement, its verdict, the figures that decide, its rule and its source."""
    head = "".join(f'<th scope="col">{t}</th>' for t in ("statement", "verdict", "what decides"))
    body = "".join(
        f'<tr class="{c["verdict"].replace(" ", "-")}"><th scope="row">{escape(c["claim"])}</th>'
        f'<td class="status">{escape(c["verdict"])}</td><td>{escape(_evidence(c))}<br>'
        f"<small>Rule: {escape(c['rule'])}. Source: {escape(c['source'])}.</small></td></tr>"
        for c in claims
    )
    caption = "<caption>Published statements and what this report says of them.</caption>"
    return _html(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _evidence(claim: Mapping[str, Any]) -> str:
    """What decided, with its interval and n; or why nothing is decided."""
    why = str(claim.get("why", ""))
    if claim["value"] is None:
        return f"{why}."
    return f"{_unbroken(interval(claim))}, n {claim['n']:,}: {why}."


def parameters(section: Section) -> HTML:
    """The parameters of the model's parts."""
    rows = [
        (e["name"].removeprefix("parameters of "), number(e["value"])) for e in section.estimates
    ]
    return table(("part", "parameters"), rows, "Parameters of the model of this report, counted")


def comparison(compared: pd.DataFrame) -> HTML:
    """The card's table of U-Nets beside the one computed, as `card_comparison` returns it."""
    shown = compared.assign(verdict=compared.verdict.replace("quoted: .*", "quoted", regex=True))
    caption = f"The card's table against configurations. Latency: {CARD_TABLE_CONDITIONS}"
    return table(tuple(shown.columns), shown.itertuples(index=False, name=None), caption)
