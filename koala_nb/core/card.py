"""What the authors publish about KOALA: `data/reference/koala_card.yaml`, read."""

from types import SimpleNamespace

from koala_nb.core.files import Record, read_reference

_published: Record = read_reference("koala_card.yaml")
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
# The card's statements in our own words; each is a sentence, a list or a citation.
CARD = SimpleNamespace(**_published["card"], source=CARD_SOURCE)
