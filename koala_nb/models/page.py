"""A U-Net block by block on a page that stands alone: what each costs, what is drawn without it."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

from PIL import Image
from torch import nn

from koala_nb.core.files import Record, write_atomic
from koala_nb.display.page import filled_page, webp
from koala_nb.models import unet as architecture
from koala_nb.models.figures import block_colours
from koala_nb.models.layout import unet_layouts

WEBP = "data:image/webp;base64,"


def write_page(
    path: str | os.PathLike[str],
    unet: nn.Module,
    whole: Image.Image,
    without: Mapping[str, Image.Image],
    title: str,
    banner: str | None = None,
    maps: Mapping[str, Image.Image] | None = None,
) -> Path:
    """Write a page with a U-Net's picture: choose a block, see its cost and the image without it.

    whole: what the whole U-Net draws; without: module's name -> what is drawn without it, where an
    up stage's name stands for its skip connections; maps: name -> the output of a block, as a
    picture. ValueError for a bad name or large pictures.
    """
    (layout,) = unet_layouts([unet])
    parts: dict[str, Record] = {}
    for box in layout.boxes:
        name = box.name.partition(".transformer_blocks")[0]
        count = architecture.parameters(unet.get_submodule(name))
        part = parts.setdefault(name, {"label": name, "parameters": count, "boxes": []})
        left = box.x - box.width / 2
        for colour, share in block_colours(unet, box.name):
            part["boxes"].append([left, box.y, share * box.width, box.height, colour])
            left += share * box.width
    for start, end in layout.skips:
        stage = architecture.stage_of(end.name)
        part = parts.setdefault(stage, {"label": f"skip connections into {stage}", "boxes": []})
        ends = start.x + start.width / 2, end.x - end.width / 2
        y = start.y + start.height / 2
        part["boxes"].append([ends[0], y - 0.16, ends[1] - ends[0], 0.32, "#888888"])
    shown = {"picture": without, "map": maps or {}}
    if unknown := sorted({name for images in shown.values() for name in images} - parts.keys()):
        raise ValueError(f"The U-Net has no block {unknown[0]!r}: give names of its modules.")
    for key, images in shown.items():
        for name, image in images.items():
            parts[name][key] = WEBP + webp(image)
    data: Record = {"parts": list(parts.values()), "whole": WEBP + webp(whole)}
    data |= {"total": architecture.parameters(unet), "cells": unet.config.sample_size}
    bottom = max(box.y + box.height for box in layout.boxes)
    view = f"-9.2 -0.5 18.4 {bottom + 1:.1f}"
    texts = {"title": escape(title), "view": view}
    template = ("koala_nb.models", "unet.html")
    return write_atomic(path, filled_page(template, data, banner, "give fewer pictures", **texts))
