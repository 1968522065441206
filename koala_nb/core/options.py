"""Types of the commands' options: a bad number or folder is refused before any work."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def at_least(low: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number of at least `low`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise ArgumentTypeError(f"{text!r}: give a whole number of {low} or more")
        return number

    return read


def positive(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r}: give a number above 0")
    return number


def writable(text: str) -> Path:
    """A type for argparse: a folder that is there and can be written to, or that can be made."""
    path = Path(text)
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:  # too long, or behind a closed door
        raise ArgumentTypeError(f"{text[:60]!r}: {error.strerror}: give another folder") from None
    if not nearest.is_dir():
        raise ArgumentTypeError(f"{text!r}: {nearest} is a file: give a folder")
    if not os.access(nearest, os.W_OK):
        raise ArgumentTypeError(f"{text!r}: {nearest} cannot be written to: give another folder")
    return path


def probe_parser(name: str, images: int, fewest: int = 1) -> ArgumentParser:
    """Return a parser of the options that every probe has; `images`: the default a prompt."""
    parser = ArgumentParser(prog=f"koala-nb probe {name}")
    add = parser.add_argument
    add("--model", default="nano-koala", help="a catalogued name, folder or hub id")
    own = "" if fewest else "; 0: each run's own"
    add("--images", type=at_least(fewest), default=images, help=f"images per prompt{own}")
    add("--prompts", type=at_least(0), default=0, help="about so many prompts; 0: all")
    add("--seed", type=at_least(0), default=0, help="the first seed")
    add("--out", type=writable, default=None, help="default: data/results")
    return parser
