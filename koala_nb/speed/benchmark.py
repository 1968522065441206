"""`koala-nb benchmark NAME`: what generation, its parts and capturing attention cost here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

NAMES = {
    "attention": "what capturing attention costs beside a generation without",
    "generation": "kn.generate against diffusers' own loop, with the difference of the images",
    "latency": "seconds and memory of systems by part, with or without weights; the roofline",
    "records": "writing and reading the records of up to a million images",
    "full": "load and draw with a full-size system of random weights from a hub's cache",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names; the rest are its own options."""
    given = list(sys.argv[1:] if argv is None else argv)
    about = "; ".join(f"{name}: {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(prog="koala-nb benchmark", description=about)
    parser.add_argument("name", choices=NAMES)
    name = parser.parse_args(given[:1]).name
    return import_module(f"koala_nb.speed.{name}").main(given[1:])
