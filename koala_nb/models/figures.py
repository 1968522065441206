"""Figures of U-Nets, each generated from configurations: block diagrams, treemaps, costs."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from torch import nn

from koala_nb.core.files import Record
from koala_nb.display.figures import plain, show, show_images, styled_axes
from koala_nb.models import unet as architecture
from koala_nb.models.layout import ARM, Box, Layout, unet_layouts
from koala_nb.models.load import Pipeline

KIND_PAINT = dict(zip(architecture.KINDS, ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#999999")))
PARTS = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward"}
NAMES = {
    "residual blocks": "residual block\n(receives the timestep)",
    "other": "convolution\nbetween",
}
NAMES["cross-attention"] = "cross-attention\n(reads the prompt)"
PANEL = 15.0  # from one U-Net's middle to the next one's, in the layout's units
FLOW = {"arrowstyle": "-|>", "color": "0.35", "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
Point = tuple[float, float]


def show_unets(unets: Mapping[str, nn.Module], size: int = 1024, factor: int = 8) -> None:
    """Display U-Nets beside each other, each as a U, with what the first has and another lacks.

    unets: title -> U-Net, the teacher first; size: of the image, pixels, `factor` per latent cell.
    """
    layouts = unet_layouts(list(unets.values()))
    bottom = max(box.y + box.height for one in layouts for box in one.boxes)
    right = PANEL * (len(unets) - 0.5)
    with styled_axes(1.0 + 3.4 * len(unets), 8.2) as (figure, axis):
        _draw_levels(axis, next(iter(unets.values())), layouts[0].levels, size // factor, right)
        for at, ((title, unet), one) in enumerate(zip(unets.items(), layouts)):
            _draw_unet(axis, unet, one, PANEL * at)
            count = _millions(architecture.stages(unet).loc["total", "parameters"])
            heading = f"{title}\n{count} parameters"
            axis.text(PANEL * at, -3.4, heading, ha="center", va="bottom", fontsize=11)
        _draw_key(axis, bottom + 2.2, right)
        axis.set(xlim=(-PANEL / 2 - 4, right), ylim=(bottom + 4.5, -6.5))
        axis.set_axis_off()
    show(figure, _blocks_alt(unets, layouts), colours=64)


def _draw_levels(axis: Axes, unet: nn.Module, tops: list[float], cells: int, right: float) -> None:
    left = -PANEL / 2 - 3.8
    for k, channels in enumerate(unet.config.block_out_channels):
        ends = tops[k] - 0.75, tops[k + 1] - 0.75
        axis.axhspan(*ends, color="0.965" if k % 2 == 0 else "1", lw=0)
        text = f"{cells >> k} x {cells >> k}\ncells,\n{channels}\nchannels"
        axis.text(left, sum(ends) / 2, text, ha="left", va="center", fontsize=9, color="0.25")
    if unet.mid_block is not None:
        text = text.replace("\ncells", " cells").replace("\nchannels", " channels")
        axis.text(left, tops[-1], f"mid block:\n{text}", va="top", fontsize=9, color="0.25")


def _draw_unet(axis: Axes, unet: nn.Module, layout: Layout, x: float) -> None:
    for start, end in layout.skips:
        y = start.y + start.height / 2
        ends = (x + end.x - end.width / 2, y), (x + start.x + start.width / 2, y)
        axis.annotate("", *ends, arrowprops={**FLOW, "lw": 0.9, "color": "0.6"}, zorder=1)
    for box in layout.boxes:
        left = x + box.x - box.width / 2
        if box.cut:
            style: Record = {"fc": "none", "ec": "0.72", "lw": 0.5, "ls": (0, (2, 2))}
            axis.add_patch(Rectangle((left, box.y), box.width, box.height, **style))
            continue
        for color, share in block_colours(unet, box.name):
            width = share * box.width
            axis.add_patch(Rectangle((left, box.y), width, box.height, fc=color, lw=0, zorder=2))
            left += width
    kept = [box for box in layout.boxes if not box.cut]
    _draw_flow(axis, kept, layout.levels, x)
    names = [architecture.stage_of(box.name) for box in kept if ".resnets." in box.name]
    for stage in dict.fromkeys(names):
        boxes = [b for b in kept if stage in b.name and "samplers" not in b.name]
        y = (min(b.y for b in boxes) + max(b.y + b.height for b in boxes)) / 2
        side = 1 if stage.startswith("up") else -1
        near = [b.width for b in kept if b.x == boxes[0].x and abs(b.y - y) < 4 or b in boxes]
        at = x + boxes[0].x + side * (max(near) / 2 + 0.55)
        axis.text(at, y, stage, rotation=90, ha="center", va="center", fontsize=7, color="0.3")


def block_colours(unet: nn.Module, name: str) -> list[tuple[str, float]]:
    """Return the colours of a block and which share of its parameters each stands for."""
    block = unet.get_submodule(name)
    if not name.split(".")[-2:-1] == ["transformer_blocks"]:
        return [(KIND_PAINT[architecture.kind_of(name)], 1.0)]
    counts = {kind: architecture.parameters(getattr(block, part)) for part, kind in PARTS.items()}
    return [(KIND_PAINT[kind], n / sum(counts.values())) for kind, n in counts.items()]


def _draw_flow(axis: Axes, boxes: list[Box], tops: list[float], x: float) -> None:
    """Draw arrows into the U, from each resolution to the next, through the bottom, and out."""
    down, up = ([b for b in boxes if b.x * sign > 0] for sign in (-1, 1))
    left, right = x - ARM, x + ARM
    paths = [[(left, -2.0), (left, min(b.y for b in down))]]
    paths.append([(right, min(b.y for b in up)), (right, -2.0)])
    for top in tops[1:-1]:
        for side, at in ((down, left), (up, right)):
            above = [b.y + b.height for b in side if b.y < top - 1e-6]
            below = [b.y for b in side if b.y > top - 1e-6]
            if above and below:  # beside a U-Net of more resolutions there may be none
                path = [(at, max(above)), (at, min(below))]
                paths.append(path if side is down else path[::-1])
    floors = [max(b.y + b.height for b in side) for side in (down, up)]
    middle = [b for b in boxes if b.x == 0]
    if middle:
        first, last = min(middle, key=lambda b: b.y), max(middle, key=lambda b: b.y)
        edges = [(x + s * b.width / 2, b.y + b.height / 2) for s, b in ((-1, first), (1, last))]
        paths.append([(left, floors[0]), (left, edges[0][1]), edges[0]])
        paths.append([edges[1], (right, edges[1][1]), (right, floors[1])])
    else:
        floor = max(floors) + 1.2
        paths.append([(left, floors[0]), (left, floor), (right, floor), (right, floors[1])])
    for path in paths:
        _arrow(axis, path)
    for at, text in ((left, "noisy latent"), (right, "its noise")):
        axis.text(at, -2.2, text, ha="center", va="bottom", fontsize=8, color="0.25")


def _draw_key(axis: Axes, y: float, right: float) -> None:
    cut: Record = {"fc": "none", "ec": "0.5", "lw": 0.8, "ls": (0, (2, 2))}
    styles = {kind: {"fc": color, "lw": 0} for kind, color in KIND_PAINT.items()}
    left = -PANEL / 2 - 3.8
    wide = (right - left) / (len(styles) + 0.7)
    for at, (kind, style) in enumerate({**styles, "cut": cut}.items()):
        x = left + wide * at
        axis.add_patch(Rectangle((x, y), 1.2, 1.8, **style))
        text = NAMES.get(kind, kind)
        axis.text(x + 1.5, y + 0.9, text, va="center", fontsize=9)


def _blocks_alt(unets: Mapping[str, nn.Module], layouts: Sequence[Layout]) -> str:
    parts = []
    for (title, unet), one in zip(unets.items(), layouts):
        count = architecture.stages(unet).loc["total"]
        gone = sum(box.cut and "samplers" not in box.name for box in one.boxes)
        parts.append(
            f"{title}: {count['residual_blocks']} residual and {count['transformer_blocks']} "
            f"transformer blocks, {len(one.skips)} skip connections"
            + f", {gone} blocks of the first are gone"
            * bool(gone)
        )
    return f"U-Nets drawn block by block, resolution downward. {'; '.join(parts)}."


def show_pipeline(pipe: Pipeline, size: tuple[int, int], prompt: str) -> None:
    """Display how a pipeline like SDXL's draws: encoders, the loop around the U-Net, the decoder.

    size: height and width of the image, pixels. The shapes on the arrows are those of `pipe`.
    """
    rows, columns = (side // pipe.vae_scale_factor for side in size)
    shapes = {"latent": f"{pipe.unet.config.in_channels} x {rows} x {columns}"}
    shapes["picture"] = f"3 x {size[0]} x {size[1]}"
    tokens, width = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    shapes |= {"states": f"{tokens} x {width}", "prompt": plain(textwrap.fill(prompt, 18))}
    shapes["pooled"] = str(pipe.text_encoder_2.config.projection_dim)
    plan = json.loads(files(__package__).joinpath("templates/pipeline.json").read_text("utf-8"))
    paint = {"text": KIND_PAINT["cross-attention"], "time": KIND_PAINT["residual blocks"]}
    with styled_axes(10.4, 4.5) as (figure, axis):
        style: Record = {"fc": "0.97", "ec": "0.6", "lw": 1, "ls": (0, (4, 3)), "zorder": 0}
        axis.add_patch(Rectangle((17, 2), 65, 27, **style))
        noise = np.random.default_rng(0).normal(size=(16, 16))
        axis.imshow(noise, cmap="gray", extent=(2, 11, 14.5, 23.5), aspect="auto")
        for x, y, wide, high, color in plan["blocks"]:
            axis.add_patch(Rectangle((x, y), wide, high, fc=paint[color], lw=0, zorder=4))
        for text, x, y, wide, high, color in plan["boxes"]:
            box: Record = {"boxstyle": "round,pad=0,rounding_size=0.8", "alpha": 0.7, "lw": 0}
            box["fc"] = paint.get(color, color)
            axis.add_patch(FancyBboxPatch((x, y), wide, high, **box))
            plan["labels"].append([text, x + wide / 2, y + high / 2])
        for color, path in plan["arrows"]:
            _arrow(axis, path, paint.get(color, color))
        for text, x, y in plan["labels"]:
            axis.text(x, y, text.format(**shapes), ha="center", va="center", fontsize=9)
        axis.set(xlim=(0, 106), ylim=(1, 43))
        axis.set_axis_off()
    alt = " ".join(plan["alt"]).format(**shapes)
    show(figure, f"How {prompt!r} {alt}", colours=64)


def _arrow(axis: Axes, path: Sequence[Point], color: str = "0.35") -> None:
    axis.plot(*zip(*path[:-1]), color=color, lw=1.4, zorder=3, solid_joinstyle="round")
    axis.annotate("", path[-1], path[-2], arrowprops={**FLOW, "color": color}, zorder=3)


def show_treemaps(tables: Mapping[str, pd.DataFrame]) -> None:
    """Display parameters as areas by stage and kind, on one scale: title -> `unet.costs`."""
    counts = {title: int(table["parameters"].sum()) for title, table in tables.items()}
    x, texts = 0.0, []
    with styled_axes(10.4, 4.9) as (figure, axis):
        for title, table in tables.items():
            scale = (counts[title] / max(counts.values())) ** 0.5
            _draw_treemap(axis, table.query("parameters > 0"), x, 84 * scale, 60 * scale)
            heading = f"{title}: {_millions(counts[title])}"
            axis.text(x, 60 * scale + 1.2, heading, fontsize=10)
            x += max(84 * scale, 40) + 19
            texts.append(f"{heading} parameters: {_stageblock_colours(table)}")
        axis.set(xlim=(0, x), ylim=(0, 65), aspect="equal")
        axis.set_axis_off()
        _kind_legend(figure)
    show(figure, f"Treemaps on one scale. {'. '.join(texts)}.", colours=64)


def _stageblock_colours(table: pd.DataFrame) -> str:
    total = table["parameters"].sum()
    groups = [
        table.groupby(key)["parameters"].sum().sort_values(ascending=False) / total
        for key in ("stage", "kind")
    ]
    stages, kinds = ("; ".join(f"{name} {n:.1%}" for name, n in group.items()) for group in groups)
    return f"{stages}. By kind: {kinds}"


def _draw_treemap(axis: Axes, table: pd.DataFrame, x: float, width: float, height: float) -> None:
    import squarify

    by_stage = table.groupby("stage")["parameters"].sum().sort_values(ascending=False)
    sizes = squarify.normalize_sizes(by_stage.tolist(), width, height)
    for stage, box in zip(by_stage.index, squarify.squarify(sizes, x, 0, width, height)):
        parts = table[table["stage"] == stage].sort_values("parameters", ascending=False)
        inner = squarify.normalize_sizes(parts["parameters"].tolist(), box["dx"], box["dy"])
        tiles = squarify.squarify(inner, box["x"], box["y"], box["dx"], box["dy"])
        for kind, count, tile in zip(parts["kind"], parts["parameters"], tiles):
            _tile(axis, tile, KIND_PAINT[kind], _millions(count))
        frame = Rectangle((box["x"], box["y"]), box["dx"], box["dy"], fc="none", ec="w", lw=3)
        axis.add_patch(frame)
        if box["dx"] > 25:
            corner = (box["x"] + 0.9, box["y"] + box["dy"] - 1)
            label = {"fc": "w", "ec": "none", "pad": 1.5, "alpha": 0.85}
            axis.text(*corner, stage, va="top", weight="bold", fontsize=8, bbox=label)
        elif box["dx"] * box["dy"] > 0.04 * width * height:  # too narrow: named beside the map
            at = box["x"] + 0.8 * box["dx"], box["y"] + 0.8 * box["dy"]
            end, line = (x + width + 1.5, at[1]), {"arrowstyle": "-", "lw": 0.8}
            axis.annotate(stage, at, end, va="center", weight="bold", fontsize=8, arrowprops=line)


def _millions(count: float) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 2}f}M"


def _tile(axis: Axes, tile: Mapping[str, float], color: str, text: str) -> None:
    x, y, dx, dy = (tile[key] for key in ("x", "y", "dx", "dy"))
    axis.add_patch(Rectangle((x, y), dx, dy, fc=color, ec="w", lw=0.8))
    if dx > 8 and dy > 7:
        ink = "w" if color == KIND_PAINT["residual blocks"] else "k"
        corner = (x + dx - 0.8, y + 0.9)  # below right: the stage's name is above left
        axis.text(*corner, text, ha="right", va="bottom", color=ink, fontsize=9)


def _kind_legend(figure: Figure) -> None:
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in KIND_PAINT.values()]
    figure.legend(handles, KIND_PAINT, loc="outside lower center", ncols=5, frameon=False)


def show_cost_bars(tables: Mapping[str, pd.DataFrame], title: str) -> None:
    """Display operations by stage and kind, on one scale: name of a panel -> `unet.costs`."""
    order = list(dict.fromkeys(stage for table in tables.values() for stage in table["stage"]))
    small = max(table["flops"].sum() for table in tables.values()) < 1e11
    unit, many = ("GFLOP", 1e9) if small else ("TFLOP", 1e12)
    totals = []
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    with styled_axes(9.2, 0.9 + 0.42 * len(order), 1, len(tables), **shared) as (figure, axes):
        for axis, (name, table) in zip(axes[0], tables.items()):
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
        axes[0, 0].invert_yaxis()
        figure.suptitle(title, fontsize=11)
        _kind_legend(figure)
    show(figure, f"{title}. {unit} per stage. {'. '.join(totals)}.", colours=64)


def as_image(values: torch.Tensor) -> Image.Image:
    """Return values, (rows, columns) or with 3 colours, as a picture from smallest to largest."""
    array = values.numpy()
    array = (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    return Image.fromarray((255 * array).round().astype(np.uint8)).convert("RGB")


def show_changes(images: Mapping[str, Image.Image], title: str) -> None:
    """Display images, each with the mean difference of its pixels to the first, of 255."""
    pixels = [np.asarray(image.convert("RGB"), dtype=float) for image in images.values()]
    names = [re.sub(r"\.(?=[a-z])", " ", name) for name in images]  # lines break at spaces
    changes = [np.abs(array - pixels[0]).mean() for array in pixels]
    captions = names[:1] + [f"{name}: {d:.0f}" for name, d in zip(names[1:], changes[1:])]
    meaning = "mean change of a pixel, of 255 levels"
    show_images(list(images.values()), captions, title=title, meaning=meaning)
