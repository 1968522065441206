"""Figures of U-Nets, each generated from configurations: block diagrams, treemaps, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from koala_nb.core.files import Record
from koala_nb.display.figures import COLORS, STYLE, show
from koala_nb.models import unet as architecture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import nn

PAINT = {"residual blocks": COLORS[0], "transformer blocks": COLORS[1]}
KIND_PAINT = dict(zip(architecture.KINDS, ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#999999")))
CELL = 0.86  # of a unit: the gap between cells is the rest


def kept_blocks(student: nn.Module, teacher: nn.Module) -> set[str]:
    """Return the teacher's residual and transformer blocks that have a block of the student.

    Names as in the teacher's modules, by `unet.teacher_name`.
    """
    layers = tuple(architecture.layers_per_block(unet) for unet in (teacher, student))
    return {architecture.teacher_name(name + ".", *layers)[:-1] for name in _cells(student)}


def _cells(unet: nn.Module) -> list[str]:
    kinds = ("ResnetBlock2D", "BasicTransformerBlock")
    return [name for name, module in unet.named_modules() if type(module).__name__ in kinds]


def show_block_diagram(teacher: nn.Module, student: nn.Module, names: tuple[str, str]) -> None:
    """Display two U-Nets, the student on its teacher's outline with the removed blocks ghosted.

    A student with blocks that its teacher lacks stands on its own outline, and nothing is ghosted.
    The alternative text counts the blocks.
    """
    kept, everything = kept_blocks(student, teacher), set(_cells(teacher))
    foreign = len(kept - everything)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots(1, 2)
        _draw(axes[0], teacher, everything)
        _draw(axes[1], *((student, set(_cells(student))) if foreign else (teacher, kept)))
        counts = [architecture.stages(unet).loc["total"] for unet in (teacher, student)]
        for axis, name, count in zip(axes, names, counts):
            axis.set_title(f"{name}\n{_millions(count['parameters'])} parameters", fontsize=11)
        handles = [Rectangle((0, 0), 1, 1, color=color) for color in PAINT.values()]
        labels = ["residual block", "transformer block (arrows: skip connections)"]
        if not foreign:
            handles.append(Rectangle((0, 0), 1, 1, fc="none", ec="0.6", ls=":"))
            labels.append("removed")
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    alt = "Block diagram. " + "; ".join(
        f"{name}: {c['residual_blocks']} residual and {c['transformer_blocks']} transformer blocks"
        for name, c in zip(names, counts)
    )
    if foreign:
        alt += f". {foreign} blocks of {names[1]} are not in {names[0]}: nothing is ghosted."
    else:
        removed = len(everything - kept)
        alt += f". {removed} of {len(everything)} blocks of {names[0]} are ghosted in {names[1]}."
    show(figure, alt, colours=64)


def _draw(axis: Axes, unet: nn.Module, kept: set[str]) -> None:
    """Draw the U: down stages on the left, up stages on the right, the mid block at the bottom."""
    places: dict[str, list[str]] = {}
    for name in _cells(unet):
        stage = architecture.stage_of(name)
        pair = int(name.removeprefix(stage).split(".")[2])
        places.setdefault(f"{stage}/{pair:02d}", []).append(name)
    rows = _rows(list(places), len(unet.config.down_block_types))
    longest = max(6, *(len(cells) for cells in places.values()))  # 6: room for the names
    lefts = {"d": 0.0, "m": (longest + 2) / 2, "u": longest + 2.0}  # by a stage's first letter
    for key, cells in places.items():
        cells = sorted(cells, key=lambda name: ".attentions." in name)  # the residual block first
        for i, name in enumerate(cells):
            color = PAINT["transformer blocks" if ".attentions." in name else "residual blocks"]
            style: Record = {"fc": color, "ec": color}
            if name not in kept:
                style = {"fc": "none", "ec": "0.6", "ls": ":"}
            axis.add_patch(Rectangle((lefts[key[0]] + i, rows[key]), CELL, CELL, **style))
    stages = list(dict.fromkeys(key.split("/")[0] for key in places))
    tops = {stage: rows[f"{stage}/00"] for stage in stages}
    for stage, top in tops.items():
        axis.text(lefts[stage[0]], top - 0.25, stage, fontsize=8, color="0.25")
        if stage.startswith("down"):  # the skip connection to the up stage beside it
            middle = top + CELL / 2
            ends = (lefts["u"] - 0.4, middle), (len(places[f"{stage}/00"]), middle)
            axis.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": "0.75"})
    axis.set_xlim(-0.5, 2 * longest + 2.5)
    axis.set_ylim(max(rows.values()) + 1.2, -1)
    axis.set_aspect("equal")
    axis.set_axis_off()


def _rows(keys: list[str], levels: int) -> dict[str, float]:
    """Return the height of each row of cells; stages of one resolution begin side by side."""
    level = {}
    for key in keys:
        name, _, number = key.split("/")[0].partition(".")
        level[key] = levels  # the mid block's
        if number:
            level[key] = int(number) if name == "down_blocks" else levels - 1 - int(number)
    top, tops = 0.0, {}
    for depth in range(levels + 1):
        tops[depth] = top
        pairs = [int(key.split("/")[1]) + 1 for key in keys if level[key] == depth]
        top += max(pairs, default=0) + 1.2
    return {key: tops[level[key]] + int(key.split("/")[1]) for key in keys}


def show_treemap(costs: pd.DataFrame, name: str) -> None:
    """Display a U-Net's parameters as areas, by stage and kind.

    `costs`: of `unet.costs`, at any size.
    """
    import squarify

    table = costs.query("parameters > 0")
    by_stage = table.groupby("stage")["parameters"].sum().sort_values(ascending=False)
    total = by_stage.sum()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axis = figure.subplots()
        sizes = squarify.normalize_sizes(by_stage.tolist(), 84, 48)
        for stage, box in zip(by_stage.index, squarify.squarify(sizes, 0, 0, 84, 48)):
            parts = table[table["stage"] == stage].sort_values("parameters", ascending=False)
            inner = squarify.normalize_sizes(parts["parameters"].tolist(), box["dx"], box["dy"])
            tiles = squarify.squarify(inner, box["x"], box["y"], box["dx"], box["dy"])
            for kind, count, tile in zip(parts["kind"], parts["parameters"], tiles):
                _tile(axis, tile, KIND_PAINT[kind], _millions(count))
            frame = Rectangle((box["x"], box["y"]), box["dx"], box["dy"], fc="none", ec="w", lw=4)
            axis.add_patch(frame)
            if box["dx"] > 12 and box["dy"] > 9:
                corner = (box["x"] + 0.9, box["y"] + box["dy"] - 1)
                label = {"fc": "w", "ec": "none", "pad": 1.5, "alpha": 0.85}
                axis.text(*corner, stage, va="top", weight="bold", fontsize=9, bbox=label)
        axis.set(xlim=(0, 84), ylim=(0, 48))
        axis.set_axis_off()
        axis.set_title(f"{name}: {_millions(total)} parameters by stage and kind")
        _kind_legend(figure)
    text = "; ".join(f"{stage} {count / total:.1%}" for stage, count in by_stage.items())
    kinds = table.groupby("kind")["parameters"].sum().sort_values(ascending=False)
    text += ". By kind: " + "; ".join(f"{kind} {n / total:.1%}" for kind, n in kinds.items())
    alt = f"Treemap of the {_millions(total)} parameters of {name}: {text}."
    show(figure, alt, colours=64)


def _millions(count: float) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 2}f}M"


def _tile(axis: Axes, tile: Mapping[str, float], color: str, text: str) -> None:
    x, y, dx, dy = (tile[key] for key in ("x", "y", "dx", "dy"))
    axis.add_patch(Rectangle((x, y), dx, dy, fc=color, ec="w", lw=0.8))
    if dx > 6 and dy > 6:
        ink = "w" if color == KIND_PAINT["residual blocks"] else "k"
        corner = (x + dx - 0.8, y + 0.9)  # below right: the stage's name is above left
        axis.text(*corner, text, ha="right", va="bottom", color=ink, fontsize=9)


def _kind_legend(figure: Figure) -> None:
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in KIND_PAINT.values()]
    figure.legend(handles, KIND_PAINT, loc="outside lower center", ncols=5, frameon=False)


def show_cost_bars(tables: Mapping[str, pd.DataFrame], title: str) -> None:
    """Display operations per stage and kind, one panel per system.

    `tables`: name -> `unet.costs`. All panels share one scale.
    """
    order = list(dict.fromkeys(stage for table in tables.values() for stage in table["stage"]))
    small = max(table["flops"].sum() for table in tables.values()) < 1e11
    unit, many = ("GFLOP", 1e9) if small else ("TFLOP", 1e12)
    totals = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.9 + 0.42 * len(order)), layout="constrained")
        axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (name, table) in zip(axes, tables.items()):
            wide = table.pivot_table(index="stage", columns="kind", values="flops", aggfunc="sum")
            wide = wide.reindex(index=order, columns=architecture.KINDS).fillna(0) / many
            left = 0 * wide.sum(axis=1)
            for kind in architecture.KINDS:
                axis.barh(order, wide[kind], left=left, color=KIND_PAINT[kind], height=0.7)
                left = left + wide[kind]
            axis.set_title(f"{name}: {left.sum():.2f} {unit}")
            axis.set_xlabel(f"{unit}, one pass, one image")
            axis.grid(axis="x", alpha=0.3)
            axis.set_axisbelow(True)
            rows = "; ".join(f"{stage} {value:.2f}" for stage, value in left.items())
            totals.append(f"{name}, {left.sum():.2f} in all: {rows}")
        axes[0].invert_yaxis()
        figure.suptitle(title, fontsize=11)
        _kind_legend(figure)
    show(figure, f"{title}. {unit} per stage. {'. '.join(totals)}.", colours=64)
