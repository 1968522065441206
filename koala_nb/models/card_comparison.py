"""The model card's table of U-Nets beside the same table recomputed from configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from koala_nb.core import catalog
from koala_nb.core.card import CARD_TABLE, CARD_TABLE_CONDITIONS
from koala_nb.models import unet as architecture

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

ORDER = ["parameters", "reduction", "checkpoint", "transformer blocks", "mid block", "latency (s)"]


def card_comparison() -> pd.DataFrame:
    """Recompute the card's table of U-Nets: columns quantity, system, published, computed, verdict.

    The published side is `card.CARD_TABLE`. Latencies are quoted, not computed.
    """
    import pandas as pd

    rows, sizes = [], {}
    for line in CARD_TABLE:
        name = str(line["U-Net"])
        (system,) = [s for s in catalog.SYSTEMS if s.title == name]
        unet = architecture.build_unet(system.name)
        count = sizes[name] = int(architecture.stages(unet).loc["total", "parameters"])
        for quantity, computed, verdict in (
            ("parameters", f"{count:,}", _verdict_count(str(line["parameters"]), count)),
            ("checkpoint", _gigabytes(count), _verdict_size(str(line["checkpoint"]), count)),
            ("transformer blocks", *_depths(unet, str(line["transformer blocks"]))),
            ("mid block", mid := unet.mid_block is not None, _agrees(mid == line["mid block"])),
            ("latency (s)", "not computed", f"quoted: {CARD_TABLE_CONDITIONS}"),
        ):
            rows.append((quantity, name, line[quantity], computed, verdict))
    for name, published in (("KOALA-1B", 54), ("KOALA-700M", 69)):
        exact = 100 * (1 - sizes[name] / sizes["SDXL-Base-1.0"])
        verdict = f"holds for parameters, cut to whole percent ({exact:.0f} % when rounded)"
        row = ("reduction", name, f"up to {published} %", f"{exact:.2f} % of 2,567M")
        rows.append((*row, verdict if int(exact) == published else "does not hold"))
    frame = pd.DataFrame(rows, columns=["quantity", "system", "published", "computed", "verdict"])
    return frame.sort_values(
        "quantity", key=lambda s: s.map(ORDER.index), kind="stable", ignore_index=True
    )


def _agrees(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _verdict_count(published: str, count: int) -> str:
    whole = int(published.rstrip("M").replace(",", ""))
    if round(count / 1e6) == whole:
        return "holds"
    return "holds, cut instead of rounded" if count // 10**6 == whole else "does not hold"


def _gigabytes(count: int) -> str:
    return "; ".join(
        f"float{8 * size}: {count * size / 1e9:.2f} GB, {count * size / 2**30:.2f} GiB"
        for size in (4, 2)
    )


def _verdict_size(published: str, count: int) -> str:
    figure = published.removesuffix("GB")
    digits = len(figure.partition(".")[2])
    for size in (4, 2):
        for unit, bytes_ in (("GB", 1e9), ("GiB", 2**30)):
            if f"{count * size / bytes_:.{digits}f}" == figure:
                return f"holds: float{8 * size} in {unit}"
    return "does not hold in float32 or float16, in GB or GiB"


def _depths(unet: nn.Module, published: str) -> tuple[str, str]:
    """Return the transformer blocks a pair of each down stage, as the card counts them."""
    found = architecture.blocks(unet)
    depths = []
    for i in range(len(unet.config.down_block_types)):
        own = found[found["stage"] == f"down_blocks.{i}"]["transformer_blocks"]
        depths.append(int(own.max()))
    inside = found[found["stage"] == "mid_block"]["transformer_blocks"].sum()
    return f"{depths}; mid block {inside}", _agrees(str(depths) == published)
