"""One accessible table from any frame: caption, scoped headers, intervals, units, a text form."""

from collections.abc import Hashable, Iterable, Mapping
from html import escape
from numbers import Integral, Real
from typing import Any, TypeAlias

import pandas as pd
from IPython import display

TableData: TypeAlias = pd.DataFrame | pd.Series | Mapping[str, Any] | Iterable[Mapping[str, Any]]
Digits = int | Mapping[str, int]  # of all columns, or by column
Units = Mapping[str, str]  # by column
HIDDEN = "id"  # for code, not for people
MISSING = "n/a"
EMPTY = "Nothing of this was measured here."
MINUS = "\N{MINUS SIGN}"
P_VALUES = ("p", "p_holm", "p_adjusted")  # columns that always show three decimals


def show_table(
    data: TableData,
    caption: str | None = None,
    *,
    digits: Digits = 2,
    units: Units | None = None,
    empty: str = EMPTY,
) -> None:
    """Display a table as accessible HTML, with the same table as text for who sees no HTML.

    data: a tidy estimates frame (`id, label, value, low, high, n, clusters, method, scorer`), any
    frame or series, records, or a mapping of names to values. Columns `value, low, high` (also
    `x, x_low, x_high`) become one, "0.31 (0.22 to 0.41)"; `id` is hidden; a method or scorer that
    all rows share goes to the caption; a named index becomes columns.
    digits: decimals of fractions, of all columns or by column. units: column -> unit for its
    heading; "%" also multiplies by 100, and `digits` still counts those of the share.
    empty: the sentence in place of a table without rows.
    """
    frame, caption = _shown(data, caption, digits, units)
    if frame.empty:
        text = f"{caption}: {empty}" if caption else empty
        html = f"<p>{escape(text)}</p>"
    else:
        text = "\n".join(part for part in (caption, frame.to_string(index=False)) if part)
        html = _html(frame, caption)
    display.display({"text/html": html, "text/plain": text}, raw=True)


def table_html(
    data: TableData, caption: str | None = None, *, digits: Digits = 2, units: Units | None = None
) -> str:
    """Return the HTML of `show_table`; every text in it is escaped."""
    return _html(*_shown(data, caption, digits, units))


def format_number(value: object, digits: int = 2) -> str:
    """Write a value as the tables do: 1,234; 0.31; 0.0004 to one digit; yes; n/a for NaN."""
    if value is None or str(value) == "<NA>" or value != value:
        return MISSING
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}".replace("-", MINUS)
    if not isinstance(value, Real):
        return str(value)
    value = float(value)
    text = f"{value:,.{0 if abs(value) >= 1000 else digits}f}"
    if value and not float(text.replace(",", "")):  # a small number is not nothing
        text = f"{value:.1g}"
    return text.replace("-", MINUS)


def format_interval(value: object, low: object, high: object, digits: int = 2) -> str:
    """Write an estimate as "0.31 (0.22 to 0.41)"; without its ends where there are none."""
    if low is None or high is None or low != low or high != high:
        return format_number(value, digits)
    ends = f"{format_number(low, digits)} to {format_number(high, digits)}"
    return ends if value is None else f"{format_number(value, digits)} ({ends})"


def _shown(
    data: TableData, caption: str | None, digits: Digits, units: Units | None
) -> tuple[pd.DataFrame, str]:
    if isinstance(data, Mapping):
        values = pd.Series([*data.values()], dtype=object)
        data = pd.DataFrame({"property": list(data), "value": values})
    try:
        frame = data.to_frame() if isinstance(data, pd.Series) else pd.DataFrame(data)
    except (TypeError, ValueError):
        kind = type(data).__name__
        raise ValueError(f"show_table: a {kind} is no table: give a frame or records.") from None
    if HIDDEN in frame:  # estimates: rows chosen from a frame have no index of meaning
        frame = frame.reset_index(drop=True)
    if any(frame.index.names):
        frame = frame.reset_index()
    elif not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names="")
    frame = frame.drop(columns=HIDDEN, errors="ignore")
    notes = [caption] if caption else []
    for name in ("method", "scorer") if len(frame) else ():
        if name in frame and frame[name].nunique(dropna=False) == 1:
            shared = frame.pop(name).iloc[0]
            notes += [f"{name.capitalize()}: {shared}"] if shared else []
    return _formatted(frame, digits, units or {}), ". ".join(notes)


def _formatted(frame: pd.DataFrame, digits: Digits, units: Units) -> pd.DataFrame:
    triples = _triples(frame.columns)
    ends = {end for _, low, high in triples.values() for end in (low, high)}
    cells = {}
    for name in frame:
        column, unit = frame[name].astype(object), units.get(name, "")
        places = digits.get(name, 2) if isinstance(digits, Mapping) else digits
        places = 3 if name in P_VALUES else places
        scale, places = (100, max(places - 2, 0)) if unit == "%" else (1, places)
        if name in triples:
            stem, *keys = triples[name]
            parts: Any = [frame[k] * scale if k else [None] * len(frame) for k in (stem, *keys)]
            note = "95 % interval" if frame[keys[0]].notna().any() else ""
            heading = _heading(stem or name[:-4], unit, note)
            text = [format_interval(v, a, b, places) for v, a, b in zip(*parts)]
        elif name in ends:
            continue
        else:
            heading = _heading(name, unit)
            places = 0 if _is_counts(frame[name]) else places
            text = [format_number(v * scale if scale != 1 else v, places) for v in column]
        cells[heading] = text
    return pd.DataFrame(cells)


def _is_counts(column: pd.Series) -> bool:
    """Whether a column of floats holds whole numbers, such as counts beside missing ones."""
    if column.dtype.kind != "f":
        return False
    values = column.dropna()
    return bool(len(values) and (values % 1 == 0).all() and (abs(values) > 1).any())


def _triples(columns: Iterable[Hashable]) -> dict[str, tuple[str | None, str, str]]:
    """Return where an interval is shown -> its columns (value, low, high); value may be None."""
    known, triples = list(columns), {}
    for low in (str(c) for c in known if str(c).endswith("low")):
        high, stem = low[:-3] + "high", low[:-3]
        if high in known:
            names = (stem + "value", stem.rstrip("_ "))
            value = next((name for name in names if name in known), None)
            triples[value or low] = (value, low, high)
    return triples


def _heading(name: Hashable, unit: str, note: str = "") -> str:
    text = str(name).replace("_", " ").rstrip()
    inside = ", ".join(part for part in (unit, note) if part)
    return f"{text} ({inside})" if inside else text


def _html(frame: pd.DataFrame, caption: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in frame)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in others)
        + "</tr>"
        for first, *others in frame.itertuples(index=False)
    )
    title = f"<caption>{escape(caption)}.</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
