"""Docstrings of this project are plain sentences: shown as they are, `names` as code."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"`+([^`]+)`+")
MARKUP = re.compile(r"([*_|\\])")


def escape(line: str) -> str:
    """Return one line for reStructuredText: markup characters literal, `names` as code."""
    parts = CODE.split(line)
    parts[::2] = [MARKUP.sub(r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip()}``" for part in parts[1::2]]
    return "".join(parts)


def plain(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Replace a docstring's lines: indented ones, such as commands, keep their line breaks."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's own, says nothing
        lines.clear()
    kept = [f"| {escape(x)}" if x.startswith(" ") else escape(x) for x in lines]
    spaced: list[str] = []
    for line in kept:
        if spaced and spaced[-1] and spaced[-1].startswith("| ") != line.startswith("| "):
            spaced.append("")
        spaced.append(line)
    lines[:] = spaced


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
