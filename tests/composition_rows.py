"""Prompts and boxes that tests of the composition probe are written with."""

from koala_nb.probes import atoms

NONE = dict.fromkeys(atoms.SINGLE)


def box(x, y, side=0.3):
    """A square box from its top left corner, in shares of the image's sides."""
    return x, y, x + side, y + side


def row(task, asks, **asked):
    """A row of a prompt set."""
    return NONE | {"id": asks, "prompt": asks, "task": task, "asks": asks} | asked
