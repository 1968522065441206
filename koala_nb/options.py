"""Options of the command line whose values are checked as they are read."""

import os
from pathlib import Path

from typer import BadParameter, Option
from typer.models import OptionInfo


def whole(low: int, about: str = "") -> OptionInfo:
    """Return an option that is a whole number of at least `low`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise BadParameter(f"{text!r}: give a whole number of {low} or more")
        return value

    return Option(parser=integer, help=about)


def real(about: str, positive: bool = False) -> OptionInfo:
    """Return an option that is a number, or a finite one above 0."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise BadParameter(f"{text!r}: give a number") from None
        if positive and not 0 < value < float("inf"):
            raise BadParameter(f"{text!r}: give a number above 0")
        return value

    return Option(parser=number, help=about)


def folder_option(about: str, *names: str) -> OptionInfo:
    """Return an option that is a folder: one that can be written to, or that can be made."""

    def writable(text: str) -> Path:
        path = Path(text)
        try:
            nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        except OSError as error:  # too long, or behind a closed door
            raise BadParameter(f"{text[:60]!r}: {error.strerror}: give another folder") from None
        if not nearest.is_dir():
            raise BadParameter(f"{text!r}: {nearest} is a file: give a folder")
        if not os.access(nearest, os.W_OK):
            raise BadParameter(f"{text!r}: {nearest} cannot be written to: give another folder")
        return path

    return Option(*names, parser=writable, metavar="FOLDER", help=about)
