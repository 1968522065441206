"""Where the blocks of a U-Net stand in its picture: a real U, from the configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

# Units: a transformer block is one high.
RESIDUAL, GAP, BETWEEN = 1.8, 0.24, 1.5  # a residual block; between boxes; between resolutions
ARM, WIDEST = 3.6, 4.4  # from the middle to each arm; a box with the most channels
Side = list[str]  # the blocks on one side of a row, from the top
Row = tuple[Side, Side]  # on the way down, on the way up
EMPTY: Row = ([], [])


@dataclass(frozen=True)
class Box:
    """A block in the picture: x of its middle and y of its top, downward. `cut`: it is gone.

    `name` is the module's; of a block that is gone, the one in the U-Net that it was cut from.
    """

    name: str
    x: float
    y: float
    width: float
    height: float
    cut: bool = False


@dataclass(frozen=True)
class Layout:
    """A U-Net's picture: its boxes, which of them a skip connection joins, y where levels begin."""

    boxes: list[Box]
    skips: list[tuple[Box, Box]]
    levels: list[float]


def unet_layouts(unets: Sequence[nn.Module]) -> list[Layout]:
    """Lay U-Nets out on one scale: resolution downward, channels as width, each skip horizontal.

    What the first has and another lacks gets a box with `cut`; its place says nothing of weights.
    """
    pictures = [_levels(unet) for unet in unets]
    depth = max(map(len, pictures))
    pictures = [[*p[:-1], *[[]] * (depth - len(p)), p[-1]] for p in pictures]  # the mid block last
    counts = [max(map(len, level)) for level in zip(*pictures)]
    pictures = [
        [rows[:1] + [EMPTY] * (n - len(rows)) + rows[1:] for rows, n in zip(p, counts)]
        for p in pictures
    ]
    y, tops, bottoms = 0.0, [], []
    for level in zip(*pictures):
        tops.append(y)
        heights = [max(_height(side) for row in rows for side in row) for rows in zip(*level)]
        bottoms.append([y := y + height for height in heights])
        y += BETWEEN
    first = unets[0], pictures[0]
    return [_layout(unet, p, first, tops, bottoms) for unet, p in zip(unets, pictures)]


def _levels(unet: nn.Module) -> list[list[Row]]:
    """Return the rows of each resolution, then the mid block's; a skip joins a row's lowest two."""
    count, levels = len(unet.down_blocks), []
    for i in range(count):
        up = count - 1 - i
        entry = "conv_in" if i == 0 else f"down_blocks.{i - 1}.downsamplers.0"
        down = [[entry], *_pairs(unet.down_blocks[i], f"down_blocks.{i}")]
        upward = [pair[::-1] for pair in _pairs(unet.up_blocks[up], f"up_blocks.{up}")[::-1]]
        rows: list[Row] = list(zip(down, upward))
        if i == 0:
            rows[0] = (down[0], ["conv_out", *upward[0]])
        if up:
            rows.append(([], [f"up_blocks.{up - 1}.upsamplers.0"]))
        levels.append(rows)
    middle: Side = []
    if unet.mid_block is not None:
        first, *others = [f"mid_block.resnets.{i}" for i in range(len(unet.mid_block.resnets))]
        middle = [first, *_transformers(unet.mid_block, "mid_block", 0), *others]
    return [*levels, [(middle, [])]]


def _pairs(stage: nn.Module, name: str) -> list[Side]:
    pairs = range(len(stage.resnets))
    return [[f"{name}.resnets.{i}", *_transformers(stage, name, i)] for i in pairs]


def _transformers(stage: nn.Module, name: str, pair: int) -> Side:
    attentions = getattr(stage, "attentions", None) or ()
    blocks = attentions[pair].transformer_blocks if pair < len(attentions) else ()
    return [f"{name}.attentions.{pair}.transformer_blocks.{k}" for k in range(len(blocks))]


def _height(blocks: Side) -> float:
    return sum(_tall(name) + GAP for name in blocks)


def _tall(name: str) -> float:
    return RESIDUAL if ".resnets." in name else 1.0


def _channels(unet: nn.Module, name: str) -> int:
    module = unet.get_submodule(name)
    if ".transformer_blocks." in name:
        return module.norm1.normalized_shape[0]
    return module.in_channels if name == "conv_out" else module.out_channels


def _layout(
    unet: nn.Module,
    picture: list[list[Row]],
    teacher: tuple[nn.Module, list[list[Row]]],
    tops: list[float],
    bottoms: list[list[float]],
) -> Layout:
    boxes: list[Box] = []
    skips: list[tuple[Box, Box]] = []
    for rows, originals, below in zip(picture, teacher[1], bottoms):
        x = 0.0 if rows is picture[-1] else ARM
        for row, original, bottom in zip(rows, originals, below):
            left, right = (
                _stack(unet, teacher[0], names, others, at, bottom)
                for names, others, at in zip(row, original, (-x, x))
            )
            boxes += [*left, *right]
            if all(row):
                skips.append((left[0], right[0]))
    return Layout(boxes, skips, tops)


def _stack(
    unet: nn.Module, teacher: nn.Module, names: Side, originals: Side, x: float, bottom: float
) -> list[Box]:
    """Return the boxes of one side of a row, the lowest first, those that are gone above them."""
    gone = originals
    if names:
        kept = [sum(part in name for name in names) for part in (".resnets.", ".transformer_")]
        gone = [n for n in originals if ".resnets." in n][kept[0] :]
        gone += [n for n in originals if ".transformer_" in n][kept[1] :]
    boxes = []
    for source, stack, cut in ((unet, names, False), (teacher, gone, True)):
        for name in stack[::-1]:
            bottom -= _tall(name) + GAP
            width = WIDEST * _channels(source, name) / max(source.config.block_out_channels)
            boxes.append(Box(name, x, bottom, width, _tall(name), cut))
    return boxes
