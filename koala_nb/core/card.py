"""What the authors publish about KOALA: `data/reference/koala_card.yaml`, read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).resolve().parents[2] / "data" / "reference" / "koala_card.yaml"


@dataclass(frozen=True)
class Card:
    """The card's statements in our own words; each field is a sentence, a list or a citation."""

    what: str
    compression: str
    training: str
    uses: tuple[str, ...]
    out_of_scope: str
    limitations: tuple[str, ...]
    steps_note: str
    licence: str
    citation: str
    source: str


_published: dict[str, Any] = yaml.safe_load(_FILE.read_text("utf-8"))
CARD_SOURCE: str = _published["card_source"]
FIGURE_SOURCE: str = _published["figure_source"]
# The card's table. Transformer blocks are the card's own numbers, per resolution.
CARD_TABLE: list[dict[str, object]] = _published["card_table"]
CARD_TABLE_CONDITIONS: str = _published["card_table_conditions"]
# (latency in s, peak memory in GB) per GPU; None: out of memory.
LATENCY_GPUS: tuple[str, ...] = tuple(_published["latency_gpus"])
LATENCY_FIGURE: dict[str, tuple[tuple[float, float] | None, ...]] = {
    system: tuple(pair and (pair[0], pair[1]) for pair in pairs)
    for system, pairs in _published["latency_figure"].items()
}
LATENCY_CONDITIONS: str = _published["latency_conditions"]
_lists = {key: tuple(_published["card"][key]) for key in ("uses", "limitations")}
CARD = Card(**{**_published["card"], **_lists}, source=CARD_SOURCE)
