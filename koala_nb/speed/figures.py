"""Figures of benchmarks, and a page that stands alone: would a system run, and how long?"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import NullLocator, ScalarFormatter

from koala_nb.core import card
from koala_nb.core.files import write_atomic
from koala_nb.display.figures import COLORS, MARKERS, show, styled_axes
from koala_nb.display.page import filled_page
from koala_nb.speed.timing import Row

Rows = Sequence[Row]


def show_scaling(rows: Rows) -> None:
    """Display ms per image and U-Net step by batch, a panel per size; `rows` of `latency`."""
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
            for bars in axis.containers:  # names beside where their lines begin
                line = bars.lines[0]
                style = {"color": line.get_color(), "textcoords": "offset points"}
                axis.annotate(bars.get_label(), line.get_xydata()[0], (8, 3), **style)
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("ms per image and step, guided")
        figure.suptitle("A U-Net step costs less per image in a larger batch")
    show(figure, f"Stored run, ms per image and step: {'; '.join(texts)}.")


def show_stacks(
    bars: Mapping[str, Mapping[str, float]],
    x_label: str,
    title: str = "",
    marks: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Display a bar per name, stacked of the same parts: name -> part -> amount.

    marks: what a mark is -> name of its bar -> amount, such as measured beside predicted totals.
    """
    with styled_axes(7.2, 1.4 + 0.32 * len(bars)) as (figure, axis):
        left = np.zeros(len(bars))
        for at, part in enumerate(next(iter(bars.values()))):
            widths = np.array([parts[part] for parts in bars.values()])
            axis.barh(list(bars), widths, 0.6, left, label=part, color=COLORS[at])
            left += widths
        for at, (mark, amounts) in enumerate((marks or {}).items()):
            x = [amounts.get(name, np.nan) for name in bars]
            style = {"marker": MARKERS[at], "mfc": "white", "mec": "k", "ls": "none"}
            axis.plot(x, range(len(bars)), label=mark, **style)
        axis.set(xlabel=x_label, title=title, ylim=(len(bars) - 0.4, -0.6))
        axis.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    texts = (
        f"{name}: {', '.join(f'{part} {value:.3g}' for part, value in amounts.items())}"
        for name, amounts in {**bars, **(marks or {})}.items()
    )
    show(figure, f"{title}; {x_label}: {'; '.join(texts)}.")


def write_page(path: str | os.PathLike[str], predicted: Mapping[str, Mapping[str, float]]) -> Path:
    """Write a page to choose a system, a GPU, a number of images: published hours and gigabytes.

    predicted: `predicted_gb` of systems by their title in `card.LATENCY_FIGURE`; others have none.
    ValueError for a title that is not there.
    """
    if unknown := sorted(predicted.keys() - card.LATENCY_FIGURE.keys()):
        raise ValueError(f"{unknown[0]!r} has no published times: give a title of LATENCY_FIGURE.")
    data = {
        "gpus": [{"name": gpu, "gb": float(gpu.split()[-1][:-2])} for gpu in card.LATENCY_GPUS],
        "systems": [
            {"name": name, "published": published, "predicted": dict(predicted.get(name, {}))}
            for name, published in card.LATENCY_FIGURE.items()
        ],
    }
    note = escape(f"Published: {card.FIGURE_SOURCE}; {card.LATENCY_CONDITIONS}.")
    template = ("koala_nb.speed", "would_it_run.html")
    return write_atomic(path, filled_page(template, data, None, "give fewer systems", note=note))


def show_roofline(machine: Mapping[str, float], points: Rows) -> None:
    """Display what a system's passes by batch reach below a machine's limit, logarithmically.

    `machine`: flop_rate (operations/s) and bandwidth (bytes/s); `points`: batch, flops, bytes,
    seconds and share_of_limit (Williams, Waterman, Patterson 2009).
    """
    rate, bandwidth, unit = machine["flop_rate"], machine["bandwidth"], 1e9
    near = {"textcoords": "offset points", "va": "center"}
    with styled_axes(6.4, 3.6) as (figure, axis):
        corner = rate / bandwidth
        x = np.array([corner / 4, corner, corner * 8])
        axis.loglog(x, np.minimum(rate, x * bandwidth) / unit, color="k")
        slope = f"bound by memory:\n{bandwidth / unit:.0f} GB per second"
        axis.annotate(slope, (corner / 2.8, rate / 2.8 / unit), (8, -14), **near)
        flat = f"bound by arithmetic: {rate / unit:.0f} billion per second"
        axis.annotate(flat, (corner, rate / unit), (0, 8), **near)
        for point in points:
            x, y = (point["flops"] / point[key] for key in ("bytes", "seconds"))
            limit = min(rate, x * bandwidth) / unit
            axis.loglog([x, x], [y / unit, limit], ":", color="0.5", linewidth=1)
            axis.loglog(x, y / unit, "o", color=COLORS[0])
            label = f"batch {point['batch']}: {point['share_of_limit']:.0%} of the limit"
            axis.annotate(label, (x, y / unit), (8, 0), **near)
        axis.set(xlabel="operations per byte moved", ylabel="billion operations per second")
        lowest = min(point["flops"] / point["seconds"] for point in points)
        axis.set(xlim=(corner / 5, corner * 8), ylim=(lowest / unit / 1.6, rate / unit * 1.6))
        for side in (axis.xaxis, axis.yaxis):  # 1, 2 and 5 times powers of ten, written out
            side.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(ScalarFormatter())
        axis.grid(alpha=0.3)
    texts = (f"batch {point['batch']}: {point['share_of_limit']:.0%}" for point in points)
    show(figure, f"Roofline, stored run; share of the machine's limit: {', '.join(texts)}.")


def show_variants(rows: Rows) -> None:
    """Display how much faster than the plain loop variants are; `rows` of `throughput`."""
    names = [row["way"] + ("" if row["same_image"] else " (another image)") for row in rows]
    with styled_axes(7.2, 0.9 + 0.34 * len(rows)) as (figure, axis):
        error = {"capsize": 3, "ecolor": "0.2"}
        for at, row in enumerate(rows):
            white = {"color": "white", "hatch": "///"}
            paint = {"color": COLORS[0]} if row["same_image"] else white
            ends = [[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]]
            bar = axis.barh(at, row["ratio"], 0.62, xerr=ends, error_kw=error, **paint)
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
