"""Figures of stored benchmarks: cost by batch, the roofline, variants of generating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import NullLocator, ScalarFormatter

from koala_nb.display.figures import COLORS, MARKERS, show, styled_axes
from koala_nb.speed.timing import Row

Rows = Sequence[Row]


def show_scaling(rows: Rows) -> None:
    """Display milliseconds per image and U-Net step by batch, one panel per size, with intervals.

    `rows` of `latency`: system, size (px), batch, and seconds with low and high a step.
    """
    sizes = sorted({row["size"] for row in rows})
    texts = []
    with styled_axes(7.2, 2.9, 1, len(sizes), sharey=True, squeeze=False) as (figure, axes):
        panels = axes[0]
        for axis, size in zip(panels, sizes):
            for index, name in enumerate(dict.fromkeys(row["system"] for row in rows)):
                cases = [r for r in rows if (r["size"], r["system"]) == (size, name)]
                x = [row["batch"] for row in cases]
                middle, low, high = (
                    np.array([1e3 * row[key] / row["batch"] for row in cases])
                    for key in ("seconds", "low", "high")
                )
                ends, marker, color = [middle - low, high - middle], MARKERS[index], COLORS[index]
                axis.errorbar(x, middle, ends, label=name, marker=marker, color=color, capsize=3)
                texts += [f"{name}, {size} px, batch {b}: {v:.0f}" for b, v in zip(x, middle)]
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [str(batch) for batch in x])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("batch (images)")
            axis.grid(axis="y", alpha=0.3)
            axis.set_title(f"{size} px")
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("ms per image and step, guided")
        panels[-1].legend(frameon=False)
    show(figure, f"Stored run, ms per image and step: {'; '.join(texts)}.")


def show_roofline(machine: Mapping[str, float], points: Rows) -> None:
    """Display what passes reach below a machine's limit, on logarithmic axes.

    `machine`: flop_rate (operations/s) and bandwidth (bytes/s); `points`: system, size, batch,
    flops, bytes, seconds and share_of_limit (Williams, Waterman, Patterson 2009).
    """
    with styled_axes(6.4, 3.6) as (figure, axis):
        corner = machine["flop_rate"] / machine["bandwidth"]
        x = np.array([corner / 8, corner, corner * 8])
        axis.loglog(x, np.minimum(machine["flop_rate"], x * machine["bandwidth"]) / 1e9, color="k")
        top, unit = (corner * 8, machine["flop_rate"] / 1e9), "offset points"
        axis.annotate("the machine's limit", top, (0, 4), textcoords=unit, ha="right")
        names = list(dict.fromkeys(point["system"] for point in points))
        for index, name in enumerate(names):
            of_system = [point for point in points if point["system"] == name]
            x = np.array([point["flops"] / point["bytes"] for point in of_system])
            y = [point["flops"] / point["seconds"] / 1e9 for point in of_system]
            axis.loglog(x, y, MARKERS[index], color=COLORS[index], mfc="none", label=name)
        axis.set(xlabel="operations a byte moved", ylabel="billion operations a second")
        lowest = min(point["flops"] / point["seconds"] for point in points) / 1e9
        axis.set_ylim(lowest / 1.6, machine["flop_rate"] / 1e9 * 1.6)
        for side in (axis.xaxis, axis.yaxis):  # 1, 2 and 5 times powers of ten, written out
            side.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(ScalarFormatter())
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right")
    low, high = (100 * f(point["share_of_limit"] for point in points) for f in (min, max))
    passes = f"{len(points)} passes of {' and '.join(names)}"
    reached = f"{low:.0f} to {high:.0f} % of the machine's limit"
    show(figure, f"Roofline, stored run: {passes} reach {reached}.")


def show_variants(rows: Rows) -> None:
    """Display how much faster than the plain loop each variant of generating is, with intervals.

    `rows` of `throughput`: way, same_image, threads, ratio, low, high and n.
    """
    names = [row["way"] + ("" if row["same_image"] else " (another image)") for row in rows]
    with styled_axes(7.2, 0.9 + 0.34 * len(rows)) as (figure, axis):
        error = {"capsize": 3, "ecolor": "0.2"}
        for at, row in enumerate(rows):
            color, hatch = (COLORS[0], None) if row["same_image"] else ("white", "///")
            ends = [[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]]
            bar = axis.barh(
                at, row["ratio"], 0.62, xerr=ends, error_kw=error, color=color, hatch=hatch
            )
            bar[0].set_edgecolor(COLORS[0])
        axis.set_yticks(range(len(rows)), names)
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
        axis.set_xlabel(f"times as fast as the plain loop, {rows[0]['threads']} threads")
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    texts = [
        f"{name}: {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for name, row in zip(names, rows)
    ]
    show(figure, f"Stored run, n {rows[0]['n']} rounds. {'; '.join(texts)}.")
