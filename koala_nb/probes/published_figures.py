"""The published counts as a figure: shares, their intervals, and what the unknown leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib

from koala_nb.display.figures import COLORS, STYLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def figure(table: pd.DataFrame) -> Figure:
    """Draw `published.reanalysis()`: one panel a prompt, one row a group, most frequent on top."""
    from matplotlib.figure import Figure

    panels = [rows for _, rows in table.groupby("prompt", sort=False)]
    heights = [len(rows) + 0.6 for rows in panels]
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(6.8, 0.9 + 0.24 * sum(heights)), layout="constrained")
        axes = made.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
        for axis, rows in zip(axes[:, 0], panels):
            for y, row in enumerate(rows.itertuples()):
                axis.plot([row.bound_low, row.bound_high], [y, y], color="0.7", linewidth=5)
                axis.plot([row.low, row.high], [y, y], color=COLORS[0], linewidth=2)
                axis.plot([row.share], [y], "o", color=COLORS[0], markersize=5)
            axis.set_yticks(range(len(rows)), rows.group)
            axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.01, 1.01))
            axis.set_title(f"{rows.prompt.iloc[0]}: {rows.attribute.iloc[0]}", loc="left")
            axis.grid(axis="x", alpha=0.3)
        axes[-1, 0].set_xlabel(
            "share of 100 captions (line: 95 % interval; grey: with the unknown)"
        )
    return made


def told(table: pd.DataFrame) -> str:
    """Return the figure's alternative text: every share with its interval and bounds."""
    rows = [
        f"{r.prompt}, {r.group}: {r.share:.0%} [{r.low:.0%}, {r.high:.0%}], with the unknown "
        f"{r.bound_low:.0%} to {r.bound_high:.0%}"
        for r in table.itertuples()
    ]
    return f"Shares of {table.n.iloc[0]} captions a prompt with 95 % intervals. {'; '.join(rows)}."
