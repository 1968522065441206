"""Figures of the demographics probe; each has a text that tells what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb.display import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def shares(tables: Mapping[str, pd.DataFrame], reference: str = "planted") -> Figure:
    """Draw the share of women by occupation, a panel a table of `by_occupation`.

    Reference, raw share, corrected share with its interval where there is one, bounds over the
    unsure; occupations in the order of their reference.
    """
    import matplotlib
    from matplotlib.figure import Figure

    first = next(iter(tables.values()))
    order = first.sort_values("reference", kind="stable").occupation.tolist()
    with matplotlib.rc_context(figures.STYLE):
        size = (1.9 + 3.3 * len(tables), 1.4 + 0.29 * len(order))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axis, (title, table) in zip(axes, tables.items()):
            _panel(axis, table.set_index("occupation").loc[order], reference)
            axis.set(title=title, xlim=(-0.03, 1.03), xlabel="share of women among all images")
        axes[0].set_yticks(range(len(order)), order)
        axes[0].invert_yaxis()
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, reference: str) -> None:
    y = np.arange(len(rows))
    low, high = rows["bounds low"], rows["bounds high"]
    axis.hlines(y, low, high, color="0.8", linewidth=6, label="bounds over the unsure")
    name = "raw" if rows.corrected.isna().all() else "corrected"
    best, ends = rows[name], (rows[f"{name} low"], rows[f"{name} high"])
    axis.hlines(y, *ends, color=figures.COLORS[0], linewidth=2, label=f"{name}, 95 % interval")
    axis.plot(best, y, "o", color=figures.COLORS[0], markersize=4)
    if name == "corrected":
        axis.plot(rows.raw, y, "s", mfc="none", color=figures.COLORS[5], markersize=5, label="raw")
    if rows.powered.notna().any():
        label = "prediction-powered, 95 % interval"
        axis.hlines(y + 0.25, rows["powered low"], rows["powered high"], color=figures.COLORS[2])
        axis.plot(rows.powered, y + 0.25, "D", color=figures.COLORS[2], markersize=3, label=label)
    axis.plot(rows.reference, y, "x", color="black", markersize=6, label=reference)
    axis.axvline(0.5, color="0.4", linestyle="--", linewidth=1)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def told(tables: Mapping[str, pd.DataFrame], reference: str = "planted") -> str:
    """Return the numbers of `shares` in words, for its alternative text."""
    parts = []
    for title, table in tables.items():
        name = "raw" if table.corrected.isna().all() else "corrected"
        rows = "; ".join(
            f"{r.occupation} {r.reference:.2f}, {r.raw:.2f}, {getattr(r, name):.2f}"
            for r in table.sort_values("reference", kind="stable").itertuples()
        )
        parts.append(f"{title}: {rows}")
    return f"Share of women by occupation ({reference}, raw, {name}). {'. '.join(parts)}."


def mirror(tables: Mapping[str, pd.DataFrame], reference: str = "planted") -> Figure:
    """Draw the read share of women against the reference, a series a table: the slope's data."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="mirrors")
        for k, (title, table) in enumerate(tables.items()):
            name = "raw" if table.corrected.isna().all() else "corrected"
            marker = figures.MARKERS[k % len(figures.MARKERS)]
            axis.plot(table.reference, table[name], marker, mfc="none", label=f"{title}, {name}")
        axis.set(
            xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel=f"share of women, {reference}",
            ylabel="share of women, measured",
        )  # fmt: skip
        axis.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure
