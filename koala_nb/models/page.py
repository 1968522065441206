"""A U-Net block by block on a page that stands alone: what each costs, what is drawn without it."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from koala_nb.core.files import Record, write_atomic
from koala_nb.display.figures import BANNER_STYLE
from koala_nb.models import unet as architecture
from koala_nb.models.figures import block_colours
from koala_nb.models.layout import unet_layouts

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

LARGEST_PAGE = 1_500_000  # bytes
PICTURE = 256  # pixels per side at most on the page


def write_page(
    path: str | os.PathLike[str],
    unet: nn.Module,
    whole: Image.Image,
    without: Mapping[str, Image.Image],
    title: str,
    banner: str | None = None,
) -> Path:
    """Write a page with a U-Net's picture: choose a block, see its cost and the image without it.

    One HTML file, without any external request, under 1.5 MB, usable by keyboard. whole: what the
    whole U-Net draws; without: module's name -> what is drawn without it, where an up stage's name
    stands for its skip connections. ValueError for an unknown name or too large pictures.
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
    if unknown := sorted(without.keys() - parts.keys()):
        raise ValueError(f"The U-Net has no block {unknown[0]!r}: give names of its modules.")
    for name, image in without.items():
        parts[name]["picture"] = _data_url(image)
    data: Record = {"parts": list(parts.values()), "whole": _data_url(whole)}
    data["total"] = architecture.parameters(unet)
    bottom = max(box.y + box.height for box in layout.boxes)
    template = files("koala_nb.models").joinpath("templates", "unet.html")
    page = Template(template.read_text("utf-8")).substitute(
        title=escape(title),
        banner=f'<p role="note" style="{BANNER_STYLE}">{escape(banner)}.</p>' if banner else "",
        view=f"-6.2 -0.5 12.4 {bottom + 1:.1f}",
        data=json.dumps(data).replace("<", "\\u003c"),
    )
    if len(page.encode()) > LARGEST_PAGE:
        raise ValueError(f"The page would take {len(page.encode()):,} bytes: give fewer pictures.")
    return write_atomic(path, page.encode())


def _data_url(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((PICTURE, PICTURE))
    image.save(buffer := io.BytesIO(), format="WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
