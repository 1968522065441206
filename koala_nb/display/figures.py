"""Figures with one look and an alternative text each."""

import io
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from IPython import display
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from PIL import Image

from koala_nb.display.tables import EMPTY, format_interval, format_number

PROMPTS_A_FIGURE = 4  # so that no figure is taller than a printed page
CELL_INCHES = 1.3  # side of one image in a grid
# Okabe and Ito: told apart with colour-blind eyes and in grey print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "os^Dv*P"
BOUNDS = "whatever the unsure are"
BANNER_STYLE = (
    "border-left:.4rem solid #d97706;background:#fff7e6;color:#8a4b00;"
    "padding:.7rem 1rem;font-weight:600"
)
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "figure.dpi": 100,
    "savefig.dpi": 150,  # an image of a grid is 195 pixels wide
    "svg.hashsalt": "koala-nb",
}


class ImageRun(Protocol):
    """What `kn.generate` returns, as far as figures need it."""

    @property
    def images(self) -> Sequence[Image.Image]:
        """The images, in the order of the records."""

    @property
    def records(self) -> pd.DataFrame:
        """One row per image, with `prompt` and `seed`."""


@contextmanager
def styled_axes(
    width: float, height: float, *grid: int, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """Give a figure, inches wide and high, in one style; grid and options as of `subplots`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(*grid, **options)


def image_grid(
    images: Sequence[Image.Image],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    numbers: Sequence[float] = (),
    meaning: str = "",
    scale: tuple[float, str] | None = None,
) -> Figure:
    """Lay images out row by row, one labelled row per prompt and one labelled column per seed.

    `images` has len(row_labels) * len(column_labels) entries, the first row first; `numbers` as
    many, written below the images, or none; ValueError otherwise. `meaning` says what they are.
    `scale`: what black stands for in grey images, and of what; white is 0.
    """
    rows, columns = len(row_labels), len(column_labels)
    if len(images) != rows * columns or not images:
        raise ValueError(
            f"image_grid: {len(images)} images do not fill {rows} rows x {columns} columns: "
            "give one image a row and column."
        )
    if len(numbers) not in (0, len(images)):
        raise ValueError(f"image_grid: {len(numbers)} numbers do not fit {len(images)} images.")
    cell = CELL_INCHES + (0.2 if len(numbers) else 0)
    height = (0.7 if title else 0.4) + cell * rows + (0.3 if meaning else 0)
    grid = (2.6 + CELL_INCHES * columns, height, rows, columns)
    with styled_axes(*grid, squeeze=False) as (figure, axes):
        for index, (axis, image) in enumerate(zip(axes.flat, images)):
            axis.imshow(image, interpolation="nearest" if image.width < 256 else "antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="0.75", linewidth=0.5)
            if len(numbers):
                axis.set_xlabel(f"{numbers[index]:.0f}", labelpad=2)
        side = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 6}
        for axis, label in zip(axes[:, 0], row_labels):
            axis.set_ylabel(plain(_wrap(label)), **side)
        for axis, label in zip(axes[0], column_labels):
            axis.set_title(plain(label))
        _headed(figure, title, meaning and f"Number below an image: {meaning}")
        if scale:
            greys = ScalarMappable(Normalize(0, scale[0]), "gray_r")
            bar = figure.colorbar(greys, ax=axes, shrink=min(1, 3 / rows), extend="max")
            bar.set_label(plain(scale[1]))
    return figure


def gallery(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Figure:
    """Lay images out in rows, each with its caption below it; ValueError where counts differ."""
    if len(images) != len(captions) or not images:
        raise ValueError(f"gallery: {len(images)} images do not fit {len(captions)} captions.")
    rows = -(-len(images) // columns)
    grid = (1.55 * columns, 2.15 * rows, rows, columns)
    with styled_axes(*grid, squeeze=False) as (figure, axes):
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image, caption in zip(axes.flat, images, captions):
            axis.imshow(image, interpolation="nearest" if image.width < 256 else "antialiased")
            text = plain(_wrap(caption, 20))
            axis.text(0.5, -0.04, text, transform=axis.transAxes, ha="center", va="top")
    return figure


def _headed(figure: Figure, title: str, note: str) -> None:
    if title:
        figure.suptitle(plain(title), fontsize=11)
    if note:
        figure.supxlabel(plain(note), fontsize=9)


def show_images(
    images: ImageRun | Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    numbers: Sequence[float] = (),
    meaning: str = "",
    scale: tuple[float, str] | None = None,
) -> None:
    """Display images with captions, and an alternative text that says the same.

    images: a run of `kn.generate`, laid out by its records, one row per prompt and one column per
    seed, four prompts to a figure; or a list of images, either with a caption each (a gallery) or
    with labels of its `rows` (none: one row) and `columns`. numbers: one per image, written below
    it; `meaning` says what they are, or numbers in captions. scale: what black stands for in grey
    images, and of what. ValueError where counts differ.
    """
    if isinstance(images, str) or not (isinstance(images, Sequence) or hasattr(images, "records")):
        kind = type(images).__name__
        raise ValueError(f"show_images: a {kind}: give a run, or a list of images.")
    if not isinstance(images, Sequence):
        return _show_run(images, captions, title)
    if len(captions):
        across = len(columns) or min(8, len(images))
        lead = f"{title}. " if title else ""
        count = f"{len(images)} image{'s' * (len(images) > 1)}"
        note = f"{meaning} after each name. " if meaning else ""
        alt = f"{lead}{note}{count}: {'; '.join(captions)}."
        figure = gallery(images, captions, across)
        _headed(figure, title, meaning and f"Number after a name: {meaning}")
        return show(figure, alt, images=images)
    rows = rows or [""] * bool(columns)
    figure = image_grid(images, rows, columns, title, numbers, meaning, scale)
    width, headings = len(columns), ", ".join(label.replace("\n", " ") for label in columns)
    alt = f"{title}. Columns: {headings}." + f" Rows: {'; '.join(rows)}." * any(rows)
    if len(numbers):
        each = [", ".join(f"{v:.0f}" for v in row) for row in np.reshape(numbers, (-1, width))]
        texts = "; ".join(f"{label}: {row}".removeprefix(": ") for label, row in zip(rows, each))
        alt = f"{title}. Columns: {headings}. {meaning}: {texts}."
    show(figure, alt, images=images)


def _show_run(run: ImageRun, captions: Sequence[str], title: str) -> None:
    prompts = list(dict.fromkeys(run.records.prompt))
    seeds = list(dict.fromkeys(run.records.seed))
    if len(captions) or len(prompts) * len(seeds) != len(run.images):  # other seeds each prompt
        texts = list(captions) or [f"{r.prompt}, seed {r.seed}" for r in run.records.itertuples()]
        return show_images(list(run.images), texts, title=title)
    width = len(seeds)
    for start in range(0, len(prompts), PROMPTS_A_FIGURE):
        rows = prompts[start : start + PROMPTS_A_FIGURE]
        images = list(run.images[start * width : (start + len(rows)) * width])
        figure = image_grid(images, rows, [f"seed {seed}" for seed in seeds], title)
        light = [
            sum(map(brightness, images[i : i + width])) / width / 255
            for i in range(0, len(images), width)
        ]
        each = "; ".join(f"{p} (mean brightness {b:.1f})" for p, b in zip(rows, light))
        lead = f"{title}. " if title else ""
        size = f"{len(rows)} prompt{'s' * (len(rows) > 1)} x {width} seeds"
        show(figure, f"{lead}{size}, one row per prompt: {each}.", images=images)


def show_intervals(
    estimates: pd.DataFrame,
    title: str = "",
    x_label: str = "value, 95 % interval",
    reference: float | None = None,
    empty: str = EMPTY,
) -> None:
    """Display a tidy estimates frame as a forest plot that writes its own alternative text.

    estimates: columns `value, low, high`, `label` (else the first column of text, else the index)
    and perhaps `n`, or `each`, lists of the few values that were averaged, drawn as dots beside
    their mean; `bounds_low, bounds_high` over unsure images, a grey bar behind; `claimed`, marked
    by a diamond. A row without an interval is drawn as a point, one without a value left out.
    reference: where a vertical line is drawn, such as 0 for no difference. empty: the sentence
    printed in place of a figure without rows. ValueError for an interval without its value.
    """
    frame = estimates[estimates["value"].notna()] if len(estimates) else estimates
    if frame.empty:
        return print(f"{title}: {empty}" if title else empty)
    names, parts = _row_names(frame), []
    counts, runs = (frame.get(column, [None] * len(frame)) for column in ("n", "each"))
    with styled_axes(6.4, 0.9 + 0.32 * len(frame)) as (figure, axis):
        marked = _mark_claims(axis, frame)
        rows = zip(names, counts, runs, frame[["value", "low", "high"]].itertuples(index=False))
        for at, (name, n, each, (value, *ends)) in enumerate(rows):
            low, high = (value if end is None or end != end else end for end in ends)
            if not low <= value <= high:
                raise ValueError(f"intervals: {name}: {value} is not within {low} to {high}.")
            axis.plot([low, high], [at, at], color=COLORS[0], linewidth=2)
            axis.plot([value], [at], "|" if each else "o", color=COLORS[0], ms=16 if each else 7)
            if each:
                axis.plot(each, [at] * len(each), "o", color=COLORS[0], mfc="none")
            count = f", n {n:,.0f}" if n is not None and n == n else ""
            count += f", each {', '.join(map(format_number, each))}" if each else ""
            parts.append(f"{name} {format_interval(value, *ends)}{marked[at]}{count}")
        if reference is not None:
            axis.axvline(reference, color="0.4", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(names)), [plain(name) for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)  # the first on top
        axis.set(xlabel=plain(x_label), title=plain(title))
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        if any(marked):
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
    lead = f"{title}; " if title else ""
    show(figure, f"{lead}{x_label}: {'; '.join(parts)}.", colours=64)


def _row_names(frame: pd.DataFrame) -> list[str]:
    names = frame.get("label")
    if names is None:
        texts = [c for c in frame if c != "id" and frame[c].map(lambda v: isinstance(v, str)).all()]
        names = frame[texts[0]] if texts else frame.index.to_series()
    names = [str(name) for name in names]
    return [f"{name} ({i + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _mark_claims(axis: Axes, frame: pd.DataFrame) -> list[str]:
    """Draw bounds as grey bars and what is claimed as diamonds; returns each row in words."""
    texts, at = [""] * len(frame), np.arange(len(frame))
    if "bounds_low" in frame:
        ends = frame.bounds_low.to_numpy(float), frame.bounds_high.to_numpy(float)
        axis.hlines(at, *ends, "0.8", linewidth=7, label=BOUNDS)
        known = [f", {BOUNDS} {format_interval(None, *pair)}" for pair in zip(*ends)]
        texts = ["" if low != low else text for low, text in zip(ends[0], known)]
    if "claimed" in frame and (claimed := frame.claimed.to_numpy(bool)).any():
        style: dict[str, Any] = {"ms": 11, "mfc": "none", "color": "k", "label": "claimed"}
        axis.plot(frame.value[claimed], at[claimed], "D", **style)
        texts = [text + ", claimed" * bool(c) for text, c in zip(texts, claimed)]
    return texts


def show_lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    title: str = "",
    level: Mapping[str, float] | None = None,
    starts: Mapping[str, float] | None = None,
) -> None:
    """Display named series of (x, y) as lines, each named at its end; ValueError for lengths.

    level: name -> a y with a dashed line; starts: name of a stretch -> the x where it begins.
    """
    if not series or any(len(x) != len(y) or len(x) == 0 for x, y in series.values()):
        raise ValueError("lines: give at least one series, each with as many y as x values.")
    parts, ends = [], [(y, name, "0.4") for name, y in (level or {}).items()]
    with styled_axes(6.4, 3.2) as (figure, axis):
        for index, (name, (x, y)) in enumerate(series.items()):
            marker = MARKERS[index % len(MARKERS)]
            (line,) = axis.plot(x, y, marker=marker, markersize=6, mfc="none")
            at = np.unique(np.linspace(0, len(x) - 1, 6).round().astype(int))
            points = [f"{format_number(float(y[i]))} at {float(x[i]):,g}" for i in at]
            parts.append(f"{name}: {', '.join(points)}")
            ends.append((float(y[at[-1]]), name, line.get_color()))
        for name, height in (level or {}).items():
            axis.axhline(height, color="0.4", linestyle="--", linewidth=1)
            parts.append(f"{name}: {format_number(height)} throughout")
        for name, start in (starts or {}).items():
            axis.axvline(start, color="0.7", linewidth=0.8)
            top = axis.get_xaxis_transform()
            axis.text(start, 1, f" {plain(name)}", transform=top, va="bottom", fontsize=7)
        axis.set(xlabel=plain(x_label), ylabel=plain(y_label))
        axis.set_title(plain(title), pad=14 if starts else 6)
        if all(float(value).is_integer() for x, _ in series.values() for value in x):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        _name_ends(axis, ends)
    lead = f"{title}; " if title else ""
    show(figure, f"{lead}{y_label} against {x_label}. {'; '.join(parts)}.", colours=64)


def _name_ends(axis: Axes, ends: list[tuple[float, str, str]]) -> None:
    (low, high), lowest = axis.get_ylim(), -1.0
    for y, name, color in sorted(ends):
        at = max((y - low) / (high - low), lowest)
        lowest = at + 0.08  # so that names do not overlap
        axis.text(1.02, at, plain(name), color=color, transform=axis.transAxes, va="center")


def share_curves(
    series: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    title: str = "",
    fitted: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Draw shares with their intervals against a quantity above 0, on a logarithmic axis.

    series: name -> columns x, value, low, high; fitted: x, y of a curve. ValueError for nothing.
    """
    drawn = {name: points for name, points in series.items() if len(points)}
    if not drawn:
        raise ValueError("share_curves: give at least one series with at least one point.")
    with styled_axes(7.4, 3.6) as (figure, axis):
        for k, (name, points) in enumerate(drawn.items()):
            value = points["value"].to_numpy(float)
            ends = np.abs(points[["low", "high"]].to_numpy(float).T - value)
            x = points["x"] * (1 + 0.02 * k)  # so that bars stay apart
            line = "none" if fitted else "-"
            axis.errorbar(x, value, ends, label=plain(name), marker=MARKERS[k], linestyle=line)
        if fitted:
            axis.plot(*fitted, color="0.4", label="fitted curve")
        axis.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
        axis.set(xscale="log", ylim=(-0.03, 1.03), title=plain(title))
        axis.set(xlabel=f"{x_label} (logarithmic)", ylabel=y_label)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(LogFormatter())
        axis.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def interval_panels(
    panels: Mapping[str, pd.DataFrame],
    x_label: str,
    bounds: str,
    marks: Mapping[str, str] | None = None,
) -> Figure:
    """Draw shares with their intervals, a row an entry of the frames' index, the first on top.

    panels: title -> columns value, low, high, and bounds_low, bounds_high (grey; `bounds` says of
    what), side by side where all have the same rows. marks: further columns -> what they are, drawn
    with intervals of their own where the frame has them.
    """
    frames = list(panels.values())
    beside = all(frame.index.equals(frames[0].index) for frame in frames)
    shape, heights = (1, len(frames)), [len(frame) + 1.6 for frame in frames]
    size = 1.9 + 3.3 * len(frames), 1.4 + 0.29 * len(frames[0])
    if not beside:
        shape, size = shape[::-1], (6.8, 0.9 + 0.24 * sum(heights))
    ratios = None if beside else heights
    share: dict[str, Any] = {"sharex": True, "sharey": beside, "height_ratios": ratios}
    with styled_axes(*size, *shape, **share, squeeze=False) as (figure, axes):
        axes = axes.ravel()
        for axis, (title, rows) in zip(axes, panels.items()):
            y = np.arange(len(rows))
            axis.hlines(y, rows.bounds_low, rows.bounds_high, "0.8", linewidth=6, label=bounds)
            axis.hlines(y, rows.low, rows.high, COLORS[0], linewidth=2, label="95 % interval")
            axis.plot(rows["value"], y, "o", color=COLORS[0], markersize=5)
            for k, (column, label) in enumerate((marks or {}).items(), 1):
                style = {"color": COLORS[-k], "marker": MARKERS[k], "mfc": "none", "label": label}
                axis.plot(rows[column], y + 0.1 * k, linestyle="none", **style)
                if f"{column}_low" in rows:
                    ends = rows[f"{column}_low"], rows[f"{column}_high"]
                    axis.hlines(y + 0.1 * k, *ends, COLORS[-k], linewidth=1)
            axis.axvline(0.5, color="0.4", linestyle="--", linewidth=1)
            axis.set_yticks(y, [plain(str(name)) for name in rows.index])
            axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.03, 1.03), title=plain(title))
            axis.grid(axis="x", alpha=0.3)
        for axis in axes if beside else axes[-1:]:
            axis.set_xlabel(plain(x_label))
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def show_heatmap(
    frame: pd.DataFrame, title: str = "", form: str = ".2f", least: float = -np.inf
) -> None:
    """Display numbers as colours, each written in its cell ("n/a": NaN); ValueError for none.

    least: cells below it are framed.
    """
    if frame.empty:
        raise ValueError("heatmap: the frame is empty: give one row and column or more.")
    rows, columns = [str(r) for r in frame.index], [str(c) for c in frame.columns]
    table = frame.to_numpy(dtype=float)
    texts = [["n/a" if v != v else format(v, form) for v in values] for values in table]
    many = len(columns) > 10
    width = 2.8 + (0.5 if many else 0.75) * len(columns)
    with styled_axes(width, 0.9 + 0.35 * len(rows)) as (figure, axis):
        axis.imshow(table, cmap="cividis", aspect="auto")
        for (i, j), value in np.ndenumerate(table):
            dark = value < (np.nanmin(table) + np.nanmax(table)) / 2
            box = {"boxstyle": "square", "fc": "none", "ec": COLORS[5]} if value < least else None
            style: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box}
            axis.text(j, i, texts[i][j], color="kw"[int(dark)], **style)
        axis.set_yticks(range(len(rows)), [plain(_wrap(label)) for label in rows])
        labels = [plain(_wrap(label, 11)) for label in columns]
        axis.set_xticks(range(len(columns)), labels, rotation=45 * many)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(plain(title))
    lead = f"{title}. " if title else ""
    if np.isfinite(least):
        lead += f"Below {least:g}, framed: {(table < least).sum()} of {table.size}. "
    parts = "; ".join(f"{row}: {', '.join(values)}" for row, values in zip(rows, texts))
    show(figure, f"{lead}Columns: {', '.join(columns)}. {parts}.", colours=64)


