"""What reads images, by task and domain: `data/reference/scorers.yaml`, looked up.

A path is imported when its scorer is needed; what lies in `koala_nb.nano` is a string only there.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from PIL import Image

from koala_nb.core.files import Record, read_reference

GENERAL = "photographic"  # its scorers take weights of one's own, and read any image


class Scorer(Protocol):
    """Reads images; `name` and `version` tell apart what it wrote from what another one would."""

    name: str
    version: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return an image's values, the same keys for each; `prompts`: their prompts' rows."""


class Entry(NamedTuple):
    """A registered scorer: where it is, what of a context it takes, and what is known of it."""

    path: str  # "module:name", below koala_nb
    takes: list[str]  # its parameters among those of the call
    name: str
    version: str  # of its weights or rules; an instance's own adds the packages'
    licence: str
    error: str  # where its measured error stands
    calibrate: str = ""  # "module:name" of what measures that error where the truth is known


_registered: Record = read_reference("scorers.yaml")
SCORERS: dict[tuple[str, str], Entry] = {
    (row.pop("task"), row.pop("domain")): Entry(**row) for row in _registered["scorers"]
}
COMPARED: dict[str, str] = _registered["compared"]  # domain -> model its own is compared with
REPORTED: dict[str, list[Record]] = _registered["report"]  # domain -> instruments of a report
TRUTHS = {(row["purpose"], row["domain"]): row["path"] for row in _registered["truths"]}


def scorer(task: str, domain: str, **context: Any) -> Any:
    """Return a new scorer of a task (of `SCORERS`) for images of a domain.

    `context`, of which each takes its part: `system`, `image_size` (pixels), `concepts`, `source`
    or `name`: weights of one's own, read by the general scorer. ValueError where there is none.
    """
    has_weights = bool(context.get("source") or context.get("name"))
    entry = SCORERS.get((task, GENERAL if has_weights else domain)) or SCORERS.get((task, GENERAL))
    if entry is None:
        raise ValueError(f"No scorer of {task} is registered for the domain {domain!r}.")
    return resolve(entry.path)(**{k: v for k, v in context.items() if k in entry.takes})


def calibration(scorer: Any) -> Callable[..., Record] | None:
    """Return what measures a scorer's error on images of known truth; None where nothing does."""
    name = f"{type(scorer).__module__}:{type(scorer).__qualname__}".removeprefix("koala_nb.")
    paths = [e.calibrate for e in SCORERS.values() if e.path.startswith(name) and e.calibrate]
    return resolve(paths[0]) if paths else None


def truth(purpose: str, domain: str) -> Callable[..., Any] | None:
    """Return the function by which a domain knows something of itself (`TRUTHS`), or None."""
    path = TRUTHS.get((purpose, domain))
    return resolve(path) if path else None


def resolve(path: str) -> Any:
    """Return what "module:name" names; ValueError in a sentence where the module is absent."""
    module, _, name = path.partition(":")
    try:
        value = import_module(f"koala_nb.{module}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("koala_nb.nano"):
            raise
        raise ValueError(
            f"The embedded family's part {module!r} is not installed: install koala_nb whole, or "
            "name weights of your own."
        ) from None
    for part in name.split("."):
        value = getattr(value, part)
    return value
