"""Figures of the text probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from koala_nb.display.figures import COLORS, MARKERS, STYLE


def curves(series: Mapping[str, pd.DataFrame], y_label: str, title: str = "") -> Figure:
    """Draw named tables of `text.by_length` against length, each with its intervals as bars.

    ValueError where there is nothing to draw.
    """
    if not series or any(not len(table) for table in series.values()):
        raise ValueError("curves: give at least one table with at least one length.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        axis = figure.subplots()
        for i, (name, table) in enumerate(series.items()):
            x = table.middle.to_numpy(float) * (1 + 0.02 * (i - 1))  # so that bars stay apart
            value, low, high = (table[k].to_numpy(float) for k in ("value", "low", "high"))
            bars = np.clip(np.stack([value - low, high - value]), 0, 1)
            axis.errorbar(
                x, value, bars, label=name, color=COLORS[i], marker=MARKERS[i], markersize=5,
                capsize=2, linewidth=1.4,
            )  # fmt: skip
        axis.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        ticks = [1, 2, 3, 5, 8, 12, 20, 30, 40]
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("characters asked for (logarithmic)")
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
        if title:
            axis.set_title(title)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def confusion_map(pairs: Sequence[Mapping[str, Any]], title: str, most: int = 14) -> Figure:
    """Draw how often the characters that go wrong most were read as which others, with counts.

    `pairs` as of `text.top_confusions`. ValueError where there are none.
    """
    if not pairs:
        raise ValueError("confusion_map: there is no confused pair to draw.")
    table = pd.DataFrame(pairs).pivot_table(
        index="asked", columns="read", values="count", aggfunc="sum", fill_value=0
    )
    asked = table.sum(axis=1).sort_values(ascending=False, kind="stable").index[:most]
    read = table.sum(axis=0).sort_values(ascending=False, kind="stable").index[:most]
    counts = table.loc[asked, read].to_numpy(int)
    with matplotlib.rc_context(STYLE):
        size = (2.2 + 0.42 * len(read), 1.5 + 0.3 * len(asked))
        figure = Figure(figsize=size, layout="constrained")
        axis = figure.subplots()
        axis.imshow(counts, cmap="cividis", aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = count < counts.max() / 2
                axis.text(column, row, str(count), ha="center", va="center", color="kw"[int(dark)])
        axis.set_yticks(range(len(asked)), [_name(c) for c in asked])
        long = any(len(_name(c)) > 2 for c in read)
        axis.set_xticks(range(len(read)), [_name(c) for c in read], rotation=90 if long else 0)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("read")
        axis.set_ylabel("asked for")
        axis.set_title(title)
    return figure


def printable(text: str) -> str:
    """Return a text with each character that DejaVu cannot draw (such as Chinese) as its code."""
    return "".join(f"U+{ord(c):04X}" if ord(c) >= 0x2E80 else c for c in text)


def _name(character: str) -> str:
    """Return a character's label: DejaVu has no glyph for some, such as Chinese ones."""
    if character == " ":
        return "space"
    if len(character) == 1 and ord(character) >= 0x2E80:
        return f"U+{ord(character):04X}"
    return character.replace("$", r"\$")


def said(pairs: Sequence[Mapping[str, Any]], most: int = 8) -> str:
    """Return the most frequent pairs in words, for an alternative text."""
    return "; ".join(
        f"{_name(p['asked'])} read as {_name(p['read'])} {p['count']} times" for p in pairs[:most]
    )
