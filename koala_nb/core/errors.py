"""Errors that name what is wrong and the nearest right thing."""

import difflib
import operator
from collections.abc import Iterable
from importlib import import_module
from math import inf, nan
from numbers import Real
from types import ModuleType
from typing import Any


def short(value: object) -> str:
    """A value as in code, in one line of at most 60 characters, for an error's sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: BaseException) -> str:
    """What an error says in its first line, without a full stop; its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def whole_number(name: str, value: Any, low: int, high: float = inf) -> int:
    """A whole number from low to high; ValueError, naming it, for what is none."""
    try:
        number = nan if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = nan
    if not low <= number <= high:
        span = f"from {low} to {high}" if high < inf else f"of {low} or more"
        raise ValueError(f"{name} is {short(value)}: give a whole number {span}.")
    return int(number)


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """A number from low to high; ValueError, naming it, for what is none."""
    number: Any = nan if isinstance(value, bool) or not isinstance(value, Real) else value
    if not low <= number <= high:
        raise ValueError(f"{name} is {short(value)}: give a number from {low} to {high}.")
    return float(number)


def nearest(name: object, known: Iterable[str]) -> str:
    """A question that names the most similar of the known names, "" where none is similar."""
    near = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency. ValueError, in a sentence, where it is absent."""
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"{module} is not installed: install koala-nb with the extra `{extra}`, in a checkout "
            f'by `pip install -e ".[{extra}]"`.'
        ) from None


def unknown_name(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is none of the known ones."""
    names = list(known)
    every = ", ".join(names)
    return ValueError(f"Unknown {what} {short(name)}.{nearest(name, names)} Known: {every}.")