def brightness(image: Image.Image) -> float:
    """Return the mean of an image's grey values, 0 to 255."""
    return float(np.asarray(image.convert("L"), dtype=float).mean())


def show_banner(text: str | None) -> None:
    """Display a banner such as `kn.banner(domain)`; nothing is displayed for None."""
    if text:
        html = f'<p class="banner" role="note" style="{BANNER_STYLE}">{escape(text)}.</p>'
        display.display({"text/html": html, "text/plain": text}, raw=True)


def show(
    figure: Figure, alt: str, *, colours: int | None = None, images: Sequence[Image.Image] = ()
) -> None:
    """Display a figure as a picture with an alternative text that carries its content.

    `colours` (2 to 256): a palette, for small notebooks; what shows `images` has one, or is a JPEG
    where they are large. ValueError for an empty text.
    """
    if not alt.strip():
        raise ValueError("show: the alternative text is empty: say what the figure shows.")
    photographs = any(image.width >= 256 for image in images)  # or lit by a map: no steps
    colours = 256 if images and not photographs else colours
    form = "jpeg" if photographs else "png"
    buffer = io.BytesIO()
    metadata = {"Software": None}
    with matplotlib.rc_context(STYLE):  # "tight": no label is ever cut off
        figure.savefig(buffer, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    if photographs or colours:
        image = Image.open(buffer).convert("RGB")
        image = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
        image.save(buffer := io.BytesIO(), format=form, optimize=True, quality=88)
    data = {f"image/{form}": buffer.getvalue(), "text/plain": alt}
    display.display(data, raw=True, metadata={f"image/{form}": {"alt": alt}})


def show_page(page: str | os.PathLike[str] | bytes, text: str, height: int = 700) -> None:
    """Display an HTML page that stands alone in a frame, below a text that says what it shows.

    page: its file, or its bytes; height: of the frame, in pixels. The page's own scripts run, and
    reach nothing outside it.
    """
    source = (page if isinstance(page, bytes) else Path(page).read_bytes()).decode()
    page = escape(source, quote=False).replace("'", "&#39;")
    frame = (
        f"<iframe srcdoc='{page}' title=\"{escape(text)}\" "
        'sandbox="allow-scripts" '
        f'style="width:100%;height:{height}px;border:1px solid #8886"></iframe>'
    )
    display.display({"text/html": f"<p>{escape(text)}</p>{frame}", "text/plain": text}, raw=True)


def _wrap(text: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=5, placeholder=" ...")) or text


def plain(text: str) -> str:
    """Return a text for matplotlib, which would read "$...$" as a formula, or fail on it."""
    return printable(text).replace("$", r"\$")


def printable(text: str) -> str:
    """Return a text with each character that DejaVu cannot draw (such as Chinese) as its code."""
    return "".join(f"U+{ord(c):04X}" if ord(c) >= 0x2E80 else c for c in text)
