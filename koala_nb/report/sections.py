"""Tables of the notebooks that do not yet use `kn.show_table` and `kn.start`: to go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from koala_nb.core import card
from koala_nb.models.session import generation_settings as settings  # noqa: F401

if TYPE_CHECKING:
    from IPython.display import HTML


def latency_table() -> HTML:
    """Published latency (s) and peak memory (GB) per GPU."""
    rows = [
        (name, *("out of memory" if v is None else f"{v[0]:.2f} s, {v[1]:.1f} GB" for v in values))
        for name, values in card.LATENCY_FIGURE.items()
    ]
    caption = f"Latency, peak memory. Source: {card.FIGURE_SOURCE}; {card.LATENCY_CONDITIONS}"
    return table(("system", *card.LATENCY_GPUS), rows, caption)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> HTML:
    """An HTML table with a caption and scoped headers; every text is escaped.

    The first column names the row. None reads "unknown", True and False "yes" and "no".
    """
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td>{_text(value)}</td>" for value in others)
        + "</tr>"
        for first, *others in rows
    )
    caption = f"<caption>{escape(caption)}.</caption>"
    return _html(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else escape(str(value))


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)
