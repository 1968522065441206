"""What the simulating studies share: their options, and how a result is written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import versions, write_json


def parse(module: str, doc: str | None, what: str, default: int, argv: Sequence[str] | None) -> Any:
    """Return the options of `python -m studies.<module>`: how many, and the folder for results."""
    parser = argparse.ArgumentParser(prog=f"python -m studies.{module}", description=doc)
    parser.add_argument(f"--{what}", type=int, default=default, help=f"simulated {what} a cell")
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    if getattr(options, what) < 1:
        parser.error(f"--{what}: give a whole number of 1 or more")
    options.command = f"python -m studies.{module} --{what} {getattr(options, what)}"
    return options


def write(options: Any, name: str, result: dict[str, Any]) -> int:
    """Write a study's result, with its command and the versions, and print where; returns 0."""
    folder = options.out or data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    head = {"command": options.command, "versions": versions()}
    print(write_json(folder / name, head | result))
    return 0
